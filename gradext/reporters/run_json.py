"""A run's report as JSON, the form of `gradext run --json`."""

from __future__ import annotations

import json
from typing import Any

from gradext.diagnosis.run_report import RunReport, Told


def text(report: RunReport) -> str:
    """The report as JSON text, with a newline at its end."""
    return json.dumps(document(report), indent=1) + "\n"


def document(report: RunReport) -> dict[str, Any]:
    """The report as plain data."""
    found: dict[str, Any] = {
        "gradext": report.gradext,
        "torch": report.torch,
        "exit_code": report.exit_code,
        "error": report.error,
        "diagnoses": [_told(told) for told in report.told],
    }
    if report.parts:
        found["processes"] = [
            {"exit_code": part.exit_code, "error": part.error, **part.whom.to_json()}
            for part in report.parts
        ]
    return found


def _told(told: Told) -> dict[str, Any]:
    found = told.diagnosis.to_json()
    if told.count > 1:
        found["count"] = told.count
    return {**found, **told.whom.to_json()}
