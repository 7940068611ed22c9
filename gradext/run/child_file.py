"""What a child process hands the root of its run: a file of a protocol of its own.

The root merges it and removes it. Where the root was killed the file stays, and `report` in it is
what the child would have written for a person.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gradext.diagnosis import whom
from gradext.run.entries import Entry

PROTOCOL = 2


class Handed(NamedTuple):
    """What a child has found: its entries, and the lines on gradext's own errors."""

    entries: list[Entry]
    own: list[str]


def text(
    run: str, entries: Iterable[tuple[Entry, bool]], own: Iterable[str], report: dict[str, Any]
) -> str:
    """The file's text.

    Args:
        run: the run's mark (Settings.run).
        entries: each with whether its error may still be caught: the root cannot ask.
        own: lines on gradext's own errors.
        report: what a person would be given.
    """
    packed = [{**_packed(entry), "open": is_open} for entry, is_open in entries]
    document = {"child": PROTOCOL, "run": run, "own": list(own), "entries": packed}
    return json.dumps({**document, "report": report}, indent=1) + "\n"


def read(text: str, run: str, pid: int) -> Handed | None:
    """What a child of `run` has handed over; None for any other text, whatever it is."""
    try:
        content = json.loads(text)
        if content.get("child") != PROTOCOL or content.get("run") != run:
            return None  # another run's, or no file of this version of gradext
        return Handed([_entry(packed, pid) for packed in content["entries"]], list(content["own"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def collect(path: str, run: str) -> Iterator[tuple[int, Handed]]:
    """(process id, what it has handed over) of each child; takes their files away.

    Args:
        path: the run's; the children's have their process id behind it.
    """
    folder, name = os.path.split(path)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for found in names:
        start, _, pid = found.rpartition(".")
        if start != name or not pid.isdecimal():
            continue
        own = os.path.join(folder, found)
        try:
            with open(own, encoding="utf-8") as file:
                handed = read(file.read(), run, int(pid))
            if handed is None:
                continue
            os.unlink(own)
        except (OSError, ValueError):
            continue
        yield int(pid), handed


_PLAIN = ("silent", "uncaught", "count", "error", "told")


def _packed(entry: Entry) -> dict[str, Any]:
    import dataclasses  # as in gradext.diagnosis.run_report

    plain = {name: getattr(entry, name) for name in _PLAIN}
    return {
        "diagnosis": dataclasses.asdict(entry.diagnosis),
        "whom": entry.whom.to_json(),
        **plain,
    }


def _entry(packed: dict[str, Any], pid: int) -> Entry:
    from gradext.diagnosis.model import Diagnosis, Frame, Site

    def frames(items: Iterable[dict[str, Any]]) -> Iterator[Frame]:
        return (Frame(**item) for item in items)

    def site(item: dict[str, Any]) -> Site:
        stack, callers = tuple(frames(item["stack"])), tuple(frames(item["callers"]))
        return Site(**{**item, "frame": Frame(**item["frame"]), "stack": stack, "callers": callers})

    fields = dict(packed["diagnosis"])
    fields["culprits"] = tuple(map(site, fields["culprits"]))
    fields["victims"] = tuple(map(site, fields["victims"]))
    fields["notes"] = tuple(fields["notes"])
    fields["fixes"] = ()  # the root looks for them
    if fields["window"] is not None:
        after, before = frames(fields["window"])
        fields["window"] = (after, before)
    plain = {name: packed[name] for name in (*_PLAIN, "open")}
    met = whom.from_json(packed["whom"])._replace(pid=pid)
    return Entry(Diagnosis(**fields), whom=met, **plain)
