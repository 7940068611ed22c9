"""Traces for Perfetto: the clock and the threads are those of torch.profiler's."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

import gradext
from gradext.diagnosis.run_report import RunReport
from gradext.recording.drawing import Drawn
from gradext.reporters import perfetto

SIZE = 400  # ops that take long beside what a clock is off by


def traces(program: Callable[[], object], folder: Path) -> tuple[list[Any], list[Any]]:
    """(gradext's events, the profiler's slices) of one run, in Unix nanoseconds."""
    with gradext.record(uses=True, times=True) as recording:
        config = _ExperimentalConfig(profile_all_threads=True)
        with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as profiler:
            program()
        assert recording.drawing is not None
        drawn = Drawn(recording.data, recording.drawing)
    profiler.export_chrome_trace(str(folder / "profiler.json"))
    theirs = json.loads((folder / "profiler.json").read_text())
    ours = json.loads(perfetto.text(RunReport("0", "2", 0, None, (), drawn=drawn)))
    assert ours["baseTimeNanoseconds"] == theirs["baseTimeNanoseconds"]
    return ours["traceEvents"], [e for e in theirs["traceEvents"] if e.get("ph") == "X"]


def around(event: Any, slices: list[Any]) -> set[str]:
    """The names of the slices of its thread that contain an event."""
    return {
        each["name"]
        for each in slices
        if each["tid"] == event["tid"]
        and each["pid"] == event["pid"]
        and each["ts"] <= event["ts"] <= each["ts"] + each["dur"]
    }


def train() -> None:
    w = torch.rand(SIZE, SIZE, requires_grad=True)
    x = torch.rand(SIZE, SIZE)
    torch.sigmoid(x @ w).sum().backward()
    with torch.no_grad():
        w.mul_(0.5)


def in_another_thread() -> None:
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()


def steps() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE), torch.nn.Tanh())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.rand(SIZE, SIZE)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("program", [train, in_another_thread, steps])
def test_a_slice_contains_each_event(program: Callable[[], object], tmp_path: Path) -> None:
    # The profiler sets its clock by the system's once in a run: where it is interrupted in between,
    # all its slices lie a little beside the truth. Not three times in a row.
    for _ in range(3):
        events, slices = traces(program, tmp_path)
        kinds = {event["name"].split(":")[0] for event in events}
        assert kinds == {"write", "save", "use"}
        outside = [event for event in events if not is_within(event, slices)]
        if not outside:
            return
    assert outside == []


def is_within(event: Any, slices: list[Any]) -> bool:
    kind, _, name = event["name"].partition(": ")
    found = around(event, slices)
    if kind == "write" or kind == "use":
        return name in found
    # The op that made the node: SigmoidBackward0 by aten::sigmoid.
    op = name.removesuffix("Backward0").lower()
    return any(op in each.replace("_", "") for each in found)


def test_events_tell_versions_and_lines(tmp_path: Path) -> None:
    events, _ = traces(train, tmp_path)
    (write,) = (e for e in events if e["name"] == "write: aten::mul_")
    assert write["args"]["versions"] == "0 -> 1"
    assert write["args"]["code"] == "w.mul_(0.5)"
    (use,) = (e for e in events if e["name"] == "use: SigmoidBackward0")
    assert use["args"]["result"].startswith("saved at version 0, at 0 as backward began")


def test_each_node_is_saved_and_used_once(tmp_path: Path) -> None:
    events, _ = traces(train, tmp_path)
    names = [event["name"] for event in events if event["name"].startswith(("save", "use"))]
    assert len(names) == len(set(names))
    saved = {name.partition(": ")[2] for name in names if name.startswith("save")}
    assert saved == {name.partition(": ")[2] for name in names if name.startswith("use")}


def test_without_events_it_is_a_trace_too() -> None:
    assert json.loads(perfetto.text(RunReport("0", None, 0, None, ())))["traceEvents"] == []


def test_a_program_imports_torch_itself(tmp_path: Path) -> None:
    """Nothing of torch is there before the program, whatever is to be drawn of it."""
    (tmp_path / "first.py").write_text("import sys; print('torch' in sys.modules)")
    options = ("--perfetto", "trace.json", "--html", "page.html")
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", *options, "first.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
    assert "Nothing was found." in (tmp_path / "page.html").read_text()


def test_run_writes_page_and_trace(tmp_path: Path) -> None:
    program = """
        import torch
        w = torch.ones(3, requires_grad=True)
        h = torch.sigmoid(w * 2)
        h.mul_(2)
        h.sum().backward()
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(program))
    options = ("--perfetto", "trace.json", "--html", "page.html", "--quiet")
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", *options, "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if not line.startswith("  File ")]
    assert "gradext" not in "\n".join(told)  # a folder may have the name
    trace = json.loads((tmp_path / "trace.json").read_text())
    names = [event["name"] for event in trace["traceEvents"]]
    assert "write: aten::mul_" in names
    assert "use: SigmoidBackward0" in names  # it began, and failed
    page = (tmp_path / "page.html").read_text()
    assert '<p class="name">h' in page
    assert "GX101" in page
