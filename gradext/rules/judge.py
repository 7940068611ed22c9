"""What a recording asks of the rules: why a backward failed, and whether one is silently wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import raw
from gradext.diagnosis.model import Diagnosis
from gradext.rules import codes
from gradext.rules.case import Case
from gradext.rules.explain import explain
from gradext.rules.looks import look
from gradext.rules.recognise import of_error as recognise

if TYPE_CHECKING:
    from gradext.recording.recording import Recording

__all__ = ["explain", "look", "of_backward", "recognise"]


def of_backward(error: BaseException, outputs: Any, recording: Recording) -> list[Diagnosis]:
    """Diagnoses of an error that the engine raised on the graph below `outputs`."""
    if not codes.is_known(raw.message(error)):
        return []  # before the journal is copied
    return codes.diagnose(Case(error, recording.data, outputs))
