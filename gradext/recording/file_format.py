"""The file of a recording, read as what a stranger sent: nothing in it is believed unchecked.

Owns what a file may be (docs/recording-format.md): its size, its nesting, and the type and the
range of every value. Ends in plain, checked data, of which `recording` makes a Recording.
Everything that is wrong is one ValueError of one line, found before much memory is spent on it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy

from gradext.base import errors
from gradext.base.text import clean
from gradext.diagnosis.model import Frame
from gradext.recording.events import (
    COUNTED,
    CREATION_META,
    NODES,
    OP_COLUMNS,
    STACK_COLUMNS,
    TABLES,
    Backward,
    Refused,
)
from gradext.recording.tables import table

FORMAT = "gradext-recording"
FORMAT_VERSION = 2

# JSON text of a recording takes about 10 times its length once it is parsed, and JSON made for it
# about 30 times. So the text is bounded, and what gzip makes of a small file more so: real
# recordings shrink 5 to 15 times, a bomb 1,000 times.
MAX_BYTES = 1 << 30
MAX_GROWTH = 64
SMALL = 1 << 20
MAX_DEPTH = 8  # a document is 5 deep: the document, backwards, one of them, its nodes, a node

_OF_VERSION_1 = {"writes", "views", "saved"}
_SMALL_NUMBERS = {
    "creation_meta": len(CREATION_META),
    "has_gradient_behind": 2,
    "lives": 2,
    "kind": 3,
    "value": 2,  # of `flags`; that of `flows` has any bits
}
# Bytes and elements beyond this are of no tensor: sums and products of them stay within 64 bits.
_MOST = 1 << 48


class Damaged(ValueError):
    """A file that cannot be read as a recording; the text says why, in a few words."""


class OtherColumns(Exception):
    """A table, by its name, has columns that this version does not know, or lacks some."""


def read(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, Any]:
    """The checked document of a file that Recording.save() wrote, as format version 2.

    Its tables are numpy arrays (int64), its stacks tuples of Frames.

    Raises:
        ValueError: the file is no recording, or of another format; one line that says which.
        OSError: it cannot be opened.
    """
    shown = clean(os.fspath(path))
    limit = MAX_BYTES if max_bytes is None else max_bytes
    try:
        document = _parse(_text(path, limit))
    except Damaged as error:
        raise ValueError(f"{shown} is no gradext recording ({error})") from None
    except (ValueError, RecursionError, MemoryError, zlib.error, EOFError) as error:
        said = clean(str(error)) or type(error).__name__
        raise ValueError(f"{shown} is no gradext recording ({_short(said)})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'{shown} is no gradext recording (no "format": "{FORMAT}" in it)')
    writer, version = document.get("gradext"), document.get("version")
    by = f"gradext {_short(clean(writer))}" if isinstance(writer, str) else "another gradext"
    if type(version) is int and not 1 <= version <= FORMAT_VERSION:
        # Few digits: a number of thousands of them is no line.
        number = version if abs(version) < 10**9 else "of an absurd number"
        raise ValueError(
            f"{shown} has recording format {number}, this gradext reads 1 to {FORMAT_VERSION}; "
            f"open it with {by}, which wrote it"
        )
    try:
        return _checked(document)
    except OtherColumns as error:
        raise ValueError(
            f"{shown} has other columns in its table {error} than this gradext reads; "
            f"open it with {by}, which wrote it"
        ) from None
    except Damaged as error:
        raise ValueError(f"{shown} is no gradext recording (damaged: {error})") from None
    except KeyError as error:
        said = _short(clean(str(error)))
        raise ValueError(f"{shown} is no gradext recording (damaged: no {said})") from None
    except (TypeError, ValueError, OverflowError, LookupError, MemoryError) as error:
        said = _short(clean(errors.describe(error)))
        raise ValueError(f"{shown} is no gradext recording (damaged: {said})") from None


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


# --- from the file to JSON ------------------------------------------------------------------------


def _text(path: str | os.PathLike[str], limit: int) -> bytes:
    """The file's text, decompressed if its name ends in .gz; never more than the limits."""
    # Opening a pipe would wait, and a device may never end.
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(21, os.strerror(21), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise Damaged("not a regular file")
    with open(path, "rb") as file:
        if not os.fspath(path).endswith(".gz"):
            data = file.read(limit + 1)
            if len(data) > limit:
                _too_large(limit)
            return data
        growth = SMALL + MAX_GROWTH * found.st_size
        return _inflate(file.read, min(limit, growth), limit)


def _inflate(read: Callable[[int], bytes], most: int, limit: int) -> bytes:
    """One gzip member and nothing behind it, stopped as soon as it grows beyond `most` bytes."""
    inflater = zlib.decompressobj(wbits=31)
    parts: list[bytes] = []
    size = 0
    while not inflater.eof:
        data = inflater.unconsumed_tail or read(1 << 16)
        if not data:
            raise Damaged("the compressed data end too early")
        part = inflater.decompress(data, most + 1 - size)
        size += len(part)
        if size > most:
            if most == limit:
                _too_large(limit)
            raise Damaged(f"it grows more than {MAX_GROWTH} times when decompressed")
        parts.append(part)
    if inflater.unused_data or read(1):
        raise Damaged("there is something behind the compressed data")
    return b"".join(parts)


def _too_large(limit: int) -> NoReturn:
    raise Damaged(f"its text is larger than {limit} bytes; load(..., max_bytes=...) reads more")


def _parse(data: bytes) -> Any:
    _check_depth(data)
    return json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_object,
        parse_constant=_no_constant,
        parse_float=_no_float,
    )


def _check_depth(data: bytes) -> None:
    """Refuse what is nested deeper than any recording, before the parser follows it."""
    # Escapes go first, so that each quote left begins or ends a string.
    bare = data.replace(rb"\\", b"").replace(rb"\"", b"")
    marks = bare.translate(None, bytes(set(range(256)) - set(b'[]{}"')))
    outside = b"".join(marks.split(b'"')[::2])
    # Innermost pairs first: what is left after so many rounds is nested deeper, or not balanced.
    for _ in range(MAX_DEPTH):
        outside = outside.replace(b"[]", b"").replace(b"{}", b"")
    if outside:
        raise Damaged("brackets that are nested too deep or not closed")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Damaged("a name stands twice in one object")
    return found


def _no_constant(word: str) -> NoReturn:
    raise Damaged(f"{word}, which is no number of a recording")


def _no_float(word: str) -> NoReturn:
    raise Damaged(f"{_short(word)} where a recording has whole numbers")


# --- from JSON to checked data --------------------------------------------------------------------


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    if type(document["version"]) is not int:
        raise Damaged("version is no whole number")
    if document["version"] == 1:  # before births and cuts
        document = {**document, "births": False, "cuts": False}
        document["refused"] = [
            {**_is(dict, r, "refused"), "is_leftover": False} for r in _list(document, "refused")
        ]
        present = _OF_VERSION_1
    else:
        present = _tables_of(_dict(document, "columns"))
    frames = [_frame(item) for item in _list(document, "frames")]
    stacks = {
        _key(number, "stacks"): tuple(frames[index] for index in _indices(item, len(frames)))
        for number, item in _dict(document, "stacks").items()
    }
    ops = {
        _key(number, "ops"): _is(str, name, "ops")
        for number, name in _dict(document, "ops").items()
    }
    geometries = [_geometry(item) for item in _list(document, "geometries")]
    found: dict[str, Any] = {
        "saves": _is(bool, document["saves"], "saves"),
        "births": _is(bool, document["births"], "births"),
        "cuts": _is(bool, document["cuts"], "cuts"),
        "order": _count(document["order"], "order"),
        "memory": {name: _count(n, "memory") for name, n in _dict(document, "memory").items()},
        "dropped": _dropped(_dict(document, "dropped"), present),
        "ops": ops,
        "stacks": stacks,
        "geometries": geometries,
    }
    for columns in TABLES.values():
        name = columns.in_file
        # The parsed rows go as soon as they are an array, which is several times smaller.
        rows = _table(document.pop(name) if name in present else [], columns.names, name)
        _check_columns(rows, columns.names, name, stacks, ops, len(geometries))
        found[name] = rows
    found["backwards"] = [_backward(item, stacks) for item in _list(document, "backwards")]
    found["refused"] = [_refused(item, stacks) for item in _list(document, "refused")]
    return found


def _tables_of(found: dict[str, Any]) -> set[str]:
    """The tables that a file has, by its `columns`: those of this version, in the same order."""
    known = {columns.in_file: columns for columns in TABLES.values()}
    for name in (*known, *found):
        others = _list(found, name) if name in found or not known[name].may_lack else []
        if not all(type(other) is str for other in others):
            raise Damaged("columns: something else than names")
        if name not in known or (name in found and set(others) != set(known[name].names)):
            raise OtherColumns(_short(clean(name)))
    if any(tuple(found[name]) != known[name].names for name in found):
        raise Damaged("its columns are not those of its version")
    return set(found)


def _dropped(found: dict[str, Any], present: set[str]) -> dict[str, int]:
    lacking = {each.table for each in TABLES.values() if each.in_file not in present}
    if set(found) - lacking != set(COUNTED) - lacking:
        raise Damaged("dropped does not count the kinds of events that the file has")
    return {name: _count(found.get(name, 0), "dropped") for name in COUNTED}


def _is(kind: type, value: Any, name: str) -> Any:
    # type(): a bool is an int to isinstance(), and JSON's types have no subclasses.
    if type(value) is not kind:
        raise Damaged(f"{name}: {type(value).__name__} where {kind.__name__} belongs")
    return value


def _list(document: dict[str, Any], name: str) -> list[Any]:
    found: list[Any] = _is(list, document[name], name)
    return found


def _dict(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = _is(dict, document[name], name)
    return found


def _int(value: Any, name: str, below: int = 2**63) -> int:
    number: int = _is(int, value, name)
    if not -(2**63) <= number < below:
        raise Damaged(f"{name}: a number of more than 64 bits")
    return number


def _count(value: Any, name: str) -> int:
    number = _int(value, name)
    if number < 0:
        raise Damaged(f"{name}: {number} is below 0")
    return number


def _key(text: str, name: str) -> int:
    # int() would also take "+1", "1_0" and digits of other scripts, and so one number twice.
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and str(int(text)) == text):
        raise Damaged(f"{name}: {_short(clean(text))!r} is no number")
    return int(text)


def _indices(item: Any, length: int) -> list[int]:
    numbers: list[int] = _is(list, item, "stacks")
    if set(map(type, numbers)) - {int} or (numbers and not 0 <= min(numbers) <= max(numbers)):
        raise Damaged("stacks: an index that is none")
    if numbers and max(numbers) >= length:
        raise Damaged("stacks: an index of no frame")
    return numbers


def _geometry(item: Any) -> list[int]:
    numbers: list[int] = _is(list, item, "geometries")
    if len(numbers) % 2 == 0 or len(numbers) > 129 or set(map(type, numbers)) - {int}:
        raise Damaged("geometries: not an itemsize, sizes and as many strides")
    if numbers[0] <= 0 or min(numbers) < 0:
        raise Damaged("geometries: a size below 0")
    itemsize, *others = numbers
    sizes, strides = others[: len(others) // 2], others[len(others) // 2 :]
    reach = sum(max(n - 1, 0) * s for n, s in zip(sizes, strides, strict=True))
    if itemsize * max(math.prod(max(n, 1) for n in sizes), reach, *others, 1) > _MOST:
        raise Damaged("geometries: larger than any tensor")
    return numbers


def _table(rows: Any, columns: Sequence[str], name: str) -> Any:
    _is(list, rows, name)
    if set(map(type, rows)) - {list} or set(map(len, rows)) - {len(columns)}:
        raise Damaged(f"{name}: a row that has not {len(columns)} columns")
    if set(map(type, itertools.chain.from_iterable(rows))) - {int}:
        raise Damaged(f"{name}: something else than whole numbers")
    try:
        return table(rows, len(columns))
    except OverflowError:
        raise Damaged(f"{name}: a number of more than 64 bits") from None


def _check_columns(
    rows: Any,
    columns: Sequence[str],
    name: str,
    stacks: dict[int, Any],
    ops: dict[int, str],
    geometries: int,
) -> None:
    known_stacks = numpy.array(sorted({0, *stacks}), dtype=numpy.int64)
    known_ops = numpy.array(sorted({0, *ops}), dtype=numpy.int64)
    for index, column in enumerate(columns):
        values = rows[:, index]
        if not len(values):
            continue
        sound = True
        if column in STACK_COLUMNS:
            sound = bool(numpy.isin(values, known_stacks).all())
        elif column in OP_COLUMNS:
            sound = bool(numpy.isin(values, known_ops).all())
        elif column == "geometry":
            sound = int(values.min()) >= 0 and int(values.max()) <= geometries
        elif column in _SMALL_NUMBERS and (name, column) != ("flows", "value"):
            sound = int(values.min()) >= 0 and int(values.max()) < _SMALL_NUMBERS[column]
        elif column in {"begin", "end"}:
            sound = int(values.min()) >= 0 and int(values.max()) <= 2**62
        elif column in {"order", "number", "flags", "taints", "time"}:
            sound = int(values.min()) >= 0
        if not sound:
            raise Damaged(f"{name}: a {column} that means nothing")


def _fields(item: Any, kind: Any, name: str) -> dict[str, Any]:
    """The item, if it has the fields of the dataclass and no others."""
    facts: dict[str, Any] = _is(dict, item, name)
    if set(facts) != set(kind.__dataclass_fields__):
        raise Damaged(f"{name}: not the fields that belong there")
    return facts


def _frame(item: Any) -> Frame:
    facts = _fields(item, Frame, "frames")
    for field in ("file", "function", "code"):
        _is(str, facts[field], "frames")
    _is(bool, facts["is_user"], "frames")
    _small(facts["line"], "frames")
    for field in ("column", "end_line", "end_column"):
        if facts[field] is not None:
            _small(facts[field], "frames")
    return Frame(**facts)


def _small(value: Any, name: str) -> None:
    if not 0 <= _int(value, name) < 2**31:
        raise Damaged(f"{name}: {value} is no line or column")


def _event(facts: dict[str, Any], name: str, stacks: dict[int, Any], bools: Sequence[str]) -> None:
    for field in ("order", "thread", "stack"):
        _int(facts[field], name)
    if facts["stack"] not in stacks and facts["stack"] != 0:
        raise Damaged(f"{name}: a stack that means nothing")
    for field in bools:
        _is(bool, facts[field], name)


def _backward(item: Any, stacks: dict[int, Any]) -> Backward:
    facts = _fields(item, Backward, "backwards")
    _event(facts, "backwards", stacks, ("keeps_graph", "creates_graph", "whole"))
    nodes = _table(facts["nodes"], NODES.names, "nodes")
    return Backward(**{**facts, "nodes": nodes})


_REFUSED_BOOLS = (
    *("is_view", "is_leaf", "requires_grad", "base_is_leaf", "is_inference", "is_leftover"),
    "grad_mode",
)


def _refused(item: Any, stacks: dict[int, Any]) -> Refused:
    facts = _fields(item, Refused, "refused")
    _event(facts, "refused", stacks, _REFUSED_BOOLS)
    for field in ("op", "what"):
        _is(str, facts[field], "refused")
    for field in ("storage", "begin", "end", "tensor", "base"):
        _int(facts[field], "refused")
    if facts["creation_meta"] is not None and facts["creation_meta"] not in CREATION_META:
        raise Damaged("refused: a creation_meta that is none")
    chain = []
    for node in _is(list, facts["chain"], "refused"):
        name, thread, sequence = _is(list, node, "refused")
        # A leaf's node has the highest sequence number there is.
        number = _int(sequence, "chain", 2**64)
        chain.append((_is(str, name, "chain"), _int(thread, "chain"), number))
    return Refused(**{**facts, "chain": tuple(chain)})
