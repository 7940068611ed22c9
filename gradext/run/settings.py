"""What the processes of one run tell each other: how they record, and what they found.

Plain data on its way through the environment and through files; what is done with it is
gradext.run.session. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from gradext.run import results_file

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis

ENVIRONMENT = "GRADEXT_RUN"  # tells the programs that this one starts that they are recorded too


class Settings(NamedTuple):
    """What the processes of one run share.

    Attributes:
        run: tells this run's files from those of another.
        root: the process id of the one that reports.
        path: absolute; the root's JSON. A child's is this and its process id.
        keep: `path` was asked for; otherwise the root writes none and only the children's exist.
        saves, births, cuts, memory: as gradext.record takes them; memory in MiB, None for the
            default.
        guard: whether saved tensors are fingerprinted.
    """

    run: str
    root: int
    path: str
    keep: bool
    saves: bool = True
    memory: int | None = None
    births: bool | None = None
    cuts: bool | None = None
    guard: bool = False

    @classmethod
    def new(
        cls,
        path: str | None,
        saves: bool,
        memory: int | None,
        births: bool | None = None,
        cuts: bool | None = None,
        guard: bool = False,
    ) -> Settings:
        run = os.urandom(8).hex()
        if path is None:
            import tempfile

            name = os.path.join(tempfile.gettempdir(), f"gradext-{run}.json")
            return cls(run, os.getpid(), name, False, saves, memory, births, cuts, guard)
        path = results_file.absolute(path)
        return cls(run, os.getpid(), path, True, saves, memory, births, cuts, guard)

    @classmethod
    def from_environment(cls) -> Settings | None:
        """Those of the run that this process belongs to; None where it belongs to none.

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
        for name, sound in _SOUND.items():
            if not sound(found[name]):
                raise BadVariable(f"{ENVIRONMENT} is not what gradext sets: its {name} is wrong")
        return cls(**found)

    def to_environment(self) -> None:
        os.environ[ENVIRONMENT] = json.dumps(self._asdict())


def _is_path(value: Any) -> bool:
    if type(value) is not str or not os.path.isabs(value) or "\0" in value:
        return False
    return bool(os.path.basename(value)) and os.path.isdir(os.path.dirname(value))


# What each of the settings may be. The process that reads them writes files by them.
_SOUND: dict[str, Callable[[Any], bool]] = {
    "run": lambda value: type(value) is str and re.fullmatch("[0-9a-f]{16}", value) is not None,
    "root": lambda value: type(value) is int and 0 < value < 2**31,
    "path": _is_path,
    "keep": lambda value: type(value) is bool,
    "saves": lambda value: type(value) is bool,
    "memory": lambda value: value is None or (type(value) is int and 0 < value < 2**24),
    "births": lambda value: value is None or type(value) is bool,
    "cuts": lambda value: value is None or type(value) is bool,
    "guard": lambda value: type(value) is bool,
}


class BadVariable(ValueError):
    """One line: which variable of the environment makes no sense."""


class CannotWrite(Exception):
    """One line: the JSON's path and why it cannot be written."""


@dataclasses.dataclass
class Entry:
    """One diagnosis of this run, however often it was seen.

    Attributes:
        silent: torch raised nothing, so that nobody can have caught it.
        uncaught: nobody caught the error.
        error: the error's text; incident: the last that had this diagnosis, to tell its exception.
        pid: of the child that it comes from; open: the child may have caught the error since.
    """

    diagnosis: Diagnosis
    silent: bool = False
    uncaught: bool = False
    count: int = 1
    error: str | None = None
    incident: Any = None
    pid: int | None = None
    open: bool = False
    printed: bool = False

    def is_told_in(self, text: str) -> bool:
        """Whether the text of another error tells of this one, which happened in a child."""
        return self.pid is not None and bool(self.error) and str(self.error) in text

    def key(self) -> tuple[object, ...]:
        d = self.diagnosis
        places = [
            tuple((site.frame.file, site.frame.line) for site in sites)
            for sites in (d.culprits, d.victims)
        ]
        window = d.window and tuple((frame.file, frame.line) for frame in d.window)
        return (d.code, *places, window, self.pid)

    def pack(self, *, is_open: bool) -> dict[str, Any]:
        """For the root, which cannot ask whether this process still was about to catch an error."""
        return {
            "diagnosis": dataclasses.asdict(self.diagnosis),
            "silent": self.silent,
            "uncaught": self.uncaught,
            "open": is_open,
            "count": self.count,
            "error": self.error,
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any], pid: int) -> Entry:
        from gradext.diagnosis.model import Diagnosis, Frame, Site

        def frames(items: Iterable[dict[str, Any]]) -> Iterator[Frame]:
            return (Frame(**item) for item in items)

        def site(item: dict[str, Any]) -> Site:
            stack, callers = tuple(frames(item["stack"])), tuple(frames(item["callers"]))
            return Site(
                **{**item, "frame": Frame(**item["frame"]), "stack": stack, "callers": callers}
            )

        fields = dict(packed["diagnosis"])
        fields["culprits"] = tuple(map(site, fields["culprits"]))
        fields["victims"] = tuple(map(site, fields["victims"]))
        fields["notes"] = tuple(fields["notes"])
        if fields["window"] is not None:
            after, before = frames(fields["window"])
            fields["window"] = (after, before)
        others = {name: packed[name] for name in ("silent", "uncaught", "open", "count", "error")}
        return cls(Diagnosis(**fields), pid=pid, **others)
