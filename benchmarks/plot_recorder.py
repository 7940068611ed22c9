"""The recorder benchmark's chart and its short table, from the rows of recorder.json alone.

Owns how the result looks. It measures nothing and knows no subject or way by name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row: TypeAlias = "dict[str, Any]"

PANELS = {
    "op": "single operations",
    "small": "small steps (launch-bound)",
    "large": "large steps",
}
# Below 1 % the axis is linear, above it logarithmic, so that 0, 2 % and 30 times are all readable.
LINEAR_PERCENT = 1.0
TICKS = (-10, -1, 0, 1, 3, 10, 30, 100, 300, 1000, 3000)
MARKERS = "osD^vPX*<>hd"
BY_SIZE = "what each way adds, by how long the step takes"


def draw_file(path: Path) -> Path:
    """Draw the JSON at `path` to a PNG of the same name; returns that. ValueError: other JSON."""
    try:
        result = json.loads(path.read_text())
        rows, machine = result["rows"], result["machine"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of recorder.py: {error!r}") from error
    figure = draw(rows, machine)
    drawn = path.with_suffix(".png")
    # Beside it first, then renamed: a run that is stopped leaves the old picture whole.
    partial = drawn.with_name(f".{drawn.name}.{os.getpid()}")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(drawn)
    return drawn


def draw(rows: list[Row], machine: dict[str, Any]) -> Figure:
    """Added time by way, one panel per group of subjects, 95 % intervals as bars.

    Below them all subjects by their size: microseconds of a step, and what is added to it.
    """
    from matplotlib.figure import Figure

    timed = [row for row in rows if row["group"] in PANELS]
    groups = [group for group in PANELS if any(row["group"] == group for row in timed)]
    if not groups:
        raise ValueError("no row to draw: no single op and no step was measured")
    ways = [way for way in _unique(timed, "way") if not _is_base(way, timed)]
    of = {group: [row for row in timed if row["group"] == group] for group in groups}
    most = max(len(_unique(each, "subject")) for each in of.values())
    upper = 2.2 + max(0.42, 0.15 * most) * len(ways)
    figure = Figure(figsize=(5.2 + 3.6 * len(groups), upper + 4.5), layout="constrained")
    grid = figure.add_gridspec(2, len(groups), height_ratios=(upper, 4.0))
    axes: list[Axes] = []
    for place, group in enumerate(groups):
        ax = figure.add_subplot(grid[0, place], sharey=axes[0] if axes else None)
        _panel(ax, of[group], ways)
        ax.set_title(PANELS[group], fontsize=10)
        ax.tick_params(labelleft=not axes)
        axes.append(ax)
    _by_size(figure.add_subplot(grid[1, :]), timed, ways)
    axes[0].set_yticks(range(len(ways)), ways)
    axes[0].invert_yaxis()
    clock = "processor time" if {row["clock"] for row in timed} == {"cpu"} else "time"
    figure.supxlabel(f"added {clock} in percent of that with nothing (95 % interval)", fontsize=9)
    threads = ", ".join(f"{count}" for count in sorted({row["threads"] for row in timed}))
    figure.suptitle(
        f"{machine['processor']}, {threads} thread{'s' if threads != '1' else ''}, "
        f"torch {machine['torch']}, {machine['date']}, commit {machine['commit']}",
        fontsize=8,
    )
    return figure


def _panel(ax: Axes, rows: list[Row], ways: list[str]) -> None:
    subjects = _unique(rows, "subject")
    ax.set_xscale("symlog", linthresh=LINEAR_PERCENT, linscale=0.6)
    ax.axvline(0.0, color="0.4", linewidth=1)
    for index, subject in enumerate(subjects):
        shown = [row for row in rows if row["subject"] == subject and row["way"] in ways]
        offset = (index - (len(subjects) - 1) / 2) * min(0.24, 0.84 / len(subjects))
        middle = [_percent(row["times nothing"]) for row in shown]
        ax.errorbar(
            middle,
            [ways.index(row["way"]) + offset for row in shown],
            xerr=[
                [at - _percent(row["low"]) for at, row in zip(middle, shown, strict=True)],
                [_percent(row["high"]) - at for at, row in zip(middle, shown, strict=True)],
            ],
            fmt=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            capsize=2.5,
            linewidth=1.2,
            label=subject,
        )
        for at, row in zip(middle, shown, strict=True):
            ax.annotate(
                f"{row['times nothing']:.3g}×",
                (max(at, _percent(row["high"])), ways.index(row["way"]) + offset),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    low = min((_percent(row["low"]) for row in rows), default=0.0)
    high = max((_percent(row["high"]) for row in rows), default=0.0)
    ax.set_xlim(min(-1.0, 1.2 * low), max(10.0, 4 * high))  # room for the text on the right
    ticks = [tick for tick in TICKS if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks], fontsize=7.5)
    ax.minorticks_off()
    ax.grid(axis="both", color="0.9", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.09), frameon=False)


def _by_size(ax: Axes, rows: list[Row], ways: list[str]) -> None:
    """A mark for each way and subject, where the subject's step with nothing stands on the axis."""
    alone = {row["subject"]: row["us"] for row in rows if row["low"] == row["high"] == 1.0}
    for index, way in enumerate(ways):
        shown = [row for row in rows if row["way"] == way and row["subject"] in alone]
        ax.plot(
            [alone[row["subject"]] for row in shown],
            [_percent(row["times nothing"]) for row in shown],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linestyle="none",
            color=f"C{index}" if index < 10 else "k",
            label=way,
        )
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=LINEAR_PERCENT, linscale=0.6)
    ax.set_ylim(min((_percent(row["times nothing"]) for row in rows), default=0.0) - 1.0)
    ax.axhline(0.0, color="0.4", linewidth=1)
    ticks = [tick for tick in TICKS if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{tick} %" for tick in ticks], fontsize=7.5)
    ax.minorticks_off()
    ax.grid(axis="both", color="0.9", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.set_xlabel("microseconds of a step with nothing", fontsize=8)
    ax.set_title(BY_SIZE, fontsize=10)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def summary(rows: list[Row]) -> str:
    """A Markdown table: a line for each way, a column for each subject, times nothing [low, high].

    The idle and the memory rows follow as tables of their own.
    """
    timed = [row for row in rows if row["group"] in PANELS]
    idle = [row for row in rows if row["group"] == "idle"]
    memory = [row for row in rows if row["group"] == "memory"]
    blocks = [_pivot(part, _times) for part in (timed, idle) if part]
    blocks += [_pivot(memory, lambda row: f"{row['bytes per event']:.0f} bytes")] if memory else []
    return "\n\n".join(blocks)


def _pivot(rows: list[Row], cell: Any) -> str:
    subjects = _unique(rows, "subject")
    found = {(row["subject"], row["way"]): cell(row) for row in rows}
    lines = [["", *subjects], ["---"] * (len(subjects) + 1)]
    for way in _unique(rows, "way"):
        lines.append([way, *(found.get((subject, way), "") for subject in subjects)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(row: Row) -> str:
    if row["low"] == row["high"] == 1.0:  # nothing, over itself
        microseconds = row["us"]
        return f"{microseconds:.2f} µs" if microseconds < 1e3 else f"{microseconds / 1e3:.4g} ms"
    return f"{row['times nothing']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def _is_base(way: str, rows: list[Row]) -> bool:
    return all(row["low"] == row["high"] == 1.0 for row in rows if row["way"] == way)


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def _unique(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))
