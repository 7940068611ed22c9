"""Each op against torch's own attribute, through both doors, in and across the three modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from facts import (
    CREATION_META,
    DOORS,
    MODES,
    NAMESPACE,
    OF_ONE,
    OF_TWO,
    STATE_OPS,
    assert_agrees,
    by_door,
    call,
    keys_by_torch,
)

from gradext import ops


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Any:
    return DOORS[request.param]


class ViewOfInput(torch.autograd.Function):
    """Returns a view made in its forward."""

    @staticmethod
    def forward(ctx, x):
        return x.view(-1)

    @staticmethod
    def backward(ctx, grad):
        return grad


def make(device: str) -> dict[str, torch.Tensor]:
    """Tensors of every history, made in the mode that is on."""
    leaf = torch.ones(2, 3, device=device)
    parameter = torch.ones(2, 3, device=device, requires_grad=True)
    product = parameter * 2
    written = torch.ones(4, device=device)
    written.add_(1)
    written[0] = 3
    return {
        "leaf": leaf,
        "parameter": parameter,
        "product": product,
        "written": written,
        "view": leaf[0],
        "view of view": leaf[0].view(3, 1).t(),
        "view of product": product.view(6),
        "unbind": leaf.unbind()[1],
        "detached": product.detach(),
        "detached view": product[0].detach(),
        "data": leaf.data,
        "view of data": leaf.data[0],
        "expanded": torch.ones(1, device=device).expand(3),
    }


def test_the_lists_of_ops_name_every_op_of_the_library() -> None:
    registered = torch._C._dispatch_get_all_op_names()
    listed = {name.removeprefix("gradext::") for name in registered if name.startswith("gradext::")}
    stops = ("no_autograd", "no_adinplaceorview", "empty", "nothing")
    probes = {f"{op}_{stop}" for op in ("axpby", "axpby_inplace", "window") for stop in stops}
    probes |= {"null_launch", "axpby", "axpby_", "window"}
    assert listed == {*STATE_OPS, "fingerprint", "fingerprint_list", *probes}
    assert all(callable(getattr(ops, name)) and getattr(ops, name).__doc__ for name in listed)


@pytest.mark.parametrize("read_in", MODES)
@pytest.mark.parametrize("made_in", MODES)
def test_every_history_agrees_in_every_mode(made_in: str, read_in: str, device: str) -> None:
    with MODES[made_in]():
        tensors = make(device)
    with MODES[read_in]():
        for name, t in tensors.items():
            assert t.is_inference() == (made_in == "inference_mode"), name
            assert_agrees(t)


@pytest.mark.parametrize("mode", MODES)
def test_views_made_in_a_mode_of_tensors_made_outside(mode: str, device: str) -> None:
    outside = make(device)
    with MODES[mode]():
        for t in outside.values():
            view = t.view_as(t)
            assert view._is_view()
            assert not view.is_inference()
            assert_agrees(view)
    assert_agrees(view)


def test_version_counts_writes_and_nothing_else(door: Any, device: str) -> None:
    t = torch.ones(3, device=device)
    assert door.version(t) == 0
    _ = t + 1
    _ = t[0]
    assert door.version(t) == 0
    t.add_(1)
    assert door.version(t) == 1
    with torch.no_grad():
        t.mul_(2)
    assert door.version(t) == 2
    with torch.inference_mode():
        t.mul_(2)
        assert door.version(t) == 3
    t[0] = 5
    assert door.version(t) == 4 == t._version
    t.data.add_(1)
    assert door.version(t) == 4
    # A write through a view or a detached alias counts on the base.
    t[1:].zero_()
    t.detach().zero_()
    assert door.version(t) == 6 == t._version


def test_an_inference_tensor_has_no_version(door: Any, device: str) -> None:
    with torch.inference_mode():
        t = torch.ones(3, device=device)
        t.add_(1)
    with pytest.raises(RuntimeError, match="do not track version counter"):
        _ = t._version
    assert door.version(t) is None
    assert door.version_counter(t) is None
    clone = t.clone()
    assert door.version(clone) == clone._version
    assert door.version_counter(clone) is not None


def test_version_counter_is_shared_as_writes_are_seen(door: Any, device: str) -> None:
    t = torch.ones(4, device=device)
    others = {
        "view": t[1:],
        "view of view": t[1:][1:],
        "detach": t.detach(),
        "unbind": t.unbind()[0],
        "data": t.data,
        "clone": t.clone(),
        "other": torch.ones(4, device=device),
        "same memory": torch.empty(0, device=device).set_(t.untyped_storage()),
    }
    for name, other in others.items():
        before = other._version
        t.add_(1)
        sees = other._version == before + 1
        assert sees == (name in {"view", "view of view", "detach", "unbind"}), name
        assert (door.version_counter(t) == door.version_counter(other)) is sees, name
        assert door.shares_version_counter(t, other) is sees, name
        assert door.shares_version_counter(other, t) is sees, name


def test_the_id_of_a_counter_stays_over_writes(door: Any) -> None:
    t = torch.ones(2)
    identity = door.version_counter(t)
    assert isinstance(identity, int)
    t.add_(1)
    t.resize_(100)
    assert door.version_counter(t) == identity
    # `.data =` replaces the tensor's memory and keeps its counter.
    t.data = torch.ones(3)
    assert door.version_counter(t) == identity


def test_shares_storage_is_the_same_storage_object(door: Any, device: str) -> None:
    t = torch.ones(4, device=device)
    assert door.shares_storage(t, t[1:])
    assert door.shares_storage(t, t.detach())
    assert door.shares_storage(t, t.data)
    assert door.shares_storage(t, torch.empty(0, device=device).set_(t.untyped_storage()))
    assert not door.shares_storage(t, t.clone())
    # No counter, but a storage: the two questions differ.
    with torch.inference_mode():
        inference = torch.ones(4, device=device)
        assert door.shares_storage(inference, inference[1:])
        assert not door.shares_version_counter(inference, inference[1:])


def test_two_storages_on_one_array_are_two(door: Any) -> None:
    array = torch.ones(3).numpy()
    a, b = torch.from_numpy(array), torch.from_numpy(array)
    a[0] = 7
    assert b[0] == 7
    assert not door.shares_storage(a, b)


def test_base_is_the_root_of_a_chain(door: Any, device: str) -> None:
    root = torch.ones(2, 3, 4, device=device)
    chain = root
    for view in (lambda t: t[0], lambda t: t.t(), lambda t: t.reshape(4, 3), lambda t: t[1:, None]):
        chain = view(chain)
        assert chain._base is root
        assert door.base(chain) is root
    assert door.base(root) is None
    # detach() cuts the chain: a view of it has the detached tensor as its root.
    detached = chain.detach()
    assert door.base(detached) is None
    assert door.base(detached[0]) is detached


def test_base_of_a_view_that_outlives_the_name_of_its_base(door: Any) -> None:
    view = torch.full((3,), 7.0)[1:]
    base = door.base(view)
    assert base is view._base
    assert base.tolist() == [7.0, 7.0, 7.0]


def test_a_base_that_was_returned_takes_part_in_autograd(door: Any) -> None:
    leaf = torch.ones(3, requires_grad=True)
    root = leaf * 2
    found = door.base(root[1:])
    assert found is root
    found.sum().backward()
    assert leaf.grad.tolist() == [2.0, 2.0, 2.0]


def creation_meta_samples() -> dict[str, torch.Tensor]:
    t = torch.ones(4, requires_grad=True) * 1
    with torch.no_grad():
        no_grad = t[0]
    with torch.inference_mode():
        inference = t[0]
    return {
        "default": t[0],
        "in_custom_function": ViewOfInput.apply(t),
        "multi_output_node": t.unbind()[0],
        "no_grad_mode": no_grad,
        "inference_mode": inference,
    }


# What torch says when a view of each kind is written with grad mode on.
REFUSALS = {
    "in_custom_function": "created inside a custom Function",
    "multi_output_node": "output of a function that returns multiple views",
    "no_grad_mode": "created in no_grad mode",
    "inference_mode": "created in inference mode",
}


@pytest.mark.parametrize("kind", CREATION_META.values())
def test_creation_meta_tells_which_write_torch_refuses(door: Any, kind: str) -> None:
    view = creation_meta_samples()[kind]
    assert door.creation_meta(view) == kind
    assert_agrees(view)
    if kind == "default":
        view.add_(1)
        assert view._version == 1
    else:
        with pytest.raises(RuntimeError, match=REFUSALS[kind]):
            view.add_(1)


def test_creation_meta_passes_on_to_views_of_views(door: Any) -> None:
    for kind, view in creation_meta_samples().items():
        again = view.view_as(view)
        assert_agrees(again)
        assert (door.creation_meta(again) == "default") == (kind == "default")


def test_no_view_has_no_creation_meta(door: Any) -> None:
    with torch.inference_mode():
        inference = torch.ones(3)
        assert door.creation_meta(inference[0]) is None
    assert door.creation_meta(torch.ones(3)) is None
    assert door.creation_meta(torch.ones(3).detach()) is None


def test_is_differentiable_view_in_forward_mode(door: Any) -> None:
    primal, tangent = torch.ones(3), torch.full((3,), 2.0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(primal, tangent)
        # A dual tensor is made as a view of its primal.
        assert dual._is_view()
        assert door.is_view(dual)
        assert door.is_differentiable_view(dual)
        assert door.base(dual) is primal
        unpacked = forward_ad.unpack_dual(dual)
        assert door.is_differentiable_view(unpacked.primal)
        assert door.is_differentiable_view(dual.view(3, 1))
        assert door.base(dual.view(3, 1)) is primal
        for t in (dual, dual.detach(), unpacked.primal, unpacked.tangent, dual * 2):
            assert_agrees(t)
        assert not door.is_view(dual.detach())
        assert not door.is_differentiable_view(dual.detach())
        assert not door.is_differentiable_view(dual * 2)
        # Reading the dual has not cost it its tangent.
        assert forward_ad.unpack_dual(dual).tangent is tangent
    assert not door.is_differentiable_view(primal)


def test_dispatch_keys_are_torch_s_names_lowest_first(door: Any, device: str) -> None:
    t = torch.ones(2, device=device)
    backend = device.upper()
    expected = (backend, "ADInplaceOrView", f"Autograd{backend}", f"Autocast{backend}")
    assert keys_by_torch(t) == expected
    assert tuple(door.dispatch_keys(t)) == expected
    with torch.inference_mode():
        assert tuple(door.dispatch_keys(torch.ones(2, device=device))) == (
            backend,
            f"Autocast{backend}",
        )
    assert isinstance(ops.dispatch_keys(t), tuple)


@pytest.mark.parametrize(
    ("mode", "grad_mode", "inference_mode"),
    [("grad", True, False), ("no_grad", False, False), ("inference_mode", False, True)],
)
def test_grad_mode_state(door: Any, mode: str, grad_mode: bool, inference_mode: bool) -> None:
    with MODES[mode]():
        found_grad, found_inference, included, excluded = door.grad_mode_state()
        assert (found_grad, found_inference) == (grad_mode, inference_mode)
        assert (found_grad, found_inference) == (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )
        for key in ("ADInplaceOrView", "AutogradFunctionality"):
            asked = torch._C._parse_dispatch_key(key)
            assert (key in included) == torch._C._dispatch_tls_is_dispatch_key_included(asked)
            assert (key in excluded) == torch._C._dispatch_tls_is_dispatch_key_excluded(asked)
        assert ("ADInplaceOrView" in included) == (mode != "inference_mode")
        assert ("AutogradFunctionality" in excluded) == (mode == "inference_mode")
        if mode == "inference_mode":
            with torch.inference_mode(False):
                inner = door.grad_mode_state()
                assert (inner[0], inner[1]) == (True, False)
                assert "ADInplaceOrView" in inner[2]
            with torch.enable_grad():
                assert tuple(door.grad_mode_state()[:2]) == (True, True)


def test_every_key_of_grad_mode_state_is_the_thread_s_own(door: Any) -> None:
    names = (
        "BackendSelect",
        "Python",
        "Functionalize",
        "ADInplaceOrView",
        "AutogradOther",
        "AutogradFunctionality",
        "AutogradNestedTensor",
        "AutocastCPU",
        "AutocastCUDA",
        "PythonTLSSnapshot",
    )
    with torch.autocast("cpu"), torch.inference_mode():
        _, _, included, excluded = door.grad_mode_state()
        for key in names:
            asked = torch._C._parse_dispatch_key(key)
            assert (key in included) == torch._C._dispatch_tls_is_dispatch_key_included(asked), key
            assert (key in excluded) == torch._C._dispatch_tls_is_dispatch_key_excluded(asked), key
        assert "AutocastCPU" not in excluded
    assert "AutocastCPU" in door.grad_mode_state()[3]


def test_grad_mode_state_is_a_named_tuple() -> None:
    state = ops.grad_mode_state()
    assert type(state).__name__ == "GradModeState"
    assert state._fields == ("grad_mode", "inference_mode", "included", "excluded")
    assert state.grad_mode is True
    assert state.inference_mode is False
    assert isinstance(state.included, tuple)
    assert isinstance(state.excluded, tuple)


def test_an_undefined_tensor_has_no_facts(door: Any) -> None:
    assert {name: call(door, name, None) for name in OF_ONE if name != "dispatch_keys"} == {
        "version": None,
        "version_counter": None,
        "is_view": False,
        "is_differentiable_view": False,
        "base": None,
        "creation_meta": None,
        "is_inference": False,
    }
    assert len(door.dispatch_keys(None)) == 0
    t = torch.ones(2)
    for name in OF_TWO:
        for pair in ((None, None), (None, t), (t, None)):
            assert getattr(door, name)(*pair) is False


@pytest.mark.parametrize("bad", [3, "t", 1.5, [torch.ones(1)]])
@pytest.mark.parametrize("name", [*OF_ONE, *OF_TWO])
def test_bad_input_is_one_line(name: str, bad: Any) -> None:
    arguments = (bad,) if name in OF_ONE else (torch.ones(1), bad)
    with pytest.raises(TypeError) as caught:
        getattr(ops, name)(*arguments)
    assert str(caught.value) == (
        f"gradext.ops.{name}: expected a torch.Tensor, got builtins.{type(bad).__name__}"
    )


def test_results_are_plain_python_values() -> None:
    found = by_door(ops, torch.ones(3)[1:])
    assert type(found["version"]) is int
    assert type(found["is_view"]) is bool
    assert type(found["is_inference"]) is bool
    assert type(found["creation_meta"]) is str
    assert {type(key) for key in found["dispatch_keys"]} == {str}


def test_the_two_doors_give_the_same_id() -> None:
    t = torch.ones(2)
    assert ops.version_counter(t) == NAMESPACE.version_counter(t)


def test_the_public_names_are_the_ops() -> None:
    import gradext

    assert gradext.shares_storage is ops.shares_storage
    assert gradext.shares_version_counter is ops.shares_version_counter
