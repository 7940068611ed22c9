"""Ranks that torchrun starts: one file and one report of all, whichever of the two starts first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import HIDDEN, RUN

from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.diagnosis.run_report import RunReport, Told
from gradext.diagnosis.whom import Whom
from gradext.run import identity, joint

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TRAIN = """\
import sys
import torch
import torch.distributed as dist
import mistakes

dist.init_process_group("gloo")
layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
for _ in range(2):
    h = torch.sigmoid(layer(torch.ones(2, 3)))
    z = h * h
    h.data.mul_(0.5)
    z.sum().backward()
dist.barrier()
if dist.get_rank() == 1:
    mistakes.caught(mistakes.stale)
dist.barrier()
dist.destroy_process_group()
"""
LINE = 11


def start(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "temporary").mkdir()
    base = {k: v for k, v in os.environ.items() if k not in HIDDEN and k[:8] != "GRADEXT_"}
    env = {**base, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "temporary"), **env}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("first", ["torchrun", "gradext"])
def test_both_orders(
    first: str, tmp_path: Path, write: Any, mistakes: Any, with_pth: dict[str, str]
) -> None:
    write(TRAIN)
    options = (*RUN, "--json", "all.json", "--sarif", "all.sarif", "--fail-on", "GX302")
    if first == "torchrun":
        words = (*TORCHRUN, *options, "train.py")
        ran = start(tmp_path, *words)
    else:
        ran = start(tmp_path, *options, *TORCHRUN, "train.py", **with_pth)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["exit_code"] == 0
    found = [(d["code"], d["culprits"][0]["line"], d["rank"]) for d in report["diagnoses"]]
    silent, caught = ("GX401", LINE), ("GX101", mistakes.line("stale"))
    assert {one for one in found if one[:2] == silent} == {(*silent, 0), (*silent, 1)}
    assert [one for one in found if one[:2] == caught] == [(*caught, 1)]
    assert {(d["local_rank"], d["world_size"]) for d in report["diagnoses"]} == {(0, 2), (1, 2)}
    for diagnosis in report["diagnoses"]:
        for site in (*diagnosis["culprits"], *diagnosis["victims"]):
            for caller in site.get("callers", []):
                assert caller["file"] in {str(tmp_path / "train.py"), str(mistakes.path)}
    assert ran.stderr.count("error[GX401]") == 1, ran.stderr
    assert ran.stderr.count("warning[GX101]") == 1
    assert "on ranks 0-1 of 2" in ran.stderr
    assert "= on rank 1 of 2\n" in ran.stderr
    assert f"gradext: GX401 at train.py:{LINE} happened 4 times, " in ran.stderr
    assert ran.stderr.count("happened 4 times") == 1
    results = json.loads((tmp_path / "all.sarif").read_text())["runs"][0]["results"]
    assert len(results) == len(found)
    # Nothing is left behind, and nobody has written half a file.
    assert list((tmp_path / "temporary").glob("gradext*")) == []
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__", "temporary"}
    assert left == {"train.py", "mistakes.py", "all.json", "all.sarif"}


# --- the file that they share ---------------------------------------------------------------------


def found_by(rank: int, line: int = 1, count: int = 1) -> Told:
    frame = Frame("/train.py", line, "step", "x += 1")
    return Told(Diagnosis("GX401", culprits=(Site(frame),)), count, Whom(rank=rank, ranks=2))


def report_of(*told: Told, code: int | None = None) -> RunReport:
    return RunReport("0.1", "2.13", code, None, told)


@pytest.fixture
def ranks(tmp_path: Path) -> list[joint.Joint]:
    return [joint.Joint(str(tmp_path / "shared"), rank, 2) for rank in range(2)]


def test_whoever_writes_writes_all(ranks: list[joint.Joint]) -> None:
    written: list[RunReport] = []
    assert ranks[1].publish(report_of(found_by(1)), written.append)
    assert ranks[0].publish(report_of(found_by(0), found_by(0, 7)), written.append)
    assert [one.whom.rank for one in written[-1].told] == [0, 0, 1]
    assert [part.exit_code for part in written[-1].parts] == [None, None]
    assert ranks[1].publish(report_of(found_by(1), code=3), written.append, ended=True)
    assert written[-1].exit_code == 3
    assert ranks[1].ends() == []


def test_a_fault_is_told_by_one(ranks: list[joint.Joint], tmp_path: Path) -> None:
    for rank in (0, 1):
        ranks[rank].publish(report_of(found_by(rank)), lambda _: None)
    told = found_by(1)
    assert ranks[1].claim([told, found_by(1, 7)]) != []
    assert {one.whom.rank for one in ranks[1].with_others([told])} == {0, 1}
    assert ranks[0].claim([found_by(0)]) == []
    # What only one had found when it was told is said again of all, by the last to end.
    reports = [report_of(found_by(0), found_by(0, 7), code=0), report_of(found_by(1), code=0)]
    ranks[0].publish(reports[0], lambda _: None, ended=True)
    assert ranks[0].ends() == []
    ranks[1].publish(
        report_of(*reports[1].told, found_by(1, 7), code=0), lambda _: None, ended=True
    )
    (group,) = ranks[1].ends()
    assert [one.diagnosis.culprits[0].frame.line for one in group] == [7, 7]
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"joint": 1}', '{"joint": 2, "parts": {}}'])
def test_a_damaged_file_is_begun_anew(ranks: list[joint.Joint], tmp_path: Path, text: str) -> None:
    (tmp_path / "shared").write_text(text)
    written: list[RunReport] = []
    assert ranks[0].publish(report_of(found_by(0)), written.append)
    assert len(written[-1].told) == 1


def test_a_rank_that_holds_the_lock_stops_nobody(ranks: list[joint.Joint], tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / "shared", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not ranks[0].publish(report_of(), lambda _: None)
        assert ranks[0].claim([found_by(0)]) != []


def test_a_link_is_not_followed(ranks: list[joint.Joint], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "shared").symlink_to(tmp_path / "precious")
    assert not ranks[0].publish(report_of(), lambda _: None)
    assert (tmp_path / "precious").read_text() == "kept"


# --- who a process is -----------------------------------------------------------------------------

LAUNCHED: list[tuple[dict[str, str], tuple[int | None, ...], int | None]] = [
    ({}, (None, None, None), None),
    ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1), None),
    ({"RANK": "x"}, (None, None, None), None),
    (
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"},
        (3, 4, None),
        1,
    ),
    (
        {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_NODEID": "1"},
        (2, 4, None),
        1,
    ),
    ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2, None), None),
]


@pytest.mark.parametrize(("variables", "ranks_", "node"), LAUNCHED)
def test_what_launchers_tell(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    ranks_: tuple[int | None, ...],
    node: int | None,
) -> None:
    names = {name for launcher in identity.LAUNCHERS for name in launcher if name}
    for name in {*names, "LOCAL_WORLD_SIZE", "GROUP_RANK", "SLURM_NNODES", "SLURM_NODEID"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert identity.of_launcher() == ranks_
    assert identity.node() == node
    named = joint.of_this_machine({"json": "out/all.json", "o": "all"})
    if node is None:
        assert named == {"json": "out/all.json", "o": "all"}
    else:
        assert named == {"json": f"out/all.node{node}.json", "o": f"all.node{node}"}


def test_a_lonely_rank_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert joint.of_this_process() is None


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="/proc")
def test_a_shell_between_is_no_launcher() -> None:
    """Two ranks, one started through a shell, have one launcher: this process."""
    code = "from gradext.run import identity; print(identity.launcher_process())"
    env = {**os.environ, "RANK": "1"}
    straight = [sys.executable, "-c", code]
    through = ["sh", "-c", f'"{sys.executable}" -c "{code}"; true']
    said = {subprocess.check_output(words, env=env, text=True) for words in (straight, through)}
    assert len(said) == 1
    assert said.pop().split()[0] == str(os.getpid())
