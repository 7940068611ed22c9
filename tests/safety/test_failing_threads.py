"""Threads that train and fail while gradext explains: nothing of another thread's is touched."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import gradext
from gradext import _C
from gradext.objects import naming
from gradext.rules import graph_copy

PROGRAM = Path(__file__).parent / "programs" / "threads.py"


@pytest.mark.parametrize(
    "options",
    [
        ("--recording", "restart"),
        ("--recording", "one"),
        ("--recording", "restart", "--shared"),
        ("--guard", "--recording", "one"),
    ],
    ids=" ".join,
)
def test_eight_threads_come_to_their_end(options):
    """Each fault of this kind kills about every third run of the program as it was."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "--threads", "8", "--steps", "12", *options],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[3])},
        )
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert "steps 96, caught 48" in done.stdout
        assert "own errors 0" in done.stdout, done.stderr


def test_with_one_recording_each_error_is_explained():
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--steps", "6", "--recording", "one"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[3])},
    )
    assert "caught 24, explained 24, recordings 1, own errors 0" in done.stdout, done.stderr


def test_an_identity_is_what_torch_says_of_the_tensor():
    w = torch.ones(3, requires_grad=True)
    h = w * 2
    (h.sum() + w.sum()).backward()
    for tensor in (w, h, w.grad, torch.ones(2), torch.ones(4)[:2], h[1:]):
        who, facts = naming.identity_of(tensor), gradext.inspect(tensor)
        assert who.id == facts.id
        assert who.counter == facts.version_counter
        assert who.storage == facts.storage
        assert who.requires_grad == facts.requires_grad
        assert who.is_leaf == facts.is_leaf
        assert who.is_view == facts.is_view
        assert bool(who.node) == (facts.grad_fn is not None)
    assert naming.identity_of(w).grad == gradext.inspect(w.grad).id
    assert naming.identity_of(h).node == _C.testing.node_id(h.grad_fn)
    with torch.inference_mode():
        assert naming.identity_of(torch.ones(2)).is_inference
    assert naming.identity_of("no tensor") is None


def test_reading_an_identity_leaves_no_owner_behind():
    w = torch.ones(3, requires_grad=True)
    w.sum().backward()
    counter = _C.testing.version_counter_use_count(w)
    grads = sys.getrefcount(w.grad)
    for _ in range(100):
        naming.identity_of(w)
    assert _C.testing.version_counter_use_count(w) == counter
    after = sys.getrefcount(w.grad)
    assert after == grads


class _Held:
    """While the engine is inside a node, and so holds the node's mutex."""

    def __init__(self, loss):
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.loss = loss
        self.thread = threading.Thread(target=loss.backward)

    def wait(self, *_):
        self.inside.set()
        assert self.go_on.wait(60)

    def __enter__(self):
        self.thread.start()
        assert self.inside.wait(60)
        return self

    def __exit__(self, *_):
        self.go_on.set()
        self.thread.join()


def test_a_node_that_another_thread_runs_is_not_read():
    """Unpack hooks run inside the formula, under the node's mutex: nobody waits for that thread."""
    held = None

    def unpack(kept):
        held.wait()
        return kept

    x = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        h = x.exp()
    node = h.grad_fn
    items, _, is_busy = _C.saved_of(node)
    assert [label for label, _ in items] == ["result"]
    assert not is_busy
    loss = h.sum()
    held = _Held(loss)
    with held:
        items, is_freed, is_busy = _C.saved_of(node)
        assert is_busy
        assert not items
        assert not is_freed
        found, places, _, _, _ = _C.finding("freed", (loss,), 0)
        assert not found
        assert places is None
        assert graph_copy.read([loss]).nodes  # what is not busy is read all the same
    assert x.grad is not None


def test_a_gradient_that_is_being_accumulated_is_not_read():
    """AccumulateGrad computes the sum under its mutex; a subclass makes that run Python."""

    class Slow(torch.Tensor):
        held = None

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            plain = [a.elem if isinstance(a, cls) else a for a in args]
            if cls.held is not None and func is torch.ops.aten.add_.Tensor:
                cls.held.wait()
            out = func(*plain, **(kwargs or {}))
            return cls.wrap(out) if isinstance(out, torch.Tensor) else out

        @classmethod
        def wrap(cls, elem):
            made = torch.Tensor._make_wrapper_subclass(cls, elem.shape, dtype=elem.dtype)
            made.elem = elem
            return made

    w = torch.ones(3, requires_grad=True)
    w.grad = torch.zeros(3)
    assert naming.identity_of(w).grad == gradext.inspect(w.grad).id

    class Give(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return Slow.wrap(torch.ones(3))

    loss = Give.apply(w)
    w.grad = Slow.wrap(torch.zeros(3))
    Slow.held = _Held(loss)
    with Slow.held:
        assert naming.identity_of(w).grad == 0
    Slow.held = None
    assert naming.identity_of(w).grad != 0


def test_what_a_node_saved_is_read_without_a_collection():
    """The node's mutex is held meanwhile: a finalizer that runs this node would wait for ever."""
    x = torch.ones(3, requires_grad=True)
    h = x.exp()
    calls = []
    before = gc.get_threshold()
    gc.callbacks.append(lambda phase, info: calls.append(phase))
    try:
        gc.set_threshold(1)
        kept = [_C.saved_of(h.grad_fn) for _ in range(3)]
    finally:
        gc.set_threshold(*before)
        gc.callbacks.pop()
    assert len(kept) == 3
    assert gc.isenabled()


def test_a_recording_has_its_data_at_every_moment_while_it_stops():
    stop = threading.Event()
    errors = []

    def ask(recording):
        while not stop.is_set():
            try:
                recording.data  # noqa: B018
            except RuntimeError as error:
                errors.append(error)
                return

    for _ in range(20):
        stop.clear()
        recording = gradext.record().start()
        x = torch.ones(64, requires_grad=True)
        for _ in range(200):
            x.exp().mul_(2)
        thread = threading.Thread(target=ask, args=(recording,))
        thread.start()
        recording.stop()
        stop.set()
        thread.join()
    assert not errors
