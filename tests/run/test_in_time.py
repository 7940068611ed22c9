"""What is found is told in time: at once, and whatever ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import RUN, Ended, start

ENDS = """
import os, signal, sys
import mistakes
mistakes.caught(mistakes.stale)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
{how}
print("goes on", flush=True)
"""
KILL = "os.kill(os.getpid(), signal.{})"
FAULT = "import ctypes; ctypes.string_at(0)"
IN_THREAD = """
import ctypes, threading
thread = threading.Thread(target=ctypes.string_at, args=(0,))
thread.start()
thread.join()
"""
FAULTHANDLER = "import faulthandler; faulthandler.enable()\nimport ctypes; ctypes.string_at(0)"
WAYS = {
    "SIGTERM": (KILL.format("SIGTERM"), signal.SIGTERM),
    "SIGUSR1": (KILL.format("SIGUSR1"), signal.SIGUSR1),
    "abort": ("os.abort()", signal.SIGABRT),
    "fault": (FAULT, signal.SIGSEGV),
    "fault in a thread": (IN_THREAD, signal.SIGSEGV),
    "fault with faulthandler": (FAULTHANDLER, signal.SIGSEGV),
}


def end(folder: Path, how: str, *options: str, flags: tuple[str, ...] = (), **env: str) -> Ended:
    (folder / "train.py").write_text(ENDS.format(how=how))
    words = [*flags, *RUN, *options, "train.py"]
    return start(words, folder, forked=True, COLUMNS="100", **env)


@pytest.mark.parametrize("name", WAYS)
def test_a_signal_that_ends_the_process(name: str, mistakes: Any, tmp_path: Path) -> None:
    how, number = WAYS[name]
    ran = end(tmp_path, how)
    assert (ran.code, ran.text) == (-number, "True\n")
    assert ran.errors.count("warning[GX101]") == 1, ran.errors
    assert ran.errors.count("docs: gradext explain GX101\n") == 1
    assert ("Fatal Python error" in ran.errors) == ("faulthandler" in name)


def test_faulthandler_that_was_on_before(mistakes: Any, tmp_path: Path) -> None:
    ran = end(tmp_path, FAULT, flags=("-X", "faulthandler"))
    assert ran.code == -signal.SIGSEGV
    assert ran.errors.index("warning[GX101]") < ran.errors.index("Fatal Python error")


HANDLED = """
def handler(number, frame):
    print("handled", flush=True)
    sys.exit(3)
before = signal.signal(signal.SIGTERM, handler)
print(before is signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGTERM)
"""
IGNORED = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
mistakes.caught(mistakes.other)
os.kill(os.getpid(), signal.SIGHUP)
"""


def test_what_the_program_handles_is_its_own(mistakes: Any, tmp_path: Path) -> None:
    ran = end(tmp_path, HANDLED)
    assert (ran.code, ran.text) == (3, "True\nTrue\nhandled\n")
    assert ran.errors.count("[GX101]") == 1
    ran = end(tmp_path, IGNORED)
    assert (ran.code, ran.text) == (0, "True\ngoes on\n")


def test_a_forked_child_says_nothing_of_its_parents(mistakes: Any, tmp_path: Path) -> None:
    how = """
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGTERM)
print(os.waitpid(pid, 0)[1] == signal.SIGTERM, flush=True)
"""
    ran = end(tmp_path, how)
    assert (ran.code, ran.text) == (0, "True\nTrue\ngoes on\n")
    assert ran.errors.count("[GX101]") == 1


def test_into_the_file_of_the_report(mistakes: Any, tmp_path: Path) -> None:
    ran = end(tmp_path, KILL.format("SIGTERM"), "-o", "report.txt")
    assert (ran.code, ran.err) == (-signal.SIGTERM, b"")
    assert (tmp_path / "report.txt").read_text().count("warning[GX101]") == 1


READERS = {
    "one that has stopped reading": """
read, write = os.pipe()
os.set_blocking(write, False)
try:
    while True:
        os.write(write, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(write, True)
""",
    "none any more": """
read, write = os.pipe()
os.close(read)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
""",
    "a closed stderr": """
os.close(2)
write = None
""",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["SIGTERM", "abort"])
def test_the_process_ends_alike_where_nobody_reads(
    reader: str, name: str, mistakes: Any, tmp_path: Path
) -> None:
    """The handler neither waits for a reader nor dies of having none."""
    how, number = WAYS[name]
    ran = end(tmp_path, f"{READERS[reader]}\nif write is not None:\n    os.dup2(write, 2)\n{how}")
    assert (ran.code, ran.text) == (-number, "True\n")


def test_without_a_finding_no_signal_has_a_handler(write: Any, alike: Any) -> None:
    write(
        """
        import mistakes_free
        print([line for line in open("/proc/self/status") if line[:4] in ("SigB", "SigI", "SigC")])
        """
    )
    write("import torch\ntorch.ones(3, requires_grad=True).sum().backward()", "mistakes_free.py")
    if not Path("/proc/self/status").exists():
        pytest.skip("/proc")
    alike("train.py")


# --- at once --------------------------------------------------------------------------------------

LOOP = """
import sys
import mistakes
for _ in range(3):
    mistakes.silent()
    print("step", flush=True)
"""


@pytest.mark.parametrize(("options", "before"), [((), 1), (("--report", "end"), 0)])
def test_the_default_is_at_once(
    write: Any, mistakes: Any, tmp_path: Path, options: tuple[str, ...], before: int
) -> None:
    write(LOOP)
    ran = start([*RUN, *options, "train.py"], tmp_path, merged=True)
    first, _, rest = ran.text.partition("step")
    assert first.count("error[GX401]") == before
    assert ran.text.count("error[GX401]") == 1
    line = mistakes.line("silent")
    assert (f"mistakes.py:{line} happened 3 times" in rest) == bool(before)


def test_children_tell_at_once_and_nothing_twice(
    write: Any, recorded: Any, mistakes: Any, tmp_path: Path
) -> None:
    write(
        """
        import os, sys
        import mistakes
        for _ in range(2):
            if os.fork() == 0:
                mistakes.silent()
                sys.stderr.write("the child goes on\\n")
                os._exit(0)
            os.wait()
        mistakes.silent()
        """
    )
    ran, report = recorded("train.py")
    assert ran.errors.count("error[GX401]") == 1
    told, _, rest = ran.errors.partition("the child goes on")
    assert "in the child process " in told
    assert "happened 3 times, also in the child processes " in rest
    assert len({d.get("pid") for d in report["diagnoses"]}) == 3


def test_a_stream_that_somebody_reads_stays_as_it_is(
    write: Any, recorded: Any, mistakes: Any, with_pth: dict[str, str]
) -> None:
    """A child's stderr that its parent reads, and a stream in the place of the parent's own."""
    write("import mistakes\nmistakes.silent()\n", "child.py")
    write(
        """
        import contextlib, io, subprocess, sys
        import mistakes
        done = subprocess.run([sys.executable, "child.py"], capture_output=True)
        print(done.stderr)
        with contextlib.redirect_stderr(io.StringIO()) as stream:
            mistakes.silent()
        print(repr(stream.getvalue()))
        """
    )
    ran, _ = recorded("train.py", **with_pth)
    assert ran.text == "b''\n''\n"
    assert ran.errors.count("error[GX401]") == 1
    assert "also in the child process " in ran.errors


def test_a_child_that_a_signal_ends_is_told_of(write: Any, recorded: Any, mistakes: Any) -> None:
    write(
        """
        import os, signal
        import mistakes
        pid = os.fork()
        if pid == 0:
            mistakes.caught(mistakes.stale)
            os.kill(os.getpid(), signal.SIGSEGV)
        print(os.waitpid(pid, 0)[1] & 127)
        """
    )
    ran, report = recorded("train.py")
    assert ran.text == f"{signal.SIGSEGV.value}\n"
    assert [d["code"] for d in report["diagnoses"]] == ["GX101"]
    assert ran.errors.count("[GX101]") == 1


def test_a_launcher_that_ends_a_rank(write: Any, mistakes: Any, tmp_path: Path) -> None:
    """SIGTERM from outside, while the program waits in C."""
    write(
        """
        import time, mistakes
        mistakes.caught(mistakes.stale)
        print(1, flush=True)
        time.sleep(99)
        """
    )
    words = [sys.executable, *RUN, "train.py"]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline() == b"1\n"
        ran.terminate()
        _, errors = ran.communicate(timeout=60)
    assert ran.returncode == -signal.SIGTERM
    assert errors.count(b"warning[GX101]") == 1
