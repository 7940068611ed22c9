"""`gradext bench`: runs the suites of benchmarks/, each of which is a plain script as well.

Owns the choice of suites and where their scripts lie; what is measured is the scripts' business.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from gradext.base.package import FOLDER as PACKAGE
from gradext.base.text import clean
from gradext.commands.run import unusable

SUITES = {
    "modes": "grad, no_grad, inference_mode and detach, on ops and models",
    "recorder": "what recording costs, next to anomaly mode, dispatch modes and the profiler",
    "fingerprint": "how fast a fingerprint reads, next to sum, hash_tensor and xxh3",
    "state": "what reading versions, views and flags costs",
    "layers": "what each layer of a dispatched op costs",
}
BAD_INPUT, INTERRUPTED = 2, 130


class BenchCommand:
    """Run benchmark suites: one, several, or without a name all of them.

    Each prints a table, and with --out writes SUITE.json with the machine, the versions and the
    commit; modes and recorder draw pictures beside it (matplotlib). --quick is rough, for all
    suites together under three minutes on two cores. The modes of
    your own call are compared by gradext.compare_modes(fn, *args).
    Exit code 0, or that of the first suite that ended with another one.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        told = "; ".join(f"{name}: {says}" for name, says in SUITES.items())
        parser.add_argument("suites", metavar="SUITE", nargs="*", help=told)
        parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
        parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
        parser.add_argument(
            "--out", type=Path, metavar="DIR", help="folder for the JSON and pictures"
        )
        parser.add_argument(
            "--against", type=Path, metavar="OLD.json", help="compare with this earlier result"
        )

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        problem = _problem(args)
        folder = scripts()
        if problem is None and folder is None:
            problem = "the benchmark scripts are neither in the package nor beside it"
        problem = problem or (unusable() or "").removeprefix("gradext: ") or None
        if problem is not None or folder is None:
            print(f"gradext bench: {clean(str(problem))}", file=sys.stderr)
            return BAD_INPUT
        words = ["--device", args.device, *(["--quick"] if args.quick else [])]
        if args.out is not None:
            words += ["--out", str(args.out.resolve())]
        if args.against is not None:
            words += ["--against", str(args.against.resolve())]
        code = 0
        try:
            for suite in args.suites or SUITES:
                print(f"== {suite}: {SUITES[suite]}", flush=True)
                done = subprocess.run([sys.executable, str(folder / f"{suite}.py"), *words])
                code = code or done.returncode
                print(flush=True)
        except KeyboardInterrupt:
            return INTERRUPTED
        return code


def scripts() -> Path | None:
    """The folder of the scripts: in a checkout benchmarks/, in an installed package a copy."""
    for folder in (PACKAGE.parent / "benchmarks", PACKAGE / "_benchmarks"):
        if (folder / "modes.py").is_file() and (folder / "common.py").is_file():
            return folder
    return None


def _problem(args: argparse.Namespace) -> str | None:
    """One line that says what is wrong with the command line."""
    for suite in args.suites:
        if suite not in SUITES:
            return f"no suite is called {suite!r}; there are {', '.join(SUITES)}"
    if args.against is not None and len(args.suites) != 1:
        return "--against compares one suite with an earlier result of it: name that suite"
    if args.against is not None and not args.against.is_file():
        return f"--against: there is no file {args.against}"
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        return f"--out: {args.out} is a file, and a folder is needed"
    if args.device not in ("cpu", "cuda"):
        return f"--device is cpu or cuda, not {args.device!r}"
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "--device cuda: torch finds no CUDA device here"
    return None
