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
from events import bytes_of, history, notes, recorded, short, shorts, user_line, writes

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


# --- optimizers ---

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], Expected]] = {
    # The writes to the parameter itself, in two steps.
    "SGD": (torch.optim.SGD, {"foreach": False}, [("add_", 0, 1), ("add_", 1, 2)]),
    "SGD foreach": (
        torch.optim.SGD,
        {"foreach": True},
        [("_foreach_add_", 0, 1), ("_foreach_add_", 1, 2)],
    ),
    "SGD fused": (torch.optim.SGD, {"fused": True}, [("_fused_sgd_", 0, 0)] * 2),
    "Adam": (torch.optim.Adam, {"foreach": False}, [("addcdiv_", 0, 1), ("addcdiv_", 1, 2)]),
    "Adam foreach": (
        torch.optim.Adam,
        {"foreach": True},
        [("_foreach_addcdiv_", 0, 1), ("_foreach_addcdiv_", 1, 2)],
    ),
    "Adam fused": (torch.optim.Adam, {"fused": True}, [("_fused_adam_", 0, 0)] * 2),
    "AdamW": (
        torch.optim.AdamW,
        {"foreach": False},
        [("mul_", 0, 1), ("addcdiv_", 1, 2), ("mul_", 2, 3), ("addcdiv_", 3, 4)],
    ),
    "AdamW foreach": (
        torch.optim.AdamW,
        {"foreach": True},
        [
            ("_foreach_mul_", 0, 1),
            ("_foreach_addcdiv_", 1, 2),
            ("_foreach_mul_", 2, 3),
            ("_foreach_addcdiv_", 3, 4),
        ],
    ),
    "AdamW fused": (torch.optim.AdamW, {"fused": True}, [("_fused_adamw_", 0, 0)] * 2),
}


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name: str, saves: bool) -> None:
    make, options, expected = OPTIMIZERS[name]
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = make(parameters, lr=0.1, **options)

    def program() -> None:
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()

    recording = recorded(program, saves=saves)
    for parameter in parameters:
        assert history(recording, parameter) == expected
        assert parameter._version == expected[-1][2]
        for write in recording.mutations(parameter):
            assert write.declared_only is ("fused" in name)
            frame = user_line(recording, write)
            assert (frame.code, frame.file) == ("optimizer.step()", __file__)


def test_a_fused_step_names_every_list_it_writes() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
    parameter.grad = torch.ones(2)
    recording = recorded(optimizer.step)
    found = [(w.argument, w.counter) for w in writes(recording) if "fused" in w.op]
    state = optimizer.state[parameter]
    tensors = [parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
    assert found == [(k, gradext.inspect(t).version_counter) for k, t in enumerate(tensors)]


def test_gradient_accumulation_is_a_write_by_backward() -> None:
    w = torch.ones(2, requires_grad=True)
    (w * 3).sum().backward()
    assert w.grad is not None
    grad = w.grad

    def program() -> None:
        (w * 3).sum().backward()

    recording = recorded(program)
    (write,) = recording.mutations(grad)
    assert short(write) == ("add_", 0, 1)
    assert user_line(recording, write).code == "(w * 3).sum().backward()"


# --- custom ops ---


@torch.library.custom_op("gradext_test::before", mutates_args={"x"})
def _before(x: torch.Tensor, value: float) -> None:
    x.numpy()[:] = value


_library = torch.library.Library("gradext_test", "FRAGMENT")


def _define(name: str, kernel: Callable[[torch.Tensor], object]) -> Any:
    _library.define(f"{name}(Tensor(a!) x) -> ()")

    def run(x: torch.Tensor) -> None:
        kernel(x)

    _library.impl(name, run, "CompositeExplicitAutograd")
    return getattr(torch.ops.gradext_test, name)


def _fill_raw(x: torch.Tensor) -> None:
    x.numpy().fill(3)


def _bump(x: torch.Tensor) -> None:
    _fill_raw(x)
    torch.autograd.graph.increment_version(x)


def test_custom_op_defined_before_the_recording() -> None:
    x = torch.ones(3)
    recording = recorded(lambda: _before(x, 2.0))
    assert history(recording, x) == [("gradext_test::before", 0, 1)]
    assert x.tolist() == [2, 2, 2]
    assert not writes(recording)[0].declared_only


def test_custom_op_defined_within_the_recording() -> None:
    x = torch.ones(3)

    def program() -> None:
        @torch.library.custom_op("gradext_test::within", mutates_args={"x"})
        def within(x: torch.Tensor) -> None:
            x.numpy()[:] = 4

        within(x)
        within(x)

    recording = recorded(program)
    op = "gradext_test::within"
    assert history(recording, x) == [(op, 0, 1), (op, 1, 2)]
    assert x.tolist() == [4, 4, 4]


@pytest.mark.parametrize("late", [False, True], ids=["before", "within"])
def test_custom_op_defined_anew_with_fewer_arguments(late: bool) -> None:
    x, y = torch.ones(3), torch.ones(3)
    name = f"redefined_{late}"

    def define(arguments: str, kernel: Callable[..., object]) -> torch.library.Library:
        library = torch.library.Library("gradext_test", "FRAGMENT")
        library.define(f"{name}({arguments}) -> ()")
        library.impl(name, kernel, "CompositeExplicitAutograd")
        return library

    def first() -> torch.library.Library:
        return define("Tensor y, float a, float b, Tensor(a!) x", lambda y, a, b, x: _bump(x))

    def run(*arguments: object) -> None:
        getattr(torch.ops.gradext_test, name).default(*arguments)

    library = None if late else first()

    def program() -> None:
        old = library or first()
        run(y, 1.0, 2.0, x)
        old._destroy()
        new = define("Tensor(a!) x", _bump)
        run(x)
        new._destroy()

    recording = recorded(program)
    assert x._version == 2
    assert history(recording, y) == []
    assert history(recording, x)[0] == (f"gradext_test::{name}", 0, 1)
    if late:
        assert history(recording, x)[1] == (f"gradext_test::{name}", 1, 2)


def test_custom_op_is_one_line_of_the_table() -> None:
    x = torch.ones(3)
    recording = recorded(lambda: _before(x, 2.0))
    assert [short(w) for w in recording.mutations(x)] == [("gradext_test::before", 0, 1)]


@pytest.mark.parametrize("kernel", [_fill_raw, _bump], ids=["raw", "bumps"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "within"])
def test_plain_library_op(kernel: Callable[[torch.Tensor], object], late: bool) -> None:
    name = f"plain_{kernel.__name__.strip('_')}_{'late' if late else 'early'}"
    known = {} if late else {"op": _define(name, kernel)}
    x = torch.ones(3)

    def program() -> None:
        op = known.get("op") or _define(name, kernel)
        op(x)

    recording = recorded(program)
    bumped = int(kernel is _bump)
    assert history(recording, x) == [(f"gradext_test::{name}", 0, bumped)]
    (write,) = writes(recording)
    assert write.declared_only is not bool(bumped)
    assert x.tolist() == [3, 3, 3]


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


# --- transforms, subclasses, modes ---


def test_vmap_over_an_in_place_op_is_a_write_to_the_batch() -> None:
    x = torch.ones(3, 2)
    recording = recorded(lambda: torch.vmap(lambda row: row.neg_())(x))
    assert x._version == 1
    assert history(recording, x) == [("neg_", 0, 1)]


def test_grad_over_an_in_place_op() -> None:
    x = torch.ones(3)

    def f(t: torch.Tensor) -> torch.Tensor:
        return (t * 2).mul_(torch.full((3,), 3.0)).sum()

    plain = torch.func.grad(f)(x)
    results: list[torch.Tensor] = []
    recording = recorded(lambda: results.append(torch.func.grad(f)(x)))
    assert results[0].tolist() == plain.tolist() == [6, 6, 6]
    assert shorts(recording) == [("mul_", 0, 1)]
    assert history(recording, x) == []
    assert user_line(recording, writes(recording)[0]).function.endswith("f")


class Function(torch.Tensor):
    """A __torch_function__ subclass: Tensor's own."""


def test_torch_function_subclass() -> None:
    x = torch.ones(3).as_subclass(Function)
    recording = recorded(lambda: x.neg_())
    assert history(recording, x) == [("neg_", 0, 1)]
    assert (
        user_line(recording, writes(recording)[0]).code == "recording = recorded(lambda: x.neg_())"
    )


def test_torch_dispatch_subclass_counts_on_the_wrapper() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(torch.ones(3), torch.ones(3))
    recording = recorded(lambda: x.neg_())
    assert history(recording, x) == [("neg_", 0, 1)]
    assert x.a.tolist() == [-1, -1, -1]


def test_torch_dispatch_mode() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.ones(3)

    def program() -> None:
        with Mode():
            x.neg_()

    recording = recorded(program)
    assert seen == ["aten.neg_.default"]
    assert history(recording, x) == [("neg_", 0, 1)]


def test_fake_tensors_are_not_recorded() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def program() -> None:
        with FakeTensorMode():
            torch.ones(3).neg_()
        kept.neg_()
        real.cos_()

    with FakeTensorMode():
        kept = torch.ones(3)
    real = torch.ones(3)
    assert shorts(recorded(program)) == [("cos_", 0, 1)]


def test_meta_tensors_are_not_recorded() -> None:
    x = torch.ones(3, device="meta")
    recording = recorded(lambda: (x.neg_(), x[0].cos_(), torch._foreach_neg_([x])))
    assert writes(recording) == []


def test_functionalized_tensors_are_not_recorded() -> None:
    x = torch.ones(3)

    def f(t: torch.Tensor) -> torch.Tensor:
        y = t * 1
        y.neg_()
        return y

    recording = recorded(lambda: torch.func.functionalize(f)(x))
    assert writes(recording) == []


# --- graphs, compilers ---


def test_torch_cond() -> None:
    x = torch.ones(3)
    results: list[torch.Tensor] = []

    def program() -> None:
        results.append(torch.cond(torch.tensor(True), lambda t: t + 1, lambda t: t - 1, (x,)))
        x.neg_()

    recording = recorded(program)
    assert results[0].tolist() == [2, 2, 2]
    assert history(recording, x) == [("neg_", 0, 1)]


def test_flex_attention() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    x = torch.randn(1, 1, 4, 4)
    plain = flex_attention(x, x, x)
    results: list[Any] = []

    def program() -> None:
        results.append(flex_attention(x, x, x))
        x.neg_()

    recording = recorded(program)
    assert torch.equal(results[0], plain)
    assert history(recording, x) == [("neg_", 0, 1)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_records_both_runs(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.ones(3, requires_grad=True)

    def block(t: torch.Tensor) -> torch.Tensor:
        h = t * 2
        h.add_(torch.ones(3))
        return h.sin()

    def program() -> None:
        checkpoint(block, x, use_reentrant=reentrant).sum().backward()

    recording = recorded(program)
    assert shorts(recording) == [("add_", 0, 1)] * 2
    assert [user_line(recording, w).code for w in writes(recording)] == [
        "h.add_(torch.ones(3))"
    ] * 2


def _compiled(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    x.mul_(y)
    return y


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_compiled, backend=backend)
    plain, x, results = torch.ones(3), torch.ones(3), []
    _compiled(plain)

    def program() -> None:
        results.append(compiled(x))
        results.append(compiled(x))

    recording = recorded(program)
    _compiled(plain)
    assert torch.equal(plain, x)
    steps = history(recording, x)
    assert [op for op, _, _ in steps] == ["mul_" if backend == "eager" else "copy_"] * 2
    assert steps[-1][2] == x._version
    lines = [user_line(recording, w) for w in recording.mutations(x) if not w.is_note]
    assert [frame.file for frame in lines] == [__file__] * 2
    assert [frame.code for frame in lines] == ["x.mul_(y)"] * 2  # the graph remembers the line
    callers = [recording.frames(w.stack) for w in recording.mutations(x) if not w.is_note]
    calls = [next(f.line for f in stack if "compiled(x)" in f.code) for stack in callers]
    assert calls[0] + 1 == calls[1]
    # What the compiler writes while it traces is no memory of the program's.
    counter = gradext.inspect(x).version_counter
    assert [w.op for w in writes(recording) if w.counter != counter] == []
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit() -> None:
    x, y = torch.ones(3), torch.ones(3)
    traced = torch.jit.trace(_compiled, (torch.ones(3),))
    scripted = torch.jit.script(_compiled)
    recording = recorded(lambda: (traced(x), scripted(y)))
    assert history(recording, x) == [("mul_", 0, 1)]
    assert history(recording, y) == [("mul_", 0, 1)]
    assert {user_line(recording, w).file for w in writes(recording)} == {__file__}


def test_export_leaves_no_trace() -> None:
    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y.neg_()
            return y

    x = torch.ones(3)
    exported: list[Any] = []
    recording = recorded(lambda: exported.append(torch.export.export(Program(), (x,))))
    assert [w.op for w in writes(recording)] == []
    assert exported[0].module()(x).tolist() == [-2, -2, -2]


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


# --- saves, views, backward ---


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_saves_name_the_line_of_each_node(saves: bool) -> None:
    from gradext import _C

    x = torch.ones(3, requires_grad=True)
    made: list[torch.Tensor] = []

    def program() -> None:
        y = x * x
        z = y.sin()
        made.append(z.exp())

    recording = recorded(program, saves=saves)
    nodes, whole = _C.graph(made)
    assert whole
    found = {}
    for _, name, thread, sequence, _, _ in nodes:
        if sequence is not None:
            stack, origin = recording.data.node_stack(thread, sequence)
            frames = recording.frames(stack)
            found[name] = (frames[0].code if frames else None, origin)
    lines = ["y = x * x", "z = y.sin()", "made.append(z.exp())"]
    names = ["MulBackward0", "SinBackward0", "ExpBackward0"]
    expected = {n: (line if saves else None, None) for n, line in zip(names, lines, strict=True)}
    assert found == expected


def test_saves_of_a_double_backward_know_the_forward_node() -> None:
    from gradext import _C

    x = torch.ones(3, requires_grad=True)
    made: list[torch.Tensor] = []

    def program() -> None:
        y = x.sin().sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        made.extend((y, g))

    recording = recorded(program)
    forward = {name: (t, s) for _, name, t, s, _, _ in _C.graph(made[:1])[0]}
    backward = {name: (t, s) for _, name, t, s, _, _ in _C.graph(made[1:])[0]}
    stack, origin = recording.data.node_stack(*backward["MulBackward0"])
    assert origin == forward["SinBackward0"]
    frames = recording.frames(stack)
    assert next(f.code for f in frames if f.is_user).startswith("(g,) = torch.autograd.grad(")


def test_views_that_no_node_remembers() -> None:
    x = torch.ones(4, 2, requires_grad=True)
    kept: list[Any] = []

    def program() -> None:
        kept.append(x[0])  # a node remembers it
        kept.append(x.unbind())
        with torch.no_grad():
            kept.append(x[1])

    recording = recorded(program)
    base = gradext.inspect(x).storage
    found = [(v.op, v.begin, v.end, v.creation_meta, v.storage == base) for v in recording.views]
    assert found == [
        *(("aten::unbind", 8 * k, 8 * k + 8, "multi_output_node", True) for k in range(4)),
        ("aten::select", 8, 16, "no_grad_mode", True),
    ]
    assert recording.views[-1].tensor == gradext.inspect(kept[2]).id
    assert [user_line(recording, v).code for v in recording.views[-2:]] == [
        "kept.append(x.unbind())",
        "kept.append(x[1])",
    ]


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_backward_calls(saves: bool) -> None:
    x = torch.ones(3, requires_grad=True)
    y = x.sin()
    z = y.sum()

    def program() -> None:
        z.backward(retain_graph=True)
        torch.autograd.grad(z, x, create_graph=True)
        z.backward()

    recording = recorded(program, saves=saves)
    facts = [(b.keeps_graph, b.creates_graph, b.whole) for b in recording.backwards]
    assert facts == [(True, False, True), (True, True, True), (False, False, True)]
    numbers = {y.grad_fn._sequence_nr(), z.grad_fn._sequence_nr()}  # type: ignore[union-attr]
    for call in recording.backwards:
        assert set(call.nodes[:, 1].tolist()) == numbers
    assert [user_line(recording, b).code for b in recording.backwards] == [
        "z.backward(retain_graph=True)",
        "torch.autograd.grad(z, x, create_graph=True)",
        "z.backward()",
    ]


def test_writes_in_hooks_during_backward_belong_to_the_hook() -> None:
    x = torch.ones(3, requires_grad=True)
    side = torch.zeros(3)

    def hook(grad: torch.Tensor) -> None:
        side.copy_(grad)

    def program() -> None:
        y = x * 2
        y.register_hook(hook)
        y.sum().backward()

    recording = recorded(program)
    (write,) = recording.mutations(side)
    assert user_line(recording, write).code == "side.copy_(grad)"
