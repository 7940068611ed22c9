"""The census: what one call makes torch do, held against calls whose answer is known."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from gradext import _C
from gradext.mode_costs import call_counts


@pytest.fixture
def w():
    return torch.ones(4, 4, requires_grad=True)


def counted(call, **options):
    call()  # what a first call sets up is not of interest
    return call_counts.count(call, **options)


def test_one_differentiable_op(w):
    x = torch.ones(4, 4)
    found = counted(lambda: w * x, known=[w, x])
    assert (found.ops, found.nodes, found.views, found.version_bumps) == (1, 1, 0, 0)
    assert found.saved_tensors == 1  # mul keeps x for the gradient of w; w is not needed
    assert found.saved_bytes == 0  # x is there anyway
    assert found.peak_bytes == 64


def test_without_a_graph_nothing_is_saved(w):
    x = torch.ones(4, 4)
    with torch.no_grad():
        found = counted(lambda: w * x)
    assert (found.ops, found.nodes, found.saved_tensors, found.saved_bytes) == (1, 0, 0, 0)


def test_saved_memory_is_counted_once_and_without_what_was_there(w):
    def call():
        h = w.exp()  # keeps its result
        return (h * h, h.sum())  # keeps it twice more

    found = counted(call, known=[w])
    assert found.saved_tensors == 3
    assert found.saved_bytes == 64
    assert found.nodes == 3


def test_nothing_that_was_counted_stays_alive(w):
    alive = []

    def call():
        out = w.exp()  # a node that saves its own result
        alive.append(weakref.ref(out))
        return out

    call_counts.count(call)
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_views_in_each_mode(w):
    def call():
        return value[1:3], value.view(-1), value.chunk(2)

    value = w * 1.0
    assert counted(call).views == 4
    with torch.no_grad():
        value = w * 1.0
        assert counted(call).views == 4
    with torch.inference_mode():
        value = w * 1.0
        found = counted(call)
        assert (found.views, found.inference_tensors) == (0, 4)


def test_an_op_made_of_others_counts_a_view_and_a_write_once():
    x = torch.zeros(4, 4)
    # narrow is slice below, and linear transposes its weight.
    assert counted(lambda: x.narrow(0, 1, 2)).views == 1
    found = counted(lambda: x.__iadd__(1.0))
    assert (found.version_bumps, found.views) == (1, 0)


@pytest.mark.parametrize(
    ("call", "bumps"),
    [
        (lambda x, y: x.add_(y), 1),
        (lambda x, y: x[0].add_(1.0), 1),
        (lambda x, y: x.__setitem__(0, 1.0), 1),
        (lambda x, y: torch.add(y, y, out=x), 1),
        (lambda x, y: torch._foreach_add_([x, y], 1.0), 2),
        (lambda x, y: x.add_(1.0).mul_(2.0), 2),
        (lambda x, y: x.data.add_(1.0), 1),  # of the counter that .data has of its own
        (lambda x, y: x + y, 0),
    ],
)
def test_version_bumps(call, bumps):
    x, y = torch.zeros(4, 4), torch.ones(4, 4)
    assert counted(lambda: call(x, y)).version_bumps == bumps


def test_a_write_under_inference_mode_bumps_nothing():
    with torch.inference_mode():
        x = torch.zeros(4)
        assert counted(lambda: x.add_(1.0)).version_bumps == 0


def test_bumps_agree_with_the_counter():
    x = torch.zeros(4, 4)

    def call():
        x.add_(1)
        x[0].mul_(2)
        x.t().copy_(torch.ones(4, 4))

    before = x._version
    assert call_counts.count(call, saves=False).version_bumps == x._version - before == 3


def test_peak_memory_is_the_most_at_once():
    x = torch.ones(1024)

    def chain():
        y = x + x  # 4 KiB
        y = y + x  # 8 KiB while the first lives
        y = y + x

    assert counted(chain).peak_bytes == 8192
    assert counted(lambda: [x + x, x + x, x + x]).peak_bytes == 3 * 4096
    assert counted(lambda: x.view(32, 32)).peak_bytes == 0


def test_memory_that_was_there_before_is_not_counted():
    kept = [torch.ones(1024)]
    call_counts.count(lambda: None)

    def call():
        kept.clear()  # frees what the census did not see come
        kept.append(torch.ones(1024))

    assert call_counts.count(call, saves=False).peak_bytes == 4096


def test_nodes_are_those_that_the_graph_has():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.ones(3, 4)
    out = model(x)
    seen, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [child for child, _ in node.next_functions]
    numbered = [node for node in seen if node.name() != "torch::autograd::AccumulateGrad"]
    assert counted(lambda: model(x)).nodes == len(numbered)


def test_saved_tensors_are_those_that_hooks_see():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x, packed = torch.ones(3, 4), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        model(x)
    found = counted(lambda: model(x), known=[x, *model.parameters()])
    assert found.saved_tensors == len(packed)
    assert found.saved_bytes == 3 * 4 * 4  # tanh's result; the rest is parameters and x


def test_where_hooks_are_forbidden_the_saves_are_not_counted(w):
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        found = counted(lambda: w * w)
    assert (found.saved_tensors, found.saved_bytes, found.nodes) == (None, None, 1)


def test_an_error_ends_the_census_and_passes_through():
    def fails():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call_counts.count(fails)
    assert call_counts.count(lambda: torch.ones(1), saves=False).ops > 0


def test_one_census_at_a_time():
    def again():
        call_counts.count(lambda: None)

    with pytest.raises(ValueError, match="a census is under way already"):
        call_counts.count(again)
    with pytest.raises(ValueError, match="no census is under way here"):
        _C.Census().stop()


def test_a_census_that_is_dropped_ends():
    dropped = _C.Census()
    dropped.start()
    del dropped
    assert call_counts.count(lambda: torch.ones(2) + 1, saves=False).ops > 0


def test_nothing_is_printed_when_older_memory_is_freed(tmp_path):
    program = (
        "import torch; from gradext.mode_costs import call_counts\n"
        "kept = [torch.ones(9) for _ in range(9)]\n"
        "call_counts.count(kept.clear, saves=False)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_beside_a_profiler_both_go_on():
    x = torch.ones(1024)
    with torch.profiler.profile(profile_memory=True) as profiler:
        found = call_counts.count(lambda: x + x, saves=False)
        x + x
    assert (found.ops, found.peak_bytes) == (1, None)
    adds = [event for event in profiler.events() if event.name == "aten::add"]
    assert len(adds) == 2
    assert call_counts.count(lambda: x + x, saves=False).peak_bytes == 4096


def test_backward_is_counted_with_its_threads(w):
    out = (w * w).sum()

    def call():
        out.backward(retain_graph=True)

    found = counted(call, saves=False)
    assert found.ops > 2
    assert found.version_bumps >= 1  # the gradient is added to in place


@pytest.mark.cuda
def test_memory_of_the_device():
    x = torch.ones(1024, device="cuda")
    assert call_counts.count(lambda: x + 1, device="cuda").peak_bytes >= 4096
    assert call_counts.count(lambda: torch.ones(1024), device="cuda").peak_bytes == 0
