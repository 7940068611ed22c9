"""guard(): how it tells, what it watches, and that it changes nothing of the program's."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import warnings
import weakref
from typing import ClassVar

import numpy
import pytest
import torch
from torch import nn

import gradext
from gradext import _C


def spoiled():
    """A graph whose saved tensor is written by numpy; the line of the write is the second."""
    h = torch.ones(3, requires_grad=True).exp()
    h.detach().numpy()[0] = 7
    return h.sum()


LINE = spoiled.__code__.co_firstlineno + 3


def test_a_warning_names_the_line():
    with pytest.warns(gradext.GuardWarning, match=r"GX401.*silent-write"), gradext.guard() as on:
        spoiled().backward()
    (found,) = on.diagnoses
    assert found.code == "GX401"
    assert [site.frame.line for site in found.culprits] == [LINE]
    assert found.culprits[0].frame.file == __file__


def test_raise_stops_backward_before_the_gradient_is_made():
    x = torch.ones(3, requires_grad=True)
    h = x.exp()
    with pytest.raises(gradext.GuardError, match="GX401") as caught:
        with gradext.guard(on_change="raise"):
            h = x.exp()
            h.detach().numpy()[0] = 7
            h.sum().backward()
    assert [d.code for d in caught.value.diagnoses] == ["GX401"]
    assert x.grad is None
    assert isinstance(caught.value, RuntimeError)


def test_warning_leaves_the_gradient_as_torch_computes_it():
    def gradient(guarded):
        x = torch.ones(3, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if guarded:
                with gradext.guard():
                    h = x.exp()
                    h.detach().numpy()[0] = 7
                    h.sum().backward()
            else:
                h = x.exp()
                h.detach().numpy()[0] = 7
                h.sum().backward()
        return x.grad

    assert torch.equal(gradient(True), gradient(False))


def test_told_once_however_often_it_happens():
    w = torch.ones(3, requires_grad=True)
    with warnings.catch_warnings(record=True) as seen, gradext.guard() as on:
        warnings.simplefilter("always")
        for _ in range(5):
            h = w.exp()
            h.data.mul_(2)
            h.sum().backward()
    assert [d.code for d in on.diagnoses] == ["GX401"]
    assert len([w for w in seen if issubclass(w.category, gradext.GuardWarning)]) == 1


def test_the_hook_slot_and_the_trace_function_stay_the_users():
    seen = []
    with gradext.guard():
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(1) or t, lambda t: t):
            h = torch.ones(3, requires_grad=True).exp()
        memory = h.detach().numpy()
        assert sys.gettrace() is None
        memory[0] = memory[0]
        h.sum().backward()
    assert seen == [1]
    assert sys.gettrace() is None


def test_a_debugger_keeps_its_trace_function_and_the_answer_is_a_window():
    def tracer(frame, event, argument):
        return tracer

    had = sys.gettrace()
    with warnings.catch_warnings(), gradext.guard() as on:
        warnings.simplefilter("ignore")
        h = torch.ones(3, requires_grad=True).exp()
        sys.settrace(tracer)
        try:
            memory = h.detach().numpy()
            memory[0] = 7
            assert sys.gettrace() is tracer
            h.sum().backward()
        finally:
            sys.settrace(had)
    (found,) = on.diagnoses
    first = test_a_debugger_keeps_its_trace_function_and_the_answer_is_a_window
    start = first.__code__.co_firstlineno
    assert found.culprits == ()
    after, before = (frame.line - start for frame in found.window)
    assert after <= 11 <= before


def test_another_thread_is_answered_with_a_window_or_its_line():
    h_of = {}

    def writer(ready, done):
        ready.wait()
        h_of["memory"][0] = 7
        done.set()

    ready, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=writer, args=(ready, done))
    with warnings.catch_warnings(), gradext.guard() as on:
        warnings.simplefilter("ignore")
        thread.start()
        h = torch.ones(3, requires_grad=True).exp()
        h_of["memory"] = h.detach().numpy()
        ready.set()
        done.wait()
        h.sum().backward()
        thread.join()
    (found,) = on.diagnoses
    assert found.code == "GX401"
    assert (found.window is None) != (not found.culprits)


def test_nothing_is_kept_alive_and_nothing_is_left_on():
    with gradext.guard():
        x = torch.ones(3, requires_grad=True)
        h = x.exp()
        kept = weakref.ref(h)
        memory = h.detach().numpy()
        loss = h.sum()
        loss.backward()
        del h, loss, memory
        gc.collect()
        assert kept() is None
    assert _C.testing.guard_facts() == {
        **_C.testing.guard_facts(),
        "entries": 0,
        "exposed": 0,
        "armed": False,
    }


def test_activations_are_let_go_during_backward():
    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            alive.append(held() is not None)
            return g

    alive = []
    with gradext.guard():
        x = torch.ones(8, requires_grad=True)
        late = Probe.apply(x * 1).tanh() * 1
        big = late.exp()
        held = weakref.ref(big.untyped_storage())
        loss = big.sum()
        del big
        loss.backward()
    assert alive == [False]


def test_a_model_that_stays_as_it_is():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    with gradext.guard(net) as on:
        net(torch.rand(2, 3)).sum().backward()
    assert on.diagnoses == []


def test_who_changed_a_watched_tensor_by_an_optimizer():
    net = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 1)})
    for parameter in net["body"].parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.warns(gradext.GuardWarning), gradext.guard(net["body"]) as on:
        optimizer.step()
        line = sys._getframe().f_lineno - 1
    (found,) = on.diagnoses
    assert found.code == "GX405"
    assert found.message.startswith("`weight`, `bias` are guarded")
    assert found.culprits[0].frame.line == line
    assert "optimizer" in found.fix


def test_who_changed_a_watched_tensor_by_numpy():
    cache = {"keys": torch.zeros(4)}
    memory = cache["keys"].numpy()
    with pytest.warns(gradext.GuardWarning), gradext.guard(cache) as on:
        cache["keys"].data_ptr()
        memory[2] = 1
        line = sys._getframe().f_lineno - 1
        done = True
    assert done
    (found,) = on.diagnoses
    assert found.code == "GX405"
    assert [site.frame.line for site in found.culprits] == [line]


def test_a_write_that_no_schema_declares_has_a_line_too():
    norm = nn.BatchNorm1d(2, affine=False)
    with pytest.warns(gradext.GuardWarning), gradext.guard([norm.running_mean]) as on:
        torch.rand(3)
        norm(torch.rand(3, 2))
        line = sys._getframe().f_lineno - 1
        torch.rand(3)
    (found,) = on.diagnoses
    assert [site.frame.line for site in found.culprits] == [line]
    assert "does not say what it writes" in found.notes[0]


def test_raise_at_the_end_of_the_block():
    t = torch.zeros(3)
    with pytest.raises(gradext.GuardError, match="GX405"):
        with gradext.guard(t, on_change="raise"):
            t.add_(1)


def test_an_error_of_the_programs_own_is_not_replaced():
    t = torch.zeros(3)
    with pytest.warns(gradext.GuardWarning), pytest.raises(KeyError, match="mine"):
        with gradext.guard(t, on_change="raise"):
            t.add_(1)
            raise KeyError("mine")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: gradext.guard(on_change="stop"), 'on_change is "warn" or "raise", got \'stop\''),
        (lambda: gradext.guard({"a": 1}), "nothing to watch: no CPU tensor in a dict"),
    ],
)
def test_bad_arguments(build, words):
    with pytest.raises(ValueError, match=r"gradext\.guard: ") as caught:
        build()
    assert words in str(caught.value)


def test_guards_nest_and_each_hears():
    with warnings.catch_warnings(), gradext.guard() as outer:
        warnings.simplefilter("ignore")
        with gradext.guard() as inner:
            spoiled().backward()
    assert [d.code for d in outer.diagnoses] == [d.code for d in inner.diagnoses] == ["GX401"]
    with pytest.raises(RuntimeError, match="is on already"), outer:
        outer.start()


def test_all_dtypes_and_layouts_that_are_saved_go_through():
    with gradext.guard() as on:
        for dtype in (torch.float64, torch.complex64, torch.bfloat16):
            x = torch.ones(3, 4, dtype=dtype, requires_grad=True)
            (x.t()[1:] * x.t()[1:]).abs().sum().backward()
        table = nn.Embedding(5, 3, sparse=True)
        table(torch.tensor([1, 2])).sum().backward()
    assert on.diagnoses == []


# --- tensors of another device, whose fingerprints are compared at the end of backward -----------


@pytest.fixture
def deferred():
    _C.testing.guard_defer(True)
    yield
    _C.testing.guard_defer(False)


def test_deferred_finds_an_op_that_wrote(deferred):
    with pytest.warns(gradext.GuardWarning), gradext.guard() as on:
        h = torch.ones(3, requires_grad=True).exp()
        h.data.mul_(2)
        line = sys._getframe().f_lineno - 1
        h.sum().backward()
    (found,) = on.diagnoses
    assert (found.code, [s.frame.line for s in found.culprits]) == ("GX401", [line])


def test_deferred_brackets_a_raw_write(deferred):
    with pytest.warns(gradext.GuardWarning), gradext.guard() as on:
        h = torch.ones(3, requires_grad=True).exp()
        saved = sys._getframe().f_lineno - 1
        h.detach().numpy()[0] = 7
        h.sum().backward()
        used = sys._getframe().f_lineno - 1
    (found,) = on.diagnoses
    assert found.culprits == ()
    assert tuple(frame.line for frame in found.window) == (saved, used)


def test_deferred_raises_out_of_backward(deferred):
    with pytest.raises(gradext.GuardError):
        with gradext.guard(on_change="raise"):
            h = torch.ones(3, requires_grad=True).exp()
            h.data.mul_(2)
            h.sum().backward()


def test_deferred_says_nothing_of_what_is_right(deferred):
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with gradext.guard() as on, gradext.record() as recording:
        before = len(recording.writes)
        net(torch.rand(2, 3, 8)).sum().backward()
        after = len(recording.writes)
    assert on.diagnoses == []
    net.zero_grad()
    with gradext.record() as plain:
        net(torch.rand(2, 3, 8)).sum().backward()
        expected = len(plain.writes)
    assert after - before == expected


@pytest.mark.cuda
def test_cuda_names_the_op_that_wrote():
    with pytest.warns(gradext.GuardWarning), gradext.guard() as on:
        h = torch.ones(3, device="cuda", requires_grad=True).exp()
        h.data.mul_(2)
        h.sum().backward()
    assert [d.code for d in on.diagnoses] == ["GX401"]


# --- the command ----------------------------------------------------------------------------------


def test_run_guard_keeps_exit_code_and_output(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "h = torch.ones(3, requires_grad=True).exp()\n"
        "mem = h.detach().numpy()\n"
        "mem[0] = 7\n"
        "h.sum().backward()\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", "--guard", str(script)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "end\n")
    assert "error[GX401]" in done.stderr
    assert "train.py:4" in done.stderr
    assert "GuardWarning" not in done.stderr


def test_run_guard_and_light_do_not_go_together():
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", "--guard", "--light", "-c", "pass"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--guard needs to know what is saved" in done.stderr


def test_numpy_still_sees_the_bytes():
    with gradext.guard():
        t = torch.zeros(3)
        memory = t.numpy()
        memory[1] = 4
    assert numpy.array_equal(t.numpy(), [0, 4, 0])


def test_a_graph_of_an_earlier_guard_is_watched_by_the_next():
    def damp(gradient):
        gradient *= 0.1

    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    with gradext.guard():
        early, late = a.exp(), b.exp()  # exp saves its result: the first guard knows its node
        late.register_hook(damp)
        y = early + late
    with pytest.warns(gradext.GuardWarning, match="GX403"), gradext.guard() as second:
        (y * 2).sum().backward()
    assert [found.code for found in second.diagnoses] == ["GX403"]


class Watched(torch.Tensor):
    """A subclass whose every use is noted."""

    uses: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.uses.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_hooks_on_what_was_saved_run_no_code_of_the_programs_and_raise_as_without():
    x = torch.ones(3).as_subclass(Watched).requires_grad_()
    with gradext.guard():
        y = x.exp() * x
        # The multiplication lies below what makes its result one of the subclass.
        saved = y.grad_fn.next_functions[0][0]._raw_saved_other
        Watched.uses.clear()
        saved.register_hooks(lambda t: t, lambda t: t)
        assert Watched.uses == []
        with pytest.raises(RuntimeError, match="already been set"):
            saved.register_hooks(lambda t: t, lambda t: t)
        y.sum().backward()
        with pytest.raises(RuntimeError, match="freed"):
            saved.register_hooks(lambda t: t, lambda t: t)
