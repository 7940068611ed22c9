"""What a recorded program needs of rooms above this one: `gradext._wiring` says who does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradext.recording.options import RecordOptions
    from gradext.run.shown import Shown

    Parse = Callable[[Sequence[str]], tuple[dict[str, str], RecordOptions, Shown]]

_parse: Parse | None = None
_join: Callable[[Any], None] | None = None


def connect(parse: Parse, join: Callable[[Any], None]) -> None:
    """Set what parses the options of `gradext run`, and what joins a trial of `gradext fix`."""
    global _parse, _join
    _parse, _join = parse, join


def parse_options(words: Sequence[str]) -> tuple[dict[str, str], RecordOptions, Shown]:
    """(outputs, what to record, how to tell) of words that stand in GRADEXT_RECORD.

    Raises:
        ValueError: one line: which of them makes no sense.
    """
    assert _parse is not None, "gradext._wiring has not run"
    return _parse(words)


def join_trial(session: Any) -> None:
    """Note the backward passes of this process for the trial that has started it."""
    assert _join is not None, "gradext._wiring has not run"
    _join(session)
