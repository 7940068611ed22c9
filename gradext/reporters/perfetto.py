"""A recording as a trace of events that Perfetto opens, beside torch.profiler's of the same run.

Source of the form: the Trace Event Format of Chrome. Without events, which are there at the end of
a run, it is a trace of none.
"""

from __future__ import annotations

import json
from typing import Any

from gradext.base.text import clean
from gradext.diagnosis.run_report import RunReport


def text(report: RunReport) -> str:
    """The trace as JSON, with a newline at its end."""
    events: list[dict[str, Any]] = []
    base = 0
    if report.drawn is not None:
        from gradext.reporters.timeline import trace

        try:
            events, base = list(trace.events(report.drawn)), trace.base_of(report.drawn)
        except Exception as error:  # the report on stderr must not be lost with it
            why = f"gradext could not make the trace: {clean(repr(error))}"
            events = [{"ph": "M", "name": "process_labels", "pid": 0, "args": {"labels": why}}]
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": base,
        "gradext": report.gradext,
    }
    return json.dumps(document, separators=(",", ":")) + "\n"
