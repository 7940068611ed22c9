"""The columns of the tables of events: from one list in C++, read by name in Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy
import pytest
import torch
from events import recorded

import gradext
from gradext import _C
from gradext.diagnosis.model import Frame
from gradext.recording import events, file_format, tables
from gradext.recording.recording import Recording
from gradext.recording.tables import Data, empty_snapshot, table

PACKAGE = Path(gradext.__file__).parent
TABLES = {**events.TABLES, "nodes": events.NODES}


def test_python_names_every_table_of_the_compiled_part() -> None:
    assert {name: table.names for name, table in TABLES.items()} == _C.EVENT_COLUMNS


@pytest.mark.parametrize("table", [*TABLES])
def test_a_column_is_where_its_name_stands(table: str) -> None:
    found = TABLES[table]
    assert [getattr(found, name) for name in found.names] == list(range(len(found)))


def test_rows_are_as_wide_as_their_names() -> None:
    x = torch.ones(3, requires_grad=True)

    def program() -> None:
        h = x * 2
        h.add_(1)
        h.sum().backward()

    data = recorded(program).data
    for name, found in TABLES.items():
        if name != "nodes":
            assert getattr(data, name).shape[1] == len(found)
    assert data.backwards[0].nodes.shape[1] == len(events.NODES)


def test_values_stand_in_their_columns() -> None:
    x = torch.zeros(4, 4)
    part = x[1]

    data = recorded(lambda: part.add_(1)).data
    (row,) = data.writes
    state = gradext.inspect(part)
    assert row[events.WRITES.counter] == state.version_counter
    assert row[events.WRITES.storage] == state.storage
    assert (row[events.WRITES.begin], row[events.WRITES.end]) == (16, 32)
    assert (row[events.WRITES.version_before], row[events.WRITES.version_after]) == (0, 1)
    assert row[events.WRITES.argument] == 0
    assert data.ops[int(row[events.WRITES.op])] == "aten::add_"


# (what the compiled part says, what of it is told)
OTHERS = {
    "a column fewer": (lambda names: names[:-1], "parent"),
    "a column more": (lambda names: (*names, "colour"), "colour"),
    "another name": (lambda names: ("who", *names[1:]), "tensor, who"),
    "one name twice": (lambda names: (*names, names[0]), "one twice"),
    "no such table": (lambda names: (), "order, parent, stack, taints, tensor, thread, value"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_columns_in_the_compiled_part_are_an_import_error(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, told = OTHERS[what]
    monkeypatch.setitem(_C.EVENT_COLUMNS, "flags", change(_C.EVENT_COLUMNS["flags"]))
    message = (
        "gradext: the table of flags has other columns in the compiled part than in "
        f"gradext/recording/events.py ({told}); build gradext again"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        type(events.FLAGS)("flags")


def test_columns_in_another_order_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = _C.EVENT_COLUMNS["saves"][::-1]
    monkeypatch.setitem(_C.EVENT_COLUMNS, "saves", names)
    turned = type(events.SAVES)("saves")
    row = numpy.arange(len(names))
    assert [names[row[getattr(turned, name)]] for name in names] == [*names]


class _Sightings(events.Columns):
    """A kind of event that no version has."""

    order: int
    tensor: int
    stack: int
    op: int


@pytest.fixture
def sightings(monkeypatch: pytest.MonkeyPatch) -> events.Columns:
    """The table of a new kind of event, made known as docs/architecture.md says: in events.py."""
    monkeypatch.setitem(_C.EVENT_COLUMNS, "sightings", ("order", "tensor", "stack", "op"))
    columns = _Sightings("sightings", may_lack=True)
    monkeypatch.setitem(events.TABLES, "sightings", columns)
    monkeypatch.setattr(tables, "COUNTED", (*events.COUNTED, "sightings"))
    monkeypatch.setattr(file_format, "COUNTED", (*events.COUNTED, "sightings"))
    return columns


def with_rows(rows: list[list[int]]) -> Recording:
    snapshot = {**empty_snapshot(), "sightings": table(rows, 4), "ops": {7: "aten::seen"}}
    recording = Recording()
    frame = Frame(file="train.py", line=3, function="step", code="see(x)", is_user=True)
    recording._data = Data(snapshot, {0: (), 5: (frame,)})
    return recording


def test_a_new_kind_of_event_is_saved_and_loaded(sightings: events.Columns, tmp_path: Path) -> None:
    with_rows([[1, 9, 5, 7], [2, 9, 0, 7]]).save(tmp_path / "a.json")
    data = Recording.load(tmp_path / "a.json").data
    assert data.tables["sightings"].tolist() == [[1, 9, 5, 7], [2, 9, 0, 7]]
    facts = data.facts(sightings, data.tables["sightings"][0])
    assert facts == {"order": 1, "tensor": 9, "stack": 5, "op": "aten::seen"}
    assert data.frames(5)[0].code == "see(x)"
    assert data.dropped["sightings"] == 0


@pytest.mark.parametrize(("row", "said"), [([1, 9, 6, 7], "stack"), ([1, 9, 5, 8], "op")])
def test_its_numbers_are_checked_as_all_are(
    row: list[int], said: str, sightings: events.Columns, tmp_path: Path
) -> None:
    with_rows([row]).save(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text("utf-8")
    (tmp_path / "a.json").write_text(text.replace('"6": []', '"4": []'), "utf-8")
    with pytest.raises(ValueError, match=f"sightings: a {said} that means nothing"):
        Recording.load(tmp_path / "a.json")


def test_a_file_from_before_the_kind_has_none(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    x = torch.zeros(3)
    recorded(lambda: x.add_(1)).save(tmp_path / "old.json")
    request.getfixturevalue("sightings")
    data = Recording.load(tmp_path / "old.json").data
    assert (len(data.writes), len(data.tables["sightings"])) == (1, 0)
    assert data.dropped["sightings"] == 0


def test_a_file_with_a_kind_that_is_not_known_names_its_writer(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request.getfixturevalue("sightings")
    with_rows([[1, 9, 5, 7]]).save(tmp_path / "new.json")
    monkeypatch.delitem(events.TABLES, "sightings")
    with pytest.raises(ValueError, match=r"table sightings than this .* open it with gradext"):
        Recording.load(tmp_path / "new.json")


def bare_numbers(text: str) -> list[int]:
    """The lines that take a column of an array by a number: `rows[:, 3]`, `rows[chosen, 0]`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Tuple)
        and len(node.slice.elts) == 2
        and isinstance(node.slice.elts[1], ast.Constant)
        and isinstance(node.slice.elts[1].value, int)
    ]


def test_no_column_is_taken_by_a_bare_number() -> None:
    assert bare_numbers("a[:, 1]\nb[:, x]\nc[chosen, 14] & 3\nd[1]\n") == [1, 3]
    files = [*(PACKAGE / "recording").rglob("*.py"), *(PACKAGE / "rules").rglob("*.py")]
    assert len(files) > 20
    assert {file.name: bare_numbers(file.read_text("utf-8")) for file in files} == {
        file.name: [] for file in files
    }


def test_flags_are_distinct_bits() -> None:
    for flags in (*_C.EVENT_FLAGS.values(), _C.SUSPICIONS):
        assert len(set(flags.values())) == len(flags)
        assert all(bit > 0 and bit & (bit - 1) == 0 for bit in flags.values())


def test_flags_say_what_happened() -> None:
    x = torch.ones(3)
    with torch.inference_mode():
        y = torch.ones(3)
    w = torch.ones(3, requires_grad=True)

    def program() -> None:
        x.data.add_(1)
        with torch.inference_mode():
            y.add_(1)
        with torch.no_grad():
            kept = w * 2
            kept.numel()

    data = recorded(program).data
    shared, inference = (data.write(row) for row in data.writes)
    assert (shared.shared_storage, shared.is_inference, shared.grad_mode) == (True, False, True)
    assert (inference.shared_storage, inference.is_inference) == (False, True)
    assert [flow.op for flow in data.flows_with(events.NO_GRAD)] == ["aten::mul"]
    assert [flow.op for flow in data.flows_with(events.IN_INFERENCE)] == []
