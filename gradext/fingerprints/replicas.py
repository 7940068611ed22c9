"""check_replicas(): do all ranks of a process group hold the same tensors?

Owns the exchange of fingerprints and the report. Every rank takes part in exactly one collective,
whatever its tree looks like and even if reading it fails, so no rank waits for another in vain.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gradext.base import display, errors
from gradext.fingerprints.fingerprint import Fingerprint, Fingerprints, fingerprint


@dataclasses.dataclass(frozen=True)
class Holding:
    """Ranks that hold the same thing at a path.

    Attributes:
        ranks: global ranks.
        value: the fingerprint; None where these ranks have no tensor at the path.
        tensor: dtype and shape, "float32[2, 3]"; None as well.
    """

    ranks: tuple[int, ...]
    value: Fingerprint | None
    tensor: str | None


@dataclasses.dataclass(frozen=True)
class ReplicaDifference:
    """A path at which ranks differ, and which ranks hold what (the lowest rank's value first)."""

    path: str
    holdings: tuple[Holding, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class ReplicaReport(display.Shown):
    """What `check_replicas` found, the same on every rank; prints as a table.

    Attributes:
        ranks: the global ranks that were compared.
        differences: one entry a path that differs, in the order of the lowest rank's walk.
        same: how many paths hold the same on all ranks.
    """

    ranks: tuple[int, ...]
    differences: tuple[ReplicaDifference, ...]
    same: int

    @property
    def equal(self) -> bool:
        return not self.differences

    @property
    def first(self) -> ReplicaDifference | None:
        """The first tensor that differs."""
        return self.differences[0] if self.differences else None

    def __str__(self) -> str:
        return display.show("fingerprints.replicas", self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return display.show("ansi_html.result", "fingerprints.replicas", self)


def check_replicas(model: object, group: Any = None) -> ReplicaReport:
    """Compare the fingerprints of `model` across the ranks of a torch.distributed group.

    A collective: every rank of the group must call it, and all get the same report. Sharded
    parameters differ by design; pass what is meant to be replicated.

    Args:
        model: a module or any tree that `gradext.fingerprint` takes.
        group: the process group; None is the default group.

    Raises:
        RuntimeError: torch.distributed is not initialised; or, on every rank alike, a rank could
            not take its fingerprints (the line says which rank and why).
        ValueError: this process is not in `group`.
    """
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError(
            "gradext.check_replicas: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first"
        )
    if distributed.get_rank(group) < 0:
        raise ValueError("gradext.check_replicas: this process is not a member of the group")
    mine: Fingerprints | str
    try:
        found = fingerprint(model)
        mine = found if isinstance(found, Fingerprints) else _of_one(model)
    except Exception as error:  # told to all ranks: alone it would leave them waiting
        mine = errors.describe(error)
    gathered: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(gathered, mine, group=group)
    ranks = tuple(distributed.get_process_group_ranks(group))
    for rank, held in zip(ranks, gathered, strict=True):
        if isinstance(held, str):
            raise RuntimeError(f"gradext.check_replicas: rank {rank}: {held}")
    return report(ranks, gathered)


def _of_one(tensor: object) -> Fingerprints:
    found = fingerprint([tensor])
    assert isinstance(found, Fingerprints)
    return found


def report(ranks: tuple[int, ...], held: list[Fingerprints]) -> ReplicaReport:
    """The report from all ranks' fingerprints; the same input gives the same report anywhere."""
    if all(other == held[0] for other in held[1:]):
        return ReplicaReport(ranks, (), len(held[0]))
    paths = dict.fromkeys(path for tree in held for path in tree)
    differences = []
    for path in paths:
        groups: dict[tuple[Fingerprint | None, str | None], list[int]] = {}
        for rank, tree in zip(ranks, held, strict=True):
            key = (tree[path], tree.describe(path)) if path in tree else (None, None)
            groups.setdefault(key, []).append(rank)
        if len(groups) > 1:
            holdings = tuple(
                Holding(tuple(where), value, tensor) for (value, tensor), where in groups.items()
            )
            differences.append(ReplicaDifference(path, holdings))
    return ReplicaReport(ranks, tuple(differences), len(paths) - len(differences))
