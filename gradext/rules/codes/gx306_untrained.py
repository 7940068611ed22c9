"""GX306 of parameters that were made after their optimizer: it lacks them, and nobody trains them.

That a parameter is in no optimizer is often meant (a backbone that stays as it is, a critic of
another loss, a teacher), so more has to speak for a mistake: it stands where a parameter of an
optimizer stood, or is made in a forward pass. gradext.rules.wording.unstepped says when that is
told. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gradext.diagnosis.model import Diagnosis, Site
from gradext.objects import naming
from gradext.recording import training
from gradext.recording.training import Given
from gradext.rules.rewrite import optimizer_order
from gradext.rules.wording.lost_gradients import folded
from gradext.rules.wording.trained import Found, Leaf, Stacks, Stepping, Trained
from gradext.source import sites

_SILENCE = (
    "if they are to stay as they are, say so: `requires_grad_(False)`",
    "or end the line with `# gradext: ignore[GX306]`",
)


def found(now: Trained, data: Stacks) -> Iterator[Found]:
    """What was made after an optimizer, and that it lacks."""
    places: dict[tuple[str, int], _Place] = {}
    for stack, many in list(training.known.given.items()):
        for given in list(many):
            place = _place(now, data, stack, given)
            if place is not None:
                known = places.setdefault(sites.line_of(place.site), place)
                known.leaves.update(place.leaves)
                if known.why == "late" and place.why == "replaced":
                    places[sites.line_of(place.site)] = place._replace(leaves=known.leaves)
    for line, place in places.items():
        site = dataclasses.replace(place.site, label=_LABELS[place.why])
        made = now.site_of(data, place.stepping, "has the parameters that there are at this line")
        called = now.called(place.stepping)
        say = _Said(place.why, place.what, site, made, called)
        yield Found(
            *((place.why, *line), place.leaves, say, place.stepping),
            is_anew=place.why == "anew",
            looks=3 if place.why == "anew" else 2,
        )


_LABELS = {
    "replaced": "puts new parameters in their place",
    "late": "makes new parameters, when the optimizer is there already",
    "anew": "makes new parameters in each forward pass",
}


class _Place(NamedTuple):
    why: str
    what: str
    site: Site
    leaves: dict[int, Leaf]
    stepping: Stepping


def _place(now: Trained, data: Stacks, stack: int, given: Given) -> _Place | None:
    """What speaks for a mistake where a module was given something, and that is not stepped."""
    module, gets = given.module(), given.gets()
    if gets is None:
        return None
    leaves: dict[int, Leaf] = {}
    for tensor in training.leaves_of(gets):
        who = naming.identity_of(tensor)
        if who is not None and who.id not in now.by_leaf and Leaf("", who).is_filled:
            name = now.name_of(who.id, f"{given.kind}.{given.name}")
            leaves[who.id] = Leaf(name, who)
    before = [each for each in now.steppings if each.made.number < given.number]
    if not leaves or not before:
        return None
    why, what, stepping = _why(now, data, stack, given, module, before)
    site = sites.site(data.frames(stack)) if why else None
    if site is None or stepping is None:
        return None
    return _Place(why, what, site, leaves, stepping)


def _why(
    now: Trained, data: Stacks, stack: int, given: Given, module: Any, before: Sequence[Stepping]
) -> tuple[str, str, Stepping | None]:
    is_held = (
        module is not None
        and training.known.is_latest(given, module)
        and any(
            item is given.gets()
            for kind in ("_parameters", "_modules")
            for name, item in naming.group_of(module, kind)
            if name == given.name
        )
    )
    had = {
        who.id
        for ref in given.had
        if (tensor := ref()) is not None and (who := naming.identity_of(tensor)) is not None
    }
    for each in before if is_held else ():
        if not had.isdisjoint(each.leaves):
            return "replaced", "", each
    tree = now.tree_of(module) if module is not None else None
    within = _is_within_forward(data.frames(stack))
    if tree is None:
        # Kept by nobody but the graph; what an eager loop makes once more is made three times.
        if within and given.is_first and len(training.known.given.get(stack, ())) > 2:
            return "anew", given.kind, before[-1]
        return "", "", None
    if given.is_first or not is_held:
        return "", "", None
    own = [each for each in before if not tree.leaves.keys().isdisjoint(each.leaves)]
    if own and within:
        return "late", "", own[-1]
    for each in own:
        if now.orphans.get(id(each.optimizer)):
            return "replaced", "", each
    return "", "", None


def _is_within_forward(stack: Sequence[Any]) -> bool:
    """Whether a module was being called."""
    return any(
        frame.function.endswith("_call_impl")
        and frame.file.replace("\\", "/").endswith("torch/nn/modules/module.py")
        for frame in stack
    )


@dataclasses.dataclass(frozen=True)
class _Said:
    """Says that an optimizer does not know of parameters that were made after it."""

    why: str
    what: str
    given: Site
    made: Site | None
    optimizer: str

    def __call__(self, names: Sequence[str], backward: Site | None) -> Diagnosis:
        several = len(names) > 1
        said, at = folded(names), sites.where(self.given.frame)
        are, they, them = ("are", "they", "them") if several else ("is", "it", "it")
        since = f" at {sites.where(self.made.frame)}" if self.made is not None else ""
        if self.why == "anew":
            message = (
                f"The parameters of the `{self.what}` that {at} makes are not trained: each "
                "forward pass makes new ones, and no optimizer has them."
            )
        elif self.why == "late":
            message = (
                f"{said} {are} not trained: {they} {'were' if several else 'was'} made in a "
                f"forward pass, at {at}, when {self.optimizer} was there already (made{since}), "
                f"and no optimizer has {them}."
            )
        else:
            message = (
                f"{said} {are} not trained: {at} puts {them} in the place of parameters that "
                f"{self.optimizer} has, after it was made{since}, and no optimizer has {them}."
            )
        return Diagnosis(
            code="GX306",
            message=message,
            culprits=(self.given,),
            victims=sites.distinct([self.made, backward]),
            fix=optimizer_order.advice(self.why, self.made, self.given, self.optimizer),
            notes=_SILENCE,
        )
