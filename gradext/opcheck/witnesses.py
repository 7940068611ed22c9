"""One op, run on copies of its arguments in every mode, and what the three witnesses saw.

Owns the copies, the modes and the notes. The schema is `schemas`' to read, the bytes are
`content`'s, the versions come from the state ops; what the notes mean is `verdicts`' business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gradext import ops
from gradext.base import errors
from gradext.base.forks import uses_cuda
from gradext.base.random_numbers import RandomNumbers
from gradext.opcheck import content, schemas
from gradext.state.tree import tensors_of

GRAD = "grad"
AGAIN = "grad, again"  # tells what differs from run to run anyway
REQUIRES_GRAD = "requires_grad"
NO_GRAD = "no_grad"
INFERENCE = "inference_mode"
INFERENCE_TENSORS = "inference_mode, inference tensors"
MODES = (GRAD, AGAIN, REQUIRES_GRAD, NO_GRAD, INFERENCE, INFERENCE_TENSORS)

_SEED = 20


@dataclasses.dataclass(frozen=True)
class Given:
    """One tensor argument after a run.

    Attributes:
        name: "self", or "exp_avgs[1]" in a list. argument: the schema's name.
        declared: the schema says that it is written.
        changed: its bytes, sizes or strides are others now. reshaped: it is not the bytes alone.
        outside: bytes of its storage changed that are not its own.
        bumps: how far its version went; None for an inference tensor.
        shares: the written arguments whose memory it shares, by the schema.
        form, digest: what it holds afterwards. value: the same as a tensor on the CPU, if kept.
    """

    name: str
    argument: str
    declared: bool
    changed: bool
    reshaped: bool
    outside: bool
    bumps: int | None
    shares: tuple[str, ...]
    form: tuple[Any, ...]
    digest: str
    value: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Made:
    """One tensor that a run returned.

    Attributes:
        name: "output 0", or "output 0[2]" in a list.
        declared: the arguments that it may alias by the schema. is_written: as a written one.
        aliases: the tensor arguments whose memory it shares. identical: the one that it is.
        counted: it shares its version counter with the first of `aliases`.
        is_inference: born under inference_mode.
    """

    name: str
    declared: tuple[str, ...]
    is_written: bool
    aliases: tuple[str, ...]
    identical: str | None
    counted: bool
    is_inference: bool
    form: tuple[Any, ...]
    digest: str
    value: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run in one mode. `error`: "" or what it raised, on one line."""

    mode: str
    error: str
    given: tuple[Given, ...] = ()
    made: tuple[Made, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All runs of an op on one set of arguments.

    Attributes:
        op: full name. device: type of the device. source: where the arguments are from.
        runs: by mode.
    """

    op: str
    device: str
    source: str
    runs: dict[str, Run]

    @property
    def ran(self) -> bool:
        return not self.runs[GRAD].error

    def silent(self) -> tuple[str, ...]:
        """The declared arguments, by name in the schema, that no run changed."""
        given = self.runs[GRAD].given
        changed = {
            each.argument for run in self.runs.values() for each in run.given if each.changed
        }
        names = dict.fromkeys(each.argument for each in given if each.declared)
        return tuple(name for name in names if name not in changed)


def observe(
    op: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    source: str = "",
    device: str = "cpu",
    modes: Sequence[str] = MODES,
    keep: bool = False,
    thorough: bool = False,
) -> Outcome:
    """Run `op` on copies of the arguments, once per mode. What it raises is noted, not raised.

    Args:
        device: type of the device that the copies are on.
        keep: note the values too, for a comparison within a tolerance.
        thorough: leave something else in all of the freed memory before each run.
    """
    schema = schemas.of(op)
    runs: dict[str, Run] = {}
    with torch.inference_mode(False), RandomNumbers.kept():
        for mode in modes:
            _stir(MODES.index(mode), _ALL_SIZES if thorough else _SIZES)
            runs[mode] = _run(op, schema, args, kwargs, mode, device, keep)
            if mode == GRAD and runs[mode].error:
                break
    return Outcome(schema.name, device, source, runs)


def _run(
    op: torch._ops.OpOverload,
    schema: schemas.Schema,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    mode: str,
    device: str,
    keep: bool,
) -> Run:
    written = set(schema.written)
    names = [argument.name for argument in schema.arguments]
    copy = Copies(mode, device)
    bound = dict(zip(names, args, strict=False))
    try:
        with warnings.catch_warnings(), _mode(mode if mode == INFERENCE_TENSORS else GRAD):
            warnings.simplefilter("ignore")
            call = {k: copy.of(v, k in written) for k, v in {**bound, **kwargs}.items()}
    except Exception as error:
        return Run(mode, f"no copy of the arguments: {errors.one_line(error)}")
    tensors = [(name, path, t) for name in call for path, t in tensors_of(call[name], name)]
    before = [(content.read(t), ops.version(t)) for _, _, t in tensors]
    declared = [(path, t) for name, path, t in tensors if name in written]
    shares = [
        tuple(p for p, other in declared if other is t or content.shares_memory(other, t))
        for _, _, t in tensors
    ]
    seed()
    try:
        with warnings.catch_warnings(), _mode(mode):
            warnings.simplefilter("ignore")
            positional = [call[name] for name in list(bound)]
            result = op(*positional, **{name: call[name] for name in kwargs})
    except Exception as error:
        return Run(mode, errors.one_line(error))
    given = []
    for (name, path, t), (was, version), shared in zip(tensors, before, shares, strict=True):
        now = content.read(t)
        later = ops.version(t)
        given.append(
            Given(
                path,
                name,
                name in written,
                (now.form, now.values) != (was.form, was.values),
                now.form != was.form,
                was.changed_outside(now),
                None if version is None or later is None else later - version,
                shared,
                now.form,
                now.digest(),
                _value(t) if keep else None,
            )
        )
    made = _made(schema, result, [(path, t) for _, path, t in tensors], keep)
    return Run(mode, "", tuple(given), made)


def seed() -> None:
    # torch.manual_seed formats the Python stack for every kind of device: most of a run's time.
    torch.default_generator.manual_seed(_SEED)
    if uses_cuda():
        torch.cuda.manual_seed_all(_SEED)


_SIZES = (4, 16, 64, 256, 1024)
_ALL_SIZES = tuple(range(4, 1028, 4))


def _stir(salt: int, sizes: Sequence[int]) -> None:
    """Leave something else in freed memory before each run: what an op does not write, it shows."""
    _ = [torch.full((size,), 3.5 + salt) for size in sizes for _ in range(6)]


def _made(
    schema: schemas.Schema, result: Any, tensors: list[tuple[str, torch.Tensor]], keep: bool
) -> tuple[Made, ...]:
    results = result if isinstance(result, tuple) and len(schema.results) != 1 else (result,)
    found = []
    for index, value in enumerate(results):
        declared = (
            schema.results[index] if index < len(schema.results) else schemas.Result((), False)
        )
        for path, t in tensors_of(value, f"output {index}"):
            aliased = [
                (name, other)
                for name, other in tensors
                if other is t or content.shares_memory(other, t)
            ]
            # The identical one first: a result may share memory with several arguments.
            aliased.sort(key=lambda pair: pair[1] is not t)
            now = content.read(t)
            found.append(
                Made(
                    path,
                    declared.declared,
                    declared.is_written,
                    tuple(name for name, _ in aliased),
                    next((name for name, other in aliased if other is t), None),
                    any(ops.shares_version_counter(other, t) for _, other in aliased),
                    ops.is_inference(t),
                    now.form,
                    now.digest(),
                    _value(t) if keep else None,
                )
            )
    return tuple(found)


class Copies:
    """Copies of arguments: what shares storage among the arguments shares it among the copies."""

    def __init__(self, mode: str, device: str) -> None:
        self._grad = mode == REQUIRES_GRAD
        self._device = device
        self._tensors: dict[int, torch.Tensor] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._alive: list[Any] = []  # ids in the dicts above are of these

    def of(self, value: Any, written: bool = False) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in self._tensors:
                self._alive.append(value)
                self._tensors[id(value)] = self._tensor(value, written)
            return self._tensors[id(value)]
        if isinstance(value, (list, tuple)):
            return type(value)([self.of(item, written) for item in value])
        if isinstance(value, torch.device):
            return torch.device(self._device)
        if isinstance(value, torch.UntypedStorage):
            return self._storage(value)
        if isinstance(value, torch.Generator):
            return torch.Generator(value.device).manual_seed(_SEED)
        return value

    def _tensor(self, t: torch.Tensor, written: bool) -> torch.Tensor:
        copy = self._plain(t.detach())
        if self._grad and (copy.is_floating_point() or copy.is_complex()):
            copy.requires_grad_()
            if written:
                copy = copy.clone()  # a leaf that requires grad may not be written
        return copy

    def _plain(self, t: torch.Tensor) -> torch.Tensor:
        if t.device.type != self._device:
            t = t.to(self._device)
        if t.device.type == "meta":
            return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="meta")
        if type(t) is not torch.Tensor or t.layout is not torch.strided or t.is_nested:
            return t.clone()
        if t.is_quantized or t._is_zerotensor():
            return t.clone()
        if t.is_conj():
            return self._plain(t.conj()).conj()
        if t.is_neg():
            return torch._neg_view(self._plain(torch._neg_view(t)))
        copy = torch.empty(0, dtype=t.dtype, device=t.device)
        storage = self._storage(t.untyped_storage())
        copy.set_(storage, t.storage_offset(), t.size(), t.stride())
        return copy

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        key = storage._cdata
        if key not in self._storages:
            self._alive.append(storage)
            self._storages[key] = storage.clone()  # type: ignore[no-untyped-call]
        return self._storages[key]


@contextlib.contextmanager
def _mode(mode: str) -> Iterator[None]:
    if mode in {INFERENCE, INFERENCE_TENSORS}:
        with torch.inference_mode():
            yield
    elif mode == NO_GRAD:
        with torch.no_grad():
            yield
    else:
        with torch.enable_grad():
            yield


def _value(t: torch.Tensor) -> torch.Tensor | None:
    """The values on the CPU, to be compared within a tolerance; None where there are none."""
    with torch.inference_mode(False), torch.no_grad(), contextlib.suppress(Exception):
        if t.device.type == "meta":
            return None
        t = t.detach()
        if t.is_quantized:
            t = t.dequantize()
        if t.layout is not torch.strided:
            t = t.to_dense()
        return t.cpu().resolve_conj().resolve_neg().clone()
    return None
