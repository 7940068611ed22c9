"""How a result shows itself without importing what renders it.

A result's `__str__` asks `show("state.card", self)`: the function `card` of the module `state` in
the room that renders. gradext._wiring says where that room is.
"""

from __future__ import annotations

from collections.abc import Callable, Container
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


class Shown:
    """A result that a notebook shows in colours, and any other prompt as text."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        """The picture; None where there is nothing to show but the text."""
        return None

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, str]:
        """What IPython asks for first: https://ipython.readthedocs.io/en/stable/config/integrating.html

        Args:
            include: the MIME types that are wanted; None for all.
            exclude: those that are not.
        """
        made = {"text/plain": self.__repr__, "text/html": self._repr_html_}
        wanted = {
            kind: make()
            for kind, make in made.items()
            if (include is None or kind in include) and not (exclude and kind in exclude)
        }
        return {kind: text for kind, text in wanted.items() if text is not None}
