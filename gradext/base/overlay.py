"""Source text that stands in for a file's: a program is run with a patch, and no file is touched.

Empty in every process but the children that `gradext fix` starts.
"""

from __future__ import annotations

import linecache
import os
import runpy
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from typing import Any

_texts: dict[str, bytes] = {}


def bytes_of(path: str) -> bytes | None:
    """What stands in for the file at `path`; None where the file itself counts."""
    return _texts.get(os.path.realpath(path)) if _texts else None


def is_among(path: str, paths: Iterable[str]) -> bool:
    """Whether a path leads to the file that one of `paths` leads to."""
    wanted = os.path.realpath(path)
    return any(os.path.realpath(one) == wanted for one in paths)


def lay(texts: dict[str, bytes]) -> None:
    """Give each path of `texts` that content, for import, for tracebacks and for gradext.

    Bytecode of these files is neither read nor written: it would be that of the file.
    """
    for path, text in texts.items():
        _texts[os.path.realpath(path)] = text
        lines = text.decode("utf-8", "replace").splitlines(keepends=True)
        linecache.cache[path] = (len(text), None, lines, path)
    if texts:
        _patch_loader()


_patched = False


def _patch_loader() -> None:
    global _patched
    if _patched:
        return
    _patched = True
    loader: Any = SourceFileLoader
    get_data, path_stats = loader.get_data, loader.path_stats

    def overlaid_data(self: Any, path: str) -> bytes:
        text = bytes_of(path)
        found: bytes = get_data(self, path) if text is None else text
        return found

    def overlaid_stats(self: Any, path: str) -> Any:
        if bytes_of(path) is not None:
            raise OSError("this source has no bytecode")
        return path_stats(self, path)

    loader.get_data, loader.path_stats = overlaid_data, overlaid_stats
    # What multiprocessing runs the program's script with, in a process that it spawns.
    from_file = runpy._get_code_from_file  # type: ignore[attr-defined] # noqa: SLF001

    def overlaid_code(*args: Any, **kwargs: Any) -> Any:
        path = args[-1]
        text = bytes_of(path)
        if text is None:
            return from_file(*args, **kwargs)
        code = compile(text, path, "exec", dont_inherit=True)
        return code if len(args) == 1 else (code, path)  # before Python 3.12 both are asked for

    runpy._get_code_from_file = overlaid_code  # type: ignore[attr-defined] # noqa: SLF001
