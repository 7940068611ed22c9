"""Experiments on a subject: called in each mode, again and in threads, trained, copied and saved.

Each experiment takes a Subject that nobody has called yet and returns plain data (facts, Sites,
copies of tensors) that a process can send. Owns no judgement and no isolation.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gradext.base import errors
from gradext.base.random_numbers import RandomNumbers
from gradext.diagnosis.model import Diagnosis, Site
from gradext.inference_audit import result_trees, survivors
from gradext.inference_audit.isolation import Subject
from gradext.objects import naming, walk
from gradext.recording.recording import Recording, record
from gradext.source import frames

MOST_TEXT = 120  # characters of an error's text; longer ones end with their first sentence


@dataclasses.dataclass(frozen=True)
class Trouble:
    """An exception, as far as it can be told: its text, where it was raised, what explains it."""

    text: str
    site: Site | None = None
    diagnoses: tuple[Diagnosis, ...] = ()
    tensors: tuple[str, ...] = ()  # paths of kept inference tensors that it met


# --- experiments ---------------------------------------------------------------------------------


def under_inference_mode(random: RandomNumbers, subject: Subject) -> dict[str, Any]:
    """One call under inference_mode, what it left behind, and a train step after it."""
    found: dict[str, Any] = {}
    cut: list[int] = []
    gc.collect()
    before = survivors.Before(subject, cut)
    random.restore()
    with record() as recording:
        with _thread_starts() as started:
            output, found["error"] = _call(subject, torch.inference_mode, recording)
        found["threads"] = started
        if found["error"] is not None:
            return found
        found["random"] = not random.is_now()
        found["output"] = result_trees.flat(output)
        found["normal_outputs"] = [
            path for path, t in result_trees.tensors_of(output) if not result_trees.is_inference(t)
        ]
        kept = survivors.kept(subject, before, recording, cut)
        found["writes"] = before.writes(subject, recording)
        found["compared_contents"] = before.compares_contents
        del output
        kept += survivors.hidden(kept, before, recording)
        found["kept"] = [item for item, _ in kept]
        del before
        found["train"] = _train(subject, random, recording, kept)
        found["cut"] = bool(cut)
    return found


def under_no_grad(random: RandomNumbers, subject: Subject) -> dict[str, Any]:
    """Make the call under no_grad and the train step, to compare the other experiments with."""
    found: dict[str, Any] = {}
    random.restore()
    with record() as recording:
        before = survivors.Before(subject, [])
        output, found["error"] = _call(subject, no_grad, recording)
        if found["error"] is not None:
            return found
        found["output"] = result_trees.flat(output)
        found["writes"] = [item.path for item in before.writes(subject, recording)]
        del output, before
        found["train"] = _train(subject, random, recording, [])
    return found


def afterwards(
    mode: Callable[[], contextlib.AbstractContextManager[object]],
    random: RandomNumbers,
    subject: Subject,
) -> dict[str, Any]:
    """Try what is done with models after a call in `mode`: for each by name its Trouble or None."""
    random.restore()
    _, error = _call(subject, mode, None)
    found: dict[str, Any] = {"error": error}
    if error is not None:
        return found
    for name, action in (
        ("deepcopy", _deepcopy),
        ("state_dict", _state_dict),
        ("save and load", _save_and_load),
    ):
        found[name] = _attempt(action, subject)
    random.restore()
    _, found["no_grad afterwards"] = _call(subject, no_grad, None)
    found["to"] = _attempt(_to, subject)  # last: it may leave another dtype behind
    return found


def repeated(random: RandomNumbers, subject: Subject) -> dict[str, Any]:
    """The call under inference_mode twice, in another thread, and in two threads at once."""
    found: dict[str, Any] = {}

    def once() -> tuple[result_trees.Flat, Trouble | None]:
        random.restore()
        output, error = _call(subject, torch.inference_mode, None)
        return (result_trees.flat(output) if error is None else []), error

    first, error = once()
    if error is not None:
        return {"error": error}
    second, found["again error"] = once()
    if found["again error"] is None:
        found["again"] = result_trees.compare(second, first)
    results: list[tuple[result_trees.Flat, Trouble | None]] = []
    _in_threads([lambda: results.append(once())])
    other, found["thread error"] = results[0]
    if found["thread error"] is None:
        found["thread"] = result_trees.compare(other, second)
    found["random"] = not random.is_now()
    if found["random"] or found.get("again") is not None or found["thread error"] is not None:
        return found
    results.clear()
    barrier = threading.Barrier(2)

    def together() -> None:
        barrier.wait()
        for _ in range(3):
            output, error = _call(subject, torch.inference_mode, None)
            results.append((result_trees.flat(output) if error is None else [], error))

    _in_threads([together, together])
    found["together error"] = next((error for _, error in results if error), None)
    if found["together error"] is None:
        differences = [result_trees.compare(result, second) for result, _ in results]
        found["together"] = next((item for item in differences if item), None)
    return found


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """torch.no_grad() that is no inference_mode, even where the audit was started inside one."""
    with torch.inference_mode(False), torch.no_grad():
        yield


# --- calling -------------------------------------------------------------------------------------


def _call(
    subject: Subject,
    mode: Callable[[], contextlib.AbstractContextManager[object]],
    recording: Recording | None,
) -> tuple[Any, Trouble | None]:
    try:
        with mode():
            return subject.call(), None
    except (Exception, SystemExit) as error:
        return None, _trouble(error, recording)


def _attempt(action: Callable[[Subject], object], subject: Subject) -> Trouble | None:
    try:
        action(subject)
    except Exception as error:
        return _trouble(error, None)
    return None


def _deepcopy(subject: Subject) -> None:
    copy.deepcopy(subject.owner)


def _state_dict(subject: Subject) -> None:
    if issubclass(type(subject.owner), torch.nn.Module):
        subject.owner.load_state_dict(subject.owner.state_dict())


def _save_and_load(subject: Subject) -> None:
    stream = io.BytesIO()
    torch.save(subject.owner, stream)
    stream.seek(0)
    torch.load(stream, weights_only=False)


def _to(subject: Subject) -> None:
    if issubclass(type(subject.owner), torch.nn.Module):
        # Each parameter is converted from what it is to itself and back: the way .to(device) goes.
        kinds = {t.dtype for t in subject.owner.parameters() if t.is_floating_point()}
        subject.owner.to(torch.float64)
        if len(kinds) == 1:
            subject.owner.to(kinds.pop())


def _in_threads(actions: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _thread_starts() -> Iterator[list[Site]]:
    """The places that start threads while the block runs."""
    found: list[Site] = []
    start = threading.Thread.start

    @functools.wraps(start)
    def noting(thread: threading.Thread) -> None:
        stack = []
        frame: Any = sys._getframe(1)
        while frame is not None:
            stack.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        place = survivors.site_of(frames.stack_of(stack), label="a thread is started here")
        if place is not None:
            found.append(place)
        start(thread)

    threading.Thread.start = noting  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


# --- training ------------------------------------------------------------------------------------


def _train(
    subject: Subject,
    random: RandomNumbers,
    recording: Recording,
    kept: list[tuple[survivors.Kept, Any]],
) -> dict[str, Any]:
    """Forward with grad mode on, backward, one SGD step: the gradients, or why there are none."""
    leaves = [
        (path, t)
        for path, t in walk.walk(subject.roots())
        if t.is_leaf and t.requires_grad and not path.endswith(".grad")
    ]
    if not leaves:
        # Nothing to train: then it is the inputs that may want gradients.
        subject, leaves = _with_grad_inputs(subject)
    if not leaves:
        return {"skipped": "no parameter and no floating-point input that could require grad"}
    for _, leaf in leaves:
        leaf.grad = None
    random.restore()
    doing, through = "forward", ""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            known = {id(leaf) for _, leaf in leaves}
            loss = _loss(subject.call(), known)
            module = _forward_of(subject) if loss is None else None
            if module is not None:
                # As after model.generate(): what is trained is the model.
                random.restore()
                names = ", ".join(f"`{name}`" for name in module.kwargs)
                through = f"forward of the module with {names}"
                loss = _loss(module.call(), known)
            if loss is None:
                reason = "no output carries a gradient under grad mode"
                return {"skipped": f"{reason} (whole numbers, or grad mode is switched off inside)"}
            doing = "backward"
            loss.backward()  # type: ignore[no-untyped-call]
            gradients = [
                (path, result_trees.own(leaf.grad))
                for path, leaf in leaves
                if leaf.grad is not None
            ]
            doing = "optimizer step"
            # By hand: constructing a torch.optim optimizer imports torch.compile, for seconds.
            with torch.no_grad():
                for _, leaf in leaves:
                    if leaf.grad is not None:
                        leaf.add_(leaf.grad, alpha=-1e-3)
    except Exception as error:
        error_of = _trouble(error, recording, kept)
        return {"error": error_of, "doing": doing, "through": through}
    return {"gradients": gradients, "through": through}


def _forward_of(subject: Subject) -> Subject | None:
    """The call of the module itself, where the subject is another method of it that takes the same.

    Only arguments that forward has by name are passed on.
    """
    owner = subject.owner
    if owner is subject.value or not issubclass(type(owner), torch.nn.Module):
        return None
    try:
        signature = inspect.signature(owner.forward)
        named = {name: value for name, value in subject.inputs if name in signature.parameters}
        signature.bind(**named)
    except (TypeError, ValueError):
        return None
    return dataclasses.replace(subject, value=owner, args=(), kwargs=named) if named else None


def _with_grad_inputs(subject: Subject) -> tuple[Subject, list[tuple[str, torch.Tensor]]]:
    leaves: list[torch.Tensor] = []

    def prepare(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            leaves.append(result_trees.own(value).to(value.device).requires_grad_())
            return leaves[-1]
        return value

    args, kwargs = pytree.tree_map(prepare, (subject.args, subject.kwargs))
    named = [(f"input {index}", leaf) for index, leaf in enumerate(leaves)]
    return dataclasses.replace(subject, args=args, kwargs=kwargs), named


def _loss(output: Any, leaves: set[int]) -> torch.Tensor | None:
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor) and own.requires_grad and own.numel() == 1:
        return own
    parts = []
    for _, tensor in result_trees.tensors_of(output):
        if tensor.requires_grad and id(tensor) not in leaves:
            value = tensor.abs() if tensor.is_complex() else tensor
            value = value.to_dense() if value.layout != torch.strided else value
            parts.append(value.float().square().mean())
    return torch.stack(parts).sum() if parts else None


# --- before and after ----------------------------------------------------------------------------


# --- places --------------------------------------------------------------------------------------


def _trouble(
    error: BaseException,
    recording: Recording | None,
    kept: list[tuple[survivors.Kept, Any]] | tuple[()] = (),
) -> Trouble:
    text = errors.brief(error, MOST_TEXT)
    stack = frames.frames_of_traceback(error.__traceback__)
    diagnoses: tuple[Diagnosis, ...] = ()
    if recording is not None and isinstance(error, RuntimeError):
        with contextlib.suppress(Exception):
            diagnoses = tuple(recording.explain(error))
    met: tuple[str, ...] = ()
    if kept:
        met = _met(error, kept)
    words = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Trouble(words, survivors.site_of(stack, label="it fails here"), diagnoses, met)


def _met(
    error: BaseException, kept: list[tuple[survivors.Kept, Any]] | tuple[()]
) -> tuple[str, ...]:
    """Which of the kept tensors the failing frames had in hand, those of the innermost first."""
    live: list[Any] = []
    traceback = error.__traceback__
    while traceback is not None:
        live.append(traceback.tb_frame)
        traceback = traceback.tb_next
    known = {_storage(tensor): item.path for item, tensor in kept}
    for frame in reversed(live):
        if frame.f_code.co_filename.startswith(survivors.PACKAGE):
            break
        held = walk.walk(naming.locals_of(frame), depth=3, most=5000)
        found = [
            known[_storage(t)]
            for _, t in held
            if result_trees.is_inference(t) and _storage(t) in known
        ]
        if found:
            return tuple(dict.fromkeys(found))
    return ()


def _storage(tensor: torch.Tensor) -> object:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return id(tensor)
