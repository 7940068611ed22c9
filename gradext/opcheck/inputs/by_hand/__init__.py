"""Inputs written down by hand, for ops that guessing does not reach; and what is not run at all.

A table from an op's name (one overload, or all of a packet) to functions that return the
arguments. A functional op's inputs serve its in-place and out= siblings too.
Each module is a part of the table; importing one fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradext.opcheck.inputs.by_hand import algebra, convolutions, losses, norms, quantized, sparse
from gradext.opcheck.inputs.by_hand.values import INPUTS
from gradext.opcheck.inputs.from_op_db import Call

__all__ = ["INPUTS", "SKIPPED", "algebra", "convolutions", "losses", "makers", "norms"]
__all__ += ["quantized", "sparse"]

# Not run, whatever the inputs: why.
SKIPPED: dict[str, str] = {
    "aten::from_file": "opens a file",
    "aten::from_file.out": "opens a file",
}


def makers(name: str) -> Iterator[tuple[str, Callable[[], Call]]]:
    """(where from, a function that makes the arguments): the overload's own, then its packet's."""
    for key in dict.fromkeys((name, name.partition(".")[0])):
        for number, make in enumerate(INPUTS.get(key, ())):
            yield f"written down for {key}, {number}", make
