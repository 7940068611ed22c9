"""A launch on several machines, and one by MPI: a file of each, joined by `report merge`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import HIDDEN, RUN

TRAIN = """\
import os
import torch
import torch.distributed as dist

START
layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
h = torch.sigmoid(layer(torch.ones(2, 3)))
z = h * h
h.data.mul_(0.5)
z.sum().backward()
if dist.get_rank() == 1:
    y = torch.ones(3, requires_grad=True).exp()
    y += 1
    try:
        y.sum().backward()
    except RuntimeError:
        pass
dist.barrier()
dist.destroy_process_group()
"""
BY_TORCHRUN = 'dist.init_process_group("gloo")'
BY_MPI = """\
rank, ranks = (int(os.environ["OMPI_COMM_WORLD_" + name]) for name in ("RANK", "SIZE"))
store = "file://" + os.path.abspath("store")
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
"""
SILENT, CAUGHT = 9, 13


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in HIDDEN and k[:8] != "GRADEXT_"}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def found_in(path: Path) -> list[tuple[Any, ...]]:
    report = json.loads(path.read_text())
    assert report["exit_code"] == 0
    keys = ("rank", "local_rank", "world_size")
    return [
        (d["code"], d["culprits"][0]["line"], *(d[key] for key in keys))
        for d in report["diagnoses"]
    ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_each_machine_of_a_launch_writes_its_own_file_and_merge_joins_them(tmp_path: Path) -> None:
    """Two agents of torchrun that both believe to be a machine; they share the folder as well."""
    (tmp_path / "train.py").write_text(TRAIN.replace("START", BY_TORCHRUN))
    where = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1")
    port = str(free_port())
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", *where, "--master-port", port),
                *("--node-rank", str(node), *RUN, "--json", "all.json", "train.py"),
            ],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    said = [agent.communicate(timeout=180)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    files = sorted(path.name for path in tmp_path.glob("*.json"))
    assert files == ["all.node0.json", "all.node1.json"]
    of_each = [("GX401", SILENT, rank, 0, 2) for rank in range(2)]
    caught = ("GX101", CAUGHT, 1, 0, 2)
    assert set(found_in(tmp_path / files[0])) == {of_each[0]}
    assert set(found_in(tmp_path / files[1])) == {of_each[1], caught}
    for node, text in enumerate(said):
        assert f"= on rank {node} of 2\n" in text

    merge = (sys.executable, "-m", "gradext", "report")
    joined = subprocess.run(
        [*merge, "merge", *files, "-o", "both.json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert joined.returncode == 0, joined.stderr
    assert set(found_in(tmp_path / "both.json")) == {*of_each, caught}
    shown = subprocess.run([*merge, "both.json"], cwd=tmp_path, capture_output=True, text=True)
    text = shown.stdout + shown.stderr
    assert text.count("error[GX401]") == 1, text
    assert "= on ranks 0-1 of 2\n" in text
    assert "= on rank 1 of 2\n" in text


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no MPI is installed (mpirun)")
def test_ranks_that_mpirun_starts_write_one_file(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN.replace("START\n", BY_MPI))
    allowed = ("--allow-run-as-root", "--oversubscribe")
    ran = subprocess.run(
        ["mpirun", *allowed, "-np", "2", sys.executable, *RUN, "--json", "all.json", "train.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr
    later = BY_MPI.count("\n") - 1
    found = found_in(tmp_path / "all.json")
    assert set(found) == {
        *(("GX401", SILENT + later, rank, rank, 2) for rank in range(2)),
        ("GX101", CAUGHT + later, 1, 1, 2),
    }
    assert ran.stderr.count("error[GX401]") == 1
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["all.json"]
