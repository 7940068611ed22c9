"""The names of ops and of graph nodes, as a sentence uses them."""

from __future__ import annotations

import re


def short(op: str | None) -> str:
    """ "add_" of "aten::add_"; a dotted Python name stays as it is. Words where it is not known."""
    return op.rsplit("::", 1)[-1] if op else "the operation"


def bare(op: str | None) -> str:
    """The last part alone: "detach" of "torch.Tensor.detach" and of "aten::_detach"."""
    return short(op).rsplit(".", 1)[-1].lstrip("_") if op else "this line"


def of_node(name: str) -> str:
    """ "Exp" of "ExpBackward0"; the class's name of a custom Function's node."""
    return re.sub(r"(?<=\w)Backward\d*$", "", short(name))
