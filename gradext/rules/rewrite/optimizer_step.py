"""A write by an optimizer's step(): which line called it, and what it steps along."""

from __future__ import annotations

import ast
import itertools
import re

from gradext.diagnosis.model import Frame, Site
from gradext.source import statements


def is_optimizer_step(site: Site) -> bool:
    """Whether the write was an optimizer's, torch's or one of a class of the user's."""
    if any(
        "/torch/optim/" in frame.file.replace("\\", "/")
        or (frame.function.rsplit(".", 1)[-1] == "step" and not frame.is_user)
        for frame in site.stack
    ):
        return True
    return _own_step(site) is not None


def _own_step(site: Site) -> Frame | None:
    """The line that called a `step()` which the user wrote, where the write is within it."""
    frames = (site.frame, *site.callers)
    for inner, outer in itertools.pairwise(frames):
        if inner.function.rsplit(".", 1)[-1] == "step" and ".step(" in outer.code:
            return outer
    return None


def step_frame(site: Site) -> Frame:
    """Where the optimizer's step() was called."""
    return _own_step(site) or site.frame


def step_call(site: Site) -> str:
    """`judge_opt.step()` as it stands in the line."""
    code = step_frame(site).code
    found = re.search(r"[\w.\[\]\(\)'\"]*\.step\([^()]*\)", code)
    return found[0] if found else code or "the optimizer's step()"


def is_step_along(step: Site, grad: Site) -> bool:
    """Whether a line adds to the very tensor that a call of autograd.grad differentiated by."""
    node, call = statements.statement(step), statements.statement(grad)
    value = getattr(node, "value", None)
    if node is None or call is None or not isinstance(value, ast.expr):
        return False
    inputs: set[str] = set()
    for part in ast.walk(call):
        if isinstance(part, ast.Call) and ast.unparse(part.func).rsplit(".", 1)[-1] == "grad":
            given = [k.value for k in part.keywords if k.arg == "inputs"] or part.args[1:2]
            for item in given:
                inputs |= {ast.unparse(n) for n in ast.walk(item) if isinstance(n, ast.expr)}
    terms = [value] if not isinstance(node, ast.AugAssign) else [value, node.target]
    direct: set[str] = set()
    while terms:
        term = terms.pop()
        if isinstance(term, ast.BinOp) and isinstance(term.op, (ast.Add, ast.Sub)):
            terms += [term.left, term.right]
        elif isinstance(term, (ast.Name, ast.Attribute, ast.Subscript)):
            direct.add(ast.unparse(term))
    return bool(inputs & direct)
