"""What a patch is worth, by what it computes: four answers, never blurred.

The reference is what the forward pass that was run means: its derivative with each saved tensor as
it was when it was saved (for inference tensors: with inference_mode() as no_grad(); for what a
checkpoint computes a second time: without checkpoints; for writes that torch refuses, and gradients
that are shared: gradext.fix.reference). "verified" says that the patched program computes exactly
that, and the loss of the broken one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gradext.fix.cost import UNKNOWN, Cost
from gradext.fix.trial import Ran

VERIFIED, CHANGES, UNPROVED, FAILS = "verified", "changes-meaning", "unproved", "fails"
UNTRIED = "untried"  # no answer: the candidate was not run

WARNS = "gradext warns of it"  # how the reason begins where a patch leads to a new diagnosis

OTHER_LOSS = "the loss is another one"

# How the reference is run, by code; for the others there is none. See gradext.fix.child.Spec.mode.
REFERENCES = {
    **dict.fromkeys(("GX101", "GX401", "GX402"), "as-saved"),
    **dict.fromkeys(("GX102", "GX103", "GX104", "GX105", "GX106"), "refused-writes"),
    **dict.fromkeys(("GX201", "GX202", "GX203"), "no-inference"),
    "GX403": "own-gradients",
    "GX406": "no-checkpoint",
}


def reference_of(codes: Iterable[str]) -> str | None:
    """How the reference of a program with several faults is run; None where one has none."""
    modes = {REFERENCES.get(code) for code in codes}
    return None if None in modes else ",".join(sorted(mode for mode in modes if mode))


# Where the graph was cut, the gradient is held against differences of the loss.
BY_DIFFERENCES = frozenset({"GX301", "GX304"})


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One of the four answers, and what it rests on.

    Attributes:
        why: one line.
        equal, gradients: of how many gradients how many are equal to the reference's.
        difference: the largest one, as a part of the larger value; 0 where all are bit-equal.
        tolerance: what two runs of the reference differ by.
        more: backward passes after the one that failed, that ran and were compared.
        cost: over the broken program.
    """

    level: str
    why: str
    equal: int = 0
    gradients: int = 0
    difference: float = 0.0
    tolerance: float = 0.0
    more: int = 0
    cost: Cost = UNKNOWN

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        found = {k: v for k, v in dataclasses.asdict(self).items() if k != "level"}
        return {**found, "cost": self.cost.facts()}


def judge(broken: Ran, tried: Ran, references: Sequence[Ran], steps: int) -> Verdict:
    """What a patch is worth.

    Args:
        broken: the program as it is. tried: with the patch.
        references: one run of the reference or two; empty where there is none.
        steps: how many passes after the failing one count.
    """
    failed = broken.failed
    if tried.exit_code is None:
        return Verdict(FAILS, "it did not end in time")
    if (problem := _problem(broken, tried)) is not None:
        return Verdict(FAILS, problem)
    more = max(0, len(tried.passes) - failed - 1)
    warned = _warning(broken, tried)
    if warned is not None:
        return Verdict(UNPROVED, f"{WARNS}: {warned}", more=more)
    if not references:
        return Verdict(UNPROVED, "there is no reference for this kind of fault", more=more)
    wanted = references[0]
    if wanted.doubt is not None:
        return Verdict(UNPROVED, wanted.doubt, more=more)
    if _is_over_before(wanted, tried, failed):
        return _by_what_it_prints(wanted, tried, failed)
    if wanted.exit_code is None or len(wanted.passes) <= failed or wanted.passes[failed]["raised"]:
        return Verdict(UNPROVED, "the reference itself could not be run", more=more)
    if len(tried.passes) <= failed:
        return Verdict(CHANGES, "the backward pass that failed is no longer made", more=more)
    tolerance = 0.0
    if len(references) > 1:
        tolerance = max(_differences(wanted, references[1], failed, steps), default=0.0)
    loss = (broken if failed < len(broken.passes) else wanted).passes[failed]["outputs"]
    same_loss = tried.passes[failed]["outputs"] == loss
    found = list(_differences(wanted, tried, failed, steps))
    equal = sum(difference <= tolerance for difference in found)
    worst = max(found, default=0.0)
    facts: dict[str, Any] = {
        "equal": equal,
        "gradients": len(found),
        "difference": worst,
        "tolerance": tolerance,
        "more": more,
    }
    again = references[1].passes if len(references) > 1 else wanted.passes
    if len(again) <= failed or again[failed]["outputs"] != wanted.passes[failed]["outputs"]:
        why = "the program is not deterministic: two runs of the reference differ"
        return Verdict(UNPROVED, why, more=more)
    if not same_loss:
        return Verdict(CHANGES, OTHER_LOSS, **facts)
    if equal < len(found) or not found:
        return Verdict(CHANGES, "gradients are not those of the forward pass that was run", **facts)
    compared = min(len(wanted.passes), failed + 1 + steps)
    if len(tried.passes) < compared:
        return Verdict(CHANGES, "fewer backward passes were made", **facts)
    return Verdict(VERIFIED, "same loss, same gradients", **facts)


def _is_over_before(wanted: Ran, tried: Ran, failed: int) -> bool:
    """Whether both end well, and neither makes a backward pass behind the line that failed."""
    return failed > 0 and all(
        ran.exit_code == 0 and not ran.stopped and len(ran.passes) == failed
        for ran in (wanted, tried)
    )


def _by_what_it_prints(wanted: Ran, tried: Ran, failed: int) -> Verdict:
    found = list(_differences(wanted, tried, failed, 0))
    equal = sum(difference == 0 for difference in found)
    facts = {"equal": equal, "gradients": len(found), "difference": max(found, default=0.0)}
    if wanted.output != tried.output:
        return Verdict(CHANGES, "it prints something else", **facts)  # type: ignore[arg-type]
    if equal < len(found) or not found:
        why = "gradients are not those of the forward pass that was run"
        return Verdict(CHANGES, why, **facts)  # type: ignore[arg-type]
    return Verdict(VERIFIED, "same gradients, same output", **facts)  # type: ignore[arg-type]


def target(broken: Ran) -> int:
    """The pass that differences are taken of: the failing one, the first where all are wrong."""
    return broken.failed if broken.failed < len(broken.passes) else 0


def by_differences(
    verdict: Verdict, broken: Ran, tried: Ran, points: Sequence[Ran], size: float
) -> Verdict:
    """The verdict on a patch that takes out a cut, by two runs of it with its leaves moved.

    `points`: forth and back, by `size` (gradext.fix.slope).
    """
    from gradext.fix import slope

    index = target(broken)
    runs = (broken, tried, *points)
    if not all(index < len(ran.passes) for ran in runs):
        return dataclasses.replace(verdict, why="its loss could not be evaluated again")
    forth, back = (point.passes[index].get("slope") for point in points)
    if forth is None or back is None:
        return dataclasses.replace(verdict, why="its loss could not be evaluated again in float64")
    agrees, apart = slope.agree(forth, back, size)
    if not agrees:
        why = "the gradient is not what differences of the loss in float64 give"
        return dataclasses.replace(verdict, why=why, difference=apart)
    if tried.passes[index]["outputs"] != broken.passes[index]["outputs"]:
        why = "the gradient is what differences of the loss give, but the loss is another one"
        return dataclasses.replace(verdict, why=why)
    why = f"same loss, its slope is what differences of it in float64 give (within {apart:.0e})"
    return dataclasses.replace(verdict, level=VERIFIED, why=why)


def needs_second_reference(verdict: Verdict) -> bool:
    """Whether only a second run of the reference can tell: is it the same each time?"""
    small = 0 < verdict.difference < 1e-3
    return verdict.level == CHANGES and (small or verdict.why == OTHER_LOSS)


def _problem(broken: Ran, tried: Ran) -> str | None:
    """Why the patched program is none that runs."""
    for diagnosis in tried.diagnoses:
        if diagnosis["severity"] == "error":
            return f"{diagnosis['code']}: {diagnosis['message']}"
    if tried.exit_code != 0 and not tried.stopped:
        last = [line for line in tried.error.splitlines() if line.strip()]
        said = tried.report.get("error") or (last[-1] if last else f"exit code {tried.exit_code}")
        # A program may end with a code of its own; what matters is whether that is new.
        if broken.exit_code == 0 or tried.report.get("error"):
            return str(said)
    if any(note["raised"] for note in tried.passes):
        return "a backward pass raises"
    return None


def _warning(broken: Ran, tried: Ran) -> str | None:
    """What gradext warns of in the patched program, and not in the broken one."""
    known = {(d["code"], d["message"]) for d in broken.diagnoses}
    found = (d for d in tried.diagnoses if (d["code"], d["message"]) not in known)
    first = next(found, None)
    return None if first is None else f"{first['code']}: {first['message']}"


def _differences(wanted: Ran, tried: Ran, failed: int, steps: int) -> Iterator[float]:
    """How far each gradient of the passes up to `failed` + `steps` is from the reference's."""
    for index in range(min(len(wanted.passes), len(tried.passes), failed + 1 + steps)):
        mine, theirs = tried.passes[index], wanted.passes[index]
        if mine["raised"] or theirs["raised"]:
            continue
        if _pairs(mine) == _pairs(theirs):
            yield from (0.0 for _ in range(sum(_pairs(theirs).values())))
            continue
        values = _values(wanted, index), _values(tried, index)
        if all(
            len(kept) == sum(_pairs(n).values())
            for kept, n in zip(values, (theirs, mine), strict=True)
        ):
            yield from _by_value(*values)
        else:  # there was no room for the numbers: that they differ is all that is known
            yield from (float("inf") for _ in range(max(1, sum(_pairs(theirs).values()))))


def _pairs(note: dict[str, Any]) -> Counter[Any]:
    """Leaves with their gradients, and what the engine returned, whatever their order is."""
    found = Counter(
        (leaf, gradient)
        for leaf, gradient in zip(note["leaves"], note["gradients"], strict=False)
        if gradient is not None
    )
    found.update((None, gradient) for gradient in note.get("returned", ()) if gradient is not None)
    return found


def _values(ran: Ran, index: int) -> list[Any]:
    note = ran.passes[index]
    kept = ran.values[index] if index < len(ran.values) else []
    keys = [*note["leaves"], *(None for _ in note.get("returned", ()))]
    pairs = [(key, value) for key, value in zip(keys, kept, strict=False) if value is not None]
    return sorted(pairs, key=lambda pair: (pair[0] or "", tuple(pair[1].shape)))


def _by_value(wanted: list[Any], tried: list[Any]) -> Iterator[float]:
    import torch

    if len(wanted) != len(tried):
        yield from (float("inf") for _ in range(max(len(wanted), len(tried))))
        return
    for (_, a), (_, b) in zip(wanted, tried, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            yield float("inf")
        elif torch.equal(a, b):
            yield 0.0
        else:
            kind = torch.complex128 if a.is_complex() else torch.float64
            difference = (a.to(kind) - b.to(kind)).abs().max().item()
            size = max(a.to(kind).abs().max().item(), b.to(kind).abs().max().item())
            yield difference / size if difference == difference and size > 0 else float("inf")
