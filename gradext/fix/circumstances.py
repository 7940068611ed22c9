"""How torch was imported in a program: whether a fork that has it already is the same program.

Imported by the program's own process, so it imports next to nothing.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# An optimizer's first step imports the second, which takes as long as torch itself.
_PARTS = ("torch", "torch._dynamo")


def origins() -> dict[str, str]:
    """The file of each module that is loaded, by the module's name; but for the program's own."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name in ("__main__", "__mp_main__"):
            continue
        origin = getattr(vars(module).get("__spec__"), "origin", None) if module else None
        if isinstance(origin, str):
            found[name] = origin
    return found


class Circumstances:
    """What was there before a program began; says later how torch was imported in it."""

    def __init__(self) -> None:
        self._environment = _environment()
        self._origins: dict[str, str] = {}
        self._unchanged = False

    def imported(self) -> None:
        """Note the state right after torch's import, on the thread that runs the program."""
        self._origins = origins()
        self._unchanged = _environment() == self._environment

    def facts(self) -> dict[str, Any]:
        """For Stem; {} where a fork of another process would not be the same program."""
        torch = sys.modules.get("torch")
        if torch is None or not self._unchanged or torch.cuda.is_initialized():
            return {}
        return {
            "origins": self._origins,
            "parts": [name for name in _PARTS if name in sys.modules],
        }


def _environment() -> dict[str, str]:
    """What native libraries read when they are loaded; gradext's own variables are not read so."""
    return {name: text for name, text in os.environ.items() if name[:8] != "GRADEXT_"}
