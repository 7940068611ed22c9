"""`gradext doctor`: what is installed, what the compiled part was built for, and whether they fit.

Must work when the compiled part does not load, so of gradext it imports only the version, base.text
and what in native/ needs no compiled part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gradext._version import __version__
from gradext.base.text import clean
from gradext.native import build, loader, versions


class DoctorCommand:
    """Print versions, compilers, CUDA and the self-tests of the compiled part.

    Exit code 0 when gradext can be used here, 1 when it cannot (the last line says why).
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON instead of lines")

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        report = examine()
        if args.json:
            print(json.dumps(report, indent=1))
        else:
            for line in as_lines(report):
                print(clean(line))
        return 0 if report["usable"] else 1


def examine() -> dict[str, Any]:
    """Everything that `gradext doctor` says, as one JSON-able dict."""
    report: dict[str, Any] = {
        "gradext": {"version": __version__, "folder": str(build.PACKAGE)},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "torch": _torch(),
        "compilers": {
            "c++": _first_line(os.environ.get("CXX") or "c++", "--version"),
            "nvcc": _last_line("nvcc", "--version"),
            "ninja": _first_line("ninja", "--version"),
        },
        "compiled": None,
        "self_tests": [],
        "off": [],
        "problem": None,
    }
    report["tried"] = {
        "python": versions.verdict(versions.PYTHONS, report["python"]["version"]),
        "torch": versions.verdict(versions.TORCHES, report["torch"]["version"])
        if report["torch"]
        else None,
    }
    try:
        module: Any = sys.modules.get("gradext._C") or loader.load()
    except ImportError as error:
        report["problem"] = str(error)
    else:
        found = build.read_build(Path(module.__file__))
        report["compiled"] = {
            "library": str(found.library),
            "torch": found.torch,
            "python": found.python,
            "cuda": found.cuda,
            "cuda_why": found.cuda_why,
        }
        report["self_tests"] = [[claim, holds] for claim, holds in module.self_test()]
        from gradext.native import torch_internals

        report["off"] = [each.line for each in torch_internals.missing]
    report["usable"] = report["problem"] is None and all(ok for _, ok in report["self_tests"])
    return report


def as_lines(report: dict[str, Any]) -> list[str]:
    """The report as aligned lines."""
    torch, compiled, tried = report["torch"], report["compiled"], report["tried"]
    python = report["python"]["version"]
    pairs = [
        ("gradext", f"{report['gradext']['version']}  {report['gradext']['folder']}"),
        ("python", f"{report['python']['version']}  {report['python']['executable']}"),
        ("tried", f"Python {versions.minor(python)}: {tried['python']}"),
        ("platform", report["platform"]),
        ("torch", f"{torch['version']}  {torch['folder']}" if torch else "not installed"),
    ]
    if torch:
        pairs.append(("tried", f"torch {versions.minor(torch['version'])}: {tried['torch']}"))
        pairs.append(("torch CUDA", torch["cuda"] or "a build without CUDA"))
        pairs.append(("device", ", ".join(torch["devices"]) or torch["no_device"]))
    for name, text in report["compilers"].items():
        pairs.append((name, text or "not found"))
    if compiled:
        pairs.append(("compiled", compiled["library"]))
        pairs.append(("built for", f"torch {compiled['torch']}, Python {compiled['python']}"))
        with_cuda = f"yes, CUDA {compiled['cuda']}" if compiled["cuda"] else "no"
        why = f": {compiled['cuda_why']}" if compiled["cuda_why"] else ""
        pairs.append(("CUDA built", f"{with_cuda}{why}"))
    for claim, holds in report["self_tests"]:
        pairs.append(("self-test", f"{'ok    ' if holds else 'FAILED'}  {claim}"))
    pairs += [("off", line) for line in report["off"]]
    pairs.append(
        ("verdict", "usable" if report["usable"] else report["problem"] or "a self-test failed")
    )
    return [f"{label:<11} {text}" for label, text in pairs]


def _torch() -> dict[str, Any] | None:
    try:
        import torch
    except ImportError:
        return None
    devices = []
    no_device = None
    if not torch.cuda.is_available():
        no_device = f"no CUDA device: {_no_device(torch)}"
    else:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "folder": os.path.dirname(torch.__file__),
        "cuda": torch.version.cuda,
        "devices": devices,
        "no_device": no_device,
    }


def _no_device(torch: Any) -> str:
    """Why torch finds none, as torch says it when it is asked to begin."""
    if torch.version.cuda is None:
        return "this torch is a build without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return "torch.cuda.device_count() is 0"  # CUDA_VISIBLE_DEVICES hides them


def _output(program: str, *arguments: str) -> list[str]:
    found = shutil.which(program)
    if found is None:
        return []
    try:
        done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _first_line(program: str, *arguments: str) -> str | None:
    return next(iter(_output(program, *arguments)), None)


def _last_line(program: str, *arguments: str) -> str | None:
    lines = _output(program, *arguments)
    return lines[-1] if lines else None
