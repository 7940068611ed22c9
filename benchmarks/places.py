"""The places where people train: what gradext does there, and what it costs.

    python benchmarks/places.py [--out DIR] [--quick] [--only NAME]

Each place runs one training in a process of its own, alone and with gradext, in turns. Clean, it
must print the same, end with the same code and learn the same parameters, bit by bit. Broken, one
tensor is written after a layer has saved it: the report should name both lines. The cost is
measured within one process, which records every second step: the median of the ratios of a
recorded step to the one before it, by processor time (one thread, 3 small layers: steps so short
that recording costs much). A place whose framework is not installed is left out with a word;
`nox -s frameworks` has all of them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import common
import places_programs

from gradext.mode_costs import timing

ROOT = Path(__file__).resolve().parents[1]
GRADEXT = ("-m", "gradext", "run", "--json", "report.json", "--quiet")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
NOTEBOOK = str(ROOT / "benchmarks" / "places_notebook.py")


class Place(NamedTuple):
    """A place.

    Attributes:
        alone, recorded: what stands behind `python`. needs: modules.
        how: as a person types it.
    """

    alone: tuple[str, ...]
    recorded: tuple[str, ...]
    how: str
    needs: tuple[str, ...] = ()


def script(*needs: str) -> Place:
    return Place(("train.py",), (*GRADEXT, "train.py"), "gradext run train.py", needs)


def of_pytest(*words: str, needs: tuple[str, ...] = ("pytest",)) -> Place:
    alone = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *words, "test_train.py")
    ours = ("-p", "gradext_pytest", "--gradext", "--gradext-json", "report.json")
    return Place(alone, (*alone, *ours), " ".join(("pytest --gradext", *words)), needs)


PLACES = {
    "a script": script(),
    "pytest": of_pytest(),
    "pytest -n 2": of_pytest("-n", "2", needs=("pytest", "xdist")),
    "IPython": Place(
        ("-m", "IPython", "--colors=nocolor", "train.py"),
        (*GRADEXT, "-m", "IPython", "--colors=nocolor", "train.py"),
        "gradext run -m IPython train.py",
        ("IPython",),
    ),
    "Jupyter": Place(
        (NOTEBOOK, "plain"), (NOTEBOOK, "gradext"), "%load_ext gradext", ("nbclient", "ipykernel")
    ),
    "torchrun, 2 ranks": Place(
        (*TORCHRUN, "train.py"),
        (*GRADEXT, *TORCHRUN, "train.py"),
        "gradext run -m torch.distributed.run … train.py",
    ),
    "DataLoader, 2 workers": script(),
    "torch.compile": script(),
    "checkpoint, reentrant": script(),
    "checkpoint, non-reentrant": script(),
    "AMP": script(),
    "torch.func": script(),
    "Lightning": script("lightning"),
    "transformers' Trainer": script("transformers", "accelerate"),
    "accelerate": script("accelerate"),
}


class Ran(NamedTuple):
    """What a program printed, its code, the hash of what it learnt, the seconds of its steps."""

    printed: str
    code: int
    learnt: str
    times: tuple[list[float], list[float]]
    found: list[dict[str, Any]]
    errors: str


def run(words: tuple[str, ...], text: str, site: Path) -> Ran:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = "test_train.py" if "test_train.py" in words else "train.py"
        (folder / file).write_text(text)
        # What the wheel's .pth file does at each start of Python, for children too.
        path = os.pathsep.join((str(site), str(ROOT)))
        env = {k: v for k, v in os.environ.items() if not k.startswith("GRADEXT_")}
        env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}
        env |= {"IPYTHONDIR": name, "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip

        def kept(what: str) -> str:
            path = folder / what
            return path.read_text() if path.is_file() else ""

        report = kept("report.json")
        found: Any = json.loads(report) if report else {"diagnoses": []}
        if "diagnoses" not in found:  # pytest's, by test
            tests = found.get("tests", [])
            found = {"diagnoses": [d for test in tests for d in test.get("diagnoses", [])]}
        printed = re.sub(r"\d+\.\d+s", "...s", done.stdout)
        printed = "\n".join(line for line in printed.splitlines() if not _is_own(line))
        return Ran(
            printed,
            done.returncode,
            kept("learnt"),
            ast.literal_eval(kept("times") or kept("times0") or "([], [])"),
            found["diagnoses"],
            done.stderr,
        )


def _is_own(line: str) -> bool:
    """What pytest prints of its plugin."""
    return line.startswith(("gradext:", "plugins:"))


def named(found: list[dict[str, Any]], text: str) -> str:
    """Which of the two lines a report has named."""
    lines = text.splitlines()
    wanted = {
        mark: next(k for k, line in enumerate(lines, 1) if line.endswith(mark))
        for mark in (places_programs.WRITES, places_programs.SAVES)
    }
    for diagnosis in found:
        writes = [site["line"] for site in diagnosis["culprits"]]
        saves = [site["line"] for site in diagnosis["victims"]]
        said = [
            word
            for word, has in (
                ("write", wanted[places_programs.WRITES] in writes),
                ("save", wanted[places_programs.SAVES] in saves),
            )
            if has
        ]
        if said:
            return f"{diagnosis['code']}: the {' and the '.join(said)}"
    return ", ".join(sorted({d["code"] for d in found})) or "nothing"


def cost(name: str, place: Place, site: Path, steps: int) -> dict[str, Any]:
    """A recorded step over the one before it: the median, and the interval of that median."""
    text = places_programs.program(name, steps=steps, turns=True)
    measured = run(place.alone, text, site)
    plain, recorded = measured.times
    # The first steps make what later ones use: caches, compiled code, the optimizer's state.
    skipped = min(10, len(recorded) // 4)
    pairs = list(zip(plain, recorded, strict=False))[skipped:]
    ratios = [ours / theirs for theirs, ours in pairs if theirs > 0]
    if not ratios:
        return {"cost": None, "low": None, "high": None, "steps": 0}
    found = timing.median_interval(ratios)
    return {
        "cost": round(found.value, 2),
        "low": round(found.low, 2),
        "high": round(found.high, 2),
        "steps": len(ratios),
    }


def row(name: str, place: Place, site: Path, steps: int, rounds: int) -> dict[str, Any]:
    """One place, measured."""
    clean = places_programs.program(name, steps=steps)
    pairs = [
        (run(place.alone, clean, site), run(place.recorded, clean, site)) for _ in range(rounds)
    ]
    first = pairs[0][0]
    broken = places_programs.program(name, broken=True, steps=steps)
    recorded = run(place.recorded, broken, site)
    everything = [each for pair in pairs for each in pair]
    return {
        "place": name,
        "how": place.how,
        "same stdout": all(each.printed == first.printed for each in everything),
        "same exit code": all(each.code == first.code == 0 for each in everything),
        "same parameters": bool(first.learnt)
        and all(each.learnt == first.learnt for each in everything),
        "quiet": not any(ours.found for _, ours in pairs),
        "fails": recorded.code != 0,
        "named": named(recorded.found, broken),
        **cost(name, place, site, steps),
    }


def _kept(folder: Path | None) -> dict[str, dict[str, Any]]:
    path = folder / "places.json" if folder is not None else Path("nowhere")
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return {row["place"]: row for row in rows}


def main() -> int:
    ask = common.parser(__doc__)
    ask.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="this place; the others' rows stay as they are in DIR",
    )
    ask.add_argument("--rounds", type=int, help="pairs of runs of each place (5; 1 with --quick)")
    ask.add_argument("--cost", action="store_true", help="only the cost, into the rows in DIR")
    args = ask.parse_args()
    steps, rounds = (20, 1) if args.quick else (300, 5)
    rounds = args.rounds or rounds
    rows = []
    kept = _kept(args.out) if args.only or args.cost else {}
    with tempfile.TemporaryDirectory() as site:
        line = (ROOT / "build_tools" / "gradext-autostart.pth").read_text()
        Path(site, "sitecustomize.py").write_text(f"exec({line!r})\n")
        for name, place in PLACES.items():
            if args.only and name not in args.only:
                rows += [kept[name]] if name in kept else []
                continue
            missing = [each for each in place.needs if importlib.util.find_spec(each) is None]
            if missing:
                print(f"{name}: left out, no {', '.join(missing)} here", file=sys.stderr)
                continue
            try:
                if args.cost:
                    one = cost(name, place, Path(site), steps)
                    rows.append({**kept.get(name, {"place": name}), **one})
                else:
                    rows.append(row(name, place, Path(site), steps, rounds))
            except subprocess.TimeoutExpired:
                print(f"{name}: left out, it took too long", file=sys.stderr, flush=True)
                continue
            print(rows[-1], file=sys.stderr, flush=True)
            if args.out is not None:  # an hour's work, which may be cut short
                with contextlib.redirect_stdout(io.StringIO()):
                    common.record("places", rows, args.out)
    common.record("places", rows, args.out)
    wrong = [
        each["place"]
        for each in rows
        if not all(
            each.get(k, True) for k in ("same stdout", "same exit code", "same parameters", "quiet")
        )
    ]
    if wrong:
        print(f"changed by gradext: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
