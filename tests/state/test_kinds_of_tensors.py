"""Every kind of tensor that torch has: the answer is torch's own, for the outermost object."""

from __future__ import annotations

import warnings

import pytest
import torch
from facts import MODES, assert_agrees, read_everything
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import (
    FunctionalTensor,
    FunctionalTensorMode,
    dispatch_functionalize,
)
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import gradext
from gradext import ops

pytestmark = pytest.mark.filterwarnings("ignore:.*(prototype|beta|deprecated)")


def quantized() -> torch.Tensor:
    if not hasattr(torch, "quantize_per_tensor"):
        pytest.skip("this torch has no quantized tensors")
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def nested(layout: torch.layout) -> torch.Tensor:
    parts = [torch.ones(2, 3), torch.ones(4, 3)]
    return torch.nested.nested_tensor(parts, layout=layout)


# kind: (how to make one, shape, nbytes, has a storage of its own)
KINDS = {
    "meta": (lambda: torch.ones(3, device="meta"), (3,), 12, True),
    "sparse COO": (lambda: torch.eye(3).to_sparse(), (3, 3), None, False),
    "sparse CSR": (lambda: torch.eye(3).to_sparse_csr(), (3, 3), None, False),
    "quantized": (quantized, (3,), 3, True),
    "nested": (lambda: nested(torch.strided), (2, None, 3), 72, True),
    "complex": (lambda: torch.ones(3, dtype=torch.cfloat), (3,), 24, True),
    "conj": (lambda: torch.ones(3, dtype=torch.cfloat).conj(), (3,), 24, True),
    "neg": (lambda: torch.ones(3, dtype=torch.cfloat).conj().imag, (3,), 12, True),
    "zero-size": (lambda: torch.empty(0, 3), (0, 3), 0, True),
    "0-d": (lambda: torch.tensor(1.0), (), 4, True),
    "expanded": (lambda: torch.ones(1).expand(1000), (1000,), 4000, True),
    "mkldnn": (lambda: torch.ones(3).to_mkldnn(), (3,), None, False),
    "bool": (lambda: torch.ones(3, dtype=torch.bool), (3,), 3, True),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), (3,), 3, True),
    "parameter": (lambda: torch.nn.Parameter(torch.ones(3)), (3,), 12, True),
    "buffer": (lambda: torch.nn.Buffer(torch.ones(3)), (3,), 12, True),
}


def make(kind: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse CSR, nested and quantized announce themselves
        return KINDS[kind][0]()


@pytest.mark.parametrize("read_in", MODES)
@pytest.mark.parametrize("made_in", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_agrees_in_every_mode(kind: str, made_in: str, read_in: str) -> None:
    if kind == "mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no mkldnn")
    with MODES[made_in]():
        t = make(kind)
    with MODES[read_in]():
        assert_agrees(t)
        read_everything(t)


@pytest.mark.parametrize("kind", KINDS)
def test_the_measures_of_every_kind(kind: str) -> None:
    _, shape, nbytes, has_storage = KINDS[kind]
    t = make(kind)
    state = gradext.inspect(t)
    assert state.shape == shape
    assert state.nbytes == nbytes
    assert (state.storage is not None) == has_storage
    assert ops.shares_storage(t, t) == has_storage
    assert state.dtype == t.dtype
    assert state.device == t.device


@pytest.mark.parametrize("kind", ["sparse COO", "nested", "complex", "mkldnn", "meta"])
def test_writes_to_other_layouts_are_counted(kind: str) -> None:
    t = make(kind)
    before = ops.version(t)
    t.mul_(2)
    assert ops.version(t) == t._version > before


@pytest.mark.parametrize("mode", MODES)
def test_a_conj_view_is_read_and_not_copied(mode: str) -> None:
    # Under inference_mode the Autograd keys are skipped and torch's Conjugate fallback, which
    # copies, would come first: the answers would be those of the copy.
    z = torch.ones(3, dtype=torch.cfloat)
    z.mul_(2)
    conj, neg = z.conj(), z.conj().imag
    with MODES[mode]():
        for view in (conj, neg):
            assert ops.version(view) == 1
            assert ops.version_counter(view) == ops.version_counter(z)
            assert ops.base(view) is view._base
            assert ops.shares_storage(view, z)
        assert ops.base(conj) is z
        assert conj.is_conj()
        assert neg.is_neg()


def test_a_sparse_tensor_s_parts_are_no_views_of_it() -> None:
    t = torch.eye(3).to_sparse().coalesce()
    for part in (t.indices(), t.values()):
        assert_agrees(part)
        assert not ops.shares_storage(part, t)


def test_jagged_nested() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = nested(torch.jagged)
    for mode in MODES.values():
        with mode():
            assert_agrees(t)
            read_everything(t)
    state = gradext.inspect(t)
    assert state.shape[0] == 2
    assert state.shape[2] == 3
    assert str(state.shape[1]) == str(t.shape[1])
    t.mul_(2)
    assert ops.version(t) == t._version


# --- wrappers in Python -------------------------------------------------------------------------


class Recording(torch.Tensor):
    """A wrapper that writes down every call of its `__torch_dispatch__`."""

    calls: list[str] = []  # noqa: RUF012

    @staticmethod
    def __new__(cls, inner: torch.Tensor, **options):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, **options
        )

    def __init__(self, inner: torch.Tensor, **options) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(str(func))
        if func is torch.ops.prim.device.default:
            return torch.device("cpu")
        if func is torch.ops.aten.sym_size.default:
            return (2, 3)
        if func is torch.ops.aten.sym_numel.default:
            return 6
        if func is torch.ops.aten.dim.default:
            return 2
        return None


WRAPPERS = {
    "plain": {},
    "strides": {"dispatch_sizes_strides_policy": "strides"},
    "sizes": {"dispatch_sizes_strides_policy": "sizes"},
    "device": {"dispatch_device": True},
    "layout": {"dispatch_layout": True},
    "all": {
        "dispatch_sizes_strides_policy": "sizes",
        "dispatch_device": True,
        "dispatch_layout": True,
    },
    "requires_grad": {"requires_grad": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", WRAPPERS.values(), ids=WRAPPERS)
def test_no_torch_dispatch_of_a_wrapper_is_called(options: dict, mode: str) -> None:
    wrapper = Recording(torch.ones(2, 3), **options)
    wrapper.inner.add_(1)  # the inner tensor's version is not the wrapper's
    with MODES[mode]():
        born_here = Recording(torch.ones(2, 3), **options)
        Recording.calls.clear()
        for t in (wrapper, born_here):
            assert_agrees(t)
            read_everything(t)
            state = gradext.inspect(t)
            assert state.shape == (2, 3)
            assert state.device == torch.device("cpu")
            assert state.nbytes == 24
            assert (str(state.dtype), state.version is None) == ("torch.float32", t.is_inference())
        assert Recording.calls == []
        assert ops.version(wrapper) == 0
    # The list does record: these do reach `__torch_dispatch__`.
    if "dispatch_sizes_strides_policy" in options and options != WRAPPERS["strides"]:
        assert wrapper.size() == (2, 3)
        assert "aten.sym_size.default" in Recording.calls
    Recording.calls.clear()
    with torch.no_grad():
        torch.ops.aten.sin.default(wrapper)
    assert Recording.calls == ["aten.sin.default"]


def test_a_wrapper_reports_its_own_version_and_grad_fn() -> None:
    wrapper = Recording(torch.ones(2, 3), requires_grad=True)
    assert gradext.inspect(wrapper).requires_grad
    assert gradext.inspect(wrapper).is_leaf
    with torch.no_grad():
        torch.ops.aten.mul_.Scalar(wrapper, 2)
    assert ops.version(wrapper) == wrapper._version == 1
    assert ops.version(wrapper.inner) == 0


def test_a_list_that_mixes_wrappers_and_plain_tensors() -> None:
    tensors = [torch.ones(1), Recording(torch.ones(2, 3)), torch.ones(2)[1:]]
    Recording.calls.clear()
    assert gradext.states(tensors).array.tolist() == ops.states(tensors).tolist()
    assert type(ops.states(tensors)) is torch.Tensor
    assert not ops.shares_storage(tensors[0], tensors[1])
    assert not ops.shares_version_counter(tensors[1], tensors[0])
    assert Recording.calls == []


def test_no_torch_dispatch_mode_is_called() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    tensors = [torch.ones(3), torch.ones(3)[1:], torch.ones(2, requires_grad=True) * 2]
    for mode in MODES.values():
        with mode(), Mode():
            for t in tensors:
                read_everything(t)
            assert seen == []
            torch.ones(3)
            assert seen == ["aten.ones.default"]
            seen.clear()


def test_no_torch_function_mode_is_called() -> None:
    from torch.overrides import TorchFunctionMode

    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    t = torch.ones(3)[1:]
    with Mode():
        read_everything(t, dispatcher=False)
        assert seen == []
        _ = t + 1
        assert len(seen) == 1


def test_no_torch_function_of_a_subclass_is_called() -> None:
    seen = []

    class Subclass(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    t = torch.ones(3).as_subclass(Subclass)
    view = t[1:]
    view.add_(1)
    seen.clear()
    for mode in MODES.values():
        with mode():
            for each in (t, view):
                read_everything(each, dispatcher=False)
    found = ops.base(view)
    assert seen == []
    assert found is view._base
    assert ops.version(t) == t._version == 1
    assert seen != []


# --- fakes and symbols --------------------------------------------------------------------------


def test_a_fake_tensor() -> None:
    with FakeTensorMode() as mode:
        t = torch.ones(2, 3)
        view = t[0]
        view.add_(1)
        for each in (t, view):
            assert isinstance(each, FakeTensor)
            assert_agrees(each)
            read_everything(each)
        assert ops.version(t) == 1
        assert ops.base(view) is t
        assert gradext.inspect(t).device == t.device == torch.device("cpu")
    read_everything(view)
    assert ops.version(mode.from_tensor(torch.ones(2))) == 0


def test_a_fake_tensor_of_a_device_that_is_not_here() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        t = torch.empty(2, device="meta")
    fake = FakeTensor(FakeTensorMode(), torch.empty(2, device="meta"), torch.device("cuda:0"))
    assert gradext.inspect(fake).device == torch.device("cuda:0")
    assert gradext.inspect(t).device == torch.device("meta")


def test_states_under_a_fake_mode_is_fake() -> None:
    real = torch.ones(2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.ones(3)
        for tensors in ([fake], [fake, fake[1:]], [real, fake], [], [real]):
            for rows in (ops.states(tensors), torch.ops.gradext.states(tensors)):
                assert isinstance(rows, FakeTensor)
                assert rows.dtype == torch.int64
                assert rows.shape == (len(tensors), len(gradext.STATE_COLUMNS))
                assert rows.device == torch.device("cpu")
        # The pybind11 door makes no tensor, so it answers for real.
        assert gradext.states([fake, fake[1:]]).array[:, 2].tolist() == [0, 1]


def symbolic(shape_env: ShapeEnv) -> torch.Tensor:
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.DYNAMIC])
    mode = FakeTensorMode(shape_env=shape_env)
    return mode.from_tensor(torch.ones(3, 4), symbolic_context=context)


def test_symbolic_shapes_are_reported_and_not_guarded_on() -> None:
    shape_env = ShapeEnv()
    t = symbolic(shape_env)
    view = t[1:]
    before = len(shape_env.guards)
    with torch.enable_grad():
        for each in (t, view):
            assert_agrees(each)
            read_everything(each)
    state = gradext.inspect(view)
    assert [type(size) for size in state.shape] == [torch.SymInt, torch.SymInt]
    assert str(state.shape[1]) == str(t.shape[1])
    assert isinstance(state.nbytes, torch.SymInt)
    assert isinstance(state.storage_offset, torch.SymInt)
    assert str(state.storage_offset) == str(view.storage_offset())
    columns = list(gradext.STATE_COLUMNS)
    row = gradext.states([t]).array[0]
    assert [row[columns.index(name)] for name in ("storage_offset", "numel", "nbytes", "dim")] == [
        -1,
        -1,
        -1,
        2,
    ]
    # A guard would specialise the user's graph on a size, because somebody looked.
    assert len(shape_env.guards) == before


def test_sizes_that_depend_on_data_are_not_asked_for() -> None:
    shape_env = ShapeEnv()
    with FakeTensorMode(shape_env=shape_env):
        t = torch.ones(4).nonzero()
    assert str(t.shape[0]) == "u0"
    read_everything(t)
    state = gradext.inspect(t)
    assert str(state.nbytes) == "8*u0"
    # Of an unknown size one cannot say that it is zero.
    assert ", 0 bytes outside views" not in str(gradext.inspect_tree([t]))
    assert shape_env.guards == []


# --- functorch ----------------------------------------------------------------------------------


def look(seen: list):
    """A function to transform, which asks at every step."""

    def ask(t):
        assert_agrees(t)
        read_everything(t)
        seen.append((ops.version(t), ops.is_view(t), ops.dispatch_keys(t)))

    def function(x):
        ask(x)
        y = x * 2
        ask(y)
        y.add_(1)
        ask(y)
        view = y.view(-1)
        ask(view)
        assert ops.base(view) is view._base
        return (y * view.view_as(y)).sum()

    return function


def test_inside_grad() -> None:
    seen: list = []
    x = torch.ones(3)
    result = grad(look(seen))(x)
    # y = 2x + 1 and the result is sum(y * y): 2y * 2
    assert result.tolist() == [12.0] * 3
    assert [facts[:2] for facts in seen] == [(0, False), (0, False), (1, False), (1, True)]
    assert all("FuncTorchGradWrapper" in keys for *_, keys in seen)
    assert ops.version(x) == 0


def test_inside_vmap() -> None:
    seen: list = []
    result = vmap(look(seen))(torch.ones(2, 3))
    assert result.tolist() == [27.0] * 2
    assert len(seen) == 4
    assert all("FuncTorchBatched" in keys for *_, keys in seen)


def test_inside_jvp() -> None:
    seen: list = []
    value, tangent = jvp(look(seen), (torch.ones(3),), (torch.ones(3),))
    assert (value.item(), tangent.item()) == (27.0, 36.0)
    assert [version for version, *_ in seen] == [0, 0, 1, 1]


def test_inside_nested_transforms() -> None:
    seen: list = []
    result = vmap(grad(look(seen)))(torch.ones(2, 3))
    assert result.tolist() == [[12.0] * 3] * 2
    assert len(seen) == 4
    assert all("FuncTorchGradWrapper" in keys for *_, keys in seen)
    seen.clear()
    result = grad(lambda x: vmap(look(seen))(x).sum())(torch.ones(2, 3))
    assert result.tolist() == [[12.0] * 3] * 2
    assert all("FuncTorchBatched" in keys for *_, keys in seen)


def test_a_functorch_wrapper_shares_nothing_with_what_it_wraps() -> None:
    outside = torch.ones(3)
    outside.add_(1)

    def function(x):
        assert ops.version(x) == x._version == 0
        assert not ops.shares_version_counter(x, outside)
        assert not ops.shares_storage(x, outside)
        # A tensor from outside is seen as it is, inside too.
        assert ops.version(outside) == 1
        return x.sum()

    grad(function)(outside)


# --- functionalization --------------------------------------------------------------------------


def test_inside_functionalize() -> None:
    seen: list = []
    result = functionalize(look(seen))(torch.ones(3))
    assert result.item() == 27.0
    assert len(seen) == 4
    assert all("Functionalize" in keys for *_, keys in seen)


def test_functional_tensor() -> None:
    seen = []

    def function(x):
        assert isinstance(x, FunctionalTensor)
        y = x * 2
        y.add_(1)
        view = y.view(-1)
        for t in (x, y, view):
            assert_agrees(t)
            read_everything(t)
            seen.append(type(t))
        return view.sum()

    result = dispatch_functionalize(function, mode=FunctionalTensorMode())(torch.ones(3))
    assert result.item() == 9.0
    assert seen == [FunctionalTensor] * 3


def test_an_inference_tensor_of_every_layout() -> None:
    with torch.inference_mode():
        for kind in ("sparse COO", "complex", "nested", "meta", "zero-size"):
            t = make(kind)
            assert ops.version(t) is None, kind
            assert ops.version_counter(t) is None, kind
            assert gradext.inspect(t).version is None, kind
            assert "no version counter" in str(gradext.inspect(t))


def test_a_jagged_nested_tensor_has_no_product_of_sizes() -> None:
    t = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    state = gradext.inspect(t)
    assert state.nbytes is None
    assert len(state.shape) == 3
    assert "an unknown number of bytes" in str(gradext.inspect_tree([t.clone()]))
