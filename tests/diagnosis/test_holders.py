"""gradext.objects.walk: the exact path of a tensor in each thing that can hold one."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import sys
import threading
import types
import weakref
from typing import NamedTuple

import pytest
import torch

from gradext.objects import walk

CACHE = {}


def paths(name, value, **how):
    return [path for path, _ in walk.walk([(name, value)], **how)]


def path_of(tensor, *roots, **how):
    """The paths of one tensor; walk() yields it once."""
    return [path for path, found in walk.walk(roots, **how) if found is tensor]


class Plain:
    def __init__(self, **held):
        self.__dict__.update(held)


class Slots:
    __slots__ = ("empty", "pose")

    def __init__(self, pose):
        self.pose = pose


class Pair(NamedTuple):
    mean: torch.Tensor
    rest: object


@dataclasses.dataclass
class Sample:
    mask: torch.Tensor
    label: int = 0


@dataclasses.dataclass(slots=True)
class Slim:
    mask: torch.Tensor


class Strings(dict):
    """Whoever asks it for its items is answered by a person's code."""

    def items(self):
        raise AssertionError("items() was run")

    def __iter__(self):
        raise AssertionError("__iter__() was run")


def closure_over(held):
    def step():
        return held

    return step


def with_default(x, mask=None, *, scale=None):
    return x


def default_of(mask, scale):
    made = types.FunctionType(with_default.__code__, {}, "step")
    made.__defaults__, made.__kwdefaults__ = (mask,), {"scale": scale}
    return made


def suspended(value):
    x = value
    yield x


def started(generator):
    next(generator)
    return generator


T = torch.ones(3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(T, "v", id="itself"),
        pytest.param([0, T], "v[1]", id="list"),
        pytest.param((0, (T,)), "v[1][0]", id="tuple"),
        pytest.param(collections.deque([1, T]), "v[1]", id="deque"),
        pytest.param(Pair(T, 0), "v.mean", id="named tuple"),
        pytest.param(Pair(torch.zeros(1), [T]), "v.rest[0]", id="in a named tuple"),
        pytest.param({"mask": T}, "v['mask']", id="str key"),
        pytest.param({16: T}, "v[16]", id="int key"),
        pytest.param({("cpu", 8): T}, "v['cpu', 8]", id="tuple key"),
        pytest.param({(8,): T}, "v[(8,)]", id="tuple key of one"),
        pytest.param({torch.float32: T}, "v[torch.float32]", id="dtype key"),
        pytest.param({Plain(): T}, "v[<Plain 0>]", id="key without words"),
        pytest.param({Plain(a=T): 1}, "v.<key 0>.a", id="in a key"),
        pytest.param(collections.OrderedDict(a=T), "v['a']", id="OrderedDict"),
        pytest.param(Strings(a=T), "v['a']", id="dict subclass"),
        pytest.param({T}, "v{...}", id="set"),
        pytest.param(frozenset([(T,)]), "v{...}[0]", id="frozenset"),
        pytest.param(Plain(pose=T), "v.pose", id="attribute"),
        pytest.param(Plain(a=Plain(b={16: T})), "v.a.b[16]", id="nested"),
        pytest.param(Slots(T), "v.pose", id="slots"),
        pytest.param(Sample(T), "v.mask", id="dataclass"),
        pytest.param(Slim(T), "v.mask", id="dataclass with slots"),
        pytest.param(types.SimpleNamespace(x=T), "v.x", id="namespace"),
        pytest.param(types.MappingProxyType({"a": T}), "v['a']", id="mapping proxy"),
        pytest.param(closure_over(T), "v.<closure>.held", id="closure"),
        pytest.param(closure_over({"cos": T}), "v.<closure>.held['cos']", id="in a closure"),
        pytest.param(default_of(T, None), "v.<default>.mask", id="default"),
        pytest.param(default_of(None, T), "v.<default>.scale", id="keyword default"),
        pytest.param(functools.partial(print, T), "v.args[0]", id="partial argument"),
        pytest.param(functools.partial(print, end=T), "v.keywords['end']", id="partial keyword"),
        pytest.param(
            functools.partial(closure_over(T)), "v.func.<closure>.held", id="partial function"
        ),
        pytest.param(types.MethodType(print, Plain(c=T)), "v.__self__.c", id="bound method"),
        pytest.param([T].append, "v.__self__[0]", id="built-in method"),
        pytest.param(started(suspended(T)), "v.<locals>.value", id="generator"),
    ],
)
def test_each_holder_has_its_path(value, expected):
    assert path_of(T, ("v", value)) == [expected]


@pytest.mark.parametrize("maxsize", [None, 8], ids=["unbounded", "bounded"])
def test_lru_cache(maxsize):
    @functools.lru_cache(maxsize=maxsize)
    def make_mask(n, dtype):
        return torch.ones(n, dtype=dtype)

    first, second = make_mask(2, torch.float32), make_mask(3, torch.float32)
    assert path_of(first, ("make_mask", make_mask)) == ["make_mask.<lru_cache>"]
    assert path_of(second, ("make_mask", make_mask)) == ["make_mask.<lru_cache>"]


def test_lru_cache_of_a_method_and_of_a_tuple():
    class Rope:
        @functools.lru_cache(maxsize=4)  # noqa: B019
        def tables(self, n):
            return torch.ones(n), torch.zeros(n)

    rope = Rope()
    _, sin = rope.tables(2)
    assert path_of(sin, ("rope", rope)) == ["Rope.tables.<lru_cache>[1]"]


def test_class_attributes_have_the_name_of_their_class():
    class Observer:
        peak = torch.ones(2)

    class Quiet(Observer):
        pass

    assert path_of(Observer.peak, ("watch", Quiet())) == ["Observer.peak"]
    assert path_of(Observer.peak, ("Watch", Observer)) == ["Watch.peak"]


def test_class_and_static_methods_hold_what_they_close_over():
    kept = torch.ones(1)

    class Tool:
        @staticmethod
        def apply():
            return kept

    assert path_of(kept, ("tool", Tool())) == ["Tool.apply.<closure>.kept"]


def test_modules_are_named_as_one_writes_them():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Linear(2, 2)
            self.register_buffer("scale", torch.ones(1))
            self.cache = {16: torch.ones(1)}

    net = torch.nn.Sequential(torch.nn.Linear(2, 2), Block())
    assert set(paths("net", net)) == {
        *("net[0].weight", "net[0].bias", "net[1].scale", "net[1].cache[16]"),
        *("net[1].proj.weight", "net[1].proj.bias"),
    }


def test_submodules_take_nothing_off_the_depth():
    net = torch.nn.Linear(2, 2, bias=False)
    for _ in range(30):
        net = torch.nn.Sequential(net)
    assert paths("net", net) == ["net" + "[0]" * 30 + ".weight"]


def test_gradients_and_what_hangs_on_a_parameter():
    net = torch.nn.Linear(2, 2, bias=False)
    net(torch.ones(1, 2)).sum().backward()
    net.weight.main_grad = torch.ones(1)
    assert paths("net", net) == ["net.weight", "net.weight.grad", "net.weight.main_grad"]


def test_optimizer_state_has_the_names_of_its_parameters():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    opt.step()
    momentum = opt.state[net[0].weight]["momentum_buffer"]
    both = [("opt", opt), ("net", net)]
    assert path_of(momentum, *both) == ["opt.state[net[0].weight]['momentum_buffer']"]
    alone = "opt.state[opt.param_groups[0]['params'][0]]['momentum_buffer']"
    assert path_of(momentum, ("opt", opt)) == [alone]


def test_module_globals_and_a_python_module_as_root():
    space = types.ModuleType("mypkg.rope")
    space.CACHE = {"cos": T}
    space.other = sys.modules[__name__]  # not entered
    expected = "mypkg.rope.CACHE['cos']"
    assert paths("mypkg.rope", space) == [expected]
    assert paths("held", [space]) == []
    assert [p for p, _ in walk.walk(walk.globals_of(space.__dict__))] == [expected]


def test_thread_local_of_another_thread():
    class Local(threading.local):
        def __init__(self):
            ran.append(threading.current_thread())

    ran = []
    local = Local()
    ready, done = threading.Event(), threading.Event()

    def other():
        local.cache = T
        ready.set()
        done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    looked = threading.Thread(target=lambda: found.extend(path_of(T, ("local", local))))
    found = []
    looked.start()
    looked.join()
    done.set()
    thread.join()
    assert found == ["local.cache"]
    assert len(ran) == 2  # here and in `other`; looking made no third


# --- the shortest, each once, within bounds ------------------------------------------------------


def test_the_shortest_path_wins_whatever_the_order():
    deep = Plain(a=Plain(b=T))
    assert path_of(T, ("deep", deep), ("short", [T])) == ["short[0]"]
    assert path_of(T, ("short", [T]), ("deep", deep)) == ["short[0]"]


def test_cycles_and_shared_objects_end():
    knot = Plain()
    knot.me, knot.list = knot, [knot, T]
    knot.list.append(knot.list)
    assert paths("knot", knot) == ["knot.list[1]"]


def test_depth_counts_steps_and_a_shorter_way_opens_what_was_too_deep():
    nested = [[[T]]]
    assert paths("v", nested, depth=3) == ["v[0][0][0]"]
    assert paths("v", nested, depth=2) == []
    # Found first where no step is left, then by a way through submodules, which costs none.
    inner = torch.nn.Module()
    inner.kept = [T]
    outer = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Sequential(inner)))
    outer.near = [inner]
    assert paths("net", outer, depth=2) == ["net[0][0][0].kept[0]"]


def test_the_budget_ends_the_walk_and_says_so():
    many = [[T] for _ in range(100)]
    cut = []
    assert paths("v", many, most=50, limit=lambda: cut.append(1)) == []
    assert cut == [1]
    assert paths("v", many, most=1000, limit=lambda: cut.append(1)) == ["v[0][0]"]
    assert cut == [1]


def test_numbers_and_texts_do_not_use_up_the_budget():
    assert paths("v", [*range(5000), T], most=1000) == ["v[5000]"]


def test_path_to_chooses():
    with torch.inference_mode():
        frozen = torch.ones(1)
    held = {"a": torch.ones(1), "b": frozen}
    found = [(path, t) for path, t in walk.walk([("held", held)]) if t.is_inference()]
    assert found == [("held['b']", frozen)]


# --- where to begin ------------------------------------------------------------------------------


def test_roots_of_frames_are_locals_then_globals():
    pos = torch.ones(1)
    CACHE["cos"] = torch.ones(1)

    def inner():
        depth = torch.zeros(1)
        return walk.roots_of_frames([sys._getframe(), sys._getframe(1)]), depth

    roots, depth = inner()
    names = [name for name, _ in roots]
    assert names[0] == "depth"
    assert names.index("pos") < names.index(f"{__name__}.CACHE")
    assert path_of(depth, *roots) == ["depth"]
    assert path_of(pos, *roots) == ["pos"]
    assert path_of(CACHE["cos"], *roots) == [f"{__name__}.CACHE['cos']"]
    CACHE.clear()


def test_globals_of_the_program_have_bare_names():
    space = {"__name__": "__main__", "__file__": "x.py", "CACHE": [T], "os": sys}
    assert [name for name, _ in walk.globals_of(space)] == ["CACHE"]


def test_modules_are_named_by_what_holds_them():
    class Learner:
        pass

    policy = torch.nn.Linear(1, 1)
    learner = Learner()
    learner.q = torch.nn.Linear(1, 1)
    names = {id(module): name for name, module in walk.modules()}
    assert names[id(policy)] == "policy"
    assert names[id(learner.q)] == "learner.q"
    nameless = iter([torch.nn.Bilinear(1, 1, 1)])
    assert "Bilinear" in [name for name, _ in walk.modules()]
    assert isinstance(next(nameless), torch.nn.Bilinear)


def test_roots_of_a_subject_are_it_and_the_globals_of_its_code():
    CACHE["cos"] = kept = torch.ones(1)

    class Rope(torch.nn.Module):
        pass

    def step():
        return CACHE

    expected = [f"{__name__}.CACHE['cos']"]
    try:
        for subject in (
            torch.nn.Sequential(Rope()),
            step,
            functools.partial(step),
            functools.lru_cache(step),
            types.MethodType(step, Rope()),
            closure_over(Rope()),
        ):
            assert path_of(kept, *walk.roots_of(subject, "subject")) == expected
        assert path_of(kept, *walk.roots_of(torch.nn.Linear(1, 1), "subject")) == []
    finally:
        CACHE.clear()


# --- nothing of the user's is run, nothing is kept -----------------------------------------------


def test_no_code_of_the_users_runs():
    ran = []

    def spy(name, answer=None):
        def run(self, *args):
            ran.append(name)
            return answer

        return run

    class Meta(type):
        __hash__ = spy("metaclass __hash__", 1)
        __eq__ = spy("metaclass __eq__", False)
        __getattribute__ = spy("metaclass __getattribute__")
        __instancecheck__ = spy("metaclass __instancecheck__", False)
        __dict__ = property(spy("metaclass __dict__", {}))
        __mro__ = property(spy("metaclass __mro__", ()))
        __module__ = property(spy("metaclass __module__", "x"))

    class Hostile(metaclass=Meta):
        __slots__ = ("__dict__", "slot")
        __getattribute__ = spy("__getattribute__")
        __getattr__ = spy("__getattr__")
        __class__ = property(spy("__class__", dict))
        __eq__ = spy("__eq__", True)
        __hash__ = spy("__hash__", 1)
        __repr__ = spy("__repr__", "")
        __iter__ = spy("__iter__", iter(()))
        __len__ = spy("__len__", 0)
        __bool__ = spy("__bool__", False)
        peak = property(spy("property"))

    class OwnDict:
        __dict__ = property(spy("__dict__", {}))

    class Mapping(dict):
        __getattribute__ = spy("dict __getattribute__")
        __iter__ = spy("dict __iter__")
        items = keys = spy("dict items")

    class Odd(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *args, **kwargs):
            ran.append("__torch_function__")

    hostile = object.__new__(Hostile)
    object.__setattr__(hostile, "kept", T)
    odd = torch.Tensor._make_subclass(Odd, torch.ones(1), True)
    held = Mapping()
    dict.__setitem__(held, "a", [hostile])
    dict.__setitem__(held, "b", object.__new__(OwnDict))
    dict.__setitem__(held, "odd", [odd])
    dict.__setitem__(held, hostile, 1)
    ran.clear()  # filling the dict hashed a key
    assert path_of(T, ("held", held)) == ["held['a'][0].kept"]
    assert [path for path, t in walk.walk([("held", held)]) if t is odd] == ["held['odd'][0]"]
    walk.roots_of(hostile, "h")
    assert ran == []


def test_nothing_stays_alive():
    class Holder:
        pass

    def make():
        holder = Holder()
        holder.kept = [torch.ones(1)]
        return holder

    holder = make()
    dies = [weakref.ref(holder), weakref.ref(holder.kept[0])]
    assert paths("holder", holder) == ["holder.kept[0]"]
    gc.disable()
    try:
        del holder
        assert [ref() for ref in dies] == [None, None]
    finally:
        gc.enable()


def test_a_dead_proxy_and_a_weak_container_hold_nothing():
    gone = Plain()
    proxy = weakref.proxy(gone)
    del gone
    kept = torch.ones(1)
    weak = weakref.WeakValueDictionary(a=kept)
    assert paths("v", [proxy, weak, weakref.ref(kept)]) == []
