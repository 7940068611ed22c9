"""Calls back when the program has finished importing torch, and until then leaves torch alone.

Owns the place in sys.meta_path and nothing else. Imports neither torch nor gradext: a program sets
OMP_NUM_THREADS and the like before it imports torch, and must find that they still count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` once, at once if torch is there, else on the thread that imports it.

    Returns a function that cancels this.
    """
    module = sys.modules.get("torch")
    if module is not None and not is_initializing(module):
        callback()
        return lambda: None
    watcher = _Watcher(callback)
    sys.meta_path.insert(0, watcher)
    if module is not None:
        when_done(module, watcher.done)  # asked for from within torch's own import
    return watcher.remove


def is_initializing(module: ModuleType) -> bool:
    """Whether the module is being imported right now."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def when_done(module: ModuleType, callback: Callable[[], None]) -> bool:
    """Call `callback` when the import that `module` is in ends well. False if that cannot be."""
    return isinstance(module.__spec__, ModuleSpec) and _watch(module.__spec__, callback)


def _watch(spec: ModuleSpec, callback: Callable[[], None]) -> bool:
    if type(spec) is not ModuleSpec:
        return False
    spec.__dict__["_when_done"] = callback
    spec.__class__ = _WatchedSpec
    return True


class _WatchedSpec(ModuleSpec):
    """The spec of a module while that is being imported.

    The import system clears `_initializing` when a module is done. Hearing of it there puts no
    frame of gradext into the traceback of an import that fails or is interrupted, which a wrapped
    loader would.
    """

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing", False))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if not value:
            callback = self.__dict__.pop("_when_done", None)
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            # A failed import took the module out again; the program may still try once more.
            if callback is not None and self.name in sys.modules:
                callback()


_WatchedSpec.__name__ = "ModuleSpec"  # what its repr shows


class _Watcher:
    """A finder that finds torch with the other finders and marks its spec."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch" or self._callback is None:
            return None
        # In the order of the calls, for each was put at the head of the list. The import system
        # asks the first of them only, which serves all.
        watchers = [one for one in reversed(sys.meta_path) if isinstance(one, _Watcher)]

        def done() -> None:
            for watcher in watchers:
                watcher.done()

        for finder in sys.meta_path:
            is_watcher = isinstance(finder, _Watcher)
            find = None if is_watcher else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                _watch(spec, done)
                return spec
        return None

    def remove(self) -> None:
        self._callback = None
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def done(self) -> None:
        callback = self._callback
        self.remove()
        if callback is not None:
            callback()
