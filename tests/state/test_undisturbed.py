"""Reading changes nothing: not a version, not a node, not a count, and no later backward.

A view whose base was just written is the trap: asking it for its `grad_fn` rebuilds the node.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from facts import MODES, read_everything

import gradext
from gradext import _C, ops


def nodes(t: torch.Tensor) -> list[torch.autograd.graph.Node]:
    """Every node of the graph behind `t`. Asks for `t.grad_fn`: never use it before a read."""
    found, pending = [], [t.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.append(node)
            pending.extend(following for following, _ in node.next_functions)
    return found


def counts(t: torch.Tensor) -> tuple[int, ...]:
    """Version, owners of the version counter, of the storage and of the tensor itself."""
    storage = t.untyped_storage()
    return (
        -1 if t.is_inference() else t._version,
        _C.testing.version_counter_use_count(t),
        torch._C._storage_Use_Count(storage._cdata),
        t._use_count(),
        sys.getrefcount(t),
    )


def samples() -> dict[str, torch.Tensor]:
    leaf = torch.ones(4, requires_grad=True)
    product = leaf * 2
    with torch.no_grad():
        no_grad_view = product[1:]
    with torch.inference_mode():
        inference = torch.ones(3)
    plain = torch.ones(4)
    return {
        "leaf": leaf,
        "product": product,
        "view": product[1:],
        "unbind": product.unbind()[0],
        "no_grad view": no_grad_view,
        "detached": product.detach(),
        "plain": plain,
        "view of plain": plain[1:],
        "inference": inference,
        "inference view": inference[1:],
        "fresh": torch.ones(2),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", samples())
def test_counts_and_nodes_stay(name: str, mode: str) -> None:
    t = samples()[name]
    read_everything(t)  # what a first call caches (overloads, rich) is not of the tensor
    node = t.grad_fn
    graph = nodes(t)
    before = (counts(t), node and sys.getrefcount(node))
    with MODES[mode]():
        for _ in range(3):
            read_everything(t)
            ops.base(t)
    gc.collect()
    assert (counts(t), node and sys.getrefcount(node)) == before
    assert t.grad_fn is node
    after = nodes(t)
    assert len(after) == len(graph)
    assert all(a is b for a, b in zip(after, graph, strict=True))


def test_the_counts_do_move() -> None:
    # So that the test above cannot hold by counting nothing.
    t = torch.ones(3)
    before = counts(t)
    view = t[1:]
    after = counts(t)
    assert after[1] == before[1] + 1
    assert after[2] == before[2] + 1
    assert after[3] == before[3] + 1
    assert _C.testing.version_counter_use_count(view) == after[1]


def test_base_is_released_with_the_result() -> None:
    root = torch.ones(4, requires_grad=True) * 1
    view = root[1:]
    references = weakref.ref(root)
    before = root._use_count()
    found = ops.base(view)
    assert found is root
    del found
    assert root._use_count() == before
    del root, view
    gc.collect()
    assert references() is None


def stale_view() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.autograd.graph.Node]:
    """(leaf, base, view, the view's node), after a write to the base through another view."""
    leaf = torch.ones(4, requires_grad=True)
    base = leaf * 1
    view, other = base[:2], base[2:]
    old = view.grad_fn
    other.mul_(3)
    return leaf, base, view, old


def test_a_stale_node_is_reported_and_left() -> None:
    _, base, view, old = stale_view()
    for mode in MODES.values():
        with mode():
            read_everything(view)
            state = gradext.inspect(view)
            assert state.grad_fn_is_stale
            assert state.grad_fn == old.name() == "SliceBackward0"
            assert state.version == base._version == 1
            assert not state.is_leaf
    rebuilt = view.grad_fn
    assert rebuilt is not old
    assert rebuilt.name() == "AsStridedBackward0"
    state = gradext.inspect(view)
    assert not state.grad_fn_is_stale
    assert state.grad_fn == "AsStridedBackward0"
    assert view.grad_fn is rebuilt


@pytest.mark.parametrize("read", [False, True])
def test_a_backward_through_a_stale_view_is_right(read: bool) -> None:
    leaf, base, view, _ = stale_view()
    if read:
        read_everything(view)
        read_everything(base)
    (base.sum() + view.sum()).backward()
    assert leaf.grad.tolist() == [2.0, 2.0, 3.0, 3.0]


def test_a_view_of_a_base_without_gradient_is_never_stale() -> None:
    # torch keeps no node for such a view, however often its base is written: there is nothing old.
    base = torch.ones(4)
    view = base[:2]
    base.add_(1)
    assert view.grad_fn is None
    state = gradext.inspect(view)
    assert state.version == 1
    assert state.grad_fn is None
    assert not state.grad_fn_is_stale
    assert "out of date" not in str(state)
    assert "out of date" not in str(gradext.inspect_tree([base, view]))


def test_a_view_of_a_base_that_came_to_require_grad() -> None:
    leaf = torch.full((4,), 3.0, requires_grad=True)
    base = torch.ones(4)
    view = base[:2]
    base.mul_(leaf)
    state = gradext.inspect(view)
    is_leaf = gradext.states([view]).array[0, gradext.STATE_COLUMNS.index("is_leaf")]
    assert state.grad_fn is None
    assert state.grad_fn_is_stale
    # torch's own `is_leaf` asks for the node, and so makes it; gradext must say the same unasked.
    assert (state.requires_grad, state.is_leaf) == (view.requires_grad, view.is_leaf)
    assert is_leaf == view.is_leaf
    assert view.grad_fn.name() == "AsStridedBackward0"
    state = gradext.inspect(view)
    assert not state.grad_fn_is_stale
    assert (state.requires_grad, state.is_leaf) == (True, False)
    view.sum().backward()
    assert leaf.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_no_grad_view_whose_node_torch_refuses_to_make() -> None:
    # torch raises when asked for this view's grad_fn; a read must neither raise nor ask.
    leaf = torch.ones(4, requires_grad=True)
    base = leaf * 1
    with torch.no_grad():
        view = base[:2]
    base.mul_(2)
    read_everything(view)
    state = gradext.inspect(view)
    assert state.creation_meta == "no_grad_mode"
    assert state.grad_fn_is_stale
    with pytest.raises(RuntimeError, match="no_grad mode"):
        _ = view.grad_fn
    base.sum().backward()
    assert leaf.grad.tolist() == [2.0] * 4


def test_a_freed_graph_stays_freed() -> None:
    leaf = torch.ones(3, requires_grad=True)
    result = (leaf * leaf).sum()
    result.backward()
    read_everything(result)
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


def test_the_version_check_of_backward_still_sees_a_write() -> None:
    leaf = torch.ones(3, requires_grad=True)
    middle = leaf.exp()
    result = (middle * 1).sum()
    read_everything(middle)
    middle.add_(1)
    read_everything(middle)
    with pytest.raises(RuntimeError, match="is at version 1; expected version 0 instead"):
        result.backward()


def test_hooks_and_retained_gradients_stay() -> None:
    leaf = torch.ones(3, requires_grad=True)
    middle = leaf * 2
    seen = []
    middle.register_hook(lambda grad: seen.append(grad.tolist()))
    middle.retain_grad()
    read_everything(middle)
    assert seen == []
    middle.sum().backward()
    assert seen == [[1.0] * 3]
    assert middle.grad.tolist() == [1.0] * 3


def test_saved_tensor_hooks_do_not_see_a_read() -> None:
    packed = []

    def pack(t):
        packed.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        leaf = torch.ones(3, requires_grad=True)
        read_everything(leaf)
        read_everything(leaf[1:])
    assert packed == []


def test_anomaly_mode_and_autocast_change_no_answer() -> None:
    leaf = torch.ones(3, requires_grad=True)
    product = leaf * 2
    before = gradext.inspect(product)
    with torch.autograd.set_detect_anomaly(True), torch.autocast("cpu"):
        read_everything(product)
        assert gradext.inspect(product) == before


def backward_after(read: Callable[[torch.Tensor], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leaf = torch.ones(4, requires_grad=True)
        product = leaf * 2
        view = product[1:]
        for t in (leaf, product, view):
            read(t)
        (view.sum() + product.sum()).backward()
        assert leaf.grad.tolist() == [2.0, 4.0, 4.0, 4.0]
    return [str(warning.message) for warning in caught]


def test_a_later_backward_warns_of_nothing() -> None:
    assert backward_after(read_everything) == []


# An op without an autograd kernel makes torch warn in C++, on stderr, and only when a backward
# later comes through a tensor that the op returned: so a process of its own, with all of stderr
# read.
BACKWARD_THROUGH_EVERY_OP = """
    import warnings
    warnings.simplefilter("error")
    import torch
    import gradext
    from gradext import ops

    torch.set_warn_always(True)
    one = ("version", "version_counter", "is_view", "is_differentiable_view", "base",
           "creation_meta", "is_inference", "dispatch_keys", "null_launch")
    for door in (torch.ops.gradext, ops):
        leaf = torch.ones(4, requires_grad=True)
        product = leaf * 2
        view = product[1:]
        for t in (leaf, product, view):
            for name in one:
                getattr(door, name)(t)
            door.shares_version_counter(t, product)
            door.shares_storage(t, product)
            door.states([t, product])
            door.grad_mode_state()
            gradext.inspect(t)
            gradext.states([t])
        found = door.base(view)
        assert found is product
        (found.sum() + view.sum() + product.sum()).backward()
        assert leaf.grad.tolist() == [4.0, 6.0, 6.0, 6.0]
    print("done")
"""


def test_a_backward_through_every_result_prints_nothing() -> None:
    program = textwrap.dedent(BACKWARD_THROUGH_EVERY_OP)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
