"""Findings that a program makes again and again: explained once, counted each time.

A finding is told by the lines that take part (csrc/findings), which are known before anything is
explained. Owns what a recording remembers of its findings; what is wrong is said by
gradext.rules.explain. Keeps Diagnoses, names and numbers: no tensor, error or frame.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gradext.base import package, raw
from gradext.base.met_before import MetBefore
from gradext.diagnosis.model import Diagnosis
from gradext.native import _C

if TYPE_CHECKING:
    from gradext.recording.recording import Recording

# Explanations of one finding, for what differs between its times: shapes, bytes, names.
MOST_VARIANTS = 8
_LEAD = r"(?:A \S+ \[[^]]*\] alias of |A gradient with respect to |backward\(\) of )?"
# The names at the start of a message: of one tensor, or of several that it is about.
_NAMES = re.compile(_LEAD + r"((?:(?:`[^`]+`|inputs\[\d+\])(?:, )?)+)")
_KEPT_AS = re.compile(r", kept as `([^`]+)`")
_STEP = re.compile(
    r"\.(?P<attribute>\w+)|\[(?P<index>\d+)\]|\[(?P<quote>['\"])(?P<key>[^'\"]*)['\"]\]"
)
_LATER = "this happened before on the same lines; the {what} told of here are those of that time"


class Finding(NamedTuple):
    """A fault that was met, with what tells it from others before it is explained.

    Attributes:
        places: the lines that take part; details: what else an explanation may tell of.
        text: of the error, with its versions, which no explanation is made anew for.
        tensor, counter: ids of the first tensor that is told of, 0 for none.
        more: ids of the tensors that are told of after it.
        by_shape: whether a text tells the shape of a tensor that nothing else here tells.
    """

    places: tuple[Any, ...]
    details: tuple[Any, ...]
    text: str = ""
    tensor: int = 0
    counter: int = 0
    more: tuple[int, ...] = ()
    by_shape: bool = False


@dataclasses.dataclass
class _Variant:
    """One explanation, the details that it was made for, and the names that it gives tensors.

    `steps`: each name as the steps to it, and which of the finding's tensors it names. `shape`: of
    the first, where it is told. `is_of_one`: it is for `tensor` alone, since a name in it is none
    that can be followed from a variable.
    """

    details: tuple[Any, ...]
    text: str
    diagnoses: tuple[Diagnosis, ...]
    steps: tuple[tuple[tuple[str, ...], int], ...]
    shape: Any = None
    is_of_one: bool = False
    tensor: int = 0
    later: tuple[Diagnosis, ...] | None = None  # as it is told when numbers in it are older


class Known:
    """The findings of one recording."""

    def __init__(self) -> None:
        self._places: MetBefore[list[_Variant]] = MetBefore()

    def recall(self, finding: Finding, live: Sequence[Any]) -> tuple[Diagnosis, ...] | None:
        """How this finding was explained the last time; None for a new one.

        Args:
            live: the running frames, innermost first: a name must still be that tensor's.
        """
        variants = self._places.get(finding.places) or []
        for variant in variants:
            if variant.details == finding.details and _is_named(variant, finding, live):
                if variant.text == finding.text:
                    return variant.diagnoses
                return _later(variant, "versions")
        if len(variants) < MOST_VARIANTS or not _are_alike(variants):
            return None
        return _later(variants[-1], "names, sizes and versions")

    def keep(
        self, finding: Finding, diagnoses: Sequence[Diagnosis], live: Sequence[Any] = ()
    ) -> None:
        variants: list[_Variant] = []
        if not self._places.meet(finding.places, variants):
            variants = self._places.get(finding.places) or variants
        del variants[MOST_VARIANTS - 1 :]
        variants.append(_variant(finding, diagnoses, live))


_LOST_LEAVES = _C.SUSPICIONS["LOST_LEAVES"]


def of_hidden_cuts(outputs: Any, why: int) -> Finding | None:
    """GX304, or that there is none: by the call, and by what its leaves and terms were made of."""
    # What has left the graph is looked at once for each place; it makes no other finding.
    _, places, details, tensor, counter = _C.finding_hidden(outputs, why & ~_LOST_LEAVES)
    if places is None:
        return None
    return Finding(("hidden", places), (details,), "", tensor, counter)


def of_silent_writes(outputs: Any, recording: Recording) -> tuple[bool, Finding | None]:
    """(whether there may be any below `outputs`, the finding that they are if that is known)."""
    found, places, details, tensor, counter = _C.finding("silent", outputs, recording.since)
    if places is None:
        return found, None
    return True, Finding(("silent", places), (details,), "", tensor, counter)


def of_guard(kind: str, facts: dict[str, Any]) -> Finding:
    """The finding that a guard's facts are."""
    if kind == "overlap":
        sizes = tuple(facts["sizes"]), tuple(facts["strides"]), tuple(facts["written_sizes"])
        at, line = _C.place_of(facts["made"]), _C.place_of(facts["line"])
        return Finding((kind, facts["op"], at, line), sizes)
    if kind == "gradient":
        _, made, _, _, _ = _C.finding_written(facts["producer_id"], 0, 0, facts["until"])
        _, writer, bytes_, _, _ = _C.finding_written(
            facts["writer_id"], facts["storage"], 0, facts["since"]
        )
        who = facts["producer"], facts["writer"], facts["consumer"]
        return Finding((kind, *who, made, writer), (bytes_,))
    saved = facts["saved"]
    _, places, details, _, _ = _C.finding_written(
        facts["id"], saved["storage"], saved["counter"], facts["order"]
    )
    lines = [_C.place_of(facts[which]) for which in ("line", "after", "before", "now")]
    what = facts["name"], facts["attribute"], facts["is_hooked"]
    shape = saved["offset"], tuple(saved["sizes"]), tuple(saved["strides"]), saved["dtype"]
    return Finding(
        (kind, *what, *lines, places), (details, *shape), "", saved["id"], saved["counter"]
    )


def of_watched(name: str, facts: dict[str, Any]) -> Finding:
    """GX405: the lines that changed a tensor that a guard watches under a name."""
    _, places, details, _, _ = _C.finding_written(
        (0, 0), facts["storage"], facts["counter"], facts["order"]
    )
    lines = [_C.place_of(facts[which]) for which in ("line", "after", "before", "entered", "now")]
    return Finding(("watched", name, *lines, places), (details,))


def places_of(diagnosis: Diagnosis) -> tuple[Any, ...]:
    """Diagnosis.key(), and the message where the lines do not say which tensor is meant."""
    has_lines = diagnosis.culprits or diagnosis.victims
    which = diagnosis.message if diagnosis.code == "GX405" or not has_lines else ""
    return *diagnosis.key(), which


def _are_alike(variants: Sequence[_Variant]) -> bool:
    first = [places_of(diagnosis) for diagnosis in variants[0].diagnoses]
    return all([places_of(d) for d in variant.diagnoses] == first for variant in variants)


def _later(variant: _Variant, what: str) -> tuple[Diagnosis, ...]:
    if variant.later is None:
        note = _LATER.format(what=what)
        variant.later = tuple(
            dataclasses.replace(diagnosis, notes=(*diagnosis.notes, note))
            for diagnosis in variant.diagnoses
        )
    return variant.later


# --- names ---------------------------------------------------------------------------------------


def _steps(name: str) -> tuple[str, ...]:
    """`outs[0].weight` in steps: "outs", "[0]", ".weight"; empty for what is no such path."""
    root = re.match(r"[^\W\d]\w*", name)
    if root is None:
        return ()
    found, at = [root[0]], root.end()
    while at < len(name):
        step = _STEP.match(name, at)
        if step is None:
            return ()
        found.append(step[0])
        at = step.end()
    return tuple(found)


def _variant(finding: Finding, diagnoses: Sequence[Diagnosis], live: Sequence[Any]) -> _Variant:
    message = diagnoses[0].message if diagnoses else ""
    found = _NAMES.match(message) if finding.tensor or finding.by_shape else None
    names = found[1].split(", ") if found is not None else []
    told = [(name.strip("`"), k) for k, name in enumerate(names) if name[:1] == "`"]
    if finding.by_shape and (held := _KEPT_AS.search(message)) is not None:
        told.append((held[1], 0))
    steps = tuple((way, k) for name, k in told if (way := _steps(name)))
    variant = _Variant(finding.details, finding.text, tuple(diagnoses), steps)
    if finding.by_shape:
        first = _at(steps[0][0], live) if steps else None
        variant.shape = _shape(first)
        can_be_followed = len(steps) == len(told) and variant.shape is not None
        variant.is_of_one = not finding.tensor or not can_be_followed
        variant.tensor = finding.tensor or _id(first)
    return variant


def _shape(value: Any) -> Any:
    from gradext.objects import naming

    facts = naming.facts_of(value)
    return (facts.dtype, tuple(facts.shape)) if facts is not None else None


def _id(value: Any) -> int:
    from gradext.objects import naming

    who = naming.identity_of(value)
    return who.id if who is not None else 0


def _is_named(variant: _Variant, finding: Finding, live: Sequence[Any]) -> bool:
    """Whether the names in the explanation are the names of this finding's tensors, too."""
    if variant.is_of_one:
        tensor = finding.tensor or (_id(_at(variant.steps[0][0], live)) if variant.steps else 0)
        return tensor != 0 and tensor == variant.tensor
    tensors = (finding.tensor, *finding.more)
    if variant.shape is not None:  # then the first name is of the first tensor, and no `.grad`
        first = _at(variant.steps[0][0], live)
        return (
            _id(first) == finding.tensor
            and _shape(first) == variant.shape
            and all(_leads_to(way, tensors[k], 0, live) for way, k in variant.steps[1:])
        )
    for steps, which in variant.steps:
        counter = finding.counter if which == 0 else 0
        if which >= len(tensors) or not _leads_to(steps, tensors[which], counter, live):
            return False
    # One that names none, or one that no variable of the running frames leads to, names no other.
    return True


def _at(steps: Sequence[str], live: Sequence[Any]) -> Any:
    value, rest = _root(steps, live)
    for step in rest:
        if value is None:
            break
        value = _follow(value, step)
    return value


def _root(steps: Sequence[str], live: Sequence[Any]) -> tuple[Any, Sequence[str]]:
    """The variable that a name begins with, and the steps that lead on from it."""
    value = _variable(steps[0], live)
    if value is not None or len(steps) == 1:
        return value, steps[1:]
    # `package.module.VALUE`, a global variable of the module.
    for frame in live:
        space = frame.f_globals
        module = space.get("__name__") if type(space) is dict else None
        if type(module) is str and module.split(".", 1)[0] == steps[0]:
            count = module.count(".") + 1
            if "".join(steps[:count]) == module and len(steps) > count:
                return space.get(steps[count].removeprefix(".")), steps[count + 1 :]
    return None, steps[1:]


def _leads_to(steps: Sequence[str], tensor: int, counter: int, live: Sequence[Any]) -> bool:
    from gradext.objects import naming

    value, rest = _root(steps, live)
    for number, step in enumerate(rest, 1):
        if value is None:
            break
        if step == ".grad" and issubclass(type(value), torch.Tensor):
            who = naming.identity_of(value)
            is_last = number == len(rest)
            return is_last and who is not None and who.grad == tensor
        value = _follow(value, step)
    if value is None:
        # `Learner.net.weight`: no variable holds the learner.
        return steps[0][:1].isupper()
    who = naming.identity_of(value)
    return who is not None and (who.id == tensor or (counter != 0 and who.counter == counter))


def _variable(name: str, live: Sequence[Any]) -> Any:
    from gradext.objects import naming

    user = [frame for frame in live if package.is_user_file(frame.f_code.co_filename)]
    for frame in user:
        code = frame.f_code
        if name in code.co_varnames or name in code.co_cellvars or name in code.co_freevars:
            value = dict(naming.locals_of(frame)).get(name)
            if value is not None:
                return value
    for frame in user:
        value = frame.f_globals.get(name)
        if value is not None:
            return value
    return None


def _follow(value: Any, step: str) -> Any:
    """One attribute or item, past all code of the program's."""
    from gradext.objects import naming

    found = _STEP.match(step)
    assert found is not None
    kind = type(value)
    key = found["attribute"] or found["index"] or found["key"]
    if issubclass(kind, torch.nn.Module):
        for group in ("_parameters", "_buffers", "_modules"):
            inner = dict(naming.group_of(value, group))
            if key in inner:
                return inner[key]
    if found["attribute"] is not None:
        held = raw.dict_of(value)
        return held.get(key) if type(held) is dict else None
    if found["index"] is not None and (kind is list or kind is tuple):
        return value[int(key)] if int(key) < len(value) else None
    if issubclass(kind, dict):
        return dict.get(value, int(key) if found["index"] is not None else key)
    return None
