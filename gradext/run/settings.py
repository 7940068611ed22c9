"""What the processes of one run tell each other: how they record, and what they found.

Plain data on its way through the environment and through files; what is done with it is
gradext.run.session. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from gradext.base import terminal
from gradext.recording.options import RecordOptions
from gradext.reporters import FORMATS
from gradext.run import results_file
from gradext.run.shown import Shown

_Part = TypeVar("_Part", RecordOptions, Shown)
ENVIRONMENT = "GRADEXT_RUN"  # tells the programs that this one starts that they are recorded too


class Settings(NamedTuple):
    """What the processes of one run share.

    Attributes:
        run: tells this run's files from those of another.
        root: the process id of the one that reports.
        path: absolute; what the children hand over is a file of this name and their process id.
        outputs: (format, absolute path) of each file that the root is asked to write.
        options: what each of them records.
        shown: how they tell what they find.
        stderr: the root's (terminal.stderr_mark()); a child whose own is another tells nothing.
        claims: absolute, of the file by which they agree on who tells what.
    """

    run: str
    root: int
    path: str
    outputs: tuple[tuple[str, str], ...] = ()
    options: RecordOptions = RecordOptions()
    shown: Shown = Shown()
    stderr: tuple[int, int] | None = None
    claims: str = ""

    @classmethod
    def new(cls, outputs: Mapping[str, str], options: RecordOptions) -> Settings:
        """The settings of a new run with this process as root; `outputs`: paths by format."""
        run = os.urandom(8).hex()
        files = tuple((name, results_file.absolute(path)) for name, path in outputs.items())
        own = f"gradext-{run}.json"
        name = files[0][1] if files else os.path.join(_temporary_folder(), own)
        mark, claims = terminal.stderr_mark(), f"{name}.{run}.told"
        return cls(run, os.getpid(), name, files, options, Shown(), mark, claims)

    @classmethod
    def from_environment(cls) -> Settings | None:
        """The settings of the run that this process belongs to; None where it belongs to none.

        Raises:
            BadVariable: what stands there is nothing that this version of gradext has put there.
        """
        text = os.environ.get(ENVIRONMENT, "")
        if not text:
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise BadVariable(f"{ENVIRONMENT} is not what gradext sets") from None
        if type(found) is not dict or set(found) != set(cls._fields):
            raise BadVariable(f"{ENVIRONMENT} is not what this version of gradext sets")
        for each, sound in _SOUND.items():
            if not sound(found[each]):
                raise BadVariable(f"{ENVIRONMENT} is not what gradext sets: its {each} is wrong")
        options, shown = _part(RecordOptions, found["options"]), _part(Shown, found["shown"])
        outputs = tuple((name, path) for name, path in found["outputs"])
        stderr = None if found["stderr"] is None else tuple(found["stderr"])
        read = {"outputs": outputs, "options": options, "shown": shown, "stderr": stderr}
        return cls(**{**found, **read})

    def check_outputs(self) -> None:
        """Raises CannotWrite where a file could not be written."""
        for _, path in self.outputs:
            if (why := results_file.problem(path)) is not None:
                raise CannotWrite(why)

    def to_environment(self) -> None:
        """Hand the settings to the processes that this one starts."""
        own = {"options": self.options._asdict(), "shown": self.shown._asdict()}
        document = {**self._asdict(), **own}
        os.environ[ENVIRONMENT] = json.dumps(document)


def _temporary_folder() -> str:
    """tempfile.gettempdir(), whose module imports much (random, hashlib, shutil) for one name."""
    is_chosen = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    usual = "/tmp"
    if "tempfile" in sys.modules or os.name != "posix" or is_chosen or not _is_writable(usual):
        import tempfile

        return tempfile.gettempdir()
    return usual


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _part(kind: type[_Part], given: Any) -> _Part:
    """The options of one kind. Raises BadVariable where one lacks, or is none that it can be."""
    if type(given) is not dict or set(given) != set(kind._fields):
        raise BadVariable(f"{ENVIRONMENT} is not what this version of gradext sets")
    options = kind(**given)
    if (name := options.wrong()) is not None:
        raise BadVariable(f"{ENVIRONMENT} is not what gradext sets: its {name} is wrong")
    return options


def _is_path(value: Any) -> bool:
    if type(value) is not str or not os.path.isabs(value) or "\0" in value:
        return False
    return bool(os.path.basename(value)) and os.path.isdir(os.path.dirname(value))


def _is_output(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and value[0] in FORMATS and _is_path(value[1])


def _is_mark(value: Any) -> bool:
    return type(value) is list and [type(item) for item in value] == [int, int]


# What each of the settings may be. The process that reads them writes files by them.
_SOUND: dict[str, Callable[[Any], bool]] = {
    "run": lambda value: type(value) is str and re.fullmatch("[0-9a-f]{16}", value) is not None,
    "root": lambda value: type(value) is int and 0 < value < 2**31,
    "path": _is_path,
    "outputs": lambda value: type(value) is list and all(map(_is_output, value)),
    "stderr": lambda value: value is None or _is_mark(value),
    "claims": _is_path,
}


class BadVariable(ValueError):
    """One line: which variable of the environment makes no sense."""


class CannotWrite(Exception):
    """One line: the JSON's path and why it cannot be written."""
