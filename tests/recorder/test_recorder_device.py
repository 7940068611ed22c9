"""The recorder on each device: writes, the line that saved, and the stacks of CUDA's threads."""

from __future__ import annotations

import inspect

import pytest
import torch

import gradext


def _line() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_stale_tensor_is_explained(device: str) -> None:
    with gradext.record() as recording:
        w = torch.ones(4, device=device, requires_grad=True)
        h = w * 2
        y, saved_at = (h * h).sum(), _line()
        h.add_(1)
        written_at = _line() - 1
        with pytest.raises(RuntimeError, match="modified by an inplace") as caught:
            y.backward()
        (first, *_) = gradext.explain(caught.value)
    assert first.code == "GX101"
    assert [site.frame.line for site in first.culprits] == [written_at]
    assert first.victims[0].frame.line == saved_at
    assert [(w.op, w.version_before, w.version_after) for w in recording.mutations(h)] == [
        ("aten::add_", 0, 1)
    ]


def test_accumulation_into_grad_names_the_backward(device: str) -> None:
    """On CUDA it runs on a thread of the engine's, which has no Python frame of its own."""
    w = torch.ones(4, device=device, requires_grad=True)
    (w * 2).sum().backward()
    assert w.grad is not None
    with gradext.record() as recording:
        loss = (w * 3).sum()
        loss.backward()
        called_at = _line() - 1
    (write, *_) = recording.mutations(w.grad)
    frame = next(frame for frame in recording.frames(write.stack) if frame.is_user)
    assert frame.line == called_at


def test_a_fused_optimizer_between_two_backwards_is_reported(device: str) -> None:
    w = torch.ones(3, device=device, requires_grad=True)
    x = torch.ones(3, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([w], fused=True)
    with gradext.record():
        y = (w * x).sum()
        w.grad = torch.ones_like(w)
        optimizer.step()
        stepped_at = _line() - 1
        (found,) = gradext.check_backward(y)
    assert found.code == "GX401"
    assert found.culprits[0].frame.line == stepped_at


def test_an_inference_tensor_has_a_birth(device: str) -> None:
    with gradext.record() as recording:
        with torch.inference_mode():
            entered_at = _line() - 1
            made, born_at = torch.arange(4, device=device).cos(), _line()
        w = torch.ones(4, device=device, requires_grad=True)
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved") as caught:
            w * made
        (found,) = gradext.explain(caught.value)
        birth = recording.birth(made[1:])
    assert birth is not None
    assert birth.op == "aten::cos"
    assert found.code == "GX201"
    assert [site.frame.line for site in found.culprits] == [born_at, entered_at]


def test_a_cut_is_found_from_the_loss(device: str) -> None:
    w = torch.ones(4, device=device, requires_grad=True)
    with gradext.record():
        h = w * 2.5
        value, left_at = h.sum().item(), _line()
        loss = torch.tensor(value, device=device) * 2
        with pytest.raises(RuntimeError, match="does not require grad") as caught:
            loss.backward()
        (found,) = gradext.explain(caught.value)
    assert found.code == "GX301"
    assert found.culprits[0].frame.line == left_at
