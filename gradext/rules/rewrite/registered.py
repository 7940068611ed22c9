"""How an attribute of a module would be written so that the module knows what it holds.

`self.layers = nn.ModuleList([...])` for a plain list, `nn.Parameter(x.to(dtype))` for
`nn.Parameter(x).to(dtype)`. Reads the source of the module's class through `ast`; runs nothing.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, cast

from gradext.base import package, raw
from gradext.diagnosis.model import Frame
from gradext.source import expressions, frames, syntax

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Written(NamedTuple):
    """One assignment to `self.attribute`.

    Attributes:
        frame: its line. text: how it stands there. new: how it registers; None where the source
            shows no one way.
    """

    frame: Frame
    text: str
    new: str | None


class _Assigned(NamedTuple):
    file: str
    name: str  # of the function
    function: _Function
    node: ast.stmt
    target: str
    value: ast.expr


def container(
    kind: type, attribute: str, holds: str, items: Collection[str], *, depth: int, has_names: bool
) -> Written | None:
    """Of a list or a dict of what the class makes itself; None where something else made it.

    Args:
        holds: "Module" or "Parameter". items: names of the classes of what it holds.
        depth: 1, or 2 for lists within it. has_names: its keys are texts that a module may have.
    """
    found = list(_assigned(kind, attribute))
    if len(found) != 1:
        return None
    one = found[0]
    made = [*_put_into(one.value, one.function, one.target)]
    is_empty = _is_empty(one.value)
    if is_empty:
        for function in _functions(kind):
            made += _added(function.node, f"{_self(function.node)}.{attribute}")
    if not made or not all(_makes(item, one, items) for item in made):
        return None
    of_dict = isinstance(_resolved(one.value, one.function), (ast.Dict, ast.DictComp)) or (
        isinstance(one.value, ast.Call)
        and ast.unparse(one.value.func).rpartition(".")[2] in {"dict", "OrderedDict"}
    )
    prefix = _prefix(one)
    new = None
    kept = "" if is_empty else ast.unparse(one.value)
    if depth == 1 and (has_names or not of_dict):
        new = f"{one.target} = {prefix}{holds}{'Dict' if of_dict else 'List'}({kept})"
    elif depth == 2 and kept and holds == "Module" and not of_dict:
        new = f"{one.target} = {prefix}ModuleList({prefix}ModuleList(row) for row in {kept})"
    elif depth == 2 and kept and holds == "Module" and has_names:
        rows = f"{{key: {prefix}ModuleList(row) for key, row in ({kept}).items()}}"
        new = f"{one.target} = {prefix}ModuleDict({rows})"
    frame = expressions.frame_at(one.file, one.name, one.value)
    return Written(frame, ast.unparse(one.node), new)


def tensor(kind: type, attribute: str) -> Written | None:
    """Of a tensor that the class makes of a parameter, or that it makes require grad."""
    found = list(_assigned(kind, attribute))
    if len(found) != 1:
        return None
    one = found[0]
    value = _resolved(one.value, one.function)
    prefix = _prefix(one)
    bare, maker = _without_maker(value, one.function)
    if bare is None:
        return None
    if value is not one.value or maker == "":
        new = f"{one.target} = {prefix}Parameter({ast.unparse(one.value)})"
    else:
        new = f"{one.target} = {maker or prefix + 'Parameter'}({ast.unparse(bare)})"
    frame = expressions.frame_at(one.file, one.name, one.value)
    return Written(frame, ast.unparse(one.node), new)


def as_parameter(text: str, prefix: str, *, of_any: bool = True) -> str | None:
    """An expression whose value is a Parameter, for one that computes with a Parameter.

    Args:
        of_any: also for one that makes none itself.
    """
    try:
        value = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    nothing = ast.parse("def f(): pass").body[0]
    bare, maker = _without_maker(value, cast(ast.FunctionDef, nothing))
    if bare is None:
        return f"{prefix}Parameter({text})" if of_any else None
    return f"{maker or prefix + 'Parameter'}({ast.unparse(bare)})"


class _Own(NamedTuple):
    file: str
    name: str
    node: _Function


def _functions(kind: type) -> Iterator[_Own]:
    """The functions that are written in a class and its bases of the user's."""
    for cls in raw.mro_of(kind):
        for held in list(raw.class_dict(cls).values()):
            code = held.__code__ if type(held) is types.FunctionType else None
            if code is None or not package.is_user_file(code.co_filename):
                continue
            file = frames.absolute(code.co_filename)
            around = syntax.statements(file, code.co_firstlineno)
            node = around[-1] if around else None
            if isinstance(node, _Function):
                yield _Own(file, frames.function_name(code), node)


def _self(function: _Function) -> str:
    given = [*function.args.posonlyargs, *function.args.args]
    return given[0].arg if given else "self"


def _assigned(kind: type, attribute: str) -> Iterator[_Assigned]:
    for own in _functions(kind):
        target = f"{_self(own.node)}.{attribute}"
        for node in ast.walk(own.node):
            pairs: list[tuple[ast.expr, ast.expr]] = []
            if not isinstance(node, ast.stmt):
                continue
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                pairs = [(node.targets[0], node.value)]
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                pairs = [(node.target, node.value)]
            elif isinstance(node, ast.Expr) and _is_buffer(node.value, attribute):
                pairs = [(ast.parse(target, mode="eval").body, node.value.args[1])]  # type: ignore
            for left, right in pairs:
                both = isinstance(left, ast.Tuple) and isinstance(right, ast.Tuple)
                if both and len(left.elts) == len(right.elts):  # type: ignore[attr-defined]
                    for item, value in zip(left.elts, right.elts, strict=True):  # type: ignore
                        if ast.unparse(item) == target:
                            yield _Assigned(own.file, own.name, own.node, node, target, value)
                elif ast.unparse(left) == target:
                    yield _Assigned(own.file, own.name, own.node, node, target, right)


def _is_buffer(value: ast.expr, attribute: str) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "register_buffer"
        and len(value.args) > 1
        and isinstance(value.args[0], ast.Constant)
        and value.args[0].value == attribute
    )


def _is_empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return not value.args and not value.keywords
    return (isinstance(value, ast.List) and not value.elts) or (
        isinstance(value, ast.Dict) and not value.values
    )


def _resolved(value: ast.expr, function: _Function) -> ast.expr:
    """What a local name is bound to, where the function binds it once."""
    if not isinstance(value, ast.Name):
        return value
    bound = _bound_to(value.id, function)
    return bound[0] if len(bound) == 1 else value


def _bound_to(name: str, function: _Function) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == name
    ]


def _put_into(value: ast.expr, function: _Function, target: str) -> Iterator[ast.expr]:
    """What a container is made of where it is written down, and by appending to a local name."""
    if isinstance(value, ast.Name):
        for bound in _bound_to(value.id, function):
            yield from _elements(bound)
        yield from _added(function, value.id)
    else:
        yield from _elements(value)


def _elements(value: ast.expr) -> Iterator[ast.expr]:
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)):
        for item in value.elts:
            inner = item.value if isinstance(item, ast.Starred) else item
            below = list(_elements(inner))
            yield from below or [inner]
    elif isinstance(value, ast.Dict):
        for item in value.values:
            yield from list(_elements(item)) or [item]
    elif isinstance(value, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
        item = value.value if isinstance(value, ast.DictComp) else value.elt
        yield from list(_elements(item)) or [item]
    elif isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Add, ast.Mult)):
        yield from _elements(value.left)
        yield from _elements(value.right)
    elif isinstance(value, ast.Call) and ast.unparse(value.func) in {"list", "tuple", "dict"}:
        for argument in value.args:
            yield from _elements(argument)
        yield from (word.value for word in value.keywords)


def _added(function: _Function, name: str) -> Iterator[ast.expr]:
    """`name.append(E)`, `name[k] = E`, `name += [E]` in a function."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if ast.unparse(node.func.value) != name or not node.args:
                continue
            if node.func.attr in {"append", "extend"}:
                yield from list(_elements(node.args[0])) or [node.args[0]]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            if ast.unparse(node.targets[0].value) == name:
                yield from list(_elements(node.value)) or [node.value]
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) == name:
            yield from list(_elements(node.value)) or [node.value]


def _makes(item: ast.expr, one: _Assigned, kinds: Collection[str], depth: int = 2) -> bool:
    """Whether an expression makes an object of one of the classes, there and then."""
    if isinstance(item, ast.IfExp):
        return _makes(item.body, one, kinds) and _makes(item.orelse, one, kinds)
    if isinstance(item, ast.Name) and depth:
        bound = _bound_to(item.id, one.function)
        return bool(bound) and all(_makes(value, one, kinds, depth - 1) for value in bound)
    if not isinstance(item, ast.Call):
        return False
    name = ast.unparse(item.func).rpartition(".")[2]
    if name in kinds:
        return True
    if isinstance(item.func, ast.Attribute) and item.func.attr in _KEEPS:
        return _makes(item.func.value, one, kinds, depth)
    return depth > 0 and any(_makes(made, one, kinds, depth - 1) for made in _returns(one, name))


# A module or a tensor that is given by these is the one that they are called on.
_KEEPS = {"to", "cuda", "cpu", "float", "double", "half", "train", "requires_grad_", "apply"}


def _returns(one: _Assigned, name: str) -> Iterator[ast.expr]:
    """What the functions of this name in the file return."""
    tree = syntax.around(one.file, one.value.lineno)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, _Function) and node.name == name:
            for part in ast.walk(node):
                if isinstance(part, ast.Return) and part.value is not None:
                    given = _resolved(part.value, node)
                    yield given


def _prefix(one: _Assigned) -> str:
    """`nn.`, `torch.nn.`: as the file writes it."""
    tree = syntax.around(one.file, one.value.lineno)
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} if tree is not None else {}
    return "nn." if "nn" in names else "torch.nn."


def _without_maker(value: ast.expr, function: _Function) -> tuple[ast.expr | None, str | None]:
    """(the value without what makes it a leaf, what that is); (None, None) where nothing does.

    `nn.Parameter` where that made it; None for `requires_grad`; "" where a name stands for it.
    """
    for node in ast.walk(value):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = [word for word in node.keywords if word.arg == "requires_grad"]
        if called.rpartition(".")[2] == "Parameter" and len(node.args) == 1:
            return _exchanged(value, node, node.args[0]), called
        if words and isinstance(words[0].value, ast.Constant) and words[0].value.value is True:
            kept = [word for word in node.keywords if word not in words]
            return _exchanged(value, node, ast.Call(node.func, node.args, kept)), None
        is_set = isinstance(node.func, ast.Attribute) and node.func.attr == "requires_grad_"
        if is_set and not node.args and not node.keywords:
            return _exchanged(value, node, cast(ast.Attribute, node.func).value), None
    for node in ast.walk(value):
        if isinstance(node, ast.Name):
            bound = _bound_to(node.id, function)
            if len(bound) == 1 and bound[0] is not value:
                inner, _ = _without_maker(bound[0], function)
                if inner is not None:
                    return value, ""
    return None, None


class _Exchange(ast.NodeTransformer):
    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self._old, self._new = ast.dump(old), new

    def visit(self, node: Any) -> Any:
        if isinstance(node, ast.expr) and ast.dump(node) == self._old:
            return self._new
        return self.generic_visit(node)


def _exchanged(value: ast.expr, old: ast.expr, new: ast.expr) -> ast.expr:
    if value is old:
        return new
    # The tree is shared by all who read the file: of a copy.
    copied = ast.parse(ast.unparse(value), mode="eval").body
    found: ast.expr = _Exchange(ast.parse(ast.unparse(old), mode="eval").body, new).visit(copied)
    return found
