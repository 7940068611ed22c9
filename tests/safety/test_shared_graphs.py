"""Graphs that several threads use: no hook is added to a node that runs, and what is read is held.

The engine goes through a node's hooks without a lock. One that is added meanwhile moves the list
from under it: each of these programs ended with a segmentation fault.
"""

from __future__ import annotations

import os
import textwrap
import threading
import warnings
from pathlib import Path

import forks
import pytest
import torch

import gradext

PROGRAM = Path(__file__).parent / "programs" / "shared_graphs.py"


def end_of(folder: Path, module: str, *words: str) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of `python -m MODULE`, in a fork that has torch imported."""
    return forks.run(["-m", module, *words], folder, os.environ)


@pytest.mark.parametrize("name", ["exposed", "all", "copied", "found", "hooked", "kept", "late"])
def test_threads_that_use_one_graph_come_to_their_end(name):
    code, out, err = end_of(PROGRAM.parent, PROGRAM.stem, name)
    assert (code, out) == (0, b"ok\n"), err.decode()[-3000:]


# Two hooks on one node: the first is where the other thread's guard begins.
MEANWHILE = """
import threading, warnings
import torch, gradext
warnings.simplefilter("ignore")

leaf = torch.ones(3, requires_grad=True)
trunk = leaf * 2
node, wanted = trunk.grad_fn, [None]

def hook(*_):
    if wanted[0] is not None:
        begin, wanted[0] = wanted[0], None
        begin()

node.{kind}(hook)
with gradext.guard(reads="all"):
    trunk.sin().sum().backward(retain_graph=True)  # puts the guard's hook behind that one

def begin():
    with torch.enable_grad(), gradext.guard(reads="{reads}"):
        torch.autograd.grad(trunk.exp().sum(), [leaf], retain_graph=True)

def elsewhere():
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()

wanted[0] = {where}
torch.autograd.grad(trunk.cos().sum(), [leaf], retain_graph=True)
assert wanted[0] is None
print("ok")
"""


@pytest.mark.parametrize("where", ["elsewhere", "begin"], ids=["other_thread", "same_thread"])
@pytest.mark.parametrize("reads", ["exposed", "all"])
@pytest.mark.parametrize("kind", ["register_prehook", "register_hook"])
def test_a_guard_that_begins_within_a_hook(tmp_path, kind, reads, where):
    program = textwrap.dedent(MEANWHILE).format(kind=kind, reads=reads, where=where)
    (tmp_path / "meanwhile.py").write_text(program)
    code, out, err = end_of(tmp_path, "meanwhile")
    assert (code, out) == (0, b"ok\n"), err.decode()[-3000:]


def damped() -> torch.Tensor:
    """Something whose backward writes a gradient that another node is still to use."""

    def damp(gradient):
        gradient *= 0.1

    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    early, late = a.exp(), b.exp()
    late.register_hook(damp)
    return ((early + late) * 2).sum()


class Held:
    """A thread that stays inside its backward."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        x = torch.ones(3, requires_grad=True) * 1
        x.register_hook(self.wait)
        (x * 2).sum().backward()

    def wait(self, _) -> None:
        self.inside.set()
        assert self.go_on.wait(60)

    def __enter__(self) -> None:
        self.thread.start()
        assert self.inside.wait(60)

    def __exit__(self, *_) -> None:
        self.go_on.set()
        self.thread.join()


def test_a_written_gradient_is_found_while_another_thread_runs_a_graph_of_its_own():
    with warnings.catch_warnings(), gradext.guard() as guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        with Held():
            damped().backward()
    assert [found.code for found in guard.diagnoses] == ["GX403"]


def test_what_runs_since_before_the_guard_is_waited_for_and_then_forgotten():
    held = Held()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gradext.GuardWarning)
        with held:
            guard = gradext.guard().start()
            damped().backward()
            assert guard.diagnoses == []  # what the other thread runs is not known
        damped().backward()
        guard.stop()
    assert [found.code for found in guard.diagnoses] == ["GX403"]


def test_a_written_gradient_is_found_in_a_backward_within_a_backward():
    def again(_):
        with torch.enable_grad():
            damped().backward()

    with warnings.catch_warnings(), gradext.guard() as guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        x = torch.ones(3, requires_grad=True) * 1
        x.register_hook(again)
        (x * 2).sum().backward()
    assert [found.code for found in guard.diagnoses] == ["GX403"]


def test_a_backward_that_failed_is_no_call_that_runs():
    with warnings.catch_warnings(), gradext.guard() as guard:
        warnings.simplefilter("ignore", gradext.GuardWarning)
        x = torch.ones(3, requires_grad=True) * 1
        y = x.exp()
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace"):
            y.sum().backward()
        damped().backward()
    assert [found.code for found in guard.diagnoses] == ["GX403"]


def test_a_child_has_none_of_the_calls_of_other_threads():
    def child():
        with warnings.catch_warnings(), gradext.guard() as guard:
            warnings.simplefilter("ignore", gradext.GuardWarning)
            damped().backward()
        return [found.code for found in guard.diagnoses] == ["GX403"]

    with gradext.guard(), Held():
        number = os.fork()
        if number == 0:
            os._exit(0 if child() else 1)
        assert os.waitpid(number, 0)[1] == 0


def test_a_change_that_two_threads_come_upon_is_told_once():
    """Both run the node; what it saved was written before."""
    with warnings.catch_warnings(record=True) as seen, gradext.guard() as guard:
        warnings.simplefilter("always")
        leaf = torch.ones(3, requires_grad=True)
        trunk = (leaf * 1).exp()
        out = trunk.sum()
        trunk.detach().numpy()[0] = 7
        all_here = threading.Barrier(4)

        def run():
            all_here.wait()
            torch.autograd.grad(out, [leaf], retain_graph=True)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found.code for found in guard.diagnoses] == ["GX401"]
    assert [times for _, times in guard.told.counts()] == [1]
    assert len([w for w in seen if issubclass(w.category, gradext.GuardWarning)]) == 1
