"""What grad, no_grad, inference_mode and detach cost: ops from launch-bound up, and models.

    python benchmarks/modes.py [--out DIR] [--quick] [--device cpu|cuda] [--only TEXT] [--list]
                               [--limit SECONDS] [--memory GIB] [--against OLD.json]

Needs the `bench` extra (transformers). Each row of the matrix is measured in five processes (three
where a compiler has part in it, and with --quick), one after another, with the modes taking turns;
the interval of a ratio reaches from the lowest to the highest end of the processes' own 95 %
intervals (of all their rounds where a process had fewer than six). A row that takes longer than the
limit, or more memory, is skipped and says so in the table.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import common
import matrix
import plot_modes
import processes
import torch
from matrix import Subject

from gradext.mode_costs import measure, timing
from gradext.mode_costs.clocks import clock_of
from gradext.mode_costs.timing import Estimate

OVER = "inference_mode"
COMPILED_MODES = ("grad", "no_grad", "inference_mode")
BACKENDS = ("aot_eager", "inductor")
COMPILED = (
    *(("MLP", "batch 1"), ("ResNet-20", "batch 1")),
    *(("LLM, decode", "batch 1"), ("ViT-B/16", "batch 1")),
)
# The intervals of three processes would lie apart in one of ten pairs of runs if nothing differed
# but the processes (2 * 3! 3! / 6!), those of five in one of a hundred. A compiler takes minutes.
PROCESSES, PROCESSES_COMPILED, PROCESSES_QUICK = 5, 3, 3
LEAST_ROUNDS = 3  # in one process
QUICK = (
    *(("x @ w", "5×5"), ("x.add_(y)", "2^2"), ("x.add_(y)", "2^18"), ("x.view(-1)", "8×8")),
    *(("MLP", "batch 1"), ("ResNet-20", "batch 1"), ("LLM, decode", "batch 1")),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A subject on a number of CPU threads, eager or compiled by a backend."""

    subject: Subject
    threads: int | None  # None: on a GPU the CPU's threads compute nothing
    backend: str = "eager"

    @property
    def name(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        backend = "" if self.backend == "eager" else f", {self.backend}"
        return f"{self.subject.what} {self.subject.size}{threads}{backend}"


def rows_of(device: str, quick: bool) -> list[Row]:
    """The matrix: each subject at 1 and 2 threads where they differ, some of them compiled."""
    on_cpu = torch.device(device).type == "cpu"
    counts = ((1,) if quick else (1, 2)) if on_cpu else (None,)
    rows, subjects = [], [*matrix.ops(), *matrix.models()]
    for subject in subjects:
        if quick and (subject.what, subject.size) not in QUICK:
            continue
        for threads in counts if subject.parallel else counts[:1]:
            rows.append(Row(subject, threads))
    for backend in ("aot_eager",) if quick else BACKENDS:
        for subject in subjects:
            key = (subject.what, subject.size)
            if key == ("MLP", "batch 1") or (key in COMPILED and not quick):
                rows.append(Row(subject, counts[0], backend))
    return rows


# --- in a worker ---------------------------------------------------------------------------------


def budget(row: Row, quick: bool) -> float:
    """Seconds for one row in one process."""
    if row.backend != "eager":
        return 1.0 if quick else 4.0
    if row.subject.group == "op":
        return 0.5
    return 1.5 if quick else 2.5


def measured(row: Row, device: str, quick: bool, counts: bool, limit: float) -> dict[str, Any]:
    """Estimates, counts and errors of one row in this process, as plain dicts."""
    prepared = row.subject.prepare(device)
    if row.backend != "eager":
        return measure_compiled(row, prepared, device, quick)
    found = measure.measure(
        lambda mode: prepared.build(lambda model: model),
        parameters=prepared.parameters,
        known=prepared.parameters,
        over=OVER,
        seconds=common.budget(budget(row, quick)),
        threads=row.threads,
        device=device,
        counts=counts,
        least_rounds=LEAST_ROUNDS,
        limit=limit,
    )
    return {
        "over": found.over,
        "rounds": found.rounds,
        "times": {r.mode: dataclasses.asdict(r.time) for r in found if r.time},
        "ratios": {
            f"{one} over {other}": dataclasses.asdict(ratio)
            for (one, other), ratio in found.ratios.items()
        },
        "counts": {r.mode: dataclasses.asdict(r.counts) for r in found if r.counts},
        "bound": {r.mode: r.bound for r in found if r.bound},
        "errors": {r.mode: r.error for r in found if r.error},
    }


def measure_compiled(
    row: Row, prepared: matrix.Prepared, device: str, quick: bool
) -> dict[str, Any]:
    """A compiled call against the same call in eager mode, under each of three modes."""
    import torch._dynamo

    torch._dynamo.reset()
    before = torch.get_num_threads()
    torch.set_num_threads(row.threads or before)
    cases: dict[str, timing.Case] = {}
    errors: dict[str, str] = {}
    for backend in ("eager", row.backend):
        for name in COMPILED_MODES:
            key = name if backend == row.backend else f"eager {name}"
            context = functools.partial(measure.MODES[name].on, prepared.parameters)
            try:
                with context():
                    call = prepared.build(_wrap(backend))
                    for _ in range(3):
                        call()
            except Exception as error:
                errors[key] = measure.one_line(error)
                continue
            cases[key] = timing.Case(call, context, clock_of(device, call).block)
    try:
        measured = timing.compare(
            cases, budget_seconds=common.budget(budget(row, quick)), least_rounds=LEAST_ROUNDS
        )
    finally:
        torch.set_num_threads(before)
    pairs = [(name, OVER) for name in COMPILED_MODES if name != OVER]
    pairs += [(name, f"eager {name}") for name in COMPILED_MODES]
    return {
        "over": OVER,
        "rounds": measured.rounds,
        "times": {name: dataclasses.asdict(measured.time(name)) for name in cases},
        "ratios": {
            f"{one} over {other}": dataclasses.asdict(measured.ratio(one, other))
            for one, other in pairs
            if one in cases and other in cases
        },
        "counts": {},
        "bound": {},
        "errors": errors,
    }


def _wrap(backend: str) -> matrix.Wrap:
    if backend == "eager":
        return lambda model: model
    return lambda model: torch.compile(model, backend=backend, dynamic=False)


def work(given: str, options: dict[str, Any]) -> None:
    """The worker's main: the rows that the parent asks for."""
    asked = json.loads(given)
    rows = {row.name: row for row in rows_of(options["device"], options["quick"])}
    processes.serve(
        lambda name: measured(
            rows[name],
            options["device"],
            options["quick"],
            counts=asked["process"] == 0,  # they are the same in each
            limit=options["limit"],
        ),
        asked["rows"],
    )


# --- in the parent -------------------------------------------------------------------------------

KEYS = (
    *("group", "what", "size", "elements", "threads", "device", "backend", "mode", "over"),
    *("us", "us low", "us high", "ratio", "low", "high"),
    *("ops", "nodes", "saved tensors", "saved bytes", "version bumps", "views", "peak bytes"),
    *("waits for", "rounds", "processes", "skipped"),
)


def pooled(row: Row, device: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the table for one row, from what each process found."""
    base: dict[str, Any] = dict.fromkeys(KEYS)
    base |= {
        "group": row.subject.group if row.backend == "eager" else "compiled",
        "what": row.subject.what,
        "size": row.subject.size,
        "elements": row.subject.elements,
        "threads": row.threads,
        "device": device,
        "backend": row.backend,
    }
    if "skipped" in results[0]:
        return [{**base, "skipped": results[0]["skipped"]}]
    lines = []
    first = results[0]
    for mode, reason in first["errors"].items():
        lines.append({**base, "mode": mode, "skipped": reason})
    over = first["over"]
    pairs = [(mode, over) for mode in first["times"] if not mode.startswith("eager ")]
    if row.backend != "eager":
        pairs += [(mode, f"eager {mode}") for mode, _ in pairs]
    elif over != "no_grad" and "no_grad" in first["times"]:
        pairs += [(mode, "no_grad") for mode, _ in pairs if mode not in (over, "no_grad")]
    for mode, below in pairs:
        times = [Estimate(**r["times"][mode]) for r in results if mode in r["times"]]
        time = timing.pool(times)
        line = {
            **base,
            "mode": mode,
            "over": below,
            "us": time.value * 1e6,
            "us low": time.low * 1e6,
            "us high": time.high * 1e6,
            "rounds": sum(r["rounds"] for r in results),
            "processes": len(times),
            "waits for": first["bound"].get(mode),
            **_counts(first["counts"].get(mode)),
        }
        key = f"{mode} over {below}"
        ratios = [Estimate(**r["ratios"][key]) for r in results if key in r["ratios"]]
        if ratios:
            ratio = timing.pool(ratios)
            line |= {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
        elif mode != below:
            continue  # one of the two raised
        lines.append(line)
    return lines


def _counts(counts: dict[str, Any] | None) -> dict[str, Any]:
    if counts is None:
        return {}
    names = ("ops", "nodes", "saved_tensors", "saved_bytes", "version_bumps", "views", "peak_bytes")
    return {name.replace("_", " "): counts[name] for name in names}


def main() -> int:
    ask = common.parser(__doc__ or "", suite=True)
    ask.add_argument("--only", default="", help="the rows whose name contains this")
    ask.add_argument("--list", action="store_true", help="print the rows' names and stop")
    ask.add_argument("--limit", type=float, help="seconds that a row may take in one process")
    ask.add_argument("--memory", type=float, help="GiB that a row may take (half of the machine's)")
    ask.add_argument("--worker", help=common.INTERNAL)
    args = ask.parse_args()
    options = {
        "device": common.device(args),
        "quick": args.quick,
        "limit": args.limit or (10.0 if args.quick else 30.0),
    }
    if args.worker is not None:
        work(args.worker, options)
        return 0
    rows = [row for row in rows_of(options["device"], args.quick) if args.only in row.name]
    if args.list:
        print("\n".join(row.name for row in rows))
        return 0
    if not rows:
        common.refuse(f"no row's name contains {args.only!r}; --list prints them")
    words = ["--device", options["device"], "--limit", str(options["limit"])]
    command = [sys.executable, os.path.abspath(__file__), *words]
    command += ["--quick"] if args.quick else []
    found = processes.collect(
        [*command, "--worker"],
        [row.name for row in rows],
        # A compiler is no part of what is measured, and takes its time.
        limits=processes.Limits(
            options["limit"] * (3 if args.quick else 6),
            int(args.memory * 2**30) if args.memory else processes.default_memory(),
        ),
        processes=PROCESSES_QUICK if args.quick else PROCESSES,
        fewer={row.name: PROCESSES_COMPILED for row in rows if row.backend != "eager"},
        label="modes",
    )
    lines = [line for row in rows for line in pooled(row, options["device"], found[row.name])]
    code = common.finish("modes", lines, args, short(lines))
    if args.out is not None:
        draw(args.out / "modes.json")
    return code


def draw(path: Path) -> None:
    """The pictures beside the result; a line where there can be none."""
    try:
        for drawn in plot_modes.draw_files(path):
            print(f"written: {drawn}")
    except ImportError as error:
        print(f"no pictures: {error}; run: pip install 'gradext[bench]'", file=sys.stderr)


def short(lines: list[dict[str, Any]]) -> str:
    """The tables for people: a line a row, the modes as columns; then compiled over eager."""
    tables = [common.table(pivot(lines))]
    if compiled := pivot_compiled(lines):
        tables.append(common.table(compiled))
    return "\n\n".join(tables)


def pivot(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict a row of the matrix: time under inference_mode, and the ratios to it."""
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    replayed = [line["mode"] for line in lines if str(line["mode"]).endswith("CUDA graph")]
    names = [*measure.MODES, *dict.fromkeys(replayed)]
    for line in lines:
        key = tuple(line[k] for k in ("what", "size", "threads", "device", "backend"))
        shown = table.setdefault(
            key,
            {
                "what": f"{line['what']} {line['size']}",
                "threads": line["threads"] or "",
                "run": line["backend"],
                "inference_mode": "",
                **{f"{name} over it": "" for name in names if name != OVER},
                "skipped": "",
            },
        )
        if line["skipped"]:
            mode = f"{line['mode']}: " if line["mode"] else ""
            shown["skipped"] = f"{shown['skipped']} {mode}{line['skipped']}".strip()
        elif line["mode"] == OVER == line["over"]:
            shown["inference_mode"] = common.microseconds(line["us"])
        elif line["over"] == OVER and line["mode"] in names:
            shown[f"{line['mode']} over it"] = common.interval(line)
    return list(table.values())


def pivot_compiled(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict a compiled row: its time over that of the same call in eager mode, by mode."""
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        if line["ratio"] is None or line["over"] != f"eager {line['mode']}":
            continue
        shown = table.setdefault(
            (line["what"], line["size"], line["backend"]),
            {
                "compiled over eager, in the same mode": f"{line['what']} {line['size']}",
                "threads": line["threads"] or "",
                "run": line["backend"],
                **dict.fromkeys(COMPILED_MODES, ""),
            },
        )
        shown[line["mode"]] = common.interval(line)
    return list(table.values())


if __name__ == "__main__":
    sys.exit(main())
