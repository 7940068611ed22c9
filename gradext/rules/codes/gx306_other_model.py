"""GX306 of a model whose optimizer has the parameters of another one: a copy, or an earlier one.

`model = copy.deepcopy(model)` after the optimizer was made, a model that was built or loaded once
more. The optimizer steps and none of what it has gets a gradient; what gets one is in a module with
as many parameters, or with copies of them, none of which is in an optimizer. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from gradext.diagnosis.model import Diagnosis, Site
from gradext.native import _C
from gradext.recording import training
from gradext.rules.rewrite import optimizer_order
from gradext.rules.wording.holders import moved_to
from gradext.rules.wording.trained import Found, Stacks, Stepping, Trained, Tree
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data

_FEWEST = 2


def may_be(now: Trained) -> bool:
    """Whether an optimizer has nothing with a gradient, and a module nothing that is stepped."""
    return any(map(_is_idle, now.steppings)) and any(_is_unstepped(now, tree) for tree in now.trees)


def _is_idle(stepping: Stepping) -> bool:
    leaves = stepping.leaves.values()
    return len(leaves) >= _FEWEST and not any(who.grad for who in leaves)


def _is_unstepped(now: Trained, tree: Tree) -> bool:
    return any(leaf.is_filled for leaf in tree.leaves.values()) and not any(
        leaf in now.by_leaf for leaf in tree.leaves
    )


def found(now: Trained, data: Data, stacks: Stacks) -> Iterator[Found]:
    """The modules that are trained in place of what an optimizer has."""
    for stepping in filter(_is_idle, now.steppings):
        for tree in now.trees:
            if not _is_unstepped(now, tree):
                continue
            filled = {leaf: one for leaf, one in tree.leaves.items() if one.is_filled}
            copies = _copied_from(data, filled, stepping.leaves)
            wanted = [leaf for leaf in tree.leaves.values() if leaf.who.requires_grad]
            if not copies and len(wanted) != len(stepping.leaves):
                continue
            made = now.site_of(
                data=stacks, stepping=stepping, label="has the parameters of another"
            )
            site = copies or _built(stacks, tree, made)
            if made is None:
                continue
            if site is not None:
                what = "copies the parameters" if copies else "makes these parameters"
                site = dataclasses.replace(site, label=what)
            key = ("other", *sites.line_of(made))
            say = _Said(tree.name, site, made, now.called(stepping), len(stepping.leaves))
            yield Found(key, filled, say, stepping, by_calls=True)


def _copied_from(data: Data, filled: Collection[int], had: Collection[int]) -> Site | None:
    """Where leaves were copied from those of the optimizer: `copy.deepcopy(model)`."""
    for leaf in list(filled)[:4]:
        flow = data.flow_of(leaf)
        if flow is None:
            continue
        if any(behind in had for behind, _, _ in _C.leaves_behind(flow.number)):
            return sites.site(data.frames(flow.stack))
    return None


def _built(stacks: Stacks, tree: Tree, made: Site | None) -> Site | None:
    """The line that had the module built, of the function that had the optimizer made."""
    for stack, many in list(training.known.given.items()):
        for given in list(many):
            module = given.module()
            if module is not tree.root or not given.is_first:
                continue
            site = sites.site(stacks.frames(stack))
            both = optimizer_order.common(made, site) if site is not None and made else None
            if both is not None and site is not None:
                return moved_to(site, both[1])
    return None


@dataclasses.dataclass(frozen=True)
class _Said:
    """Says that an optimizer has the parameters of another model."""

    model: str
    site: Site | None
    made: Site
    optimizer: str
    count: int

    def __call__(self, names: Sequence[str], backward: Site | None) -> Diagnosis:
        at = f", made at {sites.where(self.site.frame)}," if self.site is not None else ""
        fix = (
            optimizer_order.advice("other", self.made, self.site, self.optimizer)
            if self.site is not None
            else None
        )
        own = optimizer_order.of_other(self.made, self.model)
        if own is not None and (self.site is None or not fix or not fix.startswith("move")):
            fix = f"make {self.optimizer} of the parameters of `{self.model}`, at "
            fix += f"{sites.where(self.made.frame)}: `{own}`"
        return Diagnosis(
            code="GX306",
            message=(
                f"`{self.model}`{at} is not trained: its parameters get gradients and are in no "
                f"optimizer. {self.optimizer} has {self.count} others, none of which gets one."
            ),
            culprits=sites.distinct([self.site or self.made]),
            victims=sites.distinct([self.made, backward]),
            fix=fix
            or f"make {self.optimizer} of the parameters of `{self.model}`, once it is there",
            notes=(
                f"if `{self.model}` is to stay as it is, say so: `requires_grad_(False)`",
                "or end the line with `# gradext: ignore[GX306]`",
            ),
        )
