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

from gradext.base.text import clean

if TYPE_CHECKING:
    from gradext.lesson.core import Chapter, ClaimResult

OK, NOT_AS_STATED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


class LessonCommand:
    """Learn what requires_grad, detach, no_grad and inference_mode do, by running them.

    Each claim prints its code, the evidence read from the tensors and the verdict that follows.
    The exit code is 0 only if every verdict came out as the lesson states it.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "chapters", metavar="CHAPTER", nargs="*", help="run only these chapters (1 to 6)"
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

        if args.notebook is not None and (args.list or args.json):
            raise core.LessonError("--notebook goes with neither --list nor --json: choose one")
        core.check_device(args.device)
        chapters = core.select([_number(text) for text in args.chapters] or None)
        if args.notebook is not None:
            return _write_notebook(chapters, args.device, args.notebook)
        if args.list:
            return _list(chapters, args.json)
        if args.json:
            results = [result for _, result in core.play(chapters, args.device, args.quick)]
            print(json.dumps(report(results, args.device), indent=2))
        else:
            results = _tell(chapters, args.device, args.quick)
        return OK if all(result.as_stated for result in results) else NOT_AS_STATED


def report(results: list[ClaimResult], device: str) -> dict[str, Any]:
    """What ``--json`` prints."""
    import torch

    import gradext

    return {
        "gradext": gradext.__version__,
        "torch": torch.__version__,
        "device": device,
        "claims": [result.to_dict() for result in results],
        "total": len(results),
        "as_stated": sum(result.as_stated for result in results),
    }


def _number(text: str) -> int:
    from gradext.lesson.core import LessonError

    try:
        return int(text)
    except ValueError:
        raise LessonError(
            f"a chapter is a number, not {text!r} (gradext lesson --list shows them)"
        ) from None


def _tell(chapters: list[Chapter], device: str, quick: bool) -> list[ClaimResult]:
    """Run the lesson in the terminal, each claim printed as soon as it is judged."""
    from gradext.lesson import core
    from gradext.lesson.terminal import TerminalReporter

    reporter = TerminalReporter()
    reporter.opening(chapters, device)
    start = time.perf_counter()
    results: list[ClaimResult] = []
    told = None
    for chapter, result in core.play(chapters, device, quick):
        if chapter is not told:
            reporter.chapter(chapter)
            told = chapter
        reporter.claim(result)
        sys.stdout.flush()
        results.append(result)
    reporter.closing(results, time.perf_counter() - start, _next_command(chapters, results))
    return results


def _next_command(chapters: list[Chapter], results: list[ClaimResult]) -> str:
    from gradext.lesson import core

    if not all(result.as_stated for result in results):
        return "gradext doctor"
    after = chapters[-1].number + 1
    if len(chapters) == 1 and after in {chapter.number for chapter in core.chapters()}:
        return f"gradext lesson {after}"
    return "gradext lesson --notebook lesson.ipynb"


def _list(chapters: list[Chapter], as_json: bool) -> int:
    if as_json:
        listing = [
            {
                "number": chapter.number,
                "title": chapter.title,
                "claims": [{"number": c.number, "claim": c.text} for c in chapter.claims],
            }
            for chapter in chapters
        ]
        print(json.dumps({"chapters": listing}, indent=2))
        return OK
    from gradext.lesson.terminal import TerminalReporter

    TerminalReporter().listing(chapters)
    return OK


def _write_notebook(chapters: list[Chapter], device: str, path: str) -> int:
    from gradext.lesson import notebook
    from gradext.lesson.core import LessonError

    try:
        notebook.write(notebook.build(chapters, device), path)
    except OSError as error:
        raise LessonError(
            f"cannot write {path}: {error.strerror}; name a file in a folder that you may write to"
        ) from None
    claims = sum(len(chapter.claims) for chapter in chapters)
    shown = clean(path)
    print(f"Wrote {shown}: {claims} claims. Next: jupyter lab {shown}")
    return OK
