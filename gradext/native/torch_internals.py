"""The internals of torch and CPython that gradext wraps, and whether each is where it was.

Owns finding them. What has moved in some other release is found here, before anything is wrapped:
the one feature that needs it stays off, with a line that `gradext doctor` and a report's end show.
Nothing here wraps anything or raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Internal:
    """One internal: its name, what is off without it, and how it is found (None: not there)."""

    name: str
    without: str
    find: Callable[[], Any]

    @property
    def line(self) -> str:
        """The sentence for a torch that does not have it."""
        return f"{self.name} is not where it was in the releases gradext knows: {self.without}"


def _engine() -> Any:
    """The function through which each backward() and grad() reaches the engine."""
    import torch.autograd.graph as graph

    run = getattr(graph, "_engine_run_backward", None)
    # torch.autograd imports it by name; where it does not, a replacement there is never called.
    return run if callable(run) and vars(torch.autograd).get(run.__name__) is run else None


def _c_apply() -> Any:
    return vars(getattr(torch._C, "_FunctionBase", object)).get("apply")


def apply_owner() -> type | None:
    """The class on which to step in before the C `apply` that each autograd.Function ends in.

    Up to torch 2.13 `Function.apply` is Python and ends in super().apply: stepping in on the class
    between leaves Function.apply itself, which torch.compile knows by identity, as it is. Since
    2.14 it is the C one itself, which nothing above can come before, and what was bound of it
    earlier (`f = F.apply`) is reached only through its own table entry.
    """
    function = getattr(torch.autograd, "Function", None)
    in_c = _c_apply()
    if function is None or in_c is None:
        return None
    own = vars(function).get("apply")
    if own is in_c:
        return function  # type: ignore[no-any-return]
    between = function.__mro__[1]
    calls_super = isinstance(own, classmethod) and "super" in own.__func__.__code__.co_names
    return between if calls_super and getattr(between, "apply", None) is not None else None


def apply_is_torchs() -> bool:
    """Whether a wrapper on apply_owner() would replace nothing of somebody else's."""
    owner = APPLY_OWNER
    return owner is not torch.autograd.Function or vars(owner).get("apply") is _c_apply()


def _fallthrough_keys() -> Any:
    known = getattr(torch._ops, "_HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS", None)
    ops = getattr(torch._ops, "_higher_order_ops", None)
    return known if isinstance(known, list) and isinstance(ops, dict) else None


def _checkpoint_frame() -> Any:
    """The class of torch.utils.checkpoint that packs and compares, where it works as it did."""
    import torch.utils.checkpoint as checkpoint

    frame = getattr(checkpoint, "_CheckpointFrame", None)
    wanted = ("save_inputs", "get_inputs", "check_recomputed_tensors_match")
    if frame is None or not all(callable(vars(frame).get(name)) for name in wanted):
        return None
    names = {*frame.__init__.__code__.co_names}
    kept = {"weak_holders", "x_metadatas", "metadata_fn", "recomp_counter", "recomputed"}
    return frame if kept <= names else None


def _groups() -> Any:
    """What each optimizer is made by, where modules say what is registered in them."""
    from torch.nn.modules import module

    wanted = (
        "register_module_parameter_registration_hook",
        "register_module_module_registration_hook",
    )
    grow = vars(torch.optim.Optimizer).get("add_param_group")
    return grow if callable(grow) and all(hasattr(module, name) for name in wanted) else None


ENGINE = Internal(
    "torch.autograd.graph._engine_run_backward",
    "what a backward raises is not explained, and silent errors are not looked for",
    _engine,
)
MARK_DIRTY = Internal(
    "torch.autograd.function.FunctionCtx.mark_dirty",
    "the lines that call mark_dirty() are not recorded",
    lambda: vars(getattr(torch.autograd.function, "FunctionCtx", object)).get("mark_dirty"),
)
INCREMENT = Internal(
    "torch._C._increment_version",
    "the lines that call increment_version() are not recorded",
    lambda: getattr(torch._C, "_increment_version", None),
)
SET_COUNTER = Internal(
    "torch._C._autograd._unsafe_set_version_counter",
    "counters that are set back are not recorded",
    lambda: getattr(torch._C._autograd, "_unsafe_set_version_counter", None),
)
BOOTSTRAP = Internal(
    "threading.Thread._bootstrap_inner",
    "what threads write that start during a recording is not recorded",
    lambda: vars(threading.Thread).get("_bootstrap_inner"),
)
APPLY = Internal(
    "torch.autograd.Function.apply",
    "what an autograd.Function does to the graph is not recorded",
    apply_owner,
)
HIGHER_ORDER = Internal(
    "torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS",
    "higher-order ops may stop at gradext's dispatch keys while a recording runs",
    _fallthrough_keys,
)
CHECKPOINT = Internal(
    "torch.utils.checkpoint._CheckpointFrame",
    "what a checkpoint recomputes is not compared with its forward",
    _checkpoint_frame,
)

GROUPS = Internal(
    "torch.optim.Optimizer.add_param_group",
    "parameters that no optimizer has are not looked for",
    _groups,
)

ALL = (
    *(ENGINE, MARK_DIRTY, INCREMENT, SET_COUNTER, BOOTSTRAP, APPLY, HIGHER_ORDER, CHECKPOINT),
    GROUPS,
)


def is_there(internal: Internal) -> bool:
    """Whether `internal` is found; False too where looking for it raises."""
    try:
        return internal.find() is not None
    except Exception:
        return False


APPLY_OWNER = apply_owner() if is_there(APPLY) else None

# Found once, at import: while a recording runs, gradext's own wrappers stand in their places.
missing: tuple[Internal, ...] = tuple(each for each in ALL if not is_there(each))


def has(internal: Internal) -> bool:
    """Whether the feature that needs `internal` is on."""
    return internal not in missing
