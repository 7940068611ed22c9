import torch
from lightning.pytorch import LightningModule, Trainer

from gradext.integrations.lightning import GradextCallback


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def training_step(self, batch):
        gate = torch.sigmoid(self.layer(batch))
        loss = (gate * gate).sum()
        gate.data.clamp_(max=0.5)  # past the version counter: no error, a wrong gradient
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


torch.manual_seed(0)
callback = GradextCallback(every=2, on_finding="stop")
trainer = Trainer(
    max_steps=6,
    callbacks=[callback],
    logger=False,
    accelerator="cpu",
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(12, 4), batch_size=2))
print("stopped after step", trainer.global_step)
