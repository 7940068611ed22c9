"""The lesson: what requires_grad, detach, no_grad and inference_mode do, taught by running them.

One module per chapter (``c1_…`` to ``c6_…``), each a list of claims. This package owns the claims,
how they are run and how they are told; it reads tensors through gradext's ops and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradext.lesson.core import ClaimResult, chapters, run

if TYPE_CHECKING:
    from gradext.lesson.notebook import NotebookLesson

__all__ = ["ClaimResult", "begin", "chapters", "run"]


def begin(number: str, device: str = "cpu") -> NotebookLesson:
    """The ``lesson`` that the code of a claim ("3.8") uses when it is pasted into a file.

    Raises LessonError (a ValueError) for a claim or a device that is not there.
    """
    from gradext.lesson.notebook import NotebookLesson

    lesson = NotebookLesson(device)
    lesson.begin(number)
    return lesson
