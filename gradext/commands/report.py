"""`gradext report`: a JSON that `gradext run` has written, shown again or merged with others.

Imports no torch: a report is read where no program could run.
"""

from __future__ import annotations

import argparse
import sys

from gradext.base import terminal
from gradext.base.text import clean
from gradext.diagnosis import folding, saved_report
from gradext.diagnosis.run_report import RunReport, together
from gradext.reporters import FORMATS, concise, diagnosis_text, render
from gradext.run import results_file
from gradext.run.shown import COLORS, LAYOUTS, header

OK, BAD_INPUT = 0, 2
MERGE = "merge"
WRITTEN = [name for name, each in FORMATS.items() if not each.of_events]


class ReportCommand:
    """Show what `gradext run --json FILE` has written: on stdout, or as other files.

    Several files are shown as one report: of the machines of one training, each of which has
    written its own. `gradext report merge A.json B.json -o ALL.json` keeps it.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = (
            "gradext report [options] FILE.json ...\n"
            "       gradext report merge FILE.json ... -o ALL.json"
        )
        parser.add_argument("files", metavar="FILE.json", nargs="+", help="what --json has written")
        for name in WRITTEN:
            text = f"write the report as {name.upper()} to FILE, and print none"
            parser.add_argument(f"--{name}", metavar="FILE", help=text)
        parser.add_argument("-o", metavar="FILE", help="merge: write the JSON of all to FILE")
        parser.add_argument(
            "--format", choices=LAYOUTS, default=LAYOUTS[0], help="concise: one line each"
        )
        parser.add_argument("--color", choices=tuple(COLORS), default="auto", help="of the report")

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        files = list(args.files)
        merges = files[0] == MERGE
        if merges:
            files.pop(0)
            if not files or args.o is None:
                parser.error("merge: name the files to merge, and -o FILE for what comes of it")
        elif args.o is not None:
            parser.error("-o belongs to merge: gradext report merge FILE.json ... -o ALL.json")
        outputs = {name: path for name in WRITTEN if (path := getattr(args, name)) is not None}
        if merges:
            outputs.setdefault("json", args.o)
        try:
            reports = [saved_report.load(path) for path in files]
            report = reports[0] if len(reports) == 1 else saved_report.merge(reports)
            for name, path in outputs.items():
                _write(path, render(name, report))
        except (saved_report.NotAReport, _CannotWrite) as error:
            print(f"gradext report: {clean(str(error))}", file=sys.stderr)
            return BAD_INPUT
        if not outputs:
            color = COLORS[args.color]
            color = terminal.wants_color(sys.stdout) if color is None else color
            _print(_text(report, args.format, color))
        return OK


class _CannotWrite(Exception):
    """One line: which file cannot be written, and why."""


def _write(path: str, text: str) -> None:
    if path == "-":
        raise _CannotWrite("name a file to write to; without one the report is printed")
    path = results_file.absolute(path)
    if (why := results_file.problem(path)) is not None:
        raise _CannotWrite(why)
    try:
        results_file.replace(path, text)
    except OSError as error:
        raise _CannotWrite(f"cannot write {path}: {error.strerror}") from None


def _text(report: RunReport, layout: str, color: bool) -> str:
    found = folding.by_cause(together(report.told))
    if layout == "concise":
        return concise.lines(found)
    if not found:
        ended = "" if report.exit_code is None else f" (exit code {report.exit_code})"
        return f"gradext has found nothing in this run{ended}"
    return diagnosis_text.report(found, color=color, header=header(found))


def _print(text: str) -> None:
    if text:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding))
