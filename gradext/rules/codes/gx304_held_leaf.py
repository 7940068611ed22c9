"""GX304 of parameters that an optimizer has, that are computed with, and that are never trained.

Their layer runs under no_grad, or what it gives goes through `.detach()` or `.data`, and the loss
reaches other parameters: no error is raised. That may be what its author wants, and the next
backward may be theirs. So a leaf is told of only where the program has ended, no backward has
reached it, its optimizer has stepped between two looks, and nothing has written the leaf between
them. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradext.diagnosis.model import Diagnosis, Site
from gradext.native import _C
from gradext.objects import graph_rows, naming
from gradext.recording import events
from gradext.recording.awaited import Awaited, HeldLeaves, Holder, Waiting
from gradext.recording.events import Flow
from gradext.rules.wording import chains
from gradext.rules.wording.cuts import Cut, describe, fix
from gradext.rules.wording.lost_gradients import folded
from gradext.rules.wording.meant_cuts import unless_meant
from gradext.rules.wording.owners import Owners
from gradext.source import frames, live_frames, sites
from gradext.source.mode_blocks import Mode

if TYPE_CHECKING:
    from gradext.recording.tables import Data

_KINDS = ("no_grad", "detach")
_LITERAL = re.compile(r"set_grad_enabled\(\s*(mode\s*=\s*)?(False|0)\s*\)")
# What is computed past one of these has no gradient for another reason.
_BARRIERS = events.NOT_FLOATING | events.TO_PYTHON | events.FROM_PYTHON | events.GRAD_CALL


def look(outputs: Any, data: Data, held: HeldLeaves, waiting: Waiting) -> None:
    """A backward is about to run that takes in values which leaves were held constant for."""
    from gradext.rules import graph_copy

    rows, whole = graph_copy.rows_below(outputs)
    if not whole:
        return
    live = live_frames.frames_above()
    owned = _Owned(held, live)
    before, held.order = held.order, data.order
    written = data.written_since(before) if before else None
    takers = data.takers_in(graph_rows.keys(rows))
    backward = sites.site(
        frames.stack_of([(frame.f_code, frame.f_lasti) for frame in live]),
        label="backward() ends at this constant",
    )
    groups: dict[tuple[str, int], _Group] = {}
    for taker in takers:
        for flow, leaves in _holders(data, taker, owned):
            cut = _described(data, flow)
            if cut is None:
                continue
            line = sites.line_of(cut.mode.site if cut.mode is not None else cut.sites[0])
            into = sites.site(
                data.frames(taker.stack), op=taker.op, label="computes on with it, a constant"
            )
            group = groups.setdefault(line, _Group(cut, sites.distinct([into, backward])))
            group.leaves |= leaves
    for line, group in groups.items():
        sure = _confirmed(group, held, owned, written)
        if sure:
            mend = fix(data, group.cut, backward)
            has = " and ".join(dict.fromkeys(holder.optimizer for holder in sure.values()))
            said = _Held(group.cut.what, group.cut.sites, group.victims, has, mend)
            names = {leaf: holder.leaf for leaf, holder in sure.items()}
            waiting.put((__name__, line), Awaited(names, said))
        elif any(held.storages.get(leaf) is None for leaf in group.leaves):
            waiting.drop((__name__, line))


@dataclasses.dataclass
class _Group:
    """Leaves that one line holds constant, by id."""

    cut: Cut
    victims: tuple[Site, ...]
    leaves: dict[int, Holder] = dataclasses.field(default_factory=dict)


class _Owned:
    """Who has leaves, and their memory now; for a leaf that is new all objects are looked at."""

    def __init__(self, held: HeldLeaves, live: Sequence[Any]) -> None:
        self._holders, self._owners = held.holders, Owners(live)
        self._memory: dict[int, dict[int, int]] = {}

    def holder_of(self, leaf: int) -> Holder | None:
        if leaf not in self._holders:
            self._holders[leaf] = self._owners.holder_of(leaf)
        return self._holders[leaf]

    def memory_of(self, holder: Holder) -> dict[int, int]:
        """The storage of each leaf that its optimizer has."""
        key = id(holder.has)
        if key not in self._memory:
            found = (naming.identity_of(ref()) for ref in holder.has)
            self._memory[key] = {who.id: who.storage for who in found if who is not None}
        return self._memory[key]


def _holders(data: Data, taker: Flow, owned: _Owned) -> Iterator[tuple[Flow, dict[int, Holder]]]:
    """What a constant was computed by: (the flow, leaves in an optimizer that it holds)."""
    chain = chains.back_from(data, [data.origin(number) for number in taker.parents])
    for step in chain.steps:
        flow = step.origin
        if not isinstance(flow, Flow) or not flow.has(events.TAINT_HELD):
            continue
        if any(isinstance(s.origin, Flow) and s.origin.has(_BARRIERS) for s in step.way()):
            continue
        living = [leaf for leaf, _, lives in _C.leaves_held(flow.number) if lives]
        unreached = _C.leaves_unreached(living)
        leaves = {leaf: who for leaf in unreached if (who := owned.holder_of(leaf)) is not None}
        if leaves:
            yield flow, leaves


def _described(data: Data, flow: Flow) -> Cut | None:
    """The cut, where it is one by a grad mode or a detach() that a program wrote around a layer."""
    told = describe(data, chains.Step(flow, None, 0, is_past_cut=False))
    if told is None or not told.sites or not told.sites[0].frame.is_user:
        return None
    told = unless_meant(told)
    if told.kind not in _KINDS or (told.mode is not None and _is_asked_for(told.mode)):
        return None
    return told


def _is_asked_for(mode: Mode) -> bool:
    """Whether the program says of the mode that it is meant.

    It goes on in a library, begins in a context manager of the program's own (which has a name, as
    `with frozen(encoder):`), or depends on a value (`set_grad_enabled(epoch >= warm_up)`).
    """
    if mode.how == "call":
        return True
    line = mode.site.frame.code
    if mode.name == "set_grad_enabled":
        return _LITERAL.search(line) is None
    return mode.how == "with" and mode.name not in line


def _confirmed(
    group: _Group,
    held: HeldLeaves,
    owned: _Owned,
    written: set[int] | None,
) -> dict[int, Holder]:
    """Leaves that were as they are at the last look, while their optimizer stepped."""
    sure: dict[int, Holder] = {}
    for leaf, holder in sorted(group.leaves.items(), key=lambda one: one[1].place):
        memory = owned.memory_of(holder)
        storage = memory.get(leaf)
        if leaf not in held.storages:
            held.storages[leaf] = storage
            continue
        if held.storages[leaf] != storage or written is None or storage in written:
            held.storages[leaf] = None
            continue
        if not written.isdisjoint(memory.values()):
            sure[leaf] = holder
    return sure


@dataclasses.dataclass(frozen=True)
class _Held:
    """Says that leaves are computed with and not trained."""

    what: str
    culprits: tuple[Site, ...]
    victims: tuple[Site, ...]
    optimizer: str
    mend: str

    def __call__(self, lost: Sequence[str]) -> Diagnosis:
        said = folded(lost)
        several = len(lost) > 1
        they, were = ("they", "were") if several else ("it", "was")
        at = sites.where(self.culprits[0].frame)
        how = (
            f"is detached by {self.what}, at {at}"
            if self.what.startswith("`.")
            else f"is computed under {self.what}, at {at}"
        )
        return Diagnosis(
            code="GX304",
            message=(
                f"{said} {were} not trained: what {they} give{'' if several else 's'} to the loss "
                f"{how}, and no backward() of this run came to {'them' if several else 'it'}, "
                f"while {self.optimizer}, which has {'them' if several else 'it'}, stepped."
            ),
            culprits=self.culprits,
            victims=self.victims,
            fix=self.mend,
            notes=(
                f"if {they} {'are' if several else 'is'} to stay as {they} {were}, say so: "
                "`requires_grad_(False)`, or leave "
                f"{'them' if several else 'it'} out of {self.optimizer}",
                "or end the line with `# gradext: ignore[GX304]`",
            ),
        )
