"""Where a grad mode or inference mode was entered, as a person sees it: the `with`, the decorator.

Works on frames and source text; knows no tensor and no recording.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence

from gradext.base import source_lines
from gradext.diagnosis.model import Frame, Site
from gradext.source import sites, statements, syntax

# The names under which torch's context managers are called in a stack, innermost first.
_ENTERS = {
    "inference_mode.__enter__": "inference_mode",
    "no_grad.__enter__": "no_grad",
    "set_grad_enabled.__init__": "set_grad_enabled",
    "set_grad_enabled.__enter__": "set_grad_enabled",
    "enable_grad.__exit__": "enable_grad",
}
_DECORATED = "decorate_context"


@dataclasses.dataclass(frozen=True)
class Mode:
    """How a mode came to be on at some line.

    Attributes:
        name: "no_grad", "inference_mode", "set_grad_enabled" or "forward" (of a Function).
        how: "with", "decorator", "call" (inside a library or an autograd.Function),
            "switch" (a bare call, in force until it is switched back; also
            `stack.enter_context(no_grad())`, in force until the stack is closed),
            "suspended" (a `with` block of a generator or coroutine that waits within it, while
            others run on its thread).
        site: the `with`, decorator or call.
        inside: the line within the block, or within the decorated function, that was running.
    """

    name: str
    how: str
    site: Site
    inside: Site | None


def find(
    entered: Sequence[Frame], running: Sequence[Frame], *, in_function: bool = False
) -> Mode | None:
    """The mode that was entered at one stack and was on at another; both innermost first."""
    if not entered:
        return None
    name = "forward" if in_function else _name(entered)
    if in_function:
        site = sites.site(entered, label=_function_label(entered))
        return None if site is None else Mode(name, "call", site, site)
    decorated = next((k for k, f in enumerate(entered) if _is_decorator(f)), None)
    if decorated is not None and not any(frame.is_user for frame in entered[:decorated]):
        found = _of_decorator(name, entered, decorated, running)
        if found is not None:
            return found
    site = sites.site(entered, label=_label(name))
    if site is None:
        return None
    inside = _same_frame(site, entered, running)
    how = "with" if _is_with(site) else "switch"
    if how == "with" and inside is None and site.frame.is_user:
        outer = _around(entered, running)
        if outer is not None:
            site, inside = outer
        elif _waits_within(site):
            how = "suspended"
    elif how == "switch" and inside is None and site.frame.is_user:
        outer = _of_class(entered, running)
        if outer is not None:
            how, (site, inside) = "with", outer
    if how in ("with", "suspended"):
        # The instruction's place is that of the whole block.
        end = (site.frame.column or 0) + len(site.frame.code)
        header = dataclasses.replace(site.frame, end_line=site.frame.line, end_column=end)
        site = dataclasses.replace(site, frame=header)
    if any(f.function.rsplit(".", 1)[-1] not in ("__enter__", "__init__") for f in site.stack):
        # A library's function runs the program's, or it has returned and left the mode on.
        is_running = inside is not None and sites.line_of(inside) == sites.line_of(site)
        how = "call" if is_running else "switch"
    return Mode(name, how, site, inside)


def _name(entered: Sequence[Frame]) -> str:
    """The outermost of torch's own frames: no_grad calls set_grad_enabled."""
    found = None
    for frame in entered[:6]:
        if frame.is_user or _is_decorator(frame):
            break
        function = frame.function
        for known, name in _ENTERS.items():
            # Python 3.10 has no qualified names.
            short = function == known.rsplit(".", 1)[-1] and frame.file.endswith("grad_mode.py")
            if function == known or (short and found is None):
                found = name
                break
    return found or "no_grad"


def _is_decorator(frame: Frame) -> bool:
    return not frame.is_user and frame.function.rsplit(".", 1)[-1] == _DECORATED


def _label(name: str) -> str:
    if name == "set_grad_enabled":
        return "switches grad mode off"
    return f"enters {name}"


def _function_label(entered: Sequence[Frame]) -> str:
    if any(f.file.replace("\\", "/").endswith("torch/utils/checkpoint.py") for f in entered):
        return "the reentrant checkpoint runs this without a graph"
    return "forward() of the Function runs without a graph"


def _of_decorator(
    name: str, entered: Sequence[Frame], at: int, running: Sequence[Frame]
) -> Mode | None:
    """The decorated function is the frame that the wrapper called."""
    outer = len(entered) - at  # the wrapper and what lies above it
    index = len(running) - outer - 1
    if index < 0:
        return None
    # The wrapper has moved on within itself since.
    wrapper = running[index + 1]
    if wrapper.file != entered[at].file or wrapper.function != entered[at].function:
        return None
    inner = running[index]
    if not inner.is_user:
        site = sites.site(entered, label=f"calls {inner.function}, which runs under {name}")
        if site is None or not site.frame.is_user:
            return None
        return Mode(name, "call", site, site)
    place = _decorator_frame(inner, name)
    site = Site(frame=place, callers=tuple(f for f in entered[at:] if f.is_user))
    site = dataclasses.replace(site, label=f"{_label(name)} for the whole of `{inner.function}`")
    return Mode(name, "decorator", site, sites.site(running[index:]))


def _decorator_frame(inner: Frame, name: str) -> Frame:
    """The decorator's line; the `def` where it cannot be told."""
    lines = source_lines.getlines(inner.file)
    best: ast.FunctionDef | ast.AsyncFunctionDef | None = None
    for node in syntax.statements(inner.file, inner.line):
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name == inner.function.rsplit(".", 1)[-1]
            and node.lineno <= inner.line
        ):
            best = node
    if best is None:
        return inner
    decorators = [d for d in best.decorator_list if name in ast.unparse(d)]
    decorators = decorators or best.decorator_list
    if not decorators:
        return dataclasses.replace(
            inner,
            line=best.lineno,
            code=lines[best.lineno - 1].strip(),
            column=None,
            end_line=None,
            end_column=None,
        )
    found = decorators[0]
    return dataclasses.replace(
        inner,
        line=found.lineno,
        code=lines[found.lineno - 1].strip(),
        column=found.col_offset,
        end_line=found.end_lineno,
        end_column=found.end_col_offset,
    )


def _is_with(site: Site) -> bool:
    node = statements.statement(site)
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return True
    # `with` in the middle of an expression of several lines, or code that cannot be read.
    return node is None and site.frame.code.startswith(("with ", "async with "))


def _around(entered: Sequence[Frame], running: Sequence[Frame]) -> tuple[Site, Site] | None:
    """The caller's `with frozen():`, where frozen() is a context manager that enters the mode."""
    for index, frame in enumerate(entered):
        if not frame.is_user:
            continue
        site = sites.site(entered[index:], label="enters a context manager that switches it off")
        if site is None or not _is_with(site):
            continue
        inside = _same_frame(site, entered, running)
        if inside is not None:
            return site, inside
    return None


def _of_class(entered: Sequence[Frame], running: Sequence[Frame]) -> tuple[Site, Site] | None:
    """The caller's `with Frozen(net):`, where `__enter__` of that class switched the mode.

    None for a line below the block: `__exit__` has left the mode on then, or another switch has.
    """
    outer = _around(entered, running)
    if outer is None:
        return None
    site, inside = outer
    called = entered[entered.index(site.frame) - 1]
    block = statements.statement(site)
    if called.function.rpartition(".")[2] not in ("__enter__", "__init__"):
        return None
    if not isinstance(block, (ast.With, ast.AsyncWith)):
        return None
    last = block.end_lineno or block.lineno
    return outer if block.lineno < inside.frame.line <= last else None


def _waits_within(site: Site) -> bool:
    """Whether the `with` block at the site yields or awaits."""
    node = statements.statement(site)
    if not isinstance(node, (ast.With, ast.AsyncWith)):
        return False
    pending: list[ast.AST] = list(node.body)
    while pending:
        part = pending.pop()
        if isinstance(part, (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith)):
            return True
        if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += ast.iter_child_nodes(part)
    return False


def _same_frame(site: Site, entered: Sequence[Frame], running: Sequence[Frame]) -> Site | None:
    """What the frame that entered the mode was running."""
    at = next((k for k, frame in enumerate(entered) if frame == site.frame), None)
    if at is None:
        return None
    index = len(running) - (len(entered) - at)
    if index < 0 or index >= len(running):
        return None
    frame = running[index]
    if frame.file != site.frame.file or frame.function != site.frame.function:
        return None
    return sites.site(running[index:], label="")
