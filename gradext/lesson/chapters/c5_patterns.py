"""Chapter 5: the modes as decorators, nested, left locally, in generators and in threads."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import torch

import gradext
from gradext.lesson.core import Chapter, Depends, Lesson

CHAPTER = Chapter(
    5,
    "Patterns",
    """A mode is a setting of the thread that is running, switched by whoever enters and leaves a
    block. Most code gets that right without thinking. Generators, coroutines, threads and blocks
    within blocks are where it goes wrong, and where reading the mode beats remembering rules.""",
)


def mode_now() -> str:
    """The mode that this thread is in, as grad_mode_state() reads it."""
    state = gradext.ops.grad_mode_state()
    if state.inference_mode:
        return "inference_mode with grad on" if state.grad_mode else "inference_mode"
    return "grad" if state.grad_mode else "no_grad"


@CHAPTER.claim(
    "@torch.inference_mode() on a function holds for its body and no longer.", verdict="true"
)
def decorated_function(lesson: Lesson) -> bool | Depends:
    @torch.inference_mode()
    def predict(x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return x * 2, mode_now()

    y, inside = predict(torch.ones(2, device=lesson.device))
    after = mode_now()
    lesson.show("mode in the body", inside)
    lesson.show("mode after the call", after)
    lesson.show("the result is an inference tensor", gradext.ops.is_inference(y))
    return inside == "inference_mode" and after == "grad" and gradext.ops.is_inference(y)


@CHAPTER.claim(
    "On a method it works the same, and marks what the method stores as well.", verdict="true"
)
def decorated_method(lesson: Lesson) -> bool | Depends:
    class Model:
        @torch.inference_mode()
        def predict(self, x: torch.Tensor) -> str:
            self.last = x * 2
            return mode_now()

    model = Model()
    inside = model.predict(torch.ones(2, device=lesson.device))
    lesson.show("mode in the method", inside)
    lesson.show("mode after the call", mode_now())
    # This is how a cache outlives the mode: chapter 6 shows what that breaks.
    kept = gradext.ops.is_inference(model.last)
    lesson.show("model.last is an inference tensor", kept)
    return inside == "inference_mode" and mode_now() == "grad" and kept


@CHAPTER.claim(
    "On a generator, the mode stays on in the caller between two yields.",
    verdict="false",
    instead="The decorator leaves the mode at each yield and enters it again behind.",
)
def decorated_generator(lesson: Lesson) -> bool | Depends:
    @torch.inference_mode()
    def decode() -> Iterator[str]:
        yield mode_now()
        yield mode_now()

    inside, between = [], []
    for mode in decode():
        inside.append(mode)
        between.append(mode_now())
    lesson.show("mode in the generator's body", inside)
    lesson.show("mode in the caller, at each yield", between)
    # The decorator leaves the mode at each yield and enters it again behind.
    return between == ["inference_mode", "inference_mode"]


@CHAPTER.claim(
    "A with block in a generator is as safe as the decorator.",
    verdict="false",
    instead="A with block in a generator stays on in the caller between two yields: use the "
    "decorator.",
)
def with_block_in_generator(lesson: Lesson) -> bool | Depends:
    def decode() -> Generator[torch.Tensor, None, None]:
        with torch.inference_mode():
            yield torch.ones(2, device=lesson.device)
            yield torch.ones(2, device=lesson.device)

    w = torch.ones(2, device=lesson.device, requires_grad=True)
    tokens = decode()
    next(tokens)
    between, y = mode_now(), w * 2
    lesson.show("mode in the caller, between two yields", between)
    lesson.show("w * 2 in the caller requires grad", y.requires_grad)
    tokens.close()
    lesson.show("mode once the generator is closed", mode_now())
    return between == "grad" and y.requires_grad


@CHAPTER.claim(
    "On an async function the decorator covers the body.",
    verdict="false",
    instead="Calling it only makes the coroutine; write the with block inside its body.",
)
def decorated_coroutine(lesson: Lesson) -> bool | Depends:
    @torch.inference_mode()
    async def serve() -> str:
        return mode_now()

    inside = None
    try:
        serve().send(None)  # what an event loop does to run it
    except StopIteration as finished:
        inside = finished.value
    lesson.show("mode in the body", inside)
    # Calling serve() only makes the coroutine; its body runs later, without the mode.
    return inside == "inference_mode"


@CHAPTER.claim("Leaving a block brings back the mode around it, however deep.", verdict="true")
def nesting(lesson: Lesson) -> bool | Depends:
    seen = [mode_now()]
    with torch.no_grad():
        seen.append(mode_now())
        with torch.inference_mode():
            seen.append(mode_now())
            with torch.inference_mode(False):
                seen.append(mode_now())
            seen.append(mode_now())
        seen.append(mode_now())
    seen.append(mode_now())
    lesson.show("on the way in", seen[:4])
    lesson.show("on the way out", seen[4:])
    return seen[4:] == seen[2::-1]


@CHAPTER.claim("enable_grad inside no_grad records a graph again.", verdict="true")
def enable_grad_in_no_grad(lesson: Lesson) -> bool | Depends:
    w = torch.ones(2, device=lesson.device, requires_grad=True)
    with torch.no_grad():
        without = gradext.inspect(w * 2)
        with torch.enable_grad():
            again = gradext.inspect(w * 2)
    lesson.show("no_grad: grad_fn", without.grad_fn)
    lesson.show("no_grad, enable_grad: grad_fn", again.grad_fn)
    return without.grad_fn is None and again.grad_fn is not None


@CHAPTER.claim(
    "enable_grad inside inference_mode records a graph again.",
    verdict="false",
    instead="The Autograd kernels stay skipped: leave with inference_mode(False).",
)
def enable_grad_in_inference_mode(lesson: Lesson) -> bool | Depends:
    w = torch.ones(2, device=lesson.device, requires_grad=True)
    with torch.inference_mode(), torch.enable_grad():
        mode, y = mode_now(), gradext.inspect(w * 2)
    lesson.show("mode", mode)
    lesson.show("w * 2: grad_fn", y.grad_fn)
    lesson.show("w * 2: inference tensor", y.is_inference)
    # The flag says yes, but the Autograd kernels that would record stay skipped.
    return y.grad_fn is not None


@CHAPTER.claim("inference_mode(False) inside inference_mode records a graph again.", verdict="true")
def leave_inference_mode(lesson: Lesson) -> bool | Depends:
    w = torch.ones(2, device=lesson.device, requires_grad=True)
    with torch.inference_mode():
        x = torch.ones(2, device=lesson.device)
        with torch.inference_mode(False):
            y = gradext.inspect(w * 2)
            # What was made before stays what it is; a clone made here is normal.
            error = lesson.raises(lambda: w * x, "w * x, x made in inference_mode")
            cloned = gradext.inspect(w * x.clone())
    lesson.show("w * 2: grad_fn", y.grad_fn)
    lesson.show("w * x.clone(): grad_fn", cloned.grad_fn)
    recorded = y.grad_fn is not None and cloned.grad_fn is not None
    return recorded and error is not None


@CHAPTER.claim(
    "inference_mode(False) leaves grad mode as it was.",
    verdict="false",
    instead="inference_mode(False) turns grad mode on, whatever it was.",
)
def false_turns_grad_on(lesson: Lesson) -> bool | Depends:
    w = torch.ones(2, device=lesson.device, requires_grad=True)
    with torch.no_grad():
        before = gradext.ops.grad_mode_state().grad_mode
        with torch.inference_mode(False):
            inside = gradext.ops.grad_mode_state().grad_mode
            y = gradext.inspect(w * 2)
        after = gradext.ops.grad_mode_state().grad_mode
    lesson.show("grad mode in no_grad", before)
    lesson.show("grad mode in inference_mode(False)", inside)
    lesson.show("w * 2 in there: grad_fn", y.grad_fn)
    lesson.show("grad mode behind the block", after)
    # So inference_mode(flag) with flag False is not "no mode": it is grad on.
    return inside == before


@CHAPTER.claim("set_grad_enabled(flag) as a with block follows the flag.", verdict="true")
def set_grad_enabled_block(lesson: Lesson) -> bool | Depends:
    w = torch.ones(2, device=lesson.device, requires_grad=True)
    recorded = {}
    for train in (True, False):
        with torch.set_grad_enabled(train):
            recorded[f"flag {train}"] = (w * 2).requires_grad
    lesson.show("w * 2 requires grad", recorded)
    lesson.show("mode behind the block", mode_now())
    return recorded == {"flag True": True, "flag False": False} and mode_now() == "grad"


@CHAPTER.claim(
    "set_grad_enabled(flag) as a plain call ends with the function that calls it.",
    verdict="false",
    instead="A plain call holds until the next one; as a with block it ends with the block.",
)
def set_grad_enabled_call(lesson: Lesson) -> bool | Depends:
    def evaluate() -> None:
        torch.set_grad_enabled(False)

    before = mode_now()
    evaluate()
    after = mode_now()
    torch.set_grad_enabled(True)
    lesson.show("mode before the call", before)
    lesson.show("mode after it", after)
    # A plain call holds until the next one, or until an enclosing block ends.
    return after == before


@CHAPTER.claim(
    "A thread inherits the mode of the thread that starts it.",
    verdict="false",
    instead="A mode belongs to its thread: enter it again in the new one.",
)
def threads_start_fresh(lesson: Lesson) -> bool | Depends:
    seen = {}

    def work(name: str) -> None:
        seen[name] = mode_now()

    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            thread = threading.Thread(target=work, args=[f"started in {mode.__name__}"])
            thread.start()
            thread.join()
    lesson.show("mode in the new thread", seen)
    return seen["started in no_grad"] == "no_grad"


@CHAPTER.claim("A mode entered in one thread reaches no other thread.", verdict="true")
def threads_keep_to_themselves(lesson: Lesson) -> bool | Depends:
    entered, done, inside = threading.Event(), threading.Event(), []

    def work() -> None:
        with torch.inference_mode():
            inside.append(mode_now())
            entered.set()
            done.wait(timeout=10)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(timeout=10)
    meanwhile = mode_now()
    done.set()
    thread.join()
    lesson.show("mode in the other thread", inside)
    lesson.show("mode here, meanwhile", meanwhile)
    return inside == ["inference_mode"] and meanwhile == "grad"
