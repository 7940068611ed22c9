"""`%load_ext gradext`: recording in a notebook, and the magics `%gradext` and `%%gradext`.

Recording, and the report below a cell's error, are those of gradext.install().
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import sys
from collections.abc import Generator
from typing import Any

from gradext.base import terminal
from gradext.base.text import clean
from gradext.byte_guard import guard
from gradext.diagnosis.model import Diagnosis, TextEdit
from gradext.recording.options import EXPOSED, GUARDS, GuardReads
from gradext.reporters import diagnosis_text
from gradext.run.install import Installation, install
from gradext.source import cells, files

USAGE = (
    "%gradext last: the last finding again; %gradext all; %gradext fix: what could mend it; "
    "%%gradext [--guard[=all]]: one cell"
)
# What a guard reads, by the option that asks for one.
_GUARDS: dict[str, GuardReads] = {"--guard": EXPOSED} | {f"--guard={one}": one for one in GUARDS}
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
    """%gradext last, %gradext all: what was found, again. %gradext fix: an edit of the cell."""
    installation = next(iter(_installed.values()), None)
    asked = line.strip() or "last"
    found = []
    if installation is not None:
        found = installation.diagnoses if asked == "all" else installation.latest
    if asked not in ("last", "all", "fix"):
        terminal.say(f"gradext: {asked}: {USAGE}")
    elif not found:
        print("gradext has found nothing so far")
    elif asked == "fix":
        _fix(found[0])
    else:
        print(diagnosis_text.report(found, color=terminal.wants_color(sys.stdout)))


def _fix(diagnosis: Diagnosis) -> None:
    """Print the likeliest edit of cells, and put the edited cell below as the next to run."""
    if importlib.util.find_spec("libcst") is None:
        terminal.say("gradext: %gradext fix needs LibCST; run: pip install libcst")
        return
    frames = [site.frame for site in (*diagnosis.culprits, *diagnosis.victims)]
    texts = {
        frame.file: "\n".join([*lines, ""]).encode()
        for frame in frames
        if cells.name(frame.file) and (lines := files.read_lines(frame.file)) is not None
    }
    from gradext.rules.rewrite.proposals import Proposals

    fix = next(iter(Proposals(texts).of(diagnosis, ())), None) if texts else None
    if fix is None:
        print("gradext knows no edit of a cell for this; %gradext last has its help")
        return
    title = fix.title
    for file in texts:  # as its traceback calls it
        title = title.replace(f"{os.path.basename(file)}:", f"{cells.name(file)}, line ")
    print(clean(f"{title} (not tried):"))
    for file in dict.fromkeys(edit.file for edit in fix.edits):
        before = texts[file].decode()
        after = _edited(before, [edit for edit in fix.edits if edit.file == file])
        name = cells.name(file) or file
        diff = difflib.unified_diff(
            before.splitlines(), after.splitlines(), name, name, n=1, lineterm=""
        )
        print("\n".join(map(clean, diff)))
        get_ipython: Any = sys.modules["IPython"].get_ipython
        get_ipython().set_next_input(after.rstrip("\n"))


def _edited(text: str, edits: list[TextEdit]) -> str:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for edit in sorted(edits, key=lambda each: (each.line, each.column), reverse=True):
        begin = starts[edit.line - 1] + edit.column
        end = starts[edit.end_line - 1] + edit.end_column
        text = text[:begin] + edit.text + text[end:]
    return text


def _cell(line: str, cell: str) -> None:
    """%%gradext [--guard[=all]]: run the cell, recorded; compare the bytes of saved tensors too."""
    options = line.split()
    unknown = [word for word in options if word not in _GUARDS]
    if unknown:
        terminal.say(f"gradext: {unknown[0]}: {USAGE}")
        return
    get_ipython: Any = sys.modules["IPython"].get_ipython
    with _recorded(), _guarded(_GUARDS[options[-1]] if options else None):
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
def _guarded(reads: GuardReads | None) -> Generator[None, None, None]:
    stop = guard.start_quietly(reads) if reads is not None else None
    try:
        yield
    finally:
        if stop is not None:
            stop()
