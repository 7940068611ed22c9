"""Which finding an error stands for: its text and the lines that take part, before it is explained.

A finding that was explained before is told again from what gradext.recording.findings keeps.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from gradext.base import raw
from gradext.native import _C
from gradext.recording.findings import Finding
from gradext.rules.codes import (
    gx102_106_refused_write,
    gx107_transformed_write,
    gx201_203_inference_tensor,
    gx301_graph_cut,
    gx303_unused_input,
    gx406_recompute_differs,
)

if TYPE_CHECKING:
    from gradext.recording.recording import Recording


_KINDS = (
    ("stale", re.compile(r"has been modified by an inplace")),
    ("freed", re.compile(r"backward through the graph a second time|after they have already been")),
)
_VERSIONS = re.compile(r"is at version \d+; expected version \d+")
_NUMBERS = re.compile(r"\d+")


def of_error(error: BaseException, outputs: Any, recording: Recording) -> Finding | None:
    """The finding that an error of backward stands for; None where it is of no such kind."""
    text = raw.message(error)
    kind = next((kind for kind, pattern in _KINDS if pattern.search(text)), None)
    if kind is None:
        return _of_other_error(error, text, outputs, recording)
    found, places, details, tensor, counter = _C.finding(kind, outputs, recording.since)
    if not found or places is None:
        return None
    return Finding(
        (kind, _NUMBERS.sub("#", text), places),
        (details, _VERSIONS.sub("", text)),
        text,
        tensor,
        counter,
    )


def _of_other_error(
    error: BaseException, text: str, outputs: Any, recording: Recording
) -> Finding | None:
    if not issubclass(type(error), RuntimeError):
        return None
    if (unused := gx303_unused_input.UNUSED.search(text)) is not None:
        return _of_unused(text, outputs, unused["index"])
    if gx301_graph_cut.ANY.search(text) is not None:
        return _of_cut(error, text, outputs)
    if gx406_recompute_differs.REFUSED.search(text) is not None:
        return gx406_recompute_differs.finding_of(error, text)
    return of_refusal(error, recording, text, is_backward=True)


def _of_unused(text: str, outputs: Any, index: str | None) -> Finding | None:
    """GX303, by the call, and by where its inputs and its outputs were made."""
    call = gx303_unused_input.inputs_of_grad()
    if call is None:
        return None
    inputs = tuple(item for item in call if issubclass(type(item), torch.Tensor))
    (_, places, details, _, _), told = _C.finding_unused(outputs, inputs)
    if places is None or len(inputs) != len(call):
        return None
    unused = [tensor for tensor, is_in_graph in told if not is_in_graph]
    first = int(index) if index is not None else None
    if first is not None and first < len(told):
        # The one of the error's text is told first, as the rule of GX303 does.
        unused = [told[first][0], *(t for t in unused if t != told[first][0])]
    tensor, *more = unused or [0]
    return Finding(("unused", text, places), (details,), "", tensor, 0, tuple(more))


def _of_cut(error: BaseException, text: str, outputs: Any) -> Finding | None:
    """GX301, by the call, and by what the tensor that has no history was made of."""
    roots, asked = gx301_graph_cut.in_question(error, outputs)
    _, places, details, tensor, counter = _C.finding_cut(tuple(roots))
    if places is None:
        return None
    return Finding(("cut", text, asked, places), (details,), "", tensor, counter)


def of_refusal(
    error: BaseException, recording: Recording, text: str, *, is_backward: bool = False
) -> Finding | None:
    """GX102 to GX107 and GX201 to GX203, by the line that was refused and those before it.

    None for an error of another kind, and where the recorder knows nothing of the refused call.
    """
    if not recording.is_running or not issubclass(type(error), RuntimeError):
        return None
    is_inference = gx201_203_inference_tensor.ANY.search(text) is not None
    if not is_inference and gx102_106_refused_write.ANY.search(text) is None:
        if gx107_transformed_write.ANY.search(text) is None:
            return None
        # Read from the source alone: the same lines are the same finding.
        _, places, _, _, _ = _C.finding_refused(text, error.__traceback__, False, recording.since)
        return None if places is None else Finding(("transformed", text, places), ())
    if not is_inference and gx102_106_refused_write.is_indirect(text):
        view = gx102_106_refused_write.view_used(error)
        if view is None:
            return None
        _, places, details, _, _ = _C.finding_used(view, error.__traceback__)
        return None if places is None else Finding(("used", text, places), (details,))
    is_noted, places, details, tensor, counter = _C.finding_refused(
        text, error.__traceback__, is_backward, recording.since
    )
    if places is None or not (is_noted or is_inference):
        return None
    where = ("refused", _NUMBERS.sub("#", text), is_noted, places)
    if not is_inference:
        return Finding(where, (details,), "", tensor)
    return Finding(where, (details,), "", tensor, counter, by_shape=True)
