"""The only door to `torch.ops.gradext`: each op's Python name, docstring and tracing rule.

Reads state and changes nothing. A plain tensor is read at once where the dispatcher would come to
the op's kernel with nobody between; everything else goes through the dispatcher. All facts at once,
and those of many tensors, are in gradext.state.inspect.

All ops here answer for the OUTERMOST object, the one autograd checks: for a tensor subclass or a
functorch wrapper that is the wrapper, and no `__torch_dispatch__` or `__torch_function__` of a user
runs. An undefined tensor (None) has no facts: the answers are None and False.

Under `torch.compile` each op that reads state is a graph break: a version read while tracing would
be a constant of the trace, not of the run. `fingerprint`, `fingerprint_list`, `axpby`, `axpby_` and
`window` compute, and are traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch

from gradext.native import _C  # loading it registers torch.ops.gradext

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Fact = TypeVar("_Fact")
_ops = torch.ops.gradext


def graph_break(function: _Function) -> _Function:
    """Mark a Python function that Dynamo must call, never trace into.

    What `torch.compiler.disable` does, without its import of torch._dynamo (seconds): the attribute
    is for a caller that Dynamo traces, the strategy for the function's own frame and those below
    it.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
        "gradext reads live autograd state, which exists only at run time"
    )
    try:
        frames: Any = torch._C._dynamo.eval_frame
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        frames.set_code_exec_strategy(function.__code__, skip)
    except AttributeError:
        pass  # a torch that moved it: Dynamo tries the frame, warns, and calls the function
    return function


class GradModeState(NamedTuple):
    """The calling thread's modes and its thread-local dispatch keys (functionality key names)."""

    grad_mode: bool
    inference_mode: bool
    included: tuple[str, ...]
    excluded: tuple[str, ...]


def _call(op: Any, *tensors: torch.Tensor | None) -> Any:
    for tensor in tensors:
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"gradext.ops.{op._schema.name.split('::')[1]}: expected a torch.Tensor, "
                f"got {type(tensor).__module__}.{type(tensor).__qualname__}"
            )
    with torch._C.DisableTorchFunction():
        return op(*tensors)


def _reader(name: str) -> Callable[..., Any]:
    """What reads a fact: at once from plain tensors, for all else through the dispatcher.

    A plain tensor is a `torch.Tensor` or `Parameter`, no subclass, on a thread where an op would
    come to its kernel at once: no mode, transform, tracer or profiler is on that looks at ops.
    """
    return _C.plain_reader(name, functools.partial(_call, getattr(_ops, name).default))


_OfOne: TypeAlias = Callable[[torch.Tensor | None], _Fact]
_OfTwo: TypeAlias = Callable[[torch.Tensor | None, torch.Tensor | None], bool]
_version: _OfOne[int | None] = _reader("version")
_version_counter: _OfOne[int | None] = _reader("version_counter")
_is_view: _OfOne[bool] = _reader("is_view")
_is_differentiable_view: _OfOne[bool] = _reader("is_differentiable_view")
_base: _OfOne[torch.Tensor | None] = _reader("base")
_creation_meta: _OfOne[str | None] = _reader("creation_meta")
_is_inference: _OfOne[bool] = _reader("is_inference")
_shares_version_counter: _OfTwo = _reader("shares_version_counter")
_shares_storage: _OfTwo = _reader("shares_storage")


@graph_break
def version(t: torch.Tensor | None) -> int | None:
    """The version counter's value: how many in-place writes autograd has counted. `t._version`.

    None for an inference tensor, which has no counter (`t._version` raises there).
    Source: VariableVersion in c10/core/TensorImpl.h.
    """
    return _version(t)


@graph_break
def version_counter(t: torch.Tensor | None) -> int | None:
    """An opaque id of the version counter itself; None without one.

    Among living tensors two ids are equal iff the counter is shared, as a tensor shares it with its
    views and its `detach()`, and not with its `.data`. An id may be used again after its tensor
    died.
    """
    return _version_counter(t)


@graph_break
def is_view(t: torch.Tensor | None) -> bool:
    """Whether autograd tracks `t` as a view for backward. `t._is_view()`.

    `detach()` and `.data` share memory and are no views in this sense; nor is a view made of an
    inference tensor under inference_mode.
    """
    return _is_view(t)


@graph_break
def is_differentiable_view(t: torch.Tensor | None) -> bool:
    """Whether `t` carries view metadata at all, for backward or for forward-mode differentiation.

    True for every `is_view` tensor, and for one that were a view in forward mode alone; no tensor
    made from Python is, up to torch 2.15. Source: DifferentiableViewMeta in
    torch/csrc/autograd/variable.h.
    """
    return _is_differentiable_view(t)


@graph_break
def base(t: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor that `t` is a view of, the very object; None when `t` is no view. `t._base`.

    Never itself a view: autograd flattens a chain of views to its root.
    """
    return _base(t)


@graph_break
def creation_meta(t: torch.Tensor | None) -> str | None:
    """How a view was made, which decides whether it may be written in place; None for no view.

    "default" may be written; "no_grad_mode", "inference_mode", "multi_output_node" (split, unbind)
    and "in_custom_function" raise when written with grad mode on.
    Source: CreationMeta in torch/csrc/autograd/variable.h.
    """
    return _creation_meta(t)


@graph_break
def is_inference(t: torch.Tensor | None) -> bool:
    """Whether `t` is an inference tensor (born under inference_mode). `t.is_inference()`."""
    return _is_inference(t)


@graph_break
def shares_version_counter(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether a counted write to one of `a`, `b` is seen by the backward of the other.

    False when either has no counter (inference tensors).
    """
    return _shares_version_counter(a, b)


@graph_break
def shares_storage(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether `a` and `b` are made on the same storage object (not: whether their bytes overlap).

    False when either has no storage (sparse tensors, functorch wrappers). Two tensors made from one
    numpy array share memory through two storages: False.
    """
    return _shares_storage(a, b)


@graph_break
def dispatch_keys(t: torch.Tensor | None) -> tuple[str, ...]:
    """The names of the tensor's dispatch keys, lowest priority first."""
    return tuple(_call(_ops.dispatch_keys.default, t))


@graph_break
def grad_mode_state() -> GradModeState:
    """Grad mode, inference mode, and the thread's included and excluded dispatch keys.

    Outside inference_mode "ADInplaceOrView" is among the included keys; inside it is not, and the
    Autograd keys are excluded. Keys are named by functionality ("AutogradFunctionality"), as a
    thread-local set names no backends. Source: c10/core/InferenceMode.h.
    """
    grad_mode, inference_mode, included, excluded = _call(_ops.grad_mode_state.default)
    return GradModeState(grad_mode, inference_mode, tuple(included), tuple(excluded))


@graph_break
def states(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All integer facts of `tensors`: int64[n, k] on the CPU, columns `gradext.STATE_COLUMNS`.

    `gradext.states` is the faster door (no dispatcher, a numpy array). Facts that do not exist are
    -1 (version, creation_meta, sizes) or 0 (ids).
    """
    if isinstance(tensors, torch.Tensor) or not isinstance(tensors, Iterable):
        raise TypeError(
            "gradext.ops.states: expected a sequence of tensors, got "
            f"{type(tensors).__module__}.{type(tensors).__qualname__}"
        )
    items = tensors if isinstance(tensors, (list, tuple)) else list(tensors)
    try:
        with torch._C.DisableTorchFunction():
            rows: torch.Tensor = _ops.states.default(items)
    except RuntimeError:  # torch's own complaint about an argument takes ten lines
        for index, tensor in enumerate(items):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(
                    f"gradext.ops.states: item {index} is a {type(tensor).__qualname__}, "
                    "expected a torch.Tensor"
                ) from None
        raise
    return rows


def fingerprint(t: torch.Tensor) -> torch.Tensor:
    """128 bits that stand for the dtype, shape and bytes of `t`: int64[2], (low, high).

    On the tensor's device, without waiting for it; may be captured in a CUDA graph and traced. No
    gradient. `gradext.fingerprint` gives the value as a number.
    """
    value: torch.Tensor = _call(_ops.fingerprint.default, t)
    return value


def fingerprint_list(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The fingerprints of tensors on one device in one pass: int64[n, 2], on that device."""
    with torch._C.DisableTorchFunction():
        rows: torch.Tensor = _ops.fingerprint_list.default(tensors)
    return rows


@graph_break
def null_launch(t: torch.Tensor) -> None:
    """Launch an empty kernel on the device and current stream of `t`; on the CPU do nothing.

    A probe for benchmarks: what a launch costs, which every other kernel's time contains.
    """
    _call(_ops.null_launch.default, t)


def axpby(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """`a * x + b * y` in one pass, a new tensor. Differentiable in `x` and `y`, twice and forward.

    `x` and `y` broadcast against each other. Both must be on one device (CPU or CUDA) and of one
    dtype: float16, bfloat16 (computed in float32), float32, float64, complex64 or complex128 (`a`
    and `b` are real). Raises ValueError otherwise, RuntimeError for shapes that do not broadcast.
    """
    _check_tensors("axpby", x, y)
    value: torch.Tensor = _ops.axpby.default(x, y, a, b)
    return value


def axpby_(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Write `a * x + b * y` into `x`, and return `x`. Counted once in its version counter.

    `y` must broadcast to the shape of `x`; dtypes and devices as in `axpby`. Raises ValueError for
    those, RuntimeError for shapes, for memory of `x` that overlaps itself or a part of `y`, and
    where any in-place op would: a leaf that requires grad, a view of one, a view made without a
    graph, an inference tensor outside inference_mode.
    """
    _check_tensors("axpby_", x, y)
    _ops.axpby_.default(x, y, a, b)
    return x


def window(x: torch.Tensor, dim: int, start: int, length: int) -> torch.Tensor:
    """The elements `start` to `start + length - 1` of dimension `dim`, as a view. Any dtype.

    What `torch.narrow` gives; negative `dim` and `start` count from the end. Raises IndexError for
    a `dim` that `x` has not, ValueError for what is not inside that dimension (an op of meta or
    fake tensors raises as `torch.narrow` does).

    Traced by AOTAutograd (`torch.compile` with the backends aot_eager and inductor) it is written
    down as `aten.slice`: functionalization can undo and redo the views of torch's own ops alone,
    and refuses an output with an alias annotation of any other op. `torch.library.opcheck` shows
    that refusal for a view op without a functionalization of its own, such as the variants below.
    """
    _check_tensors("window", x)
    value: torch.Tensor = _ops.window.default(x, dim, start, length)
    return value


def _check_tensors(name: str, *tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"gradext.ops.{name}: expected a torch.Tensor, "
                f"got {type(tensor).__module__}.{type(tensor).__qualname__}"
            )


# --- probes that lie to autograd on purpose: the ops above with layers left out ------------------
# For benchmarks (benchmarks/layers.py), where the difference of two is the cost of a layer. They
# have no fake, and are not to be used in a program: its gradients would be wrong.

_STOPS = {
    "no_autograd": "without its Autograd kernel: the result is cut off the graph, no write is "
    "refused; versions are counted and views tracked",
    "no_adinplaceorview": "with neither its Autograd nor its ADInplaceOrView kernel: no version is "
    "counted, no view tracked",
    "empty": "with an empty kernel: launches a kernel that does nothing (on the CPU: nothing), "
    "returns None",
    "nothing": "without anything: returns None at once, what is left is the dispatcher",
}


def _probe(name: str) -> Callable[..., Any]:
    op = getattr(_ops, name).default
    base, stop = next((name.removesuffix(f"_{s}"), s) for s in _STOPS if name.endswith(f"_{s}"))
    base = base.replace("_inplace", "_")

    def probe(*args: Any) -> Any:
        return op(*args)

    probe.__name__ = probe.__qualname__ = name
    probe.__doc__ = f"A probe that lies to autograd on purpose: `{base}` {_STOPS[stop]}."
    return graph_break(probe)


axpby_no_autograd = _probe("axpby_no_autograd")
axpby_no_adinplaceorview = _probe("axpby_no_adinplaceorview")
axpby_empty = _probe("axpby_empty")
axpby_nothing = _probe("axpby_nothing")
axpby_inplace_no_autograd = _probe("axpby_inplace_no_autograd")
axpby_inplace_no_adinplaceorview = _probe("axpby_inplace_no_adinplaceorview")
axpby_inplace_empty = _probe("axpby_inplace_empty")
axpby_inplace_nothing = _probe("axpby_inplace_nothing")
window_no_autograd = _probe("window_no_autograd")
window_no_adinplaceorview = _probe("window_no_adinplaceorview")
window_empty = _probe("window_empty")
window_nothing = _probe("window_nothing")


# --- fakes: what a tracer's stand-in tensors are told, symbolic sizes included -------------------

_AXPBY_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
}


def _check_axpby(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.device != y.device:
        raise ValueError(
            f"gradext::axpby: x is on {x.device}, y on {y.device}; both must be on one device"
        )
    if x.dtype != y.dtype:
        raise ValueError(
            f"gradext::axpby: x is {x.dtype}, y is {y.dtype}; both must have one dtype"
        )
    if x.dtype not in _AXPBY_DTYPES:
        raise ValueError(
            f"gradext::axpby: no kernel for {x.dtype}; it takes float16, bfloat16, float32, "
            "float64, complex64 and complex128"
        )


def _axpby_fake(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> torch.Tensor:
    _check_axpby(x, y)
    return torch.add(x, y)  # the same TensorIterator decides on shape and strides


def _axpby_inplace_fake(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> None:
    _check_axpby(x, y)
    y.expand_as(x)  # raises where it cannot


def _window_fake(x: torch.Tensor, dim: int, start: int, length: int) -> torch.Tensor:
    return x.narrow(dim, start, length)


_register_fake: Any = torch.library.register_fake
_register_fake("gradext::axpby")(_axpby_fake)
_register_fake("gradext::axpby_")(_axpby_inplace_fake)
_register_fake("gradext::window")(_window_fake)


def _refuse_tracing(op: Any) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        from torch._subclasses.fake_tensor import DataDependentOutputException

        # Dynamo turns this error into a graph break; make_fx and AOTAutograd stop with it. Either
        # is better than the state of the tracer's own stand-in tensors written down as a constant.
        raise DataDependentOutputException(op)

    return refuse


# Kernels registered so are consulted only while the Python dispatcher is on, as it is when Dynamo
# and AOTAutograd trace (make_fx without symbols leaves it off; csrc/state/ops.cpp refuses there).
# Beside the alias, the keys that a tracer itself puts on top.
_TRACED = ("CompositeImplicitAutograd", "PythonTLSSnapshot", "Functionalize", "PreDispatch")
for _name in (
    "version",
    "version_counter",
    "is_view",
    "is_differentiable_view",
    "base",
    "creation_meta",
    "is_inference",
    "shares_version_counter",
    "shares_storage",
    "dispatch_keys",
    "grad_mode_state",
    "states",
):
    _op = getattr(_ops, _name).default
    for _key in _TRACED:
        _op.py_impl(getattr(torch._C.DispatchKey, _key))(_refuse_tracing(_op))
del _name, _op, _key
