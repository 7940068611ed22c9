"""A process that has imported torch, and becomes a copy of itself for each further run.

`gradext fix` runs one program many times, and torch takes longer to import than most of these runs
take. Stem starts `python -m gradext.fix.stem`, which imports torch and then forks for each run: the
copy goes on as `python WORDS` would, in a session of its own, with torch imported already.

That is the same program only if torch would have been imported in the same way. So the first run
is a plain process that writes down how it was (`circumstances`), while the stem imports torch; the
stem refuses where its own import came out otherwise. Then, and where a system cannot do it, runs
are plain processes.

The stem never runs any of the program's code: what it forks from has torch in it and no more.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gradext.fix.circumstances import origins
from gradext.run import start

_MOST_BYTES = 16 << 20  # of one message
_KILLED = -int(signal.SIGKILL)


class NoStem(Exception):
    """There is no stem, or it has refused: start a plain process."""


class Stem:
    """The parent's end. Ended by `close`, and by the end of this process however that comes."""

    PROGRAM: Sequence[str] = ("-m", "gradext.fix.stem")  # what Python is to run as the stem

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it; it imports torch while this process goes on.

        Args:
            environment: of the stem, as it is the first run's.
        """
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_running = False
        if not hasattr(os, "pidfd_open"):
            return
        self._channel, other = socket.socketpair()
        with other:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *self.PROGRAM, str(other.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=dict(environment),
                    pass_fds=[other.fileno()],
                    start_new_session=True,  # a Ctrl-C is this process's to answer
                )
            except OSError:
                self._gone()

    def admit(self, facts: Mapping[str, Any]) -> None:
        """Allow further runs, if they would be the same program.

        Args:
            facts: gradext.fix.circumstances of the first run.
        """
        try:
            if not facts:
                self._gone()
            elif self._channel is not None:
                _send(self._channel, facts)
        except OSError:
            self._gone()

    def run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        limit: float | None = None,
        folder: str | None = None,
    ) -> int | None:
        """Run `python WORDS` with these descriptors as its streams, and wait for it.

        What it has started, and has left running, is killed when it ends or when `limit` seconds
        have passed.

        Returns:
            Its exit code as subprocess gives it; None where it took longer than `limit`.

        Raises:
            NoStem: nothing was run.
        """
        channel = self._channel
        if channel is None:
            raise NoStem
        asked = {
            "words": list(words),
            "environment": dict(environment),
            "folder": os.getcwd() if folder is None else folder,
        }
        try:
            if not select.select([channel], [], [], limit)[0]:
                raise TimeoutError
            _receive(channel)  # "ready"; it ends where it refuses
            self._is_running = True
            _send(channel, asked, streams)
        except OSError:
            self._gone()
            raise NoStem from None
        except BaseException:
            self._gone()
            raise
        pid = 0
        try:
            pid = int(_receive(channel)[0])
            in_time = bool(select.select([channel], [], [], limit)[0])
            if not in_time:
                _send(channel, "end")
            code = _receive(channel)[0]
        except OSError:  # the stem was killed, as a system does that runs out of memory
            _kill(pid)
            self._gone()
            return _KILLED
        except BaseException:  # a signal: the run must not outlive this call
            self._gone()
            raise
        self._is_running = False
        return int(code) if in_time else None

    def close(self) -> None:
        """End it, with a run that may still go on."""
        self._gone()

    def _gone(self) -> None:
        if self._channel is not None:
            self._channel.close()  # a run is ended by the stem when it hears of this
        if self._process is not None:
            if not self._is_running:
                self._process.kill()  # it may be in the middle of its import
            self._process.wait()
        self._channel = self._process = None


class _Asked(NamedTuple):
    words: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]


def _send(channel: socket.socket, message: Any, streams: Sequence[int] = ()) -> None:
    data = json.dumps(message).encode()
    head = len(data).to_bytes(4, "big")
    if streams:
        socket.send_fds(channel, [head], list(streams))
    else:
        channel.sendall(head)
    channel.sendall(data)


def _receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """The next message and the descriptors that came with it. OSError where there is no more."""
    head, streams, _, _ = socket.recv_fds(channel, 4, 3)
    head += _exactly(channel, 4 - len(head)) if head else b""
    left = int.from_bytes(head, "big")
    if not head or left > _MOST_BYTES:
        raise ConnectionResetError
    return json.loads(_exactly(channel, left)), streams


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data


def _import(channel: socket.socket) -> bool:
    """Import what the program imports of torch; False where it came out otherwise than there."""
    import importlib
    import random

    before, drawn = set(sys.modules), random.getstate()
    # Python's entry for -m is the working folder, whose files are the program's.
    entry = [] if getattr(sys.flags, "safe_path", False) else [sys.path.pop(0)]
    importlib.import_module("torch")
    here = origins()
    facts, _ = _receive(channel)
    there = facts["origins"]
    if any(there.get(name) != here[name] for name in here.keys() - before):
        return False
    for name in facts["parts"]:
        importlib.import_module(name)
    sys.path[:0] = entry
    # Python's generator is seeded before the program begins, so before its import of torch.
    return random.getstate() == drawn and not sys.modules["torch"].cuda.is_initialized()


def _serve(channel: socket.socket) -> _Asked:
    """Fork for each run; returns in the fork, and never in the stem."""
    try:
        os.close(os.pidfd_open(os.getpid()))  # old kernels and some sandboxes have none
        if not _import(channel):
            os._exit(0)
        # What torch has made stays: a collection in a fork would look at all of it, and copy it.
        gc.freeze()
        while True:
            _send(channel, "ready")
            asked, streams = _receive(channel)
            while asked == "end":  # of a run that had just ended by itself
                asked, streams = _receive(channel)
            pid = os.fork()
            if pid == 0:
                channel.close()
                return _Asked(streams=streams, **asked)
            for stream in streams:
                os.close(stream)
            try:
                _send(channel, pid)
            except OSError:  # the parent is gone, and cannot end the fork
                _kill(pid)
                raise
            _send(channel, _wait(pid, channel))
    except BaseException:
        os._exit(0)  # its end is the answer


def _wait(pid: int, channel: socket.socket) -> int:
    """Wait for a fork, or until the parent has enough of it, and kill all that it has started."""
    ended = os.pidfd_open(pid)
    select.select([ended, channel.fileno()], [], [])
    # Before the fork is waited for: until then no other process can have its number.
    _kill(pid)
    os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if select.select([channel], [], [], 0)[0]:
        _receive(channel)  # "end", or that the parent is gone
    return code


def _kill(pid: int) -> None:
    """Kill a fork, which may not have a session of its own yet, and all that it has started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            if pid:
                kill(pid, signal.SIGKILL)


def _become(asked: _Asked) -> str:
    """Make this fork what `python -m MODULE` is when it begins; returns MODULE."""
    os.setsid()
    for number, stream in enumerate(asked.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    _, module, *arguments = asked.words
    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, *asked.words]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd()
    return module


def wait_for_a_run(channel: socket.socket) -> str:
    """Import torch, and fork for each run that `channel` asks for.

    Never returns in the stem. In the fork, which is `python -m MODULE` from here on, but for having
    torch imported: returns MODULE, for `go_on_as`.
    """
    return _become(_serve(channel))


def go_on_as(module: str) -> None:
    """Run `module` as python -m does. The package was imported by the stem, which is no command."""
    import runpy

    start.begin()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    go_on_as(wait_for_a_run(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
