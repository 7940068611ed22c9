"""Ranks and children: the fix is looked for in the process that failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

LINE = Path(__file__).parents[2] / "build_tools" / "gradext-autostart.pth"

RANKS = """
import torch
import torch.distributed as dist
from torch import nn

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid()))
for step in range(3):
    y = model(torch.randn(5, 4))
    if rank == 1 and step == 1:
        y *= 2
    model.zero_grad()
    y.pow(2).mean().backward()
dist.destroy_process_group()
"""

CHILDREN = """
import sys
import torch
import torch.multiprocessing as mp

def work(n):
    w = torch.ones(3, requires_grad=True)
    for _ in range(2):
        y = (w * (n + 1)).exp()
        if n == 1:
            y += 1
        y.pow(2).sum().backward()

if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    started = [context.Process(target=work, args=(n,)) for n in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(max(process.exitcode for process in started))
"""


def fix(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # A checkout has no .pth file, so sitecustomize stands in for it (tests/run/conftest.py).
    start = folder / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text(f"exec({LINE.read_text()!r})\n")
    path = os.pathsep.join(filter(None, (str(start), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        [sys.executable, "-m", "gradext", "fix", "--json", "out.json", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": path},
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child(tmp_path: Path, method: str) -> None:
    (tmp_path / "train.py").write_text(CHILDREN)
    # Each child that is spawned imports torch.
    tries = {"fork": "3", "spawn": "1"}[method]
    done = fix(tmp_path, "--tries", tries, "train.py", method)
    assert done.returncode == 0, done.stderr
    name = {"fork": "ForkProcess-2", "spawn": "SpawnProcess-2"}[method]
    assert f"it fails in {name}, whose gradients are compared from here on" in done.stderr
    assert done.stdout.startswith(
        "verified: same loss, 2 of 2 gradients bit-equal, 1 more backward"
    )
    assert "+            y = y + 1" in done.stdout


def test_a_rank(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(RANKS))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # Each rank of each run imports torch.
    done = fix(tmp_path, "--tries", "1", *launcher, "train.py")
    assert done.returncode == 0, done.stderr
    assert "it fails in rank 1, whose gradients are compared from here on" in done.stderr
    assert done.stdout.startswith(
        "verified: same loss, 6 of 6 gradients bit-equal, 1 more backward"
    )
    assert "+        y = y * 2" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())["candidates"]
    # What is moved below the backward computes something else in that rank, and in no other.
    assert {one["level"] for one in found} <= {"verified", "changes-meaning"}
