"""Where an experiment runs so that the caller's program stays as it is.

Best in a process of its own, forked from this one: then even globals and caches are copies. Else on
a deep copy in this process, else on the object itself. Owns the fork, its time limit and the way of
results back; knows nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch

from gradext.base import errors, forks
from gradext.base.random_numbers import RandomNumbers
from gradext.objects import walk

_HANDSHAKE_SECONDS = 20.0  # a forked torch that works answers in milliseconds
_READY = b"!"


@dataclasses.dataclass(frozen=True)
class Subject:
    """The function or model that is audited, and its arguments.

    Attributes:
        value: what is called. owner: what holds its tensors (the module of a bound method).
        name: of the owner in paths ("model"). title: of the whole in sentences ("model.generate").
        inputs: (name, value) of the arguments.
    """

    value: Any
    owner: Any
    name: str
    title: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[tuple[str, Any], ...]

    def call(self) -> Any:
        return self.value(*self.args, **self.kwargs)

    def roots(self) -> list[tuple[str, Any]]:
        return [*walk.roots_of(self.owner, self.name), *self.inputs]


class Failed(Exception):
    """An experiment did not come to its end; the text says why, and belongs into the report."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where experiments run.

    Attributes:
        kind: "process", "copy" or "none".
        why: why nothing better was possible; "" for "process".
        seconds: the time limit of one experiment in a process.
    """

    kind: str
    why: str
    seconds: float

    @property
    def is_disposable(self) -> bool:
        """Whether an experiment may do to its subject what it likes."""
        return self.kind != "none"

    def run(self, experiment: Callable[[Subject], dict[str, Any]], subject: Subject) -> Any:
        """What `experiment` returns: a dict of plain data and tensors.

        Raises:
            Failed: it ran too long, or its process died.
        """
        if self.kind == "process":
            return _in_a_process(lambda: experiment(subject), self.seconds)
        with _state_kept(subject):
            return experiment(_copied(subject) if self.kind == "copy" else subject)


def choose(subject: Subject, *, fork: bool, seconds: float) -> Place:
    """The best place that is possible here."""
    why = "asked not to fork" if not fork else _why_no_fork(subject)
    if not why:
        try:
            _in_a_process(_can_train, _HANDSHAKE_SECONDS)
        except Failed as fault:
            why = str(fault)
    if not why:
        return Place("process", "", seconds)
    try:
        with _state_kept(subject):
            _copied(subject)
    except Exception as error:
        reason = f"{why}, and a deep copy failed: {errors.one_line(error)}"
        return Place("none", reason, seconds)
    return Place("copy", why, seconds)


def _can_train() -> dict[str, Any]:
    """Autograd refuses to run in a fork of a process in which it has started threads of its own."""
    with torch.inference_mode(False), torch.enable_grad():
        torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
    return {}


def _copied(subject: Subject) -> Subject:
    """A deep copy; what two arguments share, or a method and its object, they share in the copy."""
    memo: dict[int, Any] = {}
    with torch.inference_mode(False):  # else the copies were inference tensors themselves
        copies = {
            name: copy.deepcopy(getattr(subject, name), memo)
            for name in ("value", "owner", "args", "kwargs", "inputs")
        }
    return dataclasses.replace(subject, **copies)


def _why_no_fork(subject: Subject) -> str:
    if not hasattr(os, "fork") or sys.platform != "linux":
        return "no safe fork on this system"
    if forks.uses_cuda():
        return "CUDA is in use, and does not survive a fork"
    for path, tensor in walk.walk(subject.roots()):
        if tensor.device.type not in {"cpu", "meta"}:
            return f"`{path}` is on {tensor.device}, which does not survive a fork"
    return ""


# --- one process ---------------------------------------------------------------------------------


def _in_a_process(experiment: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    child, receiver = forks.start(lambda sender: _be_the_child(experiment, sender))
    data = bytearray()
    reaped = False
    try:
        deadline = time.monotonic() + min(seconds, _HANDSHAKE_SECONDS)
        while True:
            ready, _, _ = select.select([receiver], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                what = "it did not finish" if data else "a forked torch did not answer"
                raise Failed(f"{what} within {min(seconds, seconds if data else 20):g} s")
            chunk = os.read(receiver, 1 << 20)
            if not chunk:
                break
            if not data:
                deadline = time.monotonic() + seconds
            data += chunk
        _, status = os.waitpid(child, 0)
        reaped = True
    finally:
        os.close(receiver)
        if not reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise Failed(f"the process that ran it died of {name}")
    if len(data) <= len(_READY):
        raise Failed(f"the process that ran it ended with exit code {os.WEXITSTATUS(status)}")
    stream = io.BytesIO(bytes(data[len(_READY) :]))
    result: dict[str, Any] = torch.load(stream, weights_only=False)
    if "fault" in result:
        raise Failed(f"gradext failed: {result['fault']}")
    return result


def _be_the_child(experiment: Callable[[], dict[str, Any]], sender: int) -> NoReturn:
    """Runs the experiment and never returns. Nothing of the program's own exit is run."""
    try:
        forks.settle()
        torch.ones(64, 64).mm(torch.ones(64, 64))
        os.write(sender, _READY)
        forks.silence()
        result = experiment()
        stream = io.BytesIO()
        torch.save(result, stream)
        forks.write_all(sender, stream.getvalue())
    except BaseException:
        text = traceback.format_exc().strip().splitlines()
        stream = io.BytesIO()
        torch.save({"fault": text[-1]}, stream)
        with contextlib.suppress(OSError):
            forks.write_all(sender, stream.getvalue())
    finally:
        os._exit(0)


# --- in this process -----------------------------------------------------------------------------


@contextlib.contextmanager
def _state_kept(subject: Subject) -> Iterator[None]:
    """The caller's random numbers, grad mode and train flags, put back whatever happens."""
    drawn = RandomNumbers.now()
    grad = torch.is_grad_enabled()
    modules = (
        list(subject.owner.modules()) if issubclass(type(subject.owner), torch.nn.Module) else []
    )
    flags = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        drawn.restore()
        torch.set_grad_enabled(grad)
        for module, flag in flags:
            module.training = flag
