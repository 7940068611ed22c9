"""A write by an optimizer's step(): which line called it, and what it steps along."""

from __future__ import annotations

import ast
import itertools
import re
import types

from gradext.base import raw
from gradext.diagnosis.model import Frame, Site
from gradext.source import statements

_PLAIN = (types.FunctionType,)


def is_optimizer_step(site: Site, *, of_leaf: bool = False) -> bool:
    """Whether the write was an optimizer's, torch's or one of a class of the user's.

    Args:
        of_leaf: a parameter was written, without grad mode: what any class with a `step()` does to
            one is a step. An environment's `step()` writes its own state.
    """
    if any("/torch/optim/" in frame.file.replace("\\", "/") for frame in site.stack):
        return True
    if any(
        frame.function.rsplit(".", 1)[-1] == "step" and not frame.is_user and of_leaf
        for frame in site.stack
    ):
        return True
    return _own_step(site, of_leaf) is not None


def _own_step(site: Site, of_leaf: bool = False) -> Frame | None:
    """The line that called a `step()` which the user wrote, where the write is within it."""
    frames = (site.frame, *site.callers)
    for inner, outer in itertools.pairwise(frames):
        is_step = inner.function.rsplit(".", 1)[-1] == "step" and ".step(" in outer.code
        if is_step and (of_leaf or _is_of_optimizer(inner)):
            return outer
    return None


def _is_of_optimizer(frame: Frame) -> bool:
    """Whether a function is the `step` of an optimizer that exists."""
    import torch

    from gradext.objects import naming

    for optimizer in naming.every(torch.optim.Optimizer):
        for kind in raw.mro_of(type(optimizer)):
            function = raw.class_dict(kind).get("step")
            for _ in range(8):  # what decorators have put around it
                held = raw.dict_of(function)
                inner = held.get("__wrapped__") if type(held) is dict else None
                if inner is None:
                    break
                function = inner
            code = getattr(function, "__code__", None) if type(function) in _PLAIN else None
            if code is not None and code.co_filename == frame.file:
                last = max((line for _, _, line in code.co_lines() if line), default=0)
                if code.co_firstlineno <= frame.line <= last:
                    return True
    return False


def step_frame(site: Site) -> Frame:
    """Where the optimizer's step() was called."""
    return _own_step(site, of_leaf=True) or site.frame


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
