"""Sessions in IPython and Jupyter: reports below the cell that they are about.

Owns what is asked of IPython's running shell. Imports no IPython: who has a shell has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradext.run.session import Session


def shell() -> Any:
    """IPython's running shell, None elsewhere."""
    module = sys.modules.get("IPython.core.getipython")
    get: Any = getattr(module, "get_ipython", None)
    return get() if get is not None else None


def hook(session: Session, shell: Any) -> Callable[[], None]:
    """IPython prints a cell's error itself, and goes on: report below it, and after each cell.

    Returns what undoes it.
    """
    printed = shell.showtraceback

    def showtraceback(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("exc_tuple")
        error = (given or sys.exc_info())[1]
        try:
            return printed(*args, **kwargs)
        finally:
            if error is not None and session.is_current:
                session.uncaught(error)

    def after_cell(*_: object) -> None:
        if session.is_current:
            session.settle()
            session.report()

    session.by_cell = True
    shell.showtraceback = showtraceback
    shell.events.register("post_run_cell", after_cell)

    def undo() -> None:
        if shell.showtraceback is showtraceback:
            shell.showtraceback = printed
        shell.events.unregister("post_run_cell", after_cell)

    return undo
