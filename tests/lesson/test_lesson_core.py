"""How a claim is registered, run in isolation and judged."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from gradext import lesson as lesson_package
from gradext.lesson import core, graph_memory
from gradext.lesson.core import Chapter, Depends, Lesson

CHAPTER = Chapter(90, "for the tests", "Nothing   but\n   tests.")


@CHAPTER.claim("Spread over\n    two lines.", verdict="true")
def documented(
    lesson: Lesson,
) -> bool | Depends:
    """A docstring is for us."""
    # A comment is for the learner.
    lesson.show("answer", 42)

    return True


@CHAPTER.claim("Stated wrongly.", verdict="true")
def wrong(lesson: Lesson) -> bool | Depends:
    return False


@CHAPTER.claim("Breaks.", verdict="true")
def breaks(lesson: Lesson) -> bool | Depends:
    lesson.show("before", 1)
    raise KeyError("gone")


@CHAPTER.claim("Depends.", verdict="depends")
def depends(lesson: Lesson) -> bool | Depends:
    return Depends("on 3 of 4")


@CHAPTER.claim("Is not decided.", verdict="true")
def undecided(lesson: Lesson) -> bool | core.CannotTell:
    return core.CannotTell("[0.9, 1.2] holds 1")


@CHAPTER.claim("Says nothing.", verdict="false")
def says_nothing(lesson: Lesson) -> bool | Depends:
    return None  # type: ignore[return-value]


@CHAPTER.claim("Draws and disturbs.", verdict="true")
def disturbs(lesson: Lesson) -> bool | Depends:
    lesson.show("drawn", torch.rand(3))
    lesson.show("grad mode", torch.is_grad_enabled())
    lesson.show("inference mode", torch.is_inference_mode_enabled())
    lesson.show("dtype", torch.ones(1).dtype)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    return True


def claim(number: int) -> core.Claim:
    return CHAPTER.claims[number - 1]


def test_code_is_the_body_with_its_comments_and_nothing_else() -> None:
    assert claim(1).code == (
        '# A comment is for the learner.\nlesson.show("answer", 42)\n\nreturn True'
    )
    assert claim(2).code == "return False"


def test_numbers_and_texts() -> None:
    assert [c.number for c in CHAPTER.claims] == [f"90.{i}" for i in range(1, 8)]
    assert claim(1).text == "Spread over two lines."
    assert CHAPTER.intro == "Nothing but tests."


def test_the_verdict_comes_from_the_answer() -> None:
    results = [result for _, result in core.play([CHAPTER])]
    assert [r.verdict for r in results] == [
        *("true", "false", "error", "depends", "unknown", "error", "true")
    ]
    assert [r.as_stated for r in results] == [True, False, False, True, True, False, True]
    assert results[4].depends_on == "[0.9, 1.2] holds 1"
    assert results[2].error == "KeyError: 'gone'"
    assert results[2].evidence == [core.Row("before", 1)]
    assert results[3].depends_on == "on 3 of 4"
    assert "None" in (results[5].error or "")


def test_results_are_json() -> None:
    for _, result in core.play([CHAPTER]):
        written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert written["as_stated"] is result.as_stated
        assert written["claim"] == result.claim


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_claim_starts_from_a_known_state_and_leaves_the_callers(mode: type) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(17)
    expected = torch.rand(4)
    torch.manual_seed(17)
    with mode():
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        result = core.run_claim(claim(7))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads

    torch.manual_seed(0)
    drawn, *modes = [row.value for row in result.evidence if isinstance(row, core.Row)]
    assert drawn == torch.rand(3).tolist()
    assert modes == [True, False, "torch.float32"]


def test_a_claim_starts_in_float32_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        result = core.run_claim(claim(7))
        assert result.evidence[3] == core.Row("dtype", "torch.float32")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_raises_returns_the_error_and_shows_its_text() -> None:
    lesson = Lesson()
    error = lesson.raises(lambda: 1 / 0, "dividing raises")
    assert isinstance(error, ZeroDivisionError)
    assert error.__traceback__ is None
    assert lesson.raises(lambda: 1) is None
    assert lesson.evidence == [
        core.Row("dividing raises", "ZeroDivisionError: division by zero"),
        core.Row("it raises", "no error"),
    ]


def test_values_become_plain() -> None:
    lesson = Lesson()
    with torch.inference_mode():
        made = torch.ones(2)
    lesson.show("tensor", made)
    lesson.show("shape", torch.ones(2, 3).shape)
    lesson.show("nested", {"a": (1, float("nan")), "b": torch.float16})
    assert [row.value for row in lesson.evidence if isinstance(row, core.Row)] == [
        [1.0, 1.0],
        [2, 3],
        {"a": [1, "nan"], "b": "torch.float16"},
    ]


def test_run_takes_one_number_or_several() -> None:
    assert {result.chapter for result in lesson_package.run(1)} == {1}
    both = lesson_package.run([3, 1])
    assert list(dict.fromkeys(r.chapter for r in both)) == [3, 1]


def test_run_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="there is no chapter 9: the lesson has chapters 1 to 6"):
        lesson_package.run(9)
    with pytest.raises(ValueError, match="'cpu' or 'cuda', not on 'tpu'"):
        lesson_package.run(1, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"torch\.cuda\.is_available\(\) is False"):
            lesson_package.run(1, device="cuda")


def test_importing_gradext_imports_no_chapter_and_no_rich() -> None:
    code = (
        "import sys, gradext; "
        "print([m for m in sys.modules if m.split('.')[0] in ('rich', 'matplotlib', 'pygments')"
        " or m.startswith('gradext.lesson.c')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The framework's core is light; the chapters and rich are not for everyone who imports gradext.
    assert [name for name in eval(done.stdout) if name != "gradext.lesson.core"] == []


def test_graph_counts_each_node_and_each_memory_once() -> None:
    x = torch.ones(8, requires_grad=True)
    y = (x * x).sum()
    assert graph_memory.names(y) == ["SumBackward0", "MulBackward0", "AccumulateGrad"]
    saved = graph_memory.saved_tensors(y)
    assert len(saved) == 2
    assert graph_memory.storage_bytes(saved) == 32
    assert graph_memory.storage_bytes(saved, besides=[x]) == 0
    assert graph_memory.nodes(x) == []


def test_memory_kept_counts_what_is_alive_only() -> None:
    x = torch.ones(8)
    w = torch.ones(8, requires_grad=True)
    assert graph_memory.memory_kept(lambda: x.exp()) == 32
    assert graph_memory.memory_kept(lambda: x.exp().exp()) == 32
    assert graph_memory.memory_kept(lambda: x.view(2, 4)) == 0
    assert graph_memory.memory_kept(lambda: x.add_(1)) == 0
    assert graph_memory.memory_kept(lambda: (w.exp().exp(),)) == 64
    assert graph_memory.memory_kept(lambda: None) == 0
