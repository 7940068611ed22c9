"""What a line of the program calls the tensors that it works with.

Resolves the names and attributes that stand in the line in the frame that runs it, from
dictionaries alone: no property and no `__getattr__` runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from gradext.base import package, raw
from gradext.objects import naming
from gradext.source import syntax

_GROUPS = ("_parameters", "_buffers", "_modules")
_NOTHING = object()


def tensors_of_line(live: Sequence[Any], line: int | None = None) -> Iterator[tuple[str, Any]]:
    """(text, tensor) of the user's innermost line, outermost expressions first.

    Args:
        live: frames, innermost first. line: of the innermost one of the user's, where that frame
            has gone on since.
    """
    frame = next((f for f in live if package.is_user_file(f.f_code.co_filename)), None)
    if frame is None:
        return
    held = syntax.statements(frame.f_code.co_filename, line or frame.f_lineno)
    names = dict(naming.locals_of(frame))
    seen = set()
    for node in ast.walk(held[-1]) if held else ():
        if not isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            continue
        text = ast.unparse(node)
        value = _value(node, names, frame.f_globals) if text not in seen else _NOTHING
        seen.add(text)
        if value is not _NOTHING and naming.identity_of(value) is not None:
            yield text, value


def _value(node: ast.expr, names: dict[str, Any], space: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names[node.id] if node.id in names else dict.get(space, node.id, _NOTHING)
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, names, space)
        held = raw.dict_of(owner) if owner is not _NOTHING else None
        if type(held) is not dict:
            return _NOTHING
        if node.attr in held:
            return held[node.attr]
        groups = (dict(naming.group_of(owner, group)) for group in _GROUPS)
        return next((g[node.attr] for g in groups if node.attr in g), _NOTHING)
    if isinstance(node, ast.Subscript):
        owner, key = _value(node.value, names, space), _key(node.slice, names, space)
        if type(owner) is dict and type(key) in (str, int) and key in owner:
            return owner[key]
        inside = type(owner) in (list, tuple) and type(key) is int
        return owner[key] if inside and -len(owner) <= key < len(owner) else _NOTHING
    return _NOTHING


def _key(node: ast.expr, names: dict[str, Any], space: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    return _value(node, names, space)
