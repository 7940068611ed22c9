"""A stack that is deeper than the recorder keeps says so; one that is not does not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gradext
from gradext.recording.recording import Recording
from gradext.source.frames import CUT


def at_depth(depth: int, x: torch.Tensor) -> None:
    if depth:
        at_depth(depth - 1, x)
    else:
        x.mul_(2)


def through_c(depth: int, x: torch.Tensor) -> None:
    """Each level is called from C, for which some Pythons have a frame of the interpreter's own."""
    if depth:
        next(map(through_c, [depth - 1], [x]))
    else:
        x.mul_(2)


def here() -> int:
    frame, count = sys._getframe(1), 0
    while frame is not None:
        frame, count = frame.f_back, count + 1  # type: ignore[assignment]
    return count


LIMIT = [(200, False), (255, False), (256, False), (257, True), (258, True), (400, True)]


@pytest.mark.parametrize(("frames", "cut"), LIMIT)
@pytest.mark.parametrize("go", [at_depth, through_c])
def test_the_limit(
    go: Callable[[int, torch.Tensor], None], frames: int, cut: bool, tmp_path: Path
) -> None:
    x = torch.ones(2)
    with gradext.record() as recording:
        go(frames - here() - 1, x)
        at_depth(3, x)  # and the next stack is whole again
    deep, shallow = (recording.frames(write.stack) for write in recording.writes)
    assert (deep[-1] == CUT) is cut
    assert len(deep) == (257 if cut else frames)
    assert CUT not in shallow
    recording.save(tmp_path / "r.json")
    assert Recording.load(tmp_path / "r.json").frames(recording.writes[0].stack) == deep


@pytest.mark.parametrize(("frames", "cut"), LIMIT)
def test_the_limit_in_a_thread(frames: int, cut: bool) -> None:
    """Its outermost frame is called from C as well."""
    x = torch.ones(2)
    thread = threading.Thread(target=lambda: through_c(frames - here() - 1, x))
    with gradext.record() as recording:
        thread.start()
        thread.join()
    (write,) = recording.writes
    found = recording.frames(write.stack)
    assert (found[-1] == CUT) is cut
    assert len(found) == (257 if cut else frames)


def test_the_report_says_it() -> None:
    x = torch.ones(2, requires_grad=True)
    with gradext.record() as recording:
        y = x.exp()
        at_depth(300, y)
        with pytest.raises(RuntimeError) as error:
            y.sum().backward()
        (found,) = recording.explain(error.value)
    assert "(and more: the stack was deeper than the 256 frames that are kept)" in str(found)
    assert found.to_json()["culprits"][0]["callers_cut"] is True
    assert "callers_cut" not in found.to_json()["victims"][0]
    assert "<more callers>" not in str(found)
