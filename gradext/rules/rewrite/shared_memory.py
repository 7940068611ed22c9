"""Memory that torch shares with numpy or through `.data`: what to type so that it is not.

Works on source text through `ast` only.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Iterator

from gradext.diagnosis.model import Site
from gradext.rules.rewrite import in_place
from gradext.source import bindings, sites, statements, syntax

_TO_TORCH = {"from_numpy", "as_tensor", "asarray", "frombuffer", "from_dlpack"}
_TO_NUMPY = {"numpy", "__array__"}


def own_copy(culprit: Site) -> str | None:
    """A copy where the memory that a line writes is handed from one library to the other."""
    node = statements.statement(culprit)
    if node is None or culprit.stack or isinstance(node, statements.BLOCKS):
        return None
    names = _written(node)
    found: dict[tuple[str, int], ast.Call] = {}
    for name in names:
        for call, line in _crossings(culprit, name):
            found[ast.unparse(call), line] = call
    # What came from a tensor is torch's memory, whatever is made of it afterwards.
    given = {k: call for k, call in found.items() if _short(call) in _TO_NUMPY}
    found = given or found
    if len(found) != 1:
        return None
    (text, line), call = next(iter(found.items()))
    place = sites.where(dataclasses.replace(culprit.frame, line=line))
    if _short(call) in _TO_TORCH:
        if "torch" not in ast.unparse(call.func) or len(call.args) != 1 or call.keywords:
            return None
        new = f"torch.tensor({ast.unparse(call.args[0])})"
        return f"give torch a copy of its own, at {place}: `{new}` in place of `{text}`"
    return f"let numpy have a copy of its own, at {place}: `{text}.copy()` in place of `{text}`"


def _short(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _written(node: ast.stmt) -> list[str]:
    """The names that a statement may write the memory of."""
    parts: list[ast.expr] = []
    if isinstance(node, ast.AugAssign):
        parts = [bindings.root_of(node.target)]
    elif isinstance(node, ast.Assign):
        parts = [bindings.root_of(t) for t in node.targets if isinstance(t, ast.Subscript)]
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            out = [k.value for k in call.keywords if k.arg == "out"]
            of_method = isinstance(call.func, ast.Attribute) and [call.func.value]
            given = out or [*(of_method or []), *call.args[:1]]
            parts += [bindings.root_of(n) for n in given] if not parts or out else []
    wanted = [n for n in parts if isinstance(n, (ast.Name, ast.Attribute))]
    return list(dict.fromkeys(map(ast.unparse, wanted)))


def _crossings(culprit: Site, name: str) -> Iterator[tuple[ast.Call, int]]:
    """Calls that hand the memory of a name over: `torch.from_numpy(name)`, `name = x.numpy()`."""
    tree = bindings.function_of(culprit) if "." not in name else None
    tree_of_file = syntax.around(culprit.frame.file, culprit.frame.line)
    for node in ast.walk(tree or tree_of_file) if tree_of_file is not None else ():
        call = node if isinstance(node, ast.Call) and _short(node) in _TO_TORCH else None
        if call is not None and call.args and ast.unparse(call.args[0]) == name:
            yield call, call.lineno
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            value = node.value
            if isinstance(value, ast.Call) and _short(value) in _TO_NUMPY:
                yield value, node.lineno


def without_data(site: Site, *, is_held: bool) -> str | None:
    """The statement as it makes a new tensor, and writes nothing through `.data`."""
    node = statements.statement(site)
    if node is None or site.stack or isinstance(node, statements.BLOCKS) or is_held:
        return None
    change = _WithoutData()
    plain = change.visit(copy.deepcopy(node))
    owner = change.owner
    if owner is None or change.count != 1 or not bindings.is_rebindable(site, owner):
        return None
    line, whole = sites.where(site.frame), ast.unparse(owner)
    if isinstance(plain, ast.AugAssign) and ast.unparse(plain.target) == whole:
        new = ast.unparse(ast.BinOp(plain.target, plain.op, plain.value))
        return f"at {line} make a new tensor: `{whole} = {new}`"
    if isinstance(plain, (ast.Assign, ast.AugAssign)):
        return (
            f"copy before the write, at {line}: `{whole} = {whole}.clone()`, then "
            f"`{ast.unparse(plain)}`"
        )
    new_value = in_place.value_of(plain)
    return f"at {line} make a new tensor: `{whole} = {new_value}`" if new_value else None


class _WithoutData(ast.NodeTransformer):
    """Drops the `.data` of what a statement writes."""

    def __init__(self) -> None:
        self.owner: ast.expr | None = None
        self.count = 0

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr != "data":
            return node
        self.count += 1
        if isinstance(node.value, (ast.Name, ast.Attribute)):
            self.owner = node.value
        return node.value
