"""A mode comparison as a table, as a plot, and against an earlier one.

Reads finished comparisons and times nothing. rich and matplotlib are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import terminal
from gradext.base.text import clean
from gradext.mode_costs.comparison import in_words
from gradext.mode_costs.timing import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradext.mode_costs.call_counts import CallCounts
    from gradext.mode_costs.comparison import ModeComparison, ModeTime


def table(found: ModeComparison) -> str:
    """One row a mode, then in words what the ratios say."""
    head = ["mode", "time of a call", f"over {found.over}", *_COUNTS]
    bound = any(row.bound for row in found.rows)
    if bound:
        head.append("waits for")
    rows = [_cells(row, bound) for row in found.rows]
    threads = f"{found.threads} thread{'s' if found.threads != 1 else ''}"
    title = f"{found.label} on {found.device}, {threads}, {found.rounds} rounds"
    lines = [_table(title, head, rows), ""]
    for row in found.rows:
        if row.error is not None:
            lines.append(f"{row.mode}: not timed: {clean(str(row.error))}")
        elif row.ratio is not None:
            lines.append(f"{row.mode} over {found.over}: {in_words(row.ratio)}")
    lines += [f"note: {clean(note)}" for note in found.notes]
    return "\n".join(lines)


_COUNTS = ("ops", "nodes", "saved for backward", "version bumps", "views", "peak memory")


def _cells(row: ModeTime, bound: bool) -> list[str]:
    if row.time is None:
        return [row.mode, "-", "-", *["-"] * len(_COUNTS), *(["-"] if bound else [])]
    ratio = "1" if row.ratio is None else interval(row.ratio)
    cells = [row.mode, seconds(row.time), ratio, *_counts(row.counts)]
    return [*cells, row.bound or "-"] if bound else cells


def _counts(counts: CallCounts | None) -> list[str]:
    if counts is None:
        return ["-"] * len(_COUNTS)
    saved = "not counted"
    if counts.saved_tensors is not None and counts.saved_bytes is not None:
        saved = f"{counts.saved_tensors:,}"
        saved += f", {size(counts.saved_bytes)}" if counts.saved_bytes else ""
    return [
        f"{counts.ops:,}",
        f"{counts.nodes:,}",
        saved,
        f"{counts.version_bumps:,}",
        f"{counts.views:,}",
        "not counted" if counts.peak_bytes is None else size(counts.peak_bytes),
    ]


def interval(ratio: Estimate) -> str:
    """ "1.12 [1.10, 1.15]" """
    return f"{ratio.value:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"


def seconds(time: Estimate) -> str:
    """ "12.3 µs [12.1, 12.6]", in the unit that fits the value."""
    scale, unit = next(
        (scale, unit)
        for scale, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms"), (1.0, "s"))
        if time.value * scale < 1000 or unit == "s"
    )
    value, low, high = (_three(x * scale) for x in (time.value, time.low, time.high))
    return f"{value} {unit} [{low}, {high}]"


def _three(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(count: int) -> str:
    """ "3.1 MiB" """
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def against(now: ModeComparison, earlier: ModeComparison) -> str:
    """Each mode that both have: time then, time now, their ratio."""
    rows, lines = [], []
    for row in now.rows:
        old = next((o for o in earlier.rows if o.mode == row.mode), None)
        if old is None or old.time is None or row.time is None:
            lines.append(f"{row.mode}: timed in one of the two only")
            continue
        # Measured in two runs, so rounds cannot be paired: the ends of the intervals are.
        ratio = Estimate(
            row.time.value / old.time.value,
            row.time.low / old.time.high,
            row.time.high / old.time.low,
            min(row.time.confidence, old.time.confidence),
            min(row.time.samples, old.time.samples),
        )
        rows.append([row.mode, seconds(old.time), seconds(row.time), interval(ratio)])
        lines.append(f"{row.mode}: {in_words(ratio)}")
    then, today = earlier.machine, now.machine
    title = (
        f"{now.label}: now (torch {today['torch']}, commit {today['commit']}) against "
        f"{then['date']} (torch {then['torch']}, commit {then['commit']})"
    )
    return "\n".join([_table(title, ["mode", "then", "now", "now over then"], rows), "", *lines])


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    from rich.table import Table

    table = Table(
        title=clean(title), title_justify="left", title_style="", box=None, pad_edge=False
    )
    for index, name in enumerate(head):
        table.add_column(clean(name), justify="left" if index == 0 else "right", no_wrap=index < 3)
    for row in rows:
        table.add_row(*map(clean, row))
    # Wide enough for the table: a file has no width, and a narrow terminal wraps lines itself.
    wide = max(120, terminal.width(most=10_000, otherwise=120))
    return terminal.rendered(table, width=wide, markup=False)


def plot(found: ModeComparison) -> Figure:
    """A bar a mode: time over the baseline's, with its interval."""
    from matplotlib.figure import Figure

    timed = [row for row in found.rows if row.time is not None]
    ratios = [row.ratio or Estimate(1.0, 1.0, 1.0, 1.0, found.rounds) for row in timed]
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(timed)), layout="constrained")
    ax = figure.subplots()
    places = list(range(len(timed)))
    errors: Any = [
        [ratio.value - ratio.low for ratio in ratios],
        [ratio.high - ratio.value for ratio in ratios],
    ]
    ax.barh(places, [r.value for r in ratios], xerr=errors, color="#7a9cc6", capsize=3)
    ax.set_yticks(places, [row.mode for row in timed])
    ax.invert_yaxis()
    ax.axvline(1.0, color="0.3", linewidth=1)
    ax.set_xlabel(f"time over {found.over} (95 % interval)")
    ax.set_title(
        f"{found.label}\n{found.machine['processor']}, {found.threads} thread(s), "
        f"torch {found.machine['torch']}",
        fontsize=9,
    )
    return figure
