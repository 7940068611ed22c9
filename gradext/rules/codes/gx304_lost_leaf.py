"""GX304 of what is to be trained and whose value comes to the loss in no way that has a gradient.

Two ways that no op shows: a number of Python's that is computed with (a size, an index, a factor),
and a leaf that was made of a value (`nn.Parameter(value)`, `leaf.data = value`). What lies behind
is told only if no backward of the program has reached it. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from gradext.base import op_names
from gradext.diagnosis.model import Diagnosis, Site
from gradext.native import _C
from gradext.objects import graph_rows
from gradext.recording import events
from gradext.recording.awaited import Awaited
from gradext.recording.events import Flow
from gradext.rules.wording import chains
from gradext.rules.wording.cuts import AT_AN_INDEX, Cut, describe, fix
from gradext.rules.wording.lost_gradients import listed
from gradext.rules.wording.lost_leaves import LostLeaves
from gradext.rules.wording.owners import Owners
from gradext.source import frames, live_frames, sites
from gradext.source.value_flow import ValueFlow

if TYPE_CHECKING:
    from gradext.diagnosis.model import Frame
    from gradext.recording.tables import Data

_MOST_EXITS = 16  # lines at which values went to Python
_MOST_LINES = 512  # of ops in the graph
_MOST_LEAVES = 64
_SILENCE = "if it is meant, end the line with `# gradext: ignore[GX304]`"


def silent(outputs: Any, data: Data) -> list[Diagnosis | Awaited]:
    """The diagnoses for a backward on `outputs` that depends on values which left the graph."""
    from gradext.rules import graph_copy

    rows, whole = graph_copy.rows_below(outputs)
    if not whole:
        return []
    reached = [facts.id for _, facts in graph_rows.known_leaves(rows)]
    live = live_frames.frames_above()
    leaves = LostLeaves(reached, Owners(live))
    called = frames.stack_of([(frame.f_code, frame.f_lasti) for frame in live])
    nodes = list(graph_rows.keys(rows))
    found: dict[tuple[str, int], Awaited] = {}
    for line, told in (
        *_made_of_values(data, reached, leaves, called),
        *_numbers(data, nodes, leaves, called),
    ):
        found.setdefault(line, told)
    return list(found.values())


_Told = tuple[tuple[str, int], Awaited]  # by the culprit's line


def _made_of_values(
    data: Data, reached: Sequence[int], leaves: LostLeaves, called: Sequence[Any]
) -> Iterator[_Told]:
    """Leaves of this graph that were given a value which has a history of its own."""
    made: list[tuple[Flow, str, Site]] = []
    missed: dict[int, str] = {}
    for leaf in reached[:_MOST_LEAVES]:
        for flow, how in _how_made(data, leaf):
            lost = leaves.lost(flow, by_hand=False)
            if not leaves.is_stepped(leaf):
                # What took the place of a parameter that only the optimizer has is GX306's.
                lost = {behind: name for behind, name in lost.items() if leaves.is_known(behind)}
            label = f"{_Leaf(how, (), None).does} and its gradient ends there"
            site = sites.site(data.frames(flow.stack), op=flow.op, label=label) if lost else None
            if site is not None:
                made.append((flow, how, site))
                missed |= lost
    if made:
        made.sort(key=lambda one: one[0].order)
        _C.recorder_lost_told([flow.stack for flow, _, _ in made])
        _, how, site = made[0]
        culprits = sites.distinct([at for _, _, at in made])
        backward = sites.site(called, label="backward() reaches this leaf and nothing behind")
        yield sites.line_of(site), Awaited(missed, _Leaf(how, culprits, backward))


def _how_made(data: Data, leaf: int) -> Iterator[tuple[Flow, str]]:
    """Where a leaf lost the history of its value, and how that is written.

    Not where the program says by detach() that a constant is meant.
    """
    flow = data.flow_of(leaf)
    if flow is None:
        return
    if flow.op == "Tensor.data":
        if flow.has(events.WRITTEN):
            yield flow, ".data = "
    elif flow.has(events.WRITTEN):
        yield flow, f"{op_names.bare(flow.op)}()"
    elif flow.op == "aten::detach":
        made = data.frames(flow.stack)
        in_library = [frame.file.replace("\\", "/") for frame in made if not frame.is_user]
        if any(frame.function.endswith("Parameter.__deepcopy__") for frame in made):
            return  # copy.deepcopy() of a module: a copy is what is meant
        if any(file.endswith("/nn/parameter.py") for file in in_library):
            yield flow, "nn.Parameter()"
    elif flow.has(events.FROM_PYTHON):
        for step in chains.back_from(data, [flow]).cuts():
            origin = step.origin
            if step.is_sure and isinstance(origin, Flow) and not origin.has(events.NO_GRAD):
                yield origin, f"{flow.op}()"


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Says that a leaf was made of a value."""

    how: str
    made: tuple[Site, ...]
    backward: Site | None

    @property
    def _writes(self) -> bool:
        return self.how.endswith("_()")

    @property
    def does(self) -> str:
        return "writes the value into a leaf," if self._writes else "makes a leaf of the value,"

    def __call__(self, lost: Sequence[str]) -> Diagnosis:
        several = "" if len(lost) > 1 else "s"
        at = sites.where(self.made[0].frame)
        instead = (
            "give the module its weights for one call: "
            '`torch.func.functional_call(module, {"weight": value}, (x,))`, or compute with '
            "the functional form (`F.linear(x, value)`)"
        )
        if not (self._writes or self.how.startswith((".data", "nn.Parameter"))):
            instead = f"use the tensor itself (torch.stack for several) instead of `{self.how}`"
        return Diagnosis(
            code="GX304",
            message=(
                f"{listed(lost)} get{several} no gradient: `{self.how.strip()}`, at {at}, "
                f"{self.does} without its history, and the gradient of this backward() ends there."
            ),
            culprits=self.made,
            victims=sites.distinct([self.backward]),
            fix=f"compute with the value itself, of which {at} takes the numbers only: {instead}",
            notes=(_SILENCE,),
        )


def _numbers(
    data: Data, nodes: Iterable[tuple[int, int]], leaves: LostLeaves, called: Sequence[Any]
) -> Iterator[_Told]:
    """Numbers of Python's that the source shows to be computed with in this graph."""
    lost = ((e, missed) for e in _exits(data) if (missed := leaves.lost(e, by_hand=False)))
    # What was decided is looked for last, and of no more than are told: it takes a way to each.
    exits = [*itertools.islice((e for e in lost if not _is_decided(data, e[0])), _MOST_EXITS)]
    if not exits:
        return
    lines: dict[int, Sequence[Frame]] = {}
    for thread, sequence in nodes:
        stack, _ = data.node_stack(thread, sequence)
        if stack and stack not in lines and len(lines) < _MOST_LINES:
            lines[stack] = data.frames(stack)
    source = ValueFlow()
    for left, missed in exits:
        took = data.frames(left.stack)
        nearest = sorted(lines.values(), key=lambda used: -_common(took, used))
        into = next((used for used in nearest if source.leads(took, used)), None)
        cut = _cut(data, left) if into is not None else None
        if into is None or cut is None:
            continue
        used = sites.site(into, label="computes on with the number, a constant")
        backward = sites.site(called, label="backward() ends at this constant")
        mend = AT_AN_INDEX if _is_whole(cut.sites[0].frame.code) else fix(data, cut)
        known = dataclasses.replace(cut, step=cast(Any, None))
        if used is not None:
            _C.recorder_lost_told([left.stack])
            yield sites.line_of(cut.sites[0]), Awaited(missed, _Number(known, used, backward, mend))


def _is_whole(code: str) -> bool:
    return re.search(r"\b(int|round|floor|ceil)\(", code) is not None


def _common(a: Sequence[Frame], b: Sequence[Frame]) -> int:
    """How many calls two stacks share, from the outermost on."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return next((k for k, (one, other) in enumerate(pairs) if one != other), min(len(a), len(b)))


def _exits(data: Data) -> list[Flow]:
    """Floating values that left with grad mode on since the last backward, one of each place."""
    last = max([0, *sorted(b.order for b in data.backwards)[:-1]])  # before the one that begins
    return data.exits(4_000, last, data.order + 1, without=events.NO_GRAD | events.IN_INFERENCE)


def _is_decided(data: Data, left: Flow) -> bool:
    """An action, a class: what was chosen, and not a value that was to be trained."""
    return any(
        isinstance(step.origin, Flow)
        and (step.origin.has(events.NOT_FLOATING) or chains.is_without_grad_mode(step.origin))
        for step in chains.back_from(data, [left]).steps
        if not step.is_past_cut
    )


def _cut(data: Data, left: Flow) -> Cut | None:
    cuts = chains.back_from(data, [left]).cuts()
    for step in sorted(cuts, key=lambda step: step.depth):
        told = describe(data, step)
        if told is not None and told.sites and told.kind in ("read", "copy"):
            return told
    return None


@dataclasses.dataclass(frozen=True)
class _Number:
    """Says that a number was computed with."""

    cut: Cut
    into: Site
    backward: Site | None
    mend: str

    def __call__(self, lost: Sequence[str]) -> Diagnosis:
        several = "" if len(lost) > 1 else "s"
        at = sites.where(self.cut.sites[0].frame)
        return Diagnosis(
            code="GX304",
            message=(
                f"{listed(lost)} get{several} no gradient: {self.cut.what}, at {at}, makes a "
                "number of Python's of the value, and what is computed with that has no gradient."
            ),
            culprits=self.cut.sites,
            victims=sites.distinct([self.into, self.backward]),
            fix=self.mend,
            notes=(
                "what Python computes nobody sees: where the number went is read in the source",
                _SILENCE,
            ),
        )
