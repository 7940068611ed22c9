"""Forked processes for what must not touch the program: how one begins, and how it stays quiet.

What runs in it, its time limit and the way of its results belong to who forks:
inference_audit.isolation (one experiment), opcheck.workers (many small jobs).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import NoReturn

import torch


def uses_cuda() -> bool:
    """Whether CUDA is in use, which does not survive a fork."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def start(child: Callable[[int], NoReturn]) -> tuple[int, int]:
    """Fork; the child calls `child(pipe to write to)`. Returns (its process id, pipe to read)."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of other threads. They hold no lock of ours, and who forks sets a limit.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(receiver)
        child(sender)
    os.close(sender)
    return pid, receiver


_callbacks: list[Callable[[], None]] = []


def when_settled(callback: Callable[[], None]) -> None:
    """Call `callback` in every child that start() makes, before its own work."""
    _callbacks.append(callback)


def settle() -> None:
    """Make a new child safe to work in: one thread, and the callbacks of when_settled()."""
    # Before the first parallel op: the threads of the parent's pool do not exist here, and OpenMP
    # would wait for them.
    torch.set_num_threads(1)
    for callback in _callbacks:
        callback()


def silence() -> None:
    """Point standard input, output and error at the null device."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)


def write_all(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]
