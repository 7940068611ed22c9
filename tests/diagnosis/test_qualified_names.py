"""Names of functions on Pythons whose code objects do not keep them qualified (3.10)."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest
import torch

from gradext.source import frames

SOURCE = """
import functools

def plain():
    return [x for x in range(3)]

class Net:
    class Inner:
        @functools.wraps(
            plain
        )
        def forward(self):
            # less indented comments are none
  # of a block
            if self:
                return lambda: 1

    async def step(self):
        def nested():
            text = "abc"
            return {k: k for k in text}
        return nested
"""


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="what it is compared with begins at 3.11")
def test_they_are_those_that_later_pythons_keep(tmp_path) -> None:
    path = tmp_path / "program.py"
    path.write_text(SOURCE)
    found = list(codes(compile(SOURCE, str(path), "exec")))
    assert len(found) >= 8  # later Pythons inline comprehensions
    for code in found:
        assert frames.qualified(code) == code.co_qualname


@pytest.mark.skipif(sys.version_info < (3, 11), reason="what it is compared with begins at 3.11")
def test_functions_of_torch() -> None:
    for function in (
        torch.no_grad.__enter__,
        torch.nn.Linear.forward,
        torch.optim.SGD.step,
        torch.autograd.grad,
    ):
        code = getattr(function, "__wrapped__", function).__code__
        assert frames.qualified(code) == code.co_qualname


@pytest.mark.skipif(sys.version_info < (3, 11), reason="what it is compared with begins at 3.11")
def test_a_text_that_ends_the_indentation_leaves_the_plain_name(tmp_path) -> None:
    path = tmp_path / "program.py"
    text = 'class A:\n    def f(self):\n        a = """\nless\n"""\n        return lambda: a\n'
    path.write_text(text)
    names = {frames.qualified(code) for code in codes(compile(text, str(path), "exec"))}
    assert names == {"<module>", "A", "A.f", "<lambda>"}


def test_without_a_source_the_plain_name_is_all() -> None:
    code = compile("def f(): pass", "<nowhere>", "exec")
    (inner,) = [c for c in codes(code) if c is not code]
    assert frames.qualified(inner) == "f"
