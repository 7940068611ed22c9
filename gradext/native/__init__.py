"""The compiled part: found, checked and loaded when it is first asked for.

`from gradext.native import _C` loads it, and torch before it; raises ImportError with one line
that says what to do where it is missing or was built for something else.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradext import _C as _C

_lock = threading.RLock()


def __getattr__(name: str) -> object:
    if name != "_C":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The end of torch's import may lead here too, so it comes first, and outside the lock.
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401
    with _lock:
        if "_C" not in globals():
            from gradext.native import loader

            globals()["_C"] = loader.load()
    return globals()["_C"]
