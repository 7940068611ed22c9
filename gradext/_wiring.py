"""Connects lower rooms to upper ones: the only module of gradext that may look up.

A result does not know how it looks, a recording does not know the rules, and a recorded program
knows no command; each names what it needs (`base.display`, `recording.judge`, `run.upper`), and
here it is given. Runs when gradext is imported, and imports the upper rooms when they are first
asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradext.base import display
from gradext.recording import judge
from gradext.run import upper

if TYPE_CHECKING:
    from gradext.recording.options import RecordOptions
    from gradext.run.shown import Shown


def connect() -> None:
    """Say who renders results, finds out what went wrong, parses options and joins a trial."""
    display.connect(_reporter)
    judge.connect(_judge)
    upper.connect(_parse, _join)


def _reporter(name: str) -> ModuleType:
    return importlib.import_module(f"gradext.reporters.{name}")


def _judge() -> judge.Judge:
    from gradext.rules import judge as rules

    return rules


def _parse(words: Sequence[str]) -> tuple[dict[str, str], RecordOptions, Shown]:
    # By name, as above: the lesson, which stands below, uses the public names as a program does.
    run: Any = importlib.import_module("gradext.commands.run")
    parsed: tuple[dict[str, str], RecordOptions, Shown] = run.of_variable(words)
    return parsed


def _join(session: Any) -> None:
    from gradext.fix import child

    child.join(session)
