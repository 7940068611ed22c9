"""A run's report as SARIF 2.1.0, which code hosts and editors show beside the source.

Source of the form: OASIS, Static Analysis Results Interchange Format 2.1.0.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from gradext.diagnosis import whom
from gradext.diagnosis.codes import CODES, UNKNOWN
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.diagnosis.run_report import RunReport, Told
from gradext.reporters import places

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def text(report: RunReport) -> str:
    """The report as SARIF's JSON, with a newline at its end."""
    codes = sorted({told.diagnosis.code for told in report.told})
    driver = {"name": "gradext", "version": report.gradext, "rules": [_rule(c) for c in codes]}
    invocation: dict[str, Any] = {"executionSuccessful": report.exit_code in (None, 0)}
    if report.exit_code is not None:
        invocation["exitCode"] = report.exit_code
    if report.error:
        # What ended the program, as the tool that ran it saw it.
        notification = {"level": "error", "message": {"text": report.error}}
        invocation["toolExecutionNotifications"] = [notification]
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"SRCROOT": {"uri": _uri_of(os.getcwd()) + "/"}},
        "results": [_result(told, codes) for told in report.told],
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1) + "\n"


def _rule(code: str) -> dict[str, Any]:
    row = CODES.get(code, UNKNOWN)
    return {
        "id": code,
        "name": row.name,
        "help": {"text": f"gradext explain {code}"},
        "defaultConfiguration": {"level": _level(row.severity)},
    }


def _result(told: Told, codes: list[str]) -> dict[str, Any]:
    diagnosis = told.diagnosis
    concerns = whom.words([told.whom])
    said = diagnosis.message + (f" ({concerns})" if concerns else "")
    said += f"\nhelp: {diagnosis.fix}" if diagnosis.fix else ""
    found: dict[str, Any] = {
        "ruleId": diagnosis.code,
        "ruleIndex": codes.index(diagnosis.code),
        "level": _level(diagnosis.severity),
        "message": {"text": said},
    }
    if (frame := places.main_frame(diagnosis)) is not None:
        found["locations"] = [_location(frame, _label_at(diagnosis))]
    if told.count > 1:
        found["occurrenceCount"] = told.count
    related = [
        _location(site.frame, site.label or "here")
        for site in (*diagnosis.culprits[1:], *diagnosis.victims)
    ]
    if related:
        found["relatedLocations"] = related
    return found


def _label_at(diagnosis: Diagnosis) -> str:
    first: Site | None = next(iter((*diagnosis.culprits, *diagnosis.victims)), None)
    return first.label if first is not None else ""


def _location(frame: Frame, label: str) -> dict[str, Any]:
    column, end = places.columns(frame)
    region = {"startLine": frame.line}
    if frame.column is not None:
        region |= {"startColumn": column, "endLine": frame.end_line or frame.line, "endColumn": end}
    found: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": _artifact(frame.file), "region": region}
    }
    if label:
        found["message"] = {"text": label}
    return found


def _artifact(path: str) -> dict[str, str]:
    near = places.relative(path)
    if os.path.isabs(near):
        return {"uri": _uri_of(near)}
    return {"uri": quote(PurePath(near).as_posix()), "uriBaseId": "SRCROOT"}


def _uri_of(path: str) -> str:
    return Path(path).as_uri()


def _level(severity: str) -> str:
    return "error" if severity == "error" else "warning"
