"""What one call makes torch do: ops, autograd nodes, saved tensors, version bumps, views, memory.

Owns the counts and what each of them means. Nothing is timed here: counting costs far more than
what it counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from gradext.native import _C


@dataclasses.dataclass(frozen=True)
class CallCounts:
    """What one call did, by what torch itself reports of it.

    ops: calls that passed the dispatcher, those inside other ops included (at::RecordFunction).
    nodes: autograd nodes that were made (at::sequence_number, which numbers them); the nodes that
    collect a parameter's gradient have no number and are not among them.
    saved_tensors: tensors that autograd packed for backward; saved_bytes: the storages that they
    keep alive, each once, without those of parameters and inputs. None: they could not be counted.
    version_bumps: steps of version counters by ops that declare a write; views: new tensors that
    autograd tracks as views; inference_tensors: new tensors without a version counter. A write of
    ``mark_dirty`` is no op's, and what compiled code does inside is no op either.
    peak_bytes: the most that torch's allocator had given out at once, on the device of the call,
    beyond what it had before. None while a profiler is on: it takes those reports for itself.
    """

    ops: int
    nodes: int
    saved_tensors: int | None
    saved_bytes: int | None
    version_bumps: int
    views: int
    inference_tensors: int
    peak_bytes: int | None


def count(
    call: Callable[[], object],
    *,
    device: str = "cpu",
    known: Iterable[torch.Tensor] = (),
    saves: bool = True,
) -> CallCounts:
    """Count what ``call`` does, in two runs of it (one without ``saves``).

    ``known`` are the tensors whose memory is there anyway: parameters and inputs. One count at a
    time in a process, or ValueError; what the call raises passes through.
    """
    census = _C.Census()
    census.start()
    try:
        call()
    finally:
        found = census.stop()
    tensors, size = _saved(call, known) if saves else (None, None)
    on = "cpu" if torch.device(device).type == "cpu" else "accelerator"
    return CallCounts(
        ops=found["ops"],
        nodes=found["nodes"],
        saved_tensors=tensors,
        saved_bytes=size,
        version_bumps=found["version_bumps"],
        views=found["views"],
        inference_tensors=found["inference_tensors"],
        peak_bytes=found.get(f"peak_{on}_bytes"),
    )


def _saved(
    call: Callable[[], object], known: Iterable[torch.Tensor]
) -> tuple[int | None, int | None]:
    there = {_storage(tensor)[0] for tensor in known}
    saved = 0
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += 1
        address, size = _storage(tensor)
        if address not in there:
            storages[address] = size
        return tensor.detach()  # a node that holds its own result is never freed

    try:
        # Default hooks never see what a call inside runs under hooks of its own.
        with torch.autograd.graph.saved_tensors_hooks(pack, _same):
            result = call()
    except RuntimeError:  # hooks are forbidden here, as under functorch's transforms
        return None, None
    del result
    return saved, sum(storages.values())


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    """An address that stands for the tensor's memory, and its size in bytes."""
    try:
        storage = tensor.untyped_storage()
        return storage._cdata, storage.nbytes()
    except (NotImplementedError, RuntimeError):  # sparse and the like have several, or none
        return id(tensor), tensor.numel() * tensor.element_size()
