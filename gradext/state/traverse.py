"""The walk from objects of the program to what they hold: the only one in gradext.

Owns the order, the bounds and the ends of cycles. What an object holds, and how the way to it is
written, is for a reader to say, of which there are three: gradext.state.tree reads containers and
no other object, gradext.objects.naming what is near a variable, gradext.objects.children whatever
can hold a tensor. Nothing here runs code of the objects': a kind is told by issubclass() of
type(), and an object by its id().
"""

from __future__ import annotations

import collections
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

import torch

Way = TypeVar("Way")  # how a reader writes the way to an object: a path, say
ENDLESS = sys.maxsize
LAST = -1  # in the place of a cost: the child is followed after all other ways; it costs one step

# Kinds that hold nothing, by id(): a metaclass may answer hash() and == with code of its own.
ATOMS = {
    id(kind)
    for kind in (
        *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(...)),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
        *(torch.Generator, types.CodeType, types.GetSetDescriptorType),
        *(types.WrapperDescriptorType, types.MethodDescriptorType),
        *(types.ClassMethodDescriptorType, types.MemberDescriptorType),
    )
}
_PASSED_PER_ENTERED = 20


def traverse(
    roots: Iterable[tuple[Way, Any]],
    holds: Callable[[Way, Any, int], Iterable[tuple[Way, Any, int]]],
    *,
    wanted: type = torch.Tensor,
    through: bool = False,
    repeats: Literal["none", "wanted", "all"] = "none",
    nearest_first: bool = False,
    depth: int = ENDLESS,
    items: int | None = None,
    most: int = ENDLESS,
    limit: Callable[[], object] | None = None,
    entered: dict[int, int] | None = None,
) -> Iterator[tuple[Way, Any]]:
    """(way, object) of every object of a kind that the roots hold, and of such roots.

    Args:
        roots: (way, object) pairs.
        holds: reads one object: holds(way, object, steps that are left) gives for each child the
            way to it, the child, and what that way takes off `depth`. Where `depth` is endless all
            ways are to cost nothing.
        wanted: the kind.
        through: whether what is of this kind is looked into, too.
        repeats: what counts at each way that leads to it: "none", each object at its first alone;
            "wanted", what is looked for; "all", what holds it, too. Then only `depth` ends a cycle.
            With "none", an object is entered again where more steps are left than before.
        nearest_first: those that the fewest steps lead to first, in place of what the first child
            holds before the second child.
        depth: steps below a root that are taken.
        items: children of one object that are looked at; all where None.
        most: objects that are entered before the walk ends; twenty times as many that can hold
            nothing (numbers and texts) are passed over.
        limit: called when the walk ends because of `most`, with objects left.
        entered: what was entered before, by id(), with the steps that were left: kept by the caller
            for several walks, and with it whatever is to keep its id.
    """
    # No recursion: a linked list of a few thousand objects must not end in RecursionError.
    pending = collections.deque((way, root, depth) for way, root in roots)
    if not nearest_first:
        pending.reverse()
    take = pending.popleft if nearest_first else pending.pop
    last: list[tuple[Way, Any, int]] = []
    seen = {} if entered is None else entered
    alive = []  # keeps what was entered from dying meanwhile and lending out its id
    once, again = repeats == "none", repeats == "all"
    count = passed = 0
    while pending or last:
        if not pending:
            pending.extend(last if nearest_first else reversed(last))
            last.clear()
        way, value, left = take()
        known = -1 if again else seen.get(id(value), -1)
        is_wanted = issubclass(type(value), wanted)
        if is_wanted:
            if known < 0 or not once:
                yield way, value
        elif id(type(value)) in ATOMS:
            passed += 1
            continue
        if not again:
            if known >= left:
                continue
            seen[id(value)] = left
            alive.append(value)
        if is_wanted and not through:
            continue
        count += 1
        if count > most or passed > most * _PASSED_PER_ENTERED:
            if limit is not None:
                limit()
            break
        found = []
        for where, held, cost in itertools.islice(holds(way, value, left), items):
            if id(type(held)) in ATOMS:
                passed += 1
            elif cost == LAST:
                if left > 0:
                    last.append((where, held, left - 1))
            elif left >= cost and not (once and seen.get(id(held), -1) >= left - cost):
                found.append((where, held, left - cost))
        pending.extend(found if nearest_first else reversed(found))
