"""check_backward() and explain(): asked by hand, before and after, with and without a recording."""

from __future__ import annotations

import builtins
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from asked import broken, failed, line_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradext
from gradext.recording import own_errors

STALE = "modified by an inplace operation"


# --- check_backward -------------------------------------------------------------------------------


def test_check_says_what_backward_would_raise() -> None:
    faults = own_errors.lines()
    with gradext.record():
        loss = broken()
        (found,) = gradext.check_backward(loss)
        assert found.code == "GX101"
        assert found.culprits[0].frame.line == line_of("asked: writes")
        assert found.victims[0].frame.line == line_of("asked: saves")
        with pytest.raises(RuntimeError, match=STALE):
            loss.backward()
    assert own_errors.lines() == faults


def test_check_without_a_recording_sees_the_versions() -> None:
    (found,) = gradext.check_backward(broken())
    assert found.code == "GX101"
    assert "version 0" in found.message
    assert "version 1" in found.message
    assert found.culprits == ()


def test_check_on_a_light_recording_names_the_write_only() -> None:
    with gradext.record(saves=False):
        (found,) = gradext.check_backward(broken())
    assert found.culprits[0].frame.line == line_of("asked: writes")
    assert found.victims == ()
    assert any("light" in note for note in found.notes)


def test_check_of_a_sound_graph_is_empty_and_counts() -> None:
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        found = gradext.check_backward((x.exp() * x).sum())
    assert found == []
    assert found.checked == 3  # the result of exp, and both factors
    assert found.unchecked == []


def test_check_takes_several_losses_and_refuses_others() -> None:
    with gradext.record():
        assert len(gradext.check_backward([broken(), broken()])) == 1
        assert gradext.check_backward(()) == []
    with pytest.raises(TypeError, match=r"^gradext.check_backward: expected a tensor .*got builti"):
        gradext.check_backward(3.0)
    with pytest.raises(TypeError, match=r"gradext.check_backward"):
        gradext.check_backward([torch.ones(1), None])


def test_check_of_a_freed_graph() -> None:
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        loss = x.exp().sum()
        loss.backward()
        (found,) = gradext.check_backward(loss)
        assert found.code == "GX302"
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_check_tells_of_a_fused_step_before_it_goes_wrong(kind: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = kind(net.parameters(), lr=0.1, fused=True)
    with gradext.record():
        y = net(torch.ones(3, 2))
        assert gradext.check_backward(y.mean()) == []
        y.mean().backward(retain_graph=True)
        optimizer.step()
        found = gradext.check_backward(y.mean())
    assert {d.code for d in found} == {"GX401"}
    assert "optimizer.step()" in found[0].culprits[0].frame.code
    assert "net[2].weight" in found[0].message


def test_check_tells_of_a_write_through_data() -> None:
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        h = x.exp()
        h.data.mul_(2)
        (found,) = gradext.check_backward(h.sum())
    assert found.code == "GX401"
    assert "`h`" in found.message


@pytest.mark.parametrize("recorded", [True, False])
def test_check_runs_no_hook_and_names_what_it_left_out(recorded: bool) -> None:
    calls: list[str] = []

    def block(t: torch.Tensor) -> torch.Tensor:
        calls.append("forward")
        return t.exp().sin()

    def pack(t: torch.Tensor) -> torch.Tensor:
        calls.append("pack")
        return t

    def unpack(t: torch.Tensor) -> torch.Tensor:
        calls.append("unpack")
        return t

    x = torch.ones(3, requires_grad=True)
    recording = gradext.record().start() if recorded else None
    try:
        y = checkpoint(block, x, use_reentrant=False)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = y.tanh()
        y.register_hook(lambda grad: calls.append("hook"))
        before = list(calls)
        found = gradext.check_backward(y.sum())
    finally:
        if recording is not None:
            recording.stop()
    assert calls == before
    assert found == []
    assert len(found.unchecked) == 3  # exp, sin, tanh
    assert all("hooks" in line for line in found.unchecked)


def test_check_changes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    x = torch.ones(2, 3)

    def states(loss: torch.Tensor, inner: torch.Tensor) -> list[Any]:
        kept = [loss, inner, *net.parameters()]
        return [(str(gradext.inspect(t)), t._version, t.requires_grad) for t in kept]

    with gradext.record():
        h = net[0](x)
        half = h[:, :2]  # a view, whose node torch makes anew when asked
        h.mul_(2)
        loss = net[2](net[1](h)).sum() + half.detach().sum()
        node, stale = loss.grad_fn, gradext.inspect(half).grad_fn_is_stale
        before = states(loss, h)
        gradext.check_backward(loss)
        assert states(loss, h) == before
        assert loss.grad_fn is node
        assert gradext.inspect(half).grad_fn_is_stale is stale is True
        loss.backward()
    got = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    again = net[0](x).mul(2)
    net[2](net[1](again)).sum().backward()
    want = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(got) == len(want) == 4
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("stale", [False, True])
def test_check_of_a_long_chain_takes_no_recursion_and_a_few_seconds(stale: bool) -> None:
    x = torch.ones(2, requires_grad=True)
    scale = torch.ones(2)
    with gradext.record():
        h = x
        for _ in range(50_000):
            h = (h * scale).sin()
        if stale:
            scale.add_(0)
        start = time.perf_counter()
        found = gradext.check_backward(h.sum())
        took = time.perf_counter() - start
    assert [d.code for d in found] == (["GX101"] if stale else [])
    assert took < 20
    assert (found.checked, found.unchecked) == (100_000, [])
    # With Python objects of its nodes a chain as long as this overflows the stack here.
    del h


def test_check_of_a_wide_graph_reads_all_of_it() -> None:
    x = torch.ones(2, requires_grad=True)
    scale = torch.ones(2)
    with gradext.record():
        parts = [(x * scale).sin() for _ in range(20_000)]
        found = gradext.check_backward(torch.stack(parts))
        assert (found, found.unchecked) == ([], [])
        assert found.checked == 40_000
        scale.add_(1)
        (stale,) = gradext.check_backward(torch.stack(parts))
    assert stale.code == "GX101"


# --- explain --------------------------------------------------------------------------------------


def test_explain_in_the_except_block() -> None:
    with gradext.record():
        try:
            broken().backward()
        except RuntimeError as error:
            (found,) = gradext.explain(error)
    assert found.culprits[0].frame.line == line_of("asked: writes")


def test_explain_a_wrapped_error() -> None:
    with gradext.record():
        try:
            try:
                broken().backward()
            except RuntimeError as error:
                raise ValueError("training failed") from error
        except ValueError as error:
            (found,) = gradext.explain(error)
        assert found.culprits[0].frame.line == line_of("asked: writes")
        try:
            try:
                broken().backward()
            except RuntimeError:
                raise KeyError("while cleaning up")  # noqa: B904
        except KeyError as error:
            (found,) = gradext.explain(error)
        assert found.code == "GX101"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_explain_a_group() -> None:
    with gradext.record():
        group = builtins.ExceptionGroup("two", [ValueError("x"), failed()])  # type: ignore
        (found,) = gradext.explain(group)
    assert found.code == "GX101"


def test_explain_after_the_block() -> None:
    with gradext.record() as outer, gradext.record() as inner:
        error = failed()
    for recording in (outer, inner):
        (found,) = gradext.explain(error, recording)
        assert found.culprits[0].frame.line == line_of("asked: writes")
        assert found.victims[0].frame.line == line_of("asked: saves")
        assert recording.explain(error) == [found]


def test_explain_after_the_block_of_an_error_that_only_the_text_tells() -> None:
    with gradext.record() as recording:
        error = failed()
    other = RuntimeError(str(error))  # as one that came back from another process
    (found,) = gradext.explain(other, recording)
    assert found.code == "GX101"
    assert found.culprits[0].frame.line == line_of("asked: writes")


def test_explain_a_refused_write_after_the_block() -> None:
    w = torch.ones(4, requires_grad=True)
    with gradext.record() as recording:
        half = w[:2]
        with pytest.raises(RuntimeError) as caught:
            half.zero_()
    (found,) = gradext.explain(caught.value, recording)
    assert found.code == "GX103"
    made = "w = torch.ones(4, requires_grad=True)"
    assert [site.frame.code for site in found.victims] == ["half = w[:2]", made]


def test_explain_without_any_recording_says_what_is_missing() -> None:
    (found,) = gradext.explain(failed())
    assert found.code == "GX101"
    assert found.culprits == ()
    assert "no recording was on" in found.notes[0]
    assert "gradext" in found.fix
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError) as caught:
        w.add_(1)
    (found,) = gradext.explain(caught.value)
    assert (found.code, found.culprits[0].frame.code) == ("GX102", "w.add_(1)")
    rows = (w * 2).unbind()
    with torch.no_grad():
        rows[0].zero_()
    with pytest.raises(RuntimeError) as caught:
        rows[1].sum()
    (found,) = gradext.explain(caught.value)
    assert (found.code, found.culprits[0].frame.code) == ("GX105", "rows[1].sum()")
    assert any("not known" in note for note in found.notes)
    loss = (w * w).sum()
    loss.backward()
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    (found,) = gradext.explain(caught.value)
    assert (found.code, found.culprits[0].frame.code) == ("GX302", "loss.backward()")
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(w.sum(), torch.ones(1, requires_grad=True))
    (found,) = gradext.explain(caught.value)
    assert found.code == "GX303"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a leaf Variable that requires grad is being used in an in-place operation."),
        RuntimeError("CUDA out of memory"),
        KeyError("x"),
        KeyboardInterrupt(),
    ],
)
def test_explain_is_silent_about_foreign_errors(error: BaseException) -> None:
    assert gradext.explain(error) == []
    with gradext.record():
        assert gradext.explain(error) == []


def test_an_old_error_is_not_taken_for_another() -> None:
    with gradext.record():
        first = failed()
        text = str(first)
        assert gradext.explain(first)[0].culprits
        assert gradext.explain(RuntimeError("unrelated")) == []
        assert gradext.explain(RuntimeError(text))[0].code == "GX101"


# --- as a program ---------------------------------------------------------------------------------

PROGRAMS = {
    "GX101": "x = torch.ones(3, requires_grad=True)\nh = x.exp()\nh += 1\nh.sum().backward()\n",
    "GX102": "w = torch.ones(3, requires_grad=True)\n\nw += 1\n",
    "GX105": "y = torch.ones(2, 2, requires_grad=True) * 2\na, b = y\na.mul_(2)\n",
    "GX302": "x = torch.ones(2, requires_grad=True)\n\ny = x.exp()\nfor _ in '12':\n"
    "    y.sum().backward()\n",
}


@pytest.mark.parametrize("code", sorted(PROGRAMS))
def test_run_writes_the_same_diagnosis(code: str, tmp_path: Path) -> None:
    script, report = tmp_path / "train.py", tmp_path / "report.json"
    script.write_text("import torch\n" + PROGRAMS[code])
    words = ("-m", "gradext", "run", "--json", str(report), str(script))
    assert forks.run(words, tmp_path, os.environ)[0] == 1
    document = json.loads(report.read_text())
    first = document["diagnoses"][0]
    assert first["code"] == code
    assert first["severity"] == "error"
    assert [first["culprits"][0]["file"], first["culprits"][0]["line"]] == [str(script), 4]
    assert first["fix"]
