"""gradext.base.errors: the text of an exception, whole and cut."""

from __future__ import annotations

import pytest

from gradext.base import errors
from gradext.recording.judge import Occasion
from gradext.rules import looks


class Hostile(ValueError):
    def __str__(self) -> str:
        raise SystemExit("a text that acts")


@pytest.mark.parametrize("cut", [lambda error: errors.brief(error, 80), errors.describe])
def test_no_code_of_the_program_runs(cut):
    assert "said" in cut(Hostile("said"))


@pytest.mark.parametrize(
    ("text", "most", "brief"),
    [
        ("one line", 80, "one line"),
        ("first\n  second\n", 80, "first"),
        ("\n\n  late start\n", 80, "late start"),
        ("Error(s) in loading state_dict for Net:\n\tMissing key", 80,
         "Error(s) in loading state_dict for Net: Missing key"),
        ("A sentence. And a second one.", 80, "A sentence. And a second one."),
        ("A sentence. And a second one.", 20, "A sentence"),
        ("x" * 100, 20, "x" * 60),
        ("", 20, ""),
    ],
)  # fmt: skip
def test_brief(text, most, brief):
    assert errors.brief(RuntimeError(text), most) == brief


def test_someone_looks_on_each_occasion():
    """A recording asks by the occasion: one that nobody looks on finds nothing."""
    assert {look.occasion for look in looks.LOOKS} == set(Occasion)
    for occasion in Occasion:
        asked = [look for look in looks.LOOKS if look.occasion is occasion]
        assert not asked[0].is_last_resort
