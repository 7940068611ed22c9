"""window: values and layout are torch.narrow's, errors name the limits, no data is moved."""

from __future__ import annotations

import pytest
import torch

from gradext import ops

OPS = torch.ops.gradext
CUTS = [(0, 0, 2), (0, 3, 0), (0, 0, 0), (1, 1, 2), (-1, -2, 2), (-2, -3, 1), (1, 4, 0), (1, 0, 4)]


def subjects(device: str) -> dict[str, torch.Tensor]:
    plain = torch.arange(12.0, device=device).view(3, 4)
    return {
        "plain": plain,
        "transposed": torch.arange(12.0, device=device).view(4, 3).t(),
        "offset": torch.arange(40.0, device=device)[3:27:2].view(3, 4),
        "expanded": torch.arange(4, device=device).expand(3, 4),
        "three dimensions": torch.arange(24, device=device).view(3, 4, 2)[:, :, 1],
        "bool": plain > 4,
        "conjugate": torch.complex(plain, plain + 1).conj(),
        "negative": torch.complex(plain, plain + 1).conj().imag,
    }


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("name", subjects("cpu"))
def test_it_is_torch_narrow(name: str, cut, device: str) -> None:
    x = subjects(device)[name]
    view, expected = ops.window(x, *cut), torch.narrow(x, *cut)
    assert torch.equal(view, expected)
    facts = (view.shape, view.stride(), view.storage_offset(), view.dtype, view.device)
    assert facts == (
        *(expected.shape, expected.stride(), expected.storage_offset()),
        *(expected.dtype, expected.device),
    )
    assert (view.is_conj(), view.is_neg()) == (expected.is_conj(), expected.is_neg())
    assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_a_meta_tensor_gets_a_view() -> None:
    x = torch.ones(3, 4, device="meta")
    view = ops.window(x, -1, -2, 2)
    assert (view.shape, view.stride(), view._base is x) == ((3, 2), (4, 1), True)


ERRORS = {
    (2, 0, 1): (IndexError, "dim is 2, expected -2 to 1"),
    (-3, 0, 1): (IndexError, "dim is -3, expected -2 to 1"),
    (1, 5, 0): (ValueError, "start is 5, expected -4 to 4 in a dimension of size 4"),
    (-1, -5, 1): (ValueError, "start is -5, expected -4 to 4 in a dimension of size 4"),
    (1, 0, -1): (ValueError, "length is -1, expected a number not below 0"),
    (1, 3, 2): (ValueError, "start 3 and length 2 end at 5, past the dimension's size of 4"),
    (1, -1, 2): (ValueError, "start 3 and length 2 end at 5, past the dimension's size of 4"),
}


@pytest.mark.parametrize("cut", ERRORS, ids=str)
def test_errors_name_the_limits(cut, device: str) -> None:
    error, text = ERRORS[cut]
    with pytest.raises(error) as caught:
        ops.window(torch.ones(3, 4, device=device), *cut)
    assert str(caught.value) == f"gradext::window: {text}"


def test_errors_of_other_arguments(device: str) -> None:
    with pytest.raises(IndexError) as caught:
        ops.window(torch.ones((), device=device), 0, 0, 1)
    assert str(caught.value) == "gradext::window: a 0-d tensor has no dimension to take a part of"
    with pytest.raises(TypeError, match=r"gradext.ops.window: expected a torch.Tensor, got .*list"):
        ops.window([1], 0, 0, 1)
    with pytest.raises(NotImplementedError, match="gradext::window"):
        ops.window(torch.eye(3).to_sparse(), 0, 0, 1)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients(dtype: torch.dtype, cut, device: str) -> None:
    x = torch.randn(3, 4, dtype=dtype, device=device, requires_grad=True)

    def f(x):
        return ops.window(x, *cut)

    assert f(x).grad_fn.name() == "WindowBackward"
    assert torch.autograd.gradcheck(f, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: f(x) ** 2, (x,))


def test_opcheck_passes_whole(device: str) -> None:
    # The functionalization of window.cpp stands for the one that torch refuses to make up.
    all_of_it = (
        *("test_schema", "test_autograd_registration", "test_faketensor"),
        "test_aot_dispatch_dynamic",
    )
    for name, x in subjects(device).items():
        if name in ("conjugate", "negative"):
            continue  # opcheck compares bytes
        for cut in CUTS:
            result = torch.library.opcheck(OPS.window.default, (x, *cut))
            assert result == dict.fromkeys(all_of_it, "SUCCESS"), (name, cut)
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    for cut in CUTS:
        assert set(torch.library.opcheck(OPS.window.default, (leaf, *cut)).values()) == {"SUCCESS"}


def test_opcheck_refuses_a_view_without_a_functionalization(device: str) -> None:
    result = torch.library.opcheck(
        OPS.window_no_autograd.default,
        (torch.ones(3, 4, device=device), 0, 0, 2),
        test_utils="test_aot_dispatch_dynamic",
        raise_exception=False,
    )
    refusal = str(result["test_aot_dispatch_dynamic"])
    assert refusal.startswith(
        "Found a custom (non-ATen) operator whose output has alias annotations: "
        "gradext::window_no_autograd(Tensor(a) x, int dim, int start, int length) -> Tensor(a). "
        "We only support functionalizing operators whose outputs do not have alias annotations"
    )
    # The page and the docstring say so.
    assert "refuses an output with an alias annotation" in " ".join(ops.window.__doc__.split())
