"""The stem of the tests of `gradext fix`: the command is a fork of it, and so is each of its runs.

forks.py starts it. What the command looks at then begins with torch imported in its first run too,
where it is a plain process otherwise; tests/fix/test_stem.py shows that this is the same program.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
from typing import Any

from gradext.fix import stem


class Inner(stem.Stem):
    """A fork of the command's process, made before it has imported more than the stem has."""

    def __init__(self, channel: socket.socket, process: Any) -> None:
        self._channel, self._process, self._is_running = channel, process, False


class Forked:
    """As much of a Popen as a Stem asks of one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitpid(self.pid, 0)[1]


def main() -> None:
    module = stem.wait_for_a_run(socket.socket(fileno=int(sys.argv[1])))
    if sys.argv[1:2] == ["fix"]:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            stem.go_on_as(stem.wait_for_a_run(theirs))
            return
        theirs.close()
        from gradext.fix import search

        inner = Inner(ours, Forked(pid))
        inner.admit({"origins": {}, "parts": []})
        search.Search = functools.partial(search.Search, stem=inner)  # type: ignore[misc, assignment]
    stem.go_on_as(module)


if __name__ == "__main__":
    main()
