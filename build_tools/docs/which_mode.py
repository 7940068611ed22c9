"""docs/which-mode.md: the claims people repeat about the modes, each judged by measured figures.

    which_mode.py            write the page from benchmarks/results/modes.json
    which_mode.py --check    exit 1 if the page is out of date

Owns the claims and how the rows judge them. No verdict and no figure is typed by hand: a claim is a
function of the rows. Measures nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gradext.mode_costs.comparison import percent

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "which-mode.md"
DATA = ROOT / "benchmarks" / "results" / "modes.json"
OVER = "inference_mode"
# A gain below this is not worth a decision, whatever its interval.
MATTERS = 1.02
# "No difference measurable" within so much, to either side, is an answer; within more it is none.
BLUR = 0.05

Row = dict[str, Any]


class Judged(NamedTuple):
    """A verdict ("true", "false" or "depends") and the figures that it follows from."""

    verdict: str
    figures: str


class Results:
    """The rows of modes.json, asked for by what they are about."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.machine: Row = data["machine"]
        self.rows: list[Row] = data["rows"]

    def ratios(
        self, mode: str, over: str = OVER, blurred: bool = False, **wanted: Any
    ) -> list[Row]:
        """Rows of ``mode`` over ``over``; one CPU thread unless asked for.

        Without those whose interval holds 1 and is so wide that it says nothing, unless `blurred`.
        """
        asked = {"backend": "eager", "threads": 1, **wanted}
        return [
            row
            for row in self.rows
            if row["ratio"] is not None
            and (row["mode"], row["over"]) == (mode, over)
            and all(row[key] == value for key, value in asked.items())
            and (blurred or not is_blurred(row))
        ]

    def row(self, mode: str, over: str, what: str, size: str, **wanted: Any) -> Row | None:
        found = self.ratios(mode, over, what=what, size=size, **wanted)
        return found[0] if found else None

    def microseconds(self, row: Row) -> float:
        """Time under inference_mode of the call that ``row`` is about."""
        keys = ("what", "size", "threads", "device", "backend")
        return next(
            float(r["us"])
            for r in self.rows
            if r["mode"] == r["over"] == OVER and all(r[k] == row[k] for k in keys)
        )

    def counts(self, what: str, *names: str) -> list[Row]:
        """What was counted for a subject under each mode, at the largest size measured."""
        counted = [r for r in self.rows if r["what"] == what and r["ops"] is not None]
        size = counted[-1]["size"]
        return [
            next(r for r in counted if (r["mode"], r["size"]) == (name, size)) for name in names
        ]


def is_blurred(row: Row) -> bool:
    return bool(row["low"] <= 1.0 <= row["high"] and row["high"] - row["low"] > 2 * BLUR)


def shown(row: Row, name: bool = True) -> str:
    """ "ViT-B/16 batch 8: +1.2 % [+0.3 %, +2.0 %]" """
    about = f"{row['what']} {row['size']}: " if name else ""
    if row["low"] <= 1.0 <= row["high"]:
        wide = 100 * (row["high"] - row["low"]) / 2
        return f"{about}no difference measurable (±{wide:.1f} %)"
    return f"{about}{percent(row['ratio'])} [{percent(row['low'])}, {percent(row['high'])}]"


def listed(rows: list[Row]) -> str:
    return "; ".join(shown(row) for row in rows)


def faster(row: Row) -> bool:
    """The mode above certainly takes longer, and by enough to matter."""
    return bool(row["low"] > 1.0 and row["ratio"] >= MATTERS)


def five_to_ten(results: Results) -> Judged:
    rows = results.ratios("no_grad", blurred=True, group="model")
    inside = [row for row in rows if 1.05 <= row["ratio"] <= 1.10 and row["low"] > 1.0]
    verdict = "true" if len(inside) == len(rows) else "depends" if inside else "false"
    if not inside and any(row["low"] > 1.10 for row in results.ratios("no_grad", group="op")):
        verdict = "depends"
    return Judged(
        verdict,
        f"{len(inside)} of {len(rows)} model rows lie there. Over inference_mode, no_grad takes: "
        f"{listed(rows)}",
    )


def grows_with_model(results: Results) -> Judged:
    rows = results.ratios("no_grad", group="model", size="batch 1")
    rows.sort(key=results.microseconds)
    figures = "by the time of a call, the smallest first: " + listed(rows)
    if len(rows) > 1 and rows[-1]["low"] > rows[0]["high"]:
        return Judged("true", figures)
    shrunk = len(rows) > 1 and rows[-1]["high"] < rows[0]["low"] * MATTERS
    return Judged("false" if shrunk else "depends", figures)


def negligible_for_mlp(results: Results) -> Judged:
    rows = results.ratios("no_grad", what="MLP")
    matter = [row for row in rows if faster(row)]
    verdict = "true" if not matter else "false" if len(matter) == len(rows) else "depends"
    return Judged(verdict, listed(rows))


def matters_for_decode(results: Results) -> Judged:
    rows = results.ratios("no_grad", blurred=True, what="LLM, decode")
    matter = [row for row in rows if faster(row)]
    verdict = "false" if not matter else "true" if len(matter) == len(rows) else "depends"
    return Judged(verdict, listed(rows))


def views_are_cheaper(results: Results) -> Judged:
    rows = [
        row
        for what in ("x.view(-1)", "x[1:3]", "x.chunk(2)")
        for row in results.ratios("no_grad", blurred=True, what=what)
    ]
    verdict = "true" if rows and all(row["low"] > 1.25 for row in rows) else "depends"
    return Judged(verdict, listed(rows))


def writes_are_cheaper(results: Results) -> Judged:
    rows = [
        row
        for what in ("x.add_(y)", "x.copy_(y)")
        for row in results.ratios("no_grad", blurred=True, what=what)
    ]
    matter = [row for row in rows if faster(row)]
    verdict = "true" if len(matter) == len(rows) else "depends" if matter else "false"
    return Judged(verdict, listed(rows))


def no_grad_saves_time(results: Results) -> Judged:
    rows = results.ratios("grad", "no_grad", blurred=True, group="model")
    matter = [row for row in rows if faster(row)]
    verdict = "true" if len(matter) == len(rows) else "depends" if matter else "false"
    return Judged(verdict, "grad over no_grad, forward only: " + listed(rows))


def no_grad_saves_memory(results: Results) -> Judged:
    lines, less = [], []
    for what in ("MLP", "ResNet-20", "LLM, prefill of 128", "ViT-B/16"):
        grad, no_grad = results.counts(what, "grad", "no_grad")
        less.append(no_grad["peak bytes"] < grad["peak bytes"])
        lines.append(
            f"{what} {grad['size']}: at most {mebibytes(grad['peak bytes'])} with a graph, "
            f"{mebibytes(no_grad['peak bytes'])} without "
            f"({grad['saved tensors']:,} tensors, {mebibytes(grad['saved bytes'])}, kept for "
            "backward, the batch included)"
        )
    return Judged("true" if all(less) else "depends", "; ".join(lines))


def inference_saves_memory(results: Results) -> Judged:
    lines, less = [], []
    for what in ("MLP", "ResNet-20", "LLM, prefill of 128", "ViT-B/16"):
        no_grad, inference = results.counts(what, "no_grad", OVER)
        less.append(inference["peak bytes"] < 0.99 * no_grad["peak bytes"])
        lines.append(
            f"{what} {no_grad['size']}: {mebibytes(no_grad['peak bytes'])} and "
            f"{mebibytes(inference['peak bytes'])}"
        )
    verdict = "true" if all(less) else "depends" if any(less) else "false"
    return Judged(verdict, "at most, no_grad and inference_mode: " + "; ".join(lines))


def freezing_is_enough(results: Results) -> Judged:
    rows = results.ratios("detached", "no_grad", group="model")
    slower = [row for row in rows if faster(row)]
    verdict = "true" if not slower else "false" if len(slower) == len(rows) else "depends"
    return Judged(verdict, "detached and frozen over no_grad: " + listed(rows))


def freezing_helps_no_grad(results: Results) -> Judged:
    rows = results.ratios("no_grad_frozen", "no_grad", group="model")
    quicker = [row for row in rows if row["high"] < 1.0 and row["ratio"] <= 2 - MATTERS]
    verdict = "false" if not quicker else "true" if len(quicker) == len(rows) else "depends"
    return Judged(verdict, "no_grad and frozen over no_grad: " + listed(rows))


def batch_hides_it(results: Results) -> Judged:
    pairs = []
    for what in ("MLP", "ResNet-20", "LLM, decode", "LLM, prefill of 128", "ViT-B/16"):
        rows = results.ratios("no_grad", what=what)
        if len(rows) > 1:  # the smallest and the largest batch that are sharp enough
            pairs.append((rows[0], rows[-1]))
    larger = [pair for pair in pairs if pair[1]["low"] > pair[0]["high"]]
    return Judged(
        "false" if larger else "true",
        "; ".join(f"{shown(a)}, {shown(b)}" for a, b in pairs),
    )


def compiled_is_the_same(results: Results) -> Judged:
    rows = [
        row
        for backend in ("aot_eager", "inductor")
        for row in results.ratios("no_grad", backend=backend)
    ]
    matter = [row for row in rows if faster(row)]
    verdict = "true" if not matter else "false" if len(matter) == len(rows) else "depends"
    figures = "; ".join(f"{row['backend']}, {shown(row)}" for row in rows)
    return Judged(verdict, figures)


def compile_gains_more(results: Results) -> Judged:
    pairs = []
    for row in results.ratios(OVER, f"eager {OVER}", backend="inductor"):
        eager = results.row("no_grad", OVER, row["what"], row["size"])
        if eager is not None:
            pairs.append((row, eager))
    more = [(row, eager) for row, eager in pairs if 1 / row["high"] > eager["high"]]
    verdict = "true" if len(more) == len(pairs) else "depends" if more else "false"
    return Judged(
        verdict,
        "; ".join(
            f"{row['what']} {row['size']}: inductor takes {row['ratio']:.2f} "
            f"[{row['low']:.2f}, {row['high']:.2f}] of eager's time, leaving no_grad for "
            f"inference_mode gains {percent(eager['ratio'])}"
            for row, eager in pairs
        ),
    )


CLAIMS: list[tuple[str, Callable[[Results], Judged]]] = [
    ("inference_mode is 5 to 10 % faster than no_grad", five_to_ten),
    ("the gain of inference_mode over no_grad grows with the size of the model", grows_with_model),
    ("inference_mode is negligible for an MLP", negligible_for_mlp),
    ("inference_mode matters when an LLM decodes", matters_for_decode),
    ("a larger batch does not make the gain larger", batch_hides_it),
    ("views are where inference_mode gains most: at least a quarter of each", views_are_cheaper),
    ("writes in place are cheaper under inference_mode at every size", writes_are_cheaper),
    ("no_grad makes the forward faster than grad mode", no_grad_saves_time),
    ("no_grad needs less memory than grad mode", no_grad_saves_memory),
    ("inference_mode needs less memory than no_grad", inference_saves_memory),
    ("with inputs detached and parameters frozen, no_grad adds nothing", freezing_is_enough),
    ("under no_grad, freezing the parameters as well makes it faster", freezing_helps_no_grad),
    ("under torch.compile, inference_mode and no_grad take the same time", compiled_is_the_same),
    ("compiling gains more than leaving no_grad for inference_mode", compile_gains_more),
]


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"


def verdict_table(results: Results) -> str:
    lines = ["| people say | verdict |", "| --- | --- |"]
    lines += [f"| {claim} | **{judge(results).verdict}** |" for claim, judge in CLAIMS]
    return "\n".join(lines)


def reasons(results: Results) -> str:
    """Each claim with its verdict and the figures that it follows from."""
    lines = []
    for claim, judge in CLAIMS:
        found = judge(results)
        lines += ["", f"### {claim}: {found.verdict}", ""]
        lines += [f"- {part.strip()}" for part in found.figures.split("; ")]
    return "\n".join(lines[1:])


def where_it_stops(results: Results) -> str:
    """Where the gain over no_grad falls below 2 %, for each op that was measured at sizes."""
    lines = [
        "| op | time of a call from which the gain is below 2 %, or cannot be told from 0 |",
        "| --- | --- |",
    ]
    for what in dict.fromkeys(row["what"] for row in results.ratios("no_grad", group="op")):
        rows = sorted(results.ratios("no_grad", blurred=True, what=what), key=results.microseconds)
        over = [row for row in rows if faster(row)]
        if not over:
            said = f"at every size measured, from {results.microseconds(rows[0]):.3g} µs"
        elif over[-1] is rows[-1]:
            said = f"at none: {shown(rows[-1])}, {results.microseconds(rows[-1]):.3g} µs"
        else:
            last, after = over[-1], rows[rows.index(over[-1]) + 1]
            said = (
                f"between {results.microseconds(last):.3g} µs ({shown(last, name=False)}) and "
                f"{results.microseconds(after):.3g} µs ({shown(after, name=False)})"
            )
        lines.append(f"| {what} | {said} |")
    return "\n".join(lines)


def skipped(results: Results) -> str:
    """The rows that were not measured, and why."""
    lines = []
    for row in results.rows:
        if row["skipped"]:
            about = f"{row['what']} {row['size']}"
            threads = f", {row['threads']} thread(s)" if row["threads"] else ""
            how = "" if row["backend"] == "eager" else f", {row['backend']}"
            mode = f", {row['mode']}" if row["mode"] else ""
            lines.append(
                f"- {about}{threads}{how}{mode}: {row['skipped'].removeprefix('OverLimit: ')}"
            )
    return "\n".join(lines) or "Every row was measured."


def where(machine: Row) -> str:
    gpu = f"{machine['gpu']}" if machine["gpu"] else "no GPU"
    return (
        f"{machine['processor']}, {gpu}, torch {machine['torch']}, Python {machine['python']}, "
        f"{machine['date']}, commit {machine['commit']}"
    )


TEXT = """\
# Which mode?

Generated by `build_tools/docs/which_mode.py` from
[modes.json](../benchmarks/results/modes.json), which `gradext bench modes` wrote; every verdict
below is computed from its rows.

| you want | take |
| --- | --- |
| to train | grad mode |
| outputs that never meet autograd again (serving, metrics) | `inference_mode` |
| outputs that may be saved for backward later (a rotary cache, features, targets) | `no_grad` |
| gradients to the inputs but not to the weights | grad mode, `requires_grad_(False)` on them |
| one value out of the graph | `.detach()` |

What goes wrong when an inference tensor does meet autograd:
[GX201](../gradext/diagnosis/pages/GX201.md), [GX202](../gradext/diagnosis/pages/GX202.md),
[GX204](../gradext/diagnosis/pages/GX204.md). Whether your model can run under `inference_mode` at
all: `gradext check --inference` ([inference-audit.md](inference-audit.md)). What it gains for
your own call:

```python
print(gradext.compare_modes(model, batch))
```

## What people say

How a figure reads: "+12 % [+10 %, +15 %]" is the time under no_grad over that under
inference_mode less one, with an interval from five processes (three where it is compiled): the
lowest to the highest end of their own 95 % intervals, or of all rounds where a process had too few
for one. "No difference measurable": the interval holds 0, and reaches no further
than 5 % to either side on average. A less sharp row shows nothing: a claim that there is a gain in
each row is not true with one, and a claim that there is none is judged without it; they are listed
at the end. A gain counts only from 2 % on, and only where the interval excludes 0. CPU, one thread.

{verdicts}

{reasons}

## Where does inference_mode stop mattering?

What it saves is per op, not per byte: a fixed time for the version counter, the view and the
passage through two dispatch keys. So the gain is large where ops are small, and is gone where one
op takes long.

![gain over the time of a call](../benchmarks/results/modes-gain.png)

{stops}

## Models

![modes of each model](../benchmarks/results/modes-models.png)

The whole table, with two threads and the compiled rows, is in
[benchmarks/README.md](../benchmarks/README.md).

## What was not measured

CUDA: not measured on a GPU yet.

{skipped}

Measured, and too blurred to judge a claim (no_grad over inference_mode, one thread):

{blurred}

({where})
"""


def page(data: dict[str, Any]) -> str:
    results = Results(data)
    return TEXT.format(
        verdicts=verdict_table(results),
        reasons=reasons(results),
        stops=where_it_stops(results),
        skipped=skipped(results),
        blurred="\n".join(
            f"- {shown(row)}" for row in results.ratios("no_grad", blurred=True) if is_blurred(row)
        ),
        where=where(results.machine),
    )


def main() -> int:
    new = page(json.loads(DATA.read_text()))
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text() != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
