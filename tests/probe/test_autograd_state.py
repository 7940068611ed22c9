"""What the probe ops do to autograd's state, beside what torch's own ops do in the same place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch

import gradext
from gradext import ops

MODES = {
    "grad": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
MADE_IN = {"grad": "default", "no_grad": "no_grad_mode", "inference_mode": "inference_mode"}
Write = Callable[[torch.Tensor], object]


def ours(x: torch.Tensor) -> object:
    return ops.axpby_(x, torch.ones_like(x), 2.0, 1.0)


def torchs(x: torch.Tensor) -> object:
    return x.mul_(2.0)


def leaf(device: str) -> torch.Tensor:
    return torch.arange(12.0, device=device).view(3, 4).requires_grad_()


# --- version counters -----------------------------------------------------------------------------


def test_a_write_is_counted_once(device: str) -> None:
    x = leaf(device) * 1
    view, detached, data = ops.window(x, 0, 1, 2), x.detach(), x.data
    assert gradext.shares_version_counter(x, view)
    ours(x)
    assert (x._version, view._version, detached._version, data._version) == (1, 1, 1, 0)
    ours(view)
    assert (x._version, view._version, detached._version) == (2, 2, 2)
    ours(ops.window(view, 1, 0, 1))
    assert (x._version, view._version) == (3, 3)
    with torch.no_grad():
        ours(detached)
    assert x._version == 4
    ops.axpby(x, x, 1, 1)
    ops.window(x, 0, 0, 1)
    assert x._version == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_write_is_counted_in_every_mode(mode: str, device: str) -> None:
    x = torch.ones(3, device=device)
    with MODES[mode]():
        ours(x)
    assert x._version == 1


def test_an_empty_write_is_counted_as_torch_does(device: str) -> None:
    x, y = torch.ones(0, device=device), torch.ones(0, device=device)
    ours(x)
    torchs(y)
    assert x._version == y._version == 1


@pytest.mark.parametrize("write", [ours, lambda x: ours(ops.window(x.detach(), 0, 0, 1))])
def test_backward_notices_a_write_after_a_save(write: Write, device: str) -> None:
    x = leaf(device) * 1
    loss = (x * x).sum()
    write(x)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.* is at version 1"):
        loss.backward()


# --- views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_view_is_tracked_as_torchs_is(mode: str, requires_grad: bool, device: str) -> None:
    x = leaf(device) * 1 if requires_grad else torch.ones(3, 4, device=device)
    first = x[:2]
    with MODES[mode]():
        for base in (x, first):
            view, expected = ops.window(base, 0, 0, 1), base.narrow(0, 0, 1)
            mine, theirs = gradext.inspect(view), gradext.inspect(expected)
            assert (mine.is_view, mine.base, mine.creation_meta, mine.requires_grad) == (
                *(theirs.is_view, theirs.base, theirs.creation_meta),
                theirs.requires_grad,
            )
            assert mine.creation_meta == MADE_IN[mode]
            assert view._base is x
            assert mine.version_counter == theirs.version_counter
            assert mine.dispatch_keys == theirs.dispatch_keys
            assert not mine.is_inference


def test_inference_tensors_have_no_books(device: str) -> None:
    with torch.inference_mode():
        x = torch.ones(3, 4, device=device)
        view, sum_ = ops.window(x, 0, 1, 2), ops.axpby(x, x, 1, 1)
        ours(view)
        states = [gradext.inspect(t) for t in (x, view, sum_)]
    outside = gradext.inspect(ops.window(x, 0, 1, 2))
    for state in (*states, outside):
        assert (state.is_inference, state.version, state.is_view) == (True, None, False)
    assert x.tolist() == [[1.0] * 4, [3.0] * 4, [3.0] * 4]
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside Inference"):
        ours(x)
    with torch.inference_mode():
        alone = ops.axpby(torch.ones(2, device=device, requires_grad=True), x[0, :2], 1, 1)
    assert alone.is_inference()
    assert not alone.requires_grad


SITUATIONS: dict[str, Callable[[Callable[..., torch.Tensor], torch.Tensor], torch.Tensor]] = {
    "a leaf": lambda cut, x: x,
    "a view of a leaf": lambda cut, x: cut(x, 0, 0, 2),
    "a view of a view of a leaf": lambda cut, x: cut(x[1:], 0, 0, 2),
    "a view of unbind": lambda cut, x: cut((x * 1).unbind()[0], 0, 0, 2),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_may_not_be_written_raises_torchs_error(situation: str, device: str) -> None:
    texts = []
    for write, cut in ((ours, ops.window), (torchs, torch.narrow)):
        x = leaf(device)
        t = SITUATIONS[situation](cut, x)
        with pytest.raises(RuntimeError) as caught:
            write(t)
        # The node is named, by some torches without its "Backward".
        text = str(caught.value)
        for name in ("WindowBackward", "SliceBackward0", "Window", "Slice"):
            text = text.replace(f"Output 0 of {name} ", "Output 0 of it ")
        texts.append(text)
        assert x._version == 0
        assert x.detach().flatten().tolist() == list(range(12))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_view_of_another_mode_may_not_be_written(mode: str, device: str) -> None:
    texts = []
    for write, cut in ((ours, ops.window), (torchs, torch.narrow)):
        x = leaf(device) * 1
        with MODES[mode]():
            view = cut(x, 0, 0, 2)
        with pytest.raises(RuntimeError) as caught:
            write(view)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert mode in texts[0]


# --- the graph ------------------------------------------------------------------------------------


def chain(cut: Callable[..., torch.Tensor], write: Callable[..., object]) -> Callable[..., object]:
    def program(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = x * 1
        other = z[:, 1:3]
        view = cut(z, 0, 1, 2)
        write(view, y)
        inner = cut(view, 1, -2, 1)
        write(inner, y[:1])
        return (z**2).sum() + (other * view.sum()).sum() + inner.sum()

    return program


def test_a_chain_has_the_gradients_of_plain_torch(device: str) -> None:
    found = []
    for cut, write in (
        (ops.window, lambda t, y: ops.axpby_(t, y, 2.0, 3.0)),
        (torch.narrow, lambda t, y: t.mul_(2.0).add_(y, alpha=3.0)),
    ):
        x = leaf(device)
        y = torch.tensor([0.5, 1.5, -2.0, 1.0], device=device, requires_grad=True)
        loss = chain(cut, write)(x, y)
        found.append([loss.detach(), *torch.autograd.grad(loss, (x, y))])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_write_through_a_view_gives_the_base_its_node(device: str) -> None:
    x = leaf(device)
    z = x * 1
    view, other = ops.window(z, 0, 0, 2), ops.window(z, 0, 1, 2)
    ours(view)
    assert z.grad_fn.name().endswith("CopySlices")
    assert gradext.inspect(other).grad_fn == "WindowBackward"  # not yet rebuilt
    assert other.grad_fn.name() == "AsStridedBackward0"  # rebuilt, from the base as it is
    other.sum().backward()
    assert x.grad.tolist() == [[0.0] * 4, [2.0] * 4, [1.0] * 4]


def test_a_write_of_a_tensor_that_requires_grad_makes_x_require_it(device: str) -> None:
    x, y = torch.ones(3, device=device), torch.ones(3, device=device, requires_grad=True)
    assert ops.axpby_(x, y, 2, 3).grad_fn.name() == "AxpbyBackward"
    x.sum().backward()
    assert y.grad.tolist() == [3.0] * 3


def test_view_replay_asks_the_op_itself(device: str) -> None:
    x = leaf(device) * 1
    with torch.autograd._force_original_view_tracking(True):
        view = ops.window(x, 1, -3, 2)
        inner = ops.window(view, 0, 1, 2)
    again = inner._view_func(x * 10)
    assert again.tolist() == (x * 10)[1:, 1:3].tolist()
    assert again.grad_fn.name() == "WindowBackward"
    back = view._rev_view_func_unsafe(view)
    assert (back.shape, back.stride(), back.tolist()) == (x.shape, x.stride(), x.tolist())


def test_forward_mode_through_views_and_writes(device: str) -> None:
    import torch.autograd.forward_ad as forward

    with forward.dual_level():
        base = torch.ones(4, device=device)
        dual = forward.make_dual(base, torch.full((4,), 10.0, device=device))
        view = ops.window(dual, 0, 1, 2)
        ops.axpby_(view, torch.ones(2, device=device), 3.0, 1.0)
        assert forward.unpack_dual(view).tangent.tolist() == [30.0, 30.0]
        assert forward.unpack_dual(dual).tangent.tolist() == [10.0, 30.0, 30.0, 10.0]
        plain = torch.ones(4, device=device)
        ops.axpby_(plain, dual, 1.0, 2.0)
        assert forward.unpack_dual(plain).tangent.tolist() == [20.0, 60.0, 60.0, 20.0]


# --- the variants: each leaves out exactly its layer ----------------------------------------------


def test_axpby_without_layers(device: str) -> None:
    x = leaf(device)
    for op in (ops.axpby_no_autograd, ops.axpby_no_adinplaceorview):
        result = op(x, x, 2.0, 1.0)
        assert torch.equal(result, 3 * x.detach())
        assert (result.requires_grad, result.grad_fn) == (False, None)
    assert ops.axpby(x, x, 2.0, 1.0).requires_grad


@pytest.mark.parametrize(("stop", "version"), [("no_autograd", 1), ("no_adinplaceorview", 0)])
def test_axpby_inplace_without_layers(stop: str, version: int, device: str) -> None:
    x = leaf(device)  # which axpby_ refuses to write: that check is Autograd's
    getattr(ops, f"axpby_inplace_{stop}")(x, torch.ones_like(x), 2.0, 1.0)
    state = gradext.inspect(x)
    assert (state.version, state.grad_fn, state.is_leaf) == (version, None, True)
    assert x[0].tolist() == [1.0, 3.0, 5.0, 7.0]
    y = leaf(device)
    product = y * 1
    node = product.grad_fn
    getattr(ops, f"axpby_inplace_{stop}")(product, torch.ones_like(y), 2.0, 1.0)
    assert product.grad_fn is node
    assert product._version == version


def test_window_without_layers(device: str) -> None:
    x = leaf(device) * 1
    tracked = gradext.inspect(ops.window_no_autograd(x, 0, 1, 2))
    assert (tracked.is_view, tracked.grad_fn, tracked.creation_meta) == (True, None, "default")
    assert gradext.shares_version_counter(x, ops.window_no_autograd(x, 0, 1, 2))
    bare = ops.window_no_adinplaceorview(x, 0, 1, 2)
    state = gradext.inspect(bare)
    assert (state.is_view, state.grad_fn, state.requires_grad) == (False, None, False)
    assert not gradext.shares_version_counter(x, bare)
    assert gradext.shares_storage(x, bare)
    assert torch.equal(bare, x[1:])


@pytest.mark.parametrize("base", ["axpby", "axpby_inplace", "window"])
@pytest.mark.parametrize("stop", ["empty", "nothing"])
def test_the_empty_ones_touch_nothing(base: str, stop: str, device: str) -> None:
    x = leaf(device) * 1
    node = x.grad_fn
    arguments = (x, 0, 1, 2) if base == "window" else (x, x, 2.0, 1.0)
    probe = getattr(ops, f"{base}_{stop}")
    assert probe(*arguments) is None or probe(*arguments) == ()
    assert (x._version, x.grad_fn is node) == (0, True)
    assert x.flatten().tolist() == list(range(12))
    assert "lies to autograd on purpose" in probe.__doc__


def test_loops_in_cpp_call_the_op_n_times(device: str) -> None:
    from gradext import _C

    for name, counted in (("axpby_", 5), ("axpby_inplace_no_autograd", 5)):
        x = torch.zeros(3, device=device)
        _C.testing.probe_dispatched(name, 5, x, torch.ones(3, device=device))
        assert (x._version, x[0].item()) == (counted, 1 - 0.5**5)
    x = torch.zeros(3, device=device)
    _C.testing.probe_direct("axpby_", 5, x, torch.ones(3, device=device))
    assert (x._version, x[0].item()) == (0, 1 - 0.5**5)
    stops = ("no_autograd", "no_adinplaceorview", "empty", "nothing")
    for name in ("axpby", "window", *(f"{op}_{s}" for op in ("axpby", "window") for s in stops)):
        _C.testing.probe_dispatched(name, 2, x, x)
    for name in ("axpby", "window", "nothing"):
        _C.testing.probe_direct(name, 2, x, x)
    for door in (_C.testing.probe_dispatched, _C.testing.probe_direct):
        with pytest.raises(ValueError, match="is named version"):
            door("version", 1, x, x)


# --- the recorder ---------------------------------------------------------------------------------


def test_the_recorder_names_the_line_of_a_write(device: str) -> None:
    x = leaf(device) * 1
    with gradext.record() as recording:
        loss = (x * x).sum()
        ops.axpby_(x, torch.ones_like(x), 2.0, 1.0)  # the culprit
        with pytest.raises(RuntimeError) as caught:
            loss.backward()
    (mutation,) = recording.mutations(x)
    assert (mutation.op, mutation.version_before, mutation.version_after) == (
        *("gradext::axpby_", 0),
        1,
    )
    (diagnosis, *_) = gradext.explain(caught.value, recording)
    assert diagnosis.code == "GX101"
    assert diagnosis.culprits[0].frame.code.strip().endswith("# the culprit")
