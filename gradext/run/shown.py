"""Where the report of a run goes and how it looks: in full or a line each, stderr or a file.

Owns what the options -o, --format, --color, --quiet and --github mean. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gradext.base import terminal
from gradext.base.text import clean

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis

LAYOUTS = ("full", "concise")
REPORTS = ("now", "end")  # when silent errors are told
COLORS = {"auto": None, "always": True, "never": False}


class Shown(NamedTuple):
    """How the root of a run tells what it knows.

    Attributes:
        layout: of LAYOUTS. color: None for what stderr wants.
        path: absolute, of the file that the report goes to instead of stderr.
        quiet: nothing on stderr but gradext's own errors.
        github: annotations on stderr too; None: where GitHub Actions runs this.
        at_once: silent errors are told when they are found, not only at the end.
    """

    layout: str = "full"
    color: bool | None = None
    path: str | None = None
    quiet: bool = False
    github: bool | None = None
    at_once: bool = True

    @property
    def annotates(self) -> bool:
        """Whether annotations of GitHub Actions are wanted."""
        if self.github is not None:
            return self.github
        return os.environ.get("GITHUB_ACTIONS") == "true"

    def tell(self, diagnoses: Sequence[Diagnosis], command: str | None = None) -> None:
        """Print what was found, or add it to the file.

        Args:
            command: of `gradext fix`, told where a diagnosis has edits.
        """
        text = self.text(diagnoses, command)
        if self.path is not None:
            self._add(text)
        elif not self.quiet:
            terminal.print_safely(text)
        if self.annotates:
            from gradext.reporters import github

            terminal.print_safely(github.lines(diagnoses))

    def remark(self, line: str) -> None:
        """A line beside the reports, of what was told before; none among lines for an editor."""
        if self.path is not None:
            self._add(clean(line))
        elif not self.quiet and self.layout != "concise":
            terminal.say(line)

    def text(self, diagnoses: Sequence[Diagnosis], command: str | None = None) -> str:
        """The report as it stands on stderr, or in the file."""
        if self.layout == "concise":
            from gradext.reporters import concise

            return concise.lines(diagnoses)
        from gradext.reporters import diagnosis_text

        color = bool(self.color)
        if self.color is None and self.path is None:
            color = terminal.wants_color(sys.stderr)
        told = diagnosis_text.report(
            diagnoses, color=color, header=header(diagnoses), command=command
        )
        return told if self.path is not None else f"\n{told}"

    def wrong(self) -> str | None:
        """The name of the first field whose value makes no sense; for values from outside."""
        sound = {
            "layout": self.layout in LAYOUTS,
            "color": self.color is None or type(self.color) is bool,
            "path": self.path is None or _is_path(self.path),
            "quiet": type(self.quiet) is bool,
            "github": self.github is None or type(self.github) is bool,
            "at_once": type(self.at_once) is bool,
        }
        return next((name for name, is_sound in sound.items() if not is_sound), None)

    def _add(self, text: str) -> None:
        try:
            with open(str(self.path), "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            why = f"cannot write {self.path}: {error.strerror}"
            terminal.say(f"gradext: {clean(why)}")
            terminal.print_safely(text)


def _is_path(value: object) -> bool:
    return type(value) is str and os.path.isabs(value) and value.isprintable()


def header(diagnoses: Sequence[Diagnosis]) -> str | None:
    """ "gradext: 2 errors, 1 warning", where there are several."""
    if len(diagnoses) < 2:
        return None
    count = {"error": 0, "warning": 0}
    for diagnosis in diagnoses:
        count[diagnosis.severity] = count.get(diagnosis.severity, 0) + 1
    return "gradext: " + ", ".join(
        f"{n} {word}{'s' if n > 1 else ''}" for word, n in count.items() if n
    )
