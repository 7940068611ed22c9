"""Modules by the names that reach them, and which one a line within their class can mean.

Looks at the modules that exist; keeps none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.base import raw


def named_modules() -> Iterator[tuple[str, Any]]:
    from gradext.objects import naming, walk

    for path, root in walk.modules():
        yield from naming.submodules(root, path, last_first=True)


def module_with(kind: str, attribute: str) -> tuple[str, bool] | None:
    """(path, whether it is a buffer) of the one module of this class that has the attribute."""
    from gradext.objects import naming

    found = []
    for path, module in named_modules():
        if any(base.__name__ == kind for base in raw.mro_of(type(module))):
            is_buffer = attribute in dict(naming.group_of(module, "_buffers"))
            if is_buffer or attribute in raw.dict_of(module):
                found.append((path, is_buffer))
    # Which of several it is that line does not say.
    return found[0] if len(found) == 1 else None
