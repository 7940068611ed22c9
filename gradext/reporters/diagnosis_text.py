"""A Diagnosis as the text that a person reads: the marked code first, then why, then the fix.

Reads finished Diagnoses and source files, never a tensor and never a recording. Plain text is ASCII
wherever the code and the words are; colour adds escape sequences and changes no character.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

from gradext.base import errors, op_names, terminal
from gradext.base.text import clean, clean_lines
from gradext.diagnosis.codes import CODES, UNKNOWN
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.reporters import excerpt
from gradext.source import cells, files

MIN_WIDTH = 40  # below this nothing can be laid out

BEFORE, AFTER = 2, 1  # lines of context around a marked expression
NEAR = 12  # sites of one file that are at most so many lines apart share an excerpt
TALL = 5  # an expression of more lines shows its first two and its last
MAX_THROUGH = 3
MAX_CALLERS = 5
CALLERS_CUT = "(and more: the stack was deeper than the 256 frames that are kept)"
LABEL_ROOM = 30  # a label that does not fit beside its carets wants so many cells below them

Segment = tuple[str, str]  # text, style
Row = list[Segment]

_ANSI = {
    "error": "1;31",
    "warning": "1;33",
    "culprit": "1;31",
    "victim": "1;36",
    "strong": "1",
    "help": "1;32",
    "margin": "1;34",
    "dim": "2",
}


def text(
    d: Diagnosis, *, color: bool = False, width: int | None = None, command: str | None = None
) -> str:
    """One diagnosis, without a newline at its end.

    Args:
        color: add ANSI colour; the characters stay the same.
        width: cells of a line; the terminal's width, at most 100, unless given. Code is cut to it
            and prose is wrapped to it. Paths are never broken: they are there to be clicked on.
        command: the `gradext fix` of the program, where it has something to try.
    """
    try:
        return _text(d, color, room(width), command)
    except Exception as error:
        # The report stands between a person and their own error: it never adds one.
        return _bare(d, error)


def report(
    diagnoses: Sequence[Diagnosis],
    *,
    color: bool = False,
    width: int | None = None,
    header: str | None = None,
    command: str | None = None,
) -> str:
    """All diagnoses below `header`, with an empty line between them. "" if there is nothing.

    `command`: the `gradext fix` of the program, shown once, with the first that has edits.
    """
    cells = room(width)
    first = next((n for n, d in enumerate(diagnoses) if d.fixes), None)
    parts = [
        text(d, color=color, width=cells, command=command if n == first else None)
        for n, d in enumerate(diagnoses)
    ]
    if header:
        rows: list[Row] = [[(line, "strong")] for line in excerpt.wrap(header, cells)]
        parts.insert(0, _join(rows, color))
    return "\n\n".join(parts)


def room(width: int | None) -> int:
    """The cells of a line: `width`, or the terminal's; never too few to lay anything out."""
    return max(terminal.width() if width is None else width, MIN_WIDTH)


def _bare(d: Diagnosis, error: Exception) -> str:
    lines = [f"{d.severity}[{d.code}]: {d.message}"]
    lines += [f"  --> {site.frame.file}:{site.frame.line}" for site in (*d.culprits, *d.victims)]
    if d.fix:
        lines.append(f"help: {d.fix}")
    lines.append(f"(gradext could not lay out this report: {errors.describe(error)})")
    return "\n".join(map(clean_lines, lines))


# --- the one file of a program -------------------------------------------------------------------


def _only_file(d: Diagnosis) -> str | None:
    """The file of all user lines of a diagnosis, if it is one: its name is then said once."""
    places = [site.frame for site in (*d.culprits, *d.victims)] + list(d.window or ())
    callers = [frame for site in (*d.culprits, *d.victims) for frame in site.callers]
    files = {frame.file for frame in (*places, *callers)}
    return files.pop() if len(files) == 1 else None


def _by_lines(d: Diagnosis, only: str) -> Diagnosis:
    """The diagnosis with "line 27" in its sentences where "train.py:27" stood."""
    cell = cells.name(only)
    name = re.escape(f"{cell}, line " if cell else only.replace("\\", "/").rsplit("/", 1)[-1] + ":")
    here = re.compile(rf"(`[^`]*`)|(?<![\w/.\\-]){name}(\d+)(?!\w|:\d)")

    def said(text: str) -> str:
        # What stands in backquotes is code of the program's, and stays as it is.
        return here.sub(lambda found: found[1] or f"line {found[2]}", text)

    def labelled(sites: tuple[Site, ...]) -> tuple[Site, ...]:
        return tuple(dataclasses.replace(site, label=said(site.label)) for site in sites)

    return dataclasses.replace(
        d,
        message=said(d.message),
        culprits=labelled(d.culprits),
        victims=labelled(d.victims),
        fix=said(d.fix),
        notes=tuple(map(said, d.notes)),
    )


# --- what is shown, and in which order -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A site with its place in the report. `full` ones get context, callers and stack."""

    site: Site
    role: str  # "culprit" or "victim"
    label: str
    full: bool

    @property
    def frame(self) -> Frame:
        return self.site.frame


def _text(d: Diagnosis, color: bool, width: int, command: str | None) -> str:
    only = _only_file(d)
    if only is not None:
        d = _by_lines(d, only)
    rows = _head(d, width)
    shown = _sites(d)
    excerpts = _group(shown)
    files = _Files(shown)
    gutter = max((len(str(n)) for group in excerpts for n in files.numbers(group)), default=1)
    for index, group in enumerate(excerpts):
        arrow = "-->" if index == 0 else ":::"
        rows += _excerpt(group, files, gutter, width, arrow, only)
    facts = [_window_words(d.window, only)] if d.window is not None else []
    facts += [d.whom] if d.whom else []
    rows += _notes([*facts, *(f"note: {note}" for note in d.notes)], gutter, width)
    if d.fix:
        for index, line in enumerate(excerpt.wrap(d.fix, width, "help: ")):
            rows.append([("help:", "help"), (line[5:], "")] if index == 0 else [(line, "")])
    if command is not None:  # never broken: it is there to be copied
        rows.append([("fix: ", "help"), (command, "")])
    if d.code in CODES:
        rows.append([("docs: ", "dim"), (f"gradext explain {d.code}", "")])
    return _join(rows, color)


def _head(d: Diagnosis, width: int) -> list[Row]:
    style = d.severity if d.severity in _ANSI else "strong"
    start = f"{d.severity}[{d.code}]"
    name = CODES[d.code].name if d.code in CODES else None
    # wrap() breaks at spaces only, so that the first line always begins with `start`.
    lines = excerpt.wrap(f"{name}: {d.message}" if name else d.message, width, f"{start} ", "  ")
    first: Row = [(start, style), (lines[0][len(start) :], "strong")]
    return [first, *([(line, "strong")] for line in lines[1:])]


def _sites(d: Diagnosis) -> list[_Shown]:
    """Most important first: the first culprit and the first victim in full, the others briefly."""
    if d.window is not None and not d.culprits:
        labels = ("unchanged up to here", "changed by here")
        same_line = d.window[0] == d.window[1]
        edges = [
            _Shown(Site(frame), "culprit", label, True)
            for frame, label in zip(d.window, labels, strict=True)
        ]
        if same_line:
            edges = [_Shown(Site(d.window[0]), "culprit", "changed within what this does", True)]
    else:
        edges = [_Shown(site, "culprit", "", i == 0) for i, site in enumerate(d.culprits)]
    victims = [_Shown(site, "victim", "", i == 0) for i, site in enumerate(d.victims)]
    first = edges if d.window is not None else edges[:1]
    found: list[_Shown] = []
    for item in [*first, *victims[:1], *edges[len(first) :], *victims[1:]]:
        if not item.label:
            words = getattr(CODES.get(d.code, UNKNOWN), item.role)
            item = dataclasses.replace(item, label=label(item.site, words))
        if all((item.frame, item.label) != (x.frame, x.label) for x in found):
            found.append(item)
    return found


def label(site: Site, otherwise: str) -> str:
    """What happened at a site: its own label, or `otherwise`, with its versions and its count."""
    label = clean(site.label) or otherwise
    if site.version_before is not None and site.version_after is not None:
        versions = f"{site.version_before} -> {site.version_after}"
        if site.version_before == site.version_after:
            label = f"{label}: the version stays {site.version_before}"
        elif versions not in label:
            label = f"{label}: version {versions}"
    remarks = []
    if site.op is not None and not _names(label, site.op):
        remarks.append(clean(site.op))
    if site.times > 1 and not re.search(rf"\b{site.times}\b (?:writes|times)", label):
        remarks.append(f"{site.times} times")
    return f"{label} ({', '.join(remarks)})" if remarks else label


def _names(label: str, op: str) -> bool:
    """Whether the label has the operator's name, in full ("aten::mul_") or short ("mul_")."""
    short = op_names.short(op).split(".", 1)[0]
    return re.search(rf"(?<!\w){re.escape(short)}(?!\w)", label) is not None


def _group(shown: list[_Shown]) -> list[list[_Shown]]:
    """The sites that share an excerpt; excerpts and sites in order of importance."""
    groups: list[list[_Shown]] = []
    for item in shown:
        near = [g for g in groups if any(_near(item.frame, other.frame) for other in g)]
        if not near:
            groups.append([item])
            continue
        near[0].append(item)
        for later in near[1:]:  # the new site lies between two groups and makes them one
            near[0].extend(later)
            groups.remove(later)
    order = {id(item): index for index, item in enumerate(shown)}
    for group in groups:
        group.sort(key=lambda item: order[id(item)])
    groups.sort(key=lambda group: order[id(group[0])])
    return groups


def _near(a: Frame, b: Frame) -> bool:
    if a.file != b.file:
        return False
    upper, lower = sorted((a, b), key=lambda frame: frame.line)
    return lower.line - max(upper.end_line or 0, upper.line) <= NEAR


# --- source --------------------------------------------------------------------------------------


class _Files:
    """The lines of every file that the sites are in, as far as they still are what ran."""

    def __init__(self, shown: list[_Shown]) -> None:
        self.lines: dict[str, dict[int, str]] = {}
        self.exact: dict[str, bool] = {}  # whether columns can be looked up in these lines
        self.remarks: dict[str, str] = {}
        frames: dict[str, list[Frame]] = {}
        for item in shown:
            frames.setdefault(item.frame.file, []).append(item.frame)
        for file, places in frames.items():
            read = files.read_lines(file)
            lines = dict(enumerate(read or [], 1))
            self.exact[file] = bool(lines) and all(_fits(frame, lines) for frame in places)
            if lines and not self.exact[file]:
                self.remarks[file] = f"{files.user_path(file)} has changed since this code ran"
            if not self.exact[file]:
                # The code that a frame carries has lost its indent, and with it the columns.
                lines = {f.line: f.code.strip() for f in places if f.code.strip()}
            self.lines[file] = lines

    def numbers(self, group: list[_Shown]) -> list[int]:
        """The lines that the excerpt of these sites shows."""
        lines = self.lines[group[0].frame.file]
        wanted: set[int] = set()
        for item in group:
            first, last = _extent(item.frame)
            inside = set(range(first, last + 1))
            if len(inside) > TALL:
                inside = {first, first + 1, last}
            if item.full:
                inside |= {*range(first - BEFORE, first), *range(last + 1, last + 1 + AFTER)}
            wanted |= inside
        marked = {number for item in group for number in _extent(item.frame)}
        numbers = {n for n in wanted if n in lines and (lines[n].strip() or n in marked)}
        # What lies between two shown lines is shown if it is no longer than the dots for it, or
        # nothing but empty lines.
        for above, below in itertools.pairwise(sorted(numbers)):
            between = range(above + 1, below)
            if len(between) == 1 or not any(lines[n].strip() for n in between if n in lines):
                numbers.update(n for n in between if n in lines)
        return sorted(numbers)


def _fits(frame: Frame, lines: dict[int, str]) -> bool:
    """Whether the file still has at that line what ran there, as far as that is known."""
    code = frame.code.strip().split("\n")[0].strip()
    return frame.line in lines and (not code or lines[frame.line].strip() == code)


def _extent(frame: Frame) -> tuple[int, int]:
    """First and last line of the expression; one line where the end makes no sense."""
    if frame.column is None or frame.end_column is None or frame.end_line is None:
        return frame.line, frame.line
    return frame.line, max(frame.line, frame.end_line)


@dataclasses.dataclass(frozen=True)
class _Mark:
    """Carets below one line, in cells. The label stands beside the last line of an expression."""

    start: int
    end: int
    role: str
    label: str


def _marks(
    group: list[_Shown], lines: dict[int, str], exact: bool, numbers: list[int]
) -> dict[int, list[_Mark]]:
    marks: dict[int, list[_Mark]] = {}
    for item in group:
        first, last = _extent(item.frame)
        column = _column(item.frame, lines.get(first, "")) if exact else None
        # Without a sound end one caret says: somewhere from here on.
        known = last in lines and exact and (last > first or column is not None)
        last = last if known else first
        for number in (n for n in numbers if first <= n <= last):
            code = lines[number]
            line = excerpt.Line.of(code)
            start, end = line.cell(len(code) - len(code.lstrip())), line.width
            if number == first and column is not None:
                start = line.cell(column)
            if number == last:
                end = line.cell(item.frame.end_column or 0) if known else 0
                end = max(end, start + 1)
            if end > start:
                label = item.label if number == last else ""
                _add(marks.setdefault(number, []), _Mark(start, end, item.role, label))
    return marks


def _add(marks: list[_Mark], new: _Mark) -> None:
    """One row of carets for an expression that two sites are about: what is said stands in one."""
    for at, mark in enumerate(marks):
        if (mark.start, mark.end) == (new.start, new.end):
            label = "; ".join(filter(None, dict.fromkeys((mark.label, new.label))))
            marks[at] = dataclasses.replace(mark, label=label)
            return
    marks.append(new)


def _column(frame: Frame, code: str) -> int | None:
    """Where the expression begins on its first line; None for a column that is no place in it."""
    column = frame.column
    return column if column is not None and 0 <= column < len(code.rstrip()) else None


# --- layout --------------------------------------------------------------------------------------


def _excerpt(
    group: list[_Shown], files: _Files, gutter: int, width: int, arrow: str, only: str | None
) -> list[Row]:
    file = group[0].frame.file
    lines, exact = files.lines[file], files.exact[file]
    numbers = files.numbers(group)
    marks = _marks(group, lines, exact, numbers)
    empty: Row = [(f"{'':{gutter}} |", "margin")]
    here = place(group[0].frame, column=True, only=None if arrow == "-->" else only)
    rows: list[Row] = [[(f"{'':{gutter}}{arrow} ", "margin"), (here, "")]]
    if numbers:
        rows.append(empty)
    previous = numbers[0] if numbers else 0
    for number in numbers:
        if number > previous + 1:
            rows.append([(excerpt.DOTS, "margin")])
        previous = number
        rows += _numbered(
            number, excerpt.Line.of(lines[number]), marks.get(number, []), gutter, width
        )
    details: list[str | list[str]] = []
    unseen = [item for item in group if item.frame.line not in numbers]
    several = len(group) > 1
    for item in unseen:
        where = f"{place(item.frame, only=only)}: " if several else ""
        details.append(f"{where}{item.label}")
    if file in files.remarks:
        details.append(files.remarks[file])
    details += _ways(group, only)
    if numbers:
        rows.append(empty)
    return rows + _notes(details, gutter, width)


def _numbered(
    number: int, line: excerpt.Line, marks: list[_Mark], gutter: int, width: int
) -> list[Row]:
    """A source line with the carets and labels below it."""
    room = width - gutter - 3
    rows: list[Row] = []

    def code(text: str) -> None:
        rows.append([(f"{number:>{gutter}} | ", "margin"), (text, "")])

    if not marks:
        code(line.cut(room, 0, 0)[0])
        return rows
    start, end = min(mark.start for mark in marks), max(mark.end for mark in marks)
    # Marks too far apart for the width: each gets its own part of the line.
    together = line.width <= room or end - start <= room - 2 * len(excerpt.DOTS)
    shared = line.cut(room, start, end) if together else None
    if shared is not None:
        code(shared[0])
    for mark in marks:
        if shared is None:
            cut = line.cut(room, mark.start, mark.end)
            code(cut[0])
        else:
            cut = shared
        _, shift, limit = cut
        left = mark.start - shift
        right = max(min(mark.end - shift, limit), left + 1)
        rows += _underline(left, right, mark, gutter, room)
    return rows


def _underline(left: int, right: int, mark: _Mark, gutter: int, room: int) -> list[Row]:
    margin = (f"{'':{gutter}} | ", "margin")
    carets = ("^" if mark.role == "culprit" else "-") * (right - left)
    label = mark.label
    if not label or right + 1 + excerpt.cells(label) <= room:
        words = f"{carets} {label}" if label else carets
        return [[margin, (" " * left, ""), (words, mark.role)]]
    indent = max(min(left, room - min(excerpt.cells(label), LABEL_ROOM)), 0)
    below = excerpt.wrap(label, room - indent)
    return [
        [margin, (" " * left, ""), (carets, mark.role)],
        *([margin, (" " * indent, ""), (line, mark.role)] for line in below),
    ]


def _ways(group: list[_Shown], only: str | None) -> list[str | list[str]]:
    """How the program came to the sites that are shown in full, and what they went through."""
    full = [item for item in group if item.full]
    details: list[str | list[str]] = []
    for words, places in (
        ("called from", [_callers(item.site, only) for item in full]),
        ("through", [_through(item.site.stack) for item in full]),
    ):
        # Sites that came the same way need no line number to tell their ways apart.
        alike = all(listed == places[0] for listed in places)
        for item, listed in zip(full[:1] if alike else full, places, strict=False):
            if listed:
                head = f"{words} " if alike else f"line {item.frame.line} {words} "
                details.append([head + listed[0], *(" " * len(head) + x for x in listed[1:])])
    return details


def _callers(site: Site, only: str | None) -> list[str]:
    frames = site.callers
    lines: list[str] = []
    repeats = 0
    for index, frame in enumerate(frames):
        here = place(frame, only=only)
        if index and here == place(frames[index - 1], only=only):
            repeats += 1
            continue
        if repeats:
            lines[-1] += f" ({repeats + 1} times)"
            repeats = 0
        lines.append(here)
    if repeats:
        lines[-1] += f" ({repeats + 1} times)"
    if len(lines) > MAX_CALLERS:
        # The outermost is where the program started: a way to tell one script from another.
        hidden = len(lines) - MAX_CALLERS + 1
        lines[MAX_CALLERS - 2 : -1] = [f"({hidden} more)"]
    if site.callers_cut:
        lines.append(CALLERS_CUT)
    return lines


# Frames that every call of a module, a Function or an optimizer goes through, and that explain
# nothing.
_WRAPPERS = {
    ("nn/modules/module.py", "_wrapped_call_impl"),
    ("nn/modules/module.py", "_call_impl"),
    ("autograd/function.py", "apply"),
    ("utils/_contextlib.py", "decorate_context"),
    ("optim/optimizer.py", "wrapper"),
    ("optim/optimizer.py", "_use_grad"),
    ("optim/optimizer.py", "maybe_fallback"),
}


def _through(frames: Sequence[Frame]) -> list[str]:
    """Library frames from the one that the user's line entered to the innermost one."""

    def explains(frame: Frame) -> bool:
        file = frame.file.replace("\\", "/")
        name = frame.function.rsplit(".", 1)[-1]
        return not any(file.endswith(tail) and name == what for tail, what in _WRAPPERS)

    kept = [frame for frame in reversed(frames) if explains(frame)]
    lines = [place(frame, files.library_path) for frame in kept]
    if len(lines) > MAX_THROUGH:
        lines[1 : 1 - MAX_THROUGH] = [f"({len(lines) - MAX_THROUGH} more)"]
    return lines


def _window_words(window: tuple[Frame, Frame], only: str | None) -> str:
    after, before = window
    if after.file != before.file:
        return f"the write is between {place(after)} and {place(before)}"
    of = "" if after.file == only else f" of {files.user_path(after.file)}"
    if after.line == before.line:
        return f"the write is in what line {after.line}{of} does"
    later = " (of a later pass)" if before.line < after.line else ""
    return f"the write is between line {after.line} and line {before.line}{later}{of}"


def place(
    frame: Frame,
    path: Callable[[str], str] = files.user_path,
    *,
    column: bool = False,
    only: str | None = None,
) -> str:
    """ "train.py:27:5 in step"; "line 27 in step" in the file `only`, which is named already.

    In a notebook "Cell In[3], line 27 in step", as its tracebacks say it.
    """
    is_named, cell = frame.file == only, cells.name(frame.file)
    if is_named or cell is not None:
        where = f"line {frame.line}" if is_named else f"{cell}, line {frame.line}"
    else:
        where = f"{path(frame.file)}:{frame.line}"
        if column and frame.column is not None:
            where += f":{frame.column + 1}"
    return f"{where} in {clean(frame.function)}" if frame.function else where


def _notes(details: Sequence[str | list[str]], gutter: int, width: int) -> list[Row]:
    """Each detail behind a "=": a sentence is wrapped, a list of places keeps its lines."""
    rows: list[Row] = []
    for detail in details:
        first = f"{'':{gutter}} = "
        if isinstance(detail, str):
            lines = [line[len(first) :] for line in excerpt.wrap(detail, width, first)]
        else:
            lines = detail
        for index, line in enumerate(lines):
            start = (first, "margin") if index == 0 else (" " * len(first), "")
            rows.append([start, (line, "")])
    return rows


def _join(rows: list[Row], color: bool) -> str:
    lines = []
    for row in rows:
        plain = "".join(words for words, _ in row).rstrip()
        if not color:
            lines.append(plain)
            continue
        line = ""
        left = len(plain)
        for words, style in row:
            words = words[:left]
            left -= len(words)
            code = _ANSI.get(style)
            line += f"\x1b[{code}m{words}\x1b[0m" if code and words.strip() else words
        lines.append(line)
    return "\n".join(lines)
