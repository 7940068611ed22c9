"""The statements around a line of a source file, without parsing the whole of a long one.

A file of 13,000 lines takes a fifth of a second to parse and as long again to walk. What a
diagnosis asks about is a line that has run and the function around it: so the function's own lines
are cut out by their indentation and parsed alone. Where the cut does not parse, the file is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from gradext.base import source_lines

_SHORT = 1000  # lines: a file of so many is parsed as it is
_MOST_LINES = 16_000  # of all trees that are kept: a tree takes about a kilobyte for each line
_DEF = re.compile(r"[ \t]*(?:async[ \t]+)?def[ \t]")
_HEADER = re.compile(r"[ \t]*(?:(?:async[ \t]+)?def|class)[ \t]")

_Key = tuple[str, int, int]
# By file and lines: the list of linecache's that it was made from, to know when the file is read
# anew, and the tree; the one that was asked for last is the last. Several threads may fail at once,
# and each step below is one that no other thread can come between.
_trees: dict[_Key, tuple[list[str], ast.Module | None]] = {}
# By file and line: what the tree of the line is made from. The lines around one are read one by one
# to find it, and a diagnosis asks about a few lines again and again.
_parts: dict[tuple[str, int], tuple[list[str], tuple[int, int]]] = {}
_MOST_PARTS = 4096


def around(file: str, line: int) -> ast.Module | None:
    """A tree with every statement that holds `line`; None where the file cannot be parsed.

    Of a long file, only the function that the line is in (the outermost of nested ones), with its
    decorators, or the statement at the top of the file.
    """
    lines = source_lines.getlines(file)
    if not lines:
        return None
    if len(lines) <= _SHORT:
        return _tree(file, lines, 0, len(lines))
    known = _parts.get((file, line))
    if known is not None and known[0] is lines:
        return _tree(file, lines, *known[1])
    tree, part = None, (0, len(lines))
    for first, last in _cuts(lines, line):
        tree = _tree(file, lines, first, last)
        if tree is not None and _holds(tree, line):
            part = first, last
            break
    else:
        tree = _tree(file, lines, *part)
    if len(_parts) >= _MOST_PARTS:
        _parts.clear()
    _parts[file, line] = lines, part
    return tree


def statements(file: str, line: int, column: int | None = None) -> list[ast.stmt]:
    """The statements that hold `line`, outermost first; decorators are held by what they decorate.

    Args:
        column: in characters; tells those of one line apart, `a.tanh_(); b.exp_()`.
    """
    tree = around(file, line)
    if tree is None:
        return []
    if column is not None:  # ast counts bytes of UTF-8
        column = len(source_lines.getline(file, line)[:column].encode("utf-8", "replace"))
    return list(_down(tree, line, column))


def span(node: ast.stmt) -> tuple[int, int]:
    """First and last line, with decorators."""
    decorators = getattr(node, "decorator_list", ())
    first = min([node.lineno, *(item.lineno for item in decorators)])
    return first, node.end_lineno or node.lineno


def _down(tree: ast.AST, line: int, column: int | None = None) -> Iterator[ast.stmt]:
    at: ast.AST | None = tree
    while at is not None:
        inner = None
        pending = list(ast.iter_child_nodes(at))
        while pending and inner is None:
            child = pending.pop()
            if isinstance(child, ast.stmt):
                first, last = span(child)
                if first <= line <= last and not _begins_behind(child, line, column):
                    inner = child
            elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                pending += ast.iter_child_nodes(child)
        if inner is not None:
            yield inner
        at = inner


def _begins_behind(node: ast.stmt, line: int, column: int | None) -> bool:
    return column is not None and node.lineno == line and node.col_offset > column


def _holds(tree: ast.Module, line: int) -> bool:
    """Whether a statement that does something is there: not a text that the cut ends in."""
    found = list(_down(tree, line))
    if not found:
        return False
    last = found[-1]
    is_text = isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)
    return not (is_text and last.end_lineno != last.lineno)


def _tree(file: str, lines: list[str], first: int, last: int) -> ast.Module | None:
    """The tree of lines[first:last], numbered as in the file."""
    key = (file, first, last)
    known = _trees.get(key)
    if known is not None and known[0] is lines:
        _trees.pop(key, None)
        _trees[key] = known
        return known[1]
    text = "".join(lines[first:last])
    is_inner = lines[first][:1] in (" ", "\t")
    try:
        tree: ast.Module | None = ast.parse(f"if 1:\n{text}" if is_inner else text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is not None and (first or is_inner):
        ast.increment_lineno(tree, first - is_inner)
    if tree is not None and is_inner:
        wrapper = tree.body[0]
        tree = ast.Module(wrapper.body if isinstance(wrapper, ast.If) else tree.body, [])
    _trees[key] = (lines, tree)
    by_age = list(_trees)
    kept = sum(last - first for _, first, last in by_age)
    for old in by_age[:-1]:
        if kept > _MOST_LINES and _trees.pop(old, None) is not None:
            kept -= old[2] - old[1]
    return tree


def _cuts(lines: list[str], line: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1), from 0, of what may be the whole of the function around a line."""
    at = min(line, len(lines)) - 1
    # The headers above, each further out than the one before: a function, its class, ...
    width, headers = indent(lines[at]), []
    if _HEADER.match(lines[at]) or lines[at].lstrip().startswith("@"):
        width += 1  # the header itself, or a decorator
        while at < len(lines) - 1 and lines[at].lstrip().startswith("@"):
            at += 1
    for number in range(at, -1, -1):
        text = lines[number]
        if _is_blank(text) or indent(text) >= width or not _HEADER.match(text):
            continue
        width = indent(text)
        headers.append(number)
        if width == 0:
            break
    # From the outside in, past the classes.
    outermost = next((n for n in reversed(headers) if _DEF.match(lines[n])), None)
    if outermost is None:
        first = at
        while first > 0 and (_is_blank(lines[first]) or indent(lines[first]) > 0):
            first -= 1
    else:
        first = outermost
        width = indent(lines[first])
        # Its decorators, which may take several lines each: `)` closes one.
        for number in range(first - 1, -1, -1):
            text = lines[number]
            if text.lstrip().startswith("@") and indent(text) == width:
                first = number
            elif not _is_blank(text) and indent(text) <= width and text.lstrip()[0] not in ")]}":
                break
    inside = indent(lines[first])
    last, tries = max(at, outermost or first) + 1, 0
    while last < len(lines) and tries < 4:
        if not _is_blank(lines[last]) and indent(lines[last]) <= inside:
            yield first, last
            tries += 1
        last += 1
    if tries < 4:
        yield first, len(lines)


def indent(text: str) -> int:
    """How many spaces and tabs a line begins with."""
    return len(text) - len(text.lstrip(" \t"))


def _is_blank(text: str) -> bool:
    rest = text.strip()
    return not rest or rest.startswith("#")
