"""What a diagnosis is: plain, frozen data that reporters print and `--json` writes.

Owns no rule and no torch: everything here can be made by hand, which is how reporters are tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from gradext.base import display
from gradext.diagnosis.codes import CODES, UNKNOWN


@dataclasses.dataclass(frozen=True)
class Frame:
    """One place in a program: a Python frame and the code that it was executing.

    Attributes:
        file: absolute path, or a name like "<string>" for code without a file.
        line: from 1. end_line: last line of the expression; equals `line` where unknown.
        column, end_column: from 0, in characters of `line` and of `end_line`; None where Python
            keeps none (before 3.11).
        function: qualified where Python knows it ("Block.forward").
        code: the source text of `line`, stripped; "" where it cannot be read.
        is_user: outside torch, gradext, the standard library and site-packages.
    """

    file: str
    line: int
    function: str
    code: str = ""
    column: int | None = None
    end_line: int | None = None
    end_column: int | None = None
    is_user: bool = True


@dataclasses.dataclass(frozen=True)
class Site:
    """One end of a failure: where it is in the user's code, and what happened there.

    Attributes:
        frame: the innermost frame of the user's code (any innermost frame if there is none).
        op: the operator, "aten::mul_"; None where none is to blame.
        version_before, version_after: of the tensor's version counter around a write, else None.
        stack: library frames below `frame`, innermost first.
        callers: the user's own frames above `frame`, innermost first.
        label: a few words for beside the underlined code ("writes h in place: version 0 -> 1").
        times: how often this line did it, where that is known and more than once.
        callers_cut: there were more callers: the stack was deeper than the recorder keeps.
    """

    frame: Frame
    op: str | None = None
    version_before: int | None = None
    version_after: int | None = None
    stack: tuple[Frame, ...] = ()
    callers: tuple[Frame, ...] = ()
    label: str = ""
    times: int = 1
    callers_cut: bool = False


@dataclasses.dataclass(frozen=True)
class TextEdit:
    """Replaces a range of a file by `text`; lines from 1, columns from 0, in characters."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str


@dataclasses.dataclass(frozen=True)
class Fix:
    """Edits that together could mend a fault.

    Attributes:
        title: what they do.
        level: "untried"; what they are worth `gradext fix` finds out by running them.
    """

    title: str
    edits: tuple[TextEdit, ...]
    level: str = "untried"


@dataclasses.dataclass(frozen=True)
class Diagnosis(display.Shown):
    """One failure, explained.

    Attributes:
        code, name: a key of CODES and its name.
        severity: "error" or "warning"; its code's unless given.
        message: one sentence that says what happened to which tensor.
        culprits: most likely first, at most three. victims: likewise.
        fix: what to change, specific to the pattern, ready to be typed.
        notes: further sentences (what is conservative in torch's check, what could not be seen).
        window: (after, before) where a write can only be bracketed; `culprits` is empty then.
        fixes: edits of the program's files, the likeliest first; looked for at a run's end alone.
        whom: which ranks, workers, processes and threads met it, in words; "" where nothing tells.
    """

    code: str
    severity: str = ""
    message: str = ""
    culprits: tuple[Site, ...] = ()
    victims: tuple[Site, ...] = ()
    fix: str = ""
    notes: tuple[str, ...] = ()
    window: tuple[Frame, Frame] | None = None
    fixes: tuple[Fix, ...] = ()
    whom: str = ""

    def __post_init__(self) -> None:
        if not self.severity:
            object.__setattr__(self, "severity", CODES[self.code].severity)

    @property
    def name(self) -> str:
        return CODES.get(self.code, UNKNOWN).name

    def __str__(self) -> str:
        return display.show("diagnosis_text.text", self)

    __repr__ = __str__  # at the prompt the report is what one wants to see

    def _repr_html_(self) -> str:
        return display.show("report_html.fragment", [self])

    def key(self) -> tuple[object, ...]:
        """What tells one diagnosis from another: its code and its lines, not its words."""
        known: tuple[object, ...] | None = self.__dict__.get("_key")
        if known is not None:  # one that is told again and again is asked again and again
            return known

        def lines(frames: Iterable[Frame]) -> tuple[tuple[str, int], ...]:
            return tuple((frame.file, frame.line) for frame in frames)

        sides = (lines(site.frame for site in sites) for sites in (self.culprits, self.victims))
        found = (self.code, *sides, lines(self.window or ()))
        object.__setattr__(self, "_key", found)
        return found

    def to_json(self) -> dict[str, Any]:
        """The form that `gradext run --json` writes."""
        report: dict[str, Any] = {
            "code": self.code,
            "name": self.name,
            "severity": self.severity,
            "message": self.message,
            "culprits": [site_to_dict(site) for site in self.culprits],
            "victims": [site_to_dict(site) for site in self.victims],
            "fix": self.fix,
        }
        if self.notes:
            report["notes"] = list(self.notes)
        if self.window is not None:
            after, before = self.window
            report["window"] = {"after": _frame(after), "before": _frame(before)}
        if self.fixes:
            report["fixes"] = [dataclasses.asdict(fix) for fix in self.fixes]
        return report


class Diagnoses(display.Shown, list[Diagnosis]):
    """Diagnoses as `gradext.explain` returns them: a list that prints as the report."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self)) or "gradext has nothing to say of this error."

    __repr__ = __str__

    def _repr_html_(self) -> str | None:
        return display.show("report_html.fragment", self) if self else None


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "file": frame.file,
        "line": frame.line,
        "column": frame.column,
        "function": frame.function,
        "code": frame.code,
        "end_line": frame.end_line,
        "end_column": frame.end_column,
    }


def site_to_dict(site: Site) -> dict[str, Any]:
    """A site as the report's JSON has it."""
    report = {
        **_frame(site.frame),
        "op": site.op,
        "version_before": site.version_before,
        "version_after": site.version_after,
    }
    if site.label:
        report["label"] = site.label
    if site.times > 1:
        report["times"] = site.times
    if site.stack:
        report["stack"] = [_frame(frame) for frame in site.stack]
    if site.callers:
        report["callers"] = [_frame(frame) for frame in site.callers]
    if site.callers_cut:
        report["callers_cut"] = True
    return report
