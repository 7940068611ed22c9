"""What the notes of the three witnesses mean: disagreements, each with its reason and its remedy.

Judges plain data; runs no op and sees no live tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

from gradext.opcheck import content, witnesses
from gradext.opcheck.witnesses import Given, Made, Outcome, Run

NOT_BUMPED = "declared but not bumped"
TWICE = "bumped twice"
UNDECLARED = "written but not declared"
ALIAS = "returns an undeclared alias"
INFERENCE = "wrong under inference_mode"
OUTSIDE = "written outside the tensor"
OTHER_MEMORY = "returns other memory than declared"
DEVICES = "devices disagree"
KINDS = (NOT_BUMPED, TWICE, UNDECLARED, ALIAS, INFERENCE, OUTSIDE, OTHER_MEMORY, DEVICES)

# Remarks: nothing that an op could be blamed for.
NO_CHANGE = "declared, no change seen"
BUMPED_ONLY = "bumped, though not declared and not changed"
FRESH = "may alias by its schema, returned memory of its own"

ERROR = "error"
WARNING = "warning"
NOTE = "note"

# The modes in which a version is expected to count.
_NOTHING = content.Snapshot((), content.NOTHING, None, None).digest()
_COUNTING = (witnesses.GRAD, witnesses.REQUIRES_GRAD, witnesses.NO_GRAD)
_INSIDE = (witnesses.INFERENCE, witnesses.INFERENCE_TENSORS)

# Torch refuses these under inference_mode by design and says so.
_REFUSALS = re.compile(r"[Ii]nference ?[Tt]ensor|InferenceMode|inference_mode|inference mode")
# Their results are whatever the memory held before.
_UNINITIALISED = re.compile(r"::(new_)?empty|resize|_lazy_clone|::set_")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One disagreement of one op.

    Attributes:
        kind: one of KINDS, or of the remarks. severity: "error", "warning" or "note".
        op: full name. subject: the argument or output; "" where it is the whole op.
        reason: which witness said what, one sentence. fix: what an author can do; "" for notes.
        source: where the inputs are from that showed it.
    """

    kind: str
    severity: str
    op: str
    subject: str
    reason: str
    fix: str = ""
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def judge(outcome: Outcome) -> list[Finding]:
    """The disagreements and remarks of one outcome; none if it did not run."""
    if not outcome.ran:
        return []
    found = [*_arguments(outcome), *_results(outcome), *_inference(outcome)]
    return [dataclasses.replace(finding, op=outcome.op, source=outcome.source) for finding in found]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding per op, kind and subject, the worst and first one; remarks that others refute go.

    A declared argument that one input left as it was and another changed is no remark.
    """
    order = {ERROR: 0, WARNING: 1, NOTE: 2}
    best: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = (finding.op, finding.kind, _without_index(finding.subject))
        if key not in best or order[finding.severity] < order[best[key].severity]:
            best[key] = finding
    return sorted(best.values(), key=lambda f: (order[f.severity], _rank(f.kind), f.op, f.subject))


def _rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _without_index(name: str) -> str:
    return name.partition("[")[0]


# --- the arguments -------------------------------------------------------------------------------


def _arguments(outcome: Outcome) -> Iterator[Finding]:
    runs = [outcome.runs[mode] for mode in _COUNTING if mode in outcome.runs]
    runs = [run for run in runs if not run.error]
    for index, given in enumerate(runs[0].given):
        seen = {run.mode: run.given[index] for run in runs}
        if given.declared:
            yield from _declared(given.name, seen)
        else:
            yield from _not_declared(given.name, seen)
        if any(each.outside and not each.shares for each in seen.values()) or (
            given.declared and any(each.outside and len(each.shares) < 2 for each in seen.values())
        ):
            yield Finding(
                OUTSIDE,
                ERROR,
                "",
                given.name,
                f"bytes of `{given.name}`'s storage changed that are not the tensor's own",
                "write only the elements that sizes, strides and offset name",
            )


def _declared(name: str, seen: dict[str, Given]) -> Iterator[Finding]:
    changed = [mode for mode, each in seen.items() if each.changed]
    silent = [mode for mode in changed if seen[mode].bumps == 0]
    most = max(each.bumps or 0 for each in seen.values())
    argument = _without_index(name)
    if silent:
        yield Finding(
            NOT_BUMPED,
            ERROR,
            "",
            name,
            f"the schema declares that `{name}` is written and {_what(seen[silent[0]])}, but its "
            f"version stayed the same{_only(silent, seen)}: a backward that saved it computes with "
            "the new values and raises nothing",
            "count the write: torch.autograd.graph.increment_version("
            f"{argument}) after it (Python), an ADInplaceOrView kernel that calls "
            "torch::autograd::increment_version (C++), or define the op with torch.library."
            f"custom_op(mutates_args=({argument!r},)); in an autograd.Function "
            f"ctx.mark_dirty({argument})",
        )
    elif not changed:
        count = ", its version went up" if most else ", its version did not go up either"
        yield Finding(NO_CHANGE, NOTE, "", name, f"`{name}` held the same bytes after{count}")
    if most > 1:
        modes = [mode for mode, each in seen.items() if (each.bumps or 0) > 1]
        yield Finding(
            TWICE,
            WARNING,
            "",
            name,
            f"one call moved the version of `{name}` by {most}{_only(modes, seen)}: each layer "
            "that writes counts, so version deltas do not count calls",
            "count once: where the op calls ops that count by themselves, leave out increment_"
            f"version({argument}) and mutates_args, or write below them on {argument}.detach() "
            "under torch.autograd._unsafe_preserve_version_counter",
        )


def _not_declared(name: str, seen: dict[str, Given]) -> Iterator[Finding]:
    # Memory shared with a written argument changes with it, and that is that argument's write.
    changed = [mode for mode, each in seen.items() if each.changed and not each.shares]
    bumped = [mode for mode, each in seen.items() if each.bumps and not each.shares]
    argument = _without_index(name)
    if changed:
        silent = [mode for mode in changed if not seen[mode].bumps]
        counted = (
            "and its version stayed the same: autograd cannot know"
            if silent
            else f"and its version went up by {seen[changed[0]].bumps}: autograd knows, what "
            "compiles and reorders by schema does not"
        )
        yield Finding(
            UNDECLARED,
            ERROR if silent else WARNING,
            "",
            name,
            f"the schema declares no write of `{name}`, but {_what(seen[changed[0]])}"
            f"{_only(changed, seen)}, {counted}",
            f"declare it: `Tensor(a!) {argument}` in the schema, or mutates_args=({argument!r},) "
            "in torch.library.custom_op; or write to a copy",
        )
    elif bumped:
        yield Finding(
            BUMPED_ONLY,
            NOTE,
            "",
            name,
            f"the version of `{name}` went up by {seen[bumped[0]].bumps}{_only(bumped, seen)}, "
            "though the schema declares no write and its bytes are the same",
        )


def _what(given: Given) -> str:
    return "its sizes or strides changed" if given.reshaped else "its bytes changed"


def _only(modes: list[str], seen: dict[str, Given]) -> str:
    """ " (only under x)" where not all of the modes say so."""
    return "" if len(modes) == len(seen) else f" (under {' and '.join(modes)} only)"


# --- the results ---------------------------------------------------------------------------------


def _results(outcome: Outcome) -> Iterator[Finding]:
    for made in outcome.runs[witnesses.GRAD].made:
        allowed = [name for name in made.aliases if _without_index(name) in made.declared]
        if made.aliases and not made.declared:
            yield _undeclared_alias(made)
        elif made.aliases and not allowed:
            yield Finding(
                ALIAS,
                ERROR,
                "",
                made.name,
                f"the schema says that {made.name} may alias `{made.declared[0]}`, but it shares "
                f"memory with `{made.aliases[0]}`",
                "name the right argument in the alias annotation",
            )
        elif made.is_written and made.declared and not made.aliases:
            if _is_empty(made):
                continue
            yield Finding(
                OTHER_MEMORY,
                ERROR,
                "",
                made.name,
                f"the schema says that {made.name} is `{made.declared[0]}`, which was written, but "
                "it is a tensor with memory of its own",
                "return the argument itself",
            )
        elif made.declared and not made.aliases and not made.is_written:
            yield Finding(
                FRESH,
                NOTE,
                "",
                made.name,
                f"{made.name} may alias `{made.declared[0]}` and did not",
            )


def _is_empty(made: Made) -> bool:
    """Whether there are no bytes that could be shared."""
    return made.digest == _NOTHING


def _undeclared_alias(made: Made) -> Finding:
    name = made.identical or made.aliases[0]
    argument = _without_index(name)
    what = f"is `{name}` itself" if made.identical else f"shares memory with `{name}`"
    if made.counted:
        tail = "they share a version counter, so autograd knows; what compiles by schema does not"
    else:
        tail = (
            "they do not share a version counter: a write to one changes the other and autograd "
            "cannot know"
        )
    return Finding(
        ALIAS,
        WARNING if made.counted else ERROR,
        "",
        made.name,
        f"{made.name} {what}, which the schema does not declare; {tail}",
        f"return a copy ({argument}.clone()), or declare it: `(Tensor(a) {argument}) -> Tensor(a)`",
    )


# --- inference_mode ------------------------------------------------------------------------------


def _inference(outcome: Outcome) -> Iterator[Finding]:
    runs = outcome.runs
    # no_grad is what inference_mode takes the place of: ops may do more while grad mode is on.
    outside = runs.get(witnesses.NO_GRAD)
    if outside is None or outside.error:
        return
    for mode in _INSIDE:
        run = runs.get(mode)
        if run is None:
            continue
        where = "with normal tensors" if mode == witnesses.INFERENCE else "with inference tensors"
        if run.error:
            raised = run.error
            if not _REFUSALS.search(raised) and "no copy" not in raised:
                yield _wrong("", f"raises {where} only there: {raised}")
            continue
        yield from _inside(outcome, run, where, outside)


def _inside(outcome: Outcome, run: Run, where: str, outside: Run) -> Iterator[Finding]:
    stable = steady(outcome)
    for was, now in zip(outside.given, run.given, strict=False):
        if now.changed and now.bumps == 0 and was.bumps:
            yield _wrong(
                now.name,
                f"writes the normal tensor `{now.name}` there without counting it, which it does "
                "outside",
            )
        if now.name in stable and (was.changed != now.changed or was.digest != now.digest):
            yield _wrong(now.name, f"leaves other bytes in `{now.name}` {where} than outside")
    if len(outside.made) != len(run.made):
        yield _wrong("", f"returns {len(run.made)} tensors {where}, outside {len(outside.made)}")
        return
    for made_was, made_now in zip(outside.made, run.made, strict=True):
        name = made_now.name
        if made_was.form[0] != made_now.form[0] or (
            name in stable and made_was.digest != made_now.digest
        ):
            yield _wrong(name, f"{name} holds other values {where} than outside")
        if not made_now.aliases and not made_now.is_inference and not _is_empty(made_now):
            yield _wrong(
                name,
                f"{name} is new memory and yet no inference tensor ({where}): it was made in "
                "another mode, and costs what a normal tensor costs",
                WARNING,
            )
        if bool(made_was.aliases) != bool(made_now.aliases) and not _is_empty(made_now):
            word = "shares memory with its input" if made_now.aliases else "is new memory"
            yield _wrong(name, f"{name} {word} {where}, and not outside", WARNING)


def steady(outcome: Outcome) -> set[str]:
    """The tensors that came out the same in every run outside inference_mode."""
    if _UNINITIALISED.search(outcome.op):
        return set()
    modes = (witnesses.GRAD, witnesses.AGAIN, witnesses.NO_GRAD)
    runs = [outcome.runs[mode] for mode in modes if mode in outcome.runs]
    if len(runs) < 2 or any(run.error for run in runs):
        return set()
    digests: dict[str, set[str]] = {}
    for run in runs:
        everything: tuple[Given | Made, ...] = (*run.given, *run.made)
        for each in everything:
            digests.setdefault(each.name, set()).add(each.digest)
    return {name for name, found in digests.items() if len(found) == 1}


def _wrong(subject: str, reason: str, severity: str = ERROR) -> Finding:
    return Finding(
        INFERENCE,
        severity,
        "",
        subject,
        reason,
        "do not ask for the grad mode or for inference tensors inside the op, and leave the "
        "counting to ADInplaceOrView, which runs for normal tensors under inference_mode too",
    )
