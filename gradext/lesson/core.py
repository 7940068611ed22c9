"""The lesson's framework: chapters, claims, the evidence they show and the verdict it gives.

Owns how a claim is registered, run in isolation and judged. It prints nothing (terminal.py and
notebook.py do) and knows no chapter by name (the chapter modules register themselves).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch

from gradext.base import errors
from gradext.lesson import snippets

Verdict: TypeAlias = Literal["true", "false", "depends"]
Outcome: TypeAlias = Literal["true", "false", "depends", "unknown", "error"]
Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
Judged: TypeAlias = "bool | Depends | CannotTell"
ClaimFunction: TypeAlias = "Callable[[Lesson], Judged]"

# A chapter is a module of this package named "c", its number, "_" and a word or two.
_CHAPTER_MODULE = re.compile(r"c\d+_\w+")


class LessonError(ValueError):
    """The lesson was asked for something it does not have; the text is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Depends:
    """The verdict "it depends": ``on`` says on what, with the numbers."""

    on: str


@dataclasses.dataclass(frozen=True)
class CannotTell:
    """No verdict: an interval that was measured here holds both answers. ``why`` has the numbers.

    It contradicts no expected verdict: another machine, or a quieter hour, may decide.
    """

    why: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One piece of evidence: a label and the value that was read."""

    label: str
    value: Value
    kind: Literal["row"] = "row"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a chart: the value and the interval [low, high] that it is known to."""

    label: str
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Chart:
    """A bar chart as evidence; ``reference`` is where the reference line stands, if anywhere."""

    title: str
    bars: list[Bar]
    unit: str = ""
    reference: float | None = None
    kind: Literal["chart"] = "chart"


class Lesson:
    """What a claim is given: the device to run on, and where to put what it found."""

    def __init__(self, device: str = "cpu", quick: bool = False) -> None:
        self.device = device
        self.quick = quick
        self.evidence: list[Row | Chart] = []

    def show(self, label: str, value: Any) -> None:
        """Add one row of evidence: a label and a plain value (tensors are turned into lists)."""
        self.evidence.append(Row(label, plain(value)))

    def raises(self, function: Callable[[], object], label: str = "it raises") -> Exception | None:
        """Run ``function`` and show the error it raises; return that error, or None."""
        try:
            function()
        except Exception as error:
            self.show(label, errors.describe(error))
            # The traceback would keep the frames alive, and with them the tensors in them.
            return error.with_traceback(None)
        self.show(label, "no error")
        return None

    def chart(
        self,
        title: str,
        rows: Sequence[tuple[str, float, float, float]],
        unit: str = "",
        reference: float | None = 1.0,
    ) -> None:
        """Add a horizontal bar chart; a row is (label, value, low, high)."""
        bars = [
            Bar(label, float(value), float(low), float(high)) for label, value, low, high in rows
        ]
        self.evidence.append(Chart(title, bars, unit, reference))


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence that the lesson judges, the code that tests it, and the expected verdict.

    ``instead``: what is true instead of a false claim, in one sentence.
    """

    chapter: int
    index: int
    text: str
    stated: Verdict
    function: ClaimFunction
    instead: str = ""

    @property
    def number(self) -> str:
        return f"{self.chapter}.{self.index}"

    @property
    def code(self) -> str:
        """The body of the claim's function as its author wrote it."""
        return body_source(self.function)


class Chapter:
    """A titled list of claims; a chapter module makes one and names it ``CHAPTER``."""

    def __init__(self, number: int, title: str, intro: str) -> None:
        self.number = number
        self.title = title
        self.intro = " ".join(intro.split())
        self.claims: list[Claim] = []

    def claim(
        self, text: str, verdict: Verdict, instead: str = ""
    ) -> Callable[[ClaimFunction], ClaimFunction]:
        """Register the decorated function as this chapter's next claim.

        ``instead``: one sentence, for a false claim: what is true. The function's body is what the
        learner reads and what becomes a notebook cell: it returns once, in its last statement, and
        uses only ``lesson``, its own names and the module's.
        """

        def register(function: ClaimFunction) -> ClaimFunction:
            words = " ".join(text.split())
            index, true = len(self.claims) + 1, " ".join(instead.split())
            self.claims.append(Claim(self.number, index, words, verdict, function, true))
            return function

        return register


@dataclasses.dataclass(frozen=True)
class ClaimResult:
    """How one claim came out. ``to_dict`` gives plain values, ready for JSON."""

    number: str
    chapter: int
    claim: str
    code: str
    stated: Verdict
    verdict: Outcome
    depends_on: str | None
    error: str | None
    evidence: list[Row | Chart]
    seconds: float
    instead: str = ""

    @property
    def as_stated(self) -> bool:
        """Whether the evidence does not contradict the expected verdict."""
        return self.verdict in (self.stated, "unknown")

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "as_stated": self.as_stated}


def plain(value: Any) -> Value:
    """``value`` as plain Python data: what JSON can hold and a reader can read."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        # JSON has no nan and no inf.
        return value if math.isfinite(value) else str(value)
    if isinstance(value, torch.Tensor):
        return plain(value.detach().tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    return str(value)


def body_source(function: Callable[..., Any]) -> str:
    """The source of a function's body: no decorator, no ``def`` line, no docstring, dedented."""
    source = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    first = definition.body[0]
    is_docstring = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    # The comments between the header (or docstring) and the first statement belong to the body.
    if is_docstring:
        header_end = first.end_lineno
    elif definition.returns is not None:
        header_end = definition.returns.end_lineno
    else:
        header_end = first.lineno - 1
    assert header_end is not None
    lines = source.splitlines()[header_end : definition.end_lineno]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def chapters() -> list[Chapter]:
    """All chapters in order. Imports the chapter modules, on the first call."""
    package = importlib.import_module("gradext.lesson.chapters")
    found = [
        importlib.import_module(f"gradext.lesson.chapters.{module.name}").CHAPTER
        for module in pkgutil.iter_modules(package.__path__)
        if _CHAPTER_MODULE.fullmatch(module.name)
    ]
    return sorted(found, key=lambda chapter: chapter.number)


def select(numbers: int | Iterable[int] | None) -> list[Chapter]:
    """The chapters with these numbers (None: all). Raises LessonError for one that is not there."""
    available = {chapter.number: chapter for chapter in chapters()}
    if numbers is None:
        return list(available.values())
    wanted = [numbers] if isinstance(numbers, int) else list(numbers)
    for number in wanted:
        if number not in available:
            raise LessonError(
                f"there is no chapter {number}: the lesson has chapters "
                f"{min(available)} to {max(available)} (gradext lesson --list shows them)"
            )
    return [available[number] for number in wanted]


def pick(words: Iterable[str]) -> list[Chapter]:
    """The chapters ("3") and single claims ("3.8") that are named, in the order of the lesson.

    Without a word all of it. Raises LessonError for what is not there.
    """
    wanted = list(words)
    if not wanted:
        return select(None)
    whole, single = set(), set()
    for word in wanted:
        chapter, _, claim = word.partition(".")
        if not chapter.isdecimal() or ("." in word and not claim.isdecimal()):
            raise LessonError(
                f"a chapter is a number and a claim is one like 3.8, not {word!r} "
                "(gradext lesson --list shows them)"
            )
        (found,) = select(int(chapter))
        if not claim:
            whole.add(found.number)
        elif 1 <= int(claim) <= len(found.claims):
            single.add((found.number, int(claim)))
        else:
            raise LessonError(
                f"there is no claim {word}: chapter {found.number} has claims {found.number}.1 "
                f"to {found.number}.{len(found.claims)} (gradext lesson --list shows them)"
            )
    picked = []
    for chapter_of in select(sorted(whole | {number for number, _ in single})):
        part = Chapter(chapter_of.number, chapter_of.title, chapter_of.intro)
        part.claims = [
            claim_of
            for claim_of in chapter_of.claims
            if claim_of.chapter in whole or (claim_of.chapter, claim_of.index) in single
        ]
        picked.append(part)
    return picked


def check_device(device: str) -> None:
    """Raise LessonError unless the lesson can run on ``device`` ("cpu" or "cuda") here."""
    if device not in ("cpu", "cuda"):
        raise LessonError(f"the lesson runs on 'cpu' or 'cuda', not on {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise LessonError(
            "device 'cuda' asked for, but torch.cuda.is_available() is False here: "
            "run the lesson on the CPU (--device cpu) or install a CUDA build of torch"
        )


def generators(device: str) -> list[torch.Generator]:
    """The random generators that a claim on ``device`` may draw from."""
    # torch.manual_seed would also queue a seed for CUDA devices that nobody has touched yet.
    found = [torch.default_generator]
    if device == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        found.extend(torch.cuda.default_generators)
    return found


@contextlib.contextmanager
def isolated(device: str) -> Iterator[None]:
    """Run the block from a known state and leave the caller's as it was.

    Known: seed 0, grad mode on, inference mode off, float32, new tensors on the CPU. Restored:
    those and the thread count.
    """
    seeded = generators(device)
    states = [generator.get_state() for generator in seeded]
    dtype = torch.get_default_dtype()
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for generator in seeded:
            generator.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            for generator, state in zip(seeded, states, strict=True):
                generator.set_state(state)
            torch.set_default_dtype(dtype)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def judge(
    claim: Claim,
    evidence: list[Row | Chart],
    answer: object,
    error: str | None = None,
    seconds: float = 0.0,
) -> ClaimResult:
    """The result of a claim that returned ``answer``, or that ended in ``error``."""
    verdict: Outcome = "error"
    if error is None:
        if isinstance(answer, Depends):
            verdict = "depends"
        elif isinstance(answer, CannotTell):
            verdict = "unknown"
        elif isinstance(answer, bool):
            verdict = "true" if answer else "false"
        else:
            error = f"the claim must give a bool, Depends or CannotTell, it gave {answer!r}"
    on = None
    if isinstance(answer, (Depends, CannotTell)):
        on = answer.on if isinstance(answer, Depends) else answer.why
    try:
        code = snippets.snippet(claim)
    except ValueError as unfit:
        code = claim.code
        if error is None:
            verdict, error = "error", str(unfit)
    return ClaimResult(
        number=claim.number,
        chapter=claim.chapter,
        claim=claim.text,
        code=code,
        stated=claim.stated,
        verdict=verdict,
        depends_on=on,
        error=error,
        evidence=evidence,
        seconds=seconds,
        instead=claim.instead if verdict == "false" else "",
    )


def run_claim(claim: Claim, device: str = "cpu", quick: bool = False) -> ClaimResult:
    """Run one claim in isolation and judge it. An exception in it is a result, not an exception."""
    lesson = Lesson(device, quick)
    answer: object = None
    error: str | None = None
    start = time.perf_counter()
    try:
        with isolated(device):
            answer = claim.function(lesson)
    except Exception as exception:
        error = errors.describe(exception)
    return judge(claim, lesson.evidence, answer, error, time.perf_counter() - start)


def play(
    selection: Iterable[Chapter], device: str = "cpu", quick: bool = False
) -> Iterator[tuple[Chapter, ClaimResult]]:
    """Run the claims one by one and yield each result as soon as it is there."""
    check_device(device)
    for chapter in selection:
        for claim in chapter.claims:
            yield chapter, run_claim(claim, device, quick)


def run(
    numbers: int | Iterable[int] | None = None, device: str = "cpu", quick: bool = False
) -> list[ClaimResult]:
    """Run the lesson (or the chapters with these numbers) and return one result per claim.

    Nothing is printed. The caller's RNG state, grad mode, default dtype and thread count are the
    same afterwards. Raises LessonError (a ValueError) for an unknown chapter or device.
    """
    return [result for _, result in play(select(numbers), device, quick)]
