"""Lanes and ticks of a recording: which tensor, in which order, and what belongs to the fault."""

from __future__ import annotations

import pytest
import torch
from pages import made
from torch.utils.checkpoint import checkpoint

import gradext
from gradext import _C
from gradext.recording.recording import Recording
from gradext.reporters.timeline import picture
from gradext.reporters.timeline.picture import SAVE, USE, WRITE, Lane, Picture

NAMES = {WRITE: "write", SAVE: "save", USE: "use"}


def drawn(program: object, **options: object) -> Picture:
    events, found = made(program, **options)  # type: ignore[arg-type]
    found_picture = picture.of(events.data, events.drawing, found)
    assert found_picture is not None
    return found_picture


def faults(of: Picture) -> list[tuple[str, str]]:
    """(lane, kind) of the ticks of a fault, in their order."""
    ticks = [(tick.at, lane.name, NAMES[tick.kind]) for lane in of.lanes for tick in lane.ticks]
    bad = {tick.at for lane in of.lanes for tick in lane.ticks if tick.is_bad}
    return [(name, kind) for at, name, kind in sorted(ticks) if at in bad]


def lane(of: Picture, name: str) -> Lane:
    return next(each for each in of.lanes if each.name == name)


def written_between() -> None:
    w = torch.ones(4, requires_grad=True)
    h = torch.sigmoid(w * 2)
    h.mul_(2)
    h.sum().backward()


def written_through_a_view() -> None:
    w = torch.ones(2, 4, requires_grad=True)
    h = torch.exp(w * 2)
    h[1].zero_()
    h.sum().backward()


def stepped_between() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = net(torch.ones(2, 3)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    loss.backward()


def silently_written() -> None:
    w = torch.ones(4, requires_grad=True)
    h = torch.sigmoid(w * 2)
    out = h * h
    h.data.mul_(3)
    out.sum().backward()


def test_a_stale_save_is_save_write_use_in_red() -> None:
    found = drawn(written_between)
    assert faults(found) == [("h", "save"), ("h", "write"), ("h", "use")]
    assert found.lanes[0].name == "h"  # faults stand first
    save, write, use = (tick for tick in found.lanes[0].ticks if tick.is_bad)
    assert (save.op, save.attribute, save.before) == ("SigmoidBackward0", "result", 0)
    assert (write.op, write.before, write.after) == ("aten::mul_", 0, 1)
    assert (use.before, use.after) == (0, 1)
    code = [next(f for f in tick.frames if f.is_user).code for tick in (save, write)]
    assert code == ["h = torch.sigmoid(w * 2)", "h.mul_(2)"]


def test_a_view_stands_under_its_base() -> None:
    found = drawn(written_through_a_view)
    assert faults(found) == [("h", "save"), ("view", "write"), ("h", "use")]
    base, view = found.lanes[:2]
    assert (base.depth, view.depth, view.note) == (0, 1, "bytes 16 to 32")


def test_an_optimizer_step_between_two_backwards() -> None:
    found = drawn(stepped_between)
    kinds = [kind for _, kind in faults(found)]
    assert kinds[0] == "save"
    assert kinds[-1] == "use"
    assert "write" in kinds
    (name,) = {name for name, _ in faults(found)}
    assert name.endswith("1.weight")


def test_a_silent_write_is_of_the_fault_too() -> None:
    found = drawn(silently_written)
    assert {kind for _, kind in faults(found)} == {"save", "write", "use"}


def test_a_sound_program_has_nothing_red() -> None:
    def sound() -> None:
        net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(2, 3)).sum().backward()
            optimizer.step()

    found = drawn(sound)
    assert faults(found) == []
    assert found.counts[0] > 0
    assert found.counts[1] == found.counts[2] > 0
    assert len(found.backwards) == 3


def test_each_step_follows_the_one_before() -> None:
    """Writes, saves and uses of a loop stand in the order in which they were done."""

    def loop() -> None:
        w = torch.ones(4, requires_grad=True)
        for _ in range(3):
            (w * w).sum().backward()
            with torch.no_grad():
                w.sub_(0.1)

    (w,) = (each for each in drawn(loop).lanes if any(t.kind == SAVE for t in each.ticks))
    order = "".join(NAMES[tick.kind][0] for tick in sorted(w.ticks))
    assert order == "ssuuw" * 3


def test_what_two_backwards_use_was_saved_once() -> None:
    def twice() -> None:
        w = torch.ones(4, requires_grad=True)
        loss = torch.exp(w).sum()
        loss.backward(retain_graph=True)
        loss.backward()

    found = drawn(twice)
    (saved,) = (each for each in found.lanes if any(t.kind == SAVE for t in each.ticks))
    assert [NAMES[tick.kind] for tick in sorted(saved.ticks)] == ["save", "use", "use"]


def test_a_checkpoint_shows_what_it_packed() -> None:
    def program() -> None:
        w = torch.ones(4, requires_grad=True)
        checkpoint(lambda x: torch.exp(x * 2), w, use_reentrant=False).sum().backward()

    drawn(program)  # its saved tensors are hooked: nothing is unpacked, nothing recomputed early


def test_names_are_the_programs() -> None:
    def program() -> None:
        net = torch.nn.Linear(3, 1)
        h = torch.tanh(torch.ones(2, 3, requires_grad=True) * 2)
        out = net(h)
        h.add_(1)
        out.sum().backward()

    found = drawn(program)
    assert lane(found, "h").is_bad
    assert lane(found, "net.weight").depth == 0


def test_of_many_events_those_around_the_fault_are_drawn() -> None:
    def program() -> None:
        other = torch.zeros(2)
        for _ in range(20_000):
            other.add_(1)
        written_between()

    found = drawn(program)
    assert found.count > 20_000
    assert found.end - found.first <= picture.MOST_TICKS
    assert faults(found) == [("h", "save"), ("h", "write"), ("h", "use")]


def test_nobody_pays_who_does_not_ask() -> None:
    with gradext.record() as recording:
        written = torch.ones(3, requires_grad=True)
        (written * written).sum().backward()
    assert len(recording.data.uses) == len(recording.data.moments) == 0
    assert recording.drawing is None


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_uses_and_times_are_kept_in_a_file(suffix: str, tmp_path: object) -> None:
    with gradext.record(uses=True, times=True) as recording:
        w = torch.ones(3, requires_grad=True)
        with torch.no_grad():
            w.add_(1)
        (w * w).sum().backward()
    path = f"{tmp_path}/kept.{suffix}"
    recording.save(path)
    again = Recording.load(path).data
    assert (again.uses == recording.data.uses).all()
    assert (again.moments == recording.data.moments).all()
    assert len(again.uses) == 2
    assert "self" in {again.ops[number] for number in again.uses[:, 9].tolist()}


def test_times_end_with_the_recording() -> None:
    with gradext.record(times=True):
        torch.ones(2).add_(1)
    with gradext.record() as recording:
        torch.ones(2).add_(1)
    assert len(recording.data.moments) == 0
    assert not _C.recorder_active()
