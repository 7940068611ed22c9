"""How the reference of a kind of fault is run: what the forward pass means, where torch refuses it.

In a child of `gradext fix`, the program as it is. Where more than one thing can be meant, the
reference says so (`doubt`), and nothing is verified by it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradext.state.inspect import inspect
from gradext.state.tree import tensors_of

_LEAF = ("leaf Variable that requires grad",)  # "a leaf ...", "a view of a leaf ..."
_SEVERAL = ("returns multiple views",)
_FUNCTION = ("created inside a custom Function",)
_NO_GRAD = ("created in no_grad mode", "created in inference mode")

_PART = "whether the write is a part of what is differentiated, its author knows"
_CARRIES = "what is written into the leaf has a history of its own, and whether that counts"
_STOP = "whether the view was made without a history on purpose, its author knows"
_BY_ITSELF = "a checkpoint was not called by the name that torch gives it, and computed twice"
_READ = "what the view is of is read after the write, and whether it shows there, its author knows"

_LOOKS = {
    "__get__",
    "size",
    "dim",
    "stride",
    "numel",
    "is_contiguous",
    "storage_offset",
    "backward",
}


class RefusedWrites(TorchFunctionMode):
    """Does the writes that torch refuses (GX102 to GX106).

    - A leaf, or a view of one, is written under no_grad: an update. That it is one is plain where
      the leaf has a gradient already, or is a Parameter and no module's forward() is running.
    - An output of unbind() and the like, and a view that was made under no_grad of what has no
      history: written through a new view of the same memory, so that its base shows the write.
    - Any other view: a clone is written, and read from then on in its place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.doubt: str | None = None
        self._instead: dict[int, tuple[Any, Any]] = {}  # id of a view: (view, what stands for it)
        self._bases: dict[int, Any] = {}  # written through a new view
        self._left: list[Any] = []  # views whose memory no longer is what they mean

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        if self._instead:
            given = self._replaced(given)
            self._look_at(func, given)
        try:
            return func(*given[0], **given[1])
        except RuntimeError as error:
            said = str(error)
            if not any(text in said for text in (*_LEAF, *_SEVERAL, *_FUNCTION, *_NO_GRAD)):
                raise
        return self._allowed(func, given, said)

    def _allowed(self, func: Any, given: Any, said: str) -> Any:
        written = given[1].get("out", next((t for _, t in tensors_of(given)), None))
        if not isinstance(written, torch.Tensor):
            raise RuntimeError(said)
        base: Any = _base(written)
        base = written if base is None else base
        if any(text in said for text in _LEAF):
            self._doubt(self._of_leaf(base, written, given))
            with torch.no_grad():
                return func(*given[0], **given[1])
        is_stop = any(text in said for text in _NO_GRAD)
        if is_stop and base.requires_grad:
            self._doubt(_STOP)
        is_through = not any(text in said for text in _FUNCTION) and not base.requires_grad
        if is_through or (any(text in said for text in _SEVERAL) and not base.is_leaf):
            self._bases[id(base)] = base
            self._instead[id(written)] = (written, _same_memory(base, written))
        else:
            self._left.append(written)
            self._instead[id(written)] = (written, written.clone())
        given = self._replaced(given)
        return func(*given[0], **given[1])

    def _of_leaf(self, leaf: Any, written: Any, given: Any) -> str | None:
        others = [t for _, t in tensors_of(given) if t is not written and t is not leaf]
        if any(t.requires_grad for t in others):
            return _CARRIES
        if leaf.grad is not None:
            return None
        return None if isinstance(leaf, torch.nn.Parameter) and not _in_forward() else _PART

    def _doubt(self, why: str | None) -> None:
        self.doubt = self.doubt or why

    def _replaced(self, given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            known = self._instead.get(id(given))
            if known is not None:
                return known[1]
            base = _base(given)
            if base is None or id(base) not in self._bases or not _is_stale_view(given):
                return given
            self._instead[id(given)] = (given, _same_memory(base, given))
            return self._instead[id(given)][1]
        if type(given) in (tuple, list):
            return type(given)(self._replaced(one) for one in given)
        if type(given) is dict:
            return {key: self._replaced(one) for key, one in given.items()}
        return given

    def _look_at(self, func: Any, given: Any) -> None:
        """Whether memory is read whose meaning went elsewhere, into a clone."""
        if getattr(func, "__name__", "") in _LOOKS:
            return
        for _, tensor in tensors_of(given) if self._left else ():
            if any(_overlap(tensor, view) for view in self._left):
                self._doubt(_READ)


def _base(tensor: Any) -> Any:
    return tensor._base if tensor._is_view() else None  # noqa: SLF001  the documented names


def _same_memory(base: Any, view: Any) -> Any:
    return base.as_strided(view.size(), view.stride(), view.storage_offset())


def _is_stale_view(view: Any) -> bool:
    """Whether torch lets nobody read a view any more whose base was written."""
    return inspect(view).creation_meta not in (None, "default")


def _overlap(a: Any, b: Any) -> bool:
    try:
        if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
            return False
        return _range(a)[0] < _range(b)[1] and _range(b)[0] < _range(a)[1]
    except Exception:  # no strided memory
        return False


def _range(tensor: Any) -> tuple[int, int]:
    begin = tensor.storage_offset() * tensor.element_size()
    span = sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True))
    return begin, begin + (span + 1) * tensor.element_size() if tensor.numel() else begin


def _in_forward() -> bool:
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_call_impl" and code.co_filename == torch.nn.modules.module.__file__:
            return True
        frame = frame.f_back
    return False


# What computes a checkpoint again without reentering autograd; since torch 2.14 the second.
_WITHOUT_REENTRANT = (
    "_checkpoint_without_reentrant_generator",
    "_checkpoint_without_reentrant_generator_impl",
)


class Recomputed:
    """Whether something was computed a second time although no_checkpoints() was called.

    Attributes:
        doubt: why the gradients may not be those of the first time.
    """

    def __init__(self) -> None:
        self.doubt: str | None = None

    def told_by(self, function: Any) -> Any:
        """The function, wrapped so that its calls are noted."""

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            self.doubt = _BY_ITSELF
            return function(*args, **kwargs)

        return called


def no_checkpoints() -> Recomputed:
    """`checkpoint(function, ...)` calls the function: nothing is computed a second time (GX406).

    A copy of `checkpoint` that a module took before, and `CheckpointFunction` by itself, compute as
    ever; the result says so. Source of the keywords: the signature of checkpoint, where what the
    function is given has no name of its own. Without a function it decorates one (torch 2.14).
    """
    import torch.utils.checkpoint as module

    parameters = signature(module.checkpoint).parameters.values()
    own = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    own.add("preserve_rng_state")  # before torch 2.14 among the keywords of the function

    def checkpoint(function: Any = None, *args: Any, **kwargs: Any) -> Any:
        if function is None and not args:
            return lambda decorated: decorated
        return function(*args, **{k: v for k, v in kwargs.items() if k not in own})

    module.checkpoint = checkpoint
    recomputed = Recomputed()
    for inner in _WITHOUT_REENTRANT:
        if hasattr(module, inner):
            setattr(module, inner, recomputed.told_by(getattr(module, inner)))
    reentrant: Any = module.CheckpointFunction
    reentrant.forward = staticmethod(recomputed.told_by(reentrant.forward))
    return recomputed


def own_gradients() -> None:
    """Each hook and each backward() of a Function gets gradients that nobody else has (GX403).

    What a hook writes into its gradient is what it hands on, as torch does where the gradient is
    not shared.
    """
    register = torch.Tensor.register_hook

    def register_hook(self: Any, hook: Any) -> Any:
        return register(self, _with_own(hook))  # type: ignore[no-untyped-call]

    torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]
    module: Any = torch.nn.Module
    for name in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        setattr(module, name, _registers_own(getattr(module, name)))
    function: Any = torch.autograd.function.BackwardCFunction
    apply = function.apply

    def apply_to_own(self: Any, *gradients: Any) -> Any:
        return apply(self, *_copies(gradients))

    function.apply = apply_to_own


def _with_own(hook: Any) -> Callable[[Any], Any]:
    def called(gradient: Any) -> Any:
        own = _copies(gradient)
        returned = hook(own)
        return own if returned is None else returned

    return called


def _registers_own(register: Any) -> Any:
    def registers(self: Any, hook: Any, *args: Any, **kwargs: Any) -> Any:
        def called(module: Any, *gradients: Any) -> Any:
            own = _copies(gradients)
            returned = hook(module, *own)
            return own[0] if returned is None else returned

        return register(self, called, *args, **kwargs)

    return registers


def _copies(given: Any) -> Any:
    if isinstance(given, torch.Tensor):
        return given.clone()
    return tuple(_copies(one) for one in given) if type(given) is tuple else given
