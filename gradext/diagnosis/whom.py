"""Whom a fault concerns: the rank, the worker, the process and the threads that met it.

Plain data and its words; who is asked for it is gradext.run.identity. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gradext.base.text import clean

MOST = 8  # threads of one fault that are kept, and processes that one line lists
_LONGEST = 60  # characters of a name
_COUNTED = re.compile(r"\w*Process-[\d:]+|MainProcess")  # the names that multiprocessing gives


class Whom(NamedTuple):
    """Who met a fault.

    Attributes:
        pid: of a child process, None for the program's own. process: the child's name, where
            multiprocessing has given it one.
        rank, ranks: in torch.distributed, or as a launcher says; of how many.
        local_rank: on its machine.
        worker: of a DataLoader.
        threads: names, None for the main thread; none of them where it is not known.
    """

    pid: int | None = None
    process: str | None = None
    rank: int | None = None
    ranks: int | None = None
    local_rank: int | None = None
    worker: int | None = None
    threads: tuple[str | None, ...] = ()

    def with_threads(self, more: Iterable[str | None]) -> Whom:
        """A copy with these threads added."""
        threads = tuple(dict.fromkeys((*self.threads, *more)))[:MOST]
        return self if threads == self.threads else self._replace(threads=threads)

    def to_json(self) -> dict[str, Any]:
        """The known fields, under the names that `gradext run --json` has for it."""
        named = [thread for thread in self.threads if thread is not None]
        found: dict[str, Any] = {
            "pid": self.pid,
            "process": self.process,
            "rank": self.rank,
            "world_size": self.ranks,
            "local_rank": self.local_rank,
            "worker": self.worker,
            "thread": named[0] if named else None,
        }
        if len(self.threads) > 1:
            found["threads"] = ["MainThread" if name is None else name for name in self.threads]
        return {name: value for name, value in found.items() if value is not None}


NOBODY = Whom()  # the program's own process; its thread is not known


def from_json(found: dict[str, Any]) -> Whom:
    """What to_json() wrote. Raises TypeError for anything else."""
    threads: tuple[str | None, ...] = ()
    if "threads" in found:
        listed = found["threads"]
        if type(listed) is not list:
            raise TypeError("threads is no list")
        threads = tuple(None if name == "MainThread" else _text(name) for name in listed)
    elif found.get("thread") is not None:
        threads = (_text(found["thread"]),)
    process = found.get("process")
    return Whom(
        _number(found.get("pid")),
        None if process is None else _text(process),
        _number(found.get("rank")),
        _number(found.get("world_size")),
        _number(found.get("local_rank")),
        _number(found.get("worker")),
        threads,
    )


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("a name is no text")
    return value


def _number(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise TypeError("a number is none")
    return value


def words(met: Sequence[Whom]) -> str:
    """ "on ranks 0-7 of 8", "in DataLoader worker 0"; "" for the program's own main thread alone.

    One phrase for all that met a fault in the same way: of the same ranks, of workers, of threads.
    """
    alike: dict[tuple[bool, ...], list[Whom]] = {}
    for one in met:
        named = any(name is not None for name in one.threads)
        # A rank or a worker is known by that: its process needs no number.
        other = one.pid is not None and one.rank is None and one.worker is None
        kind = (one.rank is not None, one.worker is not None, other, named)
        alike.setdefault(kind, []).append(one)
    plain = alike.pop((False, False, False, False), None)
    phrases = [_phrase(group) for group in alike.values()]
    return f"{'also ' if plain and phrases else ''}{'; '.join(phrases)}"


def _phrase(group: Sequence[Whom]) -> str:
    first = group[0]
    parts = []
    if first.rank is not None:
        of = max((one.ranks or 0 for one in group), default=0)
        listed = _spans(one.rank for one in group if one.rank is not None)
        many = len({one.rank for one in group}) > 1
        parts.append(f"on {'ranks' if many else 'rank'} {listed}{f' of {of}' if of else ''}")
    if first.worker is not None:
        listed = _spans(one.worker for one in group if one.worker is not None)
        many = len({one.worker for one in group}) > 1
        parts.append(f"in DataLoader {'workers' if many else 'worker'} {listed}")
    elif first.rank is None and first.pid is not None:
        processes = list(dict.fromkeys(_process(one) for one in group))
        many = len(processes) > 1
        parts.append(f"in the child {'processes' if many else 'process'} {_listed(processes)}")
    threads = list(dict.fromkeys(name for one in group for name in one.threads))
    named = [f'"{_short(name)}"' for name in threads if name is not None]
    if named:
        too = "also " if None in threads else ""
        parts.append(f"{too}in {'threads' if len(named) > 1 else 'thread'} {_listed(named)}")
    return ", ".join(parts)


def _process(one: Whom) -> str:
    # "SpawnProcess-1" says no more than the number.
    is_chosen = one.process is not None and not _COUNTED.fullmatch(one.process)
    return f'"{_short(one.process or "")}" ({one.pid})' if is_chosen else str(one.pid)


def _short(name: str) -> str:
    text = clean(name)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _listed(items: Sequence[str]) -> str:
    more = len(items) - MOST
    return ", ".join(items[:MOST]) + (f" and {more} more" if more > 0 else "")


def _spans(numbers: Iterable[int]) -> str:
    """ "0-3, 6"."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return _listed([str(a) if a == b else f"{a}-{b}" for a, b in spans])
