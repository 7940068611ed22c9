"""benchmarks/audit_architectures.py: three architectures for real, and the committed table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))
import audit_architectures  # noqa: E402

sys.path.remove(str(BENCHMARKS))

RESULT = json.loads((BENCHMARKS / "results" / "audit.json").read_text())


def named(name, note=""):
    return next(
        item for item in audit_architectures.ARCHITECTURES if (item.name, item.note) == (name, note)
    )


@pytest.mark.parametrize(
    ("name", "note", "warns"),
    [("GPT-2", "", ""), ("conv net", "train mode", "writes")],
)
def test_small_architectures_run_and_leave_nothing_behind(name, note, warns):
    # In a process of its own: a fork of one in which autograd has started threads cannot train.
    program = (
        "import json, sys; import audit_architectures as audit; "
        "wanted = sys.argv[1:]; "
        "row = audit.row(next(a for a in audit.ARCHITECTURES if [a.name, a.note] == wanted)); "
        "print(json.dumps(row))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, name, note],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
    )
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["verdict"].startswith("runs under inference_mode and leaves nothing behind")
    told = {name: found["message"] for name, found in row["details"].items()}
    assert (row["fails"], row["warns"], row["skipped"]) == ("", warns, ""), told
    assert row["isolation"] == "process"


def test_a_batch_norm_in_train_mode_names_its_buffers():
    row = audit_architectures.row(named("conv net", "train mode"))
    assert row["details"]["writes"]["paths"][:3] == [
        *("model[1].running_mean", "model[1].running_var", "model[1].num_batches_tracked"),
    ]


def test_the_committed_table_has_every_architecture_and_no_folder_of_a_machine():
    rows = [(row["architecture"], row["call"]) for row in RESULT["rows"]]
    assert rows == [(a.name, a.note or "forward") for a in audit_architectures.ARCHITECTURES]
    assert len({name for name, _ in rows}) >= 12
    lines = [
        line
        for row in RESULT["rows"]
        for found in row["details"].values()
        for line in found["lines"]
    ]
    assert lines
    assert [line for line in lines if line.startswith("/")] == []


def test_an_unknown_name_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "audit_architectures.py"), "--only", "GPT-9"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "audit_architectures.py: no architecture 'GPT-9'; there are BERT, BLOOM, "
    )
    assert done.stderr.count("\n") == 1
