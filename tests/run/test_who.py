"""Reports say who met a fault: threads, DataLoader workers, named processes, ranks."""

from __future__ import annotations

from typing import Any

# One fault in each place: threads, a worker of a DataLoader, a process with a name, a rank.
PLACES = """
import multiprocessing, sys, threading
import torch
import torch.distributed as dist
import mistakes

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        mistakes.caught(mistakes.other)
        return index

def rank(number, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=number, world_size=2)
    mistakes.silent()
    dist.barrier()

if __name__ == "__main__":
    for name in ("learner", "actor"):
        thread = threading.Thread(target=mistakes.caught, args=(mistakes.stale,), name=name)
        thread.start()
        thread.join()
    list(torch.utils.data.DataLoader(Data(), batch_size=None, num_workers=2))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=mistakes.caught, args=(mistakes.stale,), name="collector")
    child.start()
    child.join()
    if sys.argv[1:]:
        torch.multiprocessing.start_processes(rank, (sys.argv[1],), nprocs=2, start_method="fork")
"""


def by_code(report: dict[str, Any], line: int) -> list[dict[str, Any]]:
    return [d for d in report["diagnoses"] if d["culprits"][0]["line"] == line]


def test_each_place_is_named(recorded: Any, write: Any, mistakes: Any, tmp_path: Any) -> None:
    write(PLACES)
    ran, report = recorded("train.py", str(tmp_path / "store"))
    assert ran.code == 0, ran.errors
    threads, child = by_code(report, mistakes.line("stale"))
    assert (threads["thread"], threads["threads"]) == ("learner", ["learner", "actor"])
    assert 'in threads "learner", "actor"; in the child process "collector" (' in ran.errors
    workers = by_code(report, mistakes.line("other"))
    assert {found["worker"] for found in workers} == {0, 1}
    assert "in DataLoader workers 0-1" in ran.errors
    assert child["process"] == "collector"
    ranks = by_code(report, mistakes.line("silent"))
    assert {(found["rank"], found["world_size"]) for found in ranks} == {(0, 2), (1, 2)}
    assert ran.errors.count("error[GX401]") == 1
    assert "on ranks 0-1 of 2" in ran.errors


def test_what_a_child_met_fails_the_run(recorded: Any, write: Any, mistakes: Any) -> None:
    write(
        "import os, mistakes\nif os.fork() == 0:\n    mistakes.silent()\n    os._exit(0)\nos.wait()"
    )
    ran, report = recorded("train.py", options=("--fail-on", "GX4", "--error-exitcode", "7"))
    assert ran.code == report["exit_code"] == 7


def test_what_started_a_process_called_nothing(
    recorded: Any, write: Any, mistakes: Any, with_pth: dict[str, str]
) -> None:
    """multiprocessing's `python -c` is no line of the program's; a person's own is."""
    write(
        """
        import multiprocessing, mistakes
        def work():
            mistakes.caught(mistakes.stale)
        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=work)
            child.start()
            child.join()
        """
    )
    ran, report = recorded("train.py", **with_pth)
    (found,) = report["diagnoses"]
    for site in (*found["culprits"], *found["victims"]):
        assert [c["function"] for c in site["callers"]] == ["caught", "work"], site
    assert "<string>" not in ran.errors
    for code, names in (
        ("from train import work; work()", ["caught", "work"]),
        ("import train; print(1); train.work()", ["caught", "work", "<module>"]),
    ):
        _, report = recorded("-c", code)
        (found,) = report["diagnoses"]
        assert [c["function"] for c in found["culprits"][0]["callers"]] == names
