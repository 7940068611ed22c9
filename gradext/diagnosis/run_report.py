"""The report of one run of a program, as data: what every output format renders."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from gradext.diagnosis.model import Diagnosis


@dataclasses.dataclass(frozen=True)
class Told:
    """One diagnosis of the run.

    Attributes:
        diagnosis: with the severity that it has in this run.
        count: how often it was met. pid: of the child process that met it, None for the root.
    """

    diagnosis: Diagnosis
    count: int = 1
    pid: int | None = None


class RunReport(NamedTuple):
    """What is known of a run.

    Attributes:
        gradext, torch: versions; torch is None where the program has not imported it.
        exit_code: None while the program runs. error: the uncaught error's text.
        told: the diagnoses, most important first.
    """

    gradext: str
    torch: str | None
    exit_code: int | None
    error: str | None
    told: tuple[Told, ...]
