"""What an autograd graph holds: its nodes, the tensors it saved and the memory behind them.

Owns the walk over a graph and the counting of bytes for the lesson. It only reads; it must not call
backward, unpack hooks of the user's or change a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradext.state.inspect import inspect


def nodes(root: torch.Tensor) -> list[Any]:
    """The nodes that a backward from ``root`` would visit, each once, the nearest first."""
    found: list[Any] = []
    seen = set()
    pending = [root.grad_fn]
    while pending:
        node = pending.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        pending.extend(function for function, _ in node.next_functions)
    return found


def names(root: torch.Tensor) -> list[str]:
    """The names of the nodes, without the namespace that some releases print."""
    return [node.name().rpartition("::")[2] for node in nodes(root)]


def saved_tensors(root: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that the nodes behind ``root`` saved for backward."""
    saved: list[torch.Tensor] = []
    for node in nodes(root):
        for attribute in dir(node):
            if attribute.startswith("_saved_"):
                value = getattr(node, attribute)
                items = value if isinstance(value, (list, tuple)) else [value]
                saved.extend(item for item in items if isinstance(item, torch.Tensor))
    return saved


def storage_bytes(tensors: Iterable[torch.Tensor], besides: Iterable[torch.Tensor] = ()) -> int:
    """The bytes of the memory behind ``tensors``, each memory once, without that of ``besides``."""
    counted = {inspect(tensor).storage for tensor in besides}
    total = 0
    for tensor in tensors:
        storage = inspect(tensor).storage
        if storage not in counted:
            counted.add(storage)
            total += tensor.untyped_storage().nbytes()
    return total


class _Births(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the memory of every tensor that an operation makes while the mode is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Weak references that compare equal for the same memory: they keep none of it alive.
        self.storages: dict[Any, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        inputs = {
            _weak_reference(item.untyped_storage())
            for item in tree_leaves((args, kwargs))
            if isinstance(item, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, torch.Tensor):
                storage = item.untyped_storage()
                reference = _weak_reference(storage)
                # A view or an in-place result lives in memory that was there before.
                if reference not in inputs:
                    self.storages[reference] = storage.nbytes()
        return result

    def bytes_alive(self) -> int:
        return sum(0 if ref.expired() else size for ref, size in self.storages.items())


def _weak_reference(storage: torch.UntypedStorage) -> Any:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def memory_kept(function: Callable[[], object]) -> int:
    """The bytes of the tensors that ``function`` made and that are still alive when it returned.

    What it returns is alive at that moment, and so is everything that a graph behind it keeps.
    """
    with _Births() as births:
        kept = function()
    alive: int = births.bytes_alive()
    del kept
    return alive
