"""Rows measured in several processes in turn, each row with a limit of time and of memory.

Owns the worker processes: starting them, reading what they send, and stopping one whose row takes
too long or too much. What a row is and how it is measured is the suite's (`serve` in the worker,
`collect` in the parent).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# A line of a worker's standard output that is meant for the parent; libraries print there as well.
MARK = "\x1e"
POLL_SECONDS = 0.2
PROCESSES = 3


@dataclasses.dataclass
class Limits:
    """What one row may take in one process: seconds from its begin to its end, resident bytes."""

    seconds: float
    memory: int


def default_memory() -> int:
    """Half of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def serve(measure: Callable[[str], dict[str, Any]], names: Sequence[str]) -> None:
    """In the worker: measure the named rows and send each to the parent.

    A row that raises is sent as skipped, with the error's first line.
    """
    for name in names:
        _send({"begin": name})
        try:
            _send({"done": name, "result": measure(name)})
        except Exception as error:
            lines = str(error).strip().splitlines()
            text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            _send({"done": name, "skipped": text})


def _send(message: dict[str, Any]) -> None:
    print(f"{MARK}{json.dumps(message)}", flush=True)


def collect(
    command: Sequence[str],
    names: Sequence[str],
    *,
    limits: Limits,
    processes: int = PROCESSES,
    fewer: Mapping[str, int] | None = None,
    label: str = "",
    show: bool | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run the rows in ``processes`` workers, one after another; name -> what each found.

    ``command`` starts a worker; the names it is to measure and the number of the process are
    appended as one JSON argument. ``fewer`` are rows that take part in the first so many processes
    only. A row that is skipped in one process has one entry only,
    {"skipped": reason}, and later processes leave it out.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    wanted = dict.fromkeys(names, processes) | dict(fewer or {})
    with _bar(label, sum(wanted.values()), show) as advance:
        for number in range(processes):
            mine = [name for name in names if number < wanted[name]]
            pending = [name for name in mine if "skipped" not in _last(found[name])]
            advance(len(mine) - len(pending), "")
            while pending:
                done = _one_worker([*command], number, pending, limits, found, advance)
                if done == 0:  # a worker that dies before its first row would die for each
                    raise RuntimeError(f"a worker ended before its first row: {' '.join(command)}")
                pending = pending[done:]
    return {
        name: [r for r in results if "skipped" in r] or results for name, results in found.items()
    }


def _last(results: list[dict[str, Any]]) -> dict[str, Any]:
    return results[-1] if results else {}


def _one_worker(
    command: list[str],
    number: int,
    pending: list[str],
    limits: Limits,
    found: dict[str, list[dict[str, Any]]],
    advance: Callable[[int, str], None],
) -> int:
    """Start a worker on ``pending``; returns how many of them are done, measured or skipped."""
    given = json.dumps({"process": number, "rows": pending})
    # A group of its own: a compiler that a row has started goes with it.
    worker = subprocess.Popen(
        [*command, given], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(worker, lines), daemon=True)
    reader.start()
    done, running, since = 0, "", time.monotonic()
    try:
        while True:
            try:
                line = lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                excess = _excess(worker.pid, since, limits) if running else None
                if excess is None:
                    continue
                found[running] = [{"skipped": excess}]
                advance(1, running)
                return done + 1
            if line is None:
                break
            message = json.loads(line)
            if "begin" in message:
                running, since = message["begin"], time.monotonic()
                continue
            name, running = message["done"], ""
            found[name].append(message.get("result") or {"skipped": message["skipped"]})
            advance(1, name)
            done += 1
        if running:  # it died in the middle of a row
            code = worker.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            found[running] = [{"skipped": f"the process that measured it ended with {how}"}]
            advance(1, running)
            done += 1
        return done
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        reader.join()


def _read(worker: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert worker.stdout is not None
    with worker.stdout:
        for line in worker.stdout:
            if line.startswith(MARK):
                lines.put(line[len(MARK) :])
            else:
                sys.stderr.write(line)
    lines.put(None)


def _excess(pid: int, since: float, limits: Limits) -> str | None:
    if time.monotonic() - since > limits.seconds:
        return f"took longer than {limits.seconds:.0f} s"
    if (resident := _resident(pid)) > limits.memory:
        return f"took more than {limits.memory / 2**30:.1f} GiB ({resident / 2**30:.1f} GiB)"
    return None


def _resident(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:  # it just ended, or another system
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _bar(label: str, total: int, show: bool | None) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr where that is a terminal; the workers are timed, it is not."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = console.is_terminal if show is None else show
    with Progress(
        console=console, transient=True, auto_refresh=False, disable=not shown
    ) as progress:
        task = progress.add_task(label, total=total)

        def advance(steps: int, name: str) -> None:
            progress.update(task, advance=steps, description=f"{label} {name}", refresh=True)

        yield advance
