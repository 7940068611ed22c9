import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gradext.integrations.transformers import GradextCallback


class Net(GPT2LMHeadModel):
    def forward(self, input_ids, labels=None, **_):
        hidden = torch.tanh(self.transformer(input_ids).last_hidden_state)
        logits = self.lm_head(hidden)
        hidden.data.mul_(0.5)  # past the version counter: no error, a wrong gradient
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss}


torch.manual_seed(0)
model = Net(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
tokens = torch.randint(16, (12, 8))
callback = GradextCallback(every=2, on_finding="stop")
arguments = TrainingArguments(
    "out",
    max_steps=6,
    per_device_train_batch_size=2,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
rows = [{"input_ids": row, "labels": row} for row in tokens]
trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
trainer.train()
print("stopped after step", trainer.state.global_step)
