"""SARIF files: what the format requires, and allows, of the parts that gradext writes.

The official schema (oasis-tcs/sarif-spec, sarif-2.1/schema/sarif-schema-2.1.0.json) is not in this
repository. GRADEXT_SARIF_SCHEMA names a copy of it: then every file here is held against it too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gradext.diagnosis.codes import CODES
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.diagnosis.run_report import RunReport, Told
from gradext.reporters import sarif

HERE = Path(__file__).resolve()


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 1}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
MESSAGE = closed(("text",), text=TEXT)
ARTIFACT = closed(uri={"type": "string", "pattern": r"^[!-~]*$"}, uriBaseId=TEXT)
REGION = closed(startLine=COUNT, startColumn=COUNT, endLine=COUNT, endColumn=COUNT)
PHYSICAL = closed(artifactLocation=ARTIFACT, region=REGION)
LOCATION = closed(physicalLocation=PHYSICAL, message=MESSAGE)
LOCATIONS = {"type": "array", "items": LOCATION}
RULE = closed(("id",), id=TEXT, name=TEXT, help=MESSAGE, defaultConfiguration=closed(level=LEVEL))
RESULT = closed(
    ("message",),
    ruleId=TEXT,
    ruleIndex={"type": "integer", "minimum": -1},
    level=LEVEL,
    message=MESSAGE,
    locations=LOCATIONS,
    relatedLocations=LOCATIONS,
    occurrenceCount=COUNT,
)
INVOCATION = closed(
    ("executionSuccessful",),
    executionSuccessful={"type": "boolean"},
    exitCode={"type": "integer"},
    toolExecutionNotifications={
        "type": "array",
        "items": closed(("message",), level=LEVEL, message=MESSAGE),
    },
)
RUN = closed(
    ("tool",),
    tool=closed(
        ("driver",),
        driver=closed(("name",), name=TEXT, version=TEXT, rules={"type": "array", "items": RULE}),
    ),
    invocations={"type": "array", "items": INVOCATION},
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    originalUriBaseIds={"type": "object", "additionalProperties": closed(uri=TEXT)},
    results={"type": "array", "items": RESULT},
)
FILE = closed(
    ("version", "runs"),
    **{"$schema": TEXT, "version": {"const": "2.1.0"}, "runs": {"type": "array", "items": RUN}},
)

FRAMES = {
    "a file here": Frame(str(HERE), 3, "f", column=0, end_line=4, end_column=9),
    "a strange name": Frame("/a b/ü%.py", 1, "f"),
    "no file": Frame("<stdin>", 2, "<module>", column=4, end_line=2, end_column=5),
    "a cell": Frame("Cell In[3]", 2, "<module>"),
}
FOUND = {
    **{code: Diagnosis(code, message="a\nb") for code in CODES},
    **{
        name: Diagnosis("GX101", message="m", culprits=(Site(frame, label="writes"),) * 2)
        for name, frame in FRAMES.items()
    },
    "a victim alone": Diagnosis("GX304", victims=(Site(FRAMES["a file here"]),), fix="do"),
    "bracketed": Diagnosis("GX401", window=(FRAMES["a file here"], FRAMES["no file"])),
}
ENDS = {"well": (0, None), "badly": (1, "RuntimeError: \x1b[31mred"), "not yet": (None, None)}


@pytest.mark.parametrize("end", [*ENDS])
def test_a_file_is_as_the_format_wants_it(end: str) -> None:
    code, error = ENDS[end]
    told = tuple(Told(diagnosis, 3) for diagnosis in FOUND.values())
    for some in (told, ()):
        document = json.loads(sarif.text(RunReport("0.1", "2.13", code, error, some)))
        jsonschema.validate(document, FILE)
        (run,) = document["runs"]
        rules = run["tool"]["driver"]["rules"]
        assert all(rules[r["ruleIndex"]]["id"] == r["ruleId"] for r in run["results"])
        assert all(uri["uri"].endswith("/") for uri in run["originalUriBaseIds"].values())
        if copy := os.environ.get("GRADEXT_SARIF_SCHEMA"):
            official = json.loads(Path(copy).read_text())
            jsonschema.validate(document, official)


def test_each_place_is_a_uri() -> None:
    told = tuple(Told(diagnosis) for diagnosis in FOUND.values())
    (run,) = json.loads(sarif.text(RunReport("0.1", None, 0, None, told)))["runs"]
    found = {
        location["physicalLocation"]["artifactLocation"]["uri"]
        for result in run["results"]
        for location in result.get("locations", [])
    }
    assert "%3Cstdin%3E" in found
    assert "file:///a%20b/%C3%BC%25.py" in found
