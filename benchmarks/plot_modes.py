"""The mode benchmark's pictures, from the rows of modes.json alone.

    python benchmarks/plot_modes.py benchmarks/results/modes.json

Owns how the result looks: the gain of inference_mode against the time of a call, and the modes of
each model. It measures nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
OVER = "inference_mode"
MARKERS = "osD^vPX<>p*h"


def draw_files(path: Path) -> list[Path]:
    """Draw the JSON at ``path`` to two PNGs beside it; returns them. ValueError: other JSON."""
    try:
        result = json.loads(path.read_text())
        rows, machine = result["rows"], result["machine"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of modes.py: {error!r}") from error
    drawn = []
    for name, figure in (("gain", gain(rows, machine)), ("models", models(rows, machine))):
        if figure is not None:
            target = path.with_name(f"{path.stem}-{name}.png")
            figure.savefig(target, dpi=120)
            drawn.append(target)
    return drawn


def timed(rows: list[Row], **wanted: Any) -> list[Row]:
    """The rows with a ratio whose columns are as ``wanted``."""
    return [
        row
        for row in rows
        if row["ratio"] is not None and all(row[key] == value for key, value in wanted.items())
    ]


def base_times(rows: list[Row]) -> dict[tuple[Any, ...], float]:
    """Microseconds of a call under inference_mode, by row of the matrix."""
    return {key(row): row["us"] for row in rows if row["mode"] == row["over"] == OVER}


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("what", "size", "threads", "device", "backend"))


def gain(rows: list[Row], machine: Row) -> Figure | None:
    """What no_grad adds to inference_mode, in percent, over the time of a call: one dot a row."""
    from matplotlib.figure import Figure

    shown = [
        row
        for row in timed(rows, mode="no_grad", over=OVER, backend="eager")
        if row["threads"] in (1, None)
    ]
    if not shown:
        return None
    base = base_times(rows)
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    ax = figure.subplots()
    names = list(dict.fromkeys(row["what"] for row in shown))
    for index, what in enumerate(names):
        mine = sorted((row for row in shown if row["what"] == what), key=lambda r: base[key(r)])
        middle = [percent(row["ratio"]) for row in mine]
        ax.errorbar(
            [base[key(row)] for row in mine],
            middle,
            yerr=[
                [m - percent(row["low"]) for m, row in zip(middle, mine, strict=True)],
                [percent(row["high"]) - m for m, row in zip(middle, mine, strict=True)],
            ],
            fmt=MARKERS[index % len(MARKERS)],
            linestyle="-" if mine[0]["group"] == "op" else "none",
            fillstyle="full" if mine[0]["group"] == "op" else "none",
            linewidth=0.8,
            markersize=5,
            capsize=2,
            color=f"C{index % 10}",
            label=what,
        )
    ax.axhline(0.0, color="0.4", linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=10)
    ticks = [t for t in (-50, -10, -5, 0, 5, 10, 20, 50, 100, 200) if _within(t, ax.get_ylim())]
    ax.set_yticks(ticks, [f"{tick}" for tick in ticks])
    ax.minorticks_off()
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.set_xlabel("time of a call under inference_mode, µs")
    ax.set_ylabel("no_grad takes longer by, %  (95 % interval)")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    ax.set_title(_where(machine), fontsize=8)
    return figure


def models(rows: list[Row], machine: Row) -> Figure | None:
    """Each model at each batch: the other modes over inference_mode, with intervals."""
    from matplotlib.figure import Figure

    shown = [
        row
        for row in timed(rows, group="model", over=OVER)
        if row["threads"] in (1, None) and row["mode"] != OVER
    ]
    if not shown:
        return None
    subjects = list(dict.fromkeys(f"{row['what']}, {row['size']}" for row in shown))
    names = list(dict.fromkeys(row["mode"] for row in shown))
    figure = Figure(figsize=(8.2, 1.4 + 0.5 * len(subjects)), layout="constrained")
    ax = figure.subplots()
    for index, mode in enumerate(names):
        mine = [row for row in shown if row["mode"] == mode]
        middle = [percent(row["ratio"]) for row in mine]
        offset = (index - (len(names) - 1) / 2) * 0.18
        ax.errorbar(
            middle,
            [subjects.index(f"{row['what']}, {row['size']}") + offset for row in mine],
            xerr=[
                [m - percent(row["low"]) for m, row in zip(middle, mine, strict=True)],
                [percent(row["high"]) - m for m, row in zip(middle, mine, strict=True)],
            ],
            fmt=MARKERS[index],
            markersize=4.5,
            capsize=2.5,
            linewidth=1.2,
            label=mode,
        )
    ax.axvline(0.0, color="0.4", linewidth=1)
    ax.set_yticks(range(len(subjects)), subjects, fontsize=8)
    ax.invert_yaxis()
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    ax.set_xlabel("takes longer than under inference_mode by, %  (95 % interval)")
    ax.legend(fontsize=8, frameon=False)
    ax.set_title(_where(machine), fontsize=8)
    return figure


def percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _where(machine: Row) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['processor']}{gpu}, 1 CPU thread, torch {machine['torch']}, "
        f"{machine['date']}, commit {machine['commit']}"
    )


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python benchmarks/plot_modes.py MODES.json", file=sys.stderr)
        return 2
    try:
        for path in draw_files(Path(sys.argv[1])):
            print(f"written: {path}")
    except (OSError, ValueError, ImportError) as error:
        print(f"no picture: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
