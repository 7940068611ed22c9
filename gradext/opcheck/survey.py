"""A whole namespace put through the witnesses, and what came of it as plain data.

Owns the order in which inputs are tried, when an op counts as exercised, and the report. Runs
everything through `workers`; judges through `verdicts` and `devices`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from gradext._version import __version__
from gradext.base import errors
from gradext.opcheck import devices as comparison
from gradext.opcheck import schemas, verdicts, witnesses, workers
from gradext.opcheck.examine import examine
from gradext.opcheck.inputs import by_hand, from_op_db, from_schema
from gradext.opcheck.inputs.from_op_db import Call
from gradext.opcheck.verdicts import Finding

ENOUGH = 5  # inputs that ran, per overload
ENOUGH_MADE = 2  # of those made from the schema

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One overload.

    Attributes:
        name: full name. writable: its schema declares a write.
        ran: on how many inputs. source: where the first of them is from.
        refused: why not, where it ran on none.
        unseen: declared arguments that no input changed.
        crashed: how it took its process down, if it did.
        findings: disagreements and remarks.
    """

    name: str
    writable: bool
    ran: int
    source: str
    refused: str
    unseen: tuple[str, ...]
    crashed: str
    findings: tuple[Finding, ...]

    @property
    def lies(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity != verdicts.NOTE)


@dataclasses.dataclass(frozen=True)
class Survey:
    """The report of one namespace. Attributes: isolation is "process" or "none"."""

    namespace: str
    devices: tuple[str, ...]
    rows: tuple[Row, ...]
    isolation: str
    has_op_db: bool
    torch: str = torch.__version__
    gradext: str = __version__

    @property
    def findings(self) -> list[Finding]:
        return [finding for row in self.rows for finding in row.lies]

    @property
    def failed(self) -> bool:
        """Whether a disagreement is an error."""
        return any(finding.severity == verdicts.ERROR for finding in self.findings)

    def counts(self) -> dict[str, int]:
        writable = [row for row in self.rows if row.writable]
        return {
            "overloads": len(self.rows),
            "exercised": sum(row.ran > 0 for row in self.rows),
            "writable": len(writable),
            "writable exercised": sum(row.ran > 0 for row in writable),
            "writable with every write seen": sum(r.ran > 0 and not r.unseen for r in writable),
            "crashed": sum(bool(row.crashed) for row in self.rows),
        }

    def not_exercised(self, *, writable: bool) -> dict[str, list[str]]:
        """Names by reason, the most frequent reason first."""
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            if row.ran == 0 and row.writable is writable:
                reasons.setdefault(reason(row.refused), []).append(row.name)
        return dict(sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])))

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `gradext check --ops --json` writes it."""
        return {
            "gradext": self.gradext,
            "torch": self.torch,
            "namespace": self.namespace,
            "devices": list(self.devices),
            "isolation": self.isolation,
            "op_db": self.has_op_db,
            "counts": self.counts(),
            "kinds": {
                kind: sorted({f.op for f in self.findings if f.kind == kind})
                for kind in verdicts.KINDS
            },
            "findings": [finding.to_json() for finding in self.findings],
            "not_exercised": {
                "writable": self.not_exercised(writable=True),
                "others": self.not_exercised(writable=False),
            },
            "last_refusals": {
                row.name: row.refused for row in self.rows if row.writable and row.ran == 0
            },
            "no_change_seen": {row.name: list(row.unseen) for row in self.rows if row.unseen},
            "crashed": {row.name: row.crashed for row in self.rows if row.crashed},
            "sources": _sources(self.rows),
        }


def _sources(rows: Iterable[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        if row.writable and row.ran:
            key = row.source.partition(":")[0]
            key = re.sub(r" for .*| aten::.*", "", key)
            counts[key] = counts.get(key, 0) + 1
    return counts


def run(
    namespace: str,
    *,
    devices: Sequence[str] = ("cpu",),
    only: Sequence[str] = (),
    processes: int = 2,
    seconds: float = workers.SECONDS,
    progress: Progress = lambda what, done, total: None,
) -> Survey:
    """Run every op of the namespace that inputs are found for.

    Args:
        devices: types of devices; the first is the one that is judged, the others are compared.
        only: names or patterns ("_foreach_*", "aten::add.out"); none means all.
    """
    names = schemas.names(namespace, only)
    if namespace != "aten":
        # The first call of a torch.library.custom_op imports this, for seconds: once, not per fork.
        with contextlib.suppress(ImportError):
            importlib.import_module("torch._dynamo")
    entries = _entries(namespace, names, only)
    recorded: dict[str, list[bytes]] = {}

    def record(entry: Any, first: int) -> Iterator[tuple[int, Any]]:
        yield first, None
        for step, calls in from_op_db.record(entry, namespace):
            if step >= first:
                yield step, calls
                yield step + 1, None

    for result in workers.run(
        entries,
        record,
        processes=processes,
        seconds=seconds,
        progress=lambda done: progress("recording torch's samples", done, len(entries)),
    ):
        for name, data in result.value or ():
            kept = recorded.setdefault(name, [])
            if len(kept) < from_op_db.PER_OVERLOAD:
                kept.append(data)

    examiner = Examiner(recorded, tuple(devices))
    rows: dict[int, list[workers.Result]] = {index: [] for index in range(len(names))}
    for result in workers.run(
        names,
        examiner,
        processes=processes,
        seconds=seconds,
        memory=None if "cuda" in devices else workers.MEMORY,
        chunk=workers.CHUNK if len(devices) == 1 else 10 * workers.CHUNK,
        progress=lambda done: progress("running ops", done, len(names)),
    ):
        rows[result.job].append(result)
    return Survey(
        namespace,
        tuple(devices),
        tuple(_row(names[index], results) for index, results in rows.items()),
        "process" if workers.is_possible() else "none",
        bool(entries),
    )


def _entries(namespace: str, names: Sequence[str], only: Sequence[str]) -> list[Any]:
    """The entries of op_db; with a filter those alone that are named like a wanted op."""
    if namespace != "aten" or not names:
        return []
    entries = list(from_op_db.op_db())
    if only:
        bare = {name.partition("::")[2].partition(".")[0].strip("_") for name in names}
        entries = [
            entry
            for entry in entries
            if any(_bare(entry.name) in other or other in _bare(entry.name) for other in bare)
        ]
    # Jiterator ops are CUDA's alone, whatever their entry says.
    return [entry for entry in entries if not entry.name.startswith("jiterator")]


def _bare(name: str) -> str:
    return name.rpartition(".")[2].strip("_")


class Examiner:
    """The job of one overload: inputs, one after the other, until enough of them ran."""

    def __init__(self, recorded: dict[str, list[bytes]], devices: tuple[str, ...]) -> None:
        self._recorded = recorded
        self._devices = devices

    def __call__(self, name: str, first: int) -> Iterator[tuple[int, Any]]:
        try:
            op = schemas.overload(name)
        except AttributeError:
            yield 0, ("refused", "torch.ops has no such op", "")
            return
        refusal = by_hand.SKIPPED.get(name)
        if refusal is None and not schemas.can_run(name, self._devices[0]):
            elsewhere = ", ".join(schemas.kernels_elsewhere(name)) or "no backend"
            refusal = f"no kernel for {self._devices[0]}: has {elsewhere}"
        if refusal is not None:
            yield 0, ("refused", refusal, "")
            return
        step = ran = made = 0
        silent: set[str] | None = None
        for source, call in self._calls(name, op):
            is_made = source.startswith("made")
            if ran >= ENOUGH or (
                is_made and silent is not None and not silent and made >= 1 and ran >= 2
            ):
                break
            if is_made and made >= ENOUGH_MADE and not (silent and made < 12):
                break
            if step < first:
                step += 1
                continue
            yield step, None
            value = self._try(op, source, call)
            if value[0] == "ran":
                ran += 1
                made += is_made
                unseen = set(value[3])
                silent = unseen if silent is None else silent & unseen
            yield step, value
            step += 1

    def _try(self, op: Any, source: str, call: Callable[[], Call | None]) -> tuple[Any, ...]:
        try:
            prepared = call()
        except Exception as error:
            return ("refused", errors.one_line(error), source)
        if prepared is None:
            return ("unfit",)
        args, kwargs = prepared
        keep = len(self._devices) > 1
        outcome, findings = examine(
            op, args, kwargs, source=source, device=self._devices[0], keep=keep
        )
        if not outcome.ran:
            return ("refused", outcome.runs[witnesses.GRAD].error, source)
        for device in self._devices[1:]:
            other = witnesses.observe(op, args, kwargs, source=source, device=device, keep=True)
            findings += comparison.compare(outcome, other)
        return ("ran", source, findings, outcome.silent())

    def _calls(self, name: str, op: Any) -> Iterator[tuple[str, Callable[[], Call | None]]]:
        """(where from, a function that makes the arguments), best first."""
        for source, make in by_hand.makers(name):
            yield source, make
        for data in self._recorded.get(name, ()):
            yield "op_db", lambda data=data: from_op_db.unpack(data)  # type: ignore[misc]
        if schemas.of(op).is_writable:
            for other in from_op_db.sources(name, self._recorded):
                origin = schemas.overload(other)
                for source, make in by_hand.makers(other):
                    yield (
                        source,
                        lambda make=make, origin=origin: from_op_db.derive(  # type: ignore[misc]
                            op, origin, make()
                        ),
                    )
                for data in self._recorded[other][:3]:
                    yield (
                        f"from op_db's {other}",
                        lambda data=data, origin=origin: from_op_db.derive(  # type: ignore[misc]
                            op, origin, from_op_db.unpack(data)
                        ),
                    )
            yield from self._siblings(name, op)
        outs = any(argument.is_out for argument in schemas.of(op).arguments)
        for source, call in from_schema.calls(op):
            if outs:
                yield source, lambda call=call: from_schema.fitted(op, call)  # type: ignore[misc]
            yield source, lambda call=call: call  # type: ignore[misc]

    def _siblings(
        self, name: str, op: torch._ops.OpOverload
    ) -> Iterator[tuple[str, Callable[[], Call | None]]]:
        """From the inputs that are made for functional siblings which torch's samples do not call.

        What the sibling returns says what out= has to look like: its layout too.
        """
        known = schemas.names(name.partition("::")[0])
        for other in from_op_db.sources(name, known):
            origin = schemas.overload(other)
            if other in self._recorded or schemas.of(origin).is_writable:
                continue
            for source, make in by_hand.makers(other):
                yield (
                    source,
                    lambda make=make, origin=origin: from_op_db.derive(  # type: ignore[misc]
                        op, origin, make()
                    ),
                )
            for source, call in from_schema.calls(origin):
                yield (
                    source,
                    lambda call=call, origin=origin: from_op_db.derive(  # type: ignore[misc]
                        op, origin, call
                    ),
                )


def _row(name: str, results: Iterable[workers.Result]) -> Row:
    findings: list[Finding] = []
    silent: set[str] | None = None
    ran, source, crashed = 0, "", ""
    refusals: list[tuple[str, str]] = []
    for result in results:
        if result.fault:
            crashed = crashed or result.fault
            continue
        kind = result.value[0]
        if kind == "refused":
            refusals.append(result.value[1:])
        elif kind == "ran":
            _, where, found, unseen = result.value
            ran += 1
            source = source or where
            findings += found
            silent = set(unseen) if silent is None else silent & set(unseen)
    merged = verdicts.merged(findings)
    merged = [
        finding
        for finding in merged
        if finding.kind != verdicts.NO_CHANGE or finding.subject.partition("[")[0] in (silent or ())
    ]
    return Row(
        name,
        _is_writable(name),
        ran,
        source,
        "" if ran else _refusal(refusals) or crashed or "no inputs were found",
        tuple(sorted(silent or ())),
        crashed,
        tuple(merged),
    )


def _is_writable(name: str) -> bool:
    try:
        return schemas.of(schemas.overload(name)).is_writable
    except AttributeError:
        return False


def _refusal(refusals: Sequence[tuple[str, str]]) -> str:
    """The most telling of (refusal, where the inputs are from).

    Tensors of another layout than most ops know are left out if anything else was tried. Then what
    most inputs met counts: an op without a kernel says so to all that fit its schema.
    """
    layouts = tuple(from_schema.LAYOUTS)
    plain = [text for text, source in refusals if not source.endswith(layouts)]
    # A sibling's inputs lack what only this overload takes; that says nothing of the op.
    texts = [text for text in plain if "is missing value for argument" not in text]
    texts = texts or [text for text, _ in refusals]
    missing = [text for text in texts if _NO_KERNEL.search(text)]
    others = [text for text in texts if not _NO_KERNEL.search(text)]
    chosen = missing if len(missing) > len(others) else others
    return next((text for text in chosen if _NOT_BUILT.search(text)), (chosen or [""])[0])


_NO_KERNEL = re.compile(r"no kernel for|Could not run|not implemented for 'CPU'|NotImplemented")
_NOT_BUILT = re.compile(
    r"not compiled|not built|built with|compiled with|not available|not supported on|only supported"
    r"|requires? (CUDA|MKL|cu)|[Nn]ot linked|unsupported"
)


def reason(refused: str) -> str:
    """A refusal put into one of a few classes."""
    if re.search(r"no kernel for", refused):
        return refused
    if refused.startswith("opens a file"):
        return refused
    if re.search(r"Could not run|NotImplementedError", refused):
        return "no CPU kernel for the tensors that were tried"
    if _NOT_BUILT.search(refused):
        return "says that this build or machine lacks what it needs"
    if refused.startswith(("killed its process", "ended its process", "ran longer")):
        return f"every input {refused}"
    return "refused every input that was tried"
