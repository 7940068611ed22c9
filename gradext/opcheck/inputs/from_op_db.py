"""Inputs that others wrote: torch's own operator samples, recorded as calls of overloads.

`record` runs one entry of op_db and notes every overload that it calls, with the arguments as they
were before the call; `derive` makes from such a call the arguments of its in-place and out=
siblings. Judges nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradext.opcheck import schemas, witnesses
from gradext.state.tree import tensors_of

Call = tuple[list[Any], dict[str, Any]]

PER_ENTRY = 2  # calls of one overload from one entry of op_db
PER_OVERLOAD = 5
SAMPLES = 4  # of one entry and dtype; the first ones differ in rank and arguments
BYTES = 1 << 18  # of the tensors of one call
DTYPES = (torch.float32, torch.int64, torch.complex64, torch.bool, torch.float64)
DTYPES_USED = 2


@functools.cache
def op_db() -> tuple[Any, ...]:
    """torch's operator samples; empty where this torch cannot import them (no expecttest)."""
    try:
        from torch.testing._internal.common_methods_invocations import op_db as found
    except ImportError:
        return ()
    return tuple(found)


def record(entry: Any, namespace: str) -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """(dtype's number, [(overload, packed call)]) of what the samples of `entry` call."""
    supported = [dtype for dtype in DTYPES if entry.supports_dtype(dtype, "cpu")]
    for number, dtype in enumerate(supported[:DTYPES_USED]):
        calls = Calls(namespace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            with contextlib.suppress(Exception):
                for sample in _samples(entry, dtype, False):
                    _run(entry, sample, calls)
            # Backward formulas are ops too, and nobody else calls them.
            if entry.supports_autograd and dtype is torch.float32:
                with contextlib.suppress(Exception):
                    for sample in _samples(entry, dtype, True)[:2]:
                        _run_backward(entry, sample, calls)
        yield number, calls.packed


def _samples(entry: Any, dtype: torch.dtype, requires_grad: bool) -> list[Any]:
    # `sample_inputs` is the same behind a tracker that reads the Python stack for every sample.
    made = entry.sample_inputs_func(entry, "cpu", dtype, requires_grad)
    return list(itertools.islice(made, SAMPLES))


def _run(entry: Any, sample: Any, calls: Calls) -> None:
    with contextlib.suppress(Exception), calls:
        entry(sample.input, *sample.args, **sample.kwargs)
    in_place = entry.get_inplace()
    if in_place is not None and isinstance(sample.input, torch.Tensor):
        with contextlib.suppress(Exception), calls:
            in_place(sample.input.clone(), *sample.args, **sample.kwargs)


def _run_backward(entry: Any, sample: Any, calls: Calls) -> None:
    with contextlib.suppress(Exception), calls:
        result = entry(sample.input, *sample.args, **sample.kwargs)
        outputs = [t for _, t in tensors_of(result) if t.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])


class Calls:
    """A context that notes which overloads are called, above autograd and below it."""

    def __init__(self, namespace: str) -> None:
        self.packed: list[tuple[str, bytes]] = []
        self._prefix = f"{namespace}::"
        self._counts: dict[str, int] = {}

    def __enter__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_Below(self))
        self._stack.enter_context(_Above(self))

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def note(self, op: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> None:
        name = schemas.name_of(op)
        if not name.startswith(self._prefix) or self._counts.get(name, 0) >= PER_ENTRY:
            return
        size = sum(
            t.untyped_storage().nbytes() if t.layout is torch.strided else 0
            for _, t in tensors_of([*args, *kwargs.values()])
        )
        if size > BYTES:
            return
        with contextlib.suppress(Exception):
            self.packed.append((name, pack(list(args), dict(kwargs))))
            self._counts[name] = self._counts.get(name, 0) + 1


class _Above(TorchFunctionMode):
    """Sees the call that a person wrote, composite ops included, and finds its overload.

    Not the composite ops that a function written in Python calls: the mode is off inside.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with contextlib.suppress(Exception), torch._C.DisableTorchFunction():
            if isinstance(func, torch._ops.OpOverload):
                self._calls.note(func, args, kwargs)
            else:
                packet = getattr(torch.ops.aten, func.__name__, None)
                if packet is not None:
                    self._calls.note(schemas.resolve(packet, args, kwargs), args, kwargs)
        return func(*args, **kwargs)


class _Below(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the overloads that a composite op or a backward formula is made of."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._calls.note(func, args, kwargs)
        return func(*args, **kwargs)


def pack(args: list[Any], kwargs: dict[str, Any]) -> bytes:
    """A call as bytes; what shares memory among the arguments still does when unpacked."""
    stream = io.BytesIO()
    with torch.no_grad():
        plain = [_plain(each) for each in (args, kwargs)]
        torch.save(plain, stream)
    return stream.getvalue()


def unpack(data: bytes) -> Call:
    args, kwargs = torch.load(io.BytesIO(data), weights_only=False)
    return args, kwargs


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# --- siblings ------------------------------------------------------------------------------------


def sources(name: str, known: Iterable[str]) -> list[str]:
    """The overloads whose calls can become calls of the writable overload `name`, best first."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    bare = packet.rstrip("_") if not packet.endswith("__") else packet
    bare = bare.removesuffix("_out")
    packets = [packet, bare, f"{bare}_", f"{bare}_copy", bare.removesuffix("_copy")]
    # out= variants made by torch's code generator are named for the overload they come from.
    stem = overload.removesuffix("_out").removesuffix("out")
    found = [
        other
        for other in known
        if other != name and other.partition(".")[0] in {f"{namespace}::{p}" for p in packets}
    ]
    return sorted(found, key=lambda other: (other.partition(".")[2] != stem, other))


def derive(op: torch._ops.OpOverload, source: torch._ops.OpOverload, call: Call) -> Call | None:
    """Arguments for `op` from a call of `source`: the same by name, written ones made to fit.

    None where the two do not take the same things.
    """
    target, origin = schemas.of(op), schemas.of(source)
    args, kwargs = call
    bound = dict(zip([a.name for a in origin.arguments], args, strict=False)) | kwargs
    outs = [argument for argument in target.arguments if argument.is_out]
    values: dict[str, Any] = {}
    for argument in target.arguments:
        if argument.is_out:
            continue
        if argument.name in bound:
            values[argument.name] = bound[argument.name]
        elif not argument.has_default:
            return None
    if outs:
        made = _results(source, origin, args, kwargs)
        if len(outs) == 1 and "List" in outs[0].type:
            made = [t for result in made for _, t in tensors_of(result)]
            values[outs[0].name] = [unlike(t) for t in made]
        elif len(made) >= len(outs) and all(isinstance(t, torch.Tensor) for t in made):
            values |= {argument.name: unlike(t) for argument, t in zip(outs, made, strict=False)}
        else:
            return None
    return [], values


def _results(
    source: torch._ops.OpOverload, schema: schemas.Schema, args: Any, kwargs: Any
) -> list[Any]:
    """One entry per return of the schema; of several lists the first alone."""
    copies = witnesses.Copies(witnesses.NO_GRAD, "cpu")
    witnesses.seed()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = source(*copies.of(list(args)), **{k: copies.of(v) for k, v in kwargs.items()})
    results = list(result) if isinstance(result, tuple) else [result]
    return results[:1] if isinstance(results[0], list) else results


def unlike(t: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and dtype whose every element differs, so that a write shows."""
    if t.is_quantized:
        other = t.clone()
        with contextlib.suppress(RuntimeError):
            other.copy_(torch.full(t.shape, 1.7))
        return other
    if t.layout is torch._mkldnn:  # type: ignore[attr-defined]
        return torch.full(t.shape, 93.0).to_mkldnn()
    if t.layout is torch.sparse_coo:
        return torch.zeros_like(t)
    if t.layout is not torch.strided or t.is_nested:
        other = t.clone()
        with contextlib.suppress(RuntimeError):
            other.values().fill_(93)
        return other
    t = t.detach().resolve_conj().resolve_neg()
    out = torch.empty_like(t)
    if t.dtype is torch.bool:
        return out.copy_(~t)
    filled: torch.Tensor = out.fill_(93)
    return torch.where(t == 93, torch.full_like(t, 57), filled).to(t.dtype).contiguous()
