"""What is said of a write that autograd refused: message, labels, notes and help, by code."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from gradext.base import op_names
from gradext.diagnosis.model import Site
from gradext.rules.rewrite import detach, in_place
from gradext.rules.wording.lost_events import lost
from gradext.source import sites, statements

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
            f"make the view at {line} outside {mode}, or again after the write at {write}; or "
            "write into a `.clone()` there"
        )
    if code == "GX106":
        cloned = detach.cloned_value(maker)
        return f"clone what the Function returns, at {line}" + (f": `{cloned}`" if cloned else "")
    other = in_place.out_of_place(culprits[0])
    again = f"move `{statements.text_of(maker)}` ({line}) below the write at {write}"
    if sites.line_of(maker) == sites.line_of(culprits[0]) or isinstance(
        statements.statement(maker), statements.BLOCKS
    ):
        again = f"take the views again after the write at {write}"
    return f"{again}; or {other or 'write out of place'}"


def label(code: str, op: str | None) -> str:
    what = {
        "GX102": "writes a leaf that requires grad",
        "GX103": "writes a view of a leaf that requires grad",
        "GX104": "writes the view with grad mode on",
        "GX105": "writes one of several views",
        "GX106": "writes a view that a custom Function returned",
    }[code]
    return f"{op_names.short(op)} {what}" if op else what


def message(code: str, culprit: Site, text: str) -> str:
    op = op_names.short(culprit.op)
    op = op[0].upper() + op[1:] if op.startswith("the ") else op
    if code == "GX102" and "resize" in text:
        return (
            f"{op} changes the size of a leaf tensor that requires grad; autograd cannot follow it."
        )
    if code == "GX102" and "out=" in text:
        return (
            f"{op} was told by out= to write into a leaf tensor that requires grad, with grad mode "
            "on; autograd does not follow a result through out=."
        )
    if code == "GX102":
        return (
            f"{op} writes in place into a leaf tensor that requires grad (a parameter, or a tensor "
            "made with requires_grad=True), with grad mode on."
        )
    if code == "GX103":
        return (
            f"{op} writes in place into a view of a leaf tensor that requires grad, with grad "
            "mode on: the write would change the leaf itself."
        )
    if code == "GX104":
        mode = "inference_mode" if "inference" in text else "no_grad"
        return (
            f"{op} writes, with grad mode on, into a view that was made under {mode}: autograd "
            "did not track how the view was made and cannot hand the write on to its base."
        )
    if code == "GX105":
        maker = re.search(r"Output \d+ of (\w+?)(?:Backward\d*)? is a view", text)
        what = f" ({maker[1]})" if maker else ""
        return (
            f"{op} writes in place into one of several views that one function returned{what}; "
            "autograd cannot rewrite the history of its siblings."
        )
    return (
        f"{op} writes in place into a view that an autograd.Function returned (or an input that it "
        "returned as it was); the write would override the Function's own backward."
    )


def _is_hook_function(name: str) -> bool:
    return "BackwardHookFunction" in name


def fix(code: str, culprit: Site, victims: tuple[Site, ...], text: str, seen: Seen | None) -> str:
    other = in_place.out_of_place(culprit)
    if code == "GX102" and "has been used in an in-place" in text:
        call = sites.where(culprit.frame)
        return (
            f"hand the Function a copy at {call} (`.apply(x.clone())`), or let forward() compute a "
            "new tensor and drop mark_dirty()"
        )
    if code == "GX102":
        update = in_place.under(culprit, "no_grad")
        return (
            f"an update or an initialisation belongs outside the graph: {update}; if the result is "
            f"to be part of the graph, {other or 'make a new tensor instead'}"
        )
    if code == "GX103" or (code == "GX105" and seen is not None and seen.base_is_leaf):
        return (
            f"{other or 'make a new tensor instead'}; if it initialises or updates the leaf, put "
            f"the view and the write under no_grad: {in_place.under(culprit, 'no_grad')}"
        )
    maker = sites.where(victims[0].frame) if victims else "the line that made the view"
    if code == "GX104":
        mode = "inference_mode" if "inference" in text else "no_grad"
        return (
            f"make the view at {maker} outside {mode}; or, if the write is to stay out of the "
            f"graph, put it under the same mode: {in_place.under(culprit, mode)}"
        )
    if code == "GX105":
        return _fix_of_several(culprit, victims, other)
    if seen is not None and any(_is_hook_function(name) for name, _, _ in seen.chain):
        return in_place.module_inplace(culprit, culprit.op or "") or other or "write out of place"
    cloned = detach.cloned_value(victims[0]) if victims else None
    if cloned:
        return f"clone what the Function returns, at {maker}: `{cloned}`"
    return f"clone what the Function returns, at {maker}; or {other or 'write out of place'}"


def _fix_of_several(culprit: Site, victims: tuple[Site, ...], other: str | None) -> str:
    """One view at a time may be written; several of one call may not."""
    first = other or "write out of place"
    loop = statements.loop_over(victims[0]) if victims else None
    if loop is not None:
        return (
            f"{first}, and collect the results with torch.stack; or take one view at a time: "
            f"`for i in range(len({loop})): {loop}[i]...` at {sites.where(victims[0].frame)}"
        )
    if victims and sites.line_of(victims[0]) != sites.line_of(culprit):
        return (
            f"{first}, and build the whole again with torch.stack or cat; or slice instead of "
            f"`{statements.text_of(victims[0])}` ({sites.where(victims[0].frame)}): a slice may be "
            "written"
        )
    return f"{first}, and build the whole again with torch.stack or cat"


def notes(
    code: str, seen: Seen | None, data: Data | None, victims: tuple[Site, ...]
) -> tuple[str, ...]:
    if code == "GX106" and seen and any(_is_hook_function(name) for name, _, _ in seen.chain):
        return (
            "register_full_backward_hook() passes the module's inputs and results through an "
            "autograd.Function, which makes views of them",
        )
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
