"""`%load_ext gradext`: recording in a notebook, and the magics `%gradext` and `%%gradext`.

Recording, and the report below a cell's error, are those of gradext.install().
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any

from gradext.base import terminal
from gradext.byte_guard import guard
from gradext.reporters import diagnosis_text
from gradext.run.install import Installation, install

USAGE = "%gradext last: the last findings again; %gradext all; %%gradext [--guard]: one cell"
_installed: dict[int, Installation] = {}  # by id() of the shell


def load_ipython_extension(shell: Any) -> None:
    """What IPython calls for `%load_ext gradext`."""
    if id(shell) in _installed:
        return
    shell.register_magic_function(_line, "line", "gradext")
    shell.register_magic_function(_cell, "cell", "gradext")
    _installed[id(shell)] = install()


def unload_ipython_extension(shell: Any) -> None:
    """What IPython calls for `%unload_ext gradext`."""
    installation = _installed.pop(id(shell), None)
    if installation is not None:
        installation.uninstall()


def _line(line: str) -> None:
    """%gradext last, %gradext all: what was found, again."""
    installation = next(iter(_installed.values()), None)
    found = installation.diagnoses if installation is not None else []
    asked = line.strip() or "last"
    if asked not in ("last", "all"):
        terminal.say(f"gradext: {asked}: {USAGE}")
    elif not found:
        print("gradext has found nothing so far")
    else:
        shown = found if asked == "all" else found[:1]
        print(diagnosis_text.report(shown, color=terminal.wants_color(sys.stdout)))


def _cell(line: str, cell: str) -> None:
    """%%gradext [--guard]: run the cell, recorded, and compare the bytes of saved tensors too."""
    options = line.split()
    unknown = [word for word in options if word != "--guard"]
    if unknown:
        terminal.say(f"gradext: {unknown[0]}: {USAGE}")
        return
    get_ipython: Any = sys.modules["IPython"].get_ipython
    with _recorded(), _guarded("--guard" in options):
        get_ipython().run_cell(cell)


@contextlib.contextmanager
def _recorded() -> Generator[None, None, None]:
    """Recorded by the extension, which is loaded where this magic is known; else for this cell."""
    if _installed:
        yield
        return
    with install():
        yield


@contextlib.contextmanager
def _guarded(wanted: bool) -> Generator[None, None, None]:
    stop = guard.start_quietly() if wanted else None
    try:
        yield
    finally:
        if stop is not None:
            stop()
