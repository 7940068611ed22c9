"""The one place of a diagnosis that machine-readable formats name, and its path as they want it."""

from __future__ import annotations

import os

from gradext.diagnosis.model import Diagnosis, Frame


def main_frame(diagnosis: Diagnosis) -> Frame | None:
    """The line to go to: the first culprit's, else where the write can only be bracketed."""
    for site in (*diagnosis.culprits, *diagnosis.victims):
        return site.frame
    return diagnosis.window[0] if diagnosis.window is not None else None


def relative(path: str, to: str | None = None) -> str:
    """`path` from the folder `to` (the current one), where it lies within; else as it is."""
    base = os.path.realpath(to or os.getcwd())
    real = os.path.realpath(path)
    inside = os.path.isfile(real) and os.path.commonpath([base, real]) == base
    return os.path.relpath(real, base) if inside else path


def columns(frame: Frame) -> tuple[int, int]:
    """The first column and the one behind the last, from 1; (1, 1) where Python keeps none."""
    if frame.column is None:
        return 1, 1
    end = frame.end_column if frame.end_column is not None else frame.column
    return frame.column + 1, end + 1
