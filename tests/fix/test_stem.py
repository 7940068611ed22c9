"""Runs that are forked from a process which has imported torch are what a plain process is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradext.fix import circumstances, trial
from gradext.fix.search import Limits, Search
from gradext.fix.stem import NoStem, Stem

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's pidfd_open")


def environment() -> dict[str, str]:
    return {**trial.environment(), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def origins() -> dict[str, str]:
    """Where a process finds what torch imports; this one has imported pytest's modules too."""
    code = "import torch, json; from gradext.fix.circumstances import origins as found"
    code += "; print(json.dumps(found()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def started(origins: dict[str, str]) -> Stem:
    one = Stem(environment())
    one.admit({"origins": origins, "parts": ["torch"]})
    return one


@pytest.fixture(scope="module")
def shared(origins: dict[str, str]) -> Iterator[Stem]:
    one = started(origins)
    yield one
    one.close()


class Streams:
    """Files for the three streams of one run."""

    def __init__(self, folder: Path, given: bytes = b"") -> None:
        self.folder = folder
        (folder / "given").write_bytes(given)
        names = {"given": "rb", "out": "wb", "err": "wb"}
        self.files = [(folder / name).open(mode) for name, mode in names.items()]
        self.numbers: Any = tuple(file.fileno() for file in self.files)

    def read(self) -> tuple[str, str]:
        for file in self.files:
            file.close()
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()


def program(folder: Path, text: str) -> list[str]:
    """The words that run it as a module of `folder`, as `python` takes them."""
    (folder / "program.py").write_text(textwrap.dedent(text))
    return ["-m", "program"]


def both(folder: Path, one: Stem, text: str, given: bytes = b"") -> list[tuple[int, str, str]]:
    """(exit code, out, err) of the program forked, and in a process of its own."""
    words = program(folder, text)
    streams = Streams(folder, given)
    code = one.run(words, environment(), streams.numbers, 60.0, str(folder))
    assert code is not None
    forked = (code, *streams.read())
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(),
        input=given,
        capture_output=True,
        start_new_session=True,
    )
    return [forked, (done.returncode, done.stdout.decode(), done.stderr.decode())]


# What a program can see of the process that it runs in. Not: the frames below its own, and that
# torch is there already.
SEEN = {
    "arguments and folder": """
        import os, sys
        print(sys.argv[1:], sys.orig_argv, os.getcwd(), sys.path[0], __name__, __file__)
    """,
    "environment": "import os; print(sorted(os.environ.items()))",
    "flags and hashes": "import sys; print(sys.flags, hash('x'))",
    "open files": """
        import os, torch
        print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))
    """,
    "signals": """
        import signal
        print([(s.name, str(signal.getsignal(s)).split(' at ')[0]) for s in signal.Signals])
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    """,
    "threads and processes": """
        import os, threading
        print(threading.enumerate()[0].name, len(threading.enumerate()))
        print(os.getpid() == os.getpgid(0), len(os.listdir('/proc/self/task')))
    """,
    "standard input": "import sys; print(sys.stdin.read().upper(), sys.stdin.isatty())",
    "streams": """
        import sys
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            print(stream.name, stream.mode, stream.encoding, stream.errors, stream.isatty())
    """,
    "numbers": """
        import torch
        torch.manual_seed(1)
        print(torch.rand(3).tolist(), torch.get_num_threads(), torch.__file__)
    """,
    "an exit code": "import sys; print('out'); sys.exit(7)",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "an abort": "import os; os.abort()",
    "what is done at the end": "import atexit; atexit.register(print, 'the end')",
    "what dies at the end": """
        class Last:
            def __del__(self): print('gone')
        kept = Last()
    """,
    "a fork": """
        import os
        if os.fork() == 0:
            print('child', flush=True)
            os._exit(3)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """,
    "a worker": """
        import multiprocessing
        def double(x): return 2 * x
        if __name__ == '__main__':
            with multiprocessing.get_context('fork').Pool(1) as pool:
                print(pool.map(double, [1, 2]))
    """,
}


@pytest.mark.parametrize("text", SEEN.values(), ids=SEEN)
def test_the_program_sees_what_it_would_see(tmp_path: Path, shared: Stem, text: str) -> None:
    forked, plain = both(tmp_path, shared, text, b"given\n")
    assert forked == plain
    assert plain[1] or plain[0]


def test_a_run_that_takes_too_long_is_ended_with_all_that_it_started(
    tmp_path: Path, shared: Stem
) -> None:
    words = program(
        tmp_path,
        """
        import subprocess, sys, time
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(other.pid, flush=True)
        time.sleep(600)
        """,
    )
    streams = Streams(tmp_path)
    assert shared.run(words, environment(), streams.numbers, 4.0, str(tmp_path)) is None
    out, _ = streams.read()
    assert is_gone(int(out))
    # The next run is not disturbed by it.
    forked, plain = both(tmp_path, shared, "print('fine')")
    assert forked == plain


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_a_run_leaves_behind_is_killed(tmp_path: Path, shared: Stem) -> None:
    words = program(
        tmp_path,
        """
        import subprocess, sys
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(other.pid)
        """,
    )
    streams = Streams(tmp_path)
    assert shared.run(words, environment(), streams.numbers, 60.0, str(tmp_path)) == 0
    assert is_gone(int(streams.read()[0]))


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_no_run_outlives_the_one_that_asked_for_it(
    tmp_path: Path, origins: dict[str, str], how: str
) -> None:
    one = started(origins)
    mark = tmp_path / "pid"
    words = program(
        tmp_path,
        f"""
        import os, time
        open({str(mark) + ".new"!r}, "w").write(str(os.getpid()))
        os.rename({str(mark) + ".new"!r}, {str(mark)!r})
        time.sleep(600)
        """,
    )
    assert one._process is not None
    process = one._process

    def act() -> None:
        while not mark.exists():
            time.sleep(0.02)
        if how == "interrupt":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            process.kill()

    streams = Streams(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=act)
    thread.start()
    try:
        if how == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                one.run(words, environment(), streams.numbers, 60.0, str(tmp_path))
        else:
            assert one.run(words, environment(), streams.numbers, 60.0, str(tmp_path)) == -9
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert is_gone(int(mark.read_text()))
    assert process.poll() is not None
    with pytest.raises(NoStem):
        one.run(words, environment(), streams.numbers)


# A program in which torch is imported in another way than the stem would import it.
OTHERWISE = {
    "a variable that a library reads": "import os; os.environ['OMP_NUM_THREADS'] = '2'",
    "a module of its own in the place of one that torch imports": """
        import os, sys
        os.mkdir("ours")
        text = open(__import__("timeit").__file__).read()
        open(os.path.join("ours", "timeit.py"), "w").write(text)
        sys.modules.pop("timeit")
        sys.path.insert(0, os.path.abspath("ours"))
    """,
}
STALE = """
import torch
w = torch.ones(3, requires_grad=True)
y = w.exp()
y *= 2
y.sum().backward()
"""


def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From here on: how each run of the program was started."""
    found: list[str] = []
    plain, forked = trial._plain, Stem.run

    def run_plain(*args: Any) -> Any:
        found.append("plain")
        return plain(*args)

    def run_forked(self: Stem, *args: Any) -> Any:
        code = forked(self, *args)
        found.append("forked")
        return code

    monkeypatch.setattr(trial, "_plain", run_plain)
    monkeypatch.setattr(Stem, "run", run_forked)
    return found


def verdicts(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.chdir(folder)
    (folder / "train.py").write_text(text)
    found = Search(trial.Program(("train.py",)), Limits(tries=1, steps=1), lambda line: None).look()
    assert found.problem is None
    return [(one.title, one.verdict.level, one.diff) for one in found.tried]


def test_torch_is_imported_by_the_program_itself(tmp_path: Path) -> None:
    """As under `gradext run`: what it sets before must count."""
    path = tmp_path / "train.py"
    path.write_text("import sys; assert 'torch' not in sys.modules, 'it is there'")
    ran = trial.run(trial.Program((str(path),)))
    assert (ran.exit_code, ran.error) == (0, "")
    assert ran.circumstances == {}


def test_the_first_run_is_plain_and_the_others_are_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ways(monkeypatch)
    told = verdicts(tmp_path, STALE, monkeypatch)
    assert found[0] == "plain"
    assert len(found) > 2
    assert set(found[1:]) == {"forked"}
    monkeypatch.setattr(Stem, "admit", lambda self, facts: self.close())
    found.clear()
    assert verdicts(tmp_path, STALE, monkeypatch) == told
    assert set(found) == {"plain"}


@pytest.mark.parametrize("text", OTHERWISE.values(), ids=OTHERWISE)
def test_all_are_plain_where_a_fork_would_be_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    found = ways(monkeypatch)
    made = textwrap.dedent(text).replace("os.mkdir", "os.path.exists('ours') or os.mkdir")
    told = verdicts(tmp_path, made + STALE, monkeypatch)
    assert told[0][1] == "verified"
    assert set(found) == {"plain"}


@pytest.mark.parametrize(("name", "origin"), [("numpy", None), ("timeit", "/else/timeit.py")])
def test_it_refuses_where_torch_imports_something_else(
    tmp_path: Path, origins: dict[str, str], name: str, origin: str | None
) -> None:
    other = {known: found for known, found in origins.items() if known != name}
    if origin is not None:
        other[name] = origin
    one = started(other)
    streams = Streams(tmp_path)
    with pytest.raises(NoStem):
        one.run(["-m", "this"], environment(), streams.numbers, 60.0)
    assert streams.read() == ("", "")


def test_no_file_of_the_program_runs_in_the_stem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origins: dict[str, str]
) -> None:
    for name in ("timeit", "queue", "numpy", "_dynamo"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    one = started(origins)
    streams = Streams(tmp_path)
    assert one.run(["-m", "this"], environment(), streams.numbers, 60.0) == 0
    assert "beautiful" in streams.read()[0].lower()
    assert not (tmp_path / "ran").exists()
    one.close()


def test_a_stem_that_cannot_be_started_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    one = started({})
    with pytest.raises(NoStem):
        one.run(["-m", "this"], environment(), (0, 1, 2))


def test_a_stem_is_ended_in_the_middle_of_its_import(origins: dict[str, str]) -> None:
    one = started(origins)
    assert one._process is not None
    process = one._process
    one.close()
    assert process.returncode == -9
    one.close()


def test_circumstances_of_a_program_without_torch_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = circumstances.Circumstances()
    found.imported()
    assert found.facts()["parts"][0] == "torch"
    monkeypatch.delitem(sys.modules, "torch")
    assert found.facts() == {}
