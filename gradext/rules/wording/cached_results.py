"""What is said of an inference tensor that a function's lru_cache keeps: it cannot be exchanged.

The line that fails takes a copy of what the cached function hands out; or the cache is emptied, if
there is a line below the mode's block that is always reached.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from gradext.diagnosis.model import Site
from gradext.source import mode_blocks, sites, statements


def function_of(holder: str | None) -> str | None:
    """`rope.tables` of `rope.tables.<lru_cache>[1]`; None for what no such cache keeps."""
    found = re.match(r"(.+)\.<lru_cache>", holder or "")
    return found[1] if found is not None else None


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
