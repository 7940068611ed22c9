"""check_replicas: two gloo processes, one answer, and no rank left waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import gradext
from gradext.fingerprints import replicas
from gradext.reporters import fingerprints as reporter

# Two ranks go through all cases; `rank` is what they differ by, `net` what they compare.
PROGRAM = """
import datetime, json, sys, torch, gradext
from torch import distributed as dist
rank, store, cases = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=60),
)
said = {}
for name, case in cases.items():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    space = {"rank": rank, "net": net, "group": None, "dist": dist, "torch": torch}
    exec(case, space)
    try:
        found = gradext.check_replicas(space["net"], space["group"])
        said[name] = [str(found), found.equal, found.first and found.first.path]
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
    # Still in step: another collective works.
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total == 2
dist.destroy_process_group()
print(json.dumps(said))
"""

CASES = {
    "equal": "",
    "one bit": "if rank: net[1].weight.data[0, 0] += 1e-6",
    "names": "if rank: net.extra = torch.ones(2)",
    "length": "if rank: net = net[0]",
    "no bytes": "if rank: net[0].to('meta')",
    "not a tree": "if rank: net = 3",
    "a group": "group = dist.new_group([0, 1])\nif rank: net[0].bias.data[0] = 5",
    "a tensor": "net = torch.full((2,), float(rank))",
    "outside": "group = dist.new_group([0])\nif rank == 0: net[0].bias.data[0] = 5",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank was told, by case."""
    store = tmp_path_factory.mktemp("replicas") / "store"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(store), json.dumps(CASES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    found = []
    try:
        for process in ranks:
            out, err = process.communicate(timeout=150)
            assert process.returncode == 0, err
            found.append(json.loads(out))
    finally:
        for process in ranks:
            process.kill()
    return found


@pytest.mark.parametrize(
    ("case", "first"),
    [
        ("equal", None),
        ("one bit", "1.weight"),
        ("names", "extra"),
        ("length", "0.weight"),
        ("a group", "0.bias"),
        ("a tensor", "[0]"),
    ],
)
def test_all_ranks_get_the_same_answer(said: list[dict], case: str, first: str | None) -> None:
    assert said[0][case] == said[1][case]
    text, equal, path = said[0][case]
    assert equal == (first is None)
    assert path == first
    assert ("no such tensor" in text) == (case in {"names", "length"})
    assert first is None or text.splitlines()[1].startswith(f"{first} ")


@pytest.mark.parametrize(
    ("case", "error"),
    [
        (
            "no bytes",
            "ValueError: gradext.fingerprint: 0.weight: a meta or fake tensor has no data",
        ),
        (
            "not a tree",
            "TypeError: gradext.fingerprint: expected a tensor, module, container or dataclass, "
            "got builtins.int",
        ),
    ],
)
def test_one_rank_s_error_is_all_ranks_error(said: list[dict], case: str, error: str) -> None:
    for rank in range(2):
        assert said[rank][case] == f"RuntimeError: gradext.check_replicas: rank 1: {error}"


def test_a_rank_outside_the_group(said: list[dict]) -> None:
    text, equal, _ = said[0]["outside"]
    assert equal
    assert text == "0 differences among 1 rank, 4 the same"
    assert said[1]["outside"] == (
        "ValueError: gradext.check_replicas: this process is not a member of the group"
    )


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="distributed is not initialised") as caught:
        gradext.check_replicas(torch.nn.Linear(1, 1))
    assert "\n" not in str(caught.value)


def test_the_report_says_which_ranks_hold_what() -> None:
    a, b, c = torch.zeros(2), torch.ones(2), torch.ones(3)
    trees = [{"w": a, "x": a}, {"w": b, "x": a}, {"w": a, "x": a}, {"x": a, "y": c}]
    found = replicas.report((0, 1, 2, 5), [gradext.fingerprint(tree) for tree in trees])
    assert [d.path for d in found.differences] == ["['w']", "['y']"]
    assert found.same == 1
    w, y = found.differences
    assert [(h.ranks, h.tensor) for h in w.holdings] == [
        ((0, 2), "float32[2]"),
        ((1,), "float32[2]"),
        ((5,), None),
    ]
    assert w.holdings[0].value == gradext.fingerprint(a)
    assert w.holdings[2].value is None
    assert [h.ranks for h in y.holdings] == [(0, 1, 2), (5,)]
    lines = str(found).splitlines()
    assert lines[1].split()[:3] == ["['w']", "0,", "2"]
    assert lines[-1] == "2 differences among 4 ranks, 1 the same"


def test_runs_of_ranks() -> None:
    assert reporter.ranks([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert reporter.ranks([3]) == "3"
