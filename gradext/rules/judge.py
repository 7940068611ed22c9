"""What a recording asks of the rules: why a backward failed, and whether one is silently wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import raw
from gradext.diagnosis.model import Diagnosis
from gradext.objects.naming import Names
from gradext.rules import graph_copy
from gradext.rules.codes import (
    gx101_stale_saved,
    gx102_106_refused_write,
    gx201_203_inference_tensor,
    gx301_graph_cut,
    gx302_graph_freed,
    gx303_unused_input,
    gx304_silent_cut,
    gx401_silent_write,
)
from gradext.rules.explain import explain
from gradext.rules.recognise import of_error as recognise
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.recording import Recording

__all__ = ["explain", "of_backward", "of_silent_cuts", "of_silent_writes", "recognise"]

_PATTERNS = (
    gx101_stale_saved.PATTERN,
    gx302_graph_freed.FREED,
    gx303_unused_input.UNUSED,
    gx102_106_refused_write.ANY,
    gx201_203_inference_tensor.ANY,
    gx301_graph_cut.ANY,
)


def of_backward(error: BaseException, outputs: Any, recording: Recording) -> list[Diagnosis]:
    """Diagnoses of an error that the engine raised on the graph below `outputs`."""
    text = raw.message(error)
    if not any(pattern.search(text) for pattern in _PATTERNS):
        return []
    data = recording.data
    found = gx301_graph_cut.no_gradient(error, data, outputs)
    found = found or gx201_203_inference_tensor.misused(error, data)
    if found:
        return found
    live = graph_copy.read(outputs)
    names = Names([*live_frames.frames_of_error(error), *live_frames.frames_above()])
    return (
        gx101_stale_saved.stale(error, data, live, names)
        or gx302_graph_freed.second_backward(error, data, live, names)
        or gx303_unused_input.unused_input(error, data, live, names)
        or gx102_106_refused_write.refused_write(error, data)
    )


def of_silent_writes(outputs: Any, recording: Recording) -> list[Diagnosis]:
    """GX401: saved tensors below `outputs` whose memory was written without a version bump."""
    data = recording.data
    live = graph_copy.read(outputs)
    if not gx401_silent_write.any_silent(data, live):
        return []
    return gx401_silent_write.silent(data, live, Names(live_frames.frames_above()))


def of_silent_cuts(outputs: Any, why: int, gradients: Any, recording: Recording) -> list[Diagnosis]:
    """GX304: values below `outputs` that lost their gradient, and hide it."""
    if not recording.cuts:
        return []
    return gx304_silent_cut.silent(outputs, why, recording.data)
