"""The expression that a frame without columns ran, read in the source.

Code that torch.compile made has lines and no columns, and so has a traceback that was printed. The
statement of the line says more than a caret at its start. Works on text through `ast` only.
"""

from __future__ import annotations

import ast
import dataclasses
import sys

from gradext.base import op_names, source_lines
from gradext.diagnosis.model import Frame
from gradext.source import syntax

# Before 3.11 no frame has columns, and one caret at the line's start stands for all.
_HAS_COLUMNS = sys.version_info >= (3, 11)
_BLOCKS = (
    *(ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
)


def located(frame: Frame, op: str | None = None) -> Frame:
    """`frame` with the columns of what runs on its line, as far as the source tells.

    Args:
        op: the operator, where one is known: of several calls on the line, the one of its name.
    """
    if frame.column is not None or not _HAS_COLUMNS or not frame.is_user:
        return frame
    held = syntax.statements(frame.file, frame.line)
    node = held[-1] if held else None
    if node is None or isinstance(node, _BLOCKS) or not _is_alone(node, held[:-1]):
        return frame
    part = _call_of(node, op, frame.line) or _what_runs(node)
    if part.lineno > frame.line or (part.end_lineno or part.lineno) < frame.line:
        return frame
    end_line, end = part.end_lineno or part.lineno, part.end_col_offset
    if end is None:
        return frame
    code = source_lines.getline(frame.file, part.lineno).strip()
    return dataclasses.replace(
        frame,
        line=part.lineno,
        code=code or frame.code,
        column=_characters(frame.file, part.lineno, part.col_offset),
        end_line=end_line,
        end_column=_characters(frame.file, end_line, end),
    )


def frame_at(file: str, function: str, part: ast.expr) -> Frame:
    """The place of an expression of a file, as a frame that runs it would have it."""
    end_line, end = part.end_lineno or part.lineno, part.end_col_offset
    return Frame(
        file=file,
        line=part.lineno,
        function=function,
        code=source_lines.getline(file, part.lineno).strip(),
        column=_characters(file, part.lineno, part.col_offset),
        end_line=end_line,
        end_column=_characters(file, end_line, end) if end is not None else None,
    )


def _is_alone(node: ast.stmt, around: list[ast.stmt]) -> bool:
    """Whether no other statement begins on the lines of this one: `a = 1; b = 2`."""
    last = node.end_lineno or node.lineno
    for parent in around[-1:]:
        for child in ast.walk(parent):
            if not isinstance(child, ast.stmt) or child is node or child is parent:
                continue
            if node.lineno <= child.lineno <= last:
                return False
    return True


def _call_of(node: ast.stmt, op: str | None, line: int) -> ast.expr | None:
    """The one call on the line that has the operator's name."""
    name = op_names.short(op).split(".", 1)[0] if op else ""
    calls = [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Call)
        and part.lineno <= line <= (part.end_lineno or part.lineno)
        and name == (part.func.attr if isinstance(part.func, ast.Attribute) else "")
    ]
    return calls[0] if len(calls) == 1 else None


def _what_runs(node: ast.stmt) -> ast.expr | ast.stmt:
    """The value of an assignment to a name or of a return; the statement where it writes itself."""
    if isinstance(node, ast.Assign) and not any(
        isinstance(target, ast.Subscript) for target in node.targets
    ):
        return node.value
    if isinstance(node, (ast.Return, ast.AnnAssign, ast.Expr)) and node.value is not None:
        return node.value
    return node


def _characters(file: str, line: int, column: int) -> int:
    """Columns of `ast` count bytes of UTF-8; people count characters."""
    source = source_lines.getline(file, line)
    if source.isascii():
        return column
    return len(source.encode("utf-8", "replace")[:column].decode("utf-8", "replace"))
