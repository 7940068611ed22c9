"""Every claim of the lesson comes out as stated, and the numbers it shows are the right ones."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from gradext.lesson import core
from gradext.lesson.chapters import c1_requires_grad
from gradext.mode_costs import timing

MEASURED = {"1.8", "4.5", "4.6", "4.7", "4.8"}
CLAIMS = [claim for chapter in core.chapters() for claim in chapter.claims]


def result_of(function_name: str) -> tuple[core.ClaimResult, dict[str, Any]]:
    """The result of the claim with this function name, and its evidence by label."""
    (claim,) = [claim for claim in CLAIMS if claim.function.__name__ == function_name]
    result = core.run_claim(claim)
    return result, {row.label: row.value for row in result.evidence if isinstance(row, core.Row)}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.number)
def test_claim_comes_out_as_stated(claim: core.Claim) -> None:
    result = core.run_claim(claim)
    assert result.error is None
    # What is measured may be left open by a busy machine; what is read never is.
    open_ = {"unknown"} if claim.number in MEASURED else set()
    assert result.verdict in {claim.stated, *open_}
    assert result.as_stated
    assert result.evidence, "a verdict without evidence is an assertion"


def test_there_are_six_chapters_in_order() -> None:
    assert [chapter.number for chapter in core.chapters()] == [1, 2, 3, 4, 5, 6]
    assert all(chapter.claims and chapter.intro for chapter in core.chapters())


def test_the_flag_costs_nothing_and_the_matmul_copies_nothing() -> None:
    _, flag = result_of("the_flag_allocates")
    assert flag["bytes it takes with the flag"] == flag["bytes it takes without the flag"] == 4096
    assert flag["nodes behind x"] == 0

    _, matmul = result_of("matmul_copies_its_inputs")
    assert matmul["nodes"] == ["MmBackward0", "AccumulateGrad", "AccumulateGrad"]
    assert matmul["bytes saved"] == (64 * 32 + 32 * 16) * 4
    assert matmul["besides w and x themselves"] == 0
    assert matmul["bytes of new tensors, graph"] == 64 * 16 * 4


def test_the_mlp_keeps_its_hidden_layer() -> None:
    _, evidence = result_of("mlp_keeps_activations")
    hidden, output = 32 * 512 * 4, 32 * 128 * 4
    assert evidence["besides x and the parameters"] == hidden
    assert evidence["bytes alive after mlp(x)"] == hidden + output
    assert evidence["the same under no_grad"] == output


def test_a_write_through_detach_is_caught_and_names_the_versions() -> None:
    _, evidence = result_of("detach_shares_the_counter")
    assert evidence["version of y when it was saved"] == 0
    assert evidence["version of y after d.mul_(10)"] == 1
    error = evidence["y.sum().backward() raises"]
    assert "is at version 1; expected version 0" in error


def test_a_write_through_data_gives_ten_times_the_gradient() -> None:
    _, evidence = result_of("data_is_detach")
    assert evidence["version of y after d.mul_(10)"] == 0
    assert evidence["y.sum().backward() raises"] == "no error"
    right = evidence["the right gradient"]
    assert right == pytest.approx([1.0, 2.7182817, 7.389056])
    assert evidence["the gradient it gives"] == pytest.approx([10 * value for value in right])


def test_the_lstm_graph_grows_by_the_same_number_of_nodes_per_window() -> None:
    _, evidence = result_of("lstm_forgets_by_itself")
    nodes = evidence["nodes behind each window's loss"]
    first, second, *_ = carried = nodes["carried over"]
    assert second > first
    assert carried == [first + (second - first) * window for window in range(5)]
    assert set(nodes["detached"]) == {nodes["carried over"][0]}


def test_the_detached_curve_can_be_drawn() -> None:
    _, evidence = result_of("matplotlib_draws_it")
    assert evidence["draw(curve) raises"].startswith("RuntimeError: Can't call numpy()")
    drawn = evidence["draw(curve.detach()) gives"]
    if importlib.util.find_spec("matplotlib"):
        assert drawn == "a PNG picture of 600 x 300 pixels"
    else:
        assert drawn.startswith("an array of 50 points")


def test_without_matplotlib_the_array_is_shown_and_the_extra_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result, evidence = result_of("matplotlib_draws_it")
    assert result.as_stated
    assert evidence["draw(curve) raises"].startswith("RuntimeError: Can't call numpy()")
    assert evidence["draw(curve.detach()) gives"] == (
        "an array of 50 points; for the picture: pip install 'gradext[plot]'"
    )


def test_backward_raises_the_same_text_on_both_results() -> None:
    _, evidence = result_of("the_tutorials_test")
    assert evidence["the no_grad result"] == evidence["the inference_mode result"]
    assert evidence["the no_grad result"].startswith("RuntimeError: element 0 of tensors")


def test_the_thread_loses_adinplaceorview_under_inference_mode_only() -> None:
    _, evidence = result_of("ad_inplace_or_view_is_gone")
    assert "ADInplaceOrView" in evidence["no_grad, the thread includes"]
    assert "ADInplaceOrView" in evidence["no_grad, a result has"]
    assert "ADInplaceOrView" not in evidence["inference_mode, the thread includes"]
    assert "ADInplaceOrView" not in evidence["inference_mode, a result has"]


def test_an_inference_tensor_raises_only_where_it_is_saved() -> None:
    _, evidence = result_of("inference_result_raises_everywhere")
    assert "cannot be saved for backward" in evidence["w * shift, which saves shift"]
    assert evidence["w + shift, which saves nothing"] == "no error"
    assert evidence["gradient of w through w + shift"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.number)
def test_a_false_claim_says_what_is_true_instead(claim: core.Claim) -> None:
    assert bool(claim.instead) == (claim.stated == "false")
    if claim.instead:
        assert claim.instead.endswith(".")
        assert len(claim.instead) <= 160


def test_freezing_and_detaching_keep_the_same_and_cut_differently() -> None:
    _, kept = result_of("freezing_spares_activations")
    bytes_kept = kept["bytes of activations the loss keeps"]
    assert bytes_kept["frozen"] == bytes_kept["detached"] == 8 * (32 + 4) * 4
    _, reached = result_of("frozen_layer_stops_the_gradient")
    assert reached["parameters before it with a gradient, frozen"] == 2
    assert reached["parameters before it with a gradient, detached"] == 0
    assert reached["frozen parameters with a gradient"] == 0


def test_a_gradient_from_before_moves_what_was_frozen() -> None:
    _, evidence = result_of("optimizer_leaves_it_alone")
    assert evidence["step() moved the weight"] == {
        "frozen before the first backward": False,
        "frozen after one": True,
        "and zero_grad() called": False,
    }


def test_a_batchnorm_is_frozen_by_eval_alone() -> None:
    _, evidence = result_of("frozen_batchnorm_stands_still")
    assert evidence["what a forward changed"] == {
        "frozen": ["running_mean", "running_var", "num_batches_tracked"],
        "frozen, eval()": [],
    }


def test_inference_mode_always_fails_where_its_results_are_used() -> None:
    _, evidence = result_of("always_inference_mode")
    outcomes = {label: value == "no error" for label, value in evidence.items()}
    assert all(works for label, works in outcomes.items() if label.startswith("no_grad"))
    assert [works for label, works in outcomes.items() if label.startswith("inf")] == [
        *(True, False, False)
    ]


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(1.0, 0.9, 1.05), (1.0, 0.95, 1.1)], True),
        ([(4.0, 3.9, 4.2), (1.0, 0.5, 2.0)], False),
        ([(1.0, 0.9, 1.2), (1.0, 0.9, 1.0)], None),
    ],
)
def test_as_light_is_decided_by_the_intervals(intervals, verdict) -> None:
    ratios = {
        i: timing.Estimate(*numbers, confidence=0.95, samples=20)
        for i, numbers in enumerate(intervals)
    }
    answer = c1_requires_grad.at_most(ratios, 1.1)
    assert isinstance(answer, core.CannotTell) if verdict is None else answer is verdict
