"""What an op says of itself: its schema's writes and aliases, and which ops a namespace has.

Reads schemas and the dispatcher's tables; runs nothing.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch

# Backends whose kernels a machine without an accelerator can run.
CPU_KEYS = (
    *("CPU", "SparseCPU", "SparseCsrCPU", "QuantizedCPU", "MkldnnCPU", "NestedTensorCPU"),
    *("CompositeExplicitAutograd", "CompositeImplicitAutograd"),
    *("CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutogradNestedTensor"),
    *("AutogradCPU", "Autograd", "ZeroTensor", "Conjugate", "BackendSelect"),
)
OTHER_KEYS = (
    "CUDA",
    "SparseCUDA",
    "SparseCsrCUDA",
    "QuantizedCUDA",
    "MPS",
    "XPU",
    "Vulkan",
)


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a schema. `writes`: the schema says that the op writes it (`Tensor(a!)`)."""

    name: str
    type: str
    writes: bool
    aliases: frozenset[str]
    kwarg_only: bool
    is_out: bool
    has_default: bool
    default: Any


@dataclasses.dataclass(frozen=True)
class Result:
    """One return of a schema: the names of the arguments that it may alias, by the schema."""

    declared: tuple[str, ...]
    is_written: bool


@dataclasses.dataclass(frozen=True)
class Schema:
    """Attributes: name ("aten::add.out"), arguments, results."""

    name: str
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]

    @property
    def written(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.arguments if argument.writes)

    @property
    def is_writable(self) -> bool:
        return bool(self.written)


def name_of(op: torch._ops.OpOverload) -> str:
    """The full name, "aten::add.out"."""
    name: str = op.name()  # type: ignore[no-untyped-call]
    return name


def of(op: torch._ops.OpOverload) -> Schema:
    """The schema of an overload."""
    schema = op._schema
    arguments = tuple(_argument(argument) for argument in schema.arguments)
    results = tuple(_result(result, arguments) for result in schema.returns)
    return Schema(name_of(op), arguments, results)


def _argument(argument: Any) -> Argument:
    info = argument.alias_info
    sets: frozenset[str] = frozenset()
    if info is not None:
        sets = frozenset(info.before_set) | frozenset(info.after_set)
    has_default = argument.has_default_value()
    return Argument(
        argument.name,
        str(argument.type),
        bool(info is not None and info.is_write),
        # A list's own set is empty in torch's parse: the mark is all that is left of it.
        (sets or frozenset("*")) if info is not None else sets,
        argument.kwarg_only,
        argument.is_out,
        has_default,
        argument.default_value if has_default else None,
    )


def _result(result: Any, arguments: Sequence[Argument]) -> Result:
    info = result.alias_info
    if info is None:
        return Result((), False)
    sets = frozenset(info.before_set) | frozenset(info.after_set) or frozenset("*")
    marked = [argument for argument in arguments if argument.aliases]
    named = [argument.name for argument in marked if argument.aliases & sets]
    return Result(tuple(named or [argument.name for argument in marked]), bool(info.is_write))


def names(namespace: str, only: Sequence[str] = ()) -> list[str]:
    """The full names of the namespace's overloads.

    Args:
        only: names or patterns ("_foreach_*", "aten::add.out"); none means all.
    """
    registered = torch._C._dispatch_get_all_op_names()
    return sorted(
        name for name in registered if name.startswith(f"{namespace}::") and _wanted(name, only)
    )


def _wanted(name: str, only: Sequence[str]) -> bool:
    rest = name.partition("::")[2]
    packet = rest.partition(".")[0]
    return not only or any(
        fnmatch.fnmatchcase(each, word) for word in only for each in (name, rest, packet)
    )


def overload(name: str) -> torch._ops.OpOverload:
    """The op of a full name.

    Raises:
        AttributeError: torch.ops has no such op.
    """
    namespace, _, rest = name.partition("::")
    packet, _, kind = rest.partition(".")
    found: torch._ops.OpOverload = getattr(
        getattr(getattr(torch.ops, namespace), packet), kind or "default"
    )
    return found


def resolve(packet: torch._ops.OpOverloadPacket, args: Any, kwargs: Any) -> torch._ops.OpOverload:
    """The overload that torch would call for these arguments.

    Raises:
        RuntimeError: none fits; the text is torch's.
    """
    name = torch._C._jit_resolve_packet(packet._qualified_op_name, *args, **kwargs)
    found: torch._ops.OpOverload = getattr(packet, name or "default")
    return found


def has_kernel(name: str, key: str) -> bool:
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))
    except RuntimeError:
        return False  # a key that this torch does not have


def can_run(name: str, device: str) -> bool:
    """Whether any kernel of the op could take tensors of that device, of whatever layout."""
    if device == "cpu":
        return any(has_kernel(name, key) for key in CPU_KEYS)
    composite = [key for key in CPU_KEYS if key.startswith("Composite")]
    upper = {"cuda": "CUDA", "meta": "Meta"}.get(device, device.upper())
    own = (upper, f"Sparse{upper}", f"SparseCsr{upper}", f"Quantized{upper}", f"Autograd{upper}")
    return any(has_kernel(name, key) for key in (*composite, *own))


def kernels_elsewhere(name: str) -> tuple[str, ...]:
    """The backends that have a kernel, where the CPU has none."""
    return tuple(key for key in OTHER_KEYS if has_kernel(name, key))
