"""What a block that runs twice reads and changes itself, as its source says it.

An attribute or a global that a function assigns shows in no op. Works on frames and source text;
touches no tensor.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from gradext.diagnosis.model import Frame, Site
from gradext.source import bindings, sites, statements

_CHANGES = {"append", "extend", "insert", "pop", "popleft", "appendleft", "update", "clear"}


@dataclasses.dataclass(frozen=True)
class State:
    """`self.calls`, and the line of the block that changes it."""

    name: str
    site: Site


def lines_within(stacks: Iterable[Sequence[Frame]]) -> list[Frame]:
    """The user's lines within a checkpointed block, of stacks where something was packed."""
    found: list[Frame] = []
    for stack in stacks:
        packs = itertools.takewhile(_is_torchs, stack)
        inner = itertools.takewhile(lambda f: not _is_torchs(f), stack[len(list(packs)) :])
        found += [frame for frame in inner if frame.is_user]
    return found


def _is_torchs(frame: Frame) -> bool:
    return frame.file.replace("\\", "/").endswith("torch/utils/checkpoint.py")


def changed_by(frames: Sequence[Frame], near: Sequence[Site | None] = ()) -> State | None:
    """What the functions of a block change that they also read elsewhere; None unless it is one.

    Args:
        frames: lines of the block that ran. near: lines whose conditions and values come first.
    """
    found: dict[str, Site] = {}
    read: set[str] = set()
    seen: set[tuple[str, str]] = set()
    for frame in frames:
        function = bindings.function_of(Site(frame=frame)) if frame.is_user else None
        if function is None or (frame.file, frame.function) in seen:
            continue
        seen.add((frame.file, frame.function))
        outer = {n for s in ast.walk(function) for n in _declared(s)}
        for statement in ast.walk(function):
            if not isinstance(statement, ast.stmt) or isinstance(statement, statements.BLOCKS):
                read |= _read(_head(statement), outer) if isinstance(statement, ast.stmt) else set()
                continue
            changes = set(_changed(statement, outer))
            read |= _read(statement, outer) - changes
            for name in changes:
                at = dataclasses.replace(
                    frame,
                    line=statement.lineno,
                    column=statement.col_offset,
                    end_line=statement.end_lineno,
                    end_column=statement.end_col_offset,
                    code=statements.first_line(ast.unparse(statement)),
                )
                label = f"the block itself changes `{name}`"
                found.setdefault(name, Site(frame=at, label=label))
    both = {name: site for name, site in found.items() if name in read}
    for site in near:
        close = _near(site) if site is not None else set()
        chosen = [name for name in both if name in close]
        if len(chosen) == 1:
            return State(chosen[0], both[chosen[0]])
    return State(*next(iter(both.items()))) if len(both) == 1 else None


def mode_between(one: Site | None, other: Site | None) -> Site | None:
    """The `if self.training:` that one of two lines stands in, and the other does not."""
    for site, twin in ((one, other), (other, one)):
        if site is None:
            continue
        held = [] if twin is None else [n.lineno for n in statements.around(twin)]
        for node in reversed(statements.around(site)):
            if isinstance(node, ast.If) and node.lineno not in held:
                text = ast.unparse(node.test)
                if text in ("self.training", "not self.training"):
                    at = dataclasses.replace(
                        site.frame,
                        line=node.test.lineno,
                        column=node.test.col_offset,
                        end_line=node.test.end_lineno,
                        end_column=node.test.end_col_offset,
                        code=f"if {text}:",
                    )
                    return Site(frame=at, label="is another mode in the recompute")
                return None
    return None


def _near(site: Site) -> set[str]:
    """What the site's statement and the conditions around it read."""
    found: set[str] = set()
    for node in statements.around(site):
        if isinstance(node, (ast.If, ast.While)):
            found |= _texts(node.test)
        elif not isinstance(node, statements.BLOCKS):
            found |= _texts(node)
    return found


def _head(statement: ast.stmt) -> ast.AST | None:
    """The part of a compound statement that is on its first line."""
    if isinstance(statement, (ast.If, ast.While)):
        return statement.test
    return statement.iter if isinstance(statement, (ast.For, ast.AsyncFor)) else None


def _texts(node: ast.AST) -> set[str]:
    return {ast.unparse(n) for n in ast.walk(node) if isinstance(n, (ast.Attribute, ast.Name))}


def _read(node: ast.AST | None, outer: set[str]) -> set[str]:
    if node is None:
        return set()
    return {
        ast.unparse(n)
        for n in ast.walk(node)
        if isinstance(n, (ast.Attribute, ast.Name))
        and isinstance(n.ctx, ast.Load)
        and _is_state(n, outer)
    }


def _is_state(node: ast.AST, outer: set[str]) -> bool:
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "self"
    return isinstance(node, ast.Name) and node.id in outer


def _declared(node: ast.AST) -> list[str]:
    return node.names if isinstance(node, (ast.Global, ast.Nonlocal)) else []


def _changed(statement: ast.stmt, outer: set[str]) -> Iterator[str]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = list(statement.targets)
    elif isinstance(statement, (ast.AugAssign, ast.AnnAssign)):
        targets = [statement.target]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = statement.value.func
        if isinstance(called, ast.Attribute) and (
            called.attr in _CHANGES or (called.attr.endswith("_") and called.attr[:1] != "_")
        ):
            targets = [called.value]
    while targets:
        target = targets.pop()
        if isinstance(target, (ast.Tuple, ast.List)):
            targets += target.elts
            continue
        target = bindings.root_of(target)
        if _is_state(target, outer):
            yield ast.unparse(target)


def sentence(state: State) -> str:
    """How a message goes on where it is known what changes."""
    at = sites.where(state.site.frame)
    return (
        f"the block reads `{state.name}` and changes it ({at}) each time that it runs, so the "
        "recompute starts from what the forward had left"
    )


READ_IN_SOURCE = "that it changes shows in no op: it is read in the source of the block"


def advice(state: State) -> str:
    return (
        f"take the change of `{state.name}` ({sites.where(state.site.frame)}) out of what the "
        "checkpoint runs, and make it before or after its call; or hand its value in as an argument"
    )
