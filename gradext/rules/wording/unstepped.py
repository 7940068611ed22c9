"""What seems to be stepped by nobody: looked at again and again, and told at the end or never.

A program may step a parameter itself, or give it to an optimizer later. So GX306 is told when the
program has ended, if several looks found it, nothing has written the parameter between them or
since, and no optimizer got it. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gradext.diagnosis.model import Diagnosis, Site
from gradext.objects import naming
from gradext.recording import training
from gradext.recording.awaited import Unstepped
from gradext.rules.wording.trained import Found, Trained
from gradext.source import frames, sites

if TYPE_CHECKING:
    from gradext.recording.recording import Recording
    from gradext.recording.tables import Data

_MOST = 256


def note(now: Trained, found: Iterable[Found], recording: Recording, data: Data) -> None:
    """A look found these."""
    backward = sites.site(
        frames.stack_of([(frame.f_code, frame.f_lasti) for frame in now.live]),
        label="backward() gives them gradients, which no step uses",
    )
    keys = set()
    for one in found:
        keys.add(one.key)
        _confirm(one, recording, data, backward)
    for key in [k for k in recording.unstepped if k[0] == "other" and k not in keys]:
        # What its optimizer has gets gradients by now.
        del recording.unstepped[key]
        recording.waiting.drop((__name__, key))


def _confirm(one: Found, recording: Recording, data: Data, backward: Site | None) -> None:
    """Counts a look; what enough of them found waits for the end."""
    leaves = {leaf: (found.who.storage, found.who.grad) for leaf, found in one.leaves.items()}
    seen = recording.unstepped.get(one.key)
    calls = training.known.calls_of(one.stepping.optimizer) if one.by_calls else 0
    if seen is None:
        if len(recording.unstepped) < _MOST:
            known = Unstepped(leaves, data.order, training.known.last, calls)
            recording.unstepped[one.key] = known
        return
    written = data.written_after(seen.order)
    if one.is_anew:
        seen.leaves = leaves
    elif one.keeps_gradient:
        seen.leaves = {leaf: was for leaf, was in seen.leaves.items() if leaves.get(leaf) == was}
    else:
        # Those that are not there now have had others put in their place.
        same = {leaf: was for leaf, was in seen.leaves.items() if leaf not in leaves}
        for leaf, is_now in leaves.items():
            if seen.leaves.get(leaf, is_now)[0] == is_now[0]:
                same[leaf] = is_now
        seen.leaves = same
    if not one.is_anew:
        seen.leaves = {leaf: was for leaf, was in seen.leaves.items() if was[0] not in written}
    if not seen.leaves:
        recording.waiting.drop((__name__, one.key))
        return
    has_written = any(who.storage in written for who in one.stepping.leaves.values())
    if not (calls > seen.calls if one.by_calls else has_written):
        return  # it has not stepped between the looks
    seen.looks += 1
    if seen.looks < one.looks:
        return
    told = {k: (one.leaves[k].name, was[0]) for k, was in seen.leaves.items() if k in leaves}
    if told:
        about = seen.order, seen.number, one.is_anew
        waits = _Waits(told, weakref.ref(recording), *about, one.say, backward)
        recording.waiting.put((__name__, one.key), waits)


@dataclasses.dataclass(frozen=True)
class _Waits:
    """What is told at the end, of those that are as they were.

    Attributes:
        leaves: names and memory, by id. since: the order of the first look. number: see Unstepped.
    """

    leaves: dict[int, tuple[str, int]]
    recording: weakref.ref[Recording]
    since: int
    number: int
    is_anew: bool
    say: Callable[[Sequence[str], Site | None], Diagnosis]
    backward: Site | None

    def diagnosis(self) -> Diagnosis | None:
        recording = self.recording()
        if recording is None:
            return None
        later = [
            made
            for made in (*training.known.made, *training.known.grown)
            if made.number > self.number
        ]
        if any(made.optimizer() is None for made in later):
            return None  # it may have had them
        stepped = {
            who.id
            for _, optimizer in training.known.living()
            for tensor in training.params_of(optimizer)
            if (who := naming.identity_of(tensor)) is not None
        }
        written = recording.data.written_after(self.since)
        names = [
            name
            for leaf, (name, storage) in self.leaves.items()
            if leaf not in stepped and (self.is_anew or storage not in written)
        ]
        return self.say(names, self.backward) if names else None
