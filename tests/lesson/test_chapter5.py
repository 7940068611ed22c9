"""Chapter 5: what each pattern shows, held against torch's own report of the mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradext.lesson import core
from gradext.lesson.chapters import c5_patterns

CLAIMS = {claim.function.__name__: claim for claim in c5_patterns.CHAPTER.claims}


def play(name: str) -> tuple[str, dict[str, Any]]:
    result = core.run_claim(CLAIMS[name])
    assert result.error is None
    rows = {row.label: row.value for row in result.evidence if isinstance(row, core.Row)}
    return result.verdict, rows


def test_mode_now_names_each_mode() -> None:
    assert c5_patterns.mode_now() == "grad"
    with torch.no_grad():
        assert c5_patterns.mode_now() == "no_grad"
    with torch.inference_mode():
        assert c5_patterns.mode_now() == "inference_mode"
        with torch.enable_grad():
            assert c5_patterns.mode_now() == "inference_mode with grad on"
        with torch.inference_mode(False):
            assert c5_patterns.mode_now() == "grad"


def test_the_patterns_that_the_lesson_promises_are_there() -> None:
    texts = " ".join(claim.text for claim in c5_patterns.CHAPTER.claims)
    for pattern in (
        "on a function",
        "On a method",
        "On a generator",
        "Leaving a block",
        "enable_grad inside no_grad",
        "set_grad_enabled",
        "inference_mode(False) leaves grad mode",
        "thread",
    ):
        assert pattern in texts


@pytest.mark.parametrize("name", ["decorated_function", "decorated_method"])
def test_the_decorator_covers_a_function_and_a_method(name: str) -> None:
    verdict, rows = play(name)
    assert verdict == "true"
    assert rows["mode after the call"] == "grad"
    assert "inference_mode" in rows.values()


def test_a_decorated_generator_leaves_the_mode_at_each_yield() -> None:
    verdict, rows = play("decorated_generator")
    assert verdict == "false"
    assert rows["mode in the generator's body"] == ["inference_mode"] * 2
    assert rows["mode in the caller, at each yield"] == ["grad"] * 2


def test_a_with_block_in_a_generator_leaks_until_it_is_closed() -> None:
    verdict, rows = play("with_block_in_generator")
    assert verdict == "false"
    assert rows["mode in the caller, between two yields"] == "inference_mode"
    assert rows["w * 2 in the caller requires grad"] is False
    assert rows["mode once the generator is closed"] == "grad"
    assert not torch.is_inference_mode_enabled()


def test_nesting_comes_back_step_by_step() -> None:
    verdict, rows = play("nesting")
    assert verdict == "true"
    assert rows["on the way in"] == ["grad", "no_grad", "inference_mode", "grad"]
    assert rows["on the way out"] == ["inference_mode", "no_grad", "grad"]


def test_enable_grad_works_in_no_grad_and_not_in_inference_mode() -> None:
    verdict, rows = play("enable_grad_in_no_grad")
    assert verdict == "true"
    assert rows["no_grad, enable_grad: grad_fn"] == "MulBackward0"
    verdict, rows = play("enable_grad_in_inference_mode")
    assert verdict == "false"
    assert rows["mode"] == "inference_mode with grad on"
    assert rows["w * 2: grad_fn"] is None
    assert rows["w * 2: inference tensor"] is True


def test_inference_mode_false_records_and_turns_grad_on() -> None:
    verdict, rows = play("leave_inference_mode")
    assert verdict == "true"
    assert rows["w * 2: grad_fn"] == rows["w * x.clone(): grad_fn"] == "MulBackward0"
    verdict, rows = play("false_turns_grad_on")
    assert verdict == "false"
    assert rows["grad mode in no_grad"] is False
    assert rows["grad mode in inference_mode(False)"] is True
    assert rows["grad mode behind the block"] is False


def test_set_grad_enabled_follows_its_flag_and_outlives_a_function() -> None:
    verdict, rows = play("set_grad_enabled_block")
    assert verdict == "true"
    assert rows["w * 2 requires grad"] == {"flag True": True, "flag False": False}
    verdict, rows = play("set_grad_enabled_call")
    assert verdict == "false"
    assert rows["mode after it"] == "no_grad"
    assert torch.is_grad_enabled()


def test_modes_are_thread_local() -> None:
    verdict, rows = play("threads_start_fresh")
    assert verdict == "false"
    assert rows["mode in the new thread"] == {
        "started in no_grad": "grad",
        "started in inference_mode": "grad",
    }
    verdict, rows = play("threads_keep_to_themselves")
    assert verdict == "true"
    assert rows["mode in the other thread"] == ["inference_mode"]
    assert rows["mode here, meanwhile"] == "grad"


def test_the_chapter_leaves_the_mode_as_it_found_it() -> None:
    with torch.no_grad():
        for claim in CLAIMS.values():
            assert core.run_claim(claim).as_stated
            assert not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
