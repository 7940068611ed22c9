"""What was said of the errors that backward raised, for explain() after the recording has ended.

An exception is told by its id and its text; nothing holds it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.base import errors
from gradext.diagnosis.model import Diagnosis
from gradext.recording import running

if TYPE_CHECKING:
    from gradext.recording.recording import Recording

_said: weakref.WeakKeyDictionary[Recording, list[tuple[int, str, tuple[Diagnosis, ...]]]]
_said = weakref.WeakKeyDictionary()
_MOST = 64  # errors of one recording


def remember(error: BaseException, found: Sequence[Diagnosis]) -> None:
    """Keep what was said of an error, for every recording that runs."""
    words = errors.describe(error)
    for recording in running.recordings:
        said = _said.setdefault(recording, [])
        said.append((id(error), words, tuple(found)))
        del said[:-_MOST]


def of(error: BaseException, recording: Recording) -> Sequence[Diagnosis] | None:
    """What was said of `error` while `recording` ran."""
    text = errors.describe(error)
    for known, words, found in reversed(_said.get(recording, [])):
        if known == id(error) and words == text:
            return found
    return None
