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
    at_once: bool = False

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
        if self.path is not None:
            self._add(self._text(diagnoses, bool(self.color), command))
        elif not self.quiet:
            color = terminal.wants_color(sys.stderr) if self.color is None else self.color
            text = self._text(diagnoses, color, command)
            terminal.print_safely(text if self.layout == "concise" else f"\n{text}")
        if self.annotates:
            from gradext.reporters import github

            terminal.print_safely(github.lines(diagnoses))

    def _text(self, diagnoses: Sequence[Diagnosis], color: bool, command: str | None) -> str:
        if self.layout == "concise":
            from gradext.reporters import concise

            return concise.lines(diagnoses)
        from gradext.reporters import diagnosis_text

        return diagnosis_text.report(
            diagnoses, color=color, header=header(diagnoses), command=command
        )

    def _add(self, text: str) -> None:
        try:
            with open(str(self.path), "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            why = f"cannot write {self.path}: {error.strerror}"
            terminal.say(f"gradext: {clean(why)}")
            terminal.print_safely(text)


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
