"""The words for a write that autograd refused: message, labels, notes and help, by code."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import TYPE_CHECKING

import torch

from gradext.base import op_names, source_lines
from gradext.diagnosis.model import Site
from gradext.rules.rewrite import detach, in_place
from gradext.rules.wording import module_hooks
from gradext.rules.wording.lost_events import lost
from gradext.source import bindings, sites, statements

if TYPE_CHECKING:
    from gradext.recording.tables import Data


@dataclasses.dataclass(frozen=True)
class Seen:
    """The refused tensor, from a Refused event or from a tensor that is still there.

    Attributes:
        order: of the event; a view counts only if it was made before.
        chain: (name, thread, sequence) of the nodes towards the base, nearest first.
    """

    order: int
    storage: int
    begin: int
    end: int
    tensor: int
    chain: tuple[tuple[str, int, int], ...]
    base_is_leaf: bool


def fix_afterwards(
    code: str, culprits: tuple[Site, ...], victims: tuple[Site, ...], use: Site, mode: str
) -> str:
    maker = next(
        (v for v in victims if sites.line_of(v) != sites.line_of(use)),
        victims[0] if victims else None,
    )
    if maker is None:
        return (
            f"make the view again after the write and before {sites.where(use.frame)}, or write "
            "out of place"
        )
    line = sites.where(maker.frame)
    write = sites.where(culprits[0].frame)
    if code == "GX104":
        return (
            f"{_viewed(maker, line, mode)}; or make it again after the write at {write}, or write "
            "into a `.clone()` there"
        )
    if code == "GX106":
        cloned = detach.cloned_value(maker)
        return f"clone what the Function returns, at {line}" + (f": `{cloned}`" if cloned else "")
    other = in_place.out_of_place(culprits[0], of_view=True)
    again = f"move `{statements.text_of(maker)}` ({line}) below the write at {write}"
    if sites.line_of(maker) == sites.line_of(culprits[0]) or isinstance(
        statements.statement(maker), statements.BLOCKS
    ):
        again = f"take the views again after the write at {write}"
    return f"{again}; or {other or 'write out of place'}"


def _viewed(maker: Site | None, line: str, mode: str) -> str:
    """A view that autograd may follow, wherever the mode around it was entered."""
    if maker is None or isinstance(statements.statement(maker), statements.BLOCKS):
        return f"make the view at {line} outside {mode}"
    entered = "inference_mode(False)" if mode == "inference_mode" else "enable_grad()"
    return (
        f"make the view outside {mode}: `with torch.{entered}:` around "
        f"`{statements.text_of(maker)}` ({line})"
    )


def label(
    code: str,
    op: str | None,
    name: str | None = None,
    part: str | None = None,
    leaf: str | None = None,
    *,
    hooked: bool = False,
) -> str:
    """Beside the line that wrote.

    Args:
        name: what that line calls the tensor. part: what of it the line writes, `pe[:, :n]`.
        leaf: the leaf's name. hooked: the view is of a module's full backward hook.
    """
    if code == "GX103" and name is not None and (part is None or part == name or name == leaf):
        # The name is the leaf's, or may be: what is written is another view of it.
        what = "writes a view of a leaf that requires grad"
        if part is not None and part != name:
            what = f"writes `{part}`, a view of the leaf `{name}`"
        elif name == leaf:
            what = f"writes `{name}`, a leaf that requires grad, through a view"
        elif leaf is not None:
            what = f"writes `{name}`, a view of the leaf `{leaf}`"
        return f"{op_names.short(op)} {what}" if op else what
    if code == "GX106" and hooked:
        what = f"writes {f'`{name}`, ' if name else ''}a view that a backward hook made"
        return f"{op_names.short(op)} {what}" if op else what
    kind, how = {
        "GX102": ("a leaf that requires grad", ""),
        "GX103": ("a view of a leaf that requires grad", ""),
        "GX104": ("the view", " with grad mode on"),
        "GX105": ("one of several views", ""),
        "GX106": ("a view that a custom Function returned", ""),
    }[code]
    what = f"writes `{name}`, {kind},{how}" if name else f"writes {kind}{how}"
    what = what.rstrip(",")
    return f"{op_names.short(op)} {what}" if op else what


def view_made(maker: Site | None, op: str) -> Site | None:
    """The line that made a view, with what the line calls the view and what it is of."""
    if maker is None:
        return None
    names, of = statements.assigned_names(maker), viewed_by(maker)
    if module_hooks.is_of_hook(op):
        label = "a module that runs here has a full backward hook, which makes a view"
        return dataclasses.replace(maker, label=label)
    several = op.lower() in _SEVERAL
    kind = "views" if several else "a view"
    what = f"`{names[0]}`, {kind}" if len(names) == 1 and _is_whole(maker) else kind
    what = "the view" if what == "a view" and of is None else what
    label = f"{op} makes {what}" + (f" of `{of}`" if of else "")
    return dataclasses.replace(maker, label=label)


_SEVERAL = {
    *("unbind", "split", "splitwithsizes", "split_with_sizes", "chunk", "tensor_split", "hsplit"),
    *("vsplit", "dsplit", "unsafe_split", "unsafe_chunk", "unsafesplit", "unsafechunk"),
}


def viewed_by(maker: Site) -> str | None:
    """What the expression of a line takes a view of: `hidden` of `hidden.split(1, dim=0)`."""
    over = statements.loop_over(maker)
    if over is not None:
        return over
    try:
        node = ast.parse(_expression(maker).strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        of: ast.expr | None = node.func.value
        # `torch.select(x, 0, 0)`, `Window.apply(x)` view an argument.
        given = statements.is_namespace(node.func.value) or node.func.attr == "apply"
        if given:
            of = node.args[0] if node.args else None
        elif not hasattr(torch.Tensor, node.func.attr):
            return None  # a function of the program
    elif isinstance(node, (ast.Subscript, ast.Attribute)):
        of = node.value
    else:
        return None
    if not isinstance(of, (ast.Name, ast.Attribute, ast.Subscript)):
        return None
    text = ast.unparse(of)
    return text if len(text) <= 40 else None


def _expression(site: Site) -> str:
    """The text that a site's frame marks; "" where it has no columns or takes several lines."""
    frame = site.frame
    if frame.column is None or frame.end_column is None or frame.end_line != frame.line:
        return ""
    line = source_lines.getline(frame.file, frame.line)
    return line[frame.column : frame.end_column]


def _is_whole(site: Site) -> bool:
    """Whether the marked expression is all that the line assigns."""
    node = statements.statement(site)
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    return value is not None and ast.unparse(value) == _unparsed(_expression(site))


def _unparsed(text: str) -> str:
    try:
        return ast.unparse(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError):
        return ""


def message(
    code: str,
    culprit: Site,
    text: str,
    leaf: str | None = None,
    victims: tuple[Site, ...] = (),
    *,
    hooked: bool = False,
) -> str:
    """What was refused, and why.

    Args:
        leaf: the name of the leaf that the write is to.
        hooked: the view is of a module's full backward hook.
    """
    op = op_names.short(culprit.op)
    op = op[0].upper() + op[1:] if op.startswith("the ") else op
    which = f"`{leaf}`, a leaf tensor that requires grad," if leaf else None
    if code == "GX102" and "resize" in text:
        if which:
            return f"{which} is given another size by {op}; autograd cannot follow it."
        return (
            f"{op} changes the size of a leaf tensor that requires grad; autograd cannot follow it."
        )
    if code == "GX102" and "out=" in text:
        if which:
            return (
                f"{which} is what {op} was told by out= to write into, with grad mode on; autograd "
                "does not follow a result through out=."
            )
        return (
            f"{op} was told by out= to write into a leaf tensor that requires grad, with grad mode "
            "on; autograd does not follow a result through out=."
        )
    if code == "GX102":
        if which:
            return f"{which} is written in place by {op}, with grad mode on."
        return (
            f"{op} writes in place into a leaf tensor that requires grad (a parameter, or a tensor "
            "made with requires_grad=True), with grad mode on."
        )
    written = bindings.written_name(culprit) if not culprit.stack else None
    of = viewed_by(victims[0]) if victims else None
    if code == "GX103":
        if which:
            part = bindings.written_part(culprit) if not culprit.stack else None
            part = written if written and written != leaf else part
            through = f", `{part}`," if part and part != leaf else ""
            return (
                f"{which} is written in place by {op} through a view of it{through} with grad mode "
                "on: the write would change the leaf itself."
            )
        return (
            f"{op} writes in place into a view of a leaf tensor that requires grad, with grad "
            "mode on: the write would change the leaf itself."
        )
    into = f"into `{written}`, " if written else "into "
    if code == "GX104":
        mode = "inference_mode" if "inference" in text else "no_grad"
        return (
            f"{op} writes, with grad mode on, {into}a view{_of(of, written)} that was made under "
            f"{mode}: autograd did not track how the view was made and cannot hand the write on to "
            "its base."
        )
    if code == "GX105":
        maker_name = re.search(r"Output \d+ of (\w+?)(?:Backward\d*)? is a view", text)
        what = f" ({maker_name[1]})" if maker_name else ""
        return (
            f"{op} writes in place {into}one of several views{_of(of, written)} that one function "
            f"returned{what}; autograd cannot rewrite the history of its siblings."
        )
    if hooked:
        return (
            f"{op} writes in place {into}a view that the full backward hook of a module made; the "
            "write would override the backward by which the hook is called."
        )
    return (
        f"{op} writes in place {into}a view that an autograd.Function returned (or an input that "
        "it returned as it was); the write would override the Function's own backward."
    )


def _of(of: str | None, written: str | None) -> str:
    return f" of `{of}`" if of is not None and of != written else ""


def fix(code: str, culprit: Site, victims: tuple[Site, ...], text: str, seen: Seen | None) -> str:
    of_leaf = code in ("GX102", "GX103")
    other = in_place.out_of_place(culprit, is_held=of_leaf, of_view=True)
    if code == "GX102" and "has been used in an in-place" in text:
        call = sites.where(culprit.frame)
        return (
            f"hand the Function a copy at {call} (`.apply(x.clone())`), or let forward() compute a "
            "new tensor and drop mark_dirty()"
        )
    activation = _activation(culprit, other) if of_leaf else None
    if activation is not None:
        return activation
    if code == "GX102":
        update = (
            f"an update or an initialisation belongs outside the graph: {_without_grad(culprit)}"
        )
        # `w = w - lr * w.grad` is an update, and would train a tensor that nobody else has.
        if other is None or ".grad" in statements.text_of(culprit):
            return update
        return (
            f"{update}; if the result is to be part of the graph, {other} (the leaf itself, which "
            "the optimizer has, stays as it is)"
        )
    if code == "GX103":
        update = f"to change the leaf itself, {_without_grad(culprit)}"
        return f"{other} (the leaf stays as it is); or, {update}" if other else update
    if code == "GX105" and seen is not None and seen.base_is_leaf:
        copied = other or _copied_before(victims)
        update = f"to change the leaf itself, {_without_grad(culprit)}"
        return f"{copied} (the leaf stays as it is); or, {update}" if copied else update
    maker = sites.where(victims[0].frame) if victims else "the line that made the view"
    if code == "GX104":
        mode = "inference_mode" if "inference" in text else "no_grad"
        return (
            f"{_viewed(victims[0] if victims else None, maker, mode)}; or, if the write is to stay "
            f"out of the graph, put it under the same mode: {in_place.under(culprit, mode)}"
        )
    if code == "GX105" and is_of_hook(seen) and other is not None:
        return other
    if code == "GX105":
        return _fix_of_several(culprit, victims, other)
    if is_of_hook(seen):
        return _without_module(culprit) or other or "write out of place"
    cloned = detach.cloned_value(victims[0]) if victims else None
    if cloned:
        return f"clone what the Function returns, at {maker}: `{cloned}`"
    return f"clone what the Function returns, at {maker}; or {other or 'write out of place'}"


# Written by a layer of a network, and never by who updates or initialises a leaf.
_ACTIVATIONS = {
    *("relu_", "relu6_", "leaky_relu_", "rrelu_", "prelu_", "elu_", "celu_", "selu_", "silu_"),
    *("mish_", "hardtanh_", "hardswish_", "hardsigmoid_", "threshold_", "dropout_"),
    *("alpha_dropout_", "feature_dropout_", "feature_alpha_dropout_"),
}


def _activation(culprit: Site, other: str | None) -> str | None:
    """For a layer that writes in place and whose result is computed with; None for other writes.

    Under no_grad it would run, and the leaf would get no gradient through it.
    """
    node = statements.statement(culprit)
    in_module = any(_NN.search(frame.file.replace("\\", "/")) for frame in culprit.stack)
    named = op_names.short(culprit.op) in _ACTIVATIONS
    if not (in_module or named) or node is None or isinstance(node, ast.Expr):
        return None
    return _without_module(culprit) or other


_NN = re.compile(r"/torch/nn/(modules|functional)\b")


def is_of_hook(seen: Seen | None) -> bool:
    """Whether the view is one that a module's full backward hook made."""
    return seen is not None and any(module_hooks.is_of_hook(name) for name, _, _ in seen.chain)


def _without_module(culprit: Site) -> str | None:
    """The module that wrote, built so that it does not."""
    text = in_place.module_inplace(culprit, culprit.op or "")
    kind = re.match(r"build the nn\.(\w+) that runs", text or "")
    built = module_hooks.built_in_place(kind[1], culprit) if kind is not None else None
    return f"{text}; {built}" if built else text


def _without_grad(culprit: Site) -> str:
    return in_place.under(culprit, "no_grad")


def _copied_before(victims: tuple[Site, ...]) -> str | None:
    """A copy of what a loop goes over: `tensor = tensor.detach().clone()`."""
    loop = statements.loop_over(victims[0]) if victims else None
    if loop is None or not loop.isidentifier():
        return None
    line = sites.where(victims[0].frame)
    return f"work on a copy without gradient: `{loop} = {loop}.detach().clone()` before {line}"


def _fix_of_several(culprit: Site, victims: tuple[Site, ...], other: str | None) -> str:
    """One view at a time may be written; several of one call may not."""
    single = _one_at_a_time(victims[0]) if victims else None
    if single is not None:
        return f"{single}; or {other}" if other else single
    whole = "; where the whole is used afterwards, build it again with torch.stack or torch.cat"
    first = other + whole if other else "write out of place" + whole
    if victims and sites.line_of(victims[0]) != sites.line_of(culprit):
        return (
            f"{first}; or slice instead of `{statements.text_of(victims[0])}` "
            f"({sites.where(victims[0].frame)}): a slice may be written, and the whole changes too"
        )
    return first


def _one_at_a_time(maker: Site) -> str | None:
    """A loop over a tensor that takes its rows by index: each is the one view of its call."""
    over, node = statements.loop_over(maker), statements.statement(maker)
    if over is None or not isinstance(node, ast.For):
        return None
    line, called = sites.where(maker.frame), node.iter
    name = (
        called.func.id if isinstance(called, ast.Call) and isinstance(called.func, ast.Name) else ""
    )
    items = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
    row = f"`{{}} = {over}[{{}}]` as the first line of the loop at {line}"
    if name == "enumerate" and len(items) == 2:
        index, item = map(ast.unparse, items)
        return f"take one view at a time: {row.format(item, index)}"
    item, target = ast.unparse(items[0]), ast.unparse(node.target)
    head = f"for i, {target} in enumerate({ast.unparse(called)}):"
    return f"take one view at a time: `{head}` at {line}, and {row.format(item, 'i')}"


def notes(
    code: str, seen: Seen | None, data: Data | None, victims: tuple[Site, ...]
) -> tuple[str, ...]:
    if is_of_hook(seen):
        return (module_hooks.note(),)
    if code == "GX102" or victims:
        return ()
    if data is None:
        return ("no recording was on, so the line that made the view is not known",)
    if not len(data.saves) and code in {"GX103", "GX106"}:
        return ("the light mode records no nodes, so the line that made the view is not known",)
    if seen is None:
        return ("the refused write was not recorded, so the line that made the view is not known",)
    if missing := lost(data, "views", "saves"):
        return (f"the line that made the view is not known: {missing}",)
    return (
        "the line that made the view was not recorded: it ran before the recording began, or made "
        "the view in a way that the recorder does not see",
    )
