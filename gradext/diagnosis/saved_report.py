"""Reads what `gradext run --json` wrote, and makes one report of several.

Believes nothing of a file unchecked. Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradext.diagnosis import whom
from gradext.diagnosis.model import Diagnosis, Fix, Frame, Site, TextEdit
from gradext.diagnosis.run_report import Part, RunReport, Told

MAX_BYTES = 1 << 28
_SEVERITIES = ("error", "warning")


class NotAReport(ValueError):
    """One line: why a file is no report of a run."""


def load(path: str) -> RunReport:
    """The report in a file.

    Raises:
        NotAReport: it cannot be read, or has something else in it; one line that says which.
    """
    try:
        if not os.path.isfile(path):
            why = "it is not a regular file" if os.path.exists(path) else "there is no such file"
            raise NotAReport(f"cannot read {path}: {why}")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotAReport(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise NotAReport(f"{path} is no report of gradext run: it has more than {MAX_BYTES} bytes")
    try:
        return parse(json.loads(data))
    except NotAReport as error:
        raise NotAReport(f"{path} is no report of gradext run: {error}") from None
    except (ValueError, RecursionError):
        raise NotAReport(f"{path} is no report of gradext run: it is no JSON") from None


def parse(document: Any) -> RunReport:
    """The report in a document of run_json.document(). Raises NotAReport."""
    try:
        found = _mapping(document)
        return RunReport(
            _text(found["gradext"]),
            _optional(_text, found["torch"]),
            _optional(_number, found["exit_code"]),
            _optional(_text, found["error"]),
            tuple(map(_told, _list(found["diagnoses"]))),
            parts=tuple(map(_part, _list(found.get("processes", [])))),
        )
    except KeyError as error:
        raise NotAReport(f"it lacks {error.args[0]!r}") from None
    except TypeError as error:
        raise NotAReport(str(error)) from None


def merge(reports: Sequence[RunReport]) -> RunReport:
    """One report of several: of a run's ranks, or of its machines.

    The exit code is the first that is not 0; none while some rank has not ended.
    """
    parts = [part for report in reports for part in _parts(report)]
    codes = [part.exit_code for part in parts]
    failed = next((code for code in codes if code), None)
    told = [told for report in reports for told in report.told]
    torches = dict.fromkeys(report.torch for report in reports if report.torch is not None)
    return RunReport(
        ", ".join(dict.fromkeys(report.gradext for report in reports)),
        ", ".join(torches) or None,
        failed if failed is not None else None if None in codes else 0,
        next((part.error for part in parts if part.error is not None), None),
        tuple(sorted(told, key=lambda one: one.diagnosis.severity != "error")),
        parts=tuple(parts),
    )


def _parts(report: RunReport) -> Iterable[Part]:
    """The processes of a report that several wrote; of one that was written by one, that one."""
    if report.parts:
        return report.parts
    ours = next((one.whom for one in report.told if one.whom.pid is None), whom.NOBODY)
    return (Part(ours._replace(threads=()), report.exit_code, report.error),)


# --- the parts of a document ----------------------------------------------------------------------


def _told(value: Any) -> Told:
    found = _mapping(value)
    count = _number(found.get("count", 1))
    if count < 1:
        raise TypeError("a count is below 1")
    return Told(_diagnosis(found), count, whom.from_json(found))


def _part(value: Any) -> Part:
    found = _mapping(value)
    code, error = _optional(_number, found["exit_code"]), _optional(_text, found["error"])
    return Part(whom.from_json(found), code, error)


def _diagnosis(found: dict[str, Any]) -> Diagnosis:
    window = found.get("window")
    severity = _text(found["severity"])
    if severity not in _SEVERITIES:
        raise TypeError(f"a severity is {severity[:20]!r}")
    return Diagnosis(
        _text(found["code"]),
        severity,
        _text(found["message"]),
        tuple(map(_site, _list(found["culprits"]))),
        tuple(map(_site, _list(found["victims"]))),
        _text(found["fix"]),
        tuple(map(_text, _list(found.get("notes", [])))),
        None
        if window is None
        else (_frame(_mapping(window)["after"]), _frame(_mapping(window)["before"])),
        tuple(map(_fix, _list(found.get("fixes", [])))),
    )


def _site(value: Any) -> Site:
    found = _mapping(value)
    return Site(
        _frame(found),
        _optional(_text, found["op"]),
        _optional(_number, found["version_before"]),
        _optional(_number, found["version_after"]),
        tuple(_frame(item, is_user=False) for item in _list(found.get("stack", []))),
        tuple(map(_frame, _list(found.get("callers", [])))),
        _text(found.get("label", "")),
        _number(found.get("times", 1)),
        found.get("callers_cut") is True,
    )


def _frame(value: Any, is_user: bool = True) -> Frame:
    found = _mapping(value)
    return Frame(
        _text(found["file"]),
        _number(found["line"]),
        _text(found["function"]),
        _text(found["code"]),
        _optional(_number, found["column"]),
        _optional(_number, found.get("end_line")),
        _optional(_number, found.get("end_column")),
        is_user,
    )


def _fix(value: Any) -> Fix:
    found = _mapping(value)
    edits = []
    for item in _list(found["edits"]):
        edit = _mapping(item)
        line, column, end_line, end_column = (
            _number(edit[name]) for name in ("line", "column", "end_line", "end_column")
        )
        place = (_text(edit["file"]), line, column, end_line, end_column)
        edits.append(TextEdit(*place, _text(edit["text"])))
    return Fix(_text(found["title"]), tuple(edits), _text(found["level"]))


def _mapping(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError("an object is expected where none stands")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError("a list is expected where none stands")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("a text is expected where none stands")
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a whole number is expected where none stands")
    return value


def _optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)
