"""Programs whose help is typed where it says: they run, with the gradients that they meant.

Each `typed` text has to stand in the help word for word. What a program meant is what backward of
its forward pass gives when every saved tensor is kept as it was (allow_mutation_on_saved_tensors).
"""

from __future__ import annotations

import contextlib
import dataclasses
import linecache
import textwrap
from typing import Any

import cases
import pytest
import torch


@dataclasses.dataclass(frozen=True)
class Advice:
    """A program that calls backward() and leaves `leaves`, and what its help says to type.

    Attributes:
        typed: (old line, new lines) pairs; every new line stands in the help.
        words: more that stands in the help. never: what does not.
        twin: changes that make a program of the same meaning, where torch's own mode, which keeps
            no copy for a write through a view, does not tell it.
    """

    name: str
    source: str
    typed: tuple[tuple[str, str], ...]
    words: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    twin: tuple[tuple[str, str], ...] = ()

    def with_lines(self, changes: tuple[tuple[str, str], ...]) -> str:
        text = self.source
        for old, new in changes:
            lines = [line for line in text.splitlines() if line.strip() == old]
            assert len(lines) == 1, (old, text)
            indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
            text = text.replace(lines[0], textwrap.indent(new, indent))
        return text


def gradients(text: str, name: str, *, as_saved: bool = False) -> list[torch.Tensor]:
    file = f"/nowhere/{name}.py"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(cases.PRELUDE, space)
    torch.manual_seed(0)
    keep = torch.autograd.graph.allow_mutation_on_saved_tensors()
    with keep if as_saved else contextlib.nullcontext():
        exec(compile(text, file, "exec"), space)
    return [leaf.grad for leaf in space["leaves"]]


class Advices(list[Advice]):
    """The programs of one test module."""

    def __call__(self, name: str, source: str, *typed: tuple[str, str], **more: Any) -> None:
        self.append(Advice(name, textwrap.dedent(source).lstrip("\n"), typed, **more))

    def each(self) -> Any:
        return pytest.mark.parametrize("each", self, ids=lambda each: each.name)


def check(each: Advice, code: str) -> None:
    """The help stands word for word, and what it says mends the program."""
    ran = cases.run(each.source, each.name)
    assert ran.diagnoses, ran.error
    assert ran.diagnoses[0].code == code
    fix = ran.diagnoses[0].fix
    for old, new in each.typed if not each.words else ():
        for line in new.splitlines():
            assert line == old or f"`{line}`" in fix, fix
    for word in each.words:
        assert word in fix, fix
    for word in each.never:
        assert word not in fix, fix
    if each.twin:
        meant = gradients(each.with_lines(each.twin), each.name + "-twin")
    else:
        meant = gradients(each.source, each.name, as_saved=True)
    got = gradients(each.with_lines(each.typed), each.name + "-mended")
    for mine, wanted in zip(got, meant, strict=True):
        torch.testing.assert_close(mine, wanted)
