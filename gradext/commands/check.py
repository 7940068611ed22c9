"""`gradext check`: finds what a person names on the command line and asks questions about it.

Owns the command line and the finding of models and inputs; the questions are those of
gradext.inference_audit and gradext.opcheck.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gradext.base import terminal
from gradext.base.text import clean
from gradext.commands import subjects

BAD_INPUT = 2
FAILED = 1
SECONDS = 20.0  # for one op on one input


class CheckCommand:
    """Ask a model whether it can run under inference_mode, or ops whether they tell the truth.

    --inference FACTORY: can this run under inference_mode instead of no_grad? FACTORY is
    PACKAGE.MODULE:FUNCTION or file.py:FUNCTION; the current folder can be imported from.
    It returns a model (or function), or (model, args), or (model, args, kwargs), and is called
    without arguments. --inputs names a function of the same form that returns the inputs: args as a
    tuple, kwargs as a dict, (args, kwargs), or one tensor.

    Exit code 0 when no check failed, 1 when one did, 2 when there was nothing to check.

    --ops: run every op of a namespace that inputs are found for (torch's own operator samples, for
    the rest inputs made from the schema) and compare what its schema declares, what its version
    counters counted and which bytes changed, in every grad mode and on every device named. Each
    batch of ops runs in a process of its own: one that crashes or hangs is reported. To see ops of
    your own, name the module that registers them with --import.

    Exit code 0 when the run came to its end, whatever was found in torch's own ops; 1 when an op
    of another namespace has a disagreement of severity error; 2 when there was nothing to check.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        questions = parser.add_mutually_exclusive_group(required=True)
        questions.add_argument(
            "--inference",
            metavar="FACTORY",
            help="what runs under inference_mode, and what it leaves behind",
        )
        questions.add_argument(
            "--ops",
            action="store_true",
            help="which ops write, count or alias otherwise than their schema says",
        )
        parser.add_argument("--json", metavar="FILE", help="write the report to FILE too")
        audit = parser.add_argument_group("with --inference")
        audit.add_argument("--inputs", metavar="FACTORY", help="what the model is called with")
        audit.add_argument(
            "--no-fork",
            action="store_true",
            help="run on deep copies in this process instead of in processes of their own",
        )
        survey = parser.add_argument_group("with --ops")
        survey.add_argument("--namespace", metavar="NAME", help="whose ops (default: aten)")
        survey.add_argument(
            "--import",
            dest="imports",
            metavar="MODULE",
            action="append",
            help="import MODULE or file.py first, which registers the ops; may be repeated",
        )
        survey.add_argument(
            "--op",
            dest="only",
            metavar="NAME",
            action="append",
            help="only ops of that name or pattern ('add_', '_foreach_*', 'aten::add.out'); "
            "may be repeated",
        )
        survey.add_argument(
            "--device",
            metavar="DEVICES",
            help="where to run, as in cpu,cuda: the first is judged, the others are compared with "
            "it (default: cpu)",
        )
        survey.add_argument(
            "--seconds", type=float, metavar="N", help="time limit of one op on one input (20)"
        )
        survey.add_argument(
            "--verbose", action="store_true", help="every reason, and the ops that did not run"
        )

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        try:
            if args.json is not None and not Path(args.json).absolute().parent.is_dir():
                raise subjects.BadInput(f"cannot write {args.json}: there is no such folder")
            _fitting(args)
            return self._ops(args) if args.ops else self._inference(args)
        except subjects.BadInput as error:
            print(f"gradext check: {clean(str(error))}", file=sys.stderr)
            return BAD_INPUT

    def _ops(self, args: argparse.Namespace) -> int:
        namespace = args.namespace or "aten"
        for module in args.imports or ():
            subjects.module_named(module)
        devices = _devices(args.device or "cpu")
        from gradext.opcheck import schemas, survey
        from gradext.reporters import opcheck

        if not schemas.names(namespace):
            hint = "" if args.imports else "; name the module that registers them with --import"
            raise subjects.BadInput(f"no ops in the namespace {namespace!r}{hint}")
        if not schemas.names(namespace, args.only or ()):
            raise subjects.BadInput(f"no op of {namespace} is called {' or '.join(args.only)}")
        with _progress() as show:
            found = survey.run(
                namespace,
                devices=devices,
                only=args.only or (),
                processes=_processors(),
                seconds=args.seconds or SECONDS,
                progress=show,
            )
        data = found.to_json()
        print(opcheck.text(data, verbose=args.verbose))
        _write(args.json, data)
        return FAILED if found.failed and namespace != "aten" else 0

    def _inference(self, args: argparse.Namespace) -> int:
        value, given, named = subjects.subject_of(args.inference, args.inputs)
        from gradext.inference_audit.audit import audit

        report = audit(value, given, named, fork=not args.no_fork)
        print(report)
        _write(args.json, report.to_json())
        return 0 if report.ok else FAILED


# The options that mean something to one of the two questions alone.
_OF_INFERENCE = {"inputs": "--inputs", "no_fork": "--no-fork"}
_OF_OPS = {
    "namespace": "--namespace",
    "imports": "--import",
    "only": "--op",
    "device": "--device",
    "seconds": "--seconds",
    "verbose": "--verbose",
}


def _fitting(args: argparse.Namespace) -> None:
    theirs, question = (_OF_INFERENCE, "--inference") if args.ops else (_OF_OPS, "--ops")
    for name, option in theirs.items():
        if getattr(args, name):
            raise subjects.BadInput(f"{option} goes with {question}")


def _devices(word: str) -> tuple[str, ...]:
    """The device types of "cpu,cuda", each of them there."""
    # The question must not start CUDA in this process: the ops run in forks of it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    devices = tuple(dict.fromkeys(each.strip() for each in word.split(",") if each.strip()))
    if not devices:
        raise subjects.BadInput("--device takes names of devices, as in cpu,cuda")
    for device in devices:
        if device == "cuda" and not torch.cuda.is_available():
            raise subjects.BadInput(
                f"--device cuda: torch {torch.__version__} finds no CUDA device here"
            )
        if device not in {"cpu", "cuda", "meta"}:
            raise subjects.BadInput(f"--device {device}: only cpu, cuda and meta can be compared")
    return devices


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write(file: str | None, report: dict[str, Any]) -> None:
    if file is None:
        return
    try:
        Path(file).write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise subjects.BadInput(f"cannot write {file}: {error.strerror}") from None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that says how far a long run is; nothing unless a person watches."""
    from rich.progress import Progress

    console = terminal.console(sys.stderr)
    # No thread that redraws it: the ops run in forks of this process.
    with Progress(
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not terminal.is_terminal(sys.stderr),
    ) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total, refresh=True)

        yield show
