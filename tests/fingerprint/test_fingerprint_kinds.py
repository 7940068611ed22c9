"""What a fingerprint leaves alone, and which tensors have none."""

from __future__ import annotations

import pytest
import torch
from contents import by_op
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import gradext
from gradext import _C, ops
from gradext.fingerprints import reference

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]
OPS = torch.ops.gradext


@pytest.mark.parametrize("read_in", MODES)
@pytest.mark.parametrize("made_in", MODES)
def test_in_every_mode(made_in, read_in, device: str) -> None:
    with made_in():
        leaf = torch.ones(3, 4, device=device, requires_grad=made_in is torch.enable_grad)
        tensors = [leaf, leaf * 2, (leaf * 2)[1:], leaf.detach().t()]
    with torch.no_grad():
        want = [reference.fingerprint(t) for t in tensors]
    before = [gradext.inspect(t) for t in tensors]
    with read_in():
        assert [gradext.fingerprint(t) for t in tensors] == want
        assert list(gradext.fingerprint(tensors).values()) == want
        assert [by_op(t) for t in tensors] == want
        for result in (OPS.fingerprint(tensors[1]), OPS.fingerprint_list(tensors)):
            assert not result.requires_grad
            assert result.grad_fn is None
            assert result.dtype is torch.int64
            assert result.device == leaf.device
            assert not result._is_view()
            assert result.is_inference() == (read_in is torch.inference_mode)
    # Versions, grad_fn, views: as they were.
    assert [gradext.inspect(t) for t in tensors] == before


def test_a_backward_goes_through_what_was_fingerprinted() -> None:
    w = torch.ones(3, requires_grad=True)
    y = (w * w).exp()
    OPS.fingerprint_list([w, y])
    gradext.fingerprint([w, y])
    y.sum().backward()
    plain = torch.ones(3, requires_grad=True)
    (plain * plain).exp().sum().backward()
    assert torch.equal(w.grad, plain.grad)


def test_a_write_changes_it_whoever_writes() -> None:
    t = torch.zeros(5)
    seen = [gradext.fingerprint(t)]
    for write in (
        lambda: t.add_(1),
        lambda: t.data.mul_(3),
        lambda: t.numpy().__setitem__(2, 9.0),
        lambda: t.untyped_storage().fill_(1),
    ):
        write()
        seen.append(gradext.fingerprint(t))
    assert len(set(seen)) == len(seen)


class Plain(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"ran {func}")


class Refusing(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"ran {func}")


def test_subclasses_that_are_their_own_memory() -> None:
    data = torch.arange(6.0).view(2, 3)
    want = gradext.fingerprint(data)
    subclasses = [
        torch.nn.Parameter(data),
        data.as_subclass(Plain),
        torch.Tensor._make_subclass(Refusing, data),
    ]
    for t in subclasses:
        assert _C.fingerprint(t) == (want.low, want.high)
        assert list(gradext.fingerprint([t]).values()) == [want]
    assert ops.fingerprint(data.as_subclass(Plain)).tolist() == OPS.fingerprint(data).tolist()


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"ran {func}")


def freed() -> torch.Tensor:
    t = torch.ones(4)
    t.untyped_storage().resize_(0)
    return t


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(3)


WITHOUT_BYTES = {
    "meta": (lambda: torch.ones(3, device="meta"), "no data"),
    "fake": (fake, "no data"),
    "freed": (freed, "freed"),
    "shrunk": (lambda: _shrunk(), "too small"),
    "wrapper": (lambda: Wrapper(torch.ones(3)), "wrapper subclass"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
    "mkldnn": (lambda: torch.ones(3).to_mkldnn(), "mkldnn"),
}


def _shrunk() -> torch.Tensor:
    t = torch.ones(4)
    t.untyped_storage().resize_(8)
    return t


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", WITHOUT_BYTES)
def test_tensors_without_bytes_are_one_line(kind: str) -> None:
    make, reason = WITHOUT_BYTES[kind]
    t = make()
    with pytest.raises(ValueError, match=reason) as caught:
        gradext.fingerprint(t)
    assert str(caught.value).startswith("gradext.fingerprint: ")
    assert "\n" not in str(caught.value)
    if kind in {"sparse", "csr"}:
        return  # in a tree its parts are listed
    with pytest.raises(ValueError, match=reason) as caught:
        gradext.fingerprint({"a": torch.ones(1), "b": [t]})
    assert str(caught.value).startswith("gradext.fingerprint: ['b'][0]: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["freed", "shrunk", "sparse"])
def test_the_ops_say_the_same(kind: str) -> None:
    make, reason = WITHOUT_BYTES[kind]
    for call in (lambda t: OPS.fingerprint(t), lambda t: OPS.fingerprint_list([torch.ones(1), t])):
        with pytest.raises(ValueError, match=reason) as caught:
            call(make())
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match="item 1: "):
        OPS.fingerprint_list([torch.ones(1), make()])


@pytest.mark.parametrize("bad", [3, "t", 1.5, None, object()])
def test_what_holds_no_tensors_is_one_line(bad) -> None:
    with pytest.raises(TypeError) as caught:
        gradext.fingerprint(bad)
    kind = f"{type(bad).__module__}.{type(bad).__qualname__}"
    assert str(caught.value) == (
        f"gradext.fingerprint: expected a tensor, module, container or dataclass, got {kind}"
    )
    with pytest.raises(TypeError, match=r"expected a torch\.Tensor"):
        _C.fingerprint(bad)
    with pytest.raises(TypeError, match="item 1 is a "):
        _C.fingerprint_list([torch.ones(1), bad])


def test_an_empty_list() -> None:
    rows = OPS.fingerprint_list([])
    assert rows.shape == (0, 2)
    assert rows.dtype is torch.int64
    assert len(gradext.fingerprint([])) == 0
    assert len(gradext.fingerprint({})) == 0


def test_fakes_and_meta_have_the_shape() -> None:
    meta = torch.ones(3, device="meta")
    assert OPS.fingerprint(meta).shape == (2,)
    assert OPS.fingerprint(meta).is_meta
    assert OPS.fingerprint_list([meta, meta, meta]).shape == (3, 2)
    with FakeTensorMode():
        t = torch.ones(5)
        one, many = OPS.fingerprint(t), OPS.fingerprint_list([t, t])
    for result, shape in ((one, (2,)), (many, (2, 2))):
        assert result.shape == shape
        assert result.dtype is torch.int64
        assert result.device.type == "cpu"


def samples() -> list[torch.Tensor]:
    return [
        torch.ones(3),
        torch.ones(3, requires_grad=True),
        torch.ones(3, 4).t(),
        torch.zeros(0),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.tensor(True),
    ]


def test_opcheck() -> None:
    for t in samples():
        torch.library.opcheck(OPS.fingerprint.default, (t,))
    torch.library.opcheck(OPS.fingerprint_list.default, (samples(),))


def test_it_is_traced_as_an_op() -> None:
    def program(t):
        return OPS.fingerprint(t * 2), OPS.fingerprint_list([t, t + 1])

    t = torch.arange(4.0)
    want = program(t)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(program, tracing_mode=mode)(t)
        targets = {node.target for node in graph.graph.nodes}
        assert {OPS.fingerprint.default, OPS.fingerprint_list.default} <= targets
        assert all(map(torch.equal, graph(t), want))
    exported = torch.export.export(_Module(), (t,)).module()
    assert torch.equal(exported(t), OPS.fingerprint(t))


class _Module(torch.nn.Module):
    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ops.gradext.fingerprint(t)


@pytest.mark.cuda
def test_two_devices_in_one_list() -> None:
    cpu, cuda = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(ValueError, match="item 1: on cuda:0") as caught:
        OPS.fingerprint_list([cpu, cuda])
    assert len(str(caught.value).splitlines()) == 1
    # In a tree each device has its own pass.
    found = gradext.fingerprint([cpu, cuda, cpu + 1, cuda + 1])
    assert found["[0]"] == found["[1]"]
    assert found["[2]"] == found["[3]"] != found["[0]"]


def test_copy_on_write_memory_stays_shared() -> None:
    t = torch.ones(1000)
    lazy = torch._lazy_clone(t)
    want = gradext.fingerprint(t)
    assert gradext.fingerprint(lazy) == want
    assert torch._C._is_cow_tensor(lazy)
