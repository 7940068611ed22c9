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
from gradext.recording import events
from gradext.recording.awaited import Awaited, HeldLeaves, Waiting
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
    names = Owners(live)
    before, held.order = held.order, data.order
    written = data.written_since(before) if before else None
    takers = data.takers_in({(row[2], row[3]) for row in rows if row[3] is not None})
    backward = sites.site(
        frames.stack_of([(frame.f_code, frame.f_lasti) for frame in live]),
        label="backward() ends at this constant",
    )
    groups: dict[tuple[str, int], _Group] = {}
    for taker in takers:
        for flow, leaves in _holders(data, taker, names):
            cut = _described(data, flow)
            if cut is None:
                continue
            line = sites.line_of(cut.mode.site if cut.mode is not None else cut.sites[0])
            into = sites.site(
                data.frames(taker.stack), op=taker.op, label="computes on with it, a constant"
            )
            group = groups.setdefault(line, _Group(cut, sites.distinct([into, backward])))
            for leaf in leaves:
                name = names.by_id(leaf)
                if name is not None:
                    group.leaves[leaf] = name
    for line, group in groups.items():
        sure, has = _confirmed(group, held, names, written)
        if sure:
            order = {leaf: k for k, leaf in enumerate(names.trainable_ids)}
            sure = dict(sorted(sure.items(), key=lambda one: order.get(one[0], -1)))
            mend = fix(data, group.cut, backward)
            said = _Held(group.cut.what, group.cut.sites, group.victims, has, mend)
            waiting.put((__name__, line), Awaited(sure, said))
        elif any(held.storages.get(leaf) is None for leaf in group.leaves):
            waiting.drop((__name__, line))


@dataclasses.dataclass
class _Group:
    """Leaves that one line holds constant: their names, by id."""

    cut: Cut
    victims: tuple[Site, ...]
    leaves: dict[int, str] = dataclasses.field(default_factory=dict)


def _holders(data: Data, taker: Flow, names: Owners) -> Iterator[tuple[Flow, list[int]]]:
    """What a constant was computed by: (the flow, leaves in an optimizer that it holds)."""
    chain = chains.back_from(data, [data.origin(number) for number in taker.parents])
    for step in chain.steps:
        flow = step.origin
        if not isinstance(flow, Flow) or not flow.has(events.TAINT_HELD):
            continue
        if any(isinstance(s.origin, Flow) and s.origin.has(_BARRIERS) for s in step.way()):
            continue
        living = [leaf for leaf, _, lives in _C.leaves_held(flow.number) if lives]
        leaves = [leaf for leaf in _C.leaves_unreached(living) if leaf in names.optimized]
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
    names: Owners,
    written: set[int] | None,
) -> tuple[dict[int, str], str]:
    """Leaves that were as they are at the last look, while their optimizer stepped; and it."""
    sure: dict[int, str] = {}
    has: list[str] = []
    for leaf, name in group.leaves.items():
        optimizer, memory = names.optimizer_of(leaf)
        storage = memory[leaf]
        if leaf not in held.storages:
            held.storages[leaf] = storage
            continue
        if held.storages[leaf] != storage or written is None or storage in written:
            held.storages[leaf] = None
            continue
        if not written.isdisjoint(memory.values()):
            sure[leaf] = name
            has.append(optimizer)
    return sure, " and ".join(dict.fromkeys(has))


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
