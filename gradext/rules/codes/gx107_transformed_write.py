"""GX107: an in-place write under torch.func, to a tensor that the transform does not transform.

vmap has one tensor where each example would write its own value; grad, vjp and jvp meet a tensor of
the code around. Works from the error's frames and the source; touches no tensor.
"""

from __future__ import annotations

import ast
import dataclasses
import re

from gradext.base import raw
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.rules.rewrite import in_place
from gradext.source import bindings, expressions, frames, sites, statements

_CAPTURED = re.compile(r"in-place operation \([\w:.]+\) that would mutate a captured Tensor")
ANY = re.compile(
    r"vmap: (?:[\w:.]+|inplace arithmetic)\(self, \*extra_args\) is not possible|"
    + _CAPTURED.pattern
    # What torch says of any in-place op with a larger operand, too: told of within vmap alone.
    + r"|output with shape \[[\d, ]*\] doesn't match the broadcast shape \["
)
_FACTORIES = {"zeros", "ones", "empty", "full"}


def refused(error: BaseException) -> list[Diagnosis]:
    """What a transform of torch.func refused to write; nothing for an error from elsewhere."""
    text = raw.message(error)
    trace = frames.frames_of_traceback(error.__traceback__)
    if not any(_is_transform(frame) for frame in trace):
        return []
    written = sites.site(trace)
    if written is None or not written.frame.is_user:
        return []
    name = bindings.written_name(written)
    spoken = f"`{name}`" if name else "a tensor"
    made = _made(written, name)
    calls = _call(trace)
    captured = _CAPTURED.search(text)
    if captured is not None:
        message = (
            f"{spoken} is none of the arguments of the function that torch.func transforms, which "
            "writes it in place: the write would reach the code around it."
        )
        label = f"writes {spoken}, which is no argument of the function"
        help = f"hand {spoken} to the function as an argument and return its new value"
        if (new := in_place.out_of_place(written)) is not None:
            help = f"{new}; or {help}"
    else:
        message = (
            f"{spoken} is one tensor for all examples of vmap, and each of them would write its "
            "own value into it."
        )
        label = f"writes {spoken}, of which there is one for all examples"
        help = _help(written, name, made)
    return [
        Diagnosis(
            code="GX107",
            message=message[0].upper() + message[1:],
            culprits=(dataclasses.replace(written, label=label, stack=()),),
            victims=sites.distinct([made, calls]),
            fix=help,
        )
    ]


def _is_transform(frame: Frame) -> bool:
    return "/torch/_functorch/" in frame.file.replace("\\", "/")


def _call(trace: tuple[Frame, ...]) -> Site | None:
    """The line that calls what vmap, or another transform, has made of the function."""
    last = max(number for number, frame in enumerate(trace) if _is_transform(frame))
    site = sites.site(trace[last + 1 :], label="calls the transformed function")
    return site if site is not None and site.frame.is_user else None


def _made(written: Site, name: str | None) -> Site | None:
    """Where the function gave the tensor its name, the last time above the write."""
    if name is None or not name.isidentifier():
        return None
    above = [
        value for value in bindings.values_of(written, name) if value.lineno < written.frame.line
    ]
    if not above:
        return None
    part = max(above, key=lambda value: value.lineno)
    frame = expressions.frame_at(written.frame.file, written.frame.function, part)
    return Site(frame, label=f"makes `{name}`, one for all examples")


def _help(written: Site, name: str | None, made: Site | None) -> str:
    new = in_place.out_of_place(written)
    anew = _from_an_example(written, name, made)
    if anew is not None:
        return anew
    if new is not None and "clone()" not in new:  # a copy would be one for all examples, too
        return new
    return (
        "make the tensor of one that is vmapped (`x.new_zeros(...)` in place of "
        "`torch.zeros(...)`), or build the result without writes: torch.where, torch.stack, "
        "index_put, scatter"
    )


def _from_an_example(written: Site, name: str | None, made: Site | None) -> str | None:
    """`out = x.new_zeros(3)`, where `out` was made by torch.zeros(3) and `x` is written into it."""
    if made is None or name is None:
        return None
    node, assigned = statements.statement(written), statements.statement(made)
    call = getattr(assigned, "value", None)
    if node is None or not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    owner = call.func.value
    is_factory = (
        isinstance(owner, ast.Name) and owner.id == "torch" and call.func.attr in _FACTORIES
    )
    example = _written_value(node, name)
    if not is_factory or example is None:
        return None
    listed = ", ".join(
        [
            *map(ast.unparse, call.args),
            *(f"{word.arg}={ast.unparse(word.value)}" for word in call.keywords),
        ]
    )
    return (
        f"at {sites.where(made.frame)} make it of a tensor that is vmapped, so that each example "
        f"has its own: `{name} = {example}.new_{call.func.attr}({listed})`"
    )


def _written_value(node: ast.stmt, name: str) -> str | None:
    """The first plain name among what is written: `x` of `out[0] = x * 2` and of `out.add_(x)`."""
    parts: list[ast.AST] = []
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        parts = [node.value]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        parts = [*reversed(node.value.args)]
    for part in parts:
        for each in ast.walk(part):
            if isinstance(each, ast.Name) and each.id not in (name, "torch"):
                return each.id
    return None
