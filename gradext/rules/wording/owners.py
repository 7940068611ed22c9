"""Whose tensors these are: parameters, optimizers and names of the program, for one diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gradext.base import raw
from gradext.recording.events import Birth, Flow


class Owners:
    """Names, parameters and optimizers of the program, for one diagnosis."""

    def __init__(self, live: Sequence[Any]) -> None:
        import torch

        from gradext.objects import naming

        self._naming = naming
        self._tensor = torch.Tensor
        self._names = naming.Names(live)
        self.optimized: set[int] = set()
        self.untracked_in_optimizer: list[str] = []
        self.trainable: list[str] = []  # names
        self.trainable_ids: dict[int, str] = {}
        self.root_of: dict[int, int] = {}  # which module a parameter is of, of those within none
        self._buffers: set[int] = set()
        found = naming.every(torch.optim.Optimizer, torch.nn.Module)
        for optimizer in found:
            if not issubclass(type(optimizer), torch.optim.Optimizer):
                continue
            groups = raw.dict_of(optimizer)
            for group in groups.get("param_groups", ()) if type(groups) is dict else ():
                for tensor in group.get("params", ()) if type(group) is dict else ():
                    who = naming.identity_of(tensor)
                    if who is None:
                        continue
                    self.optimized.add(who.id)
                    if not who.requires_grad:
                        name = self._names.of(who.id) or "a tensor"
                        self.untracked_in_optimizer.append(name)
        modules = [thing for thing in found if issubclass(type(thing), torch.nn.Module)]
        del found
        seen: set[int] = set()
        roots = naming.root_modules(modules)
        self._names.know_roots(roots)
        for number, root in enumerate(roots):
            for module in _modules_in(root, naming):
                for _, tensor in naming.group_of(module, "_buffers"):
                    who = naming.identity_of(tensor)
                    if who is not None:
                        self._buffers.add(who.id)
                for _, tensor in naming.group_of(module, "_parameters"):
                    who = naming.identity_of(tensor)
                    if who is None or not who.requires_grad or who.id in seen:
                        continue
                    self.root_of[who.id] = number
                    seen.add(who.id)
                    if not self.optimized or who.id in self.optimized:
                        name = self._names.of(who.id) or "a parameter"
                        self.trainable.append(name)
                        self.trainable_ids[who.id] = name

    def of(self, tensor: Any) -> str | None:
        who = self._naming.identity_of(tensor)
        return self._names.of(who.id) if who is not None else None

    def by_id(self, tensor: int) -> str | None:
        return self._names.of(tensor)

    def is_parameter(self, tensor: int) -> bool:
        return self._names.is_parameter(tensor)

    def is_alive(self, origin: Birth | Flow) -> bool:
        return isinstance(origin, Flow) and origin.lives and bool(self._names.of(origin.tensor))

    def is_attribute(self, origin: Flow) -> bool:
        """Whether a module holds the tensor under a name, and not as a buffer."""
        held = origin.lives and self._names.is_of_module(origin.tensor)
        return held and origin.tensor not in self._buffers

    def is_tensor(self, value: Any) -> bool:
        return issubclass(type(value), self._tensor)


def _modules_in(root: Any, naming: Any) -> Iterable[Any]:
    seen: set[int] = set()
    pending = [root]
    while pending:
        module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        pending += [child for _, child in naming.group_of(module, "_modules")][::-1]
