"""One line for each diagnosis, `file:line:column: CODE message`, for editors that match lines."""

from __future__ import annotations

from collections.abc import Iterable

from gradext.base.text import clean
from gradext.diagnosis.model import Diagnosis
from gradext.reporters import places


def lines(diagnoses: Iterable[Diagnosis]) -> str:
    """The lines, without a newline at the end."""
    return "\n".join(_line(diagnosis) for diagnosis in diagnoses)


def _line(diagnosis: Diagnosis) -> str:
    frame = places.main_frame(diagnosis)
    said = f"{diagnosis.code} {diagnosis.message}"
    if diagnosis.whom:
        said += f" ({diagnosis.whom})"
    if frame is None:
        return clean(said)
    column, _ = places.columns(frame)
    return clean(f"{places.relative(frame.file)}:{frame.line}:{column}: {said}")
