"""What `gradext run` says of patches: the edits that exist, and the command that tries them.

Looked for once, at the end of a report, and only where LibCST is installed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradext.run.entries import Entry

enabled = True  # False in the children of `gradext fix`, which looks for itself
MOST = 8  # diagnoses of one report that edits are looked for
_WITH_VALUE = {"-W", "-X", "--check-hash-based-pycs"}  # options of Python's


def add(entries: Iterable[Entry]) -> None:
    """Give the diagnoses of the entries their edits. Each is asked about once."""
    asked = [entry for entry in list(entries)[:MOST] if not entry.is_asked]
    if not asked or not enabled or importlib.util.find_spec("libcst") is None:
        return
    import dataclasses  # as in gradext.diagnosis.run_report

    with _without_collections():
        # By name: it imports torch, which the program must be the first to do.
        proposals: Any = importlib.import_module("gradext.rules.rewrite.proposals").Proposals()
        for entry in asked:
            entry.is_asked = True
            fixes = proposals.of(entry.diagnosis, entry.at)
            if fixes:
                entry.diagnosis = dataclasses.replace(entry.diagnosis, fixes=fixes)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """No cycles are collected while trees are made, of which no node is garbage.

    Each collection would look at every object of the program's, too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def command(words: Sequence[str]) -> str | None:
    """The `gradext fix` for a process that was started by `words`, python the first of them.

    None for a program that cannot be run again by what stands there: one from stdin, an
    interactive one, or code that no line holds.
    """
    program = program_of(words)
    if program is None or not all(map(str.isprintable, program)):
        return None
    return shlex.join(["gradext", "fix", *program])


def program_of(words: Sequence[str]) -> list[str] | None:
    """The words from the program on, without python and its options; None where none is seen."""
    words = list(words[1:])
    while words and words[0].startswith("-"):
        word = words[0]
        if word in ("-m", "-c"):
            return words if len(words) > 1 else None
        has_value = word.startswith(("-W", "-X", "--"))
        if word == "-" or (not has_value and set(word) & set("mc")):
            return None  # stdin, or flags and a module in one word
        del words[: 2 if word in _WITH_VALUE else 1]
    return words or None
