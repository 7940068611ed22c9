"""The words for what a function's cache keeps: an inference tensor, or a graph that is used up.

An inference tensor cannot be exchanged there: the line that fails takes a copy of what the cached
function hands out; or the cache is emptied, if there is a line below the mode's block that is
always reached.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator

from gradext.diagnosis.model import Site
from gradext.rules.rewrite import carried
from gradext.source import mode_blocks, sites, statements


def function_of(holder: str | None) -> str | None:
    """`rope.tables` of `rope.tables.<lru_cache>[1]`; None for what no such cache keeps."""
    found = re.match(r"(.+)\.<lru_cache>", holder or "")
    return found[1] if found is not None else None


def kept_by_decorator(made: Site) -> str | None:
    """How to let a cached function compute again: "`@property` in place of ..., at line 16".

    None where no cache of functools is on one of the functions that the tensor was made in.
    """
    for frame in (made.frame, *made.callers):
        function = next(
            (
                node
                for node in reversed(statements.around(Site(frame)))
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            ),
            None,
        )
        if function is None or frame.function.rpartition(".")[2] != function.name:
            continue
        for decorator in function.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            name = ast.unparse(called).rpartition(".")[2]
            if name not in carried.CACHES:
                continue
            text = f"`@{ast.unparse(decorator)}`"
            at = sites.where(dataclasses.replace(frame, line=decorator.lineno))
            if name == "cached_property":
                return f"`@property` in place of {text}, at {at}"
            return f"{function.name}() without {text}, at {at}"
    return None


def copied(function: str, victim: Site | None) -> str | None:
    """A copy of what the cached function returns, at the line that failed."""
    node = statements.statement(victim) if victim is not None else None
    if node is None or victim is None or isinstance(node, statements.BLOCKS):
        return None
    short = function.rpartition(".")[2]
    calls = {
        ast.unparse(part)
        for part in ast.walk(node)
        if isinstance(part, ast.Call)
        and ast.unparse(part.func).rpartition(".")[2] == short
        and not (isinstance(node, ast.Assign) and part is node.value)
    }
    if len(calls) != 1:
        return None
    call = calls.pop()
    line = sites.where(victim.frame)
    return f"take a normal copy, at {line}: `{call}.clone()` in place of `{call}`"


def cleared(function: str, made: Site | None, mode: mode_blocks.Mode | None) -> str | None:
    """Where the cache can be emptied for good; None where no line below the block is sure to run,
    or where the cached function itself enters the mode and would do so again."""
    if mode is None or mode.how != "with" or made is None:
        return None
    node, place = statements.statement(mode.site), mode.site.frame
    short = function.rpartition(".")[2]
    if place.function.rpartition(".")[2] == short or not isinstance(node, ast.With):
        return None
    if any(True for _ in _leaves(node.body)):
        return None
    return f"forget what the cache kept, after that block: `{function}.cache_clear()`"


_LEAVING = (ast.Return, ast.Raise, ast.Break, ast.Continue)


def _leaves(body: list[ast.stmt], in_loop: bool = False) -> Iterator[ast.stmt]:
    """The statements that leave a block before its end."""
    for node in body:
        leaving = (ast.Return, ast.Raise) if in_loop else _LEAVING
        if isinstance(node, leaving):
            yield node
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        loops = in_loop or isinstance(node, (ast.For, ast.AsyncFor, ast.While))
        for _, inner in ast.iter_fields(node):
            if isinstance(inner, list):
                yield from _leaves([n for n in inner if isinstance(n, ast.stmt)], loops)
                for part in inner:
                    if isinstance(part, (ast.ExceptHandler, ast.match_case)):
                        yield from _leaves(part.body, loops)
