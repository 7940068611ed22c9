"""Where a leaf that requires grad was made: by `requires_grad_()`, by the line that binds its name,
or by the line of a class that makes the module which has it.

No op makes a leaf require grad, so no event of the recorder tells: the source is read, and nothing
is said where it shows no one line. Keeps no tensor and no frame.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import package, raw
from gradext.diagnosis.model import Frame, Site
from gradext.objects import naming
from gradext.source import bindings, expressions, frames, sites, syntax

if TYPE_CHECKING:
    from gradext.recording.tables import Data

_MAKERS = {"Parameter", "requires_grad_", "make_parameter"}
_CONTAINERS = {"Sequential", "ModuleList", "ParameterList"}


def made(
    leaf: int, names: naming.Names, data: Data | None, live: Sequence[Any], name: str | None
) -> Site | None:
    """The line that made the leaf, or made it require grad.

    Args:
        leaf: id of the tensor. live: frames, innermost first. name: what a report calls it.
    """
    label = f"makes the leaf `{name}`" if name else "makes the leaf"
    change = data.flag_of(leaf) if data is not None else None
    if change is not None and change.value and data is not None:
        what = f"`{name}`" if name else "it"
        return sites.site(
            data.frames(change.stack), label=f"makes {what} a leaf that requires grad"
        )
    frame = _by_class(leaf, names, live) or _by_variable(leaf, live)
    return Site(frame=frame, label=label) if frame is not None else None


def _by_variable(leaf: int, live: Sequence[Any]) -> Frame | None:
    """`w = torch.ones(3, requires_grad=True)` in a frame that runs and has it under that name."""
    for frame in live:
        if not package.is_user_file(frame.f_code.co_filename):
            continue
        for name, value in naming.locals_of(frame):
            who = naming.identity_of(value)
            if who is not None and who.id == leaf:
                bound = _bound(frame, name)
                if bound is not None and _makes_leaf(bound[1]):
                    return _frame_of(frame, *bound)
    return None


def _by_class(leaf: int, names: naming.Names, live: Sequence[Any]) -> Frame | None:
    """`self.emb = nn.Embedding(5, 3)` in the class of the innermost module that is the user's."""
    way = names.way_to(leaf)
    below: list[str] = []
    for module, attribute in reversed(way):
        for kind in raw.mro_of(type(module)):
            found = _in_class(kind, attribute)
            if found is not None:
                file, function, value = found
                return _of(file, function, _element(value, below))
        below.insert(0, attribute)
    if not way:
        return None
    root = way[0][0]
    for frame in live:
        if package.is_user_file(frame.f_code.co_filename):
            for name, value in naming.locals_of(frame):
                bound = _bound(frame, name) if value is root else None
                if bound is not None:
                    return _frame_of(frame, bound[0], _element(bound[1], below))
    return None


def _in_class(kind: type, attribute: str) -> tuple[str, str, ast.expr] | None:
    """(file, function, value) of the one assignment to `self.attribute` in a class's __init__."""
    code = getattr(raw.class_dict(kind).get("__init__"), "__code__", None)
    if code is None or not package.is_user_file(code.co_filename):
        return None
    held = syntax.statements(frames.absolute(code.co_filename), code.co_firstlineno)
    function = held[-1] if held else None
    if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    values = bindings.values_of_attribute(function, attribute)
    if len(values) != 1:
        return None
    return frames.absolute(code.co_filename), frames.function_name(code), values[0]


def _bound(frame: Any, name: str) -> tuple[str, ast.expr] | None:
    """(file, value): what the frame's function binds the name to above the line that runs."""
    file = frames.absolute(frame.f_code.co_filename)
    line = frame.f_lineno
    if line is None:
        return None
    site = Site(Frame(file, line, frame.f_code.co_name))
    above = [value for value in bindings.values_of(site, name) if value.lineno < line]
    return (file, above[0]) if above and isinstance(above[0], ast.Call) else None


def _makes_leaf(value: ast.expr) -> bool:
    if not isinstance(value, ast.Call):
        return False
    called = value.func
    short = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
    return short in _MAKERS or any(
        word.arg == "requires_grad"
        and not (isinstance(word.value, ast.Constant) and word.value.value is False)
        for word in value.keywords
    )


def _element(value: ast.expr, below: Sequence[str]) -> ast.expr:
    """The part of `nn.Sequential(nn.Linear(2, 3), ...)` that makes the module at index `below`."""
    for step in below:
        if not (step.isdigit() and isinstance(value, ast.Call)):
            break
        short = ast.unparse(value.func).rsplit(".", 1)[-1]
        items: Sequence[ast.expr] = value.args
        if len(items) == 1 and isinstance(items[0], (ast.List, ast.Tuple)):
            items = items[0].elts
        plain = not any(isinstance(item, ast.Starred) for item in items)
        if short not in _CONTAINERS or not plain or int(step) >= len(items):
            break
        value = items[int(step)]
    return value


def _frame_of(frame: Any, file: str, value: ast.expr) -> Frame:
    return _of(file, frames.function_name(frame.f_code), value)


def _of(file: str, function: str, value: ast.expr) -> Frame:
    return expressions.frame_at(file, function, value)
