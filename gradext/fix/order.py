"""Which patches come first, and which are not worth a run.

Works on verdicts, texts and what runs noted; runs nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gradext.fix import proof

if TYPE_CHECKING:
    from gradext.fix.proof import Verdict
    from gradext.fix.search import Tried

_LEVELS = (proof.VERIFIED, proof.CHANGES, proof.UNPROVED, proof.FAILS)


def best_first(tried: Sequence[Tried]) -> list[Tried]:
    """The patches by their verdicts; of those that cut a graph, the one that cuts least is first.

    What a program carries from one backward pass to the next has to be cut between the two. A patch
    that also cuts it at each time step leaves graphs with fewer edges.
    """
    ordered = sorted(tried, key=lambda one: _rank(one.verdict))
    for level in (proof.CHANGES, proof.UNPROVED):
        places = [k for k, one in enumerate(ordered) if one.verdict.level == level and one.cuts]
        chosen = sorted((ordered[k] for k in places), key=lambda one: -one.edges)
        for k, one in zip(places, chosen, strict=True):
            ordered[k] = one
    return ordered


def _rank(verdict: Verdict) -> tuple[float, ...]:
    level = _LEVELS.index(verdict.level)
    if verdict.level == proof.VERIFIED:
        return (level, *verdict.cost.key)
    share = verdict.equal / verdict.gradients if verdict.gradients else 0.0
    # If the loss changed, what was computed before the pass changed too: such a patch comes later.
    return (level, verdict.why == proof.OTHER_LOSS, -share, -verdict.more)


def is_undone(
    olds: Mapping[str, bytes], before: Mapping[str, bytes], texts: Mapping[str, bytes]
) -> bool:
    """Whether a patch on top of others takes back what one of them does, or does it again.

    Args:
        olds: the files as they are. before: with the patches so far. texts: with this one as well.
    """
    for path, text in texts.items():
        given = before.get(path, olds[path])
        if text != given != olds[path]:
            was, now = _apart(olds[path], given), _apart(olds[path], text)
            if now < was or _cuts_twice(olds[path], text):
                return True
    return False


def _cuts_twice(old: bytes, new: bytes) -> bool:
    """Whether a run of new lines detaches one name twice."""
    for kind, lines in _changes(old, new):
        names = [_DETACHED.match(line) for line in lines] if kind in _PUT_IN else []
        found = [name[1] for name in names if name is not None]
        if len(set(found)) < len(found):
            return True
    return False


_PUT_IN = ("insert", "replace")
_DETACHED = re.compile(r"\s*([\w.]+) = .*\.detach\(\)")


def _changes(old: bytes, new: bytes) -> Iterator[tuple[str, list[str]]]:
    """Kinds of difflib's, with the new lines."""
    a, b = (text.decode("utf-8", "replace").splitlines() for text in (old, new))
    for kind, _, _, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        yield kind, b[k:m]


def _apart(old: bytes, new: bytes) -> int:
    """How many words and signs two texts differ by."""
    a, b = (text.decode("utf-8", "replace").splitlines() for text in (old, new))
    count = 0
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        one, other = (_WORDS.findall("\n".join(lines)) for lines in (a[i:j], b[k:m]))
        same = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
        count += len(one) + len(other) - 2 * sum(block.size for block in same)
    return count


_WORDS = re.compile(r"\w+|[^\w\s]")
