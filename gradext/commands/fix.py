"""`gradext fix`: looks for a patch that mends a failing program, and tries it.

Owns the command line, what is printed and what is written. What is tried and why it counts as
right is gradext.fix.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from typing import Any

from gradext.base import terminal
from gradext.base.text import clean
from gradext.commands.run import split, unusable
from gradext.reporters import fix as shown
from gradext.run import results_file

VERIFIED, UNPROVED, NONE = 0, 1, 2
INTERRUPTED = 130


class FixCommand:
    """Try patches for a program whose backward pass fails, and prove the one that is right.

    The program is run several times, each from its beginning and in a process of its own, with the
    patched text in place of the file's: no file is changed without --apply. What the program
    itself writes, it writes each time. A patch is "verified" when the loss is bit-equal and every
    gradient is what the forward pass that was run means.
    Exit code: 0 for a verified patch, 1 if the best one is not proved, 2 if there is none.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "gradext fix [options] (SCRIPT | NOTEBOOK | -m MODULE | -c CODE) [ARGS ...]"
        parser.allow_abbrev = False
        parser.add_argument("--apply", action="store_true", help="write a verified patch")
        parser.add_argument(
            "--changes-meaning",
            action="store_true",
            help="with --apply: also write one that runs and computes something else",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="run the program once, as it is, and show what would be tried",
        )
        valued = [
            parser.add_argument("--code", metavar="CODES", default="", help="only these: GX101,…"),
            parser.add_argument(
                "--tries", metavar="N", type=_count, default=8, help="patches to run (default: 8)"
            ),
            parser.add_argument(
                "--time", metavar="S", type=_count, default=600, help="seconds (default: 600)"
            ),
            parser.add_argument(
                "--steps",
                metavar="N",
                type=_count,
                default=3,
                help="backward passes that must run behind the failing one (default: 3)",
            ),
            parser.add_argument("--json", metavar="FILE", help="write all candidates to FILE"),
        ]
        parser.add_argument("-m", metavar="MODULE", help="run a module, as python -m does")
        parser.add_argument("-c", metavar="CODE", help="run a string, as python -c does")
        parse = parser.parse_known_args

        def parse_options(args: Any = None, namespace: Any = None) -> Any:
            words = sys.argv[2:] if args is None else args
            names = {name for action in valued for name in action.option_strings}
            options, target = split(words, names)
            found, unknown = parse(options, namespace)
            if unknown:
                parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            found.target = target
            return found, []

        parser.parse_known_args = parse_options  # type: ignore[method-assign]

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        if args.dry_run and args.apply:
            parser.error("--dry-run tries nothing that --apply could write")
        if args.target is None:
            parser.error("nothing to mend: name a script, -m MODULE or -c CODE")
        if args.target.kind == "script" and args.target.value == "-":
            parser.error("a program from stdin cannot be run several times; save it to a file")
        args.text = args.target.value if args.target.kind == "command" else None
        args.notebook = None
        if args.target.kind == "script" and args.target.value.endswith(".ipynb"):
            from gradext.fix import notebook

            args.notebook = os.path.basename(args.target.value)
            try:
                args.text = notebook.program(args.target.value)
            except notebook.NoNotebook as error:
                parser.error(str(error))
        if args.json is not None and (why := results_file.problem(os.path.abspath(args.json))):
            parser.error(why)
        fault = unusable() or _without_libcst()
        if fault is not None:
            print(f"gradext fix: {clean(fault.removeprefix('gradext: '))}", file=sys.stderr)
            return NONE
        try:
            with tempfile.TemporaryDirectory(prefix="gradext-fix-") as folder:
                found = self._look(args, _stdin(folder))
        except KeyboardInterrupt:
            return _interrupted()
        if args.json is not None:
            results_file.replace(os.path.abspath(args.json), shown.as_json(found.tried))
        if found.problem is not None:
            print(f"gradext fix: {clean(found.problem)}", file=sys.stderr)
            return NONE
        if args.dry_run:
            print(shown.listed(found.tried, color=terminal.wants_color(sys.stdout)))
            return UNPROVED
        good = [one for one in found.tried if one.verdict.level != "fails"]
        print(shown.text(found.tried, color=terminal.wants_color(sys.stdout)))
        if not good:
            print(f"gradext fix: none of {len(found.tried)} patches mends it", file=sys.stderr)
            return NONE
        return self._ended(args, good[0])

    def _look(self, args: argparse.Namespace, stdin: str | None) -> Any:
        from gradext.fix.search import Limits, Search
        from gradext.fix.trial import Program

        codes = frozenset(code.strip().upper() for code in args.code.split(",") if code.strip())
        most = args.tries + 4
        line = f"the program is run up to {most} times, each from its beginning"
        if args.dry_run:  # twice where only the guard finds the fault
            line = "the program is run once or twice, as it is"
        print(f"gradext fix: {line}; no file of it is changed", file=sys.stderr)

        def say(text: str) -> None:
            print(f"gradext fix: {clean(text)}", file=sys.stderr)

        words = args.target.words
        if args.text is not None:
            words = ("-c", args.text, *args.target.arguments)
        limits = Limits(args.tries, float(args.time), args.steps, codes, args.dry_run)
        program = Program(tuple(words), args.text, stdin, notebook=args.notebook)
        return Search(program, limits, say).look()

    def _ended(self, args: argparse.Namespace, best: Any) -> int:
        level = best.verdict.level
        code = VERIFIED if level == "verified" else UNPROVED
        if not args.apply:
            return code
        if level != "verified" and not args.changes_meaning:
            said = "it is not verified: nothing was written (--apply --changes-meaning writes it)"
            print(f"gradext fix: {said}", file=sys.stderr)
            return code
        from gradext.fix import apply

        if args.notebook is not None:
            said = "the cells of a notebook are not written to; copy the lines above"
            print(f"gradext fix: {said}", file=sys.stderr)
            return NONE
        try:
            done = apply.write(best.files, best.before)
        except KeyboardInterrupt:
            return _interrupted()
        except apply.CannotApply as error:
            print(f"gradext fix: {clean(str(error))}", file=sys.stderr)
            return NONE
        for path, backup in done:
            undo = f"to undo: {shlex.join(['mv', clean(backup), clean(path)])}"
            print(f"gradext fix: wrote {clean(path)}; {undo}", file=sys.stderr)
        return code


def _interrupted() -> int:
    print("gradext fix: interrupted; nothing was changed", file=sys.stderr)
    return INTERRUPTED


def _without_libcst() -> str | None:
    if importlib.util.find_spec("libcst") is not None:
        return None
    return "it edits source with LibCST, which is not installed; run: pip install libcst"


def _stdin(folder: str) -> str | None:
    """A file with what the program may read there, the same in each run; None at a terminal."""
    try:
        if sys.stdin is None or sys.stdin.isatty():
            return None
        path = os.path.join(folder, "stdin")
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except (OSError, ValueError):
        return None
    return path


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return number
