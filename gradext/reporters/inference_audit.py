"""An InferenceAudit as the text that a person reads.

Reads the finished report and source files, never a tensor. Plain characters only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradext.diagnosis.model import Site
from gradext.reporters import diagnosis_text, excerpt
from gradext.source import files

if TYPE_CHECKING:
    from gradext.inference_audit.report import Check, InferenceAudit

_WORDS = {"pass": "pass", "warn": "WARN", "fail": "FAIL", "skipped": "skip"}
_INDENT = " " * 6
_WHERE = {
    "process": "each run in a process of its own",
    "copy": "on deep copies in this process",
    "none": "on the object itself, in this process",
}


def text(audit: InferenceAudit, width: int | None = None) -> str:
    """The report without a newline at its end; at most `width` cells wide, else the terminal."""
    cells = diagnosis_text.room(width)
    head = f"inference audit of {audit.subject} (torch {audit.torch}, {_WHERE[audit.isolation]})"
    lines = excerpt.wrap(head, cells)
    lines += [*excerpt.wrap(f"verdict: {audit.verdict}", cells, rest="  "), ""]
    for check in audit.checks:
        lines += _check(check, cells)
    lines += ["", "not checked:"]
    for item in audit.not_checked:
        lines += excerpt.wrap(item, cells, "  - ")
    return "\n".join(lines)


def _check(check: Check, width: int) -> list[str]:
    first = f"{_WORDS[check.status]}  "
    lines = excerpt.wrap(f"{check.name}: {check.message}", width, first, _INDENT)
    for site in check.sites:
        lines += _site(site, width)
    if check.fix:
        lines += excerpt.wrap(check.fix, width, f"{_INDENT}help: ")
    return lines


def _site(site: Site, width: int) -> list[str]:
    frame = site.frame
    lines = [f"{_INDENT}--> {diagnosis_text.place(frame, files.library_path, column=True)}"]
    number = str(frame.line)
    if frame.code:
        code, _, _ = excerpt.Line.of(frame.code).cut(width - len(number) - 9, 0, 0)
        lines.append(f"{_INDENT}{number} | {code}")
    words = diagnosis_text.label(site, "here") if site.label or site.op else ""
    if words:
        lines += excerpt.wrap(words, width, f"{_INDENT}{' ' * len(number)} = ")
    return lines
