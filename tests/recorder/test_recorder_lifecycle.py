"""Start, stop and nesting: what is on when, what is put back, and what a Recording still knows."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from events import history, is_off, run_program, short, shorts, writes

import gradext
from gradext import _C, ops
from gradext.native import torch_internals
from gradext.recording import recording as recording_module
from gradext.recording import running


def wrapped() -> list[Any]:
    """Everything that a recording replaces."""
    optimizer: Any = sys.modules["torch.optim.optimizer"]
    return [
        torch.autograd.graph._engine_run_backward,
        torch.autograd._engine_run_backward,  # type: ignore[attr-defined]
        vars(torch.autograd.function.FunctionCtx)["mark_dirty"],
        torch.autograd.graph.increment_version,
        torch._C._increment_version,  # type: ignore[attr-defined]
        torch._C._autograd._unsafe_set_version_counter,
        vars(threading.Thread)["_bootstrap_inner"],
        vars(torch_internals.APPLY_OWNER).get("apply"),
        dict(optimizer._global_optimizer_pre_hooks),
        dict(optimizer._global_optimizer_post_hooks),
    ]


@pytest.fixture(autouse=True)
def _off_before_and_after() -> Iterator[None]:
    before = wrapped()
    assert is_off()
    yield
    gc.collect()
    assert is_off()
    after = wrapped()
    assert [a is b or a == b for a, b in zip(before, after, strict=True)] == [True] * len(before)
    assert not running.recordings
    x = torch.ones(3)
    x.neg_()
    assert _C.recorder_snapshot(0)["writes"].shape == (0, 15)


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_the_key_is_there_only_while_it_records(saves: bool) -> None:
    names = [torch._C._dispatch_key_name(key) for key in _C.recorder_keys()]
    included = []
    for _ in range(2):
        included.append(set(ops.grad_mode_state().included))
        with gradext.record(saves=saves):
            included.append(set(ops.grad_mode_state().included))
    included.append(set(ops.grad_mode_state().included))
    assert [bool(keys & set(names)) for keys in included] == [False, True, False, True, False]
    assert included[0] == included[2] == included[4]


def test_on_inside_off_outside() -> None:
    before = wrapped()
    x = torch.ones(3)
    x.neg_()
    with gradext.record() as recording:
        assert recording.is_running
        assert not is_off()
        changed = wrapped()
        x.cos_()
    x.sin_()
    assert is_off()
    assert not recording.is_running
    assert history(recording, x) == [("cos_", 1, 2)]
    same = [a is b for a, b in zip(before[:8], changed[:8], strict=True)]
    assert same[0] is same[1] is same[2] is same[6] is False


def test_reading_while_it_runs() -> None:
    x = torch.ones(3)
    with gradext.record() as recording:
        x.neg_()
        assert shorts(recording) == [("neg_", 0, 1)]
        assert history(recording, x) == [("neg_", 0, 1)]
        assert re.fullmatch(r"<gradext\.Recording running, 1 writes, \d+ saves>", repr(recording))
        x.cos_()
        assert shorts(recording) == [("neg_", 0, 1), ("cos_", 1, 2)]
    assert shorts(recording) == [("neg_", 0, 1), ("cos_", 1, 2)]
    assert repr(recording).startswith("<gradext.Recording stopped, 2 writes, ")
    with gradext.record(saves=False) as light:
        x.neg_()
    assert repr(light) == "<gradext.Recording stopped, saves=False, 1 writes, 0 saves>"


@pytest.mark.parametrize("outer_saves", [True, False], ids=["in full", "in light"])
@pytest.mark.parametrize("inner_saves", [True, False], ids=["full", "light"])
def test_nested(outer_saves: bool, inner_saves: bool) -> None:
    x = torch.ones(3)
    w = torch.ones(3, requires_grad=True)
    kept = []
    with gradext.record(saves=outer_saves) as outer:
        x.neg_()
        kept.append(w.sin())
        with gradext.record(saves=inner_saves) as inner:
            x.cos_()
            kept.append(w.sin())
            assert recording_module.current() is inner
        x.sin_()
        kept.append(w.sin())
        assert recording_module.current() is outer
    assert shorts(outer) == [("neg_", 0, 1), ("cos_", 1, 2), ("sin_", 2, 3)]
    assert shorts(inner) == [("cos_", 1, 2)]

    def line(recording: gradext.Recording, k: int) -> str | None:
        node: Any = kept[k].grad_fn
        (thread,) = {thread for _, _, thread, s, _, _ in _C.graph([kept[k]])[0] if s is not None}
        frames = recording.frames(recording.data.node_stack(thread, node._sequence_nr())[0])
        return frames[0].code if frames else None

    sin = "kept.append(w.sin())"
    if outer_saves:
        assert [line(outer, k) for k in range(3)] == [sin] * 3
    else:
        assert line(outer, 0) is None
    if inner_saves:
        assert line(inner, 1) == sin


def test_stopped_out_of_order() -> None:
    x = torch.ones(3)
    first = gradext.record().start()
    x.neg_()
    second = gradext.record(saves=False).start()
    x.cos_()
    first.stop()
    assert not first.is_running
    assert recording_module.current() is second
    assert not is_off()
    x.sin_()
    second.stop()
    assert is_off()
    assert shorts(first) == [("neg_", 0, 1), ("cos_", 1, 2)]
    assert shorts(second) == [("cos_", 1, 2), ("sin_", 2, 3)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_passes_and_it_is_off(error: type[BaseException]) -> None:
    x = torch.ones(3)
    recordings: list[gradext.Recording] = []

    def program() -> None:
        with gradext.record() as outer, gradext.record(saves=False) as inner:
            recordings.extend((outer, inner))
            x.neg_()
            raise error

    with pytest.raises(error):
        program()
    assert [shorts(r) for r in recordings] == [[("neg_", 0, 1)]] * 2


def test_an_error_of_torch_leaves_the_recorder_in_order() -> None:
    x = torch.ones(3)
    with gradext.record() as recording:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="must match the size"):
                x.add_(torch.ones(4))
        x.neg_()
        x.cos_()
    assert shorts(recording) == [("neg_", 0, 1), ("cos_", 1, 2)]
    assert [r.op for r in recording.refused] == ["aten::add_"] * 3


def test_an_error_in_backward_leaves_saves_on() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x.sin()
    z = y.sum()
    z.backward()
    with gradext.record() as recording:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            z.backward()
        fresh = x.cos()
    assert fresh.grad_fn is not None
    numbers = recording.data.saves[:, 1].tolist()
    assert fresh.grad_fn._sequence_nr() in numbers


def test_a_generator_that_is_never_finished() -> None:
    def steps() -> Iterator[int]:
        with gradext.record():
            yield 1

    generator = steps()
    next(generator)
    assert not is_off()
    generator.close()
    assert is_off()


def test_a_recording_starts_once() -> None:
    recording = gradext.record()
    with pytest.raises(RuntimeError, match="has not been started"):
        recording.data  # noqa: B018
    assert repr(recording) == "<gradext.Recording not started>"
    with recording:
        with pytest.raises(RuntimeError, match="a Recording starts once"):
            recording.start()
        assert not is_off()
    with pytest.raises(RuntimeError, match="a Recording starts once"):
        recording.start()
    assert recording.stop() is recording
    assert recording.stop() is recording


def test_stop_without_start_does_nothing() -> None:
    gradext.record().stop()


@pytest.mark.parametrize("memory", [0, -1, 64 << 20, 1 << 40])
@pytest.mark.parametrize("begin", [gradext.record, gradext.install])
def test_memory_that_no_machine_has(memory: int, begin: Any) -> None:
    said = (
        rf"gradext\.{begin.__name__}: memory is in MiB, from 1 to the [\d,]+ of this machine; got "
    )
    with pytest.raises(ValueError, match=f"{said}{memory:,}$"):
        begin(memory=memory)
    assert is_off()


@pytest.mark.parametrize("memory", ["64", 1.5, [1], True])
@pytest.mark.parametrize("begin", [gradext.record, gradext.install])
def test_memory_that_is_no_whole_number(memory: Any, begin: Any) -> None:
    said = rf"gradext\.{begin.__name__}: memory is in MiB, a whole number such as 64; got "
    with pytest.raises(TypeError, match=said + type(memory).__name__):
        begin(memory=memory)
    assert is_off()


def test_memory_is_in_mebibytes() -> None:
    with gradext.record(memory=3) as recording:
        assert recording.memory["limit_bytes"] == 3 << 20


@pytest.mark.parametrize("value", [None, 3, "x", [torch.ones(1)]])
def test_mutations_of_what_is_no_tensor(value: Any) -> None:
    with gradext.record() as recording:
        pass
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    with pytest.raises(TypeError, match=f"expected a torch.Tensor, got {name}"):
        recording.mutations(value)


def test_many_starts_and_stops() -> None:
    x = torch.ones(3)
    for k in range(200):
        with gradext.record(saves=k % 2 == 0) as recording:
            x.neg_()
        x.neg_()
        assert [short(w) for w in writes(recording)] == [("neg_", 2 * k, 2 * k + 1)]


def test_somebody_elses_wrapper_stays() -> None:
    graph = torch.autograd.graph
    original = graph._engine_run_backward
    calls = []
    with gradext.record():
        ours = graph._engine_run_backward

        def theirs(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return ours(*args, **kwargs)

        graph._engine_run_backward = theirs
    try:
        assert graph._engine_run_backward is theirs
        x = torch.ones(1, requires_grad=True)
        y = (x.sin(),)
        theirs(y, (torch.ones(1),), False, False, (), accumulate_grad=True)
        assert calls == [1]
        assert torch.equal(x.grad, x.detach().cos())
    finally:
        graph._engine_run_backward = original


def test_profiler_and_anomaly_mode_beside_it() -> None:
    x = torch.ones(3, requires_grad=True)
    y = torch.ones(3)
    with (
        gradext.record() as recording,
        torch.profiler.profile() as profile,
        torch.autograd.detect_anomaly(check_nan=False),
    ):
        y.neg_()
        (x * 2).sum().backward()
    assert history(recording, y) == [("neg_", 0, 1)]
    assert "aten::neg_" in {event.key for event in profile.key_averages()}


def test_import_adds_nothing_and_starts_nothing(tmp_path: Path) -> None:
    done = run_program(
        """
        import sys, torch
        bootstrap = __import__("threading").Thread._bootstrap_inner
        before = torch.autograd.graph._engine_run_backward
        import gradext
        from gradext import _C
        assert torch.autograd.graph._engine_run_backward is before
        assert __import__("threading").Thread._bootstrap_inner is bootstrap
        assert not _C.recorder_active()
        assert not {"rich", "matplotlib"} & set(sys.modules)
        """,
        tmp_path,
    )
    assert done.stderr == ""


def test_a_program_may_end_while_recording(tmp_path: Path) -> None:
    done = run_program(
        """
        import threading, time
        import torch
        import gradext
        recording = gradext.record().start()
        x = torch.ones(3)
        written = threading.Event()
        def work():
            x.neg_()
            written.set()
            while True:
                time.sleep(0.001)
        threading.Thread(target=work, daemon=True).start()
        written.wait()
        x.cos_()
        print("end")
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("end\n", "")


def test_exit_stack_of_recordings() -> None:
    x = torch.ones(3)
    with contextlib.ExitStack() as stack:
        recordings = [stack.enter_context(gradext.record(saves=k % 2 == 0)) for k in range(10)]
        x.neg_()
    assert [shorts(r) for r in recordings] == [[("neg_", 0, 1)]] * 10
