"""The line that saves a tensor, with a copy in its place: what no later write can spoil.

It mends what the write's own line cannot: a write that others are to see, or that is made by code
which is not the user's. Works on source text through `ast` only.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence

from gradext.diagnosis.model import Frame, Site
from gradext.rules.graph_copy import Saved
from gradext.source import bindings, sites, statements, syntax

_LEFT, _RIGHT = {"self", "mat1", "input"}, {"other", "mat2", "exponent", "vec"}
_LONGEST = 100  # characters of a statement that is worth printing whole
_SAVE, _RUN = "save a copy", "run it with copies of its parameters"
_Place = tuple[int, int, int, int]


def saver_copy(
    victims: Sequence[Site],
    culprits: Sequence[Site],
    saved: Saved,
    name: str | None,
    *,
    of_leaf: bool,
) -> str | None:
    """`q @ bank.clone()` for `q @ bank`; None where the text does not show what is saved.

    Args:
        name: of the saved tensor, as something that still runs reaches it: `model.rows.weight`.
        of_leaf: it is a parameter, or a view of one.
    """
    found = expression_of(victims[0].frame) if victims else None
    if found is None:
        return None
    statement, expression, is_exact = found
    place = victims[0]
    written = (frame for culprit in culprits for frame in (culprit.frame, *culprit.callers))
    if any(frame.file == place.frame.file and _holds(expression, frame) for frame in written):
        return None  # written before the line could have made a copy
    if saved.is_output:
        inner = [n for n in ast.walk(expression) if isinstance(n, (ast.Call, ast.BinOp))]
        is_one = is_exact or len(inner) == 1
        return told(statement, [expression], place.frame) if is_one else None
    of_module = "/nn/modules/" in "".join(f.file.replace("\\", "/") for f in place.stack)
    wanted = _named(expression, place, culprits, name)
    if not wanted and is_exact:
        wanted = _operands(expression, saved, of_leaf=of_leaf)
    if not wanted and of_module and of_leaf:
        called = expression if is_exact else _call_of(expression, name)
        return _of_parameters(called, place) if called is not None else None
    return told(statement, wanted, place.frame) if wanted else None


def is_of_line(fix: str) -> bool:
    """Whether a help mends one line that saves, and no other."""
    return fix.startswith((_SAVE, _RUN))


def _of_parameters(expression: ast.expr, place: Site) -> str | None:
    """A module run with copies of its parameters, through which gradients reach them."""
    if not isinstance(expression, ast.Call):
        return None
    called = expression.func
    if not isinstance(called, (ast.Name, ast.Attribute, ast.Subscript)):
        return None
    if expression.keywords or any(isinstance(a, ast.Starred) for a in expression.args):
        return None
    module = ast.unparse(called)
    given = "".join(f"{ast.unparse(argument)}, " for argument in expression.args).rstrip()
    copies = f"{{k: p.clone() for k, p in {module}.named_parameters()}}"
    return (
        f"{_RUN}, at {sites.where(place.frame)}: "
        f"`torch.func.functional_call({module}, {copies}, ({given}))` in place of "
        f"`{ast.unparse(expression)}`"
    )


def told(statement: ast.stmt, wanted: Sequence[ast.expr], frame: Frame) -> str | None:
    """What to type at the line of `frame`, for a copy of each of the wanted expressions."""
    where, whole = sites.where(frame), with_copies(statement, wanted)
    if whole is not None:
        return f"{_SAVE}, at {where}: `{whole}`"
    texts = dict.fromkeys((ast.unparse(_cloned(node)), ast.unparse(node)) for node in wanted)
    changes = [f"`{new}` in place of `{old}`" for new, old in texts if "\n" not in old]
    return f"{_SAVE}, at {where}: {', '.join(changes)}" if len(changes) == len(texts) else None


def with_copies(statement: ast.stmt, wanted: Sequence[ast.expr]) -> str | None:
    """The statement with `.clone()` after some of its expressions; None where it is too long."""
    if isinstance(statement, statements.BLOCKS):
        return None
    text = ast.unparse(_Cloned({_place(node) for node in wanted}).visit(copy.deepcopy(statement)))
    return text if len(text) <= _LONGEST and "\n" not in text else None


class _Cloned(ast.NodeTransformer):
    """Puts `.clone()` after the expressions at some places."""

    def __init__(self, places: set[_Place]) -> None:
        self.places = places

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.expr) and _place(node) in self.places:
            return _cloned(node)
        return node


def _cloned(node: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(node, "clone", ast.Load()), [], [])


def _place(node: ast.expr) -> _Place:
    last, end = node.end_lineno or node.lineno, node.end_col_offset or 0
    return node.lineno, node.col_offset, last, end


def expression_of(frame: Frame) -> tuple[ast.stmt, ast.expr, bool] | None:
    """(statement, what ran of it, True); the statement's whole value and False where Python keeps
    no columns (before 3.11)."""
    held = syntax.statements(frame.file, frame.line, frame.column)
    if not held or not frame.code.isascii():
        return None
    if frame.column is None or frame.end_column is None:
        value = getattr(held[-1], "value", None)
        return (held[-1], value, False) if isinstance(value, ast.expr) else None
    place = (frame.line, frame.column, frame.end_line or frame.line, frame.end_column)
    for node in ast.walk(held[-1]):
        if isinstance(node, ast.expr) and _place(node) == place:
            return held[-1], node, True
    return None


def _call_of(expression: ast.expr, name: str | None) -> ast.expr | None:
    """The call of the module that has the parameter of this name."""
    for node in ast.walk(expression) if name is not None else ():
        if isinstance(node, ast.Call):
            module = ast.unparse(node.func)
            if name is not None and name.startswith((f"{module}.", f"{module}[")):
                return node
    return None


def _holds(expression: ast.expr, frame: Frame) -> bool:
    """Whether a place lies within an expression, or on its one line where columns are unknown."""
    first, start, last, end = _place(expression)
    if frame.column is None:
        return first <= frame.line <= last
    return (first, start) <= (frame.line, frame.column) < (last, end)


def _named(
    expression: ast.expr, place: Site, culprits: Sequence[Site], name: str | None
) -> list[ast.expr]:
    """The parts of an expression that are the saved tensor by their text."""
    texts = set()
    for culprit in culprits:
        written = bindings.written_name(culprit)
        if written is not None and _same_scope(culprit.frame, place.frame, written):
            texts.add(written)
    named = [node for node in _parts(expression) if ast.unparse(node) in texts]
    if named or name is None:
        return named
    return [node for node in _parts(expression) if _is_path(node, name, place.frame)]


def _operands(expression: ast.expr, saved: Saved, *, of_leaf: bool) -> list[ast.expr]:
    """The parts of an expression that are the saved tensor by where they stand."""
    if isinstance(expression, ast.BinOp):
        side = expression.left if saved.attribute in _LEFT else None
        side = expression.right if saved.attribute in _RIGHT else side
        if side is None or isinstance(side, ast.Constant):
            return []
        both = (expression.left, expression.right)
        return [node for node in both if ast.unparse(node) == ast.unparse(side)]
    if isinstance(expression, ast.Call) and not of_leaf and not expression.keywords:
        owner = expression.func
        plain = isinstance(owner, ast.Name) or statements.is_namespace(owner)
        if isinstance(owner, ast.Attribute):
            plain = plain or ast.unparse(owner).startswith("self.")
        given = [a for a in expression.args if not isinstance(a, (ast.Constant, ast.Starred))]
        if plain and len(given) == 1 and len(expression.args) == 1:
            return given
    return []


def _parts(expression: ast.expr) -> Iterator[ast.expr]:
    """Names, attributes and items that are read in an expression, the outermost ones only."""
    pending: list[ast.AST] = [expression]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            yield node
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            pending += [node.func.value, *node.args, *(k.value for k in node.keywords)]
            continue
        if isinstance(node, ast.Call):
            pending += [*node.args, *(k.value for k in node.keywords)]
            continue
        if not isinstance(node, (ast.Lambda, ast.ListComp, ast.GeneratorExp, ast.DictComp)):
            pending += ast.iter_child_nodes(node)


def _same_scope(first: Frame, second: Frame, name: str) -> bool:
    """Whether a name means the same in two functions: a local's own, `self.x` in its class's."""
    if first.file != second.file:
        return False
    if first.function == second.function:
        return True
    classes = [f.function.rpartition(".")[0] for f in (first, second)]
    return name.startswith("self.") and bool(classes[0]) and classes[0] == classes[1]


def _is_path(node: ast.expr, name: str, frame: Frame) -> bool:
    """Whether `self.rows.weight` in a line is what is known as `model.table.rows.weight`."""
    text = ast.unparse(node)
    if isinstance(node, ast.Name):
        return text == name and frame.function == "<module>"
    owner, _, rest = text.partition(".")
    if owner == "self" and rest:
        return name == text or name.endswith(f".{rest}")
    return text == name
