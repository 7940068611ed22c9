"""benchmarks/modes.py: the matrix, what becomes of a row, the tables, the page made of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import torch

from gradext.mode_costs import measure as gradext_modes

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
sys.path[:0] = [str(BENCHMARKS), str(ROOT / "build_tools" / "docs")]
import matrix  # noqa: E402
import modes  # noqa: E402
import overlap  # noqa: E402
import plot_modes  # noqa: E402
import which_mode  # noqa: E402

del sys.path[:2]

SUBJECTS = [*matrix.ops(), *matrix.models()]
# ViT-B/16 takes seconds to make; the program itself is run on it by the benchmark.
SMALL = [
    subject
    for subject in SUBJECTS
    if subject.group == "op" or (subject.size == "batch 1" and subject.what != "ViT-B/16")
]


def committed(name="modes"):
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_the_matrix_is_the_one_that_was_promised():
    rows = modes.rows_of("cpu", quick=False)
    ops = {s.what for s in SUBJECTS if s.group == "op"}
    assert ops == {
        *("x @ w", "x + w", "x.add_(y)", "x.view(-1)", "x[1:3]", "x.chunk(2)", "x.copy_(y)"),
        *("layer_norm(x)", "attention (SDPA)", "x.index_put_(i, y)"),
    }
    assert {s.size for s in SUBJECTS if s.what == "x @ w"} >= {"5×5"}
    models = {(s.what, s.size) for s in SUBJECTS if s.group == "model"}
    names = ("MLP", "ResNet-20", "LLM, decode", "LLM, prefill of 128", "ViT-B/16")
    assert models == {(name, f"batch {b}") for name in names for b in (1, 8, 64)}
    assert {row.threads for row in rows} == {1, 2}
    assert {row.backend for row in rows} == {"eager", "aot_eager", "inductor"}
    assert len({row.name for row in rows}) == len(rows)


def test_on_a_gpu_threads_are_no_dimension():
    rows = modes.rows_of("cuda", quick=False)
    assert {row.threads for row in rows} == {None}
    assert len({row.name for row in rows}) == len(rows) > len(SUBJECTS)


@pytest.mark.parametrize("subject", SMALL, ids=lambda s: f"{s.what} {s.size}")
def test_each_subject_can_be_called_again_and_again_under_each_mode(subject):
    if (subject.elements or 0) > 2**18:
        subject.prepare("cpu")  # memory; the call is that of the smaller sizes
        return
    prepared = subject.prepare("cpu")
    for mode in gradext_modes.MODES.values():
        with mode.on(prepared.parameters):
            call = prepared.build(lambda model: model)
            first, again = call(), call()
        assert first is not None
        assert again is not None
    assert all(p.requires_grad for p in prepared.parameters)


def test_a_decoded_token_does_not_make_the_cache_longer():
    prepared = matrix._decode(1)("cpu")
    call = prepared.build(lambda model: model)
    first, second = call(), call()
    assert torch.equal(first, second)
    assert call().grad_fn is not None


def estimate(value, low, high):
    return {"value": value, "low": low, "high": high, "confidence": 0.95, "samples": 9}


def result(shift=0.0):
    return {
        "over": "inference_mode",
        "rounds": 9,
        "times": {
            "no_grad": estimate(1.1e-6, 1.0e-6, 1.2e-6),
            "inference_mode": estimate(1e-6, 0.9e-6, 1.1e-6),
        },
        "ratios": {
            "no_grad over inference_mode": estimate(1.1 + shift, 1.05 + shift, 1.15 + shift),
            "inference_mode over no_grad": estimate(0.9, 0.9, 0.9),
        },
        "counts": {},
        "bound": {},
        "errors": {"grad": "RuntimeError: no"},
    }


ROW = modes.Row(SUBJECTS[0], 1)


def test_a_row_is_pooled_from_its_processes():
    lines = modes.pooled(ROW, "cpu", [result(), result(0.1), result(-0.02)])
    (no_grad,) = [line for line in lines if line["mode"] == "no_grad"]
    assert (no_grad["ratio"], no_grad["low"], no_grad["high"]) == pytest.approx((1.1, 1.03, 1.25))
    assert (no_grad["processes"], no_grad["rounds"]) == (3, 27)
    (grad,) = [line for line in lines if line["mode"] == "grad"]
    assert grad["skipped"] == "RuntimeError: no"
    (base,) = [line for line in lines if line["mode"] == line["over"]]
    assert (base["us"], base["ratio"]) == (pytest.approx(1.0), None)
    assert all(tuple(line) == modes.KEYS for line in lines)


def test_a_skipped_row_has_one_line_with_the_reason():
    lines = modes.pooled(ROW, "cpu", [{"skipped": "took longer than 30 s"}])
    assert [(line["skipped"], line["us"]) for line in lines] == [("took longer than 30 s", None)]
    assert "took longer than 30 s" in modes.short(lines)


def test_a_cuda_graph_has_a_column_of_its_own():
    graph = "no_grad, CUDA graph"
    timed = result()
    timed["times"][graph] = estimate(0.5e-6, 0.4e-6, 0.6e-6)
    timed["ratios"][f"{graph} over inference_mode"] = estimate(0.5, 0.4, 0.6)
    timed["bound"] = {"no_grad": "CPU", graph: "GPU"}
    lines = modes.pooled(modes.Row(SUBJECTS[0], None), "cuda", [timed] * 3)
    assert {line["mode"]: line["waits for"] for line in lines if line["us"]} == {
        "no_grad": "CPU",
        graph: "GPU",
        "inference_mode": None,
    }
    head, _, row = modes.short(lines).splitlines()
    assert f"{graph} over it" in head
    assert "0.5 [0.4, 0.6]" in row


def test_a_row_that_would_take_longer_than_its_limit_is_skipped():
    with pytest.raises(gradext_modes.OverLimit, match=r"more than 0 s"):
        modes.measured(ROW, "cpu", quick=True, counts=False, limit=1e-9)


def script(*words):
    done = forks.script(BENCHMARKS / "modes.py", *map(str, words), folder=BENCHMARKS)
    # torch's CUDA wheel says where it has looked for CUDA, on a machine that has none.
    lines = done.stderr.splitlines(keepends=True)
    err = "".join(line for line in lines if "torch/utils/cpp_extension.py" not in line)
    return done.returncode, done.stdout, err


def test_the_rows_can_be_listed_and_chosen():
    code, out, _ = script("--list", "--only", "MLP")
    assert code == 0
    assert "MLP batch 1, 1 threads, inductor" in out.splitlines()
    assert all(line.startswith("MLP") for line in out.splitlines())
    code, _, err = script("--only", "no such row")
    assert code == 2
    assert err == "modes.py: no row's name contains 'no such row'; --list prints them\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device():
    code, _, err = script("--device", "cuda")
    assert (code, err) == (2, "modes.py: --device cuda: torch finds no CUDA device here\n")


# --- the committed results and what is made of them ----------------------------------------------


@pytest.mark.parametrize("name", ["modes", "modes-again"])
def test_the_committed_results_hold_the_whole_matrix(name):
    rows = committed(name)["rows"]
    found = {(r["what"], r["size"], r["threads"], r["backend"]) for r in rows}
    wanted = {
        (row.subject.what, row.subject.size, row.threads, row.backend)
        for row in modes.rows_of("cpu", quick=False)
    }
    assert found == wanted
    assert all(r["processes"] >= 3 for r in rows if not r["skipped"])
    assert all(r["skipped"] for r in rows if r["us"] is None)
    assert "-dirty" not in committed(name)["machine"]["commit"]


def test_two_full_runs_overlap_on_95_percent_of_the_rows():
    command = [sys.executable, str(BENCHMARKS / "overlap.py")]
    files = [str(RESULTS / "modes.json"), str(RESULTS / "modes-again.json")]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    both = overlap.pairs(committed()["rows"], committed("modes-again")["rows"])
    assert len(both) > 300


def test_the_page_is_made_from_the_committed_result():
    text = (ROOT / "docs" / "which-mode.md").read_text()
    assert text == which_mode.page(committed())


def test_the_page_names_a_figure_for_each_claim():
    results = which_mode.Results(committed())
    for claim, judge in which_mode.CLAIMS:
        found = judge(results)
        assert found.verdict in ("true", "false", "depends"), claim
        assert re.search(r"\d", found.figures), claim


def made(ratio, low, high, what="MLP", size="batch 1", mode="no_grad", us=10.0, **more):
    row = dict.fromkeys(modes.KEYS)
    row |= {"group": "model", "what": what, "size": size, "threads": 1, "device": "cpu"}
    row |= {"backend": "eager", "mode": mode, "over": "inference_mode", "us": us}
    return {**row, "ratio": ratio, "low": low, "high": high, **more}


def results(*rows):
    bases = [{**row, "mode": "inference_mode", "ratio": None} for row in rows]
    return which_mode.Results({"machine": {}, "rows": [*rows, *bases]})


@pytest.mark.parametrize(
    ("judge", "rows", "verdict"),
    [
        (which_mode.five_to_ten, [made(1.07, 1.06, 1.08)], "true"),
        (which_mode.five_to_ten, [made(1.20, 1.15, 1.25)], "false"),
        (
            which_mode.five_to_ten,
            [made(1.07, 1.06, 1.08), made(1.0, 0.99, 1.01, size="batch 8")],
            "depends",
        ),
        (which_mode.negligible_for_mlp, [made(1.30, 1.20, 1.40)], "false"),
        (which_mode.negligible_for_mlp, [made(1.30, 0.99, 1.40)], "true"),
        (which_mode.negligible_for_mlp, [made(1.01, 1.005, 1.015)], "true"),
        (
            which_mode.grows_with_model,
            [made(1.1, 1.05, 1.2, us=1.0), made(1.5, 1.4, 1.6, what="ViT", us=99.0)],
            "true",
        ),
        (
            which_mode.grows_with_model,
            [made(1.5, 1.4, 1.6, us=1.0), made(1.1, 1.05, 1.2, what="ViT", us=99.0)],
            "false",
        ),
        (  # neither can be told
            which_mode.grows_with_model,
            [made(1.1, 1.05, 1.2, us=1.0), made(1.15, 1.1, 1.25, what="ViT", us=99.0)],
            "depends",
        ),
        (  # blurred: nothing to compare the first with
            which_mode.grows_with_model,
            [made(1.1, 1.05, 1.2, us=1.0), made(1.5, 0.8, 2.2, what="ViT", us=99.0)],
            "depends",
        ),
        (which_mode.matters_for_decode, [made(1.1, 1.05, 1.2, what="LLM, decode")], "true"),
        (  # a blurred row does not show a gain
            which_mode.matters_for_decode,
            [
                made(1.1, 1.05, 1.2, what="LLM, decode"),
                made(1.1, 0.9, 1.3, what="LLM, decode", size="batch 64"),
            ],
            "depends",
        ),
        (  # nor does it refute that there is none
            which_mode.negligible_for_mlp,
            [made(1.0, 0.99, 1.01), made(1.1, 0.9, 1.3, size="batch 64")],
            "true",
        ),
    ],
)
def test_verdicts_follow_from_the_rows(judge, rows, verdict):
    assert judge(results(*rows)).verdict == verdict


def test_pictures(tmp_path):
    (tmp_path / "modes.json").write_text(json.dumps(committed()))
    drawn = plot_modes.draw_files(tmp_path / "modes.json")
    assert [path.name for path in drawn] == ["modes-gain.png", "modes-models.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    figure = plot_modes.gain(committed()["rows"], committed()["machine"])
    names = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert {"x.view(-1)", "MLP", "ViT-B/16"} <= names


@pytest.mark.parametrize("text", ["{}", "[]", "no"])
def test_no_picture_of_another_file(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not a result of modes\.py"):
        plot_modes.draw_files(tmp_path / "other.json")
