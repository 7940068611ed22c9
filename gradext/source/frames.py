"""Code objects and instructions turned into files, lines and columns, and whose code they are.

Late and in Python: the recorder keeps numbers, and a frame becomes a name only when somebody reads
it. Owns the rule of what is the user's code; knows nothing of tensors.
"""

from __future__ import annotations

import array
import ast
import functools
import itertools
import os
import re
import sys
import types
from collections.abc import Iterable
from typing import Any

from gradext.base import source_lines
from gradext.base.package import is_user_file
from gradext.diagnosis.model import Frame
from gradext.source import syntax

# What stands behind the last frame that was kept of a stack deeper than the recorder goes.
CUT = Frame("<more callers>", 0, "", is_user=False)

_FX_CODE = "<eval_with_key>"  # the file name of code that torch.fx generates


def absolute(file: str) -> str:
    """`file` as an absolute path; made-up names ("<string>") stay."""
    return file if file.startswith("<") else os.path.abspath(file)


def function_name(code: types.CodeType) -> str:
    """The qualified name, "Net.forward"."""
    name: str | None = getattr(code, "co_qualname", None)
    return qualified(code) if name is None else name


_HEADER = re.compile(r"([ \t]*)(?:async[ \t]+)?(def|class)[ \t]+(\w+)")


def qualified(code: types.CodeType) -> str:
    """What Python 3.11 keeps as co_qualname, by the indentation of the source; 3.10 keeps none.

    Where a text of several lines stands further left than the code around it, the plain name.
    """
    lines = source_lines.getlines(code.co_filename)[: code.co_firstlineno]
    if code.co_name == "<module>" or len(lines) < code.co_firstlineno:
        return code.co_name
    parts = [code.co_name]
    indent = syntax.indent(lines.pop())
    for line in reversed(lines):
        if not indent:
            break
        if not line.strip() or line.lstrip().startswith("#") or syntax.indent(line) >= indent:
            continue
        indent = syntax.indent(line)
        header = _HEADER.match(line)
        if header is not None:
            parts += [header[3]] if header[2] == "class" else ["<locals>", header[3]]
    return ".".join(reversed(parts))


def frame_of(code: types.CodeType, instruction: int) -> Frame:
    """The place in `code` of the instruction at byte offset `instruction`."""
    return _frame_of(code, instruction, code.co_filename)


@functools.lru_cache(maxsize=65536)
def _frame_of(code: types.CodeType, instruction: int, _file: str) -> Frame:
    # Code objects that differ in nothing but their file are equal.
    line, end_line, column, end_column = _position(code, instruction)
    name = source_lines.name_of(code)
    file = absolute(name)
    source = source_lines.getline(name, line) if line else ""
    if end_line is not None and end_line > line and (over := _iterated(file, line, end_line)):
        end_line, column, end_column = over
    return Frame(
        file=file,
        line=line or code.co_firstlineno,
        function=function_name(code),
        code=source.strip(),
        column=_characters(source, column),
        end_line=end_line,
        end_column=_characters(
            source if end_line == line else source_lines.getline(name, end_line or 0),
            end_column,
        ),
        is_user=is_user_file(file),
    )


def _iterated(file: str, line: int, end_line: int) -> tuple[int, int, int | None] | None:
    """(end line, columns) of what a `for` statement goes over.

    To take the iterator CPython has one instruction, whose place is the whole statement, body
    included: carets below the body would say that something in it did what the header does.
    """
    for node in syntax.statements(file, line):
        over = node.iter if isinstance(node, (ast.For, ast.AsyncFor)) else None
        is_it = (node.lineno, node.end_lineno) == (line, end_line)
        if over is not None and is_it and over.lineno == line:
            return over.end_lineno or line, over.col_offset, over.end_col_offset
    return None


# Bytes of code whose places are listed once for all its instructions: CPython unpacks them from the
# first one on, each time.
_LONG = 1 << 16


@functools.lru_cache(maxsize=1)
def _places(code: types.CodeType) -> array.array[int]:
    """Four numbers for each instruction, -1 for none: line, end line, column, end column."""
    positions: Any = code
    numbers = itertools.chain.from_iterable(positions.co_positions())  # since 3.11
    return array.array("i", (-1 if number is None else number for number in numbers))


def _position(
    code: types.CodeType, instruction: int
) -> tuple[int, int | None, int | None, int | None]:
    positions = getattr(code, "co_positions", None)
    if positions is not None and instruction >= 0:
        at = instruction // 2
        if code.__sizeof__() > _LONG:
            four = [None if number < 0 else number for number in _places(code)[4 * at : 4 * at + 4]]
        else:
            four = list(next(itertools.islice(positions(), at, None), ()))
        if four and four[0] is not None:
            return four[0], four[1], four[2], four[3]
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line, None, None, None
    return code.co_firstlineno, None, None, None


def _characters(source: str, column: int | None) -> int | None:
    """CPython's columns count bytes of UTF-8; people count characters."""
    if column is None:
        return None
    if source.isascii():
        return column
    return len(source.encode("utf-8", "replace")[:column].decode("utf-8", "replace"))


def stack_of(frames: Iterable[tuple[types.CodeType | None, int]]) -> tuple[Frame, ...]:
    """Frames innermost first; generated fx code is replaced by the user's lines it came from.

    Without code (the recorder keeps so many frames of a stack and no more) CUT is put.
    """
    stack: list[Frame] = []
    for code, instruction in frames:
        if code is None:
            stack.append(CUT)
            continue
        frame = frame_of(code, instruction)
        if frame.file.startswith(_FX_CODE):
            stack.extend(_fx_origin(code, frame.line))
        stack.append(frame)
    return tuple(stack)


def _fx_origin(code: types.CodeType, line: int) -> list[Frame]:
    """The user's frames that an fx graph remembers for a line of its generated code."""
    fx = sys.modules.get("torch.fx.graph_module")
    if fx is None:
        return []
    import gc

    for module in gc.get_referrers(code):
        # A code object is referred to by its function, that by its class, an fx GraphModule's own.
        if not isinstance(module, types.FunctionType):
            continue
        for owner in gc.get_objects():
            # By type: isinstance() asks the object, and a dead weakref.proxy raises when asked.
            if issubclass(type(owner), fx.GraphModule) and type(owner).forward is module:
                return _frames_of_node(owner, line, module.__code__.co_firstlineno)
    return []


def _frames_of_node(module: object, line: int, first: int) -> list[Frame]:
    graph = getattr(module, "graph", None)
    numbers = getattr(module, "_lineno_map", None) or {}
    start = getattr(module, "_prologue_start", 0) or 0
    if graph is None:
        return []
    nodes = list(graph.nodes)
    index = numbers.get(line - start)
    if index is None or not 0 <= index < len(nodes):
        return []
    text = nodes[index].meta.get("stack_trace") or ""
    return list(reversed(frames_in_text(text)))


_PRINTED = re.compile(
    r'File "([^"]+)", line (\d+), in (\S+)'
    r"(?:\n([ \t]+)(.*)(?:\n([ \t]*)([~^]+)[ \t]*(?=\n|$))?)?"
)


def frames_in_text(text: str) -> list[Frame]:
    """The frames of a printed traceback, in its order (outermost first), with their carets."""
    frames = []
    for match in _PRINTED.finditer(text):
        file, line, function, indent, code, before, carets = match.groups()
        file = absolute(file)
        column = end = end_line = None
        source = source_lines.getline(file, int(line)).rstrip("\n")
        if carets and source.strip() == code.strip() and source.isascii() and source.strip():
            # The text has the line without its indent, and the carets stand below it.
            column = len(source) - len(source.lstrip()) + len(before) - len(indent)
            end, end_line = column + len(carets), int(line)
        frames.append(
            Frame(
                file=file,
                line=int(line),
                function=function,
                code=(code or "").strip(),
                column=column,
                end_line=end_line,
                end_column=end,
                is_user=is_user_file(file),
            )
        )
    return frames


def frames_of_traceback(traceback: types.TracebackType | None) -> tuple[Frame, ...]:
    """The frames of a traceback, innermost first."""
    found = []
    while traceback is not None:
        found.append((traceback.tb_frame.f_code, traceback.tb_lasti))
        traceback = traceback.tb_next
    return stack_of(reversed(found))
