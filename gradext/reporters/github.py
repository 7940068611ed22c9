"""Annotations of GitHub Actions: commands that the runner reads from a step's output.

Source of the form: docs.github.com, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from gradext.base.text import clean
from gradext.diagnosis.model import Diagnosis
from gradext.reporters import places


def lines(diagnoses: Iterable[Diagnosis]) -> str:
    """One command for each diagnosis, without a newline at the end."""
    return "\n".join(_command(diagnosis) for diagnosis in diagnoses)


def _command(diagnosis: Diagnosis) -> str:
    properties = {"title": f"{diagnosis.code} {diagnosis.name}"}
    frame = places.main_frame(diagnosis)
    if frame is not None:
        column, end = places.columns(frame)
        properties |= {
            "file": places.relative(frame.file, os.environ.get("GITHUB_WORKSPACE")),
            "line": str(frame.line),
            "endLine": str(frame.end_line or frame.line),
        }
        if frame.column is not None and (frame.end_line or frame.line) == frame.line:
            properties |= {"col": str(column), "endColumn": str(end)}
    said = diagnosis.message + (f" ({diagnosis.whom})" if diagnosis.whom else "")
    said += f"\nhelp: {diagnosis.fix}" if diagnosis.fix else ""
    written = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    level = "error" if diagnosis.severity == "error" else "warning"
    return f"::{level} {written}::{_escaped(said)}"


def _escaped(text: str) -> str:
    """On one line, as the runner wants it: its parts are cleaned, and their ends are kept."""
    return "%0A".join(clean(line).replace("%", "%25") for line in text.splitlines())


def _property(text: str) -> str:
    return _escaped(clean(text)).replace(":", "%3A").replace(",", "%2C")
