"""GX401's help for memory that is written past the counters, typed where it says."""

from __future__ import annotations

from textwrap import dedent
from typing import NamedTuple

import pytest
from cases import run


class Program(NamedTuple):
    source: str
    words: tuple[str, ...]
    typed: tuple[tuple[str, str], ...]


PROGRAMS = {
    "array_that_numpy_writes_by_out": Program(
        """
        import numpy as np
        w = torch.ones(4, requires_grad=True)
        scratch = np.ones(4, dtype=np.float32)
        x = torch.from_numpy(scratch)
        y = (w * x).sum()
        np.multiply(scratch, 3.0, out=scratch)
        y.backward()
        """,
        ("`torch.tensor(scratch)` in place of `torch.from_numpy(scratch)`",
         "drop `out=`: `scratch = np.multiply(scratch, 3.0)`"),
        (("torch.from_numpy(scratch)", "torch.tensor(scratch)"),),
    ),
    "the_same_with_another_result": Program(
        """
        import numpy as np
        w = torch.ones(4, requires_grad=True)
        scratch = np.ones(4, dtype=np.float32)
        x = torch.from_numpy(scratch)
        y = (w * x).sum()
        np.multiply(scratch, 3.0, out=scratch)
        y.backward()
        """,
        ("`scratch = np.multiply(scratch, 3.0)`",),
        (("np.multiply(scratch, 3.0, out=scratch)", "scratch = np.multiply(scratch, 3.0)"),),
    ),
    "observation_of_an_environment": Program(
        """
        import numpy as np
        class Env:
            def __init__(self):
                self.obs = np.zeros(3, dtype=np.float32)
            def step(self, k):
                np.add(self.obs, k, out=self.obs)
                return torch.from_numpy(self.obs)
        env, net = Env(), nn.Linear(3, 1)
        loss = 0
        for k in range(3):
            loss = loss + net(env.step(k)).sum()
        loss.backward()
        """,
        ("`torch.tensor(self.obs)` in place of `torch.from_numpy(self.obs)`",),
        (("torch.from_numpy(self.obs)", "torch.tensor(self.obs)"),),
    ),
    "saved_tensor_in_a_backward": Program(
        """
        import numpy as np
        class Sine(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.sin()
            @staticmethod
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                a = x.detach().numpy()
                np.cos(a, out=a)
                return g * torch.from_numpy(a)
        w = torch.ones(4, requires_grad=True)
        h = w * 2
        square = h * h
        (Sine.apply(h).sum() + square.sum()).backward()
        """,
        ("`x.detach().numpy().copy()` in place of `x.detach().numpy()`",),
        (("x.detach().numpy()", "x.detach().numpy().copy()"),),
    ),
    "result_clamped_through_data": Program(
        """
        w = torch.ones(4, requires_grad=True)
        y = (w * 2).sigmoid()
        y.data.clamp_(max=0.7)
        y.sum().backward()
        """,
        ("`y = y.clamp(max=0.7)`",),
        (("y.data.clamp_(max=0.7)", "y = y.clamp(max=0.7)"),),
    ),
    "rows_zeroed_through_data": Program(
        """
        def masked(w, m):
            y = (w * m).sum()
            m.data[1:3] = 0
            return y + m.sum()
        w = torch.ones(4, requires_grad=True)
        masked(w, torch.ones(4)).backward()
        """,
        ("`m = m.clone()`, then `m[1:3] = 0`",),
        (("m.data[1:3] = 0", "m = m.clone(); m[1:3] = 0"),),
    ),
    "state_scaled_through_data": Program(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(3, 3)
                self.scale = torch.ones(3)
            def forward(self, x):
                y = self.lin(x) * self.scale
                self.scale.data *= 0.5
                return y + self.scale
        Net()(torch.ones(2, 3)).sum().backward()
        """,
        ("`self.scale = self.scale * 0.5`",),
        (("self.scale.data *= 0.5", "self.scale = self.scale * 0.5"),),
    ),
    "parameter_halved_through_data": Program(
        """
        net = nn.Linear(3, 3)
        y = net(torch.ones(2, 3, requires_grad=True)).sum()
        net.weight.data.mul_(0.5)
        y.backward()
        """,
        ("after backward(), or run the forward",),
        (("net.weight.data.mul_(0.5)\n", ""),
         ("y.backward()", "y.backward(); net.weight.data.mul_(0.5)")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_help_is_typed(name: str) -> None:
    source, words, typed = PROGRAMS[name]
    text = dedent(source).lstrip("\n")
    ran = run(text, name, guard=True)
    assert ran.error is None
    assert {d.code for d in ran.diagnoses} == {"GX401"}, ran.diagnoses
    fix = ran.diagnoses[0].fix
    for word in words:
        assert word in fix, fix
    assert "factor" not in fix
    for old, new in typed:
        assert old in text
        text = text.replace(old, new)
    mended = run(text, f"{name}_mended", guard=True)
    assert (mended.error, mended.diagnoses) == (None, [])
