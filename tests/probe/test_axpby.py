"""axpby and axpby_: their values in every layout and dtype, their gradients, what they refuse."""

from __future__ import annotations

import pytest
import torch
from samples import DTYPES, assert_close, pairs, random, reference

from gradext import ops

OPS = torch.ops.gradext
LAYOUTS = list(pairs(torch.float32, "cpu"))
A, B = 2.5, -0.75


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_layout_are_plain_torchs(layout: str, dtype: torch.dtype, device: str) -> None:
    x, y = pairs(dtype, device)[layout]
    expected = reference(x, y, A, B)
    result = ops.axpby(x, y, A, B)
    assert_close(result, expected)
    like = x + y
    assert (result.shape, result.stride(), result.dtype) == (like.shape, like.stride(), like.dtype)
    # y may be wider than x, too.
    if x.dim() and x.shape[0]:
        assert_close(ops.axpby(x[:1], y, A, B), reference(x[:1], y, A, B))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_writes_x_and_nothing_beside_it(
    layout: str, dtype: torch.dtype, device: str
) -> None:
    x, y = pairs(dtype, device)[layout]
    expected = reference(x, y, A, B)
    whole = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    around = whole.clone()
    torch.as_strided(around, x.shape, x.stride(), x.storage_offset()).copy_(expected)
    assert ops.axpby_(x, y, A, B) is x
    assert_close(x, expected)
    assert_close(whole, around)


def test_beyond_one_threads_share(device: str) -> None:
    x, y = (torch.arange(300_001.0, device=device) for _ in range(2))
    torch.testing.assert_close(ops.axpby(x, y, 2, 1), 3 * x)
    wide = torch.arange(700.0, device=device).expand(900, 700)
    torch.testing.assert_close(ops.axpby(wide, wide.clone().t()[:1].t()[:, :1], 2, 0), 2 * wide)


def test_special_numbers(device: str) -> None:
    x = torch.tensor([float("inf"), float("nan"), 1.0, -0.0], device=device)
    zero = torch.zeros(4, device=device)
    assert torch.equal(ops.axpby(x, zero, 1, 1).isnan(), x.isnan())
    assert ops.axpby(x, zero, 0, 1).isnan().tolist() == [True, True, False, False]
    half = torch.full((3,), 60000.0, dtype=torch.float16, device=device)
    # In float16 the products overflow; computed in float32 their difference does not.
    assert ops.axpby(half, half, 2, -1.5).tolist() == [30000.0] * 3


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugate_and_negative_views(dtype: torch.dtype, device: str) -> None:
    x, y = (random(4, 3, dtype=dtype, device=device) for _ in range(2))
    expected = reference(x.conj().resolve_conj(), y, A, B)
    assert_close(ops.axpby(x.conj(), y, A, B), expected)
    assert_close(ops.axpby(x.conj().imag, y.real, A, B), A * x.conj().imag + B * y.real)
    base = x.clone()
    ops.axpby_(base.conj(), y, A, B)
    assert_close(base.conj().resolve_conj(), expected)
    assert base._version == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    "shapes",
    [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (3,)), ((2, 3), ()), ((0, 3), (3,))],
    ids=str,
)
def test_gradients(shapes, dtype: torch.dtype, device: str) -> None:
    x, y = (random(*shape, dtype=dtype, device=device).requires_grad_() for shape in shapes)

    def f(x, y):
        return ops.axpby(x, y, A, B)

    assert torch.autograd.gradcheck(f, (x, y), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x, y: f(x, y) ** 2, (x, y))
    assert torch.autograd.gradcheck(f, (x, y.detach()), check_forward_ad=True)
    assert torch.autograd.gradcheck(f, (x.detach(), y), check_forward_ad=True)
    if torch.broadcast_shapes(*shapes) == x.shape:

        def written(x, y):
            return ops.axpby_(x.clone(), y, A, B)

        assert torch.autograd.gradcheck(written, (x, y), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x, y: written(x, y) ** 2, (x, y))
        assert torch.autograd.gradcheck(written, (x.detach(), y), check_forward_ad=True)
        assert torch.autograd.gradcheck(written, (x, y.detach()), check_forward_ad=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_backward_has_the_inputs_dtype_and_shape(dtype: torch.dtype, device: str) -> None:
    x = random(4, 3, dtype=dtype, device=device).requires_grad_()
    y = random(3, dtype=dtype, device=device).requires_grad_()
    node = ops.axpby(x, y, A, B)
    assert node.grad_fn.name() == "AxpbyBackward"
    node.backward(torch.ones_like(node))
    for t, factor in ((x, A), (y, 4 * B)):
        assert (t.grad.dtype, t.grad.shape) == (dtype, t.shape)
        assert_close(t.grad, torch.full_like(t, factor))


def test_only_the_asked_gradient_is_computed(device: str) -> None:
    x, y = (torch.ones(3, device=device, requires_grad=True) for _ in range(2))
    (gradient,) = torch.autograd.grad(ops.axpby(x, y, A, B).sum(), [y])
    assert gradient.tolist() == [B] * 3
    assert x.grad is None


def test_opcheck(device: str) -> None:
    for dtype in DTYPES:
        x, y = next(iter(pairs(dtype, device).values()))  # the others: in one dtype, below
        with torch.no_grad():
            torch.library.opcheck(OPS.axpby.default, (x, y, A, B))
            torch.library.opcheck(OPS.axpby_.default, (x, y, A, B))
    for name, (x, y) in pairs(torch.float32, device).items():
        # Nothing new to tracers, and slow; and a tracer is given x and y as one.
        if name in ("many packs", "rows of a larger one", "y is x"):
            continue
        leaf_x, leaf_y = (t.detach().clone().requires_grad_() for t in (x, y))
        torch.library.opcheck(OPS.axpby.default, (leaf_x, leaf_y, A, B))
        torch.library.opcheck(OPS.axpby_.default, (x, y, A, B))
        torch.library.opcheck(OPS.axpby_.default, (x, leaf_y, A, B))


ERRORS = {
    "dtypes": (
        lambda d: (torch.ones(2, device=d), torch.ones(2, dtype=torch.float64, device=d)),
        ValueError,
        "gradext::axpby: x is Float, y is Double; both must have one dtype",
    ),
    "integers": (
        lambda d: (torch.ones(2, device=d).long(),) * 2,
        ValueError,
        "gradext::axpby: no kernel for Long; it takes float16, bfloat16, float32, float64, "
        "complex64 and complex128",
    ),
    "shapes": (
        lambda d: (torch.ones(2, device=d), torch.ones(3, device=d)),
        RuntimeError,
        "The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0",
    ),
    "not a tensor": (
        lambda d: (torch.ones(2, device=d), 3.0),
        TypeError,
        "expected a torch.Tensor, got builtins.float",
    ),
    "None": (
        lambda d: (torch.ones(2, device=d), None),
        TypeError,
        "expected a torch.Tensor, got builtins.NoneType",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("op", [ops.axpby, ops.axpby_])
def test_what_is_refused_is_told_in_one_line(op, name: str, device: str) -> None:
    make, error, text = ERRORS[name]
    x, y = make(device)
    before = x.clone()
    with pytest.raises(error) as caught:
        op(x, y, 1.0, 1.0)
    assert str(caught.value).removeprefix(f"gradext.ops.{op.__name__}: ") == text
    assert torch.equal(x, before)
    assert x._version == 0


def test_in_place_refuses_what_only_it_can_meet(device: str) -> None:
    with pytest.raises(RuntimeError, match=r"output with shape \[2\] doesn't match the broadcast"):
        ops.axpby_(torch.ones(2, device=device), torch.ones(3, 2, device=device), 1, 1)
    with pytest.raises(RuntimeError, match=r"refers? to a single memory location"):
        ops.axpby_(torch.ones(1, device=device).expand(3), torch.ones(3, device=device), 1, 1)
    x = torch.arange(6.0, device=device)
    with pytest.raises(RuntimeError, match=r"refers? to a single memory location"):
        ops.axpby_(x[1:], x[:-1], 1, 1)
    assert x.tolist() == [0, 1, 2, 3, 4, 5]


def test_other_devices_are_refused() -> None:
    x, meta = torch.ones(2), torch.ones(2, device="meta")
    for arguments in ((x, meta), (meta, x)):
        with pytest.raises((ValueError, RuntimeError), match="both must be on one device"):
            ops.axpby(*arguments, 1, 1)
    with pytest.raises(NotImplementedError, match="gradext::axpby"):
        ops.axpby(torch.eye(2).to_sparse(), torch.eye(2).to_sparse(), 1, 1)


def test_a_meta_tensor_gets_a_shape() -> None:
    x, y = torch.ones(3, 1, device="meta"), torch.ones(4, device="meta")
    assert ops.axpby(x, y, 1, 1).shape == (3, 4)
    assert ops.axpby_(torch.ones(3, 4, device="meta"), y, 1, 1).shape == (3, 4)
    with pytest.raises(RuntimeError):
        ops.axpby_(y, x, 1, 1)
    with pytest.raises(ValueError, match=r"x is torch.int64, y is torch.float32"):
        ops.axpby(x.long(), y, 1, 1)


@pytest.mark.cuda
def test_cuda_is_one_kernel_on_the_current_stream() -> None:
    x, y = (torch.zeros(1 << 22, device="cuda") for _ in range(2))
    ops.axpby_(x, y, 1, 1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            x.fill_(3)
            y.fill_(4)
            ops.axpby_(x, y, 2, 1)
            ops.axpby_(x[::2], y[::2], 1, 0)
        stream.synchronize()
    names = [event.name for event in profile.events() if "axpby" in event.name]
    assert [("contiguous" in name, "strided" in name) for name in names] == [(1, 0), (0, 1)]
    assert x.eq(10).all()


@pytest.mark.cuda
def test_cuda_in_a_captured_graph() -> None:
    x, y = torch.ones(1000, device="cuda"), torch.ones(1000, device="cuda")
    ops.axpby(x, y, 2, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ops.axpby(x, y, 2, 1)
    x.fill_(5)
    graph.replay()
    torch.cuda.synchronize()
    assert result.eq(11).all()


@pytest.mark.cuda
def test_cuda_beyond_32_bits() -> None:
    count = (1 << 31) + 1025
    if torch.cuda.mem_get_info()[0] < 5 * 2 * count:
        pytest.skip("not enough memory on this GPU")
    x = torch.zeros(count, dtype=torch.float16, device="cuda")
    places = [0, (1 << 30) + 7, (1 << 31) - 1, 1 << 31, count - 1]
    x[places] = 3
    result = ops.axpby(x, x, 1, 1)
    assert result[places].eq(6).all()
    assert result.count_nonzero() == len(places)
    # Offsets of more than 32 bits, few elements: the strided kernel with 64-bit indices.
    far = x[:: count // 16]
    ops.axpby_(far, torch.ones_like(far), 0, 1)
    assert far.eq(1).all()
    assert x.count_nonzero() == len(far) + sum(place % (count // 16) != 0 for place in places)
