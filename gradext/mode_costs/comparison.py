"""What was found of a call under each mode: the rows, their ratios, and what these say in words.

Owns what may be concluded from a comparison, and its JSON and CSV. Measures nothing (`measure`
does) and draws nothing (gradext.reporters.compare_modes does, from finished comparisons).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradext.base import display
from gradext.mode_costs import machine, timing
from gradext.mode_costs.call_counts import CallCounts
from gradext.mode_costs.timing import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ModeTime:
    """One row: a mode, its time, its counts, or why it has none.

    time: seconds of a call. ratio: over the baseline's time, None for the baseline itself.
    launch: seconds the CPU took to launch the call's work; only on CUDA.
    """

    mode: str
    time: Estimate | None = None
    ratio: Estimate | None = None
    launch: float | None = None
    counts: CallCounts | None = None
    error: str | None = None

    @property
    def bound(self) -> str | None:
        """On CUDA "CPU" or "GPU": who the other waits for. None elsewhere."""
        if self.launch is None or self.time is None:
            return None
        return "CPU" if self.launch >= CPU_BOUND * self.time.value else "GPU"


# Launching takes nearly as long as the work: the device waits for the CPU.
CPU_BOUND = 0.9


@dataclasses.dataclass(frozen=True, repr=False)
class ModeComparison(display.Shown):
    """What `compare_modes` found; prints as a table.

    ratios: (mode, over) -> time of the one over that of the other, for every pair.
    """

    label: str
    device: str
    threads: int
    over: str
    rows: tuple[ModeTime, ...]
    ratios: Mapping[tuple[str, str], Estimate]
    rounds: int
    calls: int
    machine: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        measured: timing.Comparison,
        over: str,
        *,
        rows: Mapping[str, ModeTime] | None = None,
        label: str = "",
        device: str = "cpu",
        threads: int = 1,
        notes: tuple[str, ...] = (),
    ) -> ModeComparison:
        """What the rounds of ``measured`` say. ``rows`` have what else is known of each mode."""
        timed = list(measured.seconds)
        filled = dict(rows) if rows is not None else {name: ModeTime(name) for name in timed}
        for name in timed:
            filled[name] = dataclasses.replace(
                filled[name],
                time=measured.time(name),
                ratio=None if name == over else measured.ratio(name, over),
            )
        return cls(
            label=label,
            device=device,
            threads=threads,
            over=over,
            rows=tuple(filled.values()),
            ratios={(a, b): measured.ratio(a, b) for a in timed for b in timed if a != b},
            rounds=measured.rounds,
            calls=measured.calls,
            machine=machine.record(),
            notes=notes,
        )

    def __getitem__(self, mode: str) -> ModeTime:
        for row in self.rows:
            if row.mode == mode:
                return row
        raise KeyError(f"no mode {mode!r} in this comparison: {', '.join(r.mode for r in self)}")

    def __iter__(self) -> Iterator[ModeTime]:
        return iter(self.rows)

    def time(self, mode: str) -> Estimate:
        """Seconds of a call under ``mode``. ValueError where it was not timed, with the reason."""
        found = self[mode].time
        if found is None:
            raise ValueError(f"{mode} was not timed: {self[mode].error}")
        return found

    def ratio(self, mode: str, over: str | None = None) -> Estimate:
        """Time under ``mode`` over time under ``over`` (the baseline), with its 95 % interval.

        Raises ValueError where one of them was not timed, with the reason.
        """
        below = self.over if over is None else over
        self.time(mode), self.time(below)
        if mode == below:
            return Estimate(1.0, 1.0, 1.0, 1.0, self.rounds)
        return self.ratios[mode, below]

    def difference(self, mode: str, over: str | None = None) -> str:
        """A text: how much longer (+) or shorter a call takes, or that nothing can be seen."""
        return in_words(self.ratio(mode, over))

    def __str__(self) -> str:
        return display.show("compare_modes.table", self)

    __repr__ = __str__  # at the prompt the table is what one wants to see

    def _repr_html_(self) -> str:
        return display.show("ansi_html.result", "compare_modes.table", self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """A bar a mode, with its interval; written to ``path`` (.png, .svg, .pdf) if given.

        Needs matplotlib (``pip install 'gradext[plot]'``), or raises ImportError.
        """
        figure: Figure = display.find("compare_modes.plot")(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes as JSON: plain dicts, lists, strings and numbers."""
        return {
            "format": FORMAT,
            **{key: getattr(self, key) for key in _PLAIN},
            "machine": dict(self.machine),
            "notes": list(self.notes),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "ratios": [
                {"mode": mode, "over": over, **dataclasses.asdict(ratio)}
                for (mode, over), ratio in self.ratios.items()
            ],
        }

    def to_csv(self) -> str:
        """One line a mode: time, ratio, counts."""
        lines = [_csv_row(row) for row in self.rows]
        file = io.StringIO()
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write JSON, or CSV where the name ends in ``.csv``."""
        path = Path(path)
        is_csv = path.suffix.lower() == ".csv"
        path.write_text(self.to_csv() if is_csv else json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ModeComparison:
        """Read what `save` wrote as JSON. ValueError: it is something else."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no mode comparison of gradext: {error!r}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModeComparison:
        """The comparison that `to_dict` described."""
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, and this gradext reads {FORMAT}")
        rows = tuple(_row(dict(row)) for row in data["rows"])
        ratios = {(r.pop("mode"), r.pop("over")): Estimate(**r) for r in map(dict, data["ratios"])}
        return cls(
            **{key: data[key] for key in _PLAIN},
            rows=rows,
            ratios=ratios,
            machine=data["machine"],
            notes=tuple(data["notes"]),
        )

    def against(self, earlier: ModeComparison | str | Path) -> str:
        """A table: each mode's time now over its time in ``earlier``.

        Raises ValueError where the two come from different machines (no ratio can be made of them),
        or from different thread counts or devices.
        """
        old = earlier if isinstance(earlier, ModeComparison) else ModeComparison.load(earlier)
        apart = machine.differences(old.machine, self.machine)
        for key in ("device", "threads"):
            if getattr(old, key) != getattr(self, key):
                apart.append(f"{key} {getattr(old, key)!r} and {getattr(self, key)!r}")
        if apart:
            raise ValueError(f"results of different machines make no ratio: {'; '.join(apart)}")
        return display.show("compare_modes.against", self, old)


_PLAIN = ("label", "device", "threads", "over", "rounds", "calls")


def in_words(ratio: Estimate) -> str:
    """ "+12 % [+10 %, +15 %]", or "no difference measurable" where the interval holds 1.0."""
    if ratio.holds(1.0):
        return "no difference measurable"
    return f"{percent(ratio.value)} [{percent(ratio.low)}, {percent(ratio.high)}]"


def percent(ratio: float) -> str:
    """A ratio as what it adds: "+3.1 %"; from twice on, "3.2×"."""
    if ratio >= 2:
        return f"{ratio:.3g}×"
    added = 100 * (ratio - 1)
    return f"{added:+.0f} %" if abs(added) >= 9.95 else f"{added:+.1f} %"


def _row(data: dict[str, Any]) -> ModeTime:
    for key in ("time", "ratio"):
        data[key] = Estimate(**data[key]) if data[key] else None
    data["counts"] = CallCounts(**data["counts"]) if data["counts"] else None
    return ModeTime(**data)


def _csv_row(row: ModeTime) -> dict[str, Any]:
    line: dict[str, Any] = {"mode": row.mode}
    for name, estimate in (("seconds", row.time), ("ratio", row.ratio)):
        for key in ("value", "low", "high"):
            line[f"{name} {key}"] = getattr(estimate, key) if estimate else ""
    for field in dataclasses.fields(CallCounts):
        line[field.name] = getattr(row.counts, field.name) if row.counts else ""
    return {**line, "error": row.error or ""}
