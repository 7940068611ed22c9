"""The statement at a line of the program, read: what it writes, assigns, and goes over.

Works on source text through `ast` only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from gradext.diagnosis.model import Site
from gradext.source import syntax

BLOCKS = (
    *(ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
)  # fmt: skip


def statement(site: Site) -> ast.stmt | None:
    """The innermost statement at the site's line."""
    if syntax.around(site.frame.file, site.frame.line) is None:
        try:
            body = ast.parse(site.frame.code).body
        except (SyntaxError, ValueError):
            return None
        return body[0] if body else None
    best: ast.stmt | None = None
    for node in around(site):
        if best is None or _span(node) <= _span(best):
            best = node
    return best


def around(site: Site) -> list[ast.stmt]:
    """The statements around the site's line, outermost first, without what it decorates."""
    line = site.frame.line
    found = syntax.statements(site.frame.file, line, site.frame.column)
    return [node for node in found if node.lineno <= line]


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno


def receiver(node: ast.expr) -> ast.expr:
    """`plane` of `plane.sub_(m).div_(s)`; `x` of `torch.relu_(x)` and `F.relu(x)`."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        node = node.args[0] if is_namespace(owner) and node.args else owner
    return node


def method_calls(node: ast.AST, names: Collection[str]) -> list[ast.Call]:
    """The calls of methods with these names, in any part of a statement."""
    return [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr in names
    ]


def is_namespace(node: ast.expr) -> bool:
    """Whether an expression is torch, or a module of it: its functions take the tensor first."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in {"torch", "F", "nn", "functional", "init"}


def loop_of(site: Site, name: str) -> ast.For | None:
    """The for loop around the site's line whose variable is `name`: a new value reaches nobody."""
    found = None
    for node in around(site):
        if isinstance(node, ast.For) and any(
            isinstance(n, ast.Name) and n.id == name for n in ast.walk(node.target)
        ):
            found = node
    return found


def first_line(text: str) -> str:
    lines = text.splitlines()
    return lines[0] if len(lines) == 1 else lines[0] + " ..."


def text_of(site: Site) -> str:
    """The site's statement on one line, without its comment."""
    node = statement(site)
    if node is None or isinstance(node, BLOCKS):
        return re.sub(r"\s+#[^'\"]*$", "", site.frame.code)
    return first_line(ast.unparse(node))


def loop_over(site: Site) -> str | None:
    """What the `for` statement at the site's line goes over, if that is one tensor's rows."""
    node = statement(site)
    if not isinstance(node, ast.For) or node.lineno != site.frame.line:
        return None
    over = node.iter
    if (
        isinstance(over, ast.Call)
        and isinstance(over.func, ast.Name)
        and over.func.id in {"zip", "enumerate"}
        and over.args
    ):
        over = over.args[0]
    return ast.unparse(over) if isinstance(over, (ast.Name, ast.Attribute)) else None


def assigned_names(site: Site) -> list[str]:
    """The targets of the assignment at the site's line: `out` and `h` of `out, h = f(x)`."""
    node = statement(site)
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = list(node.targets)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        targets = [node.target]
    found = []
    while targets:
        target = targets.pop(0)
        if isinstance(target, (ast.Tuple, ast.List)):
            targets = [*target.elts, *targets]
        elif isinstance(target, (ast.Name, ast.Attribute, ast.Subscript)):
            found.append(ast.unparse(target))
    return found


def holds_from(site: Site, path: str, line: int) -> bool:
    """Whether the statement at the site's line has the value that `path` has at a later `line`.

    Only what the function itself assigns is looked at: it has given the first name of the path a
    value before the statement, or as an argument, and no part of the path one from there on.
    """
    root = re.split(r"[.\[]", path)[0]
    scope = syntax.around(site.frame.file, site.frame.line)
    node = statement(site)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    within: list[ast.AST] = [one for one in around(site) if isinstance(one, functions)]
    if node is None or scope is None or not root.isidentifier():
        return False
    is_known = False
    for part in ast.walk(within[-1] if within else scope):
        if isinstance(part, ast.arg):
            is_known = is_known or part.arg == root
            continue
        kinds = (ast.Name, ast.Attribute, ast.Subscript)
        if not isinstance(part, kinds) or not isinstance(part.ctx, ast.Store):
            continue
        text = ast.unparse(part)
        if text == root and part.lineno < node.lineno:
            is_known = True
        if node.lineno <= part.lineno < line and re.match(rf"{re.escape(text)}(?![\w])", path):
            return False
    return is_known


def names_read_again(site: Site) -> list[str]:
    """The variables that the assignment at the site's line also reads: `h` of `o, h = f(x, h)`."""
    value = getattr(statement(site), "value", None)
    read = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)} if value is not None else {}
    return [name for name in assigned_names(site) if name in read]
