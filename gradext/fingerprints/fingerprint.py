"""Fingerprints of tensors and trees: fingerprint(), compare_fingerprints() and what they return.

Owns the 128-bit value as Python sees it and the map from paths to values; the arithmetic is
csrc/fingerprint, how results look is gradext.reporters.fingerprints. Reads tensors, changes none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, overload

import numpy
import torch

from gradext.base import display
from gradext.fingerprints.reference import CODES
from gradext.native import _C
from gradext.ops import graph_break
from gradext.state.inspect import full_name
from gradext.state.tree import is_container, tensors_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The methods that give the dense parts of a sparse tensor.
SPARSE_PARTS: dict[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
_NAMES = {code: name for name, code in CODES.items()}


class Fingerprint(int):
    """128 bits that stand for a tensor's dtype, shape and bytes; an int that prints as hex."""

    __slots__ = ()

    @property
    def low(self) -> int:
        """The lower 64 bits, by themselves a good hash."""
        return int(self) & ((1 << 64) - 1)

    @property
    def high(self) -> int:
        """The upper 64 bits, by themselves a good hash."""
        return int(self) >> 64

    def __str__(self) -> str:
        return f"{int(self):032x}"

    def __repr__(self) -> str:
        return f"Fingerprint(0x{int(self):032x})"


class Fingerprints(display.Shown, Mapping[str, Fingerprint]):
    """Path → `Fingerprint`, in the order of the walk; frozen, hashable, picklable.

    Equal when the same paths have the same values. Prints as a table.
    """

    __slots__ = ("_dtypes", "_index", "_paths", "_sizes", "_starts", "_values")

    _paths: tuple[str, ...] | None
    _index: dict[str, int] | None
    _values: numpy.ndarray[Any, numpy.dtype[numpy.uint64]]
    _dtypes: numpy.ndarray[Any, numpy.dtype[numpy.uint8]]
    _starts: numpy.ndarray[Any, numpy.dtype[numpy.int64]]
    _sizes: numpy.ndarray[Any, numpy.dtype[numpy.int64]]

    def __init__(self, paths: Sequence[str] | None, arrays: tuple[Any, Any, Any, Any]) -> None:
        # What the compiled part returned is kept as it is: most lists of fingerprints are compared
        # as a whole, and a thousand paths would cost more than the hashing of a thousand tensors.
        names = ("_values", "_dtypes", "_starts", "_sizes")
        for name, array in zip(names, arrays, strict=True):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "_paths", None if paths is None else tuple(paths))
        object.__setattr__(self, "_index", None)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Fingerprints is frozen; {name!r} cannot be set")

    __delattr__ = __setattr__  # type: ignore[assignment]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths, in the order of the walk; those of a plain list are "[0]", "[1]" …"""
        if self._paths is None:
            paths = tuple(f"[{index}]" for index in range(len(self._values)))
            object.__setattr__(self, "_paths", paths)
            return paths
        return self._paths

    def _place(self, path: str) -> int:
        if self._index is None:
            object.__setattr__(self, "_index", {p: i for i, p in enumerate(self.paths)})
        assert self._index is not None
        return self._index[path]

    def __getitem__(self, path: str) -> Fingerprint:
        low, high = self._values[self._place(path)].tolist()
        return Fingerprint(high << 64 | low)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self._values)

    def shape(self, path: str) -> tuple[int, ...]:
        """The shape of the tensor at `path`, as it was."""
        place = self._place(path)
        return tuple(self._sizes[self._starts[place] : self._starts[place + 1]].tolist())

    def dtype(self, path: str) -> torch.dtype:
        """The dtype of the tensor at `path`, as it was."""
        found: torch.dtype = getattr(torch, _NAMES[int(self._dtypes[self._place(path)])])
        return found

    def describe(self, path: str) -> str:
        """ "float32[2, 3]": dtype and shape of the tensor at `path`."""
        name = _NAMES.get(int(self._dtypes[self._place(path)]), "unknown")
        return f"{name}[{', '.join(map(str, self.shape(path)))}]"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprints):
            return NotImplemented
        if len(self) != len(other):
            return False
        if (self._paths is None and other._paths is None) or self.paths == other.paths:
            return bool(numpy.array_equal(self._values, other._values))
        return dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (self._values, self._dtypes, self._starts, self._sizes)
        return Fingerprints, (self._paths, arrays)

    def __str__(self) -> str:
        return display.show("fingerprints.tree", self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return display.show("ansi_html.result", "fingerprints.tree", self)


@overload
def fingerprint(obj: torch.Tensor) -> Fingerprint: ...
@overload
def fingerprint(
    obj: torch.nn.Module | Mapping[Any, Any] | Sequence[Any] | Set[Any] | DataclassInstance,
) -> Fingerprints: ...
@overload
def fingerprint(obj: object) -> Fingerprints | Fingerprint: ...
@graph_break
def fingerprint(obj: object) -> Fingerprints | Fingerprint:
    """128 bits that stand for the content of a tensor, or of every tensor in a tree.

    Content is dtype, shape and the bytes in logical order: a view has the value of its contiguous
    copy, and the value is the same on every device. All tensors of a tree are read in one pass (one
    kernel launch for each GPU). The result is on the host, so for a CUDA tensor the call waits;
    `torch.ops.gradext.fingerprint` and `fingerprint_list` leave it on the device.

    No cryptographic hash: whoever wants to can make two tensors with one fingerprint. A quantized
    tensor counts as what it is stored as (its `int_repr()`, without scales).
    gradext.fingerprints.reference has the definition, in plain Python.

    Args:
        obj: a tensor, or whatever `gradext.inspect_tree` walks: modules, dicts, lists, tuples,
            sets, dataclasses. Sparse tensors in a tree are listed by their parts.

    Raises:
        TypeError: `obj` is nothing that can hold tensors.
        ValueError: a tensor has no bytes to read (meta, fake, freed storage, wrapper subclass); the
            line says which and why.
    """
    if issubclass(type(obj), torch.Tensor):
        return _of_tensor(cast(torch.Tensor, obj))
    if type(obj) is list or type(obj) is tuple:
        try:
            return Fingerprints(None, _C.fingerprint_list(obj))
        except (TypeError, ValueError):
            pass  # not tensors alone, or one without bytes: the walk below says where
    elif not is_container(obj):
        raise TypeError(
            "gradext.fingerprint: expected a tensor, module, container or dataclass, got "
            f"{full_name(type(obj))}"
        )
    return _of_tree(obj)


def _device_and_layout(t: torch.Tensor) -> tuple[torch.device, torch.layout]:
    """torch's own answers: a subclass may have properties of these names."""
    getters: Any = torch.Tensor.device, torch.Tensor.layout
    with torch._C.DisableTorchFunctionSubclass():
        device, layout = (getter.__get__(t) for getter in getters)
    return device, layout


def _of_tensor(t: torch.Tensor) -> Fingerprint:
    if _device_and_layout(t)[0].type == "cpu":
        low, high = _C.fingerprint(t)
        return Fingerprint(high << 64 | low)
    _check("", t)
    return Fingerprints(None, _C.fingerprint_list([t]))["[0]"]


def _check(path: str, t: torch.Tensor) -> None:
    reason = _C.fingerprint_refusal(t)
    if reason is not None:
        raise ValueError(f"gradext.fingerprint: {path}{': ' if path else ''}{reason}")


def _of_tree(obj: object) -> Fingerprints:
    paths: list[str] = []
    places: list[int] = []
    unique: list[torch.Tensor] = []
    seen: dict[int, int] = {}
    for where, found in tensors_of(obj):
        for path, t in _parts(where, found):
            if id(t) not in seen:
                _check(path, t)
                seen[id(t)] = len(unique)
                unique.append(t)  # which also keeps the id from being lent out again
            paths.append(path)
            places.append(seen[id(t)])
    values, dtypes, starts, sizes = _C.fingerprint_list(unique)
    if len(set(paths)) < len(paths):
        paths, places = _told_apart(paths, places, values)
    if places != list(range(len(unique))):
        shapes = [sizes[starts[place] : starts[place + 1]] for place in places]
        values, dtypes = values[places], dtypes[places]
        starts = numpy.cumsum([0, *map(len, shapes)])
        sizes = numpy.concatenate([*shapes, numpy.empty(0, numpy.int64)])
    return Fingerprints(paths, (values, dtypes, starts, sizes))


def _parts(path: str, t: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A dense tensor itself; a sparse one's indices and values."""
    device, layout = _device_and_layout(t)
    if layout is torch.strided or device.type == "meta":
        yield path, t
        return
    if layout not in SPARSE_PARTS:
        yield path, t  # refused, with its path
        return
    with torch.no_grad():
        for method in SPARSE_PARTS[layout]:
            yield f"{path}.{method}()", getattr(t, method)()


def _told_apart(paths: list[str], places: list[int], values: Any) -> tuple[list[str], list[int]]:
    """A name for each member of a set. It has no order, so they are put in that of their values."""
    groups: dict[str, list[int]] = {}
    for path, place in zip(paths, places, strict=True):
        groups.setdefault(path, []).append(place)
    named = [
        (path if number == 1 else f"{path}#{number}", place)
        for path, members in groups.items()
        for number, place in enumerate(sorted(members, key=lambda p: tuple(values[p].tolist())), 1)
    ]
    return [path for path, _ in named], [place for _, place in named]


Kind = Literal["added", "removed", "dtype", "shape", "bytes"]


@dataclasses.dataclass(frozen=True)
class FingerprintChange:
    """One path whose tensor is not what it was.

    Attributes:
        path: where.
        kind: "added" and "removed"; "dtype" and "shape" (the first of the two that differs);
            "bytes" when both are as they were.
        before, after: dtype and shape, "float32[2, 3]"; None where there was no tensor.
    """

    path: str
    kind: Kind
    before: str | None
    after: str | None


@dataclasses.dataclass(frozen=True, repr=False)
class FingerprintChanges(display.Shown):
    """What differs between two trees; prints as a table.

    Attributes:
        changes: one entry a path, in the order of `before`, then what is new.
        same: how many paths have the value they had.
    """

    changes: tuple[FingerprintChange, ...]
    same: int

    @property
    def equal(self) -> bool:
        return not self.changes

    def paths(self, *kinds: Kind) -> tuple[str, ...]:
        """The paths of these kinds of change; without kinds, of all."""
        return tuple(change.path for change in self.changes if not kinds or change.kind in kinds)

    def __str__(self) -> str:
        return display.show("fingerprints.changes", self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return display.show("ansi_html.result", "fingerprints.changes", self)


def compare_fingerprints(before: Fingerprints, after: Fingerprints) -> FingerprintChanges:
    """What changed between two results of `gradext.fingerprint(tree)`, path by path.

    Raises:
        TypeError: an argument is no `Fingerprints`.
    """
    for name, value in (("before", before), ("after", after)):
        if not isinstance(value, Fingerprints):
            raise TypeError(
                f"gradext.compare_fingerprints: {name} must be what gradext.fingerprint(tree) "
                f"returned, got {type(value).__module__}.{type(value).__qualname__}"
            )
    found: list[FingerprintChange] = []
    for path in before:
        if path not in after:
            found.append(FingerprintChange(path, "removed", before.describe(path), None))
        elif before[path] != after[path]:
            found.append(_changed(path, before, after))
    for path in after:
        if path not in before:
            found.append(FingerprintChange(path, "added", None, after.describe(path)))
    same = sum(path in after and before[path] == after[path] for path in before)
    return FingerprintChanges(tuple(found), same)


def _changed(path: str, before: Fingerprints, after: Fingerprints) -> FingerprintChange:
    kind: Kind = "bytes"
    if before.dtype(path) != after.dtype(path):
        kind = "dtype"
    elif before.shape(path) != after.shape(path):
        kind = "shape"
    return FingerprintChange(path, kind, before.describe(path), after.describe(path))
