"""Writes a patch into the program's files: whole or not at all, with a way back."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping


class CannotApply(Exception):
    """Nothing was changed; the text says why."""


def write(files: Mapping[str, bytes], before: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Write each file; returns (path, backup) of each.

    Args:
        files: new contents, by path. before: what stood there when the patch was made.

    Raises:
        CannotApply: one of them is no file, may not be written, or has changed since. What had
            been written by then was put back.
    """
    for path in files:
        _check(path, before[path])
    done: list[tuple[str, str]] = []
    try:
        for path, text in files.items():
            backup = _backup(path)
            done.append((path, backup))
            _replace(path, text)
    except BaseException as error:  # Ctrl-C too
        for path, backup in done:
            with contextlib.suppress(OSError):
                os.replace(backup, path)
        if isinstance(error, OSError):
            raise CannotApply(f"cannot write {error.filename}: {error.strerror}") from None
        raise
    return done


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
    if not os.access(path, os.W_OK):
        raise CannotApply(f"{path} may not be written")


def _backup(path: str) -> str:
    number = 0
    while True:
        backup = f"{path}.before-fix{number or ''}"
        if not os.path.lexists(backup):
            break
        number += 1
    shutil.copy2(path, backup)
    return backup


def _replace(path: str, text: bytes) -> None:
    target = os.path.realpath(path)
    draft = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
