"""The diagnosis codes: one row each. A code is never used again for something else.

A new code needs a row here, a page (pages/GX….md), a rule (gradext.rules.codes) that is listed in
gradext/rules/codes/__init__.py, and a test.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """The facts that are the same in every diagnosis of a code.

    Attributes:
        name: its stable name.
        severity: "error", or "warning" for what may be meant.
        culprit, victim: what happened at a site that says nothing of its own.
        needs_guard: found with `--guard` alone.
    """

    name: str
    severity: str
    culprit: str
    victim: str
    needs_guard: bool = False


_WRITTEN = "written in place here"
_SAVED = "saved for backward here"
_VIEW = "the view is made here"
_MADE = "the inference tensor is made here"
_USED = "the inference tensor is used here"

# For a code of a later version, in a file that it has written.
UNKNOWN = Code("", "error", _WRITTEN, _SAVED)
CODES = {
    "GX101": Code("stale-saved-tensor", "error", _WRITTEN, _SAVED),
    "GX102": Code("leaf-written-in-place", "error", _WRITTEN, "the leaf is made here"),
    "GX103": Code("view-of-leaf-written", "error", _WRITTEN, _VIEW),
    "GX104": Code("no-grad-view-written", "error", _WRITTEN, _VIEW),
    "GX105": Code("multi-output-view-written", "error", _WRITTEN, _VIEW),
    "GX106": Code("custom-function-view-written", "error", _WRITTEN, _VIEW),
    "GX107": Code(
        "transformed-write-refused", "error", _WRITTEN, "the tensor that is written is made here"
    ),
    "GX201": Code("inference-tensor-saved", "error", _MADE, _USED),
    "GX202": Code("inference-tensor-written", "error", _MADE, _USED),
    "GX203": Code("inference-tensor-misused", "error", _MADE, _USED),
    "GX204": Code("inference-tensor-cached", "error", _MADE, _USED),
    "GX301": Code("graph-cut", "error", "the graph is cut here", "the missing gradient shows here"),
    "GX302": Code(
        "graph-freed", "error", "the graph is freed here", "the freed graph is built here"
    ),
    "GX303": Code(
        "unused-input", "error", "its gradient is asked for here", "the tensor is made here"
    ),
    "GX304": Code(
        "silent-cut", "warning", "the graph is cut here", "the missing gradient shows here"
    ),
    "GX305": Code(
        *("non-leaf-grad-read", "warning", "the tensor that is no leaf is made here"),
        "its .grad is read here",
    ),
    "GX306": Code(
        *("untrained-parameter", "warning", "the parameter is made here"),
        "the optimizer is made here",
    ),
    "GX401": Code("silent-write", "error", _WRITTEN, _SAVED),
    "GX402": Code("check-disabled", "error", _WRITTEN, _SAVED, needs_guard=True),
    "GX403": Code(
        "gradient-written", "error", _WRITTEN, "its gradient is shared here", needs_guard=True
    ),
    "GX404": Code(
        *("overlapping-write", "warning", _WRITTEN, "the overlapping memory is made here"),
        needs_guard=True,
    ),
    # Found by guard(watched=...) alone, which is no option of `gradext run`.
    "GX405": Code("watched-tensor-changed", "error", _WRITTEN, _SAVED),
    "GX406": Code(
        "recompute-differs", "error", _WRITTEN, "saved for backward in a checkpoint here"
    ),
}
