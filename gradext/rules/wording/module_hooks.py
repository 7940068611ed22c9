"""The words for a view that a module's full backward hook made of its inputs or results.

torch passes both through an autograd.Function. Reads the modules that exist and source text.
"""

from __future__ import annotations

import ast
import types
from typing import Any

from gradext.base import raw, source_lines
from gradext.diagnosis.model import Frame, Site
from gradext.rules.wording.held_by_modules import named_modules
from gradext.source import sites, syntax

_REGISTERS = ("register_full_backward_hook", "register_full_backward_pre_hook")


def is_of_hook(name: str) -> bool:
    """Whether a node is of the Function that hands a module's tensors to its hook."""
    return "BackwardHookFunction" in name


def hooks() -> list[str]:
    """Where the full backward hooks of modules are defined."""
    found = []
    for _, module in named_modules():
        held = raw.dict_of(module)
        for group in ("_backward_hooks", "_backward_pre_hooks"):
            if type(held) is not dict or (
                group == "_backward_hooks" and held.get("_is_full_backward_hook") is not True
            ):
                continue
            registered = raw.items_of(held.get(group)) or ()
            found += [_defined(hook) for _, hook in registered]
    return [place for place in found if place is not None]


def _defined(hook: Any) -> str | None:
    function = hook.__func__ if type(hook) is types.MethodType else hook
    if type(function) is not types.FunctionType:
        return None
    code = function.__code__
    return sites.where(Frame(code.co_filename, code.co_firstlineno, code.co_name))


def note() -> str:
    """What such a hook does, and where its function is defined if all have the same."""
    said = (
        "a module with a full backward hook passes its inputs and results through an "
        "autograd.Function, which makes views of them"
    )
    places = set(hooks())
    return f"{said}; the hook is defined at {places.pop()}" if len(places) == 1 else said


def registered(place: Site) -> Site | None:
    """The one line of the program's file that registers such a hook."""
    tree = syntax.around(place.frame.file, place.frame.line)
    found = [
        node
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _REGISTERS
    ]
    if len(found) != 1:
        return None
    node = found[0]
    line, last = node.lineno, node.end_lineno or node.lineno
    text = source_lines.getline(place.frame.file, line)
    columns = (node.col_offset, node.end_col_offset) if text.isascii() and last == line else ()
    start, end = columns or (None, None)
    frame = Frame(place.frame.file, line, "<module>", text.strip(), start, last, end)
    return Site(frame=frame, label="registers the hook")


def built_in_place(kind: str, place: Site) -> str | None:
    """The line that builds a module that writes in place, without that; None unless it is one."""
    tree = syntax.around(place.frame.file, place.frame.line)
    found = [
        node
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] == kind
        and (
            any(k.arg == "inplace" for k in node.keywords)
            or (len(node.args) == 1 and ast.unparse(node.args[0]) == "True")
        )
    ]
    if len(found) != 1:
        return None
    called = ast.unparse(found[0].func)
    kept = [ast.unparse(a) for a in found[0].args if ast.unparse(a) != "True"]
    kept += [f"{k.arg}={ast.unparse(k.value)}" for k in found[0].keywords if k.arg != "inplace"]
    where = sites.where(Frame(place.frame.file, found[0].lineno, ""))
    new = f"{called}({', '.join(kept)})"
    return f"at {where}: `{new}` in place of `{ast.unparse(found[0])}`"
