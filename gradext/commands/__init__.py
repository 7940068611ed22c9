"""The `gradext` program: finds the subcommand, parses, runs it.

One module per subcommand, each with a class whose docstring is its help and which has
`prepare_parser(parser)` and `run(args, parser) -> exit code`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from gradext.base import terminal
from gradext.base.text import clean

# The modules are imported when they are asked for: `gradext lesson` should not pay for the others.
COMMANDS = {
    "run": ("gradext.commands.run", "RunCommand", "run a program and explain its backward errors"),
    "fix": (
        "gradext.commands.fix",
        "FixCommand",
        "try patches for a failing program, and prove the one that is right",
    ),
    "report": (
        "gradext.commands.report",
        "ReportCommand",
        "show a JSON of gradext run again, in any form, or merge several",
    ),
    "explain": (
        "gradext.commands.explain",
        "ExplainCommand",
        "what a diagnosis code means, with a wrong and a right example",
    ),
    "check": (
        "gradext.commands.check",
        "CheckCommand",
        "can a model run under inference_mode; do ops write what they declare",
    ),
    "bench": (
        "gradext.commands.bench",
        "BenchCommand",
        "measure what modes, recording, fingerprints and dispatch cost here",
    ),
    "lesson": (
        "gradext.commands.lesson",
        "LessonCommand",
        "learn autograd's mechanics by running them",
    ),
    "doctor": ("gradext.commands.doctor", "DoctorCommand", "what is installed, and does it fit"),
    "completion": (
        "gradext.commands.completion",
        "CompletionCommand",
        "print the script by which bash, zsh or fish completes command lines",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code. 2 for a command line that makes no sense."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(
        prog="gradext",
        description="Why autograd went wrong: versions, views and inference tensors, made visible.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=_version())
    wanted = next((word for word in words if not word.startswith("-")), None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, cls, summary) in COMMANDS.items():
        if name != wanted:
            commands.add_parser(name, help=summary, formatter_class=_Help)
            continue
        command: Any = getattr(importlib.import_module(module), cls)()
        child = commands.add_parser(
            name,
            help=summary,
            description=command.__doc__,
            formatter_class=_RawHelp,
        )
        command.prepare_parser(child)
        child.set_defaults(its_command=command, its_parser=child)
    if wanted is not None and words[0] == wanted and wanted not in COMMANDS:
        from gradext.commands import hints

        if (said := hints.command(wanted, COMMANDS)) is not None:
            parser.error(said)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return 0
    if args.command == "run":  # a program's own errors are its own
        code: int = args.its_command.run(args, args.its_parser)
        return code
    try:
        code = args.its_command.run(args, args.its_parser)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        # Python flushes once more as it ends. Source: the signal module's note on SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # SIGPIPE, as a shell shows it


class _Help(argparse.HelpFormatter):
    """argparse's formatter, which finds the width of the terminal without an import.

    argparse makes a formatter for each option that it is told of, and that imports shutil, with all
    that compresses files.
    """

    def __init__(self, prog: str, **options: Any) -> None:
        width = terminal.width(most=sys.maxsize, otherwise=80) - 2
        super().__init__(prog, **{"width": width, **options})


class _RawHelp(_Help, argparse.RawDescriptionHelpFormatter):
    """A command's: its description stands as it is written."""


class _Parser(argparse.ArgumentParser):
    """argparse repeats a wrong word as it stood: here without what a terminal would obey."""

    def error(self, message: str) -> NoReturn:
        super().error(clean(message))


def _version() -> str:
    from gradext._version import __version__

    return f"gradext {__version__}"
