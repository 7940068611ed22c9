"""traverse(): the one walk from objects to what they hold, and the three readers that it has."""

from __future__ import annotations

import collections
import types
from typing import Any

import pytest
import torch

from gradext.objects import naming, walk
from gradext.state import traverse as of_state
from gradext.state.traverse import LAST, traverse
from gradext.state.tree import tensors_of


class Thing:
    """What holds is a reader's to say: here, the pairs and costs that it is made with."""

    def __init__(self, *held: tuple[str, Any, int]) -> None:
        self.held = held


def holds(path: str, value: Any, left: int) -> Any:
    for name, child, cost in value.held if type(value) is Thing else ():
        yield f"{path}{name}", child, cost


def ways(*roots: tuple[str, Any], **how: Any) -> list[str]:
    return [way for way, _ in traverse(roots, holds, **how)]


def tensor() -> torch.Tensor:
    return torch.ones(1)


def test_depth_first_by_default_and_nearest_first_where_it_is_asked_for() -> None:
    inner = Thing(("a", tensor(), 1), ("b", tensor(), 1))
    root = Thing(("x", inner, 1), ("y", tensor(), 1))
    assert ways(("r", root), ("s", tensor())) == ["rxa", "rxb", "ry", "s"]
    assert ways(("r", root), ("s", tensor()), nearest_first=True) == ["s", "ry", "rxa", "rxb"]


@pytest.mark.parametrize(
    ("repeats", "expected"),
    [
        ("none", ["x1"]),
        ("wanted", ["x1", "x2", "z"]),
        ("all", ["x1", "x2", "y1", "y2", "z"]),
    ],
)
def test_what_counts_at_each_way_that_leads_to_it(repeats: str, expected: list[str]) -> None:
    shared = tensor()
    inner = Thing(("1", shared, 0), ("2", shared, 0))
    root = Thing(("x", inner, 0), ("y", inner, 0), ("z", shared, 0))
    assert ways(("", root), repeats=repeats) == expected


@pytest.mark.parametrize("nearest_first", [False, True])
@pytest.mark.parametrize("repeats", ["none", "wanted"])
def test_a_cycle_ends(repeats: str, nearest_first: bool) -> None:
    root = Thing()
    root.held = (("a", root, 0), ("b", Thing(("c", root, 0)), 0), ("t", tensor(), 0))
    assert ways(("", root), repeats=repeats, nearest_first=nearest_first) == ["t"]


def test_depth_ends_a_cycle_where_everything_is_repeated() -> None:
    root = Thing()
    root.held = (("t", tensor(), 1), ("a", root, 1))
    assert ways(("", root), repeats="all", depth=3) == ["t", "at", "aat"]


def test_what_was_too_deep_is_entered_again_by_a_shorter_way() -> None:
    inner = Thing(("t", tensor(), 1))
    far = Thing(("1", Thing(("2", inner, 1)), 1))
    root = Thing(("far", far, 0), ("near", inner, 1))
    assert ways(("", root), depth=2) == ["neart"]


def test_ways_that_cost_nothing_are_endless_and_need_no_stack() -> None:
    chain = Thing(("t", tensor(), 0))
    for _ in range(5000):
        chain = Thing((".", chain, 0))
    assert ways(("", chain), depth=0) == ["." * 5000 + "t"]


def test_the_last_ways_are_followed_after_all_others() -> None:
    root = Thing(("key", tensor(), LAST), ("x", Thing(("y", tensor(), 1)), 1))
    for nearest_first in (False, True):
        assert ways(("", root), nearest_first=nearest_first) == ["xy", "key"]
    assert ways(("", root), depth=0) == []  # each costs a step


def test_the_bounds() -> None:
    wide = Thing(*((str(number), Thing(("t", tensor(), 1)), 1) for number in range(10)))
    called: list[int] = []
    found = ways(("", wide), most=4, limit=lambda: called.append(1))
    assert (found, called) == (["0t", "1t", "2t"], [1])  # the root is one of the four
    assert ways(("", wide), items=2) == ["0t", "1t"]
    numbers = Thing(*(("", number, 1) for number in range(100)), ("x", Thing(), 1))
    assert ways(("", numbers), most=4, limit=lambda: called.append(2)) == []
    assert called == [1, 2]  # a hundred numbers are too many for four objects


def test_what_is_found_is_looked_into_where_that_is_asked_for() -> None:
    root = Thing(("a", Thing(("b", Thing(), 0)), 0))
    assert ways(("r", root), wanted=Thing) == ["r"]
    assert ways(("r", root), wanted=Thing, through=True) == ["r", "ra", "rab"]


def test_walks_that_share_what_they_entered() -> None:
    inner = Thing(("t", tensor(), 0))
    entered: dict[int, int] = {}
    first, second = Thing(("a", inner, 0)), Thing(("b", inner, 0), ("u", tensor(), 0))
    assert ways(("", first), entered=entered) == ["at"]
    assert ways(("", second), entered=entered) == ["u"]


def test_objects_made_while_it_reads_are_not_taken_for_each_other() -> None:
    # What a reader makes dies at once where nobody keeps it, and the next one gets its id.
    def making(path: str, value: Any, left: int) -> Any:
        if type(value) is int or type(value) is list:
            return []
        return [(f"{path}{number}", types.SimpleNamespace(), 1) for number in range(3)]

    found = traverse([("", Thing())], making, wanted=types.SimpleNamespace, through=True, depth=3)
    assert len(list(found)) == 3 + 9 + 27


def test_it_asks_the_objects_nothing() -> None:
    called: list[str] = []

    def act(name: str) -> Any:
        return lambda *_: called.append(name)

    asked = ("__eq__", "__hash__", "__getattribute__", "__instancecheck__", "__subclasscheck__")
    meta = type("Meta", (type,), {name: act(f"meta {name}") for name in asked})
    kind = meta("Acting", (), {name: act(name) for name in (*asked, "__len__", "__bool__")})
    one = object.__new__(kind)
    root = Thing(("a", one, 1), ("b", kind, 1), ("t", tensor(), 1))
    for how in ({}, {"nearest_first": True}, {"repeats": "all"}, {"wanted": torch.nn.Module}):
        ways(("", root), ("x", one), **how)
    assert called == []


# --- the readers ---------------------------------------------------------------------------------


def _in_containers(value: Any) -> list[torch.Tensor]:
    return [found for _, found in tensors_of(value)]


def _near(value: Any) -> list[torch.Tensor]:
    return [found for _, found in naming.tensors_in([("x", value)], depth=6)]


def _anywhere(value: Any) -> list[torch.Tensor]:
    return [found for _, found in walk.walk([("x", value)])]


READERS = [_in_containers, _near, _anywhere]


class Pair(collections.namedtuple("Pair", "left right")):
    pass


@pytest.mark.parametrize("read", READERS)
def test_what_all_readers_find(read: Any) -> None:
    a, b, c = tensor(), tensor(), tensor()
    net = torch.nn.Linear(1, 1)
    for value, held in (
        (a, [a]),
        ([a, [b], (c,)], [a, b, c]),
        ({"x": a, 3: {"y": b}}, [a, b]),
        (collections.OrderedDict(x=a), [a]),
        (Pair(a, [b]), [a, b]),
        (net, [net.weight, net.bias]),
        ([1, "text", None, torch.float32, torch.Size([2])], []),
        (3, []),
    ):
        assert {id(found) for found in read(value)} == {id(one) for one in held}


@pytest.mark.parametrize("read", READERS)
def test_all_readers_end_in_a_cycle(read: Any) -> None:
    one = tensor()
    loop: list[Any] = [one]
    loop.append({"again": loop})
    assert {id(found) for found in read(loop)} == {id(one)}


@pytest.mark.parametrize("read", READERS)
def test_all_readers_are_the_one_walk(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def counting(*args: Any, **how: Any) -> Any:
        calls.append(args)
        return of_state.traverse(*args, **how)

    for module in ("gradext.state.tree", "gradext.objects.naming", "gradext.objects.walk"):
        monkeypatch.setattr(f"{module}.traverse", counting)
    assert len(read([tensor(), [tensor()]])) == 2
    assert len(calls) == 1


def test_the_names_near_a_variable() -> None:
    class Holder:
        def __init__(self) -> None:
            self.kept = tensor()
            self.number = 3

    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    net.mask = tensor()
    roots = [
        *[("x", tensor()), ("n", 3), ("items", [tensor(), 2, (tensor(),)])],
        *[("table", {"k": tensor(), 2: [tensor()], (1, 2): tensor()})],
        *[("queue", collections.deque([tensor()])), ("pair", Pair(tensor(), [tensor()]))],
        *[("holder", Holder()), ("net", net), ("deep", [[[tensor()]]])],
    ]
    assert [path for path, _ in naming.tensors_in(roots, depth=2)] == [
        *["x", "items[0]", "items[2][0]", "table['k']", "table[2][0]", "queue[0]"],
        *["pair.left", "pair.right[0]", "holder.kept", "net.mask"],
    ]
    assert [path for path, _ in naming.tensors_in([("net", net[0])], depth=1)] == ["net.weight"]
    many = [("many", [tensor() for _ in range(100)])]
    assert len(list(naming.tensors_in(many, depth=1))) == 64
    assert [path for path, _ in naming.tensors_in(roots, depth=0)] == ["x"]


def test_a_tensor_has_each_of_its_names_near_a_variable() -> None:
    one = [tensor()]
    roots = [("a", {"x": one, "y": one}), ("b", one)]
    assert [path for path, _ in naming.tensors_in(roots, depth=2)] == [
        "a['x'][0]",
        "a['y'][0]",
        "b[0]",
    ]


def test_modules_near_a_variable_and_below_a_module() -> None:
    inner = torch.nn.Linear(1, 1)
    net = torch.nn.Sequential(
        torch.nn.Sequential(inner), torch.nn.ReLU(), torch.nn.Sequential(inner)
    )
    net.add_module("head", inner)
    roots = [("net", net), ("table", {"k": [inner]}), ("x", tensor()), ("pair", Pair(inner, 1))]
    assert [path for path, _ in naming.modules_in(roots, depth=2)] == [
        "net",
        "table['k'][0]",
        "pair.left",
    ]
    in_order = ["net", "net[0]", "net[0][0]", "net[1]", "net[2]"]
    assert [path for path, _ in naming.submodules(net, "net")] == in_order
    last_first = ["net", "net.head", "net[2]", "net[1]", "net[0]"]
    assert [path for path, _ in naming.submodules(net, "net", last_first=True)] == last_first
    names = naming.Names([], modules=False)
    names._root(net, "net")
    assert names.of(naming.identity_of(inner.weight).id) == "net.head.weight"
    assert names.of_module(naming.identity_of(inner.weight).id) == "net.head.weight"
