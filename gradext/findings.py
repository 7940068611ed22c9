"""Findings that a program makes again and again: explained once, counted each time.

A finding is told by the lines that take part (csrc/findings), which are known before anything is
explained. Owns what a recording remembers of its findings; what is wrong is said by
gradext.diagnosis. Keeps Diagnoses, names and numbers: no tensor, error or frame.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gradext import _C, objects
from gradext.diagnosis.model import Diagnosis

if TYPE_CHECKING:
    from gradext.recording import Recording

MOST_PLACES = 1024  # findings that are remembered
# Explanations of one finding, for what differs between its times: shapes, bytes, names.
MOST_VARIANTS = 8
_KINDS = (
    ("stale", re.compile(r"has been modified by an inplace")),
    ("freed", re.compile(r"backward through the graph a second time|after they have already been")),
)
_VERSIONS = re.compile(r"is at version \d+; expected version \d+")
_NUMBERS = re.compile(r"\d+")
_NAME = re.compile(r"(?:A \S+ \[[^]]*\] alias of )?`([^`]+)`")
_STEP = re.compile(
    r"\.(?P<attribute>\w+)|\[(?P<index>\d+)\]|\[(?P<quote>['\"])(?P<key>[^'\"]*)['\"]\]"
)
_LATER = "this happened before on the same lines; the {what} told of here are those of that time"


class Finding(NamedTuple):
    """What is known of a finding before it is explained.

    Attributes:
        places: the lines that take part; details: what else an explanation may tell of.
        text: of the error, with its versions, which no explanation is made anew for.
        tensor, counter: ids of the first tensor that is told of, 0 for none.
    """

    places: tuple[Any, ...]
    details: tuple[Any, ...]
    text: str = ""
    tensor: int = 0
    counter: int = 0


@dataclasses.dataclass
class _Variant:
    """One explanation, the details that it was made for, and the name that it gives a tensor."""

    details: tuple[Any, ...]
    text: str
    diagnoses: tuple[Diagnosis, ...]
    name: str | None
    steps: tuple[str, ...]
    later: tuple[Diagnosis, ...] | None = None  # as it is told when numbers in it are older


class Known:
    """The findings of one recording."""

    def __init__(self) -> None:
        self._places: dict[tuple[Any, ...], list[_Variant]] = {}

    def recall(self, finding: Finding, live: Sequence[Any]) -> tuple[Diagnosis, ...] | None:
        """How this finding was explained the last time; None for a new one.

        Args:
            live: the running frames, innermost first: a name must still be that tensor's.
        """
        variants = self._places.get(finding.places, [])
        for variant in variants:
            if variant.details == finding.details and _is_named(variant, finding, live):
                if variant.text == finding.text:
                    return variant.diagnoses
                return _later(variant, "versions")
        if len(variants) < MOST_VARIANTS or not _are_alike(variants):
            return None
        return _later(variants[-1], "names, sizes and versions")

    def keep(self, finding: Finding, diagnoses: Sequence[Diagnosis]) -> None:
        if finding.places not in self._places and len(self._places) >= MOST_PLACES:
            del self._places[next(iter(self._places))]
        name = _NAME.match(diagnoses[0].message) if diagnoses and finding.tensor else None
        steps = _steps(name[1]) if name is not None else ()
        variants = self._places.setdefault(finding.places, [])
        del variants[MOST_VARIANTS - 1 :]
        variants.append(
            _Variant(
                finding.details,
                finding.text,
                tuple(diagnoses),
                name[1] if name is not None and steps else None,
                steps,
            )
        )


def of_error(error: BaseException, outputs: Any, recording: Recording) -> Finding | None:
    """The finding that an error of backward stands for; None where it is of no such kind."""
    text = objects.message(error)
    kind = next((kind for kind, pattern in _KINDS if pattern.search(text)), None)
    if kind is None:
        return None
    found, places, details, tensor, counter = _C.finding(kind, outputs, recording._since)
    if not found or places is None:
        return None
    return Finding(
        (kind, _NUMBERS.sub("#", text), places),
        (details, _VERSIONS.sub("", text)),
        text,
        tensor,
        counter,
    )


def of_silent_writes(outputs: Any, recording: Recording) -> tuple[bool, Finding | None]:
    """(whether there may be any below `outputs`, the finding that they are if that is known)."""
    found, places, details, tensor, counter = _C.finding("silent", outputs, recording._since)
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


def places_of(diagnosis: Diagnosis) -> tuple[Any, ...]:
    """What tells one diagnosis from another: its code and its lines."""
    places = tuple(
        (site.frame.file, site.frame.line) for site in (*diagnosis.culprits, *diagnosis.victims)
    )
    which = diagnosis.message if diagnosis.code == "GX405" or not places else ""
    return diagnosis.code, places, diagnosis.window, which


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


def _is_named(variant: _Variant, finding: Finding, live: Sequence[Any]) -> bool:
    """Whether the name in the explanation is the name of this finding's tensor, too."""
    if not variant.steps:
        return True  # it names none, or one that no variable of the running frames leads to
    from gradext.diagnosis import naming

    value = _variable(variant.steps[0], live)
    for number, step in enumerate(variant.steps[1:], 1):
        if value is None:
            break
        if step == ".grad" and issubclass(type(value), torch.Tensor):
            who = naming.identity_of(value)
            is_last = number == len(variant.steps) - 1
            return is_last and who is not None and who.grad == finding.tensor
        value = _follow(value, step)
    if value is None:
        # `Learner.net.weight`: no variable holds the learner.
        return variant.steps[0][:1].isupper()
    who = naming.identity_of(value)
    return who is not None and (who.id == finding.tensor or who.counter == finding.counter)


def _variable(name: str, live: Sequence[Any]) -> Any:
    from gradext import frames
    from gradext.diagnosis import naming

    user = [frame for frame in live if frames.is_user_file(frame.f_code.co_filename)]
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
    from gradext.diagnosis import naming

    found = _STEP.match(step)
    assert found is not None
    kind = type(value)
    key = found["attribute"] or found["index"] or found["key"]
    if issubclass(kind, torch.nn.Module):
        for group in ("_parameters", "_buffers", "_modules"):
            inner = dict(naming._group(value, group))
            if key in inner:
                return inner[key]
    if found["attribute"] is not None:
        held = naming.dict_of(value)
        return held.get(key) if type(held) is dict else None
    if found["index"] is not None and (kind is list or kind is tuple):
        return value[int(key)] if int(key) < len(value) else None
    if issubclass(kind, dict):
        return dict.get(value, int(key) if found["index"] is not None else key)
    return None
