"""inspect_tree(): every tensor in reach, under the path one would write, and who shares what."""

from __future__ import annotations

import collections
import dataclasses
import gc
import re
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from facts import read_everything
from transformers import GPT2Config, GPT2LMHeadModel

import gradext
from gradext import StateTree, TensorState


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Link:
    value: Any
    following: Any = None
    unset: Any = dataclasses.field(init=False)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)
        self.register_buffer("mask", torch.ones(3))
        self.register_parameter("absent", None)
        self.cache = {16: torch.ones(1), "k": [torch.ones(2)]}
        self.plain = torch.ones(4)
        self.name = "block"
        self.layers = torch.nn.ModuleList([torch.nn.LayerNorm(2)])
        self.itself = [self]


def paths(obj: object) -> list[str]:
    return [path for path, _ in gradext.inspect_tree(obj)]


def table(tree: StateTree) -> tuple[list[list[str]], list[str]]:
    """The printed tree: its rows as cells, and the lines of its legend."""
    body, _, legend = str(tree).partition("\n\n")
    heading, *rows = body.split("\n")
    names = ["tensor", "type", "grad", "version", "storage", "remarks"]
    starts = [heading.index(name) for name in names]
    ends = [*starts[1:], None]
    cells = [
        [row[start:end].strip() for start, end in zip(starts, ends, strict=True)] for row in rows
    ]
    return cells, legend.split("\n")


def test_a_module() -> None:
    assert paths(Block()) == [
        "mask",
        "linear.weight",
        "linear.bias",
        "layers.0.weight",
        "layers.0.bias",
        "cache[16]",
        "cache['k'][0]",
        "plain",
    ]


def test_the_state_at_each_path_is_inspect_s() -> None:
    block = Block()
    tree = gradext.inspect_tree(block)
    assert isinstance(tree, list)
    found = dict(tree)
    assert all(type(state) is TensorState for state in found.values())
    assert found["linear.weight"] == gradext.inspect(block.linear.weight)
    assert found["cache[16]"] == gradext.inspect(block.cache[16])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda t: t, ["(tensor)"]),
        (lambda t: [t, 3, [t]], ["[0]", "[2][0]"]),
        (lambda t: (t, "x", None), ["[0]"]),
        (lambda t: {"a": t, 3: t, ("x", 1): {"b": t}}, ["['a']", "[3]", "[('x', 1)]['b']"]),
        (lambda t: OrderedDict(z=t, a=t), ["['z']", "['a']"]),
        (lambda t: collections.ChainMap({"a": t}), ["['a']"]),
        (lambda t: Pair(t, [t]), ["first", "second[0]"]),
        (lambda t: [Pair(1, t)], ["[0].second"]),
        (lambda t: {t}, ["{…}"]),
        (lambda t: {"s": frozenset([t])}, ["['s']{…}"]),
        (lambda t: Link(t, Link([t])), ["value", "following.value[0]"]),
        (lambda t: torch.nn.ParameterDict({"w": t}), ["w"]),
        (lambda t: torch.nn.ParameterList([t]), ["0"]),
        (lambda t: torch.nn.Sequential(torch.nn.ReLU()), []),
        (lambda t: [], []),
        (lambda t: [numpy.ones(2), "text", object()], []),
    ],
)
def test_containers(make, expected: list[str]) -> None:
    assert paths(make(torch.nn.Parameter(torch.ones(2)))) == expected


def test_a_dataclass_without_one_of_its_fields() -> None:
    link = Link(torch.ones(1))
    assert not hasattr(link, "unset")
    assert paths(link) == ["value"]


def test_a_tensor_s_own_gradient_and_base_are_not_walked() -> None:
    t = torch.ones(3, requires_grad=True)
    t.sum().backward()
    assert paths([t, t[1:]]) == ["[0]", "[1]"]


def test_cycles_end() -> None:
    t = torch.ones(2)
    loop: list[Any] = [t]
    loop.append(loop)
    assert paths(loop) == ["[0]"]
    both: dict[str, Any] = {"t": t}
    both["other"] = {"back": both, "t": t}
    assert paths(both) == ["['t']", "['other']['t']"]
    link = Link(t)
    link.following = link
    assert paths(link) == ["value"]


def test_a_shared_tensor_is_listed_at_each_path_a_shared_container_once() -> None:
    t = torch.ones(2)
    inner = [t]
    assert paths([inner, inner, t]) == ["[0][0]", "[2]"]
    tree = gradext.inspect_tree([t, t])
    assert tree[0][1] == tree[1][1]


def test_a_mapping_whose_items_are_its_own_code_is_not_asked() -> None:
    class Fresh(collections.abc.Mapping):
        def __getitem__(self, key):
            raise AssertionError

        __iter__ = __len__ = __getitem__

    with pytest.raises(TypeError, match="expected a module, container, dataclass or tensor"):
        gradext.inspect_tree(Fresh())
    assert paths([Fresh(), torch.ones(1)]) == ["[1]"]


@pytest.mark.parametrize("kind", ["list", "dict", "dataclass"])
def test_a_very_deep_nesting(kind: str) -> None:
    wrap = {"list": lambda o: [o], "dict": lambda o: {0: o}, "dataclass": lambda o: Link(None, o)}
    step = {"list": "[0]", "dict": "[0]", "dataclass": "following"}[kind]
    nested: Any = [torch.ones(3)]
    for _ in range(5000):
        nested = wrap[kind](nested)
    ((path, state),) = gradext.inspect_tree(nested)
    expected = ".".join([step] * 5000) if kind == "dataclass" else step * 5000
    assert path == f"{expected}[0]"
    assert state.shape == (3,)


def test_the_order_is_the_order_of_first_sight() -> None:
    tensors = [torch.ones(n) for n in range(1, 6)]
    tree = gradext.inspect_tree([tensors[0], [tensors[1], {"a": tensors[2]}], tensors[3:]])
    assert [state.shape for _, state in tree] == [(n,) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (3, "builtins.int"),
        (None, "builtins.NoneType"),
        ("text", "builtins.str"),
        (numpy.ones(2), "numpy.ndarray"),
        (Link, "builtins.type"),
    ],
    ids=["int", "None", "str", "ndarray", "class"],
)
def test_bad_input_is_one_line(bad: object, name: str) -> None:
    with pytest.raises(TypeError) as caught:
        gradext.inspect_tree(bad)
    assert str(caught.value) == (
        f"gradext.inspect_tree: expected a module, container, dataclass or tensor, got {name}"
    )


def test_reading_a_tree_changes_nothing_in_it() -> None:
    block = Block()
    tensors = [*block.parameters(), *block.buffers(), block.plain]
    before = [(t._version, t._use_count()) for t in tensors]
    size = len(vars(block))
    str(gradext.inspect_tree(block))
    gc.collect()
    assert [(t._version, t._use_count()) for t in tensors] == before
    assert len(vars(block)) == size


# --- what is printed ----------------------------------------------------------------------------


def test_the_table_names_who_shares_what() -> None:
    base = torch.ones(4)
    tree = gradext.inspect_tree(
        {
            "base": base,
            "view": base[1:],
            "again": base,
            "detached": base.detach(),
            "data": base.data,
            "other": torch.ones(4, requires_grad=True),
        }
    )
    rows, _ = table(tree)
    assert rows == [
        ["['base']", "float32[4] cpu", "no", "0 C1", "S1", ""],
        ["['view']", "float32[3] cpu", "no", "0 C1", "S1", "view of ['base']"],
        ["['again']", "float32[4] cpu", "no", "0 C1", "S1", "same tensor as ['base']"],
        ["['detached']", "float32[4] cpu", "no", "0 C1", "S1", ""],
        ["['data']", "float32[4] cpu", "no", "0", "S1", ""],
        ["['other']", "float32[4] cpu", "leaf", "0", "", ""],
    ]


def test_each_group_has_its_own_mark() -> None:
    a, b = torch.ones(2), torch.ones(2)
    a.add_(1)
    rows, _ = table(gradext.inspect_tree([a, b, a[1:], b[1:]]))
    assert [row[3:5] for row in rows] == [
        ["1 C1", "S1"],
        ["0 C2", "S2"],
        ["1 C1", "S1"],
        ["0 C2", "S2"],
    ]


def test_remarks() -> None:
    leaf = torch.ones(4, requires_grad=True)
    base = leaf * 1
    stale, other = base[:2], base[2:]
    other.mul_(2)
    with torch.no_grad():
        no_grad_view = base[:1]
    with torch.inference_mode():
        inference = torch.ones(2)
    freed = torch.ones(3)
    freed.untyped_storage().resize_(0)
    rows, legend = table(
        gradext.inspect_tree([leaf, base, stale, no_grad_view, inference, freed, other[:1]])
    )
    assert [(row[2], row[5]) for row in rows] == [
        ("leaf", ""),
        ("node", ""),
        ("node", "view of [1], grad_fn out of date"),
        ("leaf", "view of [1] made in no_grad_mode"),  # torch's word: it requires grad, has no node
        ("no", "inference tensor"),
        ("no", "storage freed"),
        ("node", "view of [1]"),
    ]
    assert rows[4][3] == "-"
    assert any(line.startswith("version -") and "inference tensor" in line for line in legend)


def test_the_legend_explains_the_marks_that_occur_and_no_other() -> None:
    def legend(obj: object) -> str:
        return "\n".join(table(gradext.inspect_tree(obj))[1])

    plain = legend([torch.ones(3)])
    assert plain.split("\n") == [
        "1 path, 1 tensor, 1 storage, 12 bytes outside views",
        "no        does not require grad",
    ]
    t = torch.ones(3, requires_grad=True)
    shared = legend([t, t, t * 1])
    assert shared.startswith("3 paths, 2 tensors, 2 storages, 24 bytes outside views\nS1, S2 …")
    assert "same storage" in shared
    assert "same version counter" in shared
    assert "requires grad, and backward() fills its .grad" in shared
    assert "requires grad, and has a grad_fn" in shared
    assert "does not require grad" not in shared
    assert "inference" not in shared
    data_only = legend([t, t.data])
    assert "same storage" in data_only
    assert "same version counter" not in data_only


def test_nothing_to_show() -> None:
    tree = gradext.inspect_tree([])
    assert tree == []
    assert str(tree) == "no tensors"
    assert tree._repr_html_() == "<p>no tensors</p>"


def test_a_freed_storage_is_shown_among_the_rest() -> None:
    freed = torch.ones(3)
    freed.untyped_storage().resize_(0)
    tree = gradext.inspect_tree({"freed": freed, "here": torch.ones(1)})
    assert [state.storage_is_freed for _, state in tree] == [True, False]
    assert [row[5] for row in table(tree)[0]] == ["storage freed", ""]


def test_the_html_escapes_paths() -> None:
    text = gradext.inspect_tree({"<script>": torch.ones(1), "a&b": torch.ones(1)})._repr_html_()
    assert "&lt;script&gt;" in text
    assert "a&amp;b" in text
    assert "<script" not in text
    assert text.count("<tr>") == 3


def test_a_path_that_looks_like_markup_is_printed_as_it_is() -> None:
    tree = gradext.inspect_tree({"[bold]": torch.ones(1), "[/]": torch.ones(1)})
    assert "['[bold]']" in str(tree)
    assert "['[/]']" in str(tree)


# --- a real model -------------------------------------------------------------------------------


def gpt2(tie: bool) -> GPT2LMHeadModel:
    config = GPT2Config(
        n_layer=2,
        n_embd=16,
        n_head=2,
        vocab_size=64,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tie,
    )
    return GPT2LMHeadModel(config)


def test_tied_gpt2_shows_the_tie() -> None:
    model = gpt2(tie=True)
    assert model.lm_head.weight is model.transformer.wte.weight
    tree = gradext.inspect_tree(model)
    rows = {row[0]: row for row in table(tree)[0]}
    embedding, head = rows["transformer.wte.weight"], rows["lm_head.weight"]
    assert head[5] == "same tensor as transformer.wte.weight"
    assert embedding[4] == head[4] == "S1"
    assert re.fullmatch(r"\d+ C1", embedding[3])
    assert embedding[3] == head[3]
    # Nothing else is shared, and every parameter is listed under the name that torch gives it.
    assert {path for path, row in rows.items() if row[4]} == {
        "transformer.wte.weight",
        "lm_head.weight",
    }
    named = dict(model.named_parameters(remove_duplicate=False))
    assert named.keys() <= rows.keys()
    for path, parameter in named.items():
        assert dict(tree)[path] == gradext.inspect(parameter)
    assert str(tree).split("\n")[-1].startswith(("leaf ", "no "))


def test_untied_gpt2_shows_none() -> None:
    rows = {row[0]: row for row in table(gradext.inspect_tree(gpt2(tie=False)))[0]}
    for path in ("lm_head.weight", "transformer.wte.weight"):
        assert "C" not in rows[path][3]
        assert rows[path][4:] == ["", ""]


def test_gpt2_trains_the_same_after_it_was_inspected() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 64, (2, 8))
    gradients = []
    for read in (False, True):
        torch.manual_seed(1)
        model = gpt2(tie=True).eval()
        output = model(tokens, labels=tokens)
        if read:
            str(gradext.inspect_tree(model))
            read_everything(output.logits)
            assert "logits" in "".join(paths(output))
        output.loss.backward()
        gradients.append(model.transformer.wte.weight.grad)
    assert torch.equal(*gradients)
