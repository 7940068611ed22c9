"""Writes a patch into the program's files: whole or not at all, with a way back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from gradext.base import whole_file


class CannotApply(Exception):
    """A patch was not applied, and nothing was changed; the text says why."""


def write(files: Mapping[str, bytes], before: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Write each file; returns (path, backup) of each, both of the file behind a link.

    Args:
        files: new contents, by path.
        before: what stood there when the patch was made.

    Raises:
        CannotApply: one of them is no file, may not be written, or has changed since. What had
            been written by then was put back.
        KeyboardInterrupt: by Ctrl-C, whenever it came: everything was put back.
    """
    with _interrupts_later() as is_interrupted:
        for path in files:
            _check(path, before[path])
        done: list[tuple[str, str]] = []
        try:
            for path, text in files.items():
                target = os.path.realpath(path)
                done.append((target, _backup(target)))
                whole_file.replace(target, text, mode=_mode(target))
                if is_interrupted():
                    raise KeyboardInterrupt
        except BaseException as error:
            for (target, backup), path in zip(done, files, strict=False):
                with contextlib.suppress(OSError):
                    whole_file.replace(target, before[path], mode=_mode(backup))
                    os.unlink(backup)
            if isinstance(error, OSError):
                raise CannotApply(f"cannot write {path}: {error.strerror}") from None
            raise
    return done


@contextlib.contextmanager
def _interrupts_later() -> Iterator[Any]:
    """Ctrl-C is noted, and raised by nobody; yields the question whether it came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    kept = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, kept)


def _check(path: str, expected: bytes) -> None:
    if path.startswith("<"):
        raise CannotApply("the program is no file that could be changed; copy the lines above")
    try:
        with open(path, "rb") as file:
            now = file.read()
    except OSError as error:
        raise CannotApply(f"cannot read {path}: {error.strerror}") from None
    if now != expected:
        raise CannotApply(f"{path} has changed since it was tried; nothing was written")
    # Whoever may do anything (root) is not asked: a file without a write bit is meant to stay.
    if not os.access(path, os.W_OK) or not _mode(path) & 0o222:
        raise CannotApply(f"{path} may not be written; nothing was written")


def _mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def _backup(path: str) -> str:
    number = 0
    while True:
        backup = f"{path}.before-fix{number or ''}"
        if not os.path.lexists(backup):
            break
        number += 1
    shutil.copy2(path, backup)
    return backup
