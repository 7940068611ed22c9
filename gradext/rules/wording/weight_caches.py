"""Weights that `torch.nn.utils.parametrize.cached()` keeps while its block runs.

They have the graph of their first use, which the first backward() within the block uses up.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

from gradext.base import package, source_lines
from gradext.diagnosis.model import Frame, Site
from gradext.rules.wording import loops
from gradext.source import sites, statements


def block_around(made: Sequence[Frame], live: Sequence[Any]) -> tuple[Site, str] | None:
    """The block that keeps a tensor, and what to do; None where it is no such weight.

    Args:
        made: the frames that made what was used up, torch's own with them.
        live: the frames that run, innermost first.
    """
    if not any(f.function.rpartition(".")[2] == "get_cached_parametrization" for f in made):
        return None
    for frame in live:
        code = frame.f_code
        if not package.is_user_file(code.co_filename):
            continue
        name = getattr(code, "co_qualname", code.co_name)
        place = Frame(code.co_filename, frame.f_lineno, name)
        around = statements.around(Site(place))
        for index, node in enumerate(around):
            if not isinstance(node, ast.With) or not any(map(_enters, node.items)):
                continue
            at = dataclasses.replace(_at(place, node), column=node.col_offset)
            label = "keeps each weight as it is computed first, until the block ends"
            loop = next((n for n in around[index + 1 :] if isinstance(n, loops.LOOPS)), None)
            header = f"`with {', '.join(map(ast.unparse, node.items))}:`"
            anew = f"enter it anew for each backward(), {header} around one forward and its own"
            if loop is not None:
                where = sites.where(_at(place, loop))
                anew = f"enter it in each iteration, {header} below {where}, in the loop"
            mend = (
                f"the block at {sites.where(at)} keeps the weights of its first forward, and "
                f"backward() uses up their graph: {anew}"
            )
            return Site(at, label=label), mend
    return None


def _at(place: Frame, node: ast.stmt) -> Frame:
    code = source_lines.getline(place.file, node.lineno).strip()
    return dataclasses.replace(place, line=node.lineno, code=code)


def _enters(item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "cached"
