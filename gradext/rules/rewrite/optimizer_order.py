"""Help for parameters that were made after their optimizer: which line moves below which.

Works on source text through `ast` only.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

from gradext.diagnosis.model import Frame, Site
from gradext.source import sites, statements, syntax


def advice(why: str, made: Site | None, given: Site, optimizer: str) -> str:
    """What to type.

    Args:
        why: "replaced", "late" or "anew" (gx306_untrained). made: the line that made the optimizer.
        given: the line that made new parameters. optimizer: its name.
    """
    at = sites.where(given.frame)
    owner = given.frame.function.rpartition(".")[0].rpartition(".")[2]
    init = f"`{owner}.__init__`" if owner and owner != "<locals>" else "the module's `__init__`"
    if why == "anew":
        return (
            f"make the layer once: move its line ({at}) into {init}, as an attribute of `self` "
            f"(`self.layer = ...`), and call that in forward()"
        )
    moved = order_of(made, given) if made is not None else None
    if moved is not None:
        lines = " and ".join(f"`{text}` (line {line})" for line, text in moved.lines)
        return (
            f"move {lines} below line {moved.below}, so that {optimizer} is made of the parameters "
            "that are trained"
        )
    if why == "late":
        before = f", {sites.where(made.frame)}" if made is not None else ""
        return (
            f"make it before {optimizer} is made: in {init} (`torch.nn.LazyLinear` takes the "
            "number of inputs from the first one that it sees), or run one forward pass above the "
            f"line that makes {optimizer}{before}"
        )
    copied = _copied(given)
    if copied is not None:
        return (
            f"write the new values into the parameter that {optimizer} has, at {at}: "
            f"`with torch.no_grad(): {copied}`"
        )
    name = optimizer.strip("`")
    grown = _grown(made, given, name) if made is not None else None
    if grown is not None:
        return f"give the new parameters to {optimizer}, below {at}: `{grown}`"
    again = again_below(made, given, name) if made is not None else None
    if again is not None:
        text, line = again
        return (
            f"make {optimizer} once more, of the parameters that there are then, below line "
            f"{line}: `{text}`"
        )
    return (
        f"make {optimizer} after {at} has run: an optimizer has the parameters that there are when "
        "it is made"
    )


class Order(NamedTuple):
    """`lines`, (line, text) each, are to be moved below line `below` of the same block."""

    file: str
    lines: list[tuple[int, str]]
    first: list[ast.stmt]
    last: ast.stmt

    @property
    def below(self) -> int:
        return self.last.end_lineno or self.last.lineno


def order_of(made: Site, given: Site) -> Order | None:
    """Which lines go below which, where both stand in one block and nothing between needs them."""
    both = common(made, given)
    if both is None:
        return None
    one, other = both
    held = syntax.statements(one.file, one.line)
    for depth in range(len(held) - 1, -1, -1):
        block = _block_with(one.file, held, depth)
        later = [
            node
            for node in block
            if node.lineno <= other.line <= (node.end_lineno or node.lineno)
            and node is not held[depth]
        ]
        if not later:
            continue
        first, last = block.index(held[depth]), block.index(later[0])
        if not first < last or depth != len(held) - 1:
            return None
        moved = [held[depth]]
        names = _bound(held[depth])
        for node in block[first + 1 : last]:
            if names & _read(node):
                if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.Expr)):
                    return None
                moved.append(node)
                names |= _bound(node)
        if names & _read(later[0]) or not isinstance(held[depth], (ast.Assign, ast.AnnAssign)):
            return None
        lines = [(node.lineno, statements.first_line(ast.unparse(node))) for node in moved]
        return Order(one.file, lines, moved, later[0])
    return None


def of_other(made: Site, model: str) -> str | None:
    """The statement that makes an optimizer, with the parameters of another model."""
    node = statements.statement(made)
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not model.isidentifier():
        return None
    calls = statements.method_calls(node, {"parameters", "named_parameters"})
    if len(calls) != 1 or not isinstance(calls[0].func, ast.Attribute):
        return None
    owner = ast.unparse(calls[0].func.value)
    text = ast.unparse(node)
    old = f"{owner}.{calls[0].func.attr}("
    new = text.replace(old, f"{model}.{calls[0].func.attr}(")
    return new if owner != model and text.count(old) == 1 else None


def again_below(made: Site, given: Site, name: str) -> tuple[str, int] | None:
    """(what makes the optimizer `name`, the line it goes below), of one function."""
    both = common(made, given)
    held = syntax.statements(both[0].file, both[0].line) if both is not None else []
    later = syntax.statements(both[1].file, both[1].line) if both is not None else []
    if not held or not later or not isinstance(held[-1], (ast.Assign, ast.AnnAssign)):
        return None
    if both is None or (both[0] != made.frame and name not in _bound(held[-1])):
        return None
    if later[-1].lineno < held[-1].lineno or isinstance(later[-1], statements.BLOCKS):
        return None
    return ast.unparse(held[-1]), later[-1].end_lineno or later[-1].lineno


def common(made: Site, given: Site) -> tuple[Frame, Frame] | None:
    """The lines of the innermost function that led to both; None where there is none."""
    first = [*reversed((made.frame, *made.callers))]
    second = [*reversed((given.frame, *given.callers))]
    for one, other in zip(first, second, strict=False):
        if (one.file, one.function) != (other.file, other.function):
            return None
        if one.line != other.line:
            return one, other
    return None


def _block_with(file: str, held: list[ast.stmt], depth: int) -> list[ast.stmt]:
    """The statements of the block that held[depth] is of."""
    parent: ast.AST | None = held[depth - 1] if depth else syntax.around(file, held[0].lineno)
    for _, value in ast.iter_fields(parent) if parent is not None else ():
        if isinstance(value, list) and held[depth] in value:
            return value
        for item in value if isinstance(value, list) else ():
            body = getattr(item, "body", None)
            if isinstance(item, (ast.ExceptHandler, ast.match_case)) and held[depth] in item.body:
                return body or []
    return []


def _bound(node: ast.stmt) -> set[str]:
    return {
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    }


def _read(node: ast.stmt) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _copied(given: Site) -> str | None:
    """`x.weight.copy_(value)` for `x.weight = nn.Parameter(value)`."""
    node = statements.statement(given)
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    target, value = node.targets[0], node.value
    if not isinstance(target, ast.Attribute) or not isinstance(value, ast.Call) or not value.args:
        return None
    if ast.unparse(value.func).rpartition(".")[2] != "Parameter":
        return None
    return f"{ast.unparse(target)}.copy_({ast.unparse(value.args[0])})"


def _grown(made: Site, given: Site, name: str) -> str | None:
    """`opt.add_param_group(...)`, where the line can see the optimizer by its name."""
    node = statements.statement(given)
    if (made.frame.file, made.frame.function) != (given.frame.file, given.frame.function):
        return None
    if not name.isidentifier() or name not in statements.assigned_names(made):
        return None
    targets = statements.assigned_names(given)
    if not isinstance(node, ast.Assign) or len(targets) != 1:
        return None
    return f'{name}.add_param_group({{"params": {targets[0]}.parameters()}})'
