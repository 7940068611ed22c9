"""One cut of a gradient path, as it is told: its lines, what it is called, what mends it.

Reads a recording's births and flows, and source text. Owns no rule; touches no tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.base import op_names
from gradext.diagnosis.model import Site
from gradext.recording import events
from gradext.recording.events import Birth, Flow
from gradext.rules.rewrite import detach, grad_modes, stacked, straight_through
from gradext.rules.wording import draws
from gradext.source import mode_blocks, sites, statements

if TYPE_CHECKING:
    from gradext.recording.tables import Data
    from gradext.rules.wording.chains import Step
    from gradext.rules.wording.owners import Owners

APPLY = "autograd.Function.apply"
_COMPARES = {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!="}
_COMPARES |= {"logical_and": "and", "logical_or": "or", "logical_not": "not", "isclose": "isclose"}
_SPOKEN = {name: f"the comparison `{sign}`" for name, sign in list(_COMPARES.items())[:6]}
_SPOKEN["to_copy"] = "the cast"
_STAND_INS = {
    "argmax": "softmax (or gumbel_softmax) in place of argmax",
    "argmin": "softmax of the negated values in place of argmin",
    "argsort": "a soft ranking in place of argsort",
    "multinomial": "gumbel_softmax in place of multinomial, or the score of what was drawn "
    "(`log_prob`)",
    "to_copy": "the floating values in place of the cast",
    "bucketize": "the distance to the boundaries in place of bucketize",
    "normal": "`mean + std * torch.randn_like(std)` in place of the draw",
    "bernoulli": "the probabilities in place of the draw, or a relaxed draw "
    "(`torch.distributions.RelaxedBernoulli(...).rsample()`)",
    "searchsorted": "the distance to the boundaries in place of searchsorted",
    "one_hot": "softmax in place of one_hot",
}
# What leaves the graph on its way to Python.
_LEAVES = re.compile(r"\.(?:detach\(\)|data)(?:\.\w+\([^()]*\))*\.(?:numpy|tolist|item)\(\)")
_READS = {
    "aten::_local_scalar_dense": "item()",
    "Tensor.__float__": "__float__()",
    "Tensor.numpy": "numpy()",
    "Tensor.tolist": "tolist()",
}


@dataclasses.dataclass(frozen=True)
class Cut:
    """One place where gradient was lost.

    Attributes:
        sites: the line, then where the mode was entered and the op within it, where there is one.
        what: "`.detach()`", for a sentence. why: the rest of it.
        kind: what the fix depends on.
        by: the function of a library that detached, where the program's line has no detach().
    """

    step: Step
    sites: tuple[Site, ...]
    what: str
    kind: str
    mode: mode_blocks.Mode | None = None
    by: str | None = None


def describe(data: Data, step: Step) -> Cut | None:
    origin = step.origin
    running = data.frames(origin.stack)
    op = origin.op
    here = sites.site(running, op=op)
    if isinstance(origin, Birth):
        mode = mode_blocks.find(data.frames(origin.mode), running)
        return _of_mode(step, here, mode, "inference_mode")
    if origin.has(events.IN_INFERENCE):
        mode = mode_blocks.find(data.frames(origin.mode), running)
        return _of_mode(step, here, mode, "inference_mode")
    if origin.op == APPLY and origin.has(events.CUT) and here is not None:
        # Its inputs required grad; in forward() every function runs without grad mode.
        here = dataclasses.replace(here, label="the Function returns this without a gradient")
        return Cut(step, (here,), "an autograd.Function", "function")
    if origin.has(events.NO_GRAD):
        drawn = draws.of_distribution(data.frames(origin.mode), running)
        if drawn is not None:
            return Cut(step, (drawn,), f"`.{draws.SAMPLE}()`", "draw")
        function = origin.has(events.IN_FUNCTION)
        mode = mode_blocks.find(data.frames(origin.mode), running, in_function=function)
        return _of_mode(step, here, mode, "forward" if function else "no_grad")
    if here is None:
        return None
    if origin.has(events.CUT) and origin.has(events.FROM_INFERENCE):
        return _of_inference(data, step, here)
    if origin.has(events.GRAD_CALL):
        here = dataclasses.replace(here, label="gives gradients that are constants")
        return Cut(step, (here,), "`torch.autograd.grad()` without create_graph=True", "grad")
    if origin.has(events.TO_PYTHON):
        read = _READS.get(op, op)
        made = re.search(r"\b(torch\.(?:\w+)?Tensor)\(", here.frame.code)
        if op == "Tensor.__float__" and made:
            label = f"{made[1]}() copies the values, not their history"
            return Cut(step, (dataclasses.replace(here, label=label),), f"`{made[1]}()`", "copy")
        if op == "aten::_local_scalar_dense" and ".item(" not in here.frame.code:
            converted = re.search(r"\b(float|int|bool)\(", here.frame.code)
            if converted:
                here = dataclasses.replace(here, label=f"{converted[1]}() leaves the graph here")
                return Cut(step, (here,), f"`{converted[1]}()`", "read")
        here = dataclasses.replace(here, label=f"{read} takes the value out of the graph")
        return Cut(step, (here,), f"`.{read}`", "read")
    if origin.has(events.FROM_PYTHON):
        here = dataclasses.replace(
            here, label=f"{op_names.bare(op)}() copies the value, not its history"
        )
        return Cut(step, (here,), f"`{op}()`", "copy")
    if op in ("aten::detach", "aten::detach_", "Tensor.data"):
        left = _LEAVES.search(here.frame.code)
        if left is not None:
            here = dataclasses.replace(
                here, label=f"{left[0][1:]} takes the value out of the graph"
            )
            return Cut(step, (here,), f"`{left[0]}`", "read")
        name = {"aten::detach": ".detach()", "aten::detach_": ".detach_()"}.get(op, ".data")
        by = _library_function(here, name.strip(".()"))
        if by is not None:
            here = dataclasses.replace(here, label=f"{by}() hands out detached tensors")
            return Cut(step, (here,), f"`.{by}()`", "detach", by=by)
        here = dataclasses.replace(here, label=f"{name} leaves the graph here")
        after = step.after.origin if step.after is not None else None
        # numpy() takes no tensor that requires grad: detach() alone is not to blame.
        # Where another function makes an array of it, a constant was handed over by intention.
        needed = (
            isinstance(after, Flow)
            and after.op == "Tensor.numpy"
            and _function_of(data, after) == _function_of(data, origin)
        )
        return Cut(step, (here,), f"`{name}`", "read" if needed else "detach")
    if origin.has(events.NOT_FLOATING):
        what = _SPOKEN.get(op_names.bare(op), f"`{op_names.bare(op)}`")
        gives = "truth values" if op_names.bare(op) in _COMPARES else "whole numbers"
        here = dataclasses.replace(here, label=f"{what} gives {gives}, which carry no gradient")
        return Cut(step, (here,), what, "integer")
    if origin.has(events.MERGE):
        here = dataclasses.replace(here, label=f"{op_names.bare(op)} hands on zeros in backward")
        return Cut(step, (here,), f"`{op_names.bare(op)}`", "step")
    here = dataclasses.replace(here, label=f"{op_names.bare(op)} is not differentiable")
    return Cut(step, (here,), f"`{op_names.bare(op)}`", "op")


def _library_function(here: Site, word: str) -> str | None:
    """The library's function that a line called, by its name there, where that detaches."""
    if not here.stack or word in here.frame.code:
        return None
    name = here.stack[-1].function.rpartition(".")[2]
    return name if re.search(rf"\.{re.escape(name)}\(", here.frame.code) else None


def _function_of(data: Data, flow: Flow) -> tuple[str, str] | None:
    """The function of the program that a flow was noted in."""
    frame = next((frame for frame in data.frames(flow.stack) if frame.is_user), None)
    return (frame.file, frame.function) if frame is not None else None


def _of_inference(data: Data, step: Step, here: Site) -> Cut:
    """An op of an inference tensor that requires grad: autograd does not see it at all."""
    here = dataclasses.replace(
        here, label=f"{op_names.bare(step.origin.op)} is not recorded because of it"
    )
    made: Site | None = None
    mode: mode_blocks.Mode | None = None
    for number in step.origin.parents if isinstance(step.origin, Flow) else ():
        birth = data.origin(number)
        if isinstance(birth, Birth):
            running = data.frames(birth.stack)
            made = sites.site(running, op=birth.op, label="makes the inference tensor")
            mode = mode_blocks.find(data.frames(birth.mode), running)
            break
    told = sites.distinct([made, mode.site if mode is not None else None, here])
    return Cut(step, told, "an inference tensor that requires grad", "inference")


def _of_mode(step: Step, here: Site | None, mode: mode_blocks.Mode | None, name: str) -> Cut | None:
    """A cut because of a mode: the line within its block, what entered it, the op itself."""
    if mode is None:
        if here is None:
            return None
        here = dataclasses.replace(here, label=f"runs under {name}")
        return Cut(step, (here,), f"`{name}`", name)
    entered = mode.site
    inside = mode.inside or here
    told: list[Site | None]
    spoken = f"`{mode.name}`"
    if mode.name == "forward":
        spoken = "the forward() of an autograd.Function"
        told = [entered, here]
    elif mode.how in ("switch", "suspended"):
        told = [entered, inside]
    else:
        if inside is not None:
            inside = dataclasses.replace(inside, op=step.origin.op, label=f"runs under {mode.name}")
        told = [inside, entered, here]
    if here is not None and here is not inside:
        label = f"{op_names.bare(step.origin.op)} makes no node"
        told = [dataclasses.replace(s, label=label) if s is here else s for s in told]
    return Cut(step, sites.distinct(told), spoken, name, mode)


def best(data: Data, cuts: Sequence[Cut], names: Owners) -> Cut | None:
    """The cut that matters: of what is trained rather than of what is not, then the nearest."""
    if not cuts:
        return None

    def rank(cut: Cut) -> tuple[bool, bool, int, int]:
        origin = cut.step.origin
        idle = False  # known to lead to nothing that is trained
        if isinstance(origin, Flow) and origin.has(events.SOURCE_IS_LEAF) and names.optimized:
            idle = origin.source not in names.optimized
        if isinstance(origin, Flow) and origin.has(events.GRAD_CALL) and names.optimized:
            idle = origin.has(events.TAINT_INPUT)  # it was taken by what is no parameter
        return (idle, not cut.step.is_sure, cut.step.depth, -origin.order)

    return min(cuts, key=rank)


def _way_back(data: Data, cut: Cut) -> str | None:
    """What to do where the value came back from Python, on another line."""
    for step in cut.step.way():
        origin = step.origin
        if isinstance(origin, Flow) and origin.has(events.FROM_PYTHON):
            entry = sites.site(data.frames(origin.stack))
            if entry is None or sites.line_of(entry) == sites.line_of(cut.sites[0]):
                return None
            return (
                f"use it itself (torch.stack for several) at {sites.where(entry.frame)} instead "
                f"of `{origin.op}()`"
            )
    return None


def _without_library(name: str, site: Site) -> str:
    line, inner = sites.where(site.frame), sites.where(site.stack[0])
    if name == "state_dict":
        kept = detach.with_argument(site, name, "keep_vars", True)
        kept = kept or "`.state_dict(keep_vars=True)`"
        return (
            f"let it hand out the parameters themselves, at {line}: {kept} (without the buffers: "
            "`dict(module.named_parameters())`)"
        )
    return (
        f"`{name}()`, at {line}, detaches what it gives ({inner}): compute the loss with what it "
        "is given, or with another function"
    )


AT_AN_INDEX = (
    "a size or an index has no derivative: compute with weights that the value shapes (a soft "
    "window, or between two neighbours: `a[i] * (1 - f) + a[i + 1] * f` with `f = p - i`), or take "
    "it out of what is trained"
)
# Ops that take a whole number for a place or a size.
_INDEXES = {
    *("index", "embedding", "embedding_bag", "gather", "take", "take_along_dim", "index_select"),
    *("index_put", "index_add", "scatter", "scatter_add", "repeat_interleave"),
}


def _is_index(cut: Cut, into: str | None) -> bool:
    """Whether values that were cast to whole numbers tell a place, or how many.

    `into` is the op that computes on with what came of them.
    """
    if op_names.bare(cut.step.origin.op) != "to_copy":
        return False
    nearer = cut.step.after.way() if cut.step.after is not None else ()
    ops = [into, *(step.origin.op for step in nearer)]
    return any(op is not None and op_names.bare(op).rstrip("_") in _INDEXES for op in ops)


def fix(data: Data, cut: Cut, asks: Site | None = None, into: str | None = None) -> str:
    """What mends a cut.

    Args:
        asks: the call of backward() that it was found at.
        into: the op that computes on with the constant, where that is known.
    """
    site = cut.sites[0] if cut.sites else None
    if site is None:
        return "compute the loss from tensors that require grad"
    line = sites.where(site.frame)
    mode = cut.mode
    if mode is not None:
        at = sites.where(mode.site.frame)
        if mode.name == "forward":
            if "checkpoint" in mode.site.label:
                return (
                    f"pass use_reentrant=False to the checkpoint at {at}; or make its input "
                    "require grad: `h.requires_grad_(True)` before the call"
                )
            return (
                f"hand everything that is to be trained to the Function's apply() as an input, at "
                f"{at}: what its forward() finds elsewhere gets no gradient"
            )
        if mode.how == "switch":
            return (
                f"switch grad mode on again after {at}: `torch.set_grad_enabled(True)`, or use "
                "`with torch.no_grad():` around what needs none"
            )
        if mode.how == "suspended":
            function = mode.site.frame.function.rsplit(".", 1)[-1]
            used = next(
                (s for s in cut.sites if sites.line_of(s) != sites.line_of(mode.site)), site
            )
            if mode.name == "inference_mode":
                return (
                    f"let {function}() make its values under `with torch.no_grad():` in place of "
                    f"the inference_mode at {at}, and leave that block before it yields or awaits: "
                    "the mode belongs to the thread, and is on for whoever runs meanwhile"
                )
            return (
                f"let {function}() leave the block that begins at {at} before it yields or awaits "
                "(grad mode belongs to the thread: it is off for whoever runs meanwhile); or put "
                f"`{statements.text_of(used)}` ({sites.where(used.frame)}) into "
                "`with torch.enable_grad():`"
            )
        if mode.how in ("decorator", "with"):
            return grad_modes.switched_on(mode, site, asks)
        return f"compute it outside of what `{statements.text_of(mode.site)}` ({at}) runs"
    if cut.kind == "inference":
        return (
            f"make the tensor outside inference_mode ({line}), or under `torch.no_grad()`; or make "
            "it anew outside: `p = nn.Parameter(p.detach().clone())`"
        )
    if cut.kind == "grad":
        return f"pass `create_graph=True` to torch.autograd.grad at {line}"
    if cut.by is not None:
        return _without_library(cut.by, site)
    if cut.kind == "detach":
        without = detach.without_call(site, cut.what.strip("`.()"))
        if without == "":
            other = "detach a copy that the loss is not made of"
            if cut.what == "`.detach_()`":
                other = "detach a copy: `.detach()`"
            return f"take `{statements.text_of(site)}` out, at {line}, or {other}"
        if without is not None:
            return f"take {cut.what} out at {line}: `{without}`"
        return f"take {cut.what} out at {line}, or detach a copy that the loss is not made of"
    if cut.kind == "copy" or cut.what == "`.__float__()`":  # the latter with a dtype
        stack = stacked.in_place_of_copy(site)
        if stack is not None:
            return f"use the tensors themselves at {line}, of which it copies numbers: `{stack}`"
    if cut.kind == "read":
        back = _way_back(data, cut)
        kept = None
        is_text = re.search(r"\bf['\"]", site.frame.code) is not None
        if cut.what in ("`.item()`", "`.tolist()`") and not is_text:
            kept = detach.without_call(site, cut.what.strip("`.()"))
        if kept and back is None:
            back = "compute on with torch"
        if kept:
            return f"keep the value a tensor at {line}: `{kept}`, and {back}"
        return (
            f"keep the value a tensor at {line}: compute on with torch instead of {cut.what} and "
            f"what follows it{f', and {back}' if back else ''}"
        )
    if cut.kind == "copy":
        return (
            f"use the tensor itself at {line} (torch.stack for several) instead of {cut.what}, "
            "which copies numbers"
        )
    if cut.kind == "integer" and _is_index(cut, into):
        return f"at {line}: {AT_AN_INDEX}"
    if cut.kind in ("integer", "drawn"):
        op = op_names.bare(cut.step.origin.op)
        stand_in = _STAND_INS.get(op, "the values that it was made of")
        if op in _COMPARES:
            stand_in = f"sigmoid of the difference in place of {cut.what}"
        through = "the straight-through `soft + (hard - soft).detach()`"
        return f"compute on with something differentiable at {line}: {stand_in}, or {through}"
    if cut.kind == "step":
        op = op_names.bare(cut.step.origin.op)
        if op == "normal":  # the sum has the same value, and a gradient for both
            return f"compute on with something differentiable at {line}: {_STAND_INS[op]}"
        past = straight_through.past_step(site, op)
        in_place = past or f"x + ({op.rstrip('_')}(x) - x).detach()"
        instead = "" if past else f" in place of `{op}(x)`"
        return (
            f"let the gradient past it at {line}: `{in_place}`{instead}, or compute on with the "
            "value before it"
        )
    if cut.kind == "draw":
        return f"{draws.instead(data.frames(cut.step.origin.stack), site)}, at {line}"
    if cut.kind == "function":
        return (
            "let the Function's forward() return a floating tensor that it does not hand to "
            f"ctx.mark_non_differentiable; it is applied at {line}"
        )
    return f"replace {cut.what} at {line} by an op that has a derivative"
