"""Edits of source text: found with LibCST, made by replacing ranges, all else byte for byte.

A Source is one file as it is read; an Edit replaces one range of its text. Nothing here writes.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import io
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import libcst as cst


class CannotEdit(ValueError):
    """The source cannot be read or parsed; the text says why."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """Replaces the characters from `start` to `end` (offsets into the text) by `text`."""

    start: int
    end: int
    text: str


class Source:
    """The text of one file, and the syntax tree of it.

    Args:
        path: absolute. data: its bytes.

    Raises:
        CannotEdit: they are no Python source.
    """

    def __init__(self, path: str, data: bytes) -> None:
        import libcst as cst
        from libcst.metadata import MetadataWrapper, PositionProvider

        self.path, self.data = path, data
        try:
            self.encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            self.text = data.decode(self.encoding)
            wrapper = MetadataWrapper(cst.parse_module(self.text), unsafe_skip_copy=True)
        except (SyntaxError, UnicodeDecodeError, LookupError, cst.ParserSyntaxError) as error:
            raise CannotEdit(f"{path} cannot be parsed: {str(error).splitlines()[0]}") from None
        self.module = wrapper.module
        self._ranges = wrapper.resolve(PositionProvider)
        self._walk()

    def _walk(self) -> None:
        """Goes through the tree once: LibCST's own walks take longer than parsing."""
        nodes: list[Any] = []  # each followed by all that is within it
        above: list[int] = []  # of each, where its parent stands
        pending: list[tuple[Any, int]] = [(self.module, -1)]
        while pending:
            node, outer = pending.pop()
            at = len(nodes)
            nodes.append(node)
            above.append(outer)
            pending += [(child, at) for child in reversed(node.children)]
        sizes = [1] * len(nodes)
        for at in range(len(nodes) - 1, 0, -1):
            sizes[above[at]] += sizes[at]
        self._nodes, self._above, self._sizes = nodes, above, sizes
        self._at = {id(node): at for at, node in enumerate(nodes)}

    @functools.cached_property
    def _starts(self) -> list[int]:
        """Offset of each line's first character."""
        starts, at = [0], 0
        # As Python and LibCST count lines; form feeds and the like break none.
        text = self.text
        while at < len(text):
            if text[at] == "\r" and text[at + 1 : at + 2] == "\n":
                at += 1
            if text[at] in "\r\n":
                starts.append(at + 1)
            at += 1
        return starts

    @functools.cached_property
    def newline(self) -> str:
        for line_end in ("\r\n", "\n", "\r"):
            if line_end in self.text:
                return line_end
        return "\n"

    def offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def place(self, offset: int) -> tuple[int, int]:
        """(line from 1, column from 0) of an offset."""
        line = bisect.bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1]

    def lines_of(self, node: cst.CSTNode) -> tuple[int, int]:
        """First and last line of a node."""
        found = self._ranges[node]
        return found.start.line, found.end.line

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        """Offsets of a node, without the parentheses around it."""
        found = self._ranges[node]
        return (
            self.offset(found.start.line, found.start.column),
            self.offset(found.end.line, found.end.column),
        )

    def outer_span(self, node: cst.CSTNode) -> tuple[int, int]:
        """Offsets of a node with the parentheses that are its own."""
        start, end = self.span(node)
        # LibCST gives an expression's range without its own parentheses.
        for _ in getattr(node, "lpar", ()):
            start = self.text.rindex("(", 0, start)
            end = self.text.index(")", end) + 1
        return start, end

    def code(self, node: cst.CSTNode) -> str:
        start, end = self.outer_span(node)
        return self.text[start:end]

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        at = self._at.get(id(node), 0)
        found: cst.CSTNode | None = self._nodes[self._above[at]] if at else None
        return found

    def above(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        at = self.parent(node)
        while at is not None:
            yield at
            at = self.parent(at)

    def nodes(self, root: cst.CSTNode | None = None) -> Iterator[cst.CSTNode]:
        """All nodes within one, itself first."""
        at = 0 if root is None else self._at[id(root)]
        yield from self._nodes[at : at + self._sizes[at]]

    @functools.cached_property
    def _small_statements(self) -> list[tuple[int, int, Any]]:
        """(first line, last line, statement) of each simple statement."""
        import libcst as cst

        small = (node for node in self._nodes if isinstance(node, cst.BaseSmallStatement))
        return [(*self.lines_of(node), node) for node in small]

    def small_statement_at(self, line: int) -> cst.BaseSmallStatement | None:
        """The simple statement that stands on a line: the innermost, of several the first."""
        there = (found for found in self._small_statements if found[0] <= line <= found[1])
        best: Any = min(there, key=lambda found: found[1] - found[0], default=None)
        return None if best is None else best[2]

    def compound_at(self, line: int) -> cst.BaseCompoundStatement | None:
        """The compound statement whose header stands on a line."""
        import libcst as cst

        for node in self.nodes():
            if isinstance(node, cst.BaseCompoundStatement) and self.lines_of(node)[0] == line:
                return node
        return None

    def block_of(self, node: cst.CSTNode) -> tuple[cst.CSTNode, Sequence[Any], int] | None:
        """(the block, its statements, which of them holds `node`) of the innermost block."""
        import libcst as cst

        inner = node
        for outer in self.above(node):
            if isinstance(outer, (cst.IndentedBlock, cst.Module)) and inner in outer.body:
                return outer, outer.body, [*outer.body].index(inner)  # type: ignore[arg-type]
            inner = outer
        return None

    def function_of(self, node: cst.CSTNode) -> cst.CSTNode:
        """The function (or lambda) that a node is in; the module where it is in none."""
        import libcst as cst

        kinds = (cst.FunctionDef, cst.Lambda)
        return next((n for n in self.above(node) if isinstance(n, kinds)), self.module)

    def replace(self, node: cst.CSTNode, text: str) -> Edit:
        return Edit(*self.outer_span(node), text)

    def insert_before(self, statement: cst.BaseSmallStatement, text: str) -> Edit | None:
        """A statement of its own before another one: on a line before it where that can be."""
        import libcst as cst

        start, _ = self.span(statement)
        line_start = self._starts[self.lines_of(statement)[0] - 1]
        indent = self.text[line_start:start]
        if not indent.strip():
            return Edit(start, start, f"{text}{self.newline}{indent}")
        if isinstance(self.parent(statement), (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
            return Edit(start, start, f"{text}; ")  # behind a `;`, or after `if x:`
        return None

    def line_of(self, statement: cst.CSTNode) -> cst.CSTNode | None:
        """The entry of a block that holds a statement: the whole line, or a compound statement."""
        found = self.block_of(statement)
        return None if found is None else found[1][found[2]]

    def insert_lines(self, statement: cst.CSTNode, text: str, *, after: bool) -> Edit | None:
        """Lines before or after the line of a statement, indented like it.

        None where that line is no line of its own (`if x: y()`).
        """
        line = self.line_of(statement)
        if line is None:
            return None
        start, end = self.lines_span(line)
        indent = self.text[start : self.span(line)[0]]
        if indent.strip():
            return None
        lines = "".join(f"{indent}{one}{self.newline}" for one in text.split("\n"))
        if not after:
            return Edit(start, start, lines)
        if not self.text[:end].endswith(("\n", "\r")):
            lines = self.newline + lines
        return Edit(end, end, lines)

    def loops_around(self, node: cst.CSTNode) -> list[Any]:
        """The loops that hold a node within its function, the innermost first."""
        import libcst as cst

        found: list[Any] = []
        for outer in self.above(node):
            if isinstance(outer, (cst.FunctionDef, cst.Lambda, cst.ClassDef)):
                break
            if isinstance(outer, (cst.For, cst.While)):
                found.append(outer)
        return found

    def lines_span(self, statement: cst.CSTNode) -> tuple[int, int]:
        """Offsets of all lines of a statement, its indentation and line end with it."""
        first, last = self.lines_of(statement)
        end = self._starts[last] if last < len(self._starts) else len(self.text)
        return self._starts[first - 1], end

    def applied(self, edits: Iterable[Edit]) -> bytes:
        """The bytes of the file with the edits made.

        Raises:
            CannotEdit: two of them overlap, or the result is no Python source.
        """
        text, before = self.text, len(self.text) + 1
        for edit in sorted(edits, key=lambda e: (e.start, e.end), reverse=True):
            if edit.end > before:
                raise CannotEdit("two edits overlap")
            text, before = text[: edit.start] + edit.text + text[edit.end :], edit.start
        try:
            data = text.encode(self.encoding)
            compile(data, self.path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, UnicodeEncodeError) as error:
            raise CannotEdit(f"the patched text is no Python: {error}") from None
        return data


def is_read_after(source: Source, statement: Any, name: str) -> bool:
    """Whether a name that the statement binds anew is read behind it, by what a rebinding reaches.

    A function's parameter, or a loop's variable, that is bound to a new tensor and read by nobody
    behind it leaves the caller's tensor as it was: the write would be lost. An attribute is read
    through its object, and a global variable by any function.
    """
    import libcst as cst

    function = source.function_of(statement)
    if "." in name or not isinstance(function, cst.FunctionDef):
        in_loop = next((n for n in source.above(statement) if isinstance(n, cst.For)), None)
        if "." in name or in_loop is None or not has_name(source, in_loop.target, name):
            return True
        within: Any = in_loop.body
    else:
        within = function.body
    end = source.span(statement)[1]
    loops = [n for n in source.above(statement) if isinstance(n, (cst.For, cst.While))]
    again = {id(n) for loop in loops for n in source.nodes(loop.body) if loop in source.above(n)}
    for node in source.nodes(within):
        if not isinstance(node, cst.Name) or node.value != name:
            continue
        if isinstance(source.parent(node), (cst.AssignTarget, cst.Param, cst.Arg)):
            outer = source.parent(node)
            if not isinstance(outer, cst.Arg) or outer.keyword is node:
                continue
        is_loop_variable = any(
            has_name(source, loop.target, name) for loop in loops if isinstance(loop, cst.For)
        )
        if source.span(node)[0] >= end:
            return True
        if id(node) in again and not is_loop_variable and node is not statement:
            inside = source.span(statement)[0] <= source.span(node)[0] < end
            if not inside:
                return True
    return False


def has_name(source: Source, node: Any, name: str) -> bool:
    """Whether a name stands somewhere in a node."""
    import libcst as cst

    return any(isinstance(n, cst.Name) and n.value == name for n in source.nodes(node))


def written(source: Source, node: Any) -> str | None:
    """The text of what a name, an attribute or a chain of them denotes; None of anything else."""
    import libcst as cst

    at = node
    while isinstance(at, cst.Attribute):
        at = at.value
    return source.code(node) if isinstance(at, cst.Name) else None
