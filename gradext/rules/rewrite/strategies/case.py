"""What a strategy is given: one diagnosis, and the sources of the lines that it names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradext.source.edits import CannotEdit, Edit, Source

if TYPE_CHECKING:
    import libcst as cst


def real(path: str) -> str:
    """The path behind links; "<string>", which is no file, as it is."""
    return path if path.startswith("<") else os.path.realpath(path)


@dataclasses.dataclass(frozen=True)
class Place:
    """One line of the program, and the lines that called it, innermost first."""

    file: str
    line: int
    column: int | None
    function: str
    code: str
    op: str
    label: str
    callers: tuple[Place, ...] = ()
    in_library: bool = False  # a library's function did it

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Place:
        """The place of a frame as `gradext run --json` writes it."""
        return cls(
            real(facts["file"]),
            facts["line"],
            facts.get("column"),
            facts.get("function") or "",
            facts.get("code") or "",
            facts.get("op") or "",
            facts.get("label") or "",
            tuple(cls.of(caller) for caller in facts.get("callers", ())),
            bool(facts.get("stack")),
        )

    @property
    def way(self) -> tuple[Place, ...]:
        """This line, and those that called it."""
        return (self, *self.callers)


WRITTEN, SAVED, NOTHING = "written", "saved", "nothing"  # see Candidate.copies


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One patch: what it does, and the edits of each file.

    Attributes:
        copies: what it makes a second of: "written", the tensor that is written, "saved", the one
            that backward keeps, or "nothing", as what moves a line; "" where it may compute
            something else. Patches of one kind cost the same.
    """

    title: str
    edits: tuple[tuple[str, Edit], ...]  # (path, edit)
    undoes_stop: bool = False  # takes out a `.detach()` or a grad mode, which may have been meant
    copies: str = ""
    instead: bool = False  # another form of the candidate before it: only if that one fails

    @property
    def cuts(self) -> bool:
        """Whether it cuts a history."""
        return any(".detach" in edit.text for _, edit in self.edits)


class Sources:
    """The files of the program that may be changed, as they are and as patched so far.

    Args:
        given: texts that stand in for files, by real path (a patch that is being built on; the
            code of `-c`).
        is_own: whether a path is the user's own code, which may be changed.
        files: bytes of the files that were read so far; those of several Sources of one search,
            so that all of them speak of the same texts.

    Attributes:
        refused: why a file that was asked for cannot be changed, in one line, by path.
    """

    def __init__(
        self,
        given: Mapping[str, bytes],
        is_own: Any,
        files: dict[str, bytes] | None = None,
    ) -> None:
        self.given = dict(given)
        self.refused: dict[str, str] = {}
        self._is_own = is_own
        self._files = {} if files is None else files
        self._read: dict[str, Source | None] = {}

    def get(self, path: str) -> Source | None:
        """None where the file is not the user's, cannot be read, or is no Python."""
        path = real(path)
        if path not in self._read:
            self._read[path] = self._load(path)
        return self._read[path]

    def _load(self, path: str) -> Source | None:
        data = self.given.get(path)
        if data is None:
            data = self.original(path)
        if data is None:
            return None
        try:
            return Source(path, data)
        except CannotEdit as error:
            self.refused[path] = str(error)
            return None

    def original(self, path: str) -> bytes | None:
        """The file as it was when it was first read; None where it may not be changed."""
        path = real(path)
        if path in self._files:
            return self._files[path]
        if not self._is_own(path):
            self.refused[path] = f"{path} is none of the program's own files"
            return None
        try:
            with open(path, "rb") as file:
                self._files[path] = file.read()
        except OSError as error:
            self.refused[path] = f"cannot read {path}: {error.strerror}"
            if isinstance(error, NotADirectoryError):
                self.refused[path] = f"{path} lies in an archive: unpack it, and run the folder"
            return None
        return self._files[path]

    def patched(self, candidate: Candidate) -> dict[str, bytes]:
        """All texts that stand in for files once the candidate's edits are made.

        Raises:
            CannotEdit: the edits do not go together.
        """
        texts = dict(self.given)
        for path in dict.fromkeys(path for path, _ in candidate.edits):
            source = self.get(path)
            if source is None:
                raise CannotEdit(f"{path} cannot be changed")
            texts[path] = source.applied(edit for at, edit in candidate.edits if at == path)
        return texts


@dataclasses.dataclass(frozen=True)
class Case:
    """One diagnosis of one run.

    Attributes:
        failed_at: the user's lines of the call that raised, innermost first.
    """

    code: str
    message: str
    culprits: tuple[Place, ...]
    victims: tuple[Place, ...]
    failed_at: tuple[Place, ...]
    sources: Sources

    @classmethod
    def of(
        cls, diagnosis: Mapping[str, Any], failed_at: Sequence[Mapping[str, Any]], sources: Sources
    ) -> Case:
        return cls(
            diagnosis["code"],
            diagnosis["message"],
            tuple(Place.of(site) for site in diagnosis.get("culprits") or ()),
            tuple(Place.of(site) for site in diagnosis.get("victims") or ()),
            tuple(Place.of(frame) for frame in failed_at),
            sources,
        )

    def source(self, place: Place) -> Source | None:
        return self.sources.get(place.file)

    def statements(
        self, places: Iterable[Place]
    ) -> Iterator[tuple[Place, Source, cst.BaseSmallStatement]]:
        """The places whose statement may be changed: (place, its file, the statement there)."""
        for place in places:
            source = self.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is not None and statement is not None:
                yield place, source, statement

    def together(self, place: Place) -> Iterator[tuple[Place, Place]]:
        """Pairs of lines of one function: on the way to `place`, and to what raised."""
        for inner in place.way:
            for outer in self.failed_at:
                if (inner.file, inner.function) == (outer.file, outer.function):
                    yield inner, outer

    def files(self) -> Iterator[Source]:
        """Every file that the diagnosis names, each once."""
        places = [p for site in (*self.culprits, *self.victims) for p in site.way]
        for path in dict.fromkeys(place.file for place in (*places, *self.failed_at)):
            source = self.sources.get(path)
            if source is not None:
                yield source


def candidate(
    title: str,
    path: str,
    edits: Iterable[Edit | None],
    *,
    undoes_stop: bool = False,
    copies: str = "",
) -> Candidate | None:
    """None where one of the edits could not be made."""
    made = tuple(edits)
    if not made or any(edit is None for edit in made):
        return None
    pairs = tuple((path, edit) for edit in made if edit is not None)
    return Candidate(title, pairs, undoes_stop, copies)


def at(place: Place) -> str:
    """ "train.py:31", for a title."""
    return f"{place.file.replace(os.sep, '/').rsplit('/', 1)[-1]}:{place.line}"
