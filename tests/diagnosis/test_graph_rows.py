"""gradext.objects.graph_rows: the columns of `_C.graph` are what their names say."""

from __future__ import annotations

import threading

import torch

from gradext import _C
from gradext.objects import graph_rows as columns


def rows_of(tensor):
    rows, whole = _C.graph([tensor])
    assert whole
    return rows


def test_each_column_is_what_its_name_says():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    product = a * b
    rows = rows_of(product.sum())
    assert {len(row) for row in rows} == {6}
    first, second = rows[0], rows[1]
    assert [row[columns.NAME] for row in rows[:2]] == ["SumBackward0", "MulBackward0"]
    assert second[columns.NODE] is product.grad_fn
    assert second[columns.SEQUENCE] == product.grad_fn._sequence_nr()
    assert columns.key(second) == (second[columns.THREAD], second[columns.SEQUENCE])
    assert first[columns.FOLLOWING] == [1]
    below = [rows[at] for at in second[columns.FOLLOWING]]
    assert all(map(columns.is_leaf, below))
    assert [id(row[columns.NODE].variable) for row in below] == [id(a), id(b)]
    assert {row[columns.INNER_OF] for row in rows} == {-1}


def test_a_node_within_copy_slices_names_its_row():
    base = torch.ones(4, requires_grad=True) * 2
    base[:2].mul_(3)
    rows = rows_of(base)
    (outer,) = (at for at, row in enumerate(rows) if row[columns.NAME].endswith("CopySlices"))
    assert [row[columns.NAME] for row in rows if row[columns.INNER_OF] == outer] == ["MulBackward0"]


def test_leaves_and_keys():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    constant = torch.ones(3)
    rows = rows_of(a.exp() * b + constant)
    leaves = columns.leaves(rows)
    assert {id(leaf) for leaf in leaves} == {id(a), id(b)}
    found = list(columns.known_leaves(rows))
    assert [leaf is known for leaf, (known, _) in zip(leaves, found, strict=True)] == [True, True]
    assert all(facts.is_leaf and facts.requires_grad for _, facts in found)
    # A leaf's node has no number of its own.
    assert len(columns.keys(rows)) == len(rows) - len(leaves) == 3
    assert columns.keys(rows) == {columns.key(row) for row in rows} - {None}


def test_a_key_has_the_thread_that_made_the_node():
    made = []
    a = torch.ones(3, requires_grad=True)
    worker = threading.Thread(target=lambda: made.append(a.exp()))
    worker.start()
    worker.join()
    here, there = rows_of(a.exp())[0], rows_of(made[0])[0]
    assert here[columns.NAME] == there[columns.NAME] == "ExpBackward0"
    assert here[columns.THREAD] != there[columns.THREAD]
