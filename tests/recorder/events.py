"""What the tests of the recorder say about events, and how they run marked source.

Owns the short form of a write and the `«…»` marks that name a place in a program. Holds no test.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import gradext
from gradext import _C, ops
from gradext.diagnosis.model import Frame
from gradext.recording.events import Write
from gradext.recording.recording import Recording
from gradext.source import sites


def recorded(program: Callable[[], object], **options: Any) -> Recording:
    """Run `program` inside a recording of its own."""
    with gradext.record(**options) as recording:
        program()
    return recording


def writes(recording: Recording) -> list[Write]:
    """The writes of ops: without the notes of Python calls that only move counters."""
    return [write for write in recording.writes if not write.is_note]


def notes(recording: Recording) -> list[Write]:
    return [write for write in recording.writes if write.is_note]


def short(write: Write) -> tuple[str, int, int]:
    """(op without "aten::", version before, version after)."""
    return write.op.removeprefix("aten::"), write.version_before, write.version_after


def shorts(recording: Recording) -> list[tuple[str, int, int]]:
    return [short(write) for write in writes(recording)]


def history(recording: Recording, tensor: torch.Tensor) -> list[tuple[str, int, int]]:
    """The writes to one tensor, notes left out."""
    return [short(write) for write in recording.mutations(tensor) if not write.is_note]


def user_line(recording: Recording, event: Any) -> Frame:
    frame = sites.user_frame(recording.frames(event.stack))
    assert frame is not None
    return frame


def bytes_of(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and one past the last, counted element by element (an outside truth)."""
    if tensor.numel() == 0:
        return 0, 0
    size = tensor.element_size()
    indices = torch.arange(tensor.untyped_storage().nbytes() // size)
    at = indices.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return int(at.min()) * size, (int(at.max()) + 1) * size


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a «marked» piece of source is."""

    line: int
    column: int
    end_line: int
    end_column: int

    @property
    def known(self) -> tuple[int | None, ...]:
        """What Python keeps of it: only the line before 3.11."""
        whole = (self.line, self.column, self.end_line, self.end_column)
        return whole if sys.version_info >= (3, 11) else (self.line, None, None, None)


def place_of(frame: Frame) -> tuple[int | None, ...]:
    return frame.line, frame.column, frame.end_line, frame.end_column


def unmark(source: str) -> tuple[str, list[Place]]:
    """`source` dedented and without its « and », and the places between them, in text order."""
    source = textwrap.dedent(source).lstrip("\n")
    plain: list[str] = []
    begun: list[tuple[int, int, int]] = []
    places: dict[int, Place] = {}
    line, column, count = 1, 0, 0
    for character in source:
        if character == "«":
            begun.append((count, line, column))
            count += 1
            continue
        if character == "»":
            number, first, start = begun.pop()
            places[number] = Place(first, start, line, column)
            continue
        plain.append(character)
        line, column = (line + 1, 0) if character == "\n" else (line, column + 1)
    assert not begun
    return "".join(plain), [places[number] for number in sorted(places)]


def run_program(
    source: str, folder: Path, *, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `source` as a program of its own; fails the test where the program fails."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    outside = {k: v for k, v in os.environ.items() if not re.match("GRADEXT_|OMP_", k)}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**outside, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def is_off() -> bool:
    """Whether this thread carries nothing of the recorder."""
    keys = {torch._C._dispatch_key_name(key) for key in _C.recorder_keys()}
    return not _C.recorder_active() and not keys & set(ops.grad_mode_state().included)


def same_bits(a: Any, b: Any) -> bool:
    """Bitwise equality of two trees of tensors; NaNs of equal bits are equal."""
    from torch.utils import _pytree

    mine, tree = _pytree.tree_flatten(a)
    theirs, other = _pytree.tree_flatten(b)
    return tree == other and all(_same(x, y) for x, y in zip(mine, theirs, strict=True))


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and (a == b or (a != a and b != b))
    facts = [(t.shape, t.dtype, t.layout, t.requires_grad, t.device) for t in (a, b)]
    if facts[0] != facts[1]:
        return False
    if a.layout != torch.strided or a.is_quantized:
        return torch.equal(a.detach().to_dense(), b.detach().to_dense())
    bits = [torch.empty(t.numel(), dtype=t.dtype) for t in (a, b)]
    for copy, t in zip(bits, (a, b), strict=True):
        copy.copy_(t.detach().reshape(-1))
    return torch.equal(bits[0].view(torch.uint8), bits[1].view(torch.uint8))
