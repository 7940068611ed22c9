"""The faults of benchmarks/findings.py: for each code a step that goes wrong in the same place.

A step is source, so that it has lines of its own. `x` is the program's tensor; `told(error)` is
what a program does that asks gradext.explain() about an error that it has caught. Where nothing is
told, a step looks wrong and is not: it is checked each time all the same.
"""

from __future__ import annotations

from typing import NamedTuple

HEAD = """
import contextlib
import torch
import torch.utils.checkpoint


class Viewed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x[1:]

    @staticmethod
    def backward(ctx, grad):
        return torch.cat([grad[:1] * 0.0, grad])


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2.0

    @staticmethod
    def backward(ctx, grad):
        return grad.mul_(2.0)


def shifted(y):
    return (y * BUFFER).sin()


def filled(value):
    row = torch.zeros(4)
    row[0] = value
    return row


def written(grad):
    TABLE.add_(1.0)


with torch.inference_mode():
    TABLE = torch.linspace(0.0, 1.0, 8)
BUFFER = torch.zeros(8)
SCALE = torch.nn.Parameter(torch.ones(8))
OPTIMIZER = torch.optim.SGD([SCALE], lr=0.1)


"""


_CHECKPOINT = (
    "loss = torch.utils.checkpoint.checkpoint(shifted, x, use_reentrant=False).sum()\n"
    "BUFFER.add_(1.0)\nloss.backward()"
)


class Fault(NamedTuple):
    """A step, how gradext is switched on for it ("record" or "guard"), and the code it tells."""

    code: str | None
    how: str
    text: str


def _caught(line: str, *, told: bool = False) -> str:
    handler = "except RuntimeError as error:\n    told(error)" if told else "except RuntimeError:"
    return f"try:\n    {line}\n{handler}" + ("" if told else "\n    pass")


_EXP = "hidden = x.exp()\nloss = hidden.sum()\n"
_BACKWARD = _caught("loss.backward()")

FAULTS: dict[str, Fault] = {
    "GX101, a caught error": Fault("GX101", "record", f"{_EXP}hidden.add_(1.0)\n{_BACKWARD}"),
    "GX101, of what no variable holds": Fault(
        "GX101",
        "record",
        f"parts = [x.exp()]\nloss = parts[0].sum()\nparts.pop().add_(1.0)\n{_BACKWARD}",
    ),
    "GX102, a leaf": Fault("GX102", "record", _caught("x.mul_(2.0)", told=True)),
    "GX102, within a backward": Fault(
        "GX102",
        "record",
        "hidden = x.exp()\nhidden.register_hook(lambda grad: x.mul_(2.0))\n"
        + _caught("torch.autograd.grad(hidden.sum(), x, create_graph=True)"),
    ),
    "GX103, a view of a leaf": Fault("GX103", "record", _caught("x[1:].mul_(2.0)", told=True)),
    "GX104, a view made under no_grad": Fault(
        "GX104",
        "record",
        "hidden = x.exp()\nwith torch.no_grad():\n    view = hidden[1:]\n"
        + _caught("view.mul_(2.0)", told=True),
    ),
    "GX104, used after a write to its base": Fault(
        "GX104",
        "record",
        "hidden = x * 2.0\nwith torch.no_grad():\n    view = hidden[1:]\nhidden.mul_(2.0)\n"
        + _caught("view + 1.0", told=True),
    ),
    "GX105, one of several views": Fault(
        "GX105", "record", "parts = x.exp().unbind()\n" + _caught("parts[0].mul_(2.0)", told=True)
    ),
    "GX106, a view of a Function": Fault(
        "GX106",
        "record",
        "view = Viewed.apply(x.exp())\n" + _caught("view.mul_(2.0)", told=True),
    ),
    "GX201, an inference tensor saved": Fault(
        "GX201", "record", _caught("hidden = x * TABLE", told=True)
    ),
    "GX202, an inference tensor written": Fault(
        "GX202", "record", _caught("TABLE.add_(1.0)", told=True)
    ),
    "GX202, within a backward": Fault(
        "GX202", "record", f"{_EXP}hidden.register_hook(written)\n{_BACKWARD}"
    ),
    "GX203, an inference tensor misused": Fault(
        "GX203", "record", _caught("TABLE.requires_grad_()", told=True)
    ),
    "GX301, detached": Fault("GX301", "record", f"loss = (x.detach() * 2.0).sum()\n{_BACKWARD}"),
    "GX301, through a number": Fault(
        "GX301", "record", f"loss = torch.tensor(x.exp().sum().item() * 3.0)\n{_BACKWARD}"
    ),
    "GX301, under no_grad": Fault(
        "GX301", "record", f"with torch.no_grad():\n    loss = (x * 2.0).sum()\n{_BACKWARD}"
    ),
    "GX301, never required": Fault("GX301", "record", f"loss = (BUFFER * 2.0).sum()\n{_BACKWARD}"),
    "GX301, the input of grad()": Fault(
        "GX301",
        "record",
        "data = torch.ones(8)\nloss = (x * data).sum()\n"
        + _caught("torch.autograd.grad(loss, data)"),
    ),
    "GX302, a graph used twice": Fault(
        "GX302", "record", f"loss = (x.exp() * x).sum()\nloss.backward()\n{_BACKWARD}"
    ),
    "GX303, an unused input": Fault(
        "GX303",
        "record",
        "other = x * 2.0\nloss = x.exp().sum()\n" + _caught("torch.autograd.grad(loss, other)"),
    ),
    "GX304, a rebuilt loss": Fault(
        "GX304",
        "record",
        "loss = torch.tensor(x.exp().sum().item(), requires_grad=True)\nloss.backward()",
    ),
    "GX304, a constant term": Fault(
        "GX304",
        "record",
        "loss = x.exp().sum()\n(grad,) = torch.autograd.grad(loss, x, retain_graph=True)\n"
        "loss = loss + grad.square().sum()\nloss.backward()",
    ),
    "GX304, a rebuilt value": Fault(
        "GX304",
        "record",
        "inner = torch.tensor(x.exp().tolist(), requires_grad=True)\n"
        "loss = (inner * 2.0).sum()\nloss.backward()",
    ),
    "GX305, the .grad of no leaf": Fault(
        "GX305", "record", "hidden = x * 2.0\nhidden.sum().backward()\nassert hidden.grad is None"
    ),
    "GX107, a write that vmap refuses": Fault(
        "GX107", "record", _caught("torch.func.vmap(filled)(x)", told=True)
    ),
    "GX401, a write through .data": Fault(
        "GX401", "record", f"{_EXP}hidden.data.add_(1.0)\nloss.backward()"
    ),
    "GX401, a write by numpy, under a guard": Fault(
        "GX401", "guard", f"{_EXP}hidden.detach().numpy()[0] = 2.0\nloss.backward()"
    ),
    "GX402, a write behind saved-tensor hooks": Fault(
        "GX402",
        "guard",
        "with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):\n"
        "    hidden = x.exp()\nloss = hidden.sum()\nhidden.add_(1.0)\nloss.backward()",
    ),
    "GX403, a gradient written": Fault(
        "GX403",
        "guard",
        "side = x * 2.0\nloss = (side + Scaled.apply(x)).square().sum()\nloss.backward()",
    ),
    "GX404, overlapping memory": Fault(
        "GX404", "guard", "rows = torch.zeros(8).expand(4, 8)\nrows[1] = 1.0"
    ),
    "GX406, a recompute that differs": Fault("GX406", "record", _CHECKPOINT),
    "GX406, a recompute that differs, under a guard": Fault("GX406", "guard", _CHECKPOINT),
    "clean: a write through .data to what is not saved": Fault(
        None, "record", f"{_EXP}BUFFER.data.add_(1.0)\nloss.backward()"
    ),
    "clean: backward() of a leaf": Fault(
        None, "record", "loss = torch.ones((), requires_grad=True)\nloss.backward()"
    ),
    "clean: a leaf made of numbers, beside a parameter": Fault(
        None,
        "record",
        "inner = torch.tensor(x.exp().tolist(), requires_grad=True)\n"
        "loss = (inner * SCALE).sum()\nloss.backward()",
    ),
    "clean: a target made of numbers": Fault(
        None,
        "record",
        "target = torch.tensor(x.exp().tolist())\nloss = (SCALE - target).square().sum()\n"
        "loss.backward()",
    ),
}
