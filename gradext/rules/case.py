"""One error that autograd raised, and what is known of it: read when a rule first asks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from gradext.base import raw
from gradext.objects.naming import Names
from gradext.rules import graph_copy
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.tables import Data

_NOTHING = object()


class Case:
    """What rules ask.

    Args:
        error: the exception. data: the events of the recording, None without one.
        outputs: what backward was called on; not given where the error is one that was caught.
    """

    def __init__(self, error: BaseException, data: Data | None, outputs: Any = _NOTHING) -> None:
        self.error = error
        self.data = data
        self.is_backward = outputs is not _NOTHING
        self.outputs = outputs if self.is_backward else None

    @functools.cached_property
    def text(self) -> str:
        """The error's message."""
        return raw.message(self.error)

    @functools.cached_property
    def graph(self) -> graph_copy.Graph | None:
        """The graph below the outputs, as it failed; None for an error that was caught."""
        return graph_copy.read(self.outputs) if self.is_backward else None

    @functools.cached_property
    def names(self) -> Names | None:
        """Names of tensors in the frames of the error and above; None where there is no graph."""
        if not self.is_backward:
            return None
        return Names([*live_frames.frames_of_error(self.error), *live_frames.frames_above()])
