"""Chapter 6: the rules hold, and each trap does what the lesson says, error by error."""

from __future__ import annotations

from typing import Any

import pytest

from gradext.lesson import core
from gradext.lesson.chapters import c6_rules

CLAIMS = {claim.function.__name__: claim for claim in c6_rules.CHAPTER.claims}
SAVED = "Inference tensors cannot be saved for backward"
WRITTEN = "Inplace update to inference tensor outside InferenceMode"


def play(name: str) -> tuple[str, dict[str, Any]]:
    result = core.run_claim(CLAIMS[name])
    assert result.error is None
    rows = {row.label: row.value for row in result.evidence if isinstance(row, core.Row)}
    return result.verdict, rows


def test_only_grad_mode_trains() -> None:
    verdict, rows = play("train_in_grad_mode")
    assert verdict == "true"
    assert rows["parameters with a gradient, of 8"] == {
        "enable_grad": 8,
        "no_grad": 0,
        "inference_mode": 0,
    }


def test_eval_is_not_a_mode() -> None:
    verdict, rows = play("eval_is_no_mode")
    assert verdict == "false"
    assert rows["eval(): grad_fn"] == "AddmmBackward0"


def test_validation_disturbs_nothing() -> None:
    verdict, rows = play("validate_under_inference_mode")
    assert verdict == "true"
    assert rows["weights equal, bit by bit"] is True
    # Three steps, three writes to each weight, in both.
    assert rows["first weight's version, with and without"] == [3, 3]


def test_validation_that_trains_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = c6_rules.training_step, []

    def disturbed(model: Any, x: Any) -> None:
        calls.append(model)
        if len(calls) % 2:
            real(model, x)

    monkeypatch.setattr(c6_rules, "training_step", disturbed)
    verdict, _ = play("validate_under_inference_mode")
    assert verdict == "false"


def test_serving_gives_the_same_numbers_and_keeps_nothing() -> None:
    verdict, rows = play("serve_under_inference_mode")
    assert verdict == "true"
    assert rows == {"same numbers as in grad mode": True, "grad_fn": None, "version counter": None}


def test_targets_come_from_no_grad() -> None:
    verdict, rows = play("targets_need_no_grad")
    assert verdict == "false"
    assert SAVED in rows["targets from inference_mode"]
    assert rows["targets from no_grad"] == "no error"


def test_a_cache_filled_under_inference_mode_breaks_training_and_the_fix_repairs_it() -> None:
    verdict, rows = play("lazy_cache")
    assert verdict == "false"
    assert rows["rotary.cos is an inference tensor"] is True
    assert SAVED in rows["training_step(model, x)"]
    verdict, rows = play("lazy_cache_fixed")
    assert verdict == "true"
    assert rows["rotary.cos is an inference tensor"] is False
    assert rows["training_step(model, x)"] == "no error"


def test_a_kv_cache_is_written_in_its_own_mode_only() -> None:
    verdict, rows = play("kv_cache")
    assert verdict == "false"
    assert WRITTEN in rows["written under no_grad"]
    assert rows["written under inference_mode"] == "no error"
    assert rows["rows written"] == [4.0, 4.0] + [0.0] * 6


def test_a_module_built_inside_loses_its_weights_gradient() -> None:
    verdict, rows = play("module_built_inside")
    assert verdict == "false"
    assert rows["weight requires grad"] is True
    assert rows["backward() raises"] == "no error"
    assert rows["gradients"] == {"weight": None, "bias": [2.0]}
    assert WRITTEN in rows["step() raises"]


def test_a_module_converted_inside_silently_learns_its_bias_only() -> None:
    verdict, rows = play("module_moved_inside")
    assert verdict == "false"
    assert rows["training_step(layer, x) raises"] == "no error"
    assert rows["weight is an inference tensor"] is True
    assert rows["changed by the step"] == {"weight": False, "bias": True}
    verdict, rows = play("module_repaired")
    assert verdict == "true"
    assert rows["changed by the step"] == {"weight": True, "bias": True}


def test_numpy_writes_past_the_refusal_and_past_the_counter() -> None:
    verdict, rows = play("numpy_writes_inference_tensor")
    assert verdict == "false"
    assert WRITTEN in rows["x.add_(1) raises"]
    assert rows["x after"] == [7.0, 7.0, 7.0]
    verdict, rows = play("numpy_writes_saved_tensor")
    assert verdict == "false"
    assert rows["version of x before and after"] == [0, 0]
    assert rows["backward() raises"] == "no error"
    assert rows["gradient, right"] == [3.0, 4.0]
    assert rows["gradient, as computed"] == [100.0, 100.0]
