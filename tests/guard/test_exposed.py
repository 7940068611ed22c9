"""What is fingerprinted when: each way to write past a version counter, saved before it and after.

A guard reads the bytes of what was saved only once somebody can write them without torch knowing.
Every route is tried with a tensor that was there before the guard, with one that was made within
it, and in a program that the guard has seen from its start.
"""

from __future__ import annotations

import ctypes
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import gradext
from gradext import _C

BIRTHS = ("before", "inside", "whole")
Write = Callable[[], object]
ROUTES: dict[str, Callable[[torch.Tensor], Write]] = {}


def route(function: Callable[[torch.Tensor], Write]) -> Callable[[torch.Tensor], Write]:
    """Hands the tensor's memory out; what it returns writes that memory."""
    ROUTES[function.__name__] = function
    return function


@route
def numpy_array(t):
    memory = t.detach().numpy()
    return lambda: memory.__setitem__(0, 7)


@route
def asarray(t):
    memory = numpy.asarray(t.detach())
    return lambda: memory.fill(7)


@route
def dlpack(t):
    alias = torch.from_dlpack(t.detach())
    return lambda: alias.mul_(3)


@route
def capsule(t):
    alias = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t.detach()))
    return lambda: alias.fill_(3)


@route
def data_ptr(t):
    address = t.data_ptr()
    return lambda: ctypes.memset(address, 0, 4)


@route
def data_ptr_of_a_view(t):
    address = t.detach()[1:].data_ptr()
    return lambda: ctypes.memset(address, 0, 4)


@route
def untyped_storage(t):
    storage = t.untyped_storage()
    return lambda: storage.fill_(0)


@route
def typed_storage(t):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = t.storage()
        return lambda: storage.__setitem__(0, 7.0)


@route
def data(t):
    alias = t.data
    return lambda: alias.mul_(2)


@route
def data_at_once(t):
    return lambda: t.data.add_(1)


@route
def data_assigned(t):
    return lambda: setattr(t, "data", torch.zeros(4))


@route
def shared_memory(t):
    t.detach().share_memory_()
    handle = t.untyped_storage()._share_filename_cpu_()
    other = torch.UntypedStorage._new_shared_filename_cpu(*handle)
    return lambda: other.fill_(0)


@route
def set_on_a_storage(t):
    alias = torch.empty(0).set_(t.untyped_storage(), 0, (4,))
    return lambda: alias.mul_(2)


@route
def batch_norm(t):
    statistics = t.detach()

    def write():
        torch.batch_norm(
            torch.rand(3, 4), None, None, statistics, torch.ones(4), True, 0.5, 1e-5, False
        )

    return write


@route
def fused_optimizer(t):
    weights = t.detach().requires_grad_()
    weights.grad = torch.ones(4)
    optimizer = torch.optim.SGD([weights], lr=0.5, fused=True)
    return optimizer.step


# A pointer that the hooks of the recorder do not see being taken: as if C++ had it.
_hidden: dict[str, Any] = {}
exec(
    compile("def address_of(t): return t.data_ptr()", "/somewhere/torch/hidden.py", "exec"), _hidden
)
_library = torch.library.Library("gradext_test_exposed", "FRAGMENT")
_names = itertools.count()


def lying_op(key: str) -> Callable[[torch.Tensor], Any]:
    """An op that zeroes the first element of its argument and declares nothing."""
    name = f"lie{next(_names)}"
    _library.define(f"{name}(Tensor x) -> Tensor")

    def lie(x):
        ctypes.memset(_hidden["address_of"](x), 0, 4)
        return torch.zeros(1)

    _library.impl(name, lie, key)
    return getattr(torch.ops.gradext_test_exposed, name)


_lie, _composite = lying_op("CPU"), lying_op("CompositeImplicitAutograd")


@route
def op_that_lies(t):
    return lambda: _lie(t.detach())


@route
def op_that_lies_and_is_made_of_others(t):
    return lambda: _composite(t.detach())


@route
def op_that_lies_and_is_defined_late(t):
    late = lying_op("CPU")
    return lambda: late(t.detach())


class Program:
    """One backward that saves a tensor, and how it is guarded."""

    def __init__(self, birth: str, reads: str = "exposed") -> None:
        self.birth = birth
        self.guard = gradext.guard(reads=reads)
        self.guard.whole_program = birth == "whole"
        self.w = torch.ones(4, requires_grad=True)
        self.t = self.made() if birth == "before" else torch.empty(0)

    def made(self) -> torch.Tensor:
        if self.birth == "inside":  # by an op that the guard has seen
            return torch.ones(4, requires_grad=True) * 2
        return torch.ones(4)

    def run(self, way: Callable[[torch.Tensor], Write], *, is_saved_first: bool, writes: bool):
        with warnings.catch_warnings(), self.guard:
            warnings.simplefilter("ignore", gradext.GuardWarning)
            if self.birth != "before":
                self.t = self.made()
            if is_saved_first:
                loss = (self.w * self.t).sum()
                self.taken = _C.testing.guard_facts()["taken"]
                write = way(self.t)
            else:
                write = way(self.t)
                loss = (self.w * self.t).sum()
            if writes:
                write()
            loss.backward()
        return [found.code for found in self.guard.diagnoses]


@pytest.mark.parametrize("reads", ["exposed", "all"])
@pytest.mark.parametrize("birth", BIRTHS)
@pytest.mark.parametrize("is_saved_first", [True, False], ids=["saved_first", "exposed_first"])
@pytest.mark.parametrize("name", ROUTES)
def test_a_write_is_found(name, is_saved_first, birth, reads):
    program = Program(birth, reads)
    assert program.run(ROUTES[name], is_saved_first=is_saved_first, writes=True) == ["GX401"]


@pytest.mark.parametrize("birth", BIRTHS)
@pytest.mark.parametrize("is_saved_first", [True, False], ids=["saved_first", "exposed_first"])
@pytest.mark.parametrize("name", ROUTES)
def test_memory_that_nobody_writes_is_no_finding(name, is_saved_first, birth):
    assert Program(birth).run(ROUTES[name], is_saved_first=is_saved_first, writes=False) == []


@pytest.mark.parametrize(
    ("birth", "reads", "expected"),
    [
        ("inside", "exposed", 1),  # `w`, which was there before
        ("whole", "exposed", 0),
        ("inside", "all", 3),  # and the 2 of `made`
        ("before", "exposed", 1),
    ],
)
def test_what_is_read_at_a_save(birth, reads, expected):
    before = _C.testing.guard_facts()["taken"]
    program = Program(birth, reads)
    program.run(numpy_array, is_saved_first=True, writes=False)
    assert program.taken - before == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.from_numpy(numpy.ones(4, dtype="float32")),
        lambda: torch.frombuffer(bytearray(16), dtype=torch.float32),
        lambda: torch.from_dlpack(numpy.ones(4, dtype="float32")),
        lambda: torch.zeros(4).share_memory_(),
    ],
    ids=["from_numpy", "frombuffer", "from_dlpack", "share_memory"],
)
@pytest.mark.parametrize("birth", BIRTHS)
def test_memory_that_came_from_elsewhere_is_read_at_its_save(make, birth):
    program = Program(birth)
    program.made = make
    if birth == "before":
        program.t = make()
    address = _hidden["address_of"]

    def unseen(t):
        return lambda: ctypes.memset(address(t), 1, 4)

    assert program.run(unseen, is_saved_first=True, writes=True) == ["GX401"]


def test_memory_of_a_file(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(16))
    mapped = numpy.memmap(file, dtype="float32", mode="r+")
    program = Program("whole")
    program.made = lambda: torch.from_file(str(file), shared=True, size=4)
    assert program.run(lambda t: lambda: mapped.fill(3), is_saved_first=True, writes=True) == [
        "GX401"
    ]


@pytest.mark.parametrize("birth", BIRTHS)
def test_hooks_switch_the_check_off(birth):
    program = Program(birth)
    with warnings.catch_warnings(), program.guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        t = program.t if birth == "before" else program.made()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            loss = (program.w * t).sum()
        with torch.no_grad():
            t.add_(1)
        loss.backward()
    assert [found.code for found in program.guard.diagnoses] == ["GX402"]


def test_the_line_is_named_of_what_was_saved_before():
    guard = gradext.guard()
    with warnings.catch_warnings(), guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        h = (torch.ones(3, requires_grad=True) * 1).exp()
        y = h.sin()
        memory = h.detach().numpy()
        memory[0] = 7
        y.sum().backward()
    found = guard.diagnoses[0]
    first = test_the_line_is_named_of_what_was_saved_before.__code__.co_firstlineno
    assert [site.frame.line - first for site in found.culprits] == [7]


def test_a_graph_that_is_kept_is_looked_at_in_its_second_backward():
    guard = gradext.guard()
    with warnings.catch_warnings(), guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        h = (torch.ones(3, requires_grad=True) * 1).exp()
        loss = h.sin().sum()
        loss.backward(retain_graph=True)
        h.detach().numpy()[0] = 7
        loss.backward()
    assert {found.code for found in guard.diagnoses} == {"GX401"}


def test_a_result_that_is_not_new_is_no_proof():
    """An op in place puts its node on a tensor whose memory was there before."""
    buffer = torch.ones(4)
    address = buffer.data_ptr()  # before the guard
    guard = gradext.guard()
    with warnings.catch_warnings(), guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        w = torch.ones(4, requires_grad=True)
        filled = buffer.add_(w)
        loss = filled.sin().sum()
        ctypes.memset(address, 0, 4)
        loss.backward()
    assert [found.code for found in guard.diagnoses] == ["GX401"]


def test_a_view_without_a_base_is_no_proof():
    kept = torch.ones(4, requires_grad=True)
    address = kept.data_ptr()
    guard = gradext.guard()
    with warnings.catch_warnings(), guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        seen = torch.ops.aten._unsafe_view(kept, (2, 2))
        loss = seen.sin().sum()
        ctypes.memset(address, 0, 4)
        loss.backward()
    assert [found.code for found in guard.diagnoses] == ["GX401"]


def test_a_function_of_the_programs_that_returns_what_it_had_is_no_proof():
    kept = torch.ones(4)
    address = kept.data_ptr()

    class Cached(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return kept

        @staticmethod
        def backward(ctx, g):
            return g

    guard = gradext.guard()
    with warnings.catch_warnings(), guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        loss = Cached.apply(torch.ones(4, requires_grad=True)).sin().sum()
        ctypes.memset(address, 0, 4)
        loss.backward()
    assert "GX401" in [found.code for found in guard.diagnoses]


def test_training_under_it_changes_nothing_and_says_nothing():
    def trained(guarded):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(net.parameters())
        guard = gradext.guard() if guarded else None
        if guard:
            guard.whole_program = guarded == "whole"
            guard.start()
        for _ in range(5):
            optimizer.zero_grad()
            loss = net(torch.rand(8, 3)).square().mean()
            loss.backward()
            loss.detach().numpy()
            optimizer.step()
        if guard:
            guard.stop()
            assert guard.diagnoses == []
        return [p.detach().clone() for p in net.parameters()]

    plain = trained(None)
    for way in ("inside", "whole"):
        assert all(map(torch.equal, plain, trained(way)))


def test_nodes_are_not_kept_alive():
    import gc
    import weakref

    with gradext.guard():
        h = (torch.ones(3, requires_grad=True) * 1).exp()
        kept = weakref.ref(h.untyped_storage())
        h.sin().sum().detach().numpy()
        del h
        gc.collect()
        assert kept() is None


def test_what_reads_can_be():
    with pytest.raises(ValueError, match=r'reads is "exposed" or "all", got True'):
        gradext.guard(reads=True)
