"""Which tensors outlive a call, who holds them, and which were written by it."""

from __future__ import annotations

import dataclasses
import gc
import os
from typing import Any

import torch

from gradext.base import package
from gradext.diagnosis.model import Frame, Site
from gradext.inference_audit import result_trees
from gradext.inference_audit.isolation import Subject
from gradext.native import _C
from gradext.objects import walk
from gradext.recording.recording import Recording
from gradext.source import sites

MOST_BYTES = 256 << 20  # of tensors that are copied to see writes that no counter counts
MOST_BIRTHS = 20  # kept tensors whose lines are looked up; each takes a look at all events
PACKAGE = package.PREFIX
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)).replace("\\", "/") + "/"
# A place of the program's own, whether the person wrote it or installed it.
_INSTALLED = ("/site-packages/", "/dist-packages/")


@dataclasses.dataclass(frozen=True)
class Kept:
    """An inference tensor that something holds after the block."""

    path: str
    what: str  # "float32[4, 8]"
    role: str  # "parameter", "buffer", "attribute", "shared" (held outside), "hidden" (no path)
    was_before: bool
    birth: Site | None
    mode: Site | None


@dataclasses.dataclass(frozen=True)
class Written:
    """A tensor whose content or version changed during the call."""

    path: str
    role: str  # as above, or "input"
    sites: tuple[Site, ...]
    counted: bool
    times: int


class Before:
    """The tensors that the subject and its surroundings hold before the call."""

    def __init__(self, subject: Subject, cut: list[int]) -> None:
        self.held: dict[int, tuple[str, torch.Tensor, int | None, torch.Tensor | None]] = {}
        found = list(walk.walk(subject.roots(), limit=lambda: cut.append(1)))
        size = sum(t.nbytes for _, t in found if t.layout == torch.strided)
        self.compares_contents = size <= MOST_BYTES
        self.inference = {id(t) for _, t in found if result_trees.is_inference(t)}
        self.alive = {id(t) for t in _alive()}
        for path, t in found:
            version = _C.version(t)
            content = (
                result_trees.own(t) if self.compares_contents and t.device.type == "cpu" else None
            )
            self.held[id(t)] = (path, t, version, content)

    def writes(self, subject: Subject, recording: Recording) -> list[Written]:
        roles = _Roles(subject)
        found = []
        for path, t, version, content in self.held.values():
            counted = version is not None and _C.version(t) != version
            changed = content is not None and result_trees.compare(
                [(path, result_trees.own(t))], [(path, content)]
            )
            if not counted and not changed:
                continue
            history = recording.mutations(t)
            places = [
                site_of(
                    recording.frames(write.stack),
                    op=write.op,
                    version_before=None if write.is_inference else write.version_before,
                    version_after=None if write.is_inference else write.version_after,
                )
                for write in history
            ]
            # The copies of before and after share a counter with nobody, so these are the call's.
            lines = sites.distinct(places)
            found.append(Written(path, roles.of(path, t), lines, counted, len(history)))
        return found


class _Roles:
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.parameters: set[int] = set()
        self.buffers: set[int] = set()
        if issubclass(type(subject.owner), torch.nn.Module):
            self.parameters = {id(t) for t in subject.owner.parameters()}
            self.buffers = {id(t) for t in subject.owner.buffers()}
        self.inputs = {id(t) for _, t in walk.walk(subject.inputs)}

    def of(self, path: str, tensor: Any) -> str:
        if id(tensor) in self.parameters or isinstance(tensor, torch.nn.Parameter):
            return "parameter"
        if id(tensor) in self.buffers:
            return "buffer"
        if id(tensor) in self.inputs:
            return "input"
        name = self.subject.name
        inside = path == name or path.startswith((f"{name}.", f"{name}["))
        return "attribute" if inside else "shared"


def kept(
    subject: Subject, before: Before, recording: Recording, cut: list[int]
) -> list[tuple[Kept, torch.Tensor]]:
    """The inference tensors that are held after the block, except unchanged inputs."""
    roles = _Roles(subject)
    found: list[tuple[Kept, torch.Tensor]] = []
    walked = walk.walk(subject.roots(), limit=lambda: cut.append(1))
    for path, tensor in walked:
        if not result_trees.is_inference(tensor):
            continue
        role = roles.of(path, tensor)
        was_before = id(tensor) in before.inference
        if was_before and role not in {"parameter", "buffer"}:
            continue
        birth, mode = None, None
        if not was_before and len(found) < MOST_BIRTHS:
            birth, mode = birth_sites(recording, tensor)
        what = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        found.append((Kept(path, what, role, was_before, birth, mode), tensor))
    return found


def hidden(
    kept: list[tuple[Kept, torch.Tensor]], before: Before, recording: Recording
) -> list[tuple[Kept, torch.Tensor]]:
    """New inference tensors that are alive, though no path that the walk knows leads to them."""
    gc.collect()
    known = {id(tensor) for _, tensor in kept} | before.alive
    found: list[tuple[Kept, torch.Tensor]] = []
    for tensor in _alive():
        if id(tensor) not in known:
            birth, mode = None, None
            if len(found) < MOST_BIRTHS:
                birth, mode = birth_sites(recording, tensor)
            what = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            found.append((Kept("<unknown holder>", what, "hidden", False, birth, mode), tensor))
    return found


def _alive() -> list[torch.Tensor]:
    """Every inference tensor that Python has."""
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), torch.Tensor) and result_trees.is_inference(thing)
    ]


def birth_sites(recording: Any, tensor: torch.Tensor) -> tuple[Site | None, Site | None]:
    """Where an inference tensor was born, and where the inference_mode that it was born in began.

    (None, None) as far as the recording does not know; the mode is None too where it is the audit's
    own.
    """
    birth = recording.birth(tensor)
    if birth is None:
        return None, None
    born = site_of(
        recording.frames(birth.stack), op=birth.op, label="the inference tensor is made here"
    )
    entered = None
    if birth.mode:
        stack = recording.frames(birth.mode)
        entered = site_of(stack, label="inference_mode is entered here")
    return born, entered


def site_of(stack: Any, **facts: Any) -> Site | None:
    """The Site of a stack, of the audited code alone: torch's and the audit's callers are left out.

    An installed model is as good as the person's own here: it is what the question is about.
    """
    own: list[Frame] = []
    for frame in stack:
        if frame.file.startswith(PACKAGE):
            break  # from here on it is the audit, and who asked for it
        own.append(dataclasses.replace(frame, is_user=_is_program(frame)))
    if not any(frame.is_user for frame in own):
        return None
    return sites.site(own, **facts)


def _is_program(frame: Frame) -> bool:
    file = frame.file.replace("\\", "/")
    if any(part in file for part in _INSTALLED):
        return not file.startswith(_TORCH)
    return frame.is_user
