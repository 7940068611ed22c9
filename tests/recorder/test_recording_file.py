"""Files that are damaged, or made to harm who reads them: one line, bounded memory, no code.

HYPOTHESIS_PROFILE=fuzz runs 10,000 examples of each property (nox -s fuzz), else some hundred.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_recorder_save import document, eventful

from gradext.recording import file_format
from gradext.recording.recording import Recording

EXAMPLES = 10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 300
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FOLDER = Path(tempfile.mkdtemp())


def read(content: bytes, suffix: str = ".json") -> Recording | str:
    """The recording, or the one line that refuses it; any other exception is a failure."""
    path = FOLDER / f"file{os.getpid()}{suffix}"
    path.write_bytes(content)
    try:
        recording = Recording.load(path)
    except ValueError as error:
        said = str(error)
        assert said.startswith(str(path)), said
        assert said.isprintable(), said
        assert len(said) < len(str(path)) + 260
        return said
    use(recording)
    return recording


def use(recording: Recording) -> None:
    """All that a reader does with a recording works on whatever was accepted."""
    data = recording.data
    for event in (*recording.writes, *recording.views, *recording.refused, *recording.backwards):
        recording.frames(event.stack)
    for row in data.births:
        data.birth(row)
    for row in data.flows:
        data.flow(row)
    for stack in data.stacks():
        assert stack == 0 or stack in data._stacks
    for thread, sequence in data.saves[:8, :2].tolist():
        data.node_stack(thread, sequence)
    again = FOLDER / f"again{os.getpid()}.json"
    recording.save(again)
    assert Recording.load(again).writes == recording.writes
    repr(recording)


def real() -> bytes:
    path = FOLDER / "real.json"
    if not path.exists():
        eventful().save(path)
    return path.read_bytes()


REAL = real()
FACTS: dict[str, Any] = json.loads(REAL)
ZIPPED = gzip.compress(REAL, mtime=0)


def test_the_real_one_is_read() -> None:
    assert isinstance(read(REAL), Recording)
    assert isinstance(read(ZIPPED, ".json.gz"), Recording)


# --- bytes ---


@fuzz
@given(st.lists(st.integers(0, 8 * len(ZIPPED) - 1), min_size=1, max_size=4))
def test_flipped_bits_of_a_compressed_file(bits: list[int]) -> None:
    content = bytearray(ZIPPED)
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    found = read(bytes(content), ".json.gz")
    if isinstance(found, Recording):  # of the header only the time and the like mean nothing
        assert all(bit // 8 < 10 or bits.count(bit) % 2 == 0 for bit in bits)


@fuzz
@given(st.lists(st.integers(0, 8 * len(REAL) - 1), min_size=1, max_size=4))
def test_flipped_bits_of_a_plain_file(bits: list[int]) -> None:
    content = bytearray(REAL)
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    read(bytes(content))


@fuzz
@given(st.sampled_from([".json", ".json.gz"]), st.floats(0, 0.9999))
def test_cut_files(suffix: str, share: float) -> None:
    whole = ZIPPED if suffix.endswith("gz") else REAL
    assert isinstance(read(whole[: int(share * len(whole))], suffix), str)


@fuzz
@given(st.binary(max_size=200), st.sampled_from([".json", ".json.gz"]))
def test_any_bytes(content: bytes, suffix: str) -> None:
    assert isinstance(read(content, suffix), str)


# --- values ---

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30),
    *(0.5, float("nan"), float("inf"), "", "1", "0", "x", "\x1b[31m", "\udc80", [], {}, [[]]),
    *([1], ["1"], [-1], [True], [[1, 2]], {"a": 1}, "x" * 1000, 10**4000),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            found += places(value[index], (*path, index))
    return found


PLACES = places(FACTS)
# Drawn evenly by their first name, so that the many numbers of a table do not hide the others.
BY_NAME: dict[str, list[tuple[Any, ...]]] = {}
for place in PLACES:
    BY_NAME.setdefault(place[0], []).append(place)
CHANGES = st.tuples(
    st.sampled_from(sorted(BY_NAME)).flatmap(lambda name: st.sampled_from(BY_NAME[name])),
    st.sampled_from(["set", "delete", "add", "double", "rename"]),
    st.sampled_from(ODD),
)


def changed(facts: Any, place: tuple[Any, ...], what: str, value: Any) -> None:
    for key in place[:-1]:
        facts = facts[key]
    key = place[-1]
    if what == "set":
        facts[key] = value
    elif what == "delete":
        del facts[key]
    elif isinstance(facts, list):
        facts.insert(key, facts[key] if what == "double" else value)
    elif what == "add":
        facts[f"{key}x"] = value
    else:
        facts[value if isinstance(value, str) else str(value)[:20]] = facts.pop(key)


@fuzz
@given(st.lists(CHANGES, min_size=1, max_size=3))
def test_changed_values(changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    facts = json.loads(REAL)
    for change in changes:
        try:
            changed(facts, *change)
        except (LookupError, TypeError, AttributeError):
            continue  # an earlier change has taken the place away
    sys.set_int_max_str_digits(0) if hasattr(sys, "set_int_max_str_digits") else None
    try:
        text = json.dumps(facts)
    finally:
        sys.set_int_max_str_digits(4300) if hasattr(sys, "set_int_max_str_digits") else None
    read(text.encode())


def with_facts(**facts: Any) -> bytes:
    return json.dumps({**json.loads(REAL), **facts}).encode()


def first_row(table: str, column: str, value: Any) -> bytes:
    rows = [list(row) for row in FACTS[table]]
    rows[0][FACTS["columns"][table].index(column)] = value
    return with_facts(**{table: rows})


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "version true": (lambda: with_facts(version=True), "version is no whole number"),
    "version 0": (lambda: with_facts(version=0, gradext="0.0.9"), "format 0, .* gradext 0.0.9, "),
    "version -1": (lambda: with_facts(version=-1), "format -1, this gradext reads 1 to 2"),
    "version 10^30": (lambda: with_facts(version=10**30), "of an absurd number"),
    "version text": (lambda: with_facts(version="2"), "version is no whole number"),
    "writer with escapes": (
        lambda: with_facts(version=9, gradext="\x1b]0;x\x07\n9"),
        r"gradext \?\]0;x\? 9, which wrote it",
    ),
    "stack index -1": (
        lambda: with_facts(stacks={**FACTS["stacks"], "1": [-1]}),
        "stacks: an index that is none",
    ),
    "stack index true": (lambda: with_facts(stacks={"0": [True]}), "stacks: an index that is none"),
    "stack index too high": (
        lambda: with_facts(stacks={**FACTS["stacks"], "1": [10**6]}),
        "stacks: an index of no frame",
    ),
    "rows of strings": (
        lambda: with_facts(flags=[[str(n) for n in range(7)]]),
        "flags: something else than whole numbers",
    ),
    "a row of booleans": (lambda: with_facts(flags=[[True] * 7]), "flags: something else"),
    "a row that is a string": (lambda: with_facts(flags=["1234567"]), "flags: a row that has not"),
    "a number of 65 bits": (lambda: first_row("writes", "storage", 2**64), "more than 64 bits"),
    "an op that is not there": (lambda: first_row("writes", "op", 10**6), "a op that means"),
    "a stack that is not there": (lambda: first_row("writes", "stack", 10**6), "a stack that"),
    "a geometry that is not there": (lambda: first_row("writes", "geometry", 99), "a geometry"),
    "bytes below 0": (lambda: first_row("writes", "begin", -1), "a begin that means nothing"),
    "a creation_meta of 7": (lambda: first_row("views", "creation_meta", 7), "creation_meta"),
    "an order below 0": (lambda: first_row("views", "order", -5), "an? order that means"),
    "a huge tensor": (
        lambda: with_facts(geometries=[[4, 2**40, 2**40, 1, 1]]),
        "geometries: larger than any tensor",
    ),
    "strides without sizes": (lambda: with_facts(geometries=[[4, 2]]), "as many strides"),
    "a line that is none": (
        lambda: with_facts(frames=[{**FACTS["frames"][0], "line": -3}, *FACTS["frames"][1:]]),
        "frames: -3 is no line",
    ),
    "a file name that is a list": (
        lambda: with_facts(frames=[{**FACTS["frames"][0], "file": []}, *FACTS["frames"][1:]]),
        "frames: list where str belongs",
    ),
    "ops by a number written twice": (
        lambda: with_facts(ops={**FACTS["ops"], "01": "x"}),
        "ops: '01' is no number",
    ),
    "columns in another order": (
        lambda: with_facts(
            columns={**FACTS["columns"], "writes": FACTS["columns"]["writes"][::-1]}
        ),
        "its columns are not those",
    ),
    "a column fewer": (
        lambda: with_facts(
            gradext="0.0.7", columns={**FACTS["columns"], "views": FACTS["columns"]["views"][:-1]}
        ),
        "other columns in its table views than this .* open it with gradext 0.0.7, which wrote it$",
    ),
    "a column more": (
        lambda: with_facts(
            gradext="9.1", columns={**FACTS["columns"], "born": [*FACTS["columns"]["born"], "age"]}
        ),
        "other columns in its table born than this .* open it with gradext 9.1, which wrote it$",
    ),
    "a column of another name, by nobody": (
        lambda: with_facts(
            gradext=None,
            columns={**FACTS["columns"], "flags": ["thing", *FACTS["columns"]["flags"][1:]]},
        ),
        "other columns in its table flags .* open it with another gradext, which wrote it$",
    ),
    "columns that are numbers": (
        lambda: with_facts(columns={**FACTS["columns"], "writes": list(range(15))}),
        "damaged: columns: something else than names",
    ),
    "columns that are a list": (lambda: with_facts(columns=[]), "damaged: columns: list where"),
    "a table without columns": (lambda: with_facts(columns={}), "damaged: no 'writes'"),
    "NaN": (lambda: REAL.replace(b'"order": ', b'"order": NaN, "x": ', 1), "NaN, which is no"),
    "a fraction": (lambda: with_facts(order=0.5), "0.5 where a recording has whole numbers"),
    "twice the same name": (lambda: b'{"version": 2, ' + REAL[1:], "a name stands twice"),
    "deep nesting": (lambda: b"[" * 10**6 + b"]" * 10**6, "nested too deep"),
    "deep nesting in a field": (
        lambda: REAL[:-1] + b', "x": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}",
        "nested too deep",
    ),
    "deep nesting behind a quote that is escaped": (
        lambda: REAL[:-1] + rb', "\"[": "\\", "x": ' + b"[" * 999 + b"]" * 999 + b"}",
        "nested too deep",
    ),
    "other encoding": (lambda: REAL.decode().encode("utf-16"), "no gradext recording"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    content, said = REFUSED[name]
    made = content()
    found = read(made)
    assert isinstance(found, str)
    assert re.search(said, found), found
    if len(made) < 10**6:  # the same behind gzip
        assert read(gzip.compress(made), ".json.gz") == found.replace(".json ", ".json.gz ", 1)


def test_brackets_in_strings_are_no_nesting() -> None:
    frame = {**FACTS["frames"][0], "code": '"\\[' * 500 + "{" * 500}
    found = read(with_facts(frames=[frame, *FACTS["frames"][1:]]))
    assert isinstance(found, Recording)


# --- sizes ---

PEAK = """
import resource, sys, time
from gradext.recording.recording import Recording
Recording  # all that reading needs is imported
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Recording.load(sys.argv[1])
    print("read")
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def peak(path: Path) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    said, megabytes = done.stdout.splitlines()
    return said, int(megabytes)


def bomb(path: Path, piece: bytes, times: int) -> None:
    with gzip.open(path, "wb") as file:
        file.write(b'{"format": "gradext-recording", "version": 2, "writes": [')
        for _ in range(times // 1000):
            file.write(piece * 1000)
        file.write(b"0]}")


@pytest.mark.parametrize("piece", [b"[],", b'{"a":0},', b" ", b'"",'], ids=repr)
def test_a_bomb_is_stopped_while_it_is_decompressed(piece: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bomb.json.gz"
    bomb(path, piece, 300 * 2**20 // len(piece))
    assert path.stat().st_size < 2**21
    said, megabytes = peak(path)
    assert "grows more than 64 times" in said
    assert megabytes < 300


def test_a_name_in_the_header_without_end(tmp_path: Path) -> None:
    path = tmp_path / "header.json.gz"
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (32 << 20))
    said, megabytes = peak(path)
    assert "end too early" in said
    assert megabytes < 60


def test_members_behind_the_first(tmp_path: Path) -> None:
    assert "something behind" in str(read(ZIPPED + ZIPPED, ".json.gz"))
    assert "something behind" in str(read(ZIPPED + b"\0", ".json.gz"))


def test_the_largest_text() -> None:
    path = FOLDER / "limited.json"
    path.write_bytes(REAL)
    assert Recording.load(path, max_bytes=len(REAL)).writes
    with pytest.raises(ValueError, match=rf"larger than {len(REAL) - 1} bytes; load.*max_bytes"):
        Recording.load(path, max_bytes=len(REAL) - 1)


def test_a_real_recording_grows_far_less_than_the_limit() -> None:
    from events import recorded

    x = torch.zeros(3)

    def program() -> None:
        for _ in range(20000):
            x.add_(1)

    path = FOLDER / "grown.json"
    recorded(program).save(path)
    text = path.read_bytes()
    growth = len(text) / len(zlib.compress(text))
    assert growth < file_format.MAX_GROWTH / 2


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Recording.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="not a regular file"):
        Recording.load(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="not a regular file"):
        Recording.load("/dev/zero")


def test_no_code_is_run(tmp_path: Path) -> None:
    """Names of modules, pickles and the like in a file are text."""
    random.seed(0)
    marker = tmp_path / "ran"
    evil = f"__import__('os').mknod({str(marker)!r})"
    facts = document()
    facts["frames"] = [
        {
            "file": str(tmp_path / "x.py"),
            "line": 1,
            "function": evil,
            "code": evil,
            "column": 0,
            "end_line": 1,
            "end_column": 1,
            "is_user": True,
        }
    ]
    facts["stacks"] = {"0": [], "1": [0]}
    facts["ops"] = {"0": "", "1": evil}
    facts["__reduce__"] = facts["py/object"] = evil
    (tmp_path / "x.py").write_text(evil)
    assert isinstance(read(json.dumps(facts).encode()), Recording)
    assert not marker.exists()
