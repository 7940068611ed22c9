"""Every way of writing in place, and the exact event that the recorder makes of it.

A case is a program of one tensor `x` (float32, 4x4, version 0 unless it says otherwise); expected
are the operators with the versions before and after each. Torch's own `_version` and bytes counted
element by element are the outside truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from events import bytes_of, history, notes, recorded, short, user_line, writes

import gradext

Expected = list[tuple[str, int, int]]


class Holder:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def iadd(x: torch.Tensor) -> None:
    x += torch.ones(4)


def iadd_attribute(x: torch.Tensor) -> None:
    holder = Holder(x)
    holder.x += torch.ones(4)


def iadd_subscript(x: torch.Tensor) -> None:
    held = {"x": x}
    held["x"] += torch.ones(4)


def iadd_of_row(x: torch.Tensor) -> None:
    x[1] += torch.ones(4)  # the row, then `x[1] = row`


def assign(index: Any, value: Any) -> Callable[[torch.Tensor], None]:
    def program(x: torch.Tensor) -> None:
        x[index] = value

    return program


def in_turn(x: torch.Tensor) -> None:
    x.add_(torch.ones(4))
    x.mul_(torch.ones(4))
    torch.sin(x, out=x)


def resized(x: torch.Tensor) -> None:
    x.resize_(2)
    x.resize_(100)


PROGRAMS: dict[str, tuple[Callable[[torch.Tensor], object], Expected]] = {
    "method": (lambda x: x.add_(torch.ones(4)), [("add_", 0, 1)]),
    "method with a scalar": (lambda x: x.mul_(2), [("mul_", 0, 1)]),
    "augmented": (iadd, [("add_", 0, 1)]),
    "augmented attribute": (iadd_attribute, [("add_", 0, 1)]),
    "augmented subscript": (iadd_subscript, [("add_", 0, 1)]),
    "augmented row": (iadd_of_row, [("add_", 0, 1), ("copy_", 1, 2)]),
    "index int": (assign(0, 1.0), [("fill_", 0, 1)]),
    "index slice": (assign(slice(1, 3), 1.0), [("fill_", 0, 1)]),
    "index ellipsis": (assign(..., 1.0), [("fill_", 0, 1)]),
    "index tuple": (assign((slice(None), 1), 1.0), [("fill_", 0, 1)]),
    "index a tensor's values": (assign(0, torch.ones(4)), [("copy_", 0, 1)]),
    "index mask": (assign(torch.eye(4, dtype=torch.bool), 0.0), [("index_put_", 0, 1)]),
    "index list": (assign([0, 2], 0.0), [("index_put_", 0, 1)]),
    "three in turn": (in_turn, [("add_", 0, 1), ("mul_", 1, 2), ("sin", 2, 3)]),
    "copy_": (lambda x: x.copy_(torch.ones(4)), [("copy_", 0, 1)]),
    "set_": (lambda x: x.set_(torch.ones(8)), [("set_", 0, 1)]),
    "resize_": (resized, [("resize_", 0, 1), ("resize_", 1, 2)]),
    "detach().add_": (lambda x: x.detach().add_(torch.ones(4)), [("add_", 0, 1)]),
    "out=": (lambda x: torch.mm(torch.eye(4), torch.eye(4), out=x), [("mm", 0, 1)]),
    "out= of a view": (lambda x: torch.add(x[0], x[1], out=x[2]), [("add", 0, 1)]),
    "transpose view": (lambda x: x.t().zero_(), [("zero_", 0, 1)]),
    "split view": (lambda x: x.split(2)[1].zero_(), [("zero_", 0, 1)]),
    "unbind view": (lambda x: x.unbind()[3].zero_(), [("zero_", 0, 1)]),
    "flat view": (lambda x: x.view(-1)[:5].zero_(), [("zero_", 0, 1)]),
    "metadata": (lambda x: x.unsqueeze_(0), [("unsqueeze_", 0, 1)]),
    "_foreach": (lambda x: torch._foreach_mul_([x, x[0]], 2.0), [("_foreach_mul_", 0, 2)] * 2),
    "init": (torch.nn.init.ones_, [("fill_", 0, 1)]),
    "init normal": (torch.nn.init.normal_, [("normal_", 0, 1)]),
    "inplace relu": (lambda x: torch.nn.functional.relu(x, inplace=True), [("relu_", 0, 1)]),
    "inplace dropout": (
        lambda x: torch.nn.functional.dropout(x, 0.5, inplace=True),
        [("dropout_", 0, 1)],
    ),
    "module in place": (lambda x: torch.nn.SiLU(inplace=True)(x), [("silu_", 0, 1)]),
    "inference mode, normal tensor": (
        torch.inference_mode()(lambda x: x.add_(torch.ones(4))),
        [("add_", 0, 1)],
    ),
    "no_grad": (torch.no_grad()(lambda x: x.add_(torch.ones(4))), [("add_", 0, 1)]),
    "reads only": (lambda x: (x + 1, x.sin(), x[0].clone(), x @ x, x.item), []),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_versions(name: str) -> None:
    program, expected = PROGRAMS[name]
    x = torch.ones(4, 4)
    recording = recorded(lambda: program(x))
    assert history(recording, x) == expected
    assert x._version == (expected[-1][2] if expected else 0)
    assert not notes(recording)


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_event_names_the_tensors_own_counter_and_storage(name: str) -> None:
    program, expected = PROGRAMS[name]
    x, other = torch.ones(4, 4), torch.ones(4, 4)
    recording = recorded(lambda: (other.neg_(), program(x)))
    state = gradext.inspect(x)
    mine = [w for w in writes(recording) if w.counter == state.version_counter]
    assert [short(w) for w in mine] == expected
    if name != "set_":
        assert {w.storage for w in mine} <= {state.storage}
    assert history(recording, other) == [("neg_", 0, 1)]


SHAPES: dict[str, Callable[[], torch.Tensor]] = {
    "whole": lambda: torch.ones(3, 5),
    "0-d": lambda: torch.ones(()),
    "empty": lambda: torch.ones(0, 3),
    "row": lambda: torch.ones(3, 5)[1],
    "column": lambda: torch.ones(3, 5)[:, 2],
    "block": lambda: torch.ones(6, 5)[1:4, 2:4],
    "transposed": lambda: torch.ones(3, 5).t(),
    "every third": lambda: torch.ones(10)[1::3],
    "diagonal": lambda: torch.ones(4, 4).diagonal(),
    "expanded by one": lambda: torch.ones(5).expand(1, 5),
    "channels last": lambda: torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "as_strided": lambda: torch.ones(40).as_strided((2, 3), (20, 4), 5),
    "double": lambda: torch.ones(3, 5, dtype=torch.float64)[1:],
    "half": lambda: torch.ones(7, dtype=torch.float16)[3:],
    "bool": lambda: torch.ones(7, dtype=torch.bool)[2:5],
    "complex": lambda: torch.ones(7, dtype=torch.complex64)[2:5],
    "imaginary part": lambda: torch.ones(7, dtype=torch.complex64).imag,
    "negative imaginary part": lambda: torch.ones(7, dtype=torch.complex64).conj().imag,
}


@pytest.mark.parametrize("name", SHAPES)
def test_bytes(name: str) -> None:
    x = SHAPES[name]()
    recording = recorded(lambda: x.zero_())
    (write,) = writes(recording)
    assert (write.begin, write.end) == bytes_of(x)
    dense = x.numel() * x.element_size() == write.end - write.begin
    expected = None if dense else (x.element_size(), tuple(x.shape), x.stride())
    assert write.geometry == expected


def test_bytes_of_an_expanded_tensor() -> None:
    x = torch.zeros(3, 1).expand(3, 4)
    recording = recorded(lambda: x.fill_(1.0))  # torch allows it: each element gets the same
    (write,) = writes(recording)
    assert (write.begin, write.end) == (0, 12)
    assert write.geometry == (4, (3, 4), (1, 0))


def test_bytes_after_a_resize() -> None:
    x = torch.zeros(8)
    recording = recorded(lambda: (x.resize_(2), x.resize_(100)))
    assert [(w.begin, w.end, w.geometry) for w in writes(recording)] == [
        (0, 8, None),
        (0, 400, None),
    ]


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("size", [0, 2, 4, 9])
def test_bytes_of_an_out_argument_that_is_resized(size: int) -> None:
    out = torch.empty(size)
    recording = recorded(lambda: torch.add(torch.ones(4), torch.ones(4), out=out))
    (write,) = writes(recording)
    assert (write.begin, write.end, write.geometry) == (0, 16, None)


def test_set_moves_to_the_other_storage() -> None:
    x, other = torch.ones(4), torch.ones(8)
    recording = recorded(lambda: x.set_(other))
    (write,) = writes(recording)
    assert write.storage == gradext.inspect(other).storage == gradext.inspect(x).storage
    assert (write.begin, write.end) == (0, 32)
    assert not write.declared_only
    assert not write.shared_storage


ARGUMENTS: dict[str, tuple[Callable[[], object], list[tuple[str, int]]]] = {
    "self": (lambda: torch.ones(3).add_(torch.ones(3)), [("add_", 0)]),
    "out": (lambda: torch.mm(torch.eye(2), torch.eye(2), out=torch.empty(2, 2)), [("mm", 2)]),
    "two outs": (
        lambda: torch.max(torch.eye(2), 1, out=(torch.empty(2), torch.empty(2, dtype=torch.long))),
        [("max", 3), ("max", 4)],
    ),
    "list": (
        lambda: torch._foreach_add_([torch.ones(1), torch.ones(2)], 1.0),
        [("_foreach_add_", 0)] * 2,
    ),
    "out list": (
        lambda: torch.split_with_sizes_copy(
            torch.ones(3), [1, 2], out=[torch.empty(1), torch.empty(2)]
        ),
        [("split_with_sizes_copy", 3)] * 2,
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument_number(name: str) -> None:
    program, expected = ARGUMENTS[name]
    recording = recorded(program)
    found = [(w.op.removeprefix("aten::"), w.argument) for w in writes(recording)]
    assert found == expected


INNER: dict[str, tuple[Callable[[], object], str]] = {
    "relu_": (lambda: torch.ones(3).relu_(), "aten::clamp_min_"),
    "index_put_": (lambda: torch.ones(3).index_put_((torch.arange(1),), torch.ones(1)),
                   "aten::_index_put_impl_"),
    "zero_": (lambda: torch.ones(3, 4)[:, 1].zero_(), "aten::fill_"),
    "_foreach_add_": (lambda: torch._foreach_add_([torch.ones(3)], 1.0), "aten::add_"),
    "t_": (lambda: torch.ones(3, 4).t_(), "aten::transpose_"),
    # Nothing but the op itself writes; what it does to temporaries of its own is not said.
    "add_": (lambda: torch.ones(3).add_(torch.ones(3)), ""),
    "add_ of a scalar": (lambda: torch.ones(3).add_(1), ""),
    "fill_ of a scalar": (lambda: torch.ones(3).fill_(1), ""),
    "lerp_": (lambda: torch.ones(3).lerp_(torch.zeros(3), 0.5), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", INNER)
def test_inner_op(name: str) -> None:
    program, expected = INNER[name]
    (write,) = writes(recorded(program))
    assert write.inner_op == expected


def test_order_thread_and_grad_mode() -> None:
    x = torch.ones(3)

    def program() -> None:
        x.neg_()
        with torch.no_grad():
            x.neg_()

    first, second = writes(recorded(program))
    assert first.order < second.order
    assert first.thread == second.thread > 0
    assert (first.grad_mode, second.grad_mode) == (True, False)


def test_sequence_places_a_write_between_the_nodes() -> None:
    x = torch.ones(3, requires_grad=True)
    y = torch.ones(3)

    def program() -> None:
        nodes.append(x.sin().grad_fn)
        y.neg_()
        nodes.append(x.cos().grad_fn)

    nodes: list[Any] = []
    (write,) = writes(recorded(program))
    assert nodes[0]._sequence_nr() < write.sequence <= nodes[1]._sequence_nr()


def test_nothing_that_torch_makes_itself_is_a_write() -> None:
    made: list[torch.Tensor] = []

    def program() -> None:
        made.append(torch.tensor([1.0, 2.0]))
        made.append(torch.as_tensor([1.0]))
        made.append(torch.arange(3.0) + torch.ones(3))
        made.append(torch.nn.functional.softmax(torch.ones(3), 0))
        made.append(torch.stack([torch.ones(3), torch.zeros(3)]).clone())

    recording = recorded(program)
    assert [w.op for w in writes(recording)] == []
    assert [str(recording.mutations(t)) for t in made] == ["no recorded write"] * 5


# --- counters that move without an op ---


class Marking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        ctx.mark_dirty(x)  # here
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


class Silent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)  # and here
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def test_function_with_mark_dirty() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x * 1
    recording = recorded(lambda: Marking.apply(y).sum().backward())
    assert history(recording, y) == [("mul_", 0, 1)]
    (note,) = notes(recording)
    assert short(note) == ("autograd.Function.mark_dirty", 1, 1)
    assert user_line(recording, note).code == "ctx.mark_dirty(x)  # here"
    assert note.counter == gradext.inspect(y).version_counter
    assert y._version == 2
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]


def test_function_without_mark_dirty() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x * 1
    recording = recorded(lambda: Silent.apply(y).sum().backward())
    (write,) = recording.mutations(y)
    assert short(write) == ("mul_", 0, 1)
    assert user_line(recording, write).code == "x.mul_(2)  # and here"
    assert not notes(recording)


@pytest.mark.parametrize("many", [False, True], ids=["tensor", "list"])
def test_increment_version(many: bool) -> None:
    x, y = torch.ones(3), torch.ones(3)
    recording = recorded(lambda: torch.autograd.graph.increment_version([x, y] if many else x))
    assert [x._version, y._version] == [1, int(many)]
    touched = [x, y] if many else [x]
    assert [n.counter for n in notes(recording)] == [
        gradext.inspect(t).version_counter for t in touched
    ]
    assert {(n.version_before, n.version_after) for n in notes(recording)} == {(0, 0)}
    assert not writes(recording)
    frame = user_line(recording, notes(recording)[0])
    assert frame.file == __file__


def test_unsafe_preserve_version_counter() -> None:
    x = torch.ones(3)

    def program() -> None:
        with torch.autograd._unsafe_preserve_version_counter(x):
            x.neg_()

    recording = recorded(program)
    assert x._version == 0
    assert history(recording, x) == [("neg_", 0, 1)]
    (note,) = notes(recording)
    assert note.op == "torch._C._autograd._unsafe_set_version_counter"
    assert (note.version_before, user_line(recording, note).file) == (1, __file__)


# --- writes that no counter of the tensor sees ---


def test_data_writes_share_the_storage() -> None:
    x = torch.ones(3)

    def program() -> None:
        x.data.neg_()
        x.data[0] = 5.0
        x.neg_()

    recording = recorded(program)
    found = recording.mutations(x)
    assert [short(w) for w in found] == [("neg_", 0, 1), ("copy_", 0, 1), ("neg_", 0, 1)]
    assert [w.shared_storage for w in found] == [True, True, False]
    assert {w.storage for w in found} == {gradext.inspect(x).storage}
    assert found[2].counter == gradext.inspect(x).version_counter
    assert found[0].counter not in {found[1].counter, found[2].counter}
    assert [(w.begin, w.end) for w in found] == [(0, 12), (0, 4), (0, 12)]
    assert x._version == 1


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x[1:], lambda x: x.detach()])
def test_a_view_or_detach_is_no_shared_storage(
    make: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    x = torch.ones(3)
    (write,) = writes(recorded(lambda: make(x).neg_()))
    assert not write.shared_storage


def test_mutations_keeps_to_the_tensors_bytes() -> None:
    x = torch.zeros(4, 2)
    left, right = x[:2].data, x[2:].data  # counters of their own
    recording = recorded(lambda: (left.neg_(), right.cos_()))
    assert history(recording, left) == [("neg_", 0, 1)]
    assert history(recording, right) == [("cos_", 0, 1)]
    assert history(recording, x) == [("neg_", 0, 1), ("cos_", 0, 1)]
    assert history(recording, x[1:3]) == [("neg_", 0, 1), ("cos_", 0, 1)]
    assert history(recording, x[3]) == [("cos_", 0, 1)]


def test_batchnorm_counts_its_batches_and_nothing_else() -> None:
    norm = torch.nn.BatchNorm1d(3)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    before = norm.num_batches_tracked._version
    recording = recorded(lambda: norm(torch.randn(4, 3)))
    assert history(recording, norm.num_batches_tracked) == [("add_", before, before + 1)]
    # Torch writes the running statistics without declaring it: nobody can see that by the schema.
    assert history(recording, norm.running_mean) == []
    assert norm.running_mean.abs().sum() > 0


def test_autocast_with_gradscaler() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, foreach=False)
    scaler = torch.amp.GradScaler("cpu")

    def program() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = layer(torch.ones(1, 2)).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    recording = recorded(program)
    unscale = "_amp_foreach_non_finite_check_and_unscale_"
    assert layer.weight.grad is not None
    (write,) = recording.mutations(layer.weight.grad)
    assert (short(write), write.declared_only) == ((unscale, 0, 0), True)
    assert user_line(recording, write).code == "scaler.step(optimizer)"
    assert history(recording, layer.weight)[-1][0] == "add_"


# --- inference tensors ---


def test_inference_tensor() -> None:
    with torch.inference_mode():
        x = torch.ones(3)
        recording = recorded(lambda: x.neg_())
    (write,) = recording.mutations(x)
    assert (write.op, write.is_inference, write.counter) == ("aten::neg_", True, 0)
    assert (write.version_before, write.version_after) == (0, 0)
    assert not write.declared_only
    assert str(recording.mutations(x)).splitlines()[1].startswith("none     neg_")


def test_normal_tensor_in_inference_mode_counts() -> None:
    x = torch.ones(3)
    with torch.inference_mode():
        recording = recorded(lambda: x.neg_())
    (write,) = recording.mutations(x)
    assert (write.is_inference, short(write)) == (False, ("neg_", 0, 1))


# --- what torch refuses ---


def _refusals() -> dict[str, tuple[Callable[[], object], str, dict[str, object]]]:
    def of_inference() -> object:
        with torch.inference_mode():
            x = torch.ones(3)
        return x.add_(1)

    def of_no_grad_view() -> object:
        x = torch.ones(3, requires_grad=True) * 1
        with torch.no_grad():
            v = x[0]
        return v.mul_(2)

    return {
        "leaf": (
            lambda: torch.ones(3, requires_grad=True).add_(1),
            "a leaf Variable that requires grad is being used in an in-place operation",
            {"is_leaf": True, "requires_grad": True, "is_view": False, "creation_meta": None},
        ),
        "view of leaf": (
            lambda: torch.ones(3, requires_grad=True)[0].add_(1),
            "a view of a leaf Variable that requires grad is being used in an in-place operation",
            {"is_view": True, "base_is_leaf": True, "creation_meta": "default"},
        ),
        "unbind": (
            lambda: (torch.ones(3, requires_grad=True) * 1).unbind()[0].add_(1),
            "is a view and is being modified inplace",
            {"is_view": True, "base_is_leaf": False, "creation_meta": "multi_output_node"},
        ),
        "no_grad view": (
            of_no_grad_view,
            "A view was created in no_grad mode",
            {"is_view": True, "creation_meta": "no_grad_mode", "grad_mode": True},
        ),
        "inference": (
            of_inference,
            "Inplace update to inference tensor outside InferenceMode is not allowed",
            {"is_inference": True},
        ),
    }


@pytest.mark.parametrize("name", _refusals())
def test_refused(name: str) -> None:
    program, text, facts = _refusals()[name]
    with gradext.record() as recording, pytest.raises(RuntimeError, match=text) as plain:
        program()
    (refused,) = recording.refused
    assert text in refused.what
    assert refused.what.splitlines()[0] == str(plain.value).splitlines()[0]
    assert {key: getattr(refused, key) for key in facts} == facts
    assert user_line(recording, refused).file == __file__
    assert writes(recording) == []
    with pytest.raises(RuntimeError) as again:
        program()
    assert str(again.value) == str(plain.value)


# --- layouts ---


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "coo": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "nested strided": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "nested jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2), torch.ones(3)], layout=torch.jagged
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_without_one_strided_memory(name: str) -> None:
    from gradext.recording import own_errors

    x = LAYOUTS[name]()
    before = x._version
    known = own_errors.lines()
    recording = recorded(lambda: x.mul_(2.0))
    assert history(recording, x) == [("mul_", before, x._version)]
    assert x._version == before + 1
    assert own_errors.lines() == known
