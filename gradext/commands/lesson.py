"""``gradext lesson``: reads the arguments, runs the chapters, chooses who tells the result.

Owns the exit code (0 only if every verdict came out as the lesson states) and the one-line errors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from gradext._version import __version__
from gradext.base import terminal
from gradext.base.text import clean

if TYPE_CHECKING:
    from gradext.lesson.core import Chapter, ClaimResult, LessonError

OK, NOT_AS_STATED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


class LessonCommand:
    """Learn what requires_grad, detach, no_grad and inference_mode do, by running them.

    Each claim prints its code, the evidence read from the tensors and the verdict that follows.
    The code can be pasted into a file and run. On a terminal the lesson is shown in a pager.
    The exit code is 0 unless a verdict contradicts the expected one.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "chapters",
            metavar="CHAPTER",
            nargs="*",
            help="run only these chapters (1 to 6) or claims (3.8)",
        )
        parser.add_argument("--list", action="store_true", help="list the chapters and claims")
        parser.add_argument(
            "--json", action="store_true", help="print the results as JSON and nothing else"
        )
        parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
        parser.add_argument(
            "--quick", action="store_true", help="shorter timings in chapter 4, wider spreads"
        )
        parser.add_argument(
            "--notebook", metavar="FILE", help="write the lesson as a Jupyter notebook to FILE"
        )
        parser.add_argument("--html", metavar="FILE", help="run it and write a page to FILE")
        parser.add_argument("--no-pager", action="store_true", help="print without a pager")

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        # Imported here: this package imports torch, and --help needs neither.
        from gradext.lesson import core

        try:
            code = self._run(args)
            # A reader that left is noticed now, not when the interpreter closes the stream.
            sys.stdout.flush()
            return code
        except core.LessonError as error:
            print(f"gradext lesson: {clean(str(error))}", file=sys.stderr)
            return BAD_INPUT
        except BrokenPipeError:
            # The interpreter flushes stdout once more at exit, and would print a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except KeyboardInterrupt:
            print("gradext lesson: interrupted", file=sys.stderr)
            return INTERRUPTED

    def _run(self, args: argparse.Namespace) -> int:
        from gradext.lesson import core

        for option in ("notebook", "html"):
            if getattr(args, option) is not None and (args.list or args.json):
                raise core.LessonError(
                    f"--{option} goes with neither --list nor --json: choose one"
                )
        core.check_device(args.device)
        chapters = core.pick(args.chapters)
        if args.html is not None:
            return _write_page(chapters, args)
        if args.notebook is not None:
            return _write_notebook(chapters, args.device, args.notebook)
        if args.list:
            return _list(chapters, args.json, paged=not args.no_pager)
        if args.json:
            results = [result for _, result in core.play(chapters, args.device, args.quick)]
            print(json.dumps(report(results, args.device), indent=2))
        else:
            results = _tell(chapters, args.device, args.quick, paged=not args.no_pager)
        return OK if all(result.as_stated for result in results) else NOT_AS_STATED


def report(results: list[ClaimResult], device: str) -> dict[str, Any]:
    """What ``--json`` prints."""
    import torch

    return {
        "gradext": __version__,
        "torch": torch.__version__,
        "device": device,
        "claims": [result.to_dict() for result in results],
        "total": len(results),
        "as_stated": sum(result.as_stated for result in results),
    }


def _tell(chapters: list[Chapter], device: str, quick: bool, paged: bool) -> list[ClaimResult]:
    """Run the lesson in the terminal, each claim printed as soon as it is judged."""
    from gradext.lesson import core
    from gradext.lesson.terminal import TerminalReporter

    results: list[ClaimResult] = []
    with terminal.pager(paged) as console:
        reporter = TerminalReporter(console)
        reporter.opening(chapters, device)
        start = time.perf_counter()
        told = None
        for chapter, result in core.play(chapters, device, quick):
            if chapter is not told:
                reporter.chapter(chapter)
                told = chapter
            reporter.claim(result)
            reporter.flush()
            results.append(result)
        seconds = time.perf_counter() - start
        reporter.closing(results, seconds, _next_command(chapters, results))
    return results


def _next_command(chapters: list[Chapter], results: list[ClaimResult]) -> str:
    from gradext.lesson import core

    if not all(result.as_stated for result in results):
        return "gradext doctor"
    after = chapters[-1].number + 1
    (whole,) = core.select(chapters[-1].number)
    if len(chapters) == 1 and len(chapters[0].claims) < len(whole.claims):
        following = chapters[0].claims[-1].index + 1
        if following <= len(whole.claims):
            return f"gradext lesson {whole.number}.{following}"
    if len(chapters) == 1 and after in {chapter.number for chapter in core.chapters()}:
        return f"gradext lesson {after}"
    return "gradext lesson --notebook lesson.ipynb"


def _list(chapters: list[Chapter], as_json: bool, paged: bool) -> int:
    if as_json:
        listing = [
            {
                "number": chapter.number,
                "title": chapter.title,
                "claims": [
                    {"number": c.number, "claim": c.text, "stated": c.stated}
                    for c in chapter.claims
                ],
            }
            for chapter in chapters
        ]
        print(json.dumps({"chapters": listing}, indent=2))
        return OK
    from gradext.lesson.terminal import TerminalReporter

    with terminal.pager(paged) as console:
        TerminalReporter(console).listing(chapters)
    return OK


def _write_page(chapters: list[Chapter], args: argparse.Namespace) -> int:
    from gradext.lesson import core, page

    played = list(core.play(chapters, args.device, args.quick))
    try:
        page.write(page.page(played), args.html)
    except OSError as error:
        raise _cannot_write(args.html, error) from None
    print(f"Wrote {clean(args.html)}: {len(played)} claims. Open it in a browser")
    return OK if all(result.as_stated for _, result in played) else NOT_AS_STATED


def _cannot_write(path: str, error: OSError) -> LessonError:
    from gradext.lesson import core

    return core.LessonError(
        f"cannot write {path}: {error.strerror}; name a file in a folder that you may write to"
    )


def _write_notebook(chapters: list[Chapter], device: str, path: str) -> int:
    from gradext.lesson import notebook

    try:
        notebook.write(notebook.build(chapters, device), path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    claims = sum(len(chapter.claims) for chapter in chapters)
    shown = clean(path)
    print(f"Wrote {shown}: {claims} claims. Next: jupyter lab {shown}")
    return OK
