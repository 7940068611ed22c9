"""The committed table: it is what its JSON says, and it covers what it claims to cover."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradext.opcheck import schemas, verdicts
from gradext.reporters import opcheck

ROOT = Path(__file__).parents[2]
DATA = json.loads((ROOT / "benchmarks" / "results" / "ops-that-lie.json").read_text())
PAGE = (ROOT / "docs" / "ops-that-lie.md").read_text()


def test_the_page_is_made_from_the_json():
    done = subprocess.run([sys.executable, "build_tools/docs/ops_that_lie.py", "--check"], cwd=ROOT)
    assert done.returncode == 0


def test_it_covers_the_writable_overloads_of_aten():
    counts = DATA["counts"]
    assert counts["overloads"] == 3110
    assert counts["writable"] == 1457
    assert counts["writable exercised"] >= 1340
    assert counts["exercised"] >= 2740
    assert counts["writable with every write seen"] >= 1300
    assert DATA["op_db"] is True
    assert DATA["torch"].startswith("2.13.0")
    assert not any("gradext failed" in how for how in DATA["crashed"].values())


def test_each_writable_overload_is_exercised_or_named_with_a_reason():
    missing = [name for names in DATA["not_exercised"]["writable"].values() for name in names]
    assert len(missing) == len(set(missing))
    counts = DATA["counts"]
    assert len(missing) == counts["writable"] - counts["writable exercised"]
    assert set(DATA["last_refusals"]) == set(missing)
    assert all(DATA["last_refusals"].values())
    for name in missing:
        assert f"`{name.removeprefix('aten::')}`" in PAGE


def test_the_findings_and_the_counts_agree():
    assert list(DATA["kinds"]) == list(verdicts.KINDS)
    for kind, ops in DATA["kinds"].items():
        assert ops == sorted({f["op"] for f in DATA["findings"] if f["kind"] == kind})
        assert f"| {kind} | {len(ops)} |" in PAGE
        assert all(f"| `{op}` |" in PAGE for op in ops)
    assert {f["severity"] for f in DATA["findings"]} == {"error", "warning"}


KNOWN = {
    "declared but not bumped": {
        *(f"aten::_fused_{name}_" for name in ("adam", "adamw", "sgd", "adagrad")),
        *("aten::_amp_foreach_non_finite_check_and_unscale_", "aten::kron.out", "aten::resize_"),
        *("aten::_native_batch_norm_legit", "aten::_cummax_helper", "aten::rrelu_with_noise_"),
    },
    "bumped twice": {"aten::alpha_dropout_", "aten::svd.U", "aten::nanmean.out"},
    "written but not declared": {"aten::native_batch_norm", "aten::batch_norm"},
    "returns an undeclared alias": {"aten::dropout", "aten::_unsafe_view", "aten::type_as"},
}


@pytest.mark.parametrize("kind", list(KNOWN))
def test_known_lies_are_in_the_table(kind):
    assert set(DATA["kinds"][kind]) >= KNOWN[kind]


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the names of torch 2.13")
def test_known_honest_ops_are_not():
    lies = {f["op"] for f in DATA["findings"]}
    assert not lies & {"aten::add_.Tensor", "aten::add.out", "aten::copy_", "aten::reshape"}
    for name in lies:
        schemas.overload(name)  # each name is one that torch.ops knows


def test_the_text_report_fits_its_width_and_names_the_lies_without_reasons():
    text = opcheck.text(DATA, width=80)
    assert max(map(len, text.splitlines())) <= 120  # a headline is one line, names are not cut
    assert "(--verbose names them)" in text
    line = next(line for line in text.splitlines() if line.startswith("  aten::_fused_sgd_ "))
    assert line == "  aten::_fused_sgd_ grads, momentum_buffer_list, self"
    assert "help:" not in text
    assert "help:" in opcheck.text(DATA, verbose=True, width=80)
