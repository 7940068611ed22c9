"""The programs of places.py: one training, written as people write it in each place.

Each has a clean form and a broken one, in which a tensor that a layer has saved is written before
backward. A program prints nothing that differs from run to run: the seconds of its loop
and a hash of what it has learnt go into files.
"""

from __future__ import annotations

WRITES, SAVES = "# writes", "# saves"  # the lines that a report should name

HEAD = """\
import hashlib
import os
import time

import torch
from torch.utils.checkpoint import checkpoint

torch.manual_seed(0)
STEPS = {steps}


{turns}

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(64, 256)
        self.b = torch.nn.Linear(256, 256)
        self.c = torch.nn.Linear(256, 8)

    def block(self, x):
        return torch.tanh(self.b(torch.sigmoid(self.a(x))))

    def forward(self, x):
        turn()
        y = {block}
        z = self.c(y)  {saves}
        {fault}
        return z.square().mean()


def done(net, seconds, name=""):
    digest = hashlib.sha256()
    for parameter in net.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    with open("learnt" + name, "w") as file:
        file.write(digest.hexdigest())
    with open("seconds" + name, "w") as file:
        file.write(str(seconds))


"""
# Every second step is recorded: what it takes beside its neighbours is the cost, whatever else the
# machine does. A step is what lies between two calls of forward.
TURNS = """\
import gradext

recording, since, times = None, None, ([], [])


def turn():
    global recording, since
    now = time.process_time()
    if since is not None:
        times[recording is not None].append(now - since)
    if recording is not None:
        recording.stop()
        recording = None
    elif since is not None:
        recording = gradext.record().start()
    with open("times" + os.environ.get("RANK", ""), "w") as file:
        file.write(repr(times))
    since = time.process_time()
"""
NO_TURNS = """\
def turn():
    pass
"""
LOOP = """\
net = {net}
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
batches = {batches}
began = time.process_time()
for number, x in enumerate(batches):
    optimizer.zero_grad()
    loss = {loss}
    loss.backward()
    optimizer.step()
    if number % 10 == 0:
        print(f"step {{number}}: {{loss.item():.6f}}", flush=True)
done({bare}, time.process_time() - began)
"""
PLAIN = {
    "block": "self.block(x)",
    "net": "Net()",
    "loss": "net(x)",
    "bare": "net",
    "batches": "[torch.randn(64, 64) for _ in range(STEPS)]",
}
LOADER = "torch.utils.data.DataLoader(torch.randn(64 * STEPS, 64), batch_size=64, num_workers=2)"
TEST = """\
def test_trains():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    began = time.process_time()
    for _ in range(STEPS):
        optimizer.zero_grad()
        net(torch.randn(64, 64)).backward()
        optimizer.step()
    done(net, time.process_time() - began)
"""
RANKS = """\
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
net = torch.nn.parallel.DistributedDataParallel(Net())
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
torch.manual_seed(rank)
began = time.process_time()
for number in range(STEPS):
    optimizer.zero_grad()
    loss = net(torch.randn(64, 64))
    loss.backward()
    optimizer.step()
    if rank == 0 and number % 10 == 0:
        print(f"step {number}: {loss.item():.6f}", flush=True)
if rank == 0:
    done(net.module, time.process_time() - began)
dist.destroy_process_group()
"""
FUNC = """\
net = Net()
weights = {name: p.detach() for name, p in net.named_parameters()}
gradient = torch.func.grad(lambda w, x: torch.func.functional_call(net, w, (x,)))
began = time.process_time()
for number in range(STEPS):
    found = gradient(weights, torch.randn(64, 64))
    weights = {name: w - 0.1 * found[name] for name, w in weights.items()}
    if number % 10 == 0:
        print(f"step {number}: {weights['c.bias'].sum().item():.6f}", flush=True)
seconds = time.process_time() - began
net.load_state_dict(weights)
done(net, seconds)
"""
LIGHTNING = """\
import logging
import warnings

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
from lightning.pytorch import LightningModule, Trainer


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch):
        return self.net(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


quiet = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)
module = Module()
trainer = Trainer(max_steps=STEPS, accelerator="cpu", **quiet)
batches = torch.utils.data.DataLoader(torch.randn(64 * STEPS, 64), batch_size=64)
began = time.process_time()
trainer.fit(module, batches)
done(module.net, time.process_time() - began)
print("trained", trainer.global_step)
"""
TRANSFORMERS = """\
from transformers import PrinterCallback, Trainer, TrainingArguments


class Model(Net):
    def forward(self, x):
        return {"loss": super().forward(x)}


model = Model()
arguments = TrainingArguments(
    "out", max_steps=STEPS, per_device_train_batch_size=64, report_to=[], save_strategy="no",
    use_cpu=True, disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
)
rows = [{"x": row} for row in torch.randn(64 * STEPS, 64)]
trainer = Trainer(model, arguments, train_dataset=rows)
trainer.remove_callback(PrinterCallback)  # it prints how long it took
began = time.process_time()
trainer.train()
done(model, time.process_time() - began)
print("trained", trainer.state.global_step)
"""
ACCELERATE = """\
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
batches = torch.utils.data.DataLoader(torch.randn(64 * STEPS, 64), batch_size=64)
net, optimizer, batches = accelerator.prepare(net, optimizer, batches)
began = time.process_time()
for x in batches:
    optimizer.zero_grad()
    accelerator.backward(net(x))
    optimizer.step()
done(net, time.process_time() - began)
print("trained", len(batches))
"""


def program(place: str, *, broken: bool = False, steps: int, turns: bool = False) -> str:
    """The text of a place's program; with `turns` it records every second step itself."""
    how = dict(PLAIN)
    body = LOOP
    if place == "DataLoader, 2 workers":
        how["batches"] = LOADER
    elif place == "torch.compile":
        how["net"] = "Net(); compiled = torch.compile(net.block, backend='aot_eager')"
        how["block"] = "compiled(x)"
    elif place == "checkpoint, reentrant":
        how["block"] = "checkpoint(self.block, x.requires_grad_(), use_reentrant=True)"
    elif place == "checkpoint, non-reentrant":
        how["block"] = "checkpoint(self.block, x, use_reentrant=False)"
    elif place == "AMP":
        how["loss"] = "torch.autocast('cpu', torch.bfloat16)(net)(x)"
    else:
        body = OTHERS.get(place, LOOP)
    head = HEAD.format(
        steps=steps,
        block=how["block"],
        saves=SAVES,
        turns=TURNS if turns else NO_TURNS,
        fault=f"y.mul_(2)  {WRITES}" if broken else "pass",
    )
    return head + (body.format(**how) if body is LOOP else body)


OTHERS = {
    "pytest": TEST,
    "pytest -n 2": TEST,
    "torchrun, 2 ranks": RANKS,
    "torch.func": FUNC,
    "Lightning": LIGHTNING,
    "transformers' Trainer": TRANSFORMERS,
    "accelerate": ACCELERATE,
}
