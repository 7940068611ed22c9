"""One diagnosis of a run, however often and in whichever process it was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.diagnosis.run_report import Told
from gradext.diagnosis.whom import NOBODY, Whom
from gradext.source import files

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis


class Entry:
    """One diagnosis of this run, however often it was seen.

    Attributes:
        silent: torch raised nothing, so that nobody can have caught it.
        uncaught: nobody caught the error.
        error: the error's text; incident: the last that had this diagnosis, to tell its exception.
        at: the user's lines of the call that raised, innermost first; empty where it is not known.
        is_asked: whether edits were looked for.
        whom: who met it; open: the child that it comes from may have caught the error since.
        told: how often it had been seen when it was told at once, 0 where it was not.
        met: tells which was met last.
    """

    def __init__(
        self,
        diagnosis: Diagnosis,
        *,
        silent: bool = False,
        uncaught: bool = False,
        count: int = 1,
        error: str | None = None,
        whom: Whom = NOBODY,
        open: bool = False,
        told: int = 0,
    ) -> None:
        self.diagnosis = diagnosis
        self.silent = silent
        self.uncaught = uncaught
        self.count = count
        self.error = error
        self.incident: Any = None
        self.whom = whom
        self.open = open
        self.printed = False
        self.at: tuple[dict[str, Any], ...] = ()
        self.is_asked = False
        self.told = told
        self.met = 0

    def is_told_in(self, text: str) -> bool:
        """Whether `text`, of an error raised in the parent, contains this child's error message.

        Pools of processes raise it there again.
        """
        return self.whom.pid is not None and bool(self.error) and str(self.error) in text

    def key(self) -> tuple[object, ...]:
        """Diagnosis.key(), and whose it is; the process comes last."""
        return (*self.diagnosis.key(), self.whom.pid)

    def as_told(self, severity: str) -> Told:
        """The entry as a report has it, with the severity that it has in this run."""
        import dataclasses  # as in gradext.diagnosis.run_report

        return Told(dataclasses.replace(self.diagnosis, severity=severity), self.count, self.whom)


def where(diagnosis: Diagnosis) -> str:
    """The code and the first line of a diagnosis: a short name for one that was printed before."""
    sites = (*diagnosis.culprits, *diagnosis.victims)
    if not sites:
        return diagnosis.code
    return f"{diagnosis.code} at {files.user_path(sites[0].frame.file)}:{sites[0].frame.line}"
