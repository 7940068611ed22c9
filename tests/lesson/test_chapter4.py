"""Chapter 4: counts are exact; the verdicts on times follow from times given by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from gradext.lesson import core
from gradext.lesson.chapters import c4_speed
from gradext.lesson.models import LLM, MLP, ViT
from gradext.mode_costs import timing
from gradext.mode_costs.comparison import ModeComparison

CLAIMS = {claim.function.__name__: claim for claim in c4_speed.CHAPTER.claims}


def evidence_of(result: core.ClaimResult) -> dict[str, Any]:
    return {row.label: row.value for row in result.evidence if isinstance(row, core.Row)}


def play(name: str) -> tuple[core.ClaimResult, dict[str, Any]]:
    result = core.run_claim(CLAIMS[name])
    assert result.error is None
    return result, evidence_of(result)


def comparison(no_grad: float, grad: float = 2.0, spread: float = 0.01) -> ModeComparison:
    """Twenty rounds in which the modes take these times, give or take the spread."""
    wobble = [1 + spread * (index - 9.5) / 9.5 for index in range(20)]
    return timed(
        {
            "grad": tuple(1e-6 * grad * factor for factor in wobble),
            "no_grad": tuple(1e-6 * no_grad * factor for factor in wobble),
            "inference_mode": (1e-6,) * 20,
        }
    )


def timed(seconds: dict[str, tuple[float, ...]]) -> ModeComparison:
    return ModeComparison.of(timing.Comparison(seconds, calls=1), "inference_mode")


def with_gains(monkeypatch: pytest.MonkeyPatch, *gains: float, spread: float = 0.01) -> None:
    """Let time_modes answer these no_grad / inference_mode ratios, in turn."""
    answers = iter(gains)
    monkeypatch.setattr(
        c4_speed, "time_modes", lambda *_, **__: comparison(next(answers), spread=spread)
    )


def test_only_inference_mode_skips_the_kernels() -> None:
    result, evidence = play("no_grad_skips_autograd")
    assert result.verdict == "false"
    assert evidence["an op on x passes"] == {
        "grad": ["ADInplaceOrView", "AutogradCPU"],
        "no_grad": ["ADInplaceOrView", "AutogradCPU"],
        "inference_mode": [],
    }


def test_an_inference_tensor_meets_no_bookkeeping_and_a_parameter_some() -> None:
    result, evidence = play("inference_mode_skips_all")
    assert result.verdict == "true"
    assert evidence["an op on x passes"] == []
    result, evidence = play("parameters_included")
    assert result.verdict == "false"
    assert evidence["an op on the weight passes"] == ["ADInplaceOrView"]
    assert evidence["weight[0]: tracked as a view"] is True


def test_bookkeeping_kernels_are_those_of_this_thread_now() -> None:
    x = torch.ones(2)
    with torch.inference_mode():
        y = torch.ones(2)
        assert c4_speed.bookkeeping_kernels(x) == ["ADInplaceOrView"]
        assert c4_speed.bookkeeping_kernels(y) == []
    # Outside, an inference tensor does meet the kernel that refuses to write it.
    assert c4_speed.bookkeeping_kernels(y) == ["ADInplaceOrView"]


def test_census_counts_what_results_carry() -> None:
    w = torch.ones(4, requires_grad=True)

    def calls() -> None:
        torch.ones(4)  # counter only
        w * 2  # counter, grad_fn
        w[1:]  # counter, view, grad_fn

    assert c4_speed.census(calls) == {
        "results": 3,
        "have a version counter": 3,
        "are tracked as views": 1,
        "have a grad_fn": 2,
    }
    with torch.inference_mode():
        count = c4_speed.census(lambda: torch.ones(4)[1:] * 2)
    assert count == {
        "results": 3,
        "have a version counter": 0,
        "are tracked as views": 0,
        "have a grad_fn": 0,
    }


def test_the_llm_carries_a_counter_for_each_result_unless_in_inference_mode() -> None:
    result, evidence = play("what_a_model_skips")
    assert result.verdict == "true"
    grad, no_grad, inference = (
        evidence[f"one token, {mode}"] for mode in ("grad", "no_grad", "inference_mode")
    )
    assert grad["results"] == no_grad["results"] == inference["results"] > 50
    assert no_grad["have a version counter"] == no_grad["results"]
    assert no_grad["are tracked as views"] > 10
    assert inference["have a version counter"] == inference["are tracked as views"] == 0


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((1.9, 1.7, 1.1, 1.2), "true"),
        ((1.2, 1.7, 1.1, 1.2), "false"),
        ((1.9, 1.2, 1.1, 1.2), "false"),
        ((1.9, 1.25, 1.1, 1.2), "unknown"),
        ((1.25, 1.2, 1.1, 1.2), "false"),  # one that is certain is enough
    ],
)
def test_verdict_on_one_operation(monkeypatch, gains, verdict) -> None:
    with_gains(monkeypatch, *gains)
    result, _ = play("one_operation")
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((1.03, 1.0, 1.09, 1.02, 1.13, 1.03), "false"),
        ((1.2, 1.2, 1.2, 1.2, 1.2, 1.1), "unknown"),  # its interval holds 1.10
        ((1.2, 1.2, 1.2, 1.2, 1.2, 1.2), "true"),
    ],
)
def test_verdict_on_whole_models(monkeypatch, gains, verdict) -> None:
    with_gains(monkeypatch, *gains)
    result, evidence = play("whole_models")
    assert result.verdict == verdict
    (chart,) = [item for item in result.evidence if isinstance(item, core.Chart)]
    assert len(chart.bars) == 12
    assert [bar.label for bar in chart.bars[:2]] == ["MLP, batch 1, no_grad", "MLP, batch 1, grad"]
    assert list(evidence) == [
        "MLP, batch 1",
        "MLP, batch 1024",
        "ViT, batch 1",
        "ViT, batch 16",
        "LLM, batch 1",
        "LLM, batch 32",
    ]


@pytest.mark.parametrize(
    ("small", "large", "spread", "verdict"),
    [
        (1.03, 1.00, 0.01, "false"),
        (1.03, 1.03, 0.01, "false"),
        (1.03, 1.04, 0.01, "false"),  # within the spread
        (1.03, 1.20, 0.50, "unknown"),  # within the spread
        (1.30, 1.20, 0.01, "false"),
        (1.03, 1.20, 0.01, "true"),
    ],
)
def test_verdict_on_growth(monkeypatch, small, large, spread, verdict) -> None:
    with_gains(monkeypatch, small, large, spread=spread)
    result, evidence = play("grows_with_size")
    assert result.verdict == verdict
    skipped = evidence["results without bookkeeping"]
    assert skipped["small"] == skipped["large"] == 7
    assert evidence["parameters"] == {"small": 16_640, "large": 4_198_400}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((1.9, 1.13, 1.0), "depends"), ((1.06, 1.07, 1.09), "true"), ((1.05, 1.07, 1.10), "unknown")],
)
def test_verdict_on_five_to_ten_percent(monkeypatch, gains, verdict) -> None:
    with_gains(monkeypatch, *gains)
    result, _ = play("five_to_ten_percent")
    assert result.verdict == verdict
    if verdict == "depends":
        numbers = r"[-+]\d+\.\d % \[[-+]\d+\.\d, [-+]\d+\.\d\]"
        assert re.fullmatch(
            f"on how much work there is per operation: {numbers} for a view, {numbers} for an LLM "
            f"decoding a token, {numbers} for an MLP at batch 256.",
            result.depends_on or "",
        )


def test_words_have_the_interval_and_say_when_nothing_can_be_told() -> None:
    flat = timed({"no_grad": (1.5e-6,) * 20, "inference_mode": (1e-6,) * 20})
    assert c4_speed.in_words(flat) == "under no_grad +50.0 % [+50.0, +50.0]"
    assert re.fullmatch(
        r"under no_grad [-+]0\.\d % \[-\d+\.\d, \+\d+\.\d\]; no difference that can be told",
        c4_speed.in_words(comparison(1.0)),
    )


def test_time_modes_runs_and_builds_in_each_mode_and_leaves_the_threads_alone() -> None:
    seen: dict[str, set[tuple[bool, bool]]] = {"build": set(), "run": set()}

    def now() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def build() -> Any:
        seen["build"].add(now())
        return lambda: seen["run"].add((*now(), torch.get_num_threads()))

    threads = torch.get_num_threads()
    found = c4_speed.time_modes(core.Lesson(quick=True), build, seconds=0.0)
    assert seen["build"] == {(True, False), (False, False), (False, True)}
    assert seen["run"] == {(*mode, 1) for mode in seen["build"]}
    assert [row.mode for row in found] == ["grad", "no_grad", "inference_mode"]
    assert torch.get_num_threads() == threads
    assert now() == (True, False)


@pytest.mark.parametrize("model", [MLP(), ViT(), LLM()], ids=["MLP", "ViT", "LLM"])
def test_the_models_give_the_same_in_each_mode(model: torch.nn.Module) -> None:
    results = []
    for mode in c4_speed.MODES.values():
        with mode():
            result = c4_speed.forward_of(model, batch=2)()
        results.append(result[0] if isinstance(model, LLM) else result)
    assert results[0].requires_grad
    assert not results[1].requires_grad
    assert results[2].is_inference()
    torch.testing.assert_close(results[1], results[0].detach())
    torch.testing.assert_close(results[2].clone(), results[1])


def test_decoding_with_the_cache_equals_reading_the_whole_text() -> None:
    torch.manual_seed(0)
    model, tokens = LLM(), torch.randint(256, (2, 9))
    whole, _ = model(tokens)
    logits, cache = model(tokens[:, :5])
    steps = [logits]
    for place in range(5, 9):
        logits, cache = model(tokens[:, place : place + 1], cache)
        steps.append(logits)
    assert cache[0][0].shape == (2, 4, 9, 16)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
