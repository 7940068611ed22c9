"""The lesson in a terminal: chapters, code, evidence and verdicts as text.

Owns layout only. It reads Chapter and ClaimResult, never a tensor and never a claim's function, so
it is tested on hand-made results. Without colour or Unicode it still says the same.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Iterable, Sequence

import torch
from rich.cells import cell_len
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from gradext.base import terminal
from gradext.base.text import counted
from gradext.lesson.core import Chapter, Chart, ClaimResult, Row, Value

# Longer lines are harder to read than to scroll.
MAX_WIDTH = 100
PROSE_WIDTH = 80
INDENT = 5
VERDICT_STYLES = {
    "true": "bold green",
    "false": "bold red",
    "depends": "bold yellow",
    "unknown": "bold yellow",
}
WORDS = {
    "true": "TRUE",
    "false": "FALSE",
    "depends": "IT DEPENDS",
    "unknown": "CANNOT TELL on this machine",
    "error": "ERROR",
}
INTRO = (
    "What requires_grad, detach, no_grad and inference_mode do. Nothing here asks to be believed: "
    "each claim is code that runs now, the evidence is read from the tensors it made, and the "
    "verdict follows from the evidence. Some of the claims are popular and false."
)


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """The drawing characters, in Unicode or in ASCII."""

    rule: str
    margin: str
    full: str
    spread: str
    reference: str
    right: str
    wrong: str

    @classmethod
    def unicode(cls) -> Glyphs:
        return cls("─", "│", full="█", spread="▒", reference="┊", right="✓", wrong="✗")

    @classmethod
    def ascii(cls) -> Glyphs:
        return cls("-", "|", full="#", spread="=", reference=":", right="+", wrong="x")

    def mark(self, verdict: str) -> str:
        """One character for a verdict: true, false, or neither."""
        return {"true": self.right, "false": self.wrong, "error": "!"}.get(verdict, "?")

    @classmethod
    def of(cls, console: Console) -> Glyphs:
        """Unicode on a terminal that can print it; plain ASCII in a pipe, a file, or elsewhere."""
        try:
            "".join(dataclasses.astuple(cls.unicode())).encode(console.encoding)
        except (UnicodeEncodeError, LookupError):
            return cls.ascii()
        return cls.unicode() if console.is_terminal else cls.ascii()


class TerminalReporter:
    """Prints a lesson as it goes: opening(), chapter(), claim() …, closing()."""

    def __init__(self, console: Console | None = None, glyphs: Glyphs | None = None) -> None:
        # highlight=False: rich would colour every number and quote in prose.
        self.console = console or terminal.console(sys.stdout, highlight=False)
        self.width = min(self.console.width, MAX_WIDTH)
        self.glyphs = glyphs or Glyphs.of(self.console)

    def flush(self) -> None:
        """Show what was printed, now."""
        self.console.file.flush()

    def opening(self, chapters: Sequence[Chapter], device: str) -> None:
        claims = sum(len(chapter.claims) for chapter in chapters)
        size = f"{counted(len(chapters), 'chapter')}, {counted(claims, 'claim')}"
        about = f"   {size}, torch {torch.__version__}, {device}"
        self._hang(Text(), Text.assemble(("gradext lesson", "bold"), (about, "dim")), self.width)
        self._line()
        self._paragraph(INTRO)

    def chapter(self, chapter: Chapter) -> None:
        head = f"{self.glyphs.rule * 2} {chapter.number}  {chapter.title} "
        self._line()
        rule = self.glyphs.rule * (self.width - cell_len(head))
        self._line(Text.assemble((head, "bold cyan"), (rule, "cyan")))
        self._line()
        self._paragraph(chapter.intro)

    def claim(self, result: ClaimResult) -> None:
        self._line()
        number = Text(result.number.ljust(INDENT), "bold cyan")
        style = VERDICT_STYLES.get(result.verdict, "bold reverse red")
        number.append(self.glyphs.mark(result.verdict), style).append(" ")
        self._hang(number, Text(result.claim, "bold"), PROSE_WIDTH)
        self._line()
        self._code(result.code)
        for group in _groups(result.evidence):
            self._line()
            if isinstance(group, Chart):
                self.chart(group)
            else:
                self.rows(group)
        self._line()
        self.verdict(result)

    def closing(self, results: Sequence[ClaimResult], seconds: float, next_command: str) -> None:
        wrong = [result for result in results if not result.as_stated]
        self._line()
        self._line(Text(self.glyphs.rule * self.width, "cyan"))
        self._line()
        open_ = sum(result.verdict == "unknown" for result in results)
        count = len(results)
        style = "bold red" if wrong else "bold green"
        line = Text(f"{counted(count, 'claim')}, ", "bold")
        line.append(f"{count - len(wrong) - open_} as expected", style)
        if open_:
            line.append(f", {open_} that this machine cannot tell", "bold yellow")
        self._line(line.append(f", in {seconds:.1f} s.", "dim"))
        for result in wrong:
            said = result.error or result.verdict.upper()
            self._hang(
                Text(result.number.ljust(INDENT), "bold red"),
                Text(f"{said} (expected: {result.stated}): {result.claim}"),
                PROSE_WIDTH,
            )
        self._line(Text.assemble("Next: ", (next_command, "bold")))

    def listing(self, chapters: Iterable[Chapter]) -> None:
        """The table of contents, each claim with its expected verdict."""
        for chapter in chapters:
            self._line(Text(f"{chapter.number}  {chapter.title}", "bold"))
            for claim in chapter.claims:
                first = Text(f"   {claim.number:<5}", "cyan")
                first.append(self.glyphs.mark(claim.stated), VERDICT_STYLES[claim.stated])
                self._hang(first.append(" "), Text(claim.text), self.width)
        self._line()
        key = f"{self.glyphs.right} true  {self.glyphs.wrong} false  ? it depends"
        self._line(Text(key, "dim"))
        run = ("gradext lesson 3", "bold"), " (a chapter) or ", ("gradext lesson 3.8", "bold")
        self._line(Text.assemble("Run with: ", *run))

    def _code(self, code: str) -> None:
        margin = Text(" " * (INDENT - 2)).append(self.glyphs.margin + " ", "dim cyan")
        margin_only = margin.copy()
        margin_only.rstrip()
        highlighted = Syntax("", "python", theme="ansi_dark").highlight(self._safe(code))
        highlighted.rstrip()
        for line in highlighted.split("\n", allow_blank=True):
            line.rstrip()
            # Never broken here: a terminal shows a long line on two, and copies it as one.
            self._line(Text.assemble(margin, line) if line.plain else margin_only)

    def rows(self, rows: Sequence[Row]) -> None:
        room = self.width - INDENT
        longest = max(cell_len(row.label) for row in rows)
        # The values keep at least a third of the line.
        column = min(longest, room * 2 // 3)
        for row in rows:
            lines = _lines(row.value)
            label = Text(" " * INDENT).append(row.label, "dim")
            behind = INDENT + column + 2
            space = self.width - behind
            tall = sum(max(-(-cell_len(line) // space), 1) for line in lines) > max(len(lines), 2)
            if tall or cell_len(row.label) > column:
                # Below its label a long value has the whole line.
                self._hang(Text(" " * INDENT), Text(row.label, "dim"), self.width)
                label, behind = Text(" " * (INDENT + 2)), INDENT + 2
            label.pad_right(behind - cell_len(label.plain))
            for line in lines:
                self._hang(label, Text(line), self.width)
                label = Text(" " * behind)

    def chart(self, chart: Chart) -> None:
        self._hang(Text(" " * INDENT), Text(chart.title), self.width)
        if not chart.bars:
            return
        room = self.width - INDENT
        values = [
            f"{bar.value:.2f}{chart.unit} ({bar.low:.2f} to {bar.high:.2f})" for bar in chart.bars
        ]
        labels = min(max(cell_len(bar.label) for bar in chart.bars), max(room // 3, 12))
        length = room - labels - max(map(len, values)) - 4
        if length < 8:
            # No room for the bar and the interval: the shading still shows the interval.
            values = [f"{bar.value:.2f}{chart.unit}" for bar in chart.bars]
            length = max(room - labels - max(map(len, values)) - 4, 8)
        top = max([bar.high for bar in chart.bars] + [chart.reference or 0.0]) or 1.0
        for bar, value in zip(chart.bars, values, strict=True):
            drawn = self._bar(bar.low, bar.high, top, chart.reference, length)
            label = _cut(self._safe(bar.label), labels)
            self._line(Text.assemble(f"{'':{INDENT}}{label}  ", drawn, f"  {value}"))
        key = f"{self.glyphs.spread} the spread"
        if chart.reference is not None:
            key += f"   {self.glyphs.reference} {chart.reference:g}{chart.unit}"
        self._line(Text(f"{'':{INDENT + labels + 2}}{key}", "dim"))

    def _bar(
        self, low: float, high: float, top: float, reference: float | None, length: int
    ) -> Text:
        """One bar: solid up to ``low``, shaded up to ``high``, and the reference line if free."""

        def cells(value: float) -> int:
            return min(max(round(value / top * length), 0), length)

        # A spread narrower than one cell still shows as one: it is never nothing.
        solid = max(min(cells(low), cells(high) - 1), 0)
        shaded = max(cells(high) - solid, 1)
        empty = list(" " * (length - solid - shaded))
        bar = Text(self.glyphs.full * solid, "cyan").append(self.glyphs.spread * shaded, "cyan")
        if reference is not None:
            place = min(cells(reference), length - 1)
            if place >= solid + shaded:
                empty[place - solid - shaded] = self.glyphs.reference
            else:
                # On top of the bar the line is drawn as well, or the reader would lose it.
                plain = bar.plain[:place] + self.glyphs.reference + bar.plain[place + 1 :]
                bar = Text(plain, "cyan")
        return bar.append("".join(empty), "dim")

    def verdict(self, result: ClaimResult) -> None:
        word = Text(" " * INDENT)
        style = VERDICT_STYLES.get(result.verdict, "bold reverse red")
        word.append(WORDS[result.verdict], style)
        says = Text()
        told = result.error or result.depends_on or ""
        if result.verdict == "unknown":
            says.append(f": {told}")
        elif result.as_stated:
            says.append(", as expected", "dim")
            says.append(f": {told}" if told else "")
        else:
            says.append(f": {told}" if told else "")
            says.append(f"  NOT AS EXPECTED: {WORDS[result.stated]} was", "bold red")
        self._hang(Text(" " * INDENT), word[INDENT:] + says, self.width)
        if result.instead and result.as_stated:
            self._hang(Text(" " * INDENT), Text(result.instead, "bold"), self.width)

    def _paragraph(self, words: str) -> None:
        self._hang(Text(), Text(words), PROSE_WIDTH)

    def _hang(self, first: Text, text: Text, width: int) -> None:
        """Print ``text`` wrapped behind ``first``; the lines below start where it started."""
        hang = cell_len(first.plain)
        room = max(min(width, self.width) - hang, 16)
        prefix = first
        for paragraph in self._safe_text(text).split("\n", allow_blank=True):
            for line in paragraph.wrap(self.console, room) or [Text()]:
                line.rstrip()
                self._line(Text.assemble(prefix, line))
                prefix = Text(" " * hang)

    def _line(self, text: Text | None = None) -> None:
        # soft_wrap: the lines are already as long as they may be, rich must not break them again.
        self.console.print(self._safe_text(text or Text()), soft_wrap=True)

    def _safe_text(self, text: Text) -> Text:
        """``text`` with what the stream cannot encode replaced by "?", its styles kept."""
        safe = text.copy()
        plain = self._safe(text.plain)
        if plain != safe.plain:
            safe.plain = plain
        return safe

    def _safe(self, text: str) -> str:
        encoding = self.console.encoding
        try:
            return text.encode(encoding, "replace").decode(encoding)
        except LookupError:
            return text.encode("ascii", "replace").decode("ascii")


def render_evidence(result: ClaimResult, width: int = 88) -> str:
    """The evidence and verdict of one claim as plain text (what a notebook cell prints)."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, color_system=None, force_jupyter=False, highlight=False
    )
    reporter = TerminalReporter(console, Glyphs.unicode())
    for group in _groups(result.evidence):
        if isinstance(group, Chart):
            reporter.chart(group)
        else:
            reporter.rows(group)
    reporter.verdict(result)
    lines = stream.getvalue().rstrip().split("\n")
    return "\n".join(line[INDENT:].rstrip() for line in lines)


def format_value(value: Value) -> str:
    """One value on one line: floats to six digits, large integers in groups of three."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return format(value, ".6g") if value != int(value) else format(value, ".1f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(format_value(item) for item in value) + "]"


def _lines(value: Value) -> list[str]:
    """A value as the lines of its row: a dict gets one line per entry, its keys aligned."""
    if isinstance(value, dict) and value:
        column = max(cell_len(key) for key in value)
        return [f"{key:<{column}}  {format_value(item)}" for key, item in value.items()]
    return [format_value(value)]


def _groups(evidence: Sequence[Row | Chart]) -> list[list[Row] | Chart]:
    """Neighbouring rows together, so that they align; each chart by itself."""
    groups: list[list[Row] | Chart] = []
    for item in evidence:
        if isinstance(item, Chart):
            groups.append(item)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _cut(label: str, width: int) -> str:
    return label.ljust(width) if len(label) <= width else label[: width - 2] + ".."
