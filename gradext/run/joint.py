"""One report of ranks that a launcher has started, each of which is the root of a run of its own.

`torchrun ... -m gradext run ...` starts as many runs as there are ranks, under no process that
could merge what they find. So they share a file in the temporary folder of their machine, under a
lock: each keeps its own part up to date, and whoever changes something writes the outputs of all.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gradext.diagnosis.run_report import RunReport, Told, alike
from gradext.reporters import run_json
from gradext.run import identity

FORMAT = 1
_WAIT = 0.5  # seconds for the lock; a rank that was stopped while it has it must not stop others
# What tells one launch from another, beside the process that launched.
_LAUNCH = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
_HERE = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


class Joint:
    """The part of this rank in what its machine's ranks share.

    Args:
        path: of the shared file. rank: this one's number; a process that only claims has another
            name. here: how many ranks the machine has, if that is known.
    """

    def __init__(self, path: str, rank: int | str, here: int | None = None) -> None:
        self.path = path
        self._rank = str(rank)
        self._here = here
        self._others: list[RunReport] = []

    def publish(
        self, report: RunReport, write: Callable[[RunReport], None], *, ended: bool = False
    ) -> bool:
        """Put this rank's report beside those of the others, and call `write` with all in one.

        `write` runs under the lock. False where the others could not be asked.
        """
        with self._shared() as shared:
            if shared is None:
                return False
            parts = shared["parts"]
            parts[self._rank] = {"report": run_json.document(report), "ended": ended}
            self._others = list(_reports(parts, but=self._rank))
            ranks = sorted(parts, key=int)
            all_of = [report if r == self._rank else _report(parts[r]) for r in ranks]
            from gradext.diagnosis import saved_report  # lazy: few programs have ranks

            write(saved_report.merge([one for one in all_of if one is not None]))
            return True

    def claim(self, told: Sequence[Told]) -> list[Told]:
        """The diagnoses that no other rank has reported; from now on they count as reported."""
        with self._shared() as shared:
            if shared is None:
                return list(told)
            self._others = list(_reports(shared["parts"], but=self._rank))
            ours = []
            for one in told:
                said = shared["told"].setdefault(
                    _key(one), {"by": self._rank, "ranks": [], "count": 0}
                )
                if said["by"] == self._rank:
                    ours.append(one)
                    met = self.with_others([one])
                    said |= {"ranks": _ranks(met), "count": sum(each.count for each in met)}
            return ours

    def with_others(self, told: Iterable[Told]) -> list[Told]:
        """With what the other ranks had found of the same faults when this one last looked."""
        ours = list(told)
        keys = set(map(_key, ours))
        others = (one for report in self._others for one in report.told)
        return [*ours, *(one for one in others if _key(one) in keys)]

    def ends(self) -> list[list[Told]]:
        """The last rank of this machine asks: the faults that were met again after they were told.

        Each as all ranks met it. Empty for a rank that is not the last.
        """
        with self._shared() as shared:
            if shared is None or self._here is None:
                return []
            parts, told = shared["parts"], shared["told"]
            if sum(part["ended"] for part in parts.values()) < self._here:
                return []
            shared.clear()  # nobody is left to ask
            groups = alike(one for report in _reports(parts) for one in report.told)
            return [group for group in groups if _is_more(group, told.get(_key(group[0])))]

    @contextlib.contextmanager
    def _shared(self) -> Iterator[dict[str, Any] | None]:
        """The facts that ranks share, to be changed in the block; None if there is no file."""
        import fcntl

        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self.path, flags, 0o600)
        except OSError:
            yield None
            return
        try:
            if os.fstat(file).st_uid != os.getuid() or not _lock(file, fcntl):
                yield None
                return
            shared = _read(file)
            yield shared
            data = json.dumps(shared).encode() if shared else b""
            os.ftruncate(file, 0)
            os.pwrite(file, data, 0)
            if not shared:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
        finally:
            os.close(file)


def of_this_process() -> Joint | None:
    """The place of this process among the ranks that a launcher has started; None if it is none."""
    rank, ranks, _ = identity.of_launcher()
    if rank is None or (ranks is not None and ranks < 2):
        return None
    try:
        import fcntl  # noqa: F401
    except ImportError:  # Windows
        return None
    import hashlib
    import tempfile

    words = [identity.launcher_process(), str(ranks), *(os.environ.get(n, "") for n in _LAUNCH)]
    name = hashlib.sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()[:16]
    path = os.path.join(tempfile.gettempdir(), f"gradext-{os.getuid()}-{name}.ranks")
    here = next((n for name in _HERE if (n := identity.number(os.environ.get(name)))), None)
    return Joint(path, rank, here)


def of_this_machine(paths: Mapping[str, str]) -> dict[str, str]:
    """The outputs of a run of several machines: a file for each, `all.json` as `all.node1.json`."""
    node = identity.node()
    if node is None:
        return dict(paths)
    named = {}
    for name, path in paths.items():
        stem, end = os.path.splitext(path)
        named[name] = f"{stem}.node{node}{end}"
    return named


def _lock(file: int, fcntl: Any) -> bool:
    until = time.monotonic() + _WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(0.005)


def _read(file: int) -> dict[str, Any]:
    """What stands in the file; nothing where it was just made, or cut short by a kill."""
    empty: dict[str, Any] = {"joint": FORMAT, "parts": {}, "told": {}}
    try:
        found = json.loads(os.pread(file, os.fstat(file).st_size, 0))
    except (OSError, ValueError, RecursionError):
        return empty
    kinds = {name: type(value) for name, value in empty.items()}
    if type(found) is not dict or {name: type(value) for name, value in found.items()} != kinds:
        return empty
    return found if found["joint"] == FORMAT else empty


def _reports(parts: Mapping[str, Any], but: str | None = None) -> Iterator[RunReport]:
    for rank in sorted(parts, key=int):
        found = _report(parts[rank]) if rank != but else None
        if found is not None:
            yield found


def _report(part: Any) -> RunReport | None:
    from gradext.diagnosis import saved_report

    try:
        return saved_report.parse(part["report"])
    except saved_report.NotAReport:
        return None


def _is_more(group: Sequence[Told], said: Any) -> bool:
    """Whether a fault has occurred more often, or on more ranks, than was said of it."""
    if said is None:
        return False
    more = sum(one.count for one in group) > said["count"]
    return bool(more or _ranks(group) != said["ranks"])


def _ranks(told: Iterable[Told]) -> list[int]:
    return sorted({one.whom.rank for one in told if one.whom.rank is not None})


def _key(told: Told) -> str:
    """Tells faults apart in a file."""
    return repr((told.diagnosis.key(), told.diagnosis.severity))
