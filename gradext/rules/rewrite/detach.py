"""The statement with a detach() more, or one less: what to type where a graph is cut or kept."""

from __future__ import annotations

import ast
import copy
import dataclasses
import re

from gradext.diagnosis.model import Site
from gradext.source import statements


def is_running_sum(site: Site, name: str) -> bool:
    """`name += x` or `name = name + x`."""
    node = statements.statement(site)
    if isinstance(node, ast.AugAssign):
        return isinstance(node.op, ast.Add) and ast.unparse(node.target) == name
    if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
        value = node.value
        while isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            if name in (ast.unparse(value.left), ast.unparse(value.right)):
                return True
            value = value.left
    return False


def without_call(site: Site, name: str) -> str | None:
    """The statement without `.detach()` (or `.data`); "" where it is nothing else, None unknown."""
    node = statements.statement(site)
    if node is None or isinstance(node, statements.BLOCKS):
        return None
    change = _Without(name)
    rewritten = change.visit(copy.deepcopy(node))
    if not change.count:
        return None
    if isinstance(rewritten, ast.Expr) and not any(
        isinstance(n, ast.Call) for n in ast.walk(rewritten)
    ):
        return ""
    if isinstance(rewritten, ast.Assign) and len(rewritten.targets) == 1:
        target, value = ast.unparse(rewritten.targets[0]), ast.unparse(rewritten.value)
        if target == value:
            return ""  # `x = x` is left of `x = x.detach()`
    text = statements.first_line(ast.unparse(rewritten))
    return text if change.count == 1 and not text.endswith("...") else None


def with_argument(site: Site, method: str, word: str, value: bool) -> str | None:
    """The statement with a keyword more in its one call of a method; None if that is not one."""
    node = copy.deepcopy(statements.statement(site))
    if node is None or isinstance(node, statements.BLOCKS):
        return None
    calls = statements.method_calls(node, {method})
    if len(calls) != 1 or calls[0].args or any(k.arg in (word, None) for k in calls[0].keywords):
        return None
    calls[0].keywords.append(ast.keyword(word, ast.Constant(value)))
    text = statements.first_line(ast.unparse(node))
    return None if text.endswith("...") else f"`{text}`"


_MAKES_LEAVES = {"Variable", "tensor", "as_tensor", "Tensor", "Parameter"}


class _Without(ast.NodeTransformer):
    """Drops `.name()`, and `.data` where that is the name."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == self.name and self.name != "data":
            self.count += 1
            return called.value
        rebuilt = ast.unparse(called).rsplit(".", 1)[-1] in _MAKES_LEAVES and node.args
        if not self.count or not rebuilt:
            return node
        given = node.args[0]
        if isinstance(given, (ast.List, ast.Tuple)):
            # Of numbers it made a tensor; of tensors it would copy the values.
            if given.elts and not any(isinstance(e, ast.Constant) for e in given.elts):
                stack = ast.Attribute(ast.Name("torch", ast.Load()), "stack", ast.Load())
                return ast.Call(stack, [given], [])
            return node
        return given  # the value itself, and not a copy or a new leaf of it

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == self.name == "data":
            self.count += 1
            return node.value
        return node


def cloned_value(site: Site) -> str | None:
    """`h = f(x).clone()` for `h = f(x)`; `return f(x).clone()` for `return f(x)`."""
    node = statements.statement(site)
    if isinstance(node, ast.Return) and node.value is not None:
        return f"return {ast.unparse(node.value)}.clone()"
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return f"{ast.unparse(node.targets[0])} = {ast.unparse(node.value)}.clone()"
    return None


def detached_where_made(name: str | None, site: Site) -> str | None:
    """`self.table = self.build().detach()` for the line that gives a tensor to `net.table`.

    `return f(x).detach()` for one that returns it. None where the line gives out more than that
    tensor: the name of what holds it is another one there, so nothing else can be typed.
    """
    node = statements.statement(site)
    if (name or "").endswith("]"):
        return None
    value = node.value if isinstance(node, (ast.Return, ast.Assign)) else None
    if value is None or isinstance(value, _OF_SEVERAL):
        return None
    text = ast.unparse(value)
    if not isinstance(value, (ast.Call, ast.Name, ast.Attribute, ast.Subscript)):
        text = f"({text})"
    if isinstance(node, ast.Return):
        return f"`return {text}.detach()`"
    targets = statements.assigned_names(site)
    given = [target.rpartition(".")[2] for target in targets]
    own = name is not None and given == [name.rpartition(".")[2]]
    return f"`{targets[0]} = {text}.detach()`" if own else None


_OF_SEVERAL = (
    *(ast.Tuple, ast.List, ast.Dict, ast.Set),
    *(ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp),
)


def carried_name(made: Site, linking: Site | None) -> str | None:
    """What the line of `made` assigns and that of `linking` reads: `h` of `o, h = rnn(x, h)`."""
    names = statements.assigned_names(made)
    node = statements.statement(linking) if linking is not None else None
    value = getattr(node, "value", None)
    if isinstance(node, ast.AugAssign):
        return ast.unparse(node.target) if ast.unparse(node.target) in names else None
    read = {
        ast.unparse(part)
        for part in (ast.walk(value) if isinstance(value, ast.expr) else ())
        if isinstance(part, (ast.Name, ast.Attribute, ast.Subscript))
    }
    both = [name for name in names if name in read]
    if both:
        return both[0]
    handed = _handed_on(made, set(names), read) if len(names) > 1 else None
    return names[0] if len(names) == 1 else handed


def _handed_on(made: Site, names: set[str], read: set[str]) -> str | None:
    """`state` where `state = State(h, c)` follows the line that made `h, c`, and is read next."""
    held = statements.around(made)
    for _, block in ast.iter_fields(held[-2]) if len(held) > 1 else ():
        if not isinstance(block, list) or held[-1] not in block:
            continue
        for node in block[block.index(held[-1]) + 1 :]:
            if not isinstance(node, ast.Assign) or len(node.targets) != 1:
                continue
            parts = {ast.unparse(n) for n in ast.walk(node.value) if isinstance(n, ast.Name)}
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id in read and names <= parts:
                return target.id
    return None


def assigning(made: Site, name: str | None, running: set[tuple[str, str]] | None = None) -> Site:
    """The site moved out to the caller's line that gives the result its name, if there is one.

    `running` are (file, name) of the functions that have not returned, and so still hold it: their
    lines come before those of others that use the same name.
    """
    if name is None:
        return made
    if running:
        frames = (made.frame, *made.callers)
        held = [i for i, f in enumerate(frames) if (f.file, f.function.split(".")[-1]) in running]
        for index in held:
            place = dataclasses.replace(made, frame=frames[index])
            if index and name.split("[")[0] in (
                n.split("[")[0] for n in statements.assigned_names(place)
            ):
                inner = (*reversed(frames[1:index]), made.frame, *made.stack)
                return dataclasses.replace(place, stack=inner, callers=frames[index + 1 :])
    wanted = name.split("[")[0]
    attribute = f".{wanted.rsplit('.', 1)[-1]}" if "." in wanted else None
    for index, frame in enumerate((made.frame, *made.callers)):
        place = dataclasses.replace(made, frame=frame)
        if any(
            given.split("[")[0] == wanted or (attribute and given.endswith(attribute))
            for given in statements.assigned_names(place)
        ):
            if index == 0:
                return made
            inner = (*reversed(made.callers[: index - 1]), made.frame, *made.stack)
            return dataclasses.replace(place, stack=inner, callers=made.callers[index:])
    return made


def detached(name: str | None, made: Site) -> str:
    """How to cut the history of what a line made and another iteration uses."""
    if name is None:
        return "`.detach()` it"
    if name.endswith(":]"):
        name = name.split("[")[0]  # a slice of it was assigned to
    found = re.fullmatch(r"([\w.]+)\[\d+\]", name)
    several = len(statements.assigned_names(made)) > 1
    if found or several:
        owner = found[1] if found else name
        return f"`.detach()` every tensor in `{owner}`"
    return f"`{name} = {name}.detach()`"
