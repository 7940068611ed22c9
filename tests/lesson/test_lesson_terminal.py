"""The terminal reporter, on hand-made results."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gradext.lesson.core import Bar, Chapter, Chart, ClaimResult, Row, Verdict
from gradext.lesson.terminal import Glyphs, TerminalReporter, format_value, render_evidence

CHAPTER = Chapter(7, "A title", "An introduction that is long enough to be wrapped. " * 4)


def make(
    verdict: str = "true",
    stated: Verdict = "true",
    evidence: list[Row | Chart] | None = None,
    **changes: object,
) -> ClaimResult:
    fields: dict[str, object] = {
        "number": "7.1",
        "chapter": 7,
        "claim": "A claim that is long enough to take more than a single line on a screen. " * 2,
        "code": 'x = 1\n\nif x:\n    show("a very long label for the value", function(x, x, x, x))',
        "stated": stated,
        "verdict": verdict,
        "depends_on": None,
        "error": None,
        "evidence": evidence or [],
        "seconds": 0.5,
    }
    return ClaimResult(**{**fields, **changes})  # type: ignore[arg-type]


def printed(
    *results: ClaimResult, width: int = 80, encoding: str = "utf-8", terminal: bool = False
) -> str:
    stream = io.BytesIO()
    file = io.TextIOWrapper(stream, encoding=encoding, errors="strict", newline="\n")
    console = Console(
        file=file,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        highlight=False,
    )
    reporter = TerminalReporter(console)
    reporter.opening([CHAPTER], "cpu")
    reporter.chapter(CHAPTER)
    for result in results:
        reporter.claim(result)
    reporter.closing(results, 1.25, "gradext lesson 8")
    file.flush()
    return stream.getvalue().decode(encoding)


EVIDENCE: list[Row | Chart] = [
    Row("short", True),
    Row("a label that is rather long, longer than half of a narrow terminal", "word " * 40),
    Row("mapping", {"a": 1, "bcd": [1.0, 2.5]}),
    Chart("Title of the chart", [Bar("one", 2.0, 1.5, 2.5), Bar("two", 1.0, 0.9, 1.1)], "x", 1.0),
]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_line_is_longer_than_the_terminal(width: int, terminal: bool) -> None:
    from rich.text import Text

    text = printed(make(evidence=EVIDENCE), width=width, terminal=terminal)
    lines = [Text.from_ansi(line).plain for line in text.splitlines()]
    code = [line for line in lines if line.startswith(("   | ", "   │ "))]
    assert max(len(line) for line in lines if line not in code) <= width
    # A line of code stays one line, which can be copied; the terminal shows it on two.
    assert [line[5:] for line in code] == [line for line in make().code.split("\n") if line]
    assert not any(line != line.rstrip() for line in lines if not terminal)
    # Nothing is lost by wrapping.
    words = " ".join(" ".join(lines).split())
    assert "longer than half of a narrow terminal" in words
    assert words.count("word") == 40
    assert "a single line on a screen." in words


def test_a_pipe_gets_neither_colour_nor_box_characters() -> None:
    text = printed(make(evidence=EVIDENCE))
    assert text.isascii()
    assert "\x1b" not in text
    assert "-- 7  A title ---" in text
    assert "   | x = 1\n   |\n   | if x:\n   |     show(" in text
    assert "\n7.1  + A claim that" in text


def test_a_terminal_gets_both() -> None:
    text = printed(make(evidence=EVIDENCE), terminal=True)
    assert "\x1b[" in text
    assert "│" in text
    assert "█" in text
    assert "✓" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_stream_cannot_encode_is_replaced(encoding: str) -> None:
    result = make(claim="Caf\u00e9 \u2192", code="# \u2192", evidence=[Row("\u2192", "\u2603")])
    text = printed(result, encoding=encoding, terminal=True)
    assert "?" in text
    assert "7.1" in text
    assert "│" not in text


def test_a_verdict_is_a_word_and_says_whether_it_was_expected() -> None:
    assert "     TRUE, as expected\n" in printed(make())
    text = printed(make("false", "false", instead="This is true."))
    assert "     FALSE, as expected\n     This is true.\n" in text
    text = printed(make("depends", "depends", depends_on="on the size, 2 of 3"))
    assert "     IT DEPENDS, as expected: on the size, 2 of 3\n" in text
    text = printed(make("unknown", "false", depends_on="[0.9, 1.2] holds 1."))
    assert "     CANNOT TELL on this machine: [0.9, 1.2] holds 1.\n" in text
    assert "expected" not in text.split("CANNOT TELL")[1].split("claim, ")[0]
    text = printed(make("false", "true", instead="Not said where it was not expected."))
    assert "     FALSE  NOT AS EXPECTED: TRUE was\n" in text
    assert "Not said" not in text
    text = printed(make("error", "true", error="KeyError: 'x'"))
    assert "     ERROR: KeyError: 'x'  NOT AS EXPECTED: TRUE was\n" in text


def test_the_heading_and_the_list_show_the_verdict_at_once() -> None:
    marks = {"true": "+", "false": "x", "depends": "?", "unknown": "?", "error": "!"}
    for verdict, mark in marks.items():
        assert f"\n7.1  {mark} A claim that" in printed(make(verdict))
    chapter = Chapter(7, "A title", "")
    for number, verdict in enumerate(("true", "false", "depends")):
        chapter.claim(f"Claim {number}.", verdict=verdict)(lambda lesson: True)  # type: ignore[arg-type]
    stream = io.StringIO()
    TerminalReporter(Console(file=stream, width=80), Glyphs.unicode()).listing([chapter])
    assert "7.1  ✓ Claim 0.\n   7.2  ✗ Claim 1.\n   7.3  ? Claim 2.\n" in stream.getvalue()


def test_the_summary_counts_and_lists_what_differs() -> None:
    text = printed(make(), make("false", "true", claim="Short."), make("error", error="Boom: b"))
    assert "3 claims, 1 as expected, in 1.2 s.\n" in text
    assert "7.1  FALSE (expected: true): Short.\n" in text
    assert "7.1  Boom: b (expected: true): A claim" in text
    assert text.endswith("Next: gradext lesson 8\n")
    assert "1 claim, 1 as expected" in printed(make())
    text = printed(make(), make("unknown", "true", depends_on="x"))
    assert "2 claims, 1 as expected, 1 that this machine cannot tell, in 1.2 s.\n" in text


def test_rows_are_aligned() -> None:
    text = printed(make(evidence=[Row("a", 1), Row("longer", None), Row("m", {"k": 1, "key": 2})]))
    assert "     a       1\n     longer  None\n     m       k    1\n             key  2\n" in text


def test_bars_are_as_long_as_their_values() -> None:
    chart = Chart("T", [Bar("one", 4.0, 4.0, 4.0), Bar("half", 2.0, 2.0, 2.0)], "x", None)
    lines = printed(make(evidence=[chart])).splitlines()
    (one,) = [line for line in lines if line.startswith("     one ")]
    (half,) = [line for line in lines if line.startswith("     half ")]
    length = one.count("#") + one.count("=")
    assert length > 20
    assert abs(half.count("#") + half.count("=") - length / 2) <= 1
    assert one.endswith("4.00x (4.00 to 4.00)")


def test_the_reference_line_stands_in_one_column() -> None:
    bars = [Bar("above", 3.0, 2.5, 4.0), Bar("below", 0.5, 0.4, 0.6), Bar("at", 1.0, 1.0, 1.0)]
    lines = printed(make(evidence=[Chart("T", bars, "x", 1.0)])).splitlines()
    columns = {
        line.index(":")
        for line in lines
        if line.startswith(("     above", "     below", "     at "))
    }
    assert len(columns) == 1
    assert any(line.endswith("= the spread   : 1x") for line in lines)


def test_an_empty_chart_and_one_of_zeros_do_not_break() -> None:
    charts: list[Row | Chart] = [
        Chart("none", [], "x", 1.0),
        Chart("zeros", [Bar("z", 0.0, 0.0, 0.0)], "", None),
    ]
    assert "zeros" in printed(make(evidence=charts))


def test_glyphs_fall_back_to_ascii() -> None:
    def console(encoding: str) -> Console:
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        return Console(file=file, force_terminal=True)

    assert Glyphs.of(console("utf-8")) == Glyphs.unicode()
    assert Glyphs.of(console("ascii")) == Glyphs.ascii()
    assert Glyphs.of(console("latin-1")) == Glyphs.ascii()


def test_values_read_well() -> None:
    assert format_value(True) == "True"
    assert format_value(None) == "None"
    assert format_value(1234567) == "1,234,567"
    assert format_value(4096) == "4096"
    assert format_value(2.0) == "2.0"
    assert format_value(7.389056205749512) == "7.38906"
    assert format_value(["a", 1, [2.5]]) == "[a, 1, [2.5]]"
    assert format_value({"a": [1]}) == "{a: [1]}"


def test_a_notebook_cell_prints_evidence_and_verdict() -> None:
    assert render_evidence(make(evidence=[Row("a", 1)])) == "a  1\nTRUE, as expected"
