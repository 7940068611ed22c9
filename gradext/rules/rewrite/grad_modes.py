"""How a line that runs under no_grad, or inference_mode, comes to run with grad mode on.

Works on source text and frames only.
"""

from __future__ import annotations

import ast
import dataclasses

from gradext.diagnosis.model import Site
from gradext.source import mode_blocks, sites, statements


def switched_on(mode: mode_blocks.Mode, site: Site, asks: Site | None) -> str:
    """For a mode of a `with` block or a decorator.

    Args:
        site: the line of the block, or of the decorated function, that made the value.
        asks: the call of backward().
    """
    at, line = sites.where(mode.site.frame), sites.where(site.frame)
    text = statements.text_of(site)
    entered = "inference_mode(False)" if mode.name == "inference_mode" else "enable_grad()"
    within = f"`with torch.{entered}:` around `{text}` ({line})"
    if asks is not None and _runs_below(asks, site):
        # backward() itself runs within what that line calls: a closure, a callback.
        what = "the decorator" if mode.how == "decorator" else "the block"
        return f"run it with grad mode on: {within}; the rest of what {what} at {at} is for stays"
    if mode.how == "decorator":
        name = mode.site.label.rsplit("`", 2)[-2] if mode.site.label.count("`") > 1 else ""
        spoken = f"`{name}`" if name else "the function"
        return (
            f"take the decorator at {at} off {spoken}, whose result is trained through; or only "
            f"run that line with grad mode on: {within}"
        )
    block = _block_at(site, mode)
    if block is None:
        return f"run it with grad mode on: {within}"
    asked_for = _condition(block)
    if asked_for is not None:
        return (
            f"let `{asked_for}` ({at}) be true where the result is trained through: it was false, "
            "and switched grad mode off"
        )
    inside = [node for node in block.body if node.lineno <= site.frame.line]
    is_asked_there = asks is not None and _is_in(asks, site, block)
    if is_asked_there or not _is_line_of(inside[-1], site):
        return f"run it with grad mode on: {within}, in the block that begins at {at}"
    goes = len(block.items) == 1 and not _uses_its_name(block)
    # A block that nothing is left in is a SyntaxError.
    emptied = ", and leave `pass` in it"
    if len(block.body) == 1 and goes:
        header = ast.unparse(block).partition("\n")[0]
        return f"take `{header}` ({at}) away, and leave `{text}` ({line}) without it"
    last = _last_made_of(inside[-1], block.body[len(inside) :])
    if last is not None:
        whole = len(inside) == 1 and last is block.body[-1]
        if whole and goes:
            header = ast.unparse(block).partition("\n")[0]
            return f"take `{header}` ({at}) away, and leave the lines of its block without it"
        end = dataclasses.replace(site.frame, line=last.end_lineno or last.lineno)
        told = (
            f"move the lines from {line} to {sites.where(end)} out of the block that begins at {at}"
            f"{emptied if whole else ''}"
        )
    else:
        told = f"move `{text}` ({line}) out of the block that begins at {at}"
        told += emptied if len(block.body) == 1 else ""
    needed = [n for n in inside[:-1] if _stores(n) & _loads(inside[-1])]
    if needed:
        made = f"`{statements.first_line(ast.unparse(needed[-1]))}`"
        told += f"; and {made} too, if a gradient is to reach what it uses"
    return told


def _uses_its_name(block: ast.With | ast.AsyncWith) -> bool:
    """Whether the lines of a block compute with what its `as` gives a name: they need the block."""
    given: set[str] = set()
    for item in block.items:
        if item.optional_vars is not None:
            names = ast.walk(item.optional_vars)
            given |= {node.id for node in names if isinstance(node, ast.Name)}
    return any(given & _loads(node) for node in block.body)


def _condition(block: ast.With | ast.AsyncWith) -> str | None:
    """`training` of `with torch.set_grad_enabled(training):`; None where it says False itself."""
    for item in block.items:
        call = item.context_expr
        if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith(
            "set_grad_enabled"
        ):
            continue
        given = [*call.args, *(word.value for word in call.keywords)]
        if len(given) == 1 and not isinstance(given[0], ast.Constant):
            return ast.unparse(given[0])
    return None


def _last_made_of(node: ast.stmt, later: list[ast.stmt]) -> ast.stmt | None:
    """The last of the statements below one in its block that compute with what it gives a name."""
    made, last = _stores(node), None
    for each in later:
        if made & _loads(each):
            made |= _stores(each)
            last = each
    return last


def _runs_below(asks: Site, site: Site) -> bool:
    place = (site.frame.file, site.frame.function, site.frame.line)
    return any((f.file, f.function, f.line) == place for f in asks.callers)


def _block_at(site: Site, mode: mode_blocks.Mode) -> ast.With | ast.AsyncWith | None:
    for node in statements.around(site):
        if isinstance(node, (ast.With, ast.AsyncWith)) and node.lineno == mode.site.frame.line:
            return node
    return None


def _is_in(asks: Site, site: Site, block: ast.stmt) -> bool:
    frame = asks.frame
    same = (frame.file, frame.function) == (site.frame.file, site.frame.function)
    return same and block.lineno <= frame.line <= (block.end_lineno or block.lineno)


def _is_line_of(node: ast.stmt, site: Site) -> bool:
    is_block = isinstance(node, statements.BLOCKS)
    return not is_block and site.frame.line <= (node.end_lineno or node.lineno)


def _stores(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and type(n.ctx) is ast.Store}


def _loads(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and type(n.ctx) is ast.Load}
