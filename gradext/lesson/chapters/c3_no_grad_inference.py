"""Chapter 3: no_grad and inference_mode side by side, and the test that tells them apart."""

from __future__ import annotations

import torch

import gradext
from gradext.lesson.core import Chapter, Depends, Lesson

CHAPTER = Chapter(
    3,
    "no_grad and inference_mode",
    """Both switch the recording of a graph off. no_grad stops there; inference_mode also stops
    counting writes and tracking views, and marks each result so that autograd can refuse it later.
    This chapter reads the difference from the tensors, and then looks for a test that shows it.""",
)


@CHAPTER.claim("Under no_grad, results do not require grad.", verdict="true")
def no_grad_results(lesson: Lesson) -> bool | Depends:
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    with torch.no_grad():
        y = gradext.inspect(w * 2)
    lesson.show("w requires grad", w.requires_grad)
    lesson.show("y requires grad", y.requires_grad)
    lesson.show("grad_fn of y", y.grad_fn)
    lesson.show("y is an inference tensor", y.is_inference)
    return w.requires_grad and not y.requires_grad and y.grad_fn is None


@CHAPTER.claim(
    "Under no_grad, in-place writes are not counted.",
    verdict="false",
    instead="Writes are counted there as everywhere; only inference_mode makes tensors without "
    "a counter.",
)
def no_grad_counts_no_writes(lesson: Lesson) -> bool | Depends:
    y = torch.ones(3, device=lesson.device)
    before = gradext.ops.version(y)
    with torch.no_grad():
        y.add_(1)
        y[0] = 5
    after = gradext.ops.version(y)
    lesson.show("version before", before)
    lesson.show("version after two writes", after)
    return after == before


@CHAPTER.claim("Under no_grad, views are still tracked.", verdict="true")
def no_grad_tracks_views(lesson: Lesson) -> bool | Depends:
    x = torch.ones(4, device=lesson.device)
    with torch.no_grad():
        v = x[:2]
        v.add_(1)
    lesson.show("v is a view", gradext.ops.is_view(v))
    lesson.show("its base is x", gradext.ops.base(v) is x)
    lesson.show("creation_meta", gradext.ops.creation_meta(v))
    lesson.show("version of x after v.add_(1)", gradext.ops.version(x))
    counted = gradext.ops.version(x) == 1
    return counted and gradext.ops.is_view(v) and gradext.ops.base(v) is x


@CHAPTER.claim(
    "Under inference_mode, results carry the inference flag and have no version counter.",
    verdict="true",
)
def inference_results(lesson: Lesson) -> bool | Depends:
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    with torch.inference_mode():
        result = w * 2
        result.add_(1)
    y = gradext.inspect(result)
    lesson.show("inference flag", y.is_inference)
    lesson.show("version", y.version)
    lesson.show("version counter", y.version_counter)
    lesson.raises(lambda: result._version, "result._version raises")
    return y.is_inference and y.version is None and y.version_counter is None


@CHAPTER.claim("Under inference_mode, a view of a result is not tracked.", verdict="true")
def inference_views(lesson: Lesson) -> bool | Depends:
    x = torch.ones(4, device=lesson.device)
    with torch.inference_mode():
        y = x * 2
        v = y[:2]
        of_x = x[:2]
    lesson.show("v shares the memory of y", gradext.shares_storage(v, y))
    lesson.show("v is a view to autograd", gradext.ops.is_view(v))
    lesson.show("base of v", gradext.ops.base(v))
    # x was made outside: a view of it is a normal tensor, and is tracked.
    lesson.show("x[:2] is an inference tensor", gradext.ops.is_inference(of_x))
    lesson.show("x[:2] is a view to autograd", gradext.ops.is_view(of_x))
    lesson.show("its creation_meta", gradext.ops.creation_meta(of_x))
    return gradext.shares_storage(v, y) and not gradext.ops.is_view(v)


@CHAPTER.claim(
    "Under inference_mode, a write to a tensor from outside is not counted either.",
    verdict="false",
    instead="A normal tensor keeps its counter, and a write to it counts in each mode.",
)
def inference_writes_to_normal_tensors(lesson: Lesson) -> bool | Depends:
    x = torch.ones(3, device=lesson.device)
    before = gradext.ops.version(x)
    with torch.inference_mode():
        x.add_(1)
    lesson.show("x is an inference tensor", gradext.ops.is_inference(x))
    lesson.show("version before", before)
    lesson.show("version after x.add_(1)", gradext.ops.version(x))
    return gradext.ops.version(x) == before


@CHAPTER.claim(
    "ADInplaceOrView, the step that counts and tracks, is gone from the thread's keys.",
    verdict="true",
)
def ad_inplace_or_view_is_gone(lesson: Lesson) -> bool | Depends:
    key = "ADInplaceOrView"
    with torch.no_grad():
        thread = gradext.ops.grad_mode_state().included
        result = gradext.ops.dispatch_keys(torch.ones(1, device=lesson.device))
    lesson.show("no_grad, the thread includes", thread)
    lesson.show("no_grad, a result has", result)
    there = key in thread and key in result

    with torch.inference_mode():
        thread = gradext.ops.grad_mode_state().included
        result = gradext.ops.dispatch_keys(torch.ones(1, device=lesson.device))
    lesson.show("inference_mode, the thread includes", thread)
    lesson.show("inference_mode, a result has", result)
    return there and key not in thread and key not in result


@CHAPTER.claim(
    "backward() passes on a no_grad result and raises on an inference_mode result.",
    verdict="false",
    instead="Neither has a graph, so both raise the same error; the difference shows where a "
    "result is used again.",
)
def the_tutorials_test(lesson: Lesson) -> bool | Depends:
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    with torch.no_grad():
        y = (w * 2).sum()
    with torch.inference_mode():
        z = (w * 2).sum()
    from_no_grad = lesson.raises(y.backward, "the no_grad result")
    from_inference = lesson.raises(z.backward, "the inference_mode result")
    same = str(from_no_grad) == str(from_inference)
    lesson.show("word for word the same", same)
    return from_no_grad is None and from_inference is not None


@CHAPTER.claim(
    "What tells them apart is using the result in a new graph: the no_grad result is a constant.",
    verdict="true",
)
def no_grad_result_is_a_constant(lesson: Lesson) -> bool | Depends:
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    with torch.no_grad():
        scale = w * 2
    loss = (w * scale).sum()
    error = lesson.raises(loss.backward, "(w * scale).sum().backward() raises")
    lesson.show("scale", scale)
    lesson.show("gradient of w", w.grad)
    return error is None and w.grad is not None and torch.equal(w.grad, scale)


@CHAPTER.claim(
    "The inference_mode result raises when it must be saved for backward, as in w * result.",
    verdict="true",
)
def inference_result_cannot_be_saved(lesson: Lesson) -> bool | Depends:
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    with torch.inference_mode():
        result = w * 2
    flag = gradext.ops.is_inference(result)
    lesson.show("result is an inference tensor", flag)
    error = lesson.raises(lambda: w * result, "w * result raises")
    return error is not None and "saved for backward" in str(error)


@CHAPTER.claim(
    "The inference_mode result raises in any operation that autograd records.",
    verdict="false",
    instead="It raises only where backward would have to save it; an addition saves nothing.",
)
def inference_result_raises_everywhere(lesson: Lesson) -> bool | Depends:
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    with torch.inference_mode():
        shift = torch.full((3,), 2.0, device=lesson.device)
    saves = lesson.raises(lambda: w * shift, "w * shift, which saves shift")
    total = (w + shift).sum()
    adds = lesson.raises(total.backward, "w + shift, which saves nothing")
    lesson.show("gradient of w through w + shift", w.grad)
    return saves is not None and adds is not None


@CHAPTER.claim("clone() outside the block gives a normal tensor.", verdict="true")
def clone_outside_is_normal(lesson: Lesson) -> bool | Depends:
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    with torch.inference_mode():
        scale = w * 2
        inside = scale.clone()
    outside = scale.clone()
    flags = [gradext.ops.is_inference(t) for t in (scale, inside, outside)]
    lesson.show("inference flag of scale", flags[0])
    lesson.show("of a clone made inside the block", flags[1])
    lesson.show("of a clone made outside", flags[2])
    counted = gradext.ops.version_counter(outside) is not None
    lesson.show("the clone made outside has a counter", counted)
    error = lesson.raises(lambda: w * outside, "w * outside raises")
    return counted and flags == [True, True, False] and error is None


@CHAPTER.claim(
    "Outside the block, an in-place write to an inference tensor raises.", verdict="true"
)
def in_place_outside_raises(lesson: Lesson) -> bool | Depends:
    with torch.inference_mode():
        y = torch.ones(3, device=lesson.device)
        inside = lesson.raises(lambda: y.add_(1), "y.add_(1) inside the block")
    outside = lesson.raises(lambda: y.add_(1), "y.add_(1) outside the block")
    lesson.show("y", y.tolist())
    return inside is None and outside is not None
