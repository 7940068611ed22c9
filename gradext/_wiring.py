"""Connects lower rooms to upper ones: the only module of gradext that may look up.

A result does not know how it looks and a recording does not know the rules; each names what it
needs (`base.display`, `recording.judge`), and here it is given. Runs when gradext is imported, and
imports the upper rooms when they are first asked for.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from gradext.base import display
from gradext.recording import judge


def connect() -> None:
    """Say who renders results, and who finds out what went wrong."""
    display.connect(_reporter)
    judge.connect(_judge)


def _reporter(name: str) -> ModuleType:
    return importlib.import_module(f"gradext.reporters.{name}")


def _judge() -> judge.Judge:
    from gradext.rules import judge as rules

    return rules
