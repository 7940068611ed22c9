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
from gradext.recording import columns, events, file_format

PACKAGE = Path(gradext.__file__).parent
TABLES = {
    "writes": columns.WRITES,
    "views": columns.VIEWS,
    "saves": columns.SAVES,
    "births": columns.BIRTHS,
    "flows": columns.FLOWS,
    "flags": columns.FLAGS,
    "nodes": columns.NODES,
}


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
    for name, table in TABLES.items():
        if name != "nodes":
            assert getattr(data, name).shape[1] == len(table)
    assert data.backwards[0].nodes.shape[1] == len(columns.NODES)


def test_values_stand_in_their_columns() -> None:
    x = torch.zeros(4, 4)
    part = x[1]

    data = recorded(lambda: part.add_(1)).data
    (row,) = data.writes
    state = gradext.inspect(part)
    assert row[columns.WRITES.counter] == state.version_counter
    assert row[columns.WRITES.storage] == state.storage
    assert (row[columns.WRITES.begin], row[columns.WRITES.end]) == (16, 32)
    assert (row[columns.WRITES.version_before], row[columns.WRITES.version_after]) == (0, 1)
    assert row[columns.WRITES.argument] == 0
    assert data.ops[int(row[columns.WRITES.op])] == "aten::add_"


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
        f"gradext/recording/columns.py ({told}); build gradext again"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        type(columns.FLAGS)("flags")


def test_columns_in_another_order_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = _C.EVENT_COLUMNS["saves"][::-1]
    monkeypatch.setitem(_C.EVENT_COLUMNS, "saves", names)
    turned = type(columns.SAVES)("saves")
    row = numpy.arange(len(names))
    assert [names[row[getattr(turned, name)]] for name in names] == [*names]


def test_a_file_has_a_table_of_each_kind() -> None:
    assert [*file_format.TABLES.values()] == [
        table.names for name, table in TABLES.items() if name != "nodes"
    ]


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
