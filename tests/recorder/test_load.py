"""Programs that fill the journal, and whatever grows beside it: what is kept, bounded and said."""

from __future__ import annotations

import types
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from events import run_program, user_line, writes

import gradext
from gradext import _C
from gradext.recording import events, incidents, overlap

MIB = 1 << 20
SLACK = 256 << 10
FEW = 1000  # events that fit
MANY = 60_000  # writes, of which a journal of 1 MiB has forgotten the first


def write(x: torch.Tensor) -> None:
    x.neg_()


def renewed(number: int) -> Any:
    """`write` with a code object of its own, which says that it stands in line `number`."""
    code = write.__code__
    return types.FunctionType(code.replace(co_firstlineno=number), globals())


def fill(count: int) -> None:
    x = torch.zeros(1)
    for _ in range(count):
        x.neg_()


def new_code(count: int, start: int = 0) -> list[weakref.ref[types.CodeType]]:
    """Runs code objects that nothing else holds, one write each."""
    x = torch.zeros(1)
    seen = []
    for number in range(start + 1, start + count + 1):
        function = renewed(number)
        function(x)
        seen.append(weakref.ref(function.__code__))
    return seen


# --- the culprit ----------------------------------------------------------------------------------


def stale(before: int, between: int, after: int) -> torch.Tensor:
    x = torch.ones(3, requires_grad=True)
    fill(before)
    y = x.exp()
    fill(between)
    y.mul_(2)
    fill(after)
    return y.sum()


@pytest.mark.parametrize(
    ("before", "between", "after"),
    [(MANY, 0, 0), (0, MANY, 0), (MANY, MANY, FEW), (0, 0, FEW), (MANY, FEW, FEW)],
)
def test_a_culprit_that_was_kept_is_found(before: int, between: int, after: int) -> None:
    with gradext.record(memory=1) as recording:
        loss = stale(before, between, after)
        with pytest.raises(RuntimeError) as raised:
            loss.backward()
        (found,) = gradext.explain(raised.value)
        assert (recording.dropped["writes"] > 0) == (before + between + after >= MANY)
    assert [site.frame.code for site in found.culprits] == ["y.mul_(2)"]
    assert [site.frame.code for site in found.victims] == ["y = x.exp()"]
    assert not any("no room" in note for note in found.notes)


@pytest.mark.parametrize(("before", "between"), [(0, 0), (MANY, 0), (0, MANY)])
def test_a_culprit_that_was_dropped_is_said_to_be(before: int, between: int) -> None:
    with gradext.record(memory=1) as recording:
        loss = stale(before, between, MANY)
        with pytest.raises(RuntimeError) as raised:
            loss.backward()
        (found,) = gradext.explain(raised.value)
        dropped = recording.dropped["writes"]
    assert found.culprits == ()
    assert [site.frame.code for site in found.victims] == ["y = x.exp()"]
    (note,) = (note for note in found.notes if "no room" in note)
    assert f"{dropped:,} older writes" in note
    assert "--memory" in note


def test_a_victim_that_was_dropped_is_said_to_be() -> None:
    w = torch.ones(1, requires_grad=True)
    with gradext.record(memory=1) as recording:
        x = torch.ones(3, requires_grad=True)
        y = x.exp()
        for _ in range(20_000):
            w.sin()
            w.cos()
        y.mul_(2)
        with pytest.raises(RuntimeError) as raised:
            y.sum().backward()
        (found,) = gradext.explain(raised.value)
        dropped = recording.dropped["saves"]
    assert [site.frame.code for site in found.culprits] == ["y.mul_(2)"]
    assert found.victims == ()
    assert any(f"{dropped:,} older saves" in note for note in found.notes)


def test_a_cut_that_was_dropped_is_said_to_be() -> None:
    with gradext.record(memory=1) as recording:
        x = torch.ones(3, requires_grad=True)
        loss = x.detach().sum()
        kept = [x.detach() for _ in range(5000)]
        with pytest.raises(RuntimeError) as raised:
            loss.backward()
        (found,) = gradext.explain(raised.value)
        assert recording.dropped["flows"] > 0
        assert recording.flow(kept[-1]) is not None  # the oldest go
        assert recording.flow(kept[0]) is None
    assert any("older values without gradient" in note for note in found.notes)


# --- what stands beside the events ----------------------------------------------------------------


def test_code_that_nobody_else_holds_is_bounded() -> None:
    with gradext.record(memory=1) as recording:
        seen = new_code(20_000)
        memory = recording.memory
        kept = writes(recording)
        assert len({w.stack for w in kept}) == len(kept)
        lines = [user_line(recording, w).line for w in kept[-500:]]
    assert sum(code() is not None for code in seen) < 6000
    assert memory["stack_bytes"] < 4 * MIB
    assert memory["stacks_dropped"] > 0
    assert lines == [number + 1 for number in range(19_501, 20_001)]


def test_code_that_the_program_holds_is_not_forgotten() -> None:
    functions = [renewed(number) for number in range(1, 8001)]
    x = torch.zeros(1)
    with gradext.record(memory=1) as recording:
        for function in functions:
            function(x)
        kept = writes(recording)
        lines = [user_line(recording, w).line for w in kept]
    assert lines == [number + 1 for number in range(8001 - len(kept), 8001)]


def descend(depth: int, path: int, x: torch.Tensor) -> None:
    if depth == 0:
        x.neg_()
    elif path & 1:
        descend(depth - 1, path >> 1, x)
    else:
        descend(depth - 1, path >> 1, x)


def test_recursion_in_ever_new_ways_is_bounded_and_the_latest_is_whole() -> None:
    x = torch.zeros(1)
    with gradext.record(memory=1) as recording:
        for path in range(20_000):
            descend(20, path * 7919 % (1 << 20), x)
        memory = recording.memory
        latest = writes(recording)[-1]
        frames = recording.frames(latest.stack)
    assert memory["stacks"] <= 4 * MIB / 48
    assert memory["stack_bytes"] < 12 * MIB
    assert user_line(recording, latest).code == "x.neg_()"
    assert [frame.function for frame in frames[:21]] == ["descend"] * 21
    assert len({frame.line for frame in frames[1:21]}) == 2


@pytest.mark.parametrize("how", ["ended", "running", "copied"])
def test_the_stacks_of_what_was_recorded_are_kept(how: str) -> None:
    """A number of a stack is read late, perhaps when the recording has long ended."""
    x = torch.zeros(1)
    with gradext.record(memory=4) as recording:
        renewed(123_456)(x)
        data = recording.data if how == "copied" else None
        if how != "ended":
            new_code(FEW * 4)
    if how == "ended":
        with gradext.record(memory=1):
            new_code(FEW * 20)
    elif how == "copied":
        with gradext.record(memory=1):
            fill(FEW)
    rows = recording.data if data is None else data
    first = rows.write(rows.writes[0])
    assert any(frame.function == "write" for frame in rows.frames(first.stack)) or any(
        frame.function.startswith("test_") for frame in rows.frames(first.stack)
    )


def test_the_line_that_switched_grad_mode_off_is_kept() -> None:
    x = torch.ones(3, requires_grad=True)
    with gradext.record(memory=1) as recording, torch.no_grad():
        new_code(20_000)
        y = x.exp()
        flow = recording.flow(y)
        assert flow is not None
        frames = recording.frames(flow.mode)
    assert any("torch.no_grad()" in frame.code for frame in frames)


def test_tensors_without_end_are_bounded() -> None:
    kept = [torch.zeros(1) for _ in range(20_000)]
    count = 3 * len(kept)
    with gradext.record(memory=1) as recording:
        for _ in range(3):
            for tensor in kept:
                tensor.neg_()
        assert recording.memory["held_bytes"] <= MIB + SLACK
        found = writes(recording)
        assert len(found) + recording.dropped["writes"] == count
        assert len(found) > 1000
        assert [w.version_after for w in recording.mutations(kept[-1])] == [3]
        assert list(recording.mutations(kept[0])) == []
    assert len({w.storage for w in found}) == len(found)


def test_shapes_without_end_are_bounded_and_none_is_made_up() -> None:
    x = torch.zeros(100, 100)
    shapes = [(rows, columns) for rows in range(2, 90) for columns in range(2, 90)]
    with gradext.record(memory=1) as recording:
        for shape in shapes:
            x.as_strided(shape, (100, 1)).neg_()
        assert recording.memory["held_bytes"] <= MIB + SLACK
        found = writes(recording)
    assert all((w.geometry is None) == w.has_unknown_holes for w in found)
    unknown = next(w for w in found if w.has_unknown_holes)
    assert overlap.overlap(unknown, 0, 4, (1,), (1,)) is None
    assert overlap.overlap(unknown, unknown.end // 4, 4, (1,), (1,)) is False
    known = [(w.geometry[1], w.end) for w in found if w.geometry is not None]
    assert known
    assert all(end == ((sizes[0] - 1) * 100 + sizes[1]) * 4 for sizes, end in known)


def leave(x: torch.Tensor) -> None:
    x.exp().sum().item()


def test_cuts_at_ever_new_places_are_bounded_and_hide_no_later_one() -> None:
    """Of each the leaves behind it are noted, which are others each time here."""
    weight = torch.ones(3, requires_grad=True)
    told: list[Any] = []
    forget = incidents.subscribe(lambda incident: told.extend(incident.diagnoses))
    try:
        with gradext.record(memory=1) as recording:
            before = recording.memory["held_bytes"]
            for number in range(1, 3001):
                code = leave.__code__.replace(co_firstlineno=number)
                types.FunctionType(code, globals())(torch.ones(3, requires_grad=True))
            assert recording.memory["held_bytes"] <= MIB + SLACK
            assert recording.memory["held_bytes"] > before
            inner = torch.tensor(weight.exp().tolist(), requires_grad=True)
            read = recording.data.flows_with(events.TO_PYTHON)[-1]
            leaves = _C.leaves_behind(read.number & 0xFFFFFFFF)
            (inner * 2).sum().backward()
    finally:
        forget()
    assert [(is_reached, lives) for _, is_reached, lives in leaves] == [(False, True)]
    assert [found.code for found in told] == ["GX304"]
    assert [site.frame.code for site in told[0].culprits] == [
        "inner = torch.tensor(weight.exp().tolist(), requires_grad=True)"
    ]


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_leaf_that_a_backward_has_reached_stays_so_when_room_is_made(is_trained: bool) -> None:
    """Else what is read of a trained model at the end of a long run would be told of."""
    weight = torch.ones(3, requires_grad=True)
    with gradext.record(memory=1) as recording:
        scale = weight.sum().item()
        if is_trained:
            (weight * scale).sum().backward()
        for number in range(1, 3001):
            code = leave.__code__.replace(co_firstlineno=number)
            types.FunctionType(code, globals())(torch.ones(3, requires_grad=True))
        weight.exp().sum().item()
        latest = recording.data.flows_with(events.TO_PYTHON)[-1]
        leaves = _C.leaves_behind(latest.number & 0xFFFFFFFF)
    assert [(is_reached, lives) for _, is_reached, lives in leaves] == [(is_trained, True)]


# --- what it costs --------------------------------------------------------------------------------

COST = """
import time, types
import torch
import gradext

x = torch.zeros(1)
w = torch.ones(1, requires_grad=True)
leaf = torch.zeros(3, requires_grad=True)
def write(x):
    x.neg_()
number = 0
def writing(count):
    for _ in range(count):
        x.neg_()
def saving(count):
    for _ in range(count // 2):
        w.sin()
        w.cos()
def viewing(count):
    with torch.no_grad():
        for _ in range(count):
            leaf[0]
def cutting(count):
    for _ in range(count):
        w.detach()
def renewing(count):
    global number
    for _ in range(count):
        number += 1
        types.FunctionType(write.__code__.replace(co_firstlineno=number), globals())(x)
tensors = [torch.zeros(1) for _ in range(30_000)]
def spreading(count):
    for k in range(count):
        tensors[k % len(tensors)].neg_()
torch.set_num_threads(1)
with gradext.record(memory=1) as recording:
    KIND(2000)
    times = []
    for tenth in range(10):
        start = time.process_time()
        KIND(COUNT // 10)
        times.append(time.process_time() - start)
    assert sum(recording.dropped.values()) > COUNT // 2
print(min(times[-3:]) / min(times[:3]))
"""


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("writing", 300_000),
        ("saving", 100_000),
        ("viewing", 100_000),
        ("cutting", 100_000),
        ("renewing", 50_000),
        ("spreading", 100_000),
    ],
)
def test_an_event_costs_the_same_to_the_end(kind: str, count: int, tmp_path: Path) -> None:
    done = run_program(COST.replace("KIND", kind).replace("COUNT", str(count)), tmp_path)
    assert float(done.stdout) < 5
