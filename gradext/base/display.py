"""How a result shows itself without importing what renders it.

A result's `__str__` asks `show("state.card", self)`: the function `card` of the module `state` in
the room that renders. gradext._wiring says where that room is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

_reporter: Callable[[str], ModuleType] | None = None


def connect(reporter: Callable[[str], ModuleType]) -> None:
    """Set what finds a module of the room that renders, by its name."""
    global _reporter
    _reporter = reporter


def show(renderer: str, *args: Any) -> str:
    """The text, or HTML, that `renderer` ("module.function") makes of a result."""
    text: str = find(renderer)(*args)
    return text


def find(renderer: str) -> Callable[..., Any]:
    """The function that a renderer's name stands for."""
    module, _, function = renderer.partition(".")
    assert _reporter is not None, "gradext._wiring has not run"
    found: Callable[..., Any] = getattr(_reporter(module), function)
    return found
