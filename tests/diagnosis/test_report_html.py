"""A report as HTML has the terminal's characters, and nothing from outside gets out of its text."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from gradext.diagnosis.model import Diagnoses, Diagnosis, Frame, Site
from gradext.diagnosis.run_report import RunReport, Told
from gradext.reporters import diagnosis_text, report_html


def diagnosis(tmp_path: Path, message: str = "wrong") -> Diagnosis:
    file = tmp_path / "<b>train.py"
    file.write_text("x = '<script>alert(1)</script>'\ny = x & x\n")
    frame = Frame(str(file), 1, "<module>", "x = '<script>alert(1)</script>'", 0, 1, 5)
    return Diagnosis("GX101", message=message, culprits=(Site(frame, label="a<b"),), fix="x & y")


def plain(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_it_is_the_terminals_picture(tmp_path: Path) -> None:
    found = diagnosis(tmp_path)
    drawn = report_html.fragment([found])
    assert plain(drawn) == diagnosis_text.text(found, width=report_html.WIDTH)
    assert drawn.count("<span") == drawn.count("</span>") > 3
    assert "\x1b" not in drawn


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    found = diagnosis(tmp_path, message="</pre><script>alert(2)</script>")
    report = RunReport("0.1", "2.13", 1, "ValueError: <i>no</i>\nmore", (Told(found),))
    page = report_html.text(report)
    assert "<script" not in page
    assert "<i>" not in page
    assert page.count("<pre") == page.count("</pre>") == 1
    assert "<h1>gradext: 1 finding</h1>" in page
    assert not re.search(r"""(?:src|href)=|url\(|@import""", page)


def test_nothing_was_found() -> None:
    page = report_html.text(RunReport("0.1", None, 0, None, ()))
    assert "Nothing was found." in page
    assert "torch not imported; exit code 0" in page


@pytest.mark.parametrize("of", ["one", "several", "none"])
def test_in_a_notebook(tmp_path: Path, of: str) -> None:
    found = diagnosis(tmp_path)
    if of == "one":
        assert found._repr_html_() == report_html.fragment([found])
    elif of == "several":
        shown = Diagnoses([found, found])._repr_html_()
        assert shown is not None
        assert shown.count("<pre") == 2
    else:
        assert Diagnoses()._repr_html_() is None


def test_a_prompt_without_html_gets_the_report(tmp_path: Path) -> None:
    found = diagnosis(tmp_path)
    assert repr(found) == str(found) == diagnosis_text.text(found)
    assert repr([found]) == f"[{found}]"


@pytest.mark.parametrize("of", ["one", "several", "none"])
def test_what_a_front_end_asks_for(tmp_path: Path, of: str) -> None:
    one = diagnosis(tmp_path)
    shown = {"one": one, "several": Diagnoses([one, one]), "none": Diagnoses()}[of]
    text, page = {"text/plain": repr(shown)}, shown._repr_html_()
    drawn = {} if page is None else {"text/html": page}
    assert shown._repr_mimebundle_() == {**text, **drawn}
    assert shown._repr_mimebundle_(None, None) == {**text, **drawn}
    assert shown._repr_mimebundle_(include=["text/plain", "image/png"]) == text
    assert shown._repr_mimebundle_(exclude={"text/plain"}) == drawn
    assert shown._repr_mimebundle_({"text/html"}, {"text/html"}) == {}
