"""A Recording as a file, and as text: nothing is lost, and a wrong file gets one clear line."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from events import recorded, run_program

import gradext
from gradext.recording.events import (
    BIRTHS,
    FLAGS,
    FLOWS,
    MOMENTS,
    SAVES,
    USES,
    VIEWS,
    WRITES,
    Write,
)
from gradext.recording.recording import Mutations, Recording
from gradext.recording.tables import Data, empty_snapshot


def eventful() -> gradext.Recording:
    """At least one event of every kind."""
    x = torch.ones(4, 2)
    w = torch.ones(3, requires_grad=True)

    def program() -> None:
        x[:, 1].mul_(2)
        x.data.zero_()
        torch.autograd.graph.increment_version(x)
        with torch.inference_mode():
            torch.ones(2).neg_()
        w.unbind()
        with torch.no_grad():
            w[0]
        y = w.sin()
        (g,) = torch.autograd.grad(y.sum(), w, create_graph=True)
        g.sum().backward()
        with pytest.raises(RuntimeError):
            w.add_(1)
        with pytest.raises(RuntimeError):
            y.unbind()[0].mul_(2)

    return recorded(program)


@pytest.fixture(params=["plain", "gz", "light"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Recording, Recording, Path]:
    recording = eventful()
    recording.saves = request.param != "light"
    path = tmp_path / ("recording.json.gz" if request.param == "gz" else "recording.json")
    recording.save(path)
    return recording, Recording.load(path), path


def test_everything_comes_back(pair: tuple[Recording, Recording, Path]) -> None:
    before, after, path = pair
    assert before.writes
    assert before.views
    assert before.backwards
    assert len(before.refused) == 2
    assert after.writes == before.writes
    assert after.views == before.views
    assert after.refused == before.refused
    assert after.saves == before.saves
    assert after.dropped == before.dropped
    assert after.memory == before.memory
    assert after.data.order == before.data.order
    assert numpy.array_equal(after.data.saves, before.data.saves)
    for mine, theirs in zip(before.backwards, after.backwards, strict=True):
        assert dataclasses.replace(mine, nodes=None) == dataclasses.replace(theirs, nodes=None)  # type: ignore[arg-type]
        assert numpy.array_equal(mine.nodes, theirs.nodes)
    stacks = {event.stack for event in (*before.writes, *before.views, *before.refused)}
    stacks |= {event.stack for event in before.backwards}
    stacks |= set(before.data.saves[:, 2].tolist())
    for stack in stacks:
        assert after.frames(stack) == before.frames(stack)
        assert after.frames(stack) or stack == 0
    assert path.read_bytes().startswith(b"\x1f\x8b" if path.suffix == ".gz" else b"{")
    assert repr(after) == repr(before)


def test_what_is_loaded_can_be_saved_again(
    pair: tuple[Recording, Recording, Path], tmp_path: Path
) -> None:
    _, after, path = pair
    again = tmp_path / "again.json"
    after.save(again)
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    assert json.loads(again.read_text()) == json.loads(text)


def test_a_loaded_recording_is_over() -> None:
    with pytest.raises(RuntimeError, match="a Recording starts once"):
        loaded_from(document()).start()


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    """Every field of the file stands in docs/recording-format.md, and the columns in its order."""
    path = tmp_path / "recording.json"
    eventful().save(path)
    found = json.loads(path.read_text())
    assert (found["format"], found["version"]) == ("gradext-recording", 2)
    assert found["gradext"] == gradext.__version__
    assert found["torch"] == torch.__version__
    assert found["columns"] == {
        "writes": list(WRITES.names),
        "views": list(VIEWS.names),
        "uses": list(USES.names),
        "moments": list(MOMENTS.names),
        "saved": list(SAVES.names),
        "born": list(BIRTHS.names),
        "flows": list(FLOWS.names),
        "flags": list(FLAGS.names),
    }
    for table in found["columns"]:
        assert {len(row) for row in found[table]} <= {len(found["columns"][table])}
    assert all(found[table] for table in ("writes", "views", "saved", "flows"))
    page = Path(__file__).parents[2] / "docs" / "recording-format.md"
    text = page.read_text(encoding="utf-8")
    names = {*found, *found["dropped"], *found["memory"]}
    names |= {*WRITES.names, *VIEWS.names, *SAVES.names, *BIRTHS.names, *FLAGS.names}
    names |= {*USES.names, *MOMENTS.names}
    names |= {name for name in FLOWS.names if not re.fullmatch("parent[12]|unused", name)}
    for table in ("backwards", "refused", "frames"):
        names |= set(found[table][0])
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert missing == []


def test_a_file_of_the_first_format() -> None:
    """Before births and cuts: everything else is read as it was."""
    facts = document()
    for name in ("born", "flows", "flags", "births", "cuts"):
        del facts[name]
    del facts["dropped"]["births"], facts["dropped"]["flows"]
    recording = loaded_from({**facts, "version": 1})
    assert (recording.saves, recording.births, recording.cuts) == (True, False, False)
    assert recording.data.flows.shape == (0, len(FLOWS))
    assert recording.dropped["births"] == 0


def test_a_file_of_another_process(tmp_path: Path) -> None:
    """Lines and source come from the file, not from this process."""
    run_program(
        """
        import torch, gradext
        x = torch.ones(3)
        with gradext.record() as recording:
            x.neg_()  # there
        recording.save("there.json.gz")
        """,
        tmp_path,
    )
    recording = Recording.load(tmp_path / "there.json.gz")
    (write,) = recording.writes
    frame = recording.frames(write.stack)[0]
    assert (Path(frame.file).name, frame.line) == ("program.py", 5)
    assert frame.code == "x.neg_()  # there"


def document() -> dict[str, Any]:
    return {
        "format": "gradext-recording",
        "version": 2,
        "gradext": "0",
        "torch": "0",
        "saves": True,
        "births": True,
        "cuts": True,
        "order": 0,
        "dropped": {
            "writes": 0,
            "views": 0,
            "saves": 0,
            "backwards": 0,
            "births": 0,
            "flows": 0,
        },
        "memory": {},
        "ops": {},
        "geometries": [],
        "columns": {
            "writes": list(WRITES.names),
            "views": list(VIEWS.names),
            "saved": list(SAVES.names),
            "born": list(BIRTHS.names),
            "flows": list(FLOWS.names),
            "flags": list(FLAGS.names),
        },
        "writes": [],
        "views": [],
        "saved": [],
        "born": [],
        "flows": [],
        "flags": [],
        "backwards": [],
        "refused": [],
        "frames": [],
        "stacks": {},
    }


def loaded_from(facts: Any) -> Recording:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.json"
        path.write_text(json.dumps(facts))
        return Recording.load(path)


def test_the_smallest_file() -> None:
    recording = loaded_from(document())
    assert (recording.writes, recording.views, recording.backwards) == ([], [], [])
    with pytest.raises(RuntimeError, match="a loaded recording knows no living tensor"):
        recording.mutations(torch.ones(3))


def without(name: str) -> dict[str, Any]:
    facts = document()
    del facts[name]
    return facts


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [1, 2], 'no gradext recording .no "format": "gradext-recording" in it'),
    "another format": (lambda: {"format": "x"}, "no gradext recording"),
    "newer": (
        lambda: {**document(), "version": 3, "gradext": "9.9"},
        r"has recording format 3, this gradext reads 1 to 2; open it with gradext 9\.9, ",
    ),
    "no version": (lambda: without("version"), "no gradext recording .damaged"),
    "no writes": (lambda: without("writes"), "no gradext recording .damaged"),
    "no stacks": (lambda: without("stacks"), "no gradext recording .damaged"),
    "short rows": (lambda: {**document(), "writes": [[1, 2]]}, "no gradext recording .damaged"),
    "words for numbers": (
        lambda: {**document(), "saved": [["a"] * 5]},
        "no gradext recording .damaged",
    ),
    "a frame without a line": (
        lambda: {**document(), "frames": [{"file": "x"}]},
        "no gradext recording .damaged",
    ),
    "a stack of frames that are not there": (
        lambda: {**document(), "stacks": {"1": [7]}},
        "no gradext recording .damaged",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_recording(name: str) -> None:
    facts, text = BAD[name]
    with pytest.raises(ValueError, match=text) as error:
        loaded_from(facts())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"recording{suffix}"
    eventful().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="is no gradext recording") as error:
        Recording.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"\x80\x81\xff", b"not json", b"\x1f\x8b\x08\x00junk"])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_file_of_something_else(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"recording{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no gradext recording") as error:
        Recording.load(path)
    assert "\n" not in str(error.value)


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError):
        Recording.load("/nowhere/recording.json")


def test_save_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has not been started"):
        gradext.record().save(tmp_path / "recording.json")
    assert not (tmp_path / "recording.json").exists()


def test_save_while_it_runs(tmp_path: Path) -> None:
    x = torch.ones(3)
    with gradext.record() as recording:
        x.neg_()
        recording.save(tmp_path / "recording.json")
        x.cos_()
    assert [w.op for w in Recording.load(tmp_path / "recording.json").writes] == ["aten::neg_"]


# --- as text ---

TABLE = """\
import torch, gradext
x = torch.zeros(4, 2)
with gradext.record(saves=False) as recording:
    x.add_(torch.ones(2))
    x[:, 1] += torch.ones(4)
    torch._foreach_neg_([x])
    x.data.cos_()
    def f():
        torch.nn.functional.relu(x, inplace=True); y = "a long line that goes on and on"
    f()
    y = torch.empty(3)
print(recording.mutations(x))
print()
print(repr(recording.mutations(y)))
print(len(recording.mutations(x)), [site.line for site in recording.mutations(x).sites()])
"""

PRINTED = """\
version  op                    where                     code
0 -> 1   add_                  program.py:4 in <module>  x.add_(torch.ones(2))
1 -> 2   add_                  program.py:5 in <module>  x[:, 1] += torch.ones(4)
2 -> 3   copy_                 program.py:5 in <module>  x[:, 1] += torch.ones(4)
3 -> 4   _foreach_neg_ (neg_)  program.py:6 in <module>  torch._foreach_neg_([x])
0 -> 1   cos_                  program.py:7 in <module>  x.data.cos_() CELLS\
  through another counter (.data or the like)
4 -> 5   relu_ (clamp_min_)    program.py:9 in f         LONG

no recorded write
6 [4, 5, 5, 6, 7, 9]
"""
LONG = "torch.nn.functional.relu(x, inplace=True); y..."
PRINTED = PRINTED.replace("LONG", LONG).replace(" CELLS", " " * (len(LONG) - len("x.data.cos_()")))


def test_table(tmp_path: Path) -> None:
    done = run_program(TABLE, tmp_path)
    assert done.stdout == PRINTED


def test_the_example_of_the_page(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "recorder.md"
    blocks = page.read_text(encoding="utf-8").split("```")
    assert blocks[1].startswith("python\n")
    (tmp_path / "example.py").write_text(blocks[1].removeprefix("python\n"))
    done = run_program("exec(compile(open('example.py').read(), 'example.py', 'exec'))", tmp_path)
    assert done.stdout == blocks[3].lstrip("\n")


def by_hand(**facts: Any) -> Write:
    base = Write(1, "aten::add_", "", 0, 5, 6, 0, 4, 0, 1, 1, 0, 0, None, *[False] * 5)
    return dataclasses.replace(base, **facts)


REMARKS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "0 -> 1   add_  (no Python frame)"),
    "declared": (
        {"declared_only": True, "version_after": 0},
        "0 -> 0   add_  (no Python frame)        not counted by the op",
    ),
    "inference": ({"is_inference": True}, "none     add_  (no Python frame)"),
    "note": (
        {"is_note": True, "op": "autograd.Function.mark_dirty", "version_after": 0},
        "0 -> 0   autograd.Function.mark_dirty  (no Python frame)        counts a write",
    ),
    "same inner op": ({"inner_op": "aten::add_"}, "0 -> 1   add_  (no Python frame)"),
    "inner op": ({"inner_op": "aten::copy_"}, "0 -> 1   add_ (copy_)  (no Python frame)"),
    "other library": ({"op": "mine::add_"}, "0 -> 1   mine::add_  (no Python frame)"),
}


@pytest.mark.parametrize("name", REMARKS)
def test_row(name: str) -> None:
    facts, expected = REMARKS[name]
    data = Data(empty_snapshot(), {})
    table = str(Mutations([by_hand(**facts)], data))
    assert table.splitlines()[1] == expected


def test_note_below_the_table() -> None:
    data = Data(empty_snapshot(), {})
    assert str(Mutations([], data, "3 older")) == "no recorded write (3 older)"
    assert str(Mutations([by_hand()], data, "3 older")).splitlines()[-1] == "(3 older)"
