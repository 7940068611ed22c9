"""Processes that a recorded program starts: what they write, what the root makes of it.

The expected output is that of plain python, as everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from programs import RUN, start

# python train.py HOW: one child after the other, each calls a function of `mistakes`.
PARENT = """
import os, subprocess, sys
import mistakes
from mistakes import *

def caught_stale():
    caught(stale)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def child(how, name):
    if how in ("fork", "spawn", "forkserver"):
        import multiprocessing
        process = multiprocessing.get_context(how).Process(target=globals()[name])
        process.start()
        process.join()
        return process.exitcode
    if how == "os.fork":
        pid = os.fork()
        if pid == 0:
            globals()[name]()
            sys.exit(3)
        return end(pid)
    if how == "os.fork os._exit":
        pid = os.fork()
        if pid == 0:
            globals()[name]()
            os._exit(3)
        return end(pid)
    return subprocess.run([sys.executable, "-c", f"import train; train.{name}()"]).returncode

if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(name, "ended with", child(sys.argv[1], name), flush=True)
"""
FRESH = {"spawn", "forkserver", "subprocess"}


@pytest.mark.parametrize(
    "how", ["fork", "spawn", "forkserver", "os.fork", "os.fork os._exit", "subprocess"]
)
def test_children(plain, recorded, write, mistakes, with_pth, how):
    """Of those that fail, those that catch their error and those without any.

    Each that starts as a new program imports torch anew: there are two of these, and four forks.
    """
    write(PARENT)
    ended = ["fine", "leaf"] if how not in FRESH else []
    words = ["train.py", how, *ended, "stale", "caught_stale"]
    env = with_pth if how in FRESH else {}
    expected = plain(*words, **env)
    found, report = recorded(*words, **env)
    assert (found.code, found.out) == (expected.code, expected.out)
    assert found.err.startswith(expected.err)
    told = [
        (d["code"], d["severity"], d["culprits"][0]["line"])
        for d in sorted(report["diagnoses"], key=lambda d: (d["severity"], d["code"]))
    ]
    stale, leaf = mistakes.line("stale"), mistakes.line("leaf")
    assert told == [
        ("GX101", "error", stale),
        *([("GX102", "error", leaf)] if ended else []),
        ("GX101", "warning", stale),
    ]
    pids = [d["pid"] for d in report["diagnoses"]]
    assert len(set(pids)) == len(told)
    assert all(f"in the child process {pid}" in found.errors for pid in pids)
    assert found.errors.count("docs: gradext explain") == len(told)
    assert report["exit_code"] == 0
    assert report["error"] is None  # that is the root's own


def test_the_parents_mistakes_are_not_the_childs(recorded, write, mistakes):
    write(
        """
        import os
        import mistakes
        mistakes.caught(mistakes.stale)
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        """
    )
    _, report = recorded("train.py")
    (diagnosis,) = report["diagnoses"]
    assert "pid" not in diagnosis
    assert "count" not in diagnosis


def test_a_child_that_outlives_everything_keeps_its_file(write, mistakes, tmp_path):
    """Its parent is killed: nobody merges, nothing is lost."""
    write(
        """
        import os, signal, time
        import mistakes
        if os.fork() == 0:
            mistakes.caught(mistakes.stale)
            open("done", "w").close()
            os._exit(0)
        while not os.path.exists("done"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    path = tmp_path / "report.json"
    subprocess.run([sys.executable, *RUN, "--json", str(path), "train.py"], cwd=tmp_path)
    (child,) = tmp_path.glob("report.json.*")
    assert child.suffix[1:].isdecimal()
    report = json.loads(child.read_text())
    assert [d["code"] for d in report["report"]["diagnoses"]] == ["GX101"]
    assert json.loads(path.read_text())["diagnoses"] == []

    # The next run with this name is not confused by it.
    write("print(1)", "next.py")
    subprocess.run([sys.executable, *RUN, "--json", str(path), "next.py"], cwd=tmp_path)
    assert json.loads(path.read_text())["diagnoses"] == []
    assert child.exists()


def test_without_a_json_the_children_are_reported_too(write, mistakes, tmp_path):
    write(PARENT)
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = start([*RUN, "train.py", "os.fork", "stale"], tmp_path, TMPDIR=str(folder))
    assert "error[GX101]" in done.errors
    assert list(folder.iterdir()) == []


def test_what_several_processes_met_alike_is_printed_once(plain, recorded, write, mistakes):
    write(
        """
        import os
        import mistakes
        for _ in range(3):
            if os.fork() == 0:
                mistakes.caught(mistakes.stale)
                os._exit(0)
            os.wait()
        """
    )
    found, report = recorded("train.py")
    assert len({d["pid"] for d in report["diagnoses"]}) == 3
    assert found.errors.count("warning[GX101]") == 1
    assert "in the child processes" in found.errors


def test_torch_multiprocessing(plain, recorded, write, mistakes, with_pth):
    """Its workers catch the error, write it down and call sys.exit(1); the parent raises."""
    write(
        """
        import torch.multiprocessing
        import mistakes
        def work(rank):
            mistakes.stale()
        if __name__ == "__main__":
            torch.multiprocessing.spawn(work, nprocs=1)
        """
    )
    found, report = recorded("train.py", **with_pth)
    assert found.code == 1
    (diagnosis,) = report["diagnoses"]
    assert (diagnosis["severity"], diagnosis["code"]) == ("error", "GX101")
    assert diagnosis["culprits"][0]["line"] == mistakes.line("stale")
    assert "pid" in diagnosis
    assert report["error"].startswith("torch.multiprocessing.spawn.ProcessRaisedException: ")


def test_a_pools_error_is_the_parents(recorded, write, mistakes):
    """The worker catches it and goes on; the parent gets a copy and does not catch it."""
    write(
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        import mistakes
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                pool.submit(mistakes.stale).result()
        """
    )
    found, report = recorded("train.py")
    assert found.code == 1
    (diagnosis,) = report["diagnoses"]
    assert (diagnosis["severity"], "pid" in diagnosis) == ("error", True)
    assert diagnosis["culprits"][0]["line"] == mistakes.line("stale")


def test_workers_of_a_dataloader(alike, write):
    write(
        """
        import torch
        class Data(torch.utils.data.Dataset):
            def __len__(self): return 8
            def __getitem__(self, i): return torch.full((2,), float(i)).mul_(2)
        if __name__ == "__main__":
            layer = torch.nn.Linear(2, 1, bias=False)
            torch.nn.init.ones_(layer.weight)
            for batch in torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2):
                loss = layer(batch).sum()
                loss.backward()
                print(loss.item(), layer.weight.grad)
        """
    )
    _, report = alike("train.py")
    assert report["diagnoses"] == []


def test_a_program_that_replaces_itself_stays_the_root(recorded, write, mistakes, with_pth):
    write(
        """
        import os, sys
        if len(sys.argv) == 1:
            os.execv(sys.executable, [sys.executable, __file__, "again"])
        import mistakes
        mistakes.stale()
        """
    )
    found, report = recorded("train.py", **with_pth)
    assert found.code == 1
    assert "error[GX101]" in found.errors
    assert [d.get("pid") for d in report["diagnoses"]] == [None]
    assert report["exit_code"] == 1


def test_a_recorded_program_that_starts_gradext_run(recorded, write, mistakes, with_pth):
    """The inner one is a run of its own, with its own report and file."""
    write("import mistakes\nmistakes.stale()", "inner.py")
    write(
        """
        import subprocess, sys
        words = [sys.executable, "-m", "gradext", "run", "--json", "inner.json", "inner.py"]
        print(subprocess.run(words).returncode)
        """
    )
    found, report = recorded("train.py", **with_pth)
    assert found.out == b"1\n"
    assert found.errors.count("error[GX101]") == 1
    assert report["diagnoses"] == []
    inner = json.loads((mistakes.path.parent / "inner.json").read_text())
    assert [d["code"] for d in inner["diagnoses"]] == ["GX101"]


def test_other_gradext_programs_work_in_a_recorded_environment(recorded, write, with_pth):
    write(
        """
        import subprocess, sys
        done = subprocess.run([sys.executable, "-m", "gradext", "doctor"], capture_output=True)
        print(done.returncode, done.stdout.decode().splitlines()[-1], done.stderr)
        code = "import gradext, torch; print(torch.ops.gradext.version(torch.ones(2)))"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
        """
    )
    found, _ = recorded("train.py", **with_pth)
    assert found.text.splitlines() == ["0 verdict     usable b''", r"b'0\n'"]


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="fork")
def test_forking_while_another_thread_reports(recorded, write, mistakes):
    """The lock that the report is made under may be held by another thread at the fork.

    The child uses no torch: that can hang in plain Python, on torch's own locks.
    """
    write(
        """
        import os, threading
        import mistakes
        stop = False
        def loop():
            while not stop:
                mistakes.caught(mistakes.stale)
        threads = [threading.Thread(target=loop) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        stop = True
        for thread in threads:
            thread.join()
        print("done")
        """
    )
    found, report = recorded("train.py")
    assert found.out == b"done\n"
    assert "GX101" in [d["code"] for d in report["diagnoses"]]
