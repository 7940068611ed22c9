"""A recording as a trace of events that Perfetto opens, beside torch.profiler's of the same run.

Source of the form: the Trace Event Format of Chrome. Without events, which are there at the end of
a run, it is a trace of none.
"""

from __future__ import annotations

import json
from typing import Any

from gradext.diagnosis.run_report import RunReport


def text(report: RunReport) -> str:
    """The trace as JSON, with a newline at its end."""
    events: list[dict[str, Any]] = []
    base = 0
    if report.drawn is not None:
        from gradext.reporters.timeline import trace

        events, base = list(trace.events(report.drawn)), trace.base_of(report.drawn)
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": base,
        "gradext": report.gradext,
    }
    return json.dumps(document, separators=(",", ":")) + "\n"
