"""The statement with a step that hands its gradient on: what to type where a value is rounded."""

from __future__ import annotations

import ast
import copy

from gradext.diagnosis.model import Site
from gradext.source import statements

_COMPARES = {"gt", "ge", "lt", "le", "eq", "ne"}


def past_step(site: Site, op: str) -> str | None:
    """`q = x + (x.round() - x).detach()` for `q = x.round()` or `q = x.round_()`; None: unknown.

    Args:
        op: without its namespace, "round" or "round_".
    """
    node = statements.statement(site)
    if node is None or isinstance(node, statements.BLOCKS):
        return None
    calls = [part for part in ast.walk(node) if _is_call_of(part, op)]
    if len(calls) != 1 or not isinstance(calls[0], ast.Call):
        return None
    call = calls[0]
    made = _handed_on(call, op)
    if made is None:
        return None
    if isinstance(node, ast.Expr) and node.value is call:
        assert isinstance(call.func, ast.Attribute)
        owner = call.func.value
        if not isinstance(owner, (ast.Name, ast.Attribute)):
            return None
        return f"{ast.unparse(owner)} = {ast.unparse(made)}"
    rewritten = _Replaced(call, made).visit(copy.copy(node))
    text = statements.first_line(ast.unparse(rewritten))
    return None if text.endswith("...") else text


def _is_call_of(part: ast.AST, op: str) -> bool:
    return (
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr in (op, op.rstrip("_"))
    )


def _handed_on(call: ast.Call, op: str) -> ast.expr | None:
    """`x + (x.round() - x).detach()`."""
    assert isinstance(call.func, ast.Attribute)
    given, rest = call.func.value, call.args
    if statements.is_namespace(given):  # torch.round(x)
        if op.endswith("_") or not rest:
            return None
        given, rest = rest[0], rest[1:]
    if not isinstance(given, (ast.Name, ast.Attribute, ast.Subscript)):
        return None  # it would be computed three times
    bare = op.rstrip("_")
    stepped: ast.expr = ast.Call(ast.Attribute(given, bare, ast.Load()), rest, call.keywords)
    if bare in _COMPARES:
        stepped = ast.Call(ast.Attribute(stepped, "type_as", ast.Load()), [given], [])
    lost = ast.BinOp(stepped, ast.Sub(), given)
    detached = ast.Call(ast.Attribute(lost, "detach", ast.Load()), [], [])
    return ast.BinOp(given, ast.Add(), detached)


class _Replaced(ast.NodeTransformer):
    """A statement with one of its expressions exchanged, as a copy."""

    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self._old:
            return self._new
        found: ast.AST = self.generic_visit(copy.copy(node))
        return found

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node
