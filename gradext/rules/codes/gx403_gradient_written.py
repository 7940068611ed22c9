"""GX403: a gradient that was written in place while others still used it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import op_names
from gradext.diagnosis.model import Diagnosis
from gradext.rules.rewrite import in_place
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.events import Write
    from gradext.recording.tables import Data


_ENGINE = "_engine_run_backward"


def gradient_written(facts: dict[str, Any], data: Data) -> Diagnosis:
    """GX403: a node wrote in a gradient that another one was still to use."""
    writes = [
        write
        for write in data.writes_of_storage(facts["storage"])
        if facts["since"] < write.order <= facts["until"] and _in_the_engine(data, write)
    ]
    label = "writes a gradient in place that others still use"
    culprits = sites.distinct(
        sites.site(data.frames(write.stack), op=write.op, label=label) for write in writes
    )
    producer, writer = op_names.short(facts["producer"]), op_names.short(facts["writer"])
    consumer = op_names.short(facts["consumer"])
    stack, _ = data.node_stack(*facts["producer_id"])
    shares = f"{producer}'s backward hands one gradient to several nodes"
    victims = sites.distinct([sites.site(data.frames(stack), label=shares)] if stack else [])
    who = "a hook, or the backward formula, of" if culprits else "the backward of"
    fix = ""
    window = None
    if culprits:
        fix = in_place.returned(culprits[0]) or in_place.out_of_place(culprits[0]) or ""
        fix = fix or f"return a new tensor at {sites.where(culprits[0].frame)}"
        fix += "; never write into the gradient that autograd passes in"
    else:
        stack, _ = data.node_stack(*facts["writer_id"])
        made = sites.user_frame(data.frames(stack))
        last = data.backwards[-1].stack if data.backwards else 0
        end = sites.user_frame(data.frames(last))
        window = (made, end) if made and end else None
        fix = f"let the backward of {writer} return a new tensor instead of writing into its input"
    return Diagnosis(
        code="GX403",
        message=(
            f"The gradient that {producer} hands to several nodes was written in place by {who} "
            f"{writer} before {consumer} had used it: the other gradients are wrong without an "
            "error."
        ),
        culprits=culprits,
        victims=victims,
        fix=fix,
        notes=(
            "autograd passes one tensor to all who get the same gradient; it copies none of them",
        ),
        window=window,
    )


def _in_the_engine(data: Data, write: Write) -> bool:
    """Whether Python code that the engine called did it, and not the engine itself."""
    for frame in data.frames(write.stack):
        if frame.function.rsplit(".", 1)[-1] == _ENGINE:
            return False
        if frame.is_user:
            return True
    return False
