"""Small programs in which autograd fails in one known way, each with its truth and its mended twin.

A case is a script whose last comments mark its lines: `#C` is the culprit, `#V` the victim. The
marks are taken out before the script is compiled, so that nothing can read them. `mend` turns the
script into its fixed twin, text for text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import linecache
import re
import textwrap
import warnings
from typing import Any

import pytest
import torch

import gradext
from gradext.base import errors
from gradext.diagnosis.model import Diagnosis
from gradext.recording import incidents, own_errors


@dataclasses.dataclass(frozen=True)
class Case:
    """One script.

    Attributes:
        code: the diagnosis expected first.
        mend: (old, new) pairs that make the fixed twin.
        fix: words that the fix has to have.
        text: words that the message has to have.
        saves: False runs it on a light recording, which names no victim.
        guard: runs it under gradext.guard() as well.
    """

    code: str
    name: str
    source: str
    mend: tuple[tuple[str, str], ...]
    fix: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    saves: bool = True
    guard: bool = False

    @property
    def shown(self) -> str:
        return re.sub(r"[ ]*#[CV]+$", "", self.source, flags=re.MULTILINE)

    @property
    def mended(self) -> str:
        text = self.shown
        for old, new in self.mend:
            assert old in text, f"{self.name}: nothing to mend, {old!r} is not there"
            text = text.replace(old, new)
        return text

    def lines(self, mark: str) -> set[int]:
        marked = enumerate(self.source.splitlines(), 1)
        return {n for n, line in marked if mark in (re.findall(r"#([CV]+)$", line) or [""])[0]}


class Cases(list[Case]):
    """The cases of one test module: `case = Cases()`, then `case(code, name, source, ...)`."""

    def __call__(
        self, code: str, name: str, source: str, *mend: tuple[str, str], **more: Any
    ) -> None:
        assert all(known.name != name for known in self), f"{name} twice"
        self.append(Case(code, name, textwrap.dedent(source).lstrip("\n"), mend, **more))

    def broken(self) -> Any:
        return pytest.mark.parametrize("case", self, ids=lambda case: case.name)


def named_and_mended(case: Cases) -> tuple[Any, Any]:
    """For a module of cases: each is named by its line, and silent once it is mended."""

    @case.broken()
    def test_the_line_is_named(case: Case) -> None:
        check_broken(case)

    @case.broken()
    def test_the_mended_script_is_silent(case: Case) -> None:
        check_mended(case)

    return test_the_line_is_named, test_the_mended_script_is_silent


PRELUDE = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


@dataclasses.dataclass(frozen=True)
class Ran:
    """What came of a script: its error (type and text), its diagnoses, its file name."""

    error: str | None
    diagnoses: list[Diagnosis]
    file: str
    data: Any


def run(text: str, name: str, *, saves: bool = True, guard: bool = False) -> Ran:
    """Run a script in this process under record(); the file exists for linecache only."""
    guarded = gradext.guard() if guard else contextlib.nullcontext()
    file = f"/nowhere/{name}.py"
    prelude = compile(PRELUDE, "<prelude>", "exec")
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": "__main__", "__file__": file}
    exec(prelude, space)
    error = None
    gc.collect()  # the modules of earlier cases would be among those that have names
    faults = own_errors.lines()  # other tests of this process may have left some
    found: list[Diagnosis] = []
    with gradext.record(saves=saves) as recording, warnings.catch_warnings():
        warnings.simplefilter("ignore", gradext.GuardWarning)  # the incidents have them
        try:
            with guarded:
                exec(compile(text, file, "exec"), space)
        except Exception as caught:
            error = errors.describe(caught)
            found = gradext.explain(caught)
        else:
            incidents.settle(recording)
            found = [d for incident in incidents.incidents for d in incident.diagnoses]
        data = recording.data
    torch.set_grad_enabled(True)  # a case may have left it off
    assert own_errors.lines() == faults, own_errors.lines()
    return Ran(error, found, file, data)


def places(sites: Any, file: str) -> list[int]:
    """The lines of sites, which must all be in `file`."""
    return [site.frame.line if site.frame.file == file else -1 for site in sites]


def check_broken(case: Case) -> Ran:
    """The diagnosis has the code, the exact lines and the words that the case expects."""
    ran = run(case.shown, case.name, saves=case.saves, guard=case.guard)
    assert ran.diagnoses, f"no diagnosis of {ran.error}"
    first = ran.diagnoses[0]
    shown = f"{ran.error}\n{first}"
    assert first.code == case.code, shown
    assert first.culprits, shown
    assert places(first.culprits[:1], ran.file)[0] in case.lines("C"), shown
    if case.lines("V"):
        assert set(places(first.victims, ran.file)) & case.lines("V"), shown
    assert len(first.fix) > 20, shown
    for word in case.fix:
        assert word in first.fix, shown
    for word in case.text:
        assert word in first.message, shown
    return ran


def check_mended(case: Case) -> None:
    """The twin runs, and nothing is said of it."""
    ran = run(case.mended, case.name + "-mended", saves=case.saves, guard=case.guard)
    assert ran.error is None
    assert ran.diagnoses == []
