"""`gradext run`: records a program that is run as it is, and explains what goes wrong in it.

Owns the command line and what must be known before the program starts. Imports no torch: the
program is the one that imports it, after it has set what torch reads from the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from gradext.base.text import clean
from gradext.native import build
from gradext.recording.options import ALL, EXPOSED, GUARDS, RecordOptions, journal_bytes
from gradext.reporters import FORMATS
from gradext.run import configuration, ending, joint, program, results_file, session
from gradext.run.settings import ENVIRONMENT, CannotWrite, Settings
from gradext.run.shown import COLORS, LAYOUTS, Shown

BAD_INPUT = 2
USAGE_ERROR = 2  # argparse, click and others end with it where an option is unknown to them
OPTIONS = {
    *("--light", "--no-births", "--no-cuts", "--memory", "--guard", "--no-guard"),
    *("--format", "--color", "--ignore"),
    *("--report", "--quiet", "--github", "--no-github", "--fail-on", "--error-exitcode"),
} | {f"--{name}" for name in FORMATS}
UNUSABLE = 1


class RunCommand:
    """Run a program and, when its backward pass fails or is silently wrong, say which line did it.

    The program is run as `python` would run it, with the same arguments, output and exit code.
    The report goes to stderr, after the program's own output; nothing is printed if there is
    nothing to say. A SCRIPT is a .py file, a folder or zip with a __main__.py, or - for stdin.
    What stands behind SCRIPT, MODULE or CODE belongs to the program.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = "gradext run [options] (SCRIPT | -m MODULE | -c CODE) [ARGS ...]"
        parser.allow_abbrev = False
        valued: list[argparse.Action] = []  # the options that take the word behind them
        for name, each in FORMATS.items():
            valued.append(parser.add_argument(f"--{name}", metavar="FILE", help=each.help))
        parser.add_argument(
            "--light",
            action="store_true",
            help="record writes only: costs less, names the culprit but not who saved the tensor",
        )
        parser.add_argument(
            "--no-births",
            action="store_true",
            help="do not note which line makes each inference tensor (GX201 to GX204)",
        )
        parser.add_argument(
            "--no-cuts",
            action="store_true",
            help="do not note where values lose their gradient (GX301, GX304)",
        )
        memory = parser.add_argument(
            "--memory", metavar="MIB", type=_memory, help="let the journal take MIB mebibytes (64)"
        )
        valued.append(memory)
        parser.add_argument(
            "--guard",
            action="store_const",
            const=EXPOSED,
            help="compare the bytes of what is saved for backward too, once somebody can write "
            "them without torch: finds writes that no version counter shows (GX401 to GX404)",
        )
        _say_what_guard_takes(parser)
        # With `=` only: the word behind --guard is the program.
        for reads in GUARDS:
            parser.add_argument(
                f"--guard={reads}",
                dest="guard",
                action="store_const",
                const=reads,
                help="the same of all that is saved: costs a read at each save and each use"
                if reads == ALL
                else argparse.SUPPRESS,
            )
        parser.add_argument(
            "--no-guard", dest="guard", action="store_const", const=False, help="compare no bytes"
        )
        valued.append(
            parser.add_argument(
                "-o", metavar="FILE", help="write the report to FILE, not to stderr"
            )
        )
        for name, choices, text in (
            ("format", LAYOUTS, "concise: one line each, `file:line:column: CODE message`"),
            ("color", tuple(COLORS), "of the report; auto, the default: on a terminal"),
            (
                "report",
                ("now", "end"),
                "end: silent errors are told when the program ends; now: at once",
            ),
        ):
            valued.append(parser.add_argument(f"--{name}", choices=choices, help=text))
        parser.add_argument(
            "--quiet", action="store_true", help="print no report; files are written all the same"
        )
        parser.add_argument(
            "--github",
            action=argparse.BooleanOptionalAction,
            help="print annotations of GitHub Actions on stderr too; where it runs, this is on",
        )
        valued.append(
            parser.add_argument(
                "--fail-on",
                metavar="CODES",
                type=_codes,
                help="exit with 1, or with --error-exitcode, where the program itself ends with 0 "
                "and one of these is silently wrong: GX401,GX304 or beginnings of codes, GX4",
            )
        )
        valued.append(
            parser.add_argument(
                "--error-exitcode",
                metavar="N",
                type=_exit_code,
                help="the exit code where the program ends with 0 and gradients are silently "
                "wrong: by an error, or by a code that was named",
            )
        )
        valued.append(
            parser.add_argument(
                "--ignore",
                metavar="CODES",
                type=_codes,
                help="tell nothing of these: GX304,GX204 or beginnings of codes, GX3",
            )
        )
        # Shown by --help only: what they introduce is taken off before argparse sees the words.
        parser.add_argument("-m", metavar="MODULE", help="run a module, as python -m does")
        parser.add_argument("-c", metavar="CODE", help="run a string, as python -c does")
        parse = parser.parse_known_args

        def parse_options(args: Any = None, namespace: Any = None) -> Any:
            words = sys.argv[2:] if args is None else args
            options, target = split(
                words, {name for action in valued for name in action.option_strings}
            )
            found, unknown = parse(options, namespace)
            if unknown:
                parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            found.target = target
            return found, []

        parser.parse_known_args = parse_options  # type: ignore[method-assign]

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        target: program.Target | None = args.target
        if target is None:
            parser.error("nothing to run: name a script, -m MODULE or -c CODE")
        _refuse_both(args, parser)
        _choose(args, target, parser)
        outputs, options = _recorded(args, parser)
        settings = Settings.new(joint.of_this_machine(outputs), options)
        hint = _hint(target)
        program.enter(target)
        shown = _shown(args, parser)  # now that it is known which file is the program itself
        fault = unusable()
        if fault is not None:
            print(clean(fault), file=sys.stderr)
            return UNUSABLE
        settings = settings._replace(shown=shown)
        recorded = session.Session(settings)
        try:
            recorded.begin()
        except CannotWrite as error:
            print(f"gradext run: {clean(str(error))}", file=sys.stderr)
            return BAD_INPUT
        recorded.settings.to_environment()
        ending.hook_threads(recorded)

        def uncaught(error: BaseException) -> None:
            recorded.uncaught(error)
            recorded.report()

        def leaving(code: int) -> None:
            recorded.exit_code = code
            recorded.end()
            os.environ.pop(ENVIRONMENT)

        try:
            recorded.exit_code = program.run(target, uncaught, leaving)
        except SystemExit as end:
            code = program.exit_code(end)
            recorded.exits(end, code)
            _say(hint, code)
            if code == 0 and (code := _failure(args, recorded)):
                recorded.exit_code = code
                raise SystemExit(code) from None
            raise
        _say(hint, recorded.exit_code)
        if recorded.exit_code == 0:
            recorded.exit_code = _failure(args, recorded)
        return recorded.exit_code


def of_variable(words: Sequence[str]) -> tuple[dict[str, str], RecordOptions, Shown]:
    """(outputs, what to record, how to tell) of options that stand in GRADEXT_RECORD.

    Raises:
        ValueError: one line: which of them makes no sense.
    """
    parser = _OfVariable(add_help=False)
    RunCommand().prepare_parser(parser)
    args = parser.parse_args(list(words))
    if args.target is not None:
        parser.error(f"{args.target.words[0]!r} is no option of gradext run")
    if args.fail_on is not None or args.error_exitcode is not None:
        parser.error("--fail-on and --error-exitcode need gradext run, which ends the program")
    _refuse_both(args, parser)
    try:
        configuration.apply(args, os.getcwd())
    except configuration.Wrong as error:
        raise ValueError(str(error)) from None
    outputs, options = _recorded(args, parser)
    return outputs, options, _shown(args, parser)


class _OfVariable(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(clean(message))


def _refuse_both(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.guard and args.light:
        parser.error("--guard needs to know what is saved; --light records writes only")


def _recorded(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[dict[str, str], RecordOptions]:
    """The files to write, and what to record."""
    outputs = {name: path for name in FORMATS if (path := getattr(args, name)) is not None}
    for name, path in outputs.items():
        if path == "-":
            said = "name a file, for stdout is the program's (./- is a file too)"
            parser.error(f"--{name}: {said}")
    options = RecordOptions(
        saves=not args.light,
        births=False if args.no_births else None,
        cuts=False if args.no_cuts else None,
        memory=args.memory,
        guard=args.guard if args.guard and not args.light else None,
        **{need: True for name in outputs for need in FORMATS[name].needs},
    )
    return outputs, options


def _shown(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Shown:
    """How the report is told; an empty file stands at -o before the program begins."""
    path = None
    if args.o is not None:
        path = results_file.absolute(joint.of_this_machine({"o": args.o})["o"])
        if args.o == "-":
            parser.error("-o: name a file, for stdout is the program's (./- is a file too)")
        why = results_file.problem(path)
        try:
            if why is None:
                results_file.replace(path, "")
        except OSError as error:
            why = f"cannot write {clean(path)}: {error.strerror}"
        if why is not None:
            parser.error(f"-o: {why}")
    color = COLORS[args.color or "auto"]
    return Shown(args.format or "full", color, path, args.quiet, args.github, args.report != "end")


def _failure(args: argparse.Namespace, recorded: session.Session) -> int:
    """The exit code for a program that ended with 0, by --fail-on and --error-exitcode."""
    if args.fail_on is None and args.error_exitcode is None:
        return 0
    if not recorded.fails_by(args.fail_on or ()):
        return 0
    return 1 if args.error_exitcode is None else int(args.error_exitcode)


def _choose(
    args: argparse.Namespace, target: program.Target, parser: argparse.ArgumentParser
) -> None:
    """What the command line leaves open is chosen by variables, and by pyproject.toml."""
    is_file = target.kind == "script" and target.value != "-"
    folder = os.path.dirname(os.path.abspath(target.value)) if is_file else os.getcwd()
    try:
        configuration.apply(args, folder)
    except configuration.Wrong as error:
        parser.exit(BAD_INPUT, f"gradext run: {error}\n")


def _codes(text: str) -> tuple[str, ...]:
    try:
        found = configuration.codes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(clean(str(error))) from None
    if not found:
        raise argparse.ArgumentTypeError("no code is given; write them as GX401,GX304 or GX4")
    return found


def _exit_code(text: str) -> int:
    try:
        return configuration.exit_code(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(clean(str(error))) from None


class _Hint(NamedTuple):
    """A hint about an option behind the program, and whether it is only for a usage error."""

    line: str
    only_after_an_error: bool


def _hint(target: program.Target) -> _Hint | None:
    words = [word for word in target.arguments if word.split("=")[0] in OPTIONS]
    if not words or target.kind != "script":
        return None
    from gradext.commands import hints  # before the program's folder is on sys.path

    line = (
        f"gradext run: {words[0]} stands behind {target.value} and went to the program; for "
        f"gradext: gradext run {words[0]} … {target.value}"
    )
    return _Hint(line, not hints.reads_no_arguments(target.value))


def _say(hint: _Hint | None, code: int) -> None:
    if hint is not None and (code == USAGE_ERROR or not hint.only_after_an_error):
        with contextlib.suppress(Exception):  # the program may have closed stderr
            print(clean(hint.line), file=sys.stderr)


def split(
    words: Sequence[str], with_values: Container[str]
) -> tuple[list[str], program.Target | None]:
    """The words before the program, which are options of gradext run, and the program.

    `with_values`: the options that take the word behind them.
    """
    index = 0
    while index < len(words):
        word, rest = words[index], tuple(words[index:])
        found: program.Target | None = None
        for option, kind in (("-m", "module"), ("-c", "command")):
            if word == option and len(rest) > 1:
                found = program.Target(kind, rest[1], rest[2:], rest)
            elif word.startswith(option) and word != option:
                found = program.Target(kind, word[len(option) :], rest[1:], rest)
        if word == "--" and len(rest) > 1:
            found = program.Target("script", rest[1], rest[2:], rest)
        elif word == "-" or not word.startswith("-"):
            found = program.Target("script", word, rest[1:], rest)
        if found is not None:
            return list(words[:index]), found
        index += 2 if word in with_values else 1
    return list(words), None  # argparse says what is missing


def unusable() -> str | None:
    """Why gradext cannot record here, in one line, as far as that is known without torch."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return "gradext needs torch, which is not installed; run: pip install torch"
    facts = Path(spec.origin).with_name("version.py")
    if not facts.is_file():
        return None
    try:
        version = ModuleType("torch.version")
        exec(facts.read_text(encoding="utf-8"), version.__dict__)
        torch = ModuleType("torch")
        torch.__dict__.update(__version__=version.__dict__["__version__"], version=version)
        fits, problems = build.choose(torch)
    except Exception:
        return None  # no torch as it is known; its own import will tell
    return None if fits is not None else f"gradext: {problems[0]}"


def _say_what_guard_takes(parser: argparse.ArgumentParser) -> None:
    """Replace argparse's "ignored explicit argument" for `--guard=none` and the like."""
    plain = parser.error

    def error(message: str) -> NoReturn:
        if message.startswith("argument --guard: "):
            known = " or ".join(f"--guard={reads}" for reads in GUARDS)
            message = f"argument --guard: expected --guard alone, {known} ({message[18:]})"
        plain(message)

    parser.error = error  # type: ignore[method-assign]


def _memory(text: str) -> int | None:
    try:
        return journal_bytes(int(text) if text.isdecimal() else -1, "--memory")
    except ValueError as error:
        said = str(error).removeprefix("--memory: ").rpartition("; got ")[0]
        raise argparse.ArgumentTypeError(f"{said}; got {text!r}") from None
