"""GX101 for what a checkpoint without reentry was given: the line in the block, and the call."""

from __future__ import annotations

from typing import Any

import pytest
from cases import Case, Cases, check_broken, check_mended

from gradext.objects import naming

_cases = Cases()

_cases(
    "GX101", "a_scale_of_a_function", """
    from torch.utils.checkpoint import checkpoint
    def block(x, s):
        h = x * s  #V
        return torch.tanh(h) * h
    x, scale = torch.ones(2, 3, requires_grad=True), torch.ones(3)
    out = checkpoint(block, x, scale, use_reentrant=False)  #V
    scale.mul_(2)  #C
    out.sum().backward()
    """,
    ("scale.mul_(2)", "scale = scale * 2"), text=("`s` [3]", "run the block again"),
    fix=("`scale = scale.mul(2)`",),
)  # fmt: skip
_cases(
    "GX101", "the_hidden_state_of_a_module", """
    from torch.utils.checkpoint import checkpoint
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 3)
        def forward(self, x, hidden):
            y = self.lin(x)
            return torch.tanh(y * hidden)  #V
    cell, hidden = Cell(), torch.ones(2, 3)
    def step(x):
        out = checkpoint(cell, x, hidden, use_reentrant=False)  #V
        hidden.copy_(out.detach())  #C
        return out
    step(torch.ones(2, 3, requires_grad=True)).sum().backward()
    """,
    ("hidden.copy_(out.detach())", "pass"), text=("`hidden` [2, 3]",), fix=("hidden",),
)  # fmt: skip
_cases(
    "GX101", "a_mask_in_a_loop_by_a_method", """
    from torch.utils import checkpoint as ckpt
    class Net:
        def block(self, x, flag, mask):
            if flag:
                x = x.exp()
            return x * mask  #V
        def run(self, x):
            mask = torch.ones(4)
            for i in range(2):
                x = ckpt.checkpoint(self.block, x, True, mask, use_reentrant=False)  #V
                mask[i] = 0  #C
            return x
    Net().run(torch.ones(4, requires_grad=True)).sum().backward()
    """,
    ("mask[i] = 0", "mask = mask.clone(); mask[i] = 0"), text=("`mask` [4]",), fix=("mask",),
)  # fmt: skip


@_cases.broken()
def test_the_users_lines_are_named(case: Case) -> None:
    ran = check_broken(case)
    (found,) = ran.diagnoses
    lines = [site.frame.line for site in found.victims]
    assert set(lines) == case.lines("V"), str(found)
    assert all(site.frame.file == ran.file for site in (*found.victims, *found.culprits))
    assert "checkpoint.py" not in str(found).replace("utils/checkpoint.py:", "")
    assert "checkpoint saves its input" in str(found)


@_cases.broken()
def test_from_the_call_alone(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from Python 3.12 on: the frames show no variable of torch's list comprehension."""
    shown = naming.locals_of

    def without(frame: Any) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in shown(frame) if name != "arg"]

    monkeypatch.setattr(naming, "locals_of", without)
    (found,) = check_broken(case).diagnoses
    assert {site.frame.line for site in found.victims} == case.lines("V"), str(found)


def test_which_of_two_inputs_is_unclear(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written has another name than the arguments: only the call is told of."""
    shown = naming.locals_of
    monkeypatch.setattr(
        naming, "locals_of", lambda frame: [each for each in shown(frame) if each[0] != "arg"]
    )
    source = """
    from torch.utils.checkpoint import checkpoint
    def block(x, a, b):
        return (x * a).tanh() * b
    x, scale, shift = torch.ones(3, requires_grad=True), torch.ones(3), torch.ones(3)
    held = [scale, shift]
    out = checkpoint(block, x, scale, shift, use_reentrant=False)  #V
    held[0].mul_(2)  #C
    out.sum().backward()
    """
    made = Cases()
    made("GX101", "another_name", source, text=("[3]", "run the block again"))
    (found,) = check_broken(made[0]).diagnoses
    assert [site.frame.line for site in found.victims] == [6]


@_cases.broken()
def test_the_mended_twin_is_silent(case: Case) -> None:
    check_mended(case)


def test_a_block_that_nobody_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builtin has no lines, and no parameter with a name: the call is told of."""
    source = """
    import functools
    from torch.utils.checkpoint import checkpoint
    x, scale = torch.ones(3, requires_grad=True), torch.ones(3)
    out = checkpoint(functools.partial(torch.mul, x.exp()), scale, use_reentrant=False)  #V
    scale.mul_(2)  #C
    out.sum().backward()
    """
    made = Cases()
    made("GX101", "a_builtin", source, text=("[3]", "run the block again"))
    check_broken(made[0])
