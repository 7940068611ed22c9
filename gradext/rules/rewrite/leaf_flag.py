"""Where `requires_grad` is asked for: of a result, and not of what it is computed from.

Works on source text through `ast` only.
"""

from __future__ import annotations

import ast
import copy
from typing import cast


def asked_for_last(node: ast.stmt | None) -> str | None:
    """`w = (torch.randn(3) / 2).requires_grad_()` for `w = torch.randn(3, requires_grad=True) / 2`.

    None where nothing within the statement asks for it, or it gives out several values.
    """
    told = leaf_of_result(node)
    return None if told is None else f"{told[0]}: `{told[1]}`"


def leaf_of_result(node: ast.stmt | None) -> tuple[str, str] | None:
    """What asked_for_last() says to do, and the statement that it says to type."""
    if isinstance(node, ast.Assign):
        if len(node.targets) != 1:
            return None
    elif not isinstance(node, ast.Return) or node.value is None:
        return None
    made = _parameter_last(node)
    if made is not None:
        return "make the parameter of the result", made
    change = _WithoutFlag()
    rewritten = change.visit(copy.deepcopy(node))
    value = rewritten.value
    if not change.flags or isinstance(value, (ast.Tuple, ast.List, ast.Dict)):
        return None
    tight = isinstance(value, (ast.Call, ast.Name, ast.Attribute, ast.Subscript))
    text = ast.unparse(value) if tight else f"({ast.unparse(value)})"
    rewritten.value = ast.Name(f"{text}.requires_grad_()", ast.Load())
    new = ast.unparse(ast.fix_missing_locations(rewritten))
    return f"take {change.flags[0]} off what is computed with, and make a leaf of the result", new


def _parameter_last(node: ast.Assign | ast.Return) -> str | None:
    """`w = nn.Parameter(torch.randn(3) / 2)` for `w = nn.Parameter(torch.randn(3)) / 2`."""
    rewritten = copy.deepcopy(node)
    value = rewritten.value
    calls = [
        part
        for part in ast.walk(value or node)
        if isinstance(part, ast.Call)
        and ast.unparse(part.func).rpartition(".")[2] == "Parameter"
        and len(part.args) == 1
        and not part.keywords
    ]
    if value is None or len(calls) != 1 or calls[0] is value:
        return None
    if isinstance(value, (ast.Tuple, ast.List, ast.Dict, ast.ListComp, ast.DictComp)):
        return None
    change = _Exchange(calls[0], calls[0].args[0])
    rewritten.value = ast.Call(calls[0].func, [cast(ast.expr, change.visit(value))], [])
    return ast.unparse(ast.fix_missing_locations(rewritten))


class _Exchange(ast.NodeTransformer):
    """Puts one expression of a tree in the place of another."""

    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self._old:
            return self._new
        found: ast.AST = self.generic_visit(node)
        return found


class _WithoutFlag(ast.NodeTransformer):
    """Drops `requires_grad=True` and `.requires_grad_()`."""

    def __init__(self) -> None:
        self.flags: list[str] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "requires_grad_":
            given = [*node.args, *(word.value for word in node.keywords)]
            if all(_is_true(value) for value in given):
                self.flags.append(f"`{ast.unparse(node)[len(ast.unparse(called.value)) :]}`")
                return called.value
        for word in node.keywords:
            if word.arg == "requires_grad" and _is_true(word.value):
                self.flags.append("`requires_grad=True`")
                node.keywords = [other for other in node.keywords if other is not word]
                break
        return node


def _is_true(value: ast.expr) -> bool:
    """Whether an argument is the word True: of any other it is not known what it was."""
    return isinstance(value, ast.Constant) and value.value is True
