"""What of torch's Python entry points is wrapped while a recording runs.

They are C functions, which leave no line in a traceback. Counts its users, and puts everything back
for the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from gradext.native import _C, torch_internals
from gradext.recording import checkpoints, incidents, own_errors, time_share, training

_lock = threading.RLock()
_undo: list[Callable[[], None]] = []
_installed = 0


def _in_child() -> None:
    """The thread that holds the lock may be none of a forked process's."""
    global _lock
    _lock = threading.RLock()


_C.call_in_child(_in_child)


def install() -> None:
    """Wrap torch's entry points; counts, so that each install() needs its uninstall()."""
    global _installed
    with _lock:
        _installed += 1
        if _installed > 1:
            return
        time_share.restart()
        try:
            _wrap_all()
        except BaseException:
            uninstall()
            raise


def uninstall() -> None:
    """Undo install(); the last one puts everything back and forgets the incidents."""
    global _installed
    with _lock:
        _installed -= 1
        if _installed > 0:
            return
        while _undo:
            _undo.pop()()
        incidents.forget()
        checkpoints.forget()
        training.forget()


def _wrap_all() -> None:
    import torch.autograd.graph as graph

    if torch_internals.has(torch_internals.ENGINE):
        engine: Any = graph._engine_run_backward
        backward: Any = _C.wrap_backward(engine, incidents.on_suspicion, incidents.on_error)
        _replace(graph, "_engine_run_backward", backward)
        _replace(torch.autograd, "_engine_run_backward", backward)

    if torch_internals.has(torch_internals.MARK_DIRTY):
        context = torch.autograd.function.FunctionCtx
        _note(context, "mark_dirty", "autograd.Function.mark_dirty", True)
    # graph.increment_version ends in this.
    if torch_internals.has(torch_internals.INCREMENT):
        _note(torch._C, "_increment_version", "torch.autograd.graph.increment_version", False)
    if torch_internals.has(torch_internals.SET_COUNTER):
        name = "_unsafe_set_version_counter"
        _note(torch._C._autograd, name, f"torch._C._autograd.{name}", False)

    if torch_internals.has(torch_internals.BOOTSTRAP):
        bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]
        _replace(threading.Thread, "_bootstrap_inner", _C.wrap_bootstrap(bootstrap))

    if torch_internals.has(torch_internals.APPLY):
        if torch_internals.apply_is_torchs():
            apply: Any = vars(torch._C._FunctionBase)["apply"]
            owner = torch_internals.APPLY_OWNER
            if owner is torch.autograd.Function and _C.exchange_apply(apply):
                _undo.append(_C.put_back_apply)
            else:
                _replace(owner, "apply", _C.wrap_apply(apply))
        else:
            own_errors.count(
                RuntimeError("somebody has replaced it; not recorded"), torch_internals.APPLY.name
            )
    if torch_internals.has(torch_internals.CHECKPOINT):
        frame: Any = torch_internals.CHECKPOINT.find()
        for name, before in (
            ("save_inputs", checkpoints.on_begin),
            ("get_inputs", checkpoints.on_recompute),
            ("check_recomputed_tensors_match", checkpoints.on_recomputed),
        ):
            _replace(frame, name, _C.wrap_method(vars(frame)[name], before))
    if torch_internals.has(torch_internals.GROUPS):
        optimizer: Any = torch.optim.Optimizer
        grow = vars(optimizer)["add_param_group"]
        _replace(optimizer, "add_param_group", _C.wrap_method(grow, training.on_group))
    if torch_internals.has(torch_internals.HIGHER_ORDER):
        _let_higher_order_ops_pass()

    left = _C.patch_entries(incidents.on_empty_grad)
    _undo.append(_C.unpatch_entries)
    for name in left:
        own_errors.count(RuntimeError("not of a kind that gradext knows; not recorded"), name)


def _note(owner: Any, name: str, label: str, is_method: bool) -> None:
    _replace(owner, name, _C.wrap_noting(label, getattr(owner, name), is_method))


def _replace(owner: Any, name: str, value: Any) -> None:
    had_own = name in vars(owner)
    original = vars(owner).get(name)
    setattr(owner, name, value)

    def undo() -> None:
        # Somebody may have wrapped ours in the meantime; then ours stays inside, doing nothing.
        if vars(owner).get(name) is value:
            if had_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    _undo.append(undo)


def _let_higher_order_ops_pass() -> None:
    """Higher-order ops dispatch in Python and stop at every key that they do not know."""
    ops: Any = torch._ops
    known = ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS
    for key in _C.recorder_keys():
        if key not in known:
            known.append(key)
            for op in list(ops._higher_order_ops.values()):
                op.fallthrough(key)
