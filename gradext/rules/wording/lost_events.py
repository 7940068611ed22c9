"""What the journal had no room for: how a diagnosis says which events are missing from it.

Pure sentences of counts; what is missing for which rule, the rule knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradext.recording.tables import Data

_WORDS = {
    "writes": "older writes",
    "views": "older views",
    "saves": "older saves for backward",
    "backwards": "older calls of backward",
    "births": "births of inference tensors",
    "flows": "older values without gradient",
}
_MORE = "give it more memory: `gradext run --memory MIB`, record(memory=MIB)"


def lost(data: Data, *kinds: str) -> str | None:
    """Which events of these kinds were dropped, and what to do; None where none was."""
    counts = [f"{data.dropped[kind]:,} {_WORDS[kind]}" for kind in kinds if data.dropped.get(kind)]
    if not counts:
        return None
    return f"the journal had no room for {' and '.join(counts)}; {_MORE}"


def forgotten(what: str) -> str:
    """For an event that is there while its stack is not, or is one of too many."""
    return f"the journal had no room for {what}; {_MORE}"
