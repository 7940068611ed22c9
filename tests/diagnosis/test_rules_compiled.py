"""Writes within torch.compile: the user's line where the graph knows it, else the call."""

from __future__ import annotations

import pytest
import torch
from cases import Case, Cases, check_broken, check_mended

case = Cases()

# Where the op within runs as itself its own line is known; a compiled backward has only the call.
_SEEN = {"eager": ("  #V", ""), "aot_eager": ("", "  #V")}
for _backend in ("eager", "aot_eager"):
    case(
        "GX101", f"write_outside_{_backend}", f"""
        @torch.compile(backend="{_backend}")
        def gate(x):
            return torch.sigmoid(x * 2){_SEEN[_backend][0]}
        x = torch.ones(3, requires_grad=True)
        h = gate(x){_SEEN[_backend][1]}
        h += 1  #C
        h.sum().backward()
        """,
        ("h += 1", "h = h + 1"),
    )  # fmt: skip
    case(
        "GX101", f"input_written_inside_{_backend}", f"""
        @torch.compile(backend="{_backend}")
        def bump(t):
            t.add_(1)  #C
            return t * 2
        x = torch.ones(3, requires_grad=True)
        state = torch.ones(3)
        y = x * state  #V
        z = bump(state)  #C
        (y.sum() + z.sum()).backward()
        """,
        ("t.add_(1)", "t = t + 1"),
    )  # fmt: skip
case(
    "GX101", "write_inside_eager_names_its_line", """
    @torch.compile(backend="eager")
    def gate(x):
        h = torch.sigmoid(x)
        h.mul_(2)  #C
        return h
    x = torch.ones(3, requires_grad=True)
    y = gate(x)
    y.sum().backward()
    """,
    ("h.mul_(2)", "h = h.mul(2)"),
)  # fmt: skip
case(
    "GX101", "step_between_two_losses_aot_eager", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    run = torch.compile(net, backend="aot_eager")
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    y = run(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    opt.step()  #C
    y.sum().backward()
    """,
    ("opt.step()\ny.sum", "y.sum"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
