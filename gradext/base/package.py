"""Where gradext itself lies, and which folders hold code that nobody trains with."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent  # of the package gradext
PREFIX = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # of its files


@functools.cache
def library_folders() -> tuple[str, ...]:
    """Folders whose code is nobody's training script: torch, gradext, the standard library."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    folders.add(PREFIX.rstrip(os.sep))
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch, "__file__", None):
        folders.add(os.path.dirname(os.path.abspath(str(torch.__file__))))
    both = {os.path.realpath(folder) for folder in folders if folder} | {f for f in folders if f}
    return tuple(sorted(folder + os.sep for folder in both))


@functools.lru_cache(maxsize=4096)
def is_user_file(file: str) -> bool:
    """Whether code in `file` is the user's: not torch's, gradext's, Python's or installed."""
    if file.startswith("<"):
        # "<string>", "<stdin>" and "<ipython-input-...>" are typed by a person; frozen modules,
        # generated __init__s and fx graphs are not.
        return not file.startswith(("<frozen", "<attrs", "<__array", "<eval_with_key", "<torch_"))
    parts = file.replace("\\", "/").split("/")
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    return not file.startswith(library_folders())
