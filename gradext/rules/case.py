"""One error that autograd raised, and what is known of it: read when a rule first asks."""

from __future__ import annotations

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
        self._graph: graph_copy.Graph | None = None
        self._names: Names | None = None

    # Not functools.cached_property: before Python 3.12 it holds one lock for all Cases while it
    # computes, and a finalizer that runs meanwhile may wait for a thread that diagnoses too.

    @property
    def text(self) -> str:
        """The error's message."""
        return raw.message(self.error)

    @property
    def graph(self) -> graph_copy.Graph | None:
        """The graph below the outputs, as it failed; None for an error that was caught."""
        if self._graph is None and self.is_backward:
            self._graph = graph_copy.read(self.outputs)
        return self._graph

    @property
    def names(self) -> Names | None:
        """Names of tensors in the frames of the error and above; None where there is no graph."""
        if self._names is None and self.is_backward:
            live = [*live_frames.frames_of_error(self.error), *live_frames.frames_above()]
            self._names = Names(live)
        return self._names
