"""How results look, one module per thing shown. Reads finished records, never live tensors.

FORMATS has a row for each file that `gradext run` can write; its name is the option's.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from gradext.diagnosis.run_report import RunReport


class Format(NamedTuple):
    """A file format of a run's report.

    Attributes:
        module: of this package; its `text(report)` makes the file's text.
        help: of the command line option `--NAME FILE`.
    """

    module: str
    help: str


FORMATS = {
    "json": Format("run_json", "write the diagnoses to FILE too, at once when there is one"),
    "html": Format("report_html", "write the report to FILE as a page"),
    "sarif": Format("sarif", "write them to FILE as SARIF, for code hosts and editors"),
}


def render(name: str, report: RunReport) -> str:
    """The text of a run's report in one of FORMATS."""
    module = importlib.import_module(f"gradext.reporters.{FORMATS[name].module}")
    text: str = module.text(report)
    return text
