"""Of several statements on a line, it is the one that ran; a context manager has its own line."""

from __future__ import annotations

from textwrap import dedent

import pytest
from cases import run

PROGRAMS = {
    "gates": (
        """
        lin = nn.Linear(3, 6)
        i, o = lin(torch.ones(2, 3)).chunk(2, -1)
        i.sigmoid_(); o.sigmoid_()
        (i * o).sum().backward()
        """,
        "GX105", "`i = i.sigmoid()`",
    ),
    "saved_results": (
        """
        x = torch.ones(3, requires_grad=True)
        a, b = x.exp(), x * 2
        a *= 2; b += 1
        (a + b).sum().backward()
        """,
        "GX101", "`a = a * 2`",
    ),
    "behind_letters_of_more_than_one_byte": (
        """
        x = torch.ones(3, requires_grad=True)
        a, b = x.exp(), x * 2
        größe = "ééé"; a *= 2
        (a + b).sum().backward()
        """,
        "GX101", "`a = a * 2`",
    ),
    "within_a_branch": (
        """
        w = torch.ones(3, requires_grad=True)
        def step(ready):
            if ready: w.mul_(2); w.grad = None
        step(True)
        """,
        "GX102", "`with torch.no_grad(): w.mul_(2)`",
    ),
    "read_of_its_own": (
        """
        w = torch.ones(3, requires_grad=True)
        t = torch.ones(4, 3)
        for k in range(3): t[k + 1] = t[k] * w; n = k
        t.sum().backward()
        """,
        "GX101", "`t[k + 1] = t[k].clone() * w`",
    ),
    "context_manager_of_the_program": (
        """
        import contextlib
        @contextlib.contextmanager
        def evaluating(model):
            with torch.inference_mode():
                yield
        net = nn.Linear(3, 3)
        with evaluating(net):
            target = net(torch.ones(2, 3))
        (net(torch.ones(2, 3)) * target).sum().backward()
        """,
        "GX201", "use `torch.no_grad()` instead of inference_mode, at PROGRAM.py:4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_statement_that_ran(name: str) -> None:
    source, code, words = PROGRAMS[name]
    first = run(dedent(source).lstrip("\n"), name).diagnoses[0]
    assert first.code == code
    assert words.replace("PROGRAM", name) in first.fix, first.fix
