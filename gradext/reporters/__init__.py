"""How results look, one module per thing shown. Reads finished records, never live tensors.

FORMATS has a row for each file that `gradext run` can write; its name is the option's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gradext.diagnosis.run_report import RunReport


class Format(NamedTuple):
    """A file format of a run's report.

    Attributes:
        module: of this package; its `text(report)` makes the file's text.
        help: of the command line option `--NAME FILE`.
        needs: of RecordOptions, what it draws from.
        of_events: it has nothing else, so that a saved report cannot be written as one.
    """

    module: str
    help: str
    needs: tuple[str, ...] = ()
    of_events: bool = False


FORMATS = {
    "json": Format("run_json", "write the diagnoses to FILE too, at once when there is one"),
    "html": Format("report_html", "write the report to FILE as a page with a timeline", ("uses",)),
    "sarif": Format("sarif", "write them to FILE as SARIF, for code hosts and editors"),
    "perfetto": Format(
        "perfetto",
        "write writes, saves and uses in backward to FILE, for Perfetto beside a profiler's trace",
        ("uses", "times"),
        of_events=True,
    ),
}


def render(name: str, report: RunReport) -> str:
    """The text of a run's report in one of FORMATS."""
    module = importlib.import_module(f"gradext.reporters.{FORMATS[name].module}")
    text: str = module.text(report)
    return text
