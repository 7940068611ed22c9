"""Inputs made from a schema alone: arguments by type and name, tried shape by shape.

Most of what this yields is refused by the op; the caller tries until something runs. Ops that need
more than guessing have their inputs written down in `special`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from gradext.opcheck import schemas
from gradext.opcheck.inputs import from_op_db
from gradext.opcheck.inputs.from_op_db import Call

SHAPES: tuple[tuple[int, ...], ...] = ((3, 3), (4,), (2, 4, 4), (2, 2, 4, 4), (2, 2, 4, 4, 4), ())
DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64, torch.uint8)

_INDICES = {"index", "indices", "ind", "target", "offsets", "batch1_index", "sorted_sequence_index"}
_MASKS = {"mask", "condition", "cond"}
_ZERO_INTS = {"dim", "dim0", "start", "offset", "index", "storage_offset", "ignore_index", "dim1_0"}


def _table(text: str) -> dict[str, str]:
    return dict(word.split("=") for word in text.split())


_INTS = _table("""
    dim1=1 dim2=1 groups=1 n=2 k=1 split_size=1 chunks=2 sections=2 repeats=2 end=2 step=1 size=2
    steps=3 high=5 from=1 to=5 num_classes=5 bins=4 upscale_factor=2 downscale_factor=2 reduction=1
    num_groups=1 window_length=4 source=0 destination=1 N=2 HxW=2 C=2 group=1 ord=2 diagonal=0
    interpolation_mode=0 padding_mode=0 quant_min=0 quant_max=10 zero_point=1 axis=0 sparse_dim=1
    dense_dim=1 num_samples=1 output_dim=0 batch_dim=0
""")
_FLOATS = _table("""
    eps=1e-5 epsilon=1e-5 momentum=0.1 p=0.5 std=1.0 mean=0.5 lambd=1.5 scale=1.5 scale_factor=2.0
    lower=0.1 upper=0.3 from=0.1 to=0.9 sigma=1.0 median=0.5 temperature=1.0 rcond=0.1 atol=0.1
    rtol=0.1
""")
_STRINGS = _table("""
    reduce=sum mode=reduced UPLO=L driver=gelsd approximate=none rounding_mode=floor indexing=ij
    norm=backward side=left
""")
_LISTS = _table("""
    kernel_size=2 stride=1 padding=0 dilation=1 output_padding=0 dim=0 dims=0 output_size=2 pad=1
    shifts=1 repeats=2 normalized_shape=3 split_sizes=1 scale_factors=2
""")


def calls(op: torch._ops.OpOverload) -> Iterator[tuple[str, Call]]:
    """(what was tried, arguments), likely ones first."""
    schema = schemas.of(op)
    for number, spread in ((0, False), (0, True), (1, False), (1, True)):
        shape, dtype = SHAPES[0], DTYPES[0]
        label = _label(shape, dtype, number) + (", values spread" if spread else "")
        yield label, _call(op, schema, shape, dtype, number, spread)
    for dtype, shape, number in itertools.product(DTYPES[:2], SHAPES, (0, 1)):
        if (shape, dtype) != (SHAPES[0], DTYPES[0]):
            yield _label(shape, dtype, number), _call(op, schema, shape, dtype, number)
    for dtype, shape in itertools.product(DTYPES[2:], SHAPES[:3]):
        yield _label(shape, dtype, 0), _call(op, schema, shape, dtype, 0)
    if schema.is_writable and any(argument.is_out for argument in schema.arguments):
        return  # other layouts come from the functional sibling, which knows its result's layout
    for kind, convert in LAYOUTS.items():
        for every in (False, True):
            args, kwargs = _call(op, schema, (4, 4), torch.float32, 0)
            plain = [name for name, value in kwargs.items() if type(value) is torch.Tensor]
            try:
                for name in plain if every else plain[:1]:
                    kwargs[name] = convert(kwargs[name])
            except RuntimeError:
                continue  # a build without it
            yield f"made from the schema: {kind}", (args, kwargs)


# Ops without a kernel for dense tensors take one of these, for the first tensor or for all.
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse COO": lambda t: t.to_sparse(),
    "sparse CSR": lambda t: t.to_sparse_csr(),
    "sparse CSC": lambda t: t.to_sparse_csc(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 3, torch.quint8),
    "quantized per channel": lambda t: torch.quantize_per_channel(
        t, torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int64), 0, torch.quint8
    ),
}


def _label(shape: Sequence[int], dtype: torch.dtype, number: int) -> str:
    return f"made from the schema: {str(dtype).removeprefix('torch.')}{list(shape)}, ints {number}"


def _call(
    op: torch._ops.OpOverload,
    schema: schemas.Schema,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    number: int,
    spread: bool = False,
) -> Call:
    # Where the op has the C++ schema's `int[2]`, the 2 is known.
    sizes: dict[str, Any] = {
        argument.name: getattr(argument, "N", None) for argument in op._schema.arguments
    }
    values: dict[str, Any] = {}
    for salt, argument in enumerate(schema.arguments):
        if argument.has_default and not argument.writes and argument.default is not None:
            continue
        if argument.has_default and argument.type.startswith("Optional") and number == 0:
            continue
        value = _value(argument, shape, dtype, number, sizes[argument.name], salt)
        if spread and not argument.is_out:
            value = _spread(value)
        values[argument.name] = value
    return [], values


def _spread(value: Any) -> Any:
    """Floats of both signs and beyond 1, on which `abs_` and `clamp_` have something to do."""
    if isinstance(value, list):
        return [_spread(item) for item in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return (value - 0.5) * 9
    return value


def _value(
    argument: schemas.Argument,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    number: int,
    n: Any,
    salt: int,
) -> Any:
    name, kind = argument.name, argument.type
    if kind.startswith("Optional["):
        kind = kind.removeprefix("Optional[").removesuffix("]")
        if kind == "Generator":
            return None
    if kind == "Tensor":
        return tensor(name, shape, dtype, argument.is_out, salt)
    if kind in {"List[Tensor]", "List[Optional[Tensor]]"}:
        if name == "indices":
            return [tensor(name, shape[:1], torch.int64, False)]
        return [tensor(name, shape, dtype, argument.is_out, salt + k) for k in range(2)]
    if kind == "int":
        if name in _ZERO_INTS:
            return 0
        return int(_INTS.get(name, 1 if number == 0 else 2))
    if kind == "float":
        return float(_FLOATS.get(name, 0.5))
    if kind == "number":
        if dtype.is_floating_point and name not in {"end", "step", "high"}:
            return 0.5 if number == 0 else 2
        return 1 if number == 0 else 2
    if kind == "bool":
        return number == 1
    if kind == "str":
        return _STRINGS.get(name, "none")
    if kind == "List[int]":
        return _list(name, shape, number, n)
    if kind == "List[float]":
        return [2.0] * max(len(shape) - 2, 1)
    if kind == "List[number]":
        return [2, 3]
    if kind == "List[bool]":
        return [True] * (n if isinstance(n, int) and n else 1)
    if kind == "Device":
        return torch.device("cpu")
    if kind == "Storage":
        return torch.ones(16).untyped_storage()
    if kind == "complex":
        return 1j
    return None


def _list(name: str, shape: tuple[int, ...], number: int, n: Any) -> list[int]:
    spatial = max(len(shape) - 2, 1)
    if "size" in name and name not in {"kernel_size", "output_size", "split_sizes"}:
        return list(shape) or [1]
    if name in {"stride", "self_stride"} and not (isinstance(n, int) and n):
        return list(torch.empty(shape).stride()) or [1]
    length = n if isinstance(n, int) and n else None
    chosen = [int(_LISTS.get(name, 1))]
    if name in {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"}:
        return chosen * (length or spatial)
    if name == "pad" or (name == "padding" and length):
        return [1] * (length or 2 * spatial)
    return chosen * (length or 1)


def tensor(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, is_out: bool, salt: int = 0
) -> torch.Tensor:
    """A small tensor for an argument of this name: distinct values, nothing at 0 or 1."""
    count = 1
    for size in shape:
        count *= size
    if is_out:
        return torch.full(shape, True if dtype is torch.bool else 93, dtype=dtype)
    if name in _INDICES:
        return (torch.arange(count) % 2).reshape(shape)
    if name in _MASKS:
        return (torch.arange(count) % 2 == 0).reshape(shape)
    ramp = torch.arange(count, dtype=torch.float64) + salt
    if dtype.is_floating_point or dtype.is_complex:
        # A permuted ramp in (0.1, 0.9): invertible as a matrix, in the domain of most functions.
        values = 0.1 + 0.8 * ((ramp * 7 + 3) % (count + 1)) / (count + 1)
        made = values.to(dtype).reshape(shape)
        return made * (1 + 0.5j) if dtype.is_complex else made
    if dtype is torch.bool:
        return (ramp % 3 == 0).reshape(shape)
    return (ramp % 5 + 1).to(dtype).reshape(shape)


def fitted(op: torch._ops.OpOverload, call: Call) -> Call | None:
    """The call with out= tensors of the shape and dtype that the op gives them, wrongly filled.

    Found by letting the op resize empty ones; None where it refuses.
    """
    schema = schemas.of(op)
    outs = [argument for argument in schema.arguments if argument.is_out]
    if not outs or any("List" in argument.type for argument in outs):
        return None
    args, kwargs = call
    guesses = dict.fromkeys(t.dtype for t in _tensors(kwargs.values()))
    for dtype in (*guesses, torch.float32, torch.int64, torch.bool, torch.complex64):
        trial = dict(kwargs)
        for argument in outs:
            trial[argument.name] = torch.empty(0, dtype=dtype)
        try:
            op(*args, **trial)
        except Exception:
            continue
        made = {argument.name: from_op_db.unlike(trial[argument.name]) for argument in outs}
        return args, {**kwargs, **made}
    return None


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]
