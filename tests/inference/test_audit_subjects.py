"""gradext.audit_inference: subjects of every kind, the caller's process, births."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import threading
import types

import numpy
import pytest
import subjects
import torch
from audits import X, audit, statuses
from torch import nn

import gradext
from gradext.diagnosis.model import Frame
from gradext.inference_audit import experiments, survivors
from gradext.inference_audit.audit import audit as whole_audit
from gradext.inference_audit.report import CHECKS

T = torch.ones(1)

# --- subjects of every kind, and the caller's process --------------------------------------------


@pytest.mark.parametrize(
    ("subject", "title", "path"),
    [
        (subjects.Rope(), "Rope", "model._cache[16]"),
        (subjects.Rope().forward, "Rope.forward", "model._cache[16]"),
        (functools.partial(subjects.Rope()), "Rope", "Rope.func._cache[16]"),
        (functools.partial(subjects.closing_over()), "step", "step.func.<closure>.kept[0]"),
    ],
)
def test_subjects_are_named(subject, title, path):
    report = audit(subject)
    assert report.subject == title
    assert report["kept tensors"].paths == (path,)


def test_keyword_arguments_go_to_the_subject():
    report = gradext.audit_inference(subjects.zeroes_its_input, x=X.clone())
    assert report["writes"].paths == ("x",)


def facts(net, x):
    return (
        [(name, t._version, t.clone(), t.grad) for name, t in net.state_dict().items()],
        [(t._version, t.clone(), t.requires_grad) for t in (x,)],
        [module.training for module in net.modules()],
    )


def process_facts():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        [str(item) for item in numpy.random.get_state()],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        set(threading.enumerate()),
        threading.Thread.start,
    )


@pytest.mark.parametrize("fork", [True, False])
def test_the_callers_process_is_as_before(fork):
    net = nn.Sequential(subjects.Count(), subjects.Average(), nn.Dropout(0.5), nn.Tanh()).train()
    net[3].eval()
    x = X.clone()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before = facts(net, x), process_facts()
            report = whole_audit(net, (x,), fork=fork)
            assert str((facts(net, x), process_facts())) == str(before)
    assert report.isolation == ("process" if fork else "copy")
    assert [p.grad for p in net.parameters()] == [None] * 4
    assert not net[1].mean.is_inference()


@pytest.mark.parametrize("fork", [True, False])
def test_what_a_subject_draws_and_switches_is_put_back(fork):
    net = subjects.Restless().train()
    before = process_facts()
    report = audit(net, fork=fork)
    assert report.isolation == ("process" if fork else "none")
    assert report["same outputs"].status == "pass"
    assert process_facts() == before
    assert (net.training, net.up.training) == (True, True)


def test_what_can_be_neither_forked_nor_copied_is_not_trained():
    net = subjects.Uncopyable()
    report = audit(net, fork=False)
    assert report.isolation == "none"
    assert statuses(report) == {
        "runs": "pass",
        "same outputs": "pass",
        "writes": "pass",
        "parameters and buffers": "pass",
        "kept tensors": "warn",
        "train step": "skipped",
        "no_grad afterwards": "skipped",
        "deepcopy": "skipped",
        "state_dict": "skipped",
        "to": "skipped",
        "save and load": "skipped",
        "threads": "skipped",
    }
    assert report.not_checked[1] == (
        "nothing was isolated: it ran on the object itself in this process (asked not to fork, "
        "and a deep copy failed: TypeError: cannot pickle '_thread.lock' object)"
    )
    assert report["kept tensors"].message.endswith("; in this process too: `model._cache[16]`")
    assert [p.grad for p in net.parameters()] == [None, None]


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_callers_own_mode_does_not_matter(mode, fork):
    rope, clean, x = subjects.Rope(), subjects.Clean(), X.clone()
    with mode():
        assert audit(rope, x, fork=fork)["train step"].paths == ("model._cache[16]",)
        report = audit(clean, x, fork=fork)
    assert statuses(report) == dict.fromkeys(CHECKS, "pass")


def test_a_fork_after_parallel_kernels_and_a_backward_does_not_hang():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        net = nn.Linear(700, 700)
        x = torch.randn(700, 700)
        net(x).sum().backward()
        report = audit(net, x, seconds=60)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert report.isolation == "process"
    assert statuses(report) == dict.fromkeys(CHECKS, "pass")


def test_under_a_recording_that_runs():
    with gradext.record() as recording:
        report = audit(subjects.Rope())
        y = torch.ones(2)
        y.add_(1)
    assert report["train step"].status == "fail"
    assert len(recording.mutations(y)) == 1


# --- births, from a recording made by hand ------------------------------------------------------


def frame(file, number, function="f"):
    return Frame(file, number, function, is_user="site-packages" not in file)


class Recorded:
    """What Recording.birth() will answer, and the stacks that it points to."""

    def __init__(self, born, entered):
        self.stacks = {1: born, 2: entered}

    def birth(self, tensor):
        return types.SimpleNamespace(op="aten::cos", stack=1, mode=2, order=1, is_inference=True)

    def frames(self, stack):
        return self.stacks[stack]


AUDIT = Frame(experiments.__file__, 1, "_call", is_user=False)
CALLER = frame("/home/me/ask.py", 3)
TORCH = Frame(torch.nn.__file__, 5, "_call_impl", is_user=False)


def test_births_are_lines_of_the_audited_code_alone():
    installed = frame("/env/site-packages/transformers/rope.py", 7)
    recording = Recorded((TORCH, installed, TORCH, AUDIT, CALLER), (TORCH, AUDIT, CALLER))
    born, entered = survivors.birth_sites(recording, T)
    assert (born.frame.file, born.frame.line) == (installed.file, 7)
    assert born.op == "aten::cos"
    assert born.stack == (TORCH,)
    assert born.callers == ()
    assert entered is None  # the audit's own inference_mode


def test_the_mode_that_a_model_enters_has_its_line():
    model = frame("/home/me/model.py", 9)
    recording = Recorded((model, AUDIT, CALLER), (TORCH, model, AUDIT, CALLER))
    _, entered = survivors.birth_sites(recording, T)
    assert (entered.frame.line, entered.label) == (9, "inference_mode is entered here")


def test_what_was_made_unrecorded_has_no_line():
    with gradext.record() as recording:
        assert survivors.birth_sites(recording, T) == (None, None)


def test_a_process_whose_autograd_has_threads_is_audited_on_a_copy():
    """A fork of such a process cannot run backward. Backwards within each other, 60 deep, do it."""
    program = """
import torch
import gradext


class Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, depth):
        ctx.depth = depth
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.depth:
            with torch.enable_grad():
                x = torch.ones(1, requires_grad=True)
                Again.apply(x, ctx.depth - 1).backward()
        return gradient, None


Again.apply(torch.ones(1, requires_grad=True), 100).backward()
report = gradext.audit_inference(torch.nn.Linear(2, 2), torch.ones(1, 2))
print(report.isolation, report["train step"].status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "copy pass\n"
