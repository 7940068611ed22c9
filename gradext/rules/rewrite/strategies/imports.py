"""A patch that writes `torch.` into a file which does not import torch imports it there."""

from __future__ import annotations

import dataclasses
import re

from gradext.rules.rewrite.strategies.case import Candidate, Sources
from gradext.source import files
from gradext.source.edits import Edit, Source

_USES = re.compile(r"\btorch\.")


def with_torch(sources: Sources, found: Candidate) -> Candidate:
    """The candidate, with an import for each file that needs one."""
    more = []
    for path in dict.fromkeys(path for path, edit in found.edits if _USES.search(edit.text)):
        source = sources.get(path)
        # A piece of code that is no file is run among others, which have imported it.
        if source is None or path.startswith("<"):
            continue
        if not files.knows_torch(source.text):
            more.append((path, _import(source)))
    return dataclasses.replace(found, edits=(*more, *found.edits)) if more else found


def _import(source: Source) -> Edit:
    """`import torch` above the first statement that is no text and no `from __future__`."""
    import libcst as cst

    for line in source.module.body:
        held = line.body[0] if isinstance(line, cst.SimpleStatementLine) else None
        is_text = isinstance(held, cst.Expr) and isinstance(held.value, cst.SimpleString)
        is_future = (
            isinstance(held, cst.ImportFrom)
            and isinstance(held.module, cst.Name)
            and held.module.value == "__future__"
        )
        if not is_text and not is_future:
            decorators = getattr(line, "decorators", ())
            first = decorators[0] if decorators else line
            start = source.lines_span(first)[0]
            return Edit(start, start, f"import torch{source.newline}")
    end = len(source.text)
    return Edit(end, end, f"{source.newline}import torch{source.newline}")
