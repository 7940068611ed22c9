"""Tensors that an autograd.Function keeps as attributes of its ctx: whether backward reads them.

Reads the code and the source of the class; runs none of it.
"""

from __future__ import annotations

import ast
import dis
import re
import types
from typing import Any

from gradext.base import package
from gradext.diagnosis.model import Frame, Site
from gradext.source import frames, statements, syntax

# Methods that write a tensor as a whole: what it held before does not matter.
_FILLS = {"copy_", "zero_", "fill_", "normal_", "uniform_", "set_", "resize_", "random_"}


def is_read(node: Any, attribute: str) -> bool:
    """Whether the backward of a node's class reads `ctx.attribute` before it writes it."""
    name = root_of(attribute)
    found = _backward(node)
    if found is None:
        return False
    cls, function = found
    code = function.__code__
    ctx = code.co_varnames[0] if code.co_argcount else ""
    return _loads(cls, function, ctx, name, 0) and not _is_filled_first(code, name)


def _loads(cls: Any, function: Any, ctx: str, name: str, depth: int) -> bool:
    """Whether a function reads an attribute of its variable `ctx`, or hands that on to one."""
    code = function.__code__
    if any(_loads_in(each, ctx, name) for each in _nested(code)):
        return True
    definition = _definition(code)
    if depth == 2 or definition is None:
        return False
    for call in ast.walk(definition):
        if not isinstance(call, ast.Call):
            continue
        given = [
            k for k, arg in enumerate(call.args) if isinstance(arg, ast.Name) and arg.id == ctx
        ]
        called = ast.unparse(call.func).rsplit(".", 1)[-1]
        space = function.__globals__
        other = space.get(called) if type(space) is dict else None
        other = other if other is not None else _function(cls, called)
        if given and called == "getattr":
            return True
        if not given or type(other) is not types.FunctionType:
            continue
        names = other.__code__.co_varnames[: other.__code__.co_argcount]
        if given[0] < len(names) and _loads(cls, other, names[given[0]], name, depth + 1):
            return True
    return False


def _nested(code: types.CodeType) -> list[types.CodeType]:
    return [code, *(const for const in code.co_consts if isinstance(const, types.CodeType))]


def _loads_in(code: types.CodeType, ctx: str, name: str) -> bool:
    before: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and instruction.argval == name:
            # Since Python 3.12 one instruction may load two variables, of which the last counts.
            last = before.argval[-1] if type(before.argval) is tuple else before.argval
            if before.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and last == ctx:
                return True
        before = instruction
    return False


def root_of(attribute: str) -> str:
    """`cache` of "ctx.cache[0]"."""
    return attribute.removeprefix("ctx.").split("[", 1)[0]


def backward_code(node: Any) -> types.CodeType | None:
    """The code of the backward() of a node's class."""
    found = _backward(node)
    return None if found is None else found[1].__code__


def _backward(node: Any) -> tuple[Any, Any] | None:
    cls = getattr(node, "_forward_cls", None)
    function = _function(cls, "backward") or _function(cls, "vjp")
    return None if function is None else (cls, function)


def _function(cls: Any, name: str) -> Any:
    """A function of a class's, also of those that it is made from; no descriptor is run."""
    for kind in type.mro(cls) if isinstance(cls, type) else ():
        held = type.__dict__["__dict__"].__get__(kind).get(name)
        if held is not None:
            held = held.__func__ if isinstance(held, (staticmethod, classmethod)) else held
            return held if type(held) is types.FunctionType else None
    return None


def _definition(code: types.CodeType) -> ast.FunctionDef | None:
    for node in syntax.statements(code.co_filename, code.co_firstlineno):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            return node
    return None


def _is_filled_first(code: types.CodeType, name: str) -> bool:
    """Whether the first thing that backward does with `ctx.name` is to write all of it."""
    ctx = code.co_varnames[0] if code.co_argcount else ""
    definition = _definition(code)
    if definition is None:
        return False
    names: set[str] = set()
    uses: list[tuple[tuple[int, int], bool]] = []

    def is_use(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in names
        held = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        return held and node.attr == name and node.value.id == ctx  # type: ignore[attr-defined]

    filled: set[int] = set()
    for node in ast.walk(definition):
        if isinstance(node, ast.Assign) and is_use(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            filled.add(id(node.value))  # an alias, no read
    for node in ast.walk(definition):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in _FILLS:
                filled.add(id(node.func.value))
            filled |= {id(keyword.value) for keyword in node.keywords if keyword.arg == "out"}
        elif isinstance(node, ast.Assign):
            whole = [
                target.value
                for target in node.targets
                if isinstance(target, ast.Subscript)
                and isinstance(target.slice, (ast.Slice, ast.Constant))
                and ast.unparse(target.slice) in (":", "...", "Ellipsis")
            ]
            filled |= {id(target) for target in whole}
    aliases = {id(node.value) for node in ast.walk(definition) if isinstance(node, ast.Assign)}
    for node in ast.walk(definition):
        if is_use(node) and isinstance(getattr(node, "ctx", None), ast.Load):
            if id(node) in aliases and isinstance(node, ast.Attribute):
                continue
            place = node.lineno, node.col_offset  # type: ignore[attr-defined]
            uses.append((place, id(node) in filled))
    return bool(uses) and min(uses)[1]


def keeping(node: Any, attribute: str) -> Site | None:
    """The line of forward() or setup_context() that keeps it."""
    cls = getattr(node, "_forward_cls", None)
    name = root_of(attribute)
    for which in ("setup_context", "forward"):
        function = _function(cls, which)
        if function is None or not package.is_user_file(function.__code__.co_filename):
            continue
        for instruction in dis.get_instructions(function.__code__):
            if instruction.opname == "STORE_ATTR" and instruction.argval == name:
                frame: Frame = frames.frame_of(function.__code__, instruction.offset)
                return Site(frame=frame, label=f"keeps it as `ctx.{name}`")
    return None


def returning_none(node: Any) -> Site | None:
    """The line of the program's backward() that returns a None; else its last `return`."""
    code = backward_code(node)
    if code is None or not package.is_user_file(code.co_filename):
        return None
    found: list[Frame] = [
        frames.frame_of(code, instruction.offset)
        for instruction in dis.get_instructions(code)
        if instruction.opname.startswith("RETURN_")
    ]
    named = [frame for frame in found if re.search(r"\bNone\b", frame.code)]
    at = next(iter(named), found[-1] if found else None)
    return None if at is None else Site(frame=at, label="gives an input no gradient")


def copied(site: Site) -> str | None:
    """`ctx.weight = weight.clone()` for the line that keeps `weight`; None for other lines."""
    node = statements.statement(site)
    plain = isinstance(node, ast.Assign) and len(node.targets) == 1
    if not plain or not isinstance(
        node.value,  # type: ignore[union-attr]
        (ast.Name, ast.Attribute, ast.Call, ast.Subscript),
    ):
        return None
    assert isinstance(node, ast.Assign)
    return f"{ast.unparse(node.targets[0])} = {ast.unparse(node.value)}.clone()"
