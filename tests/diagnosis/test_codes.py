"""Every code has a name, labels, a page, a rule and tests; every rule is one of a code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradext.base.package import FOLDER
from gradext.diagnosis.codes import CODES
from gradext.diagnosis.model import Diagnosis
from gradext.rules.codes import RULES, is_known

TESTS = Path(__file__).parents[1]
# GX204 is found by running a call several times, and not by a rule on a recording.
WRITTEN_BY = [
    *(FOLDER / "rules" / "codes").glob("gx*.py"),
    FOLDER / "inference_audit" / "checks.py",
]
EACH = pytest.mark.parametrize("code", CODES)


def codes_in(path: Path) -> set[str]:
    return set(re.findall(r"GX\d{3}", path.read_text()))


@EACH
def test_the_row(code):
    row = CODES[code]
    assert re.fullmatch(r"GX\d{3}", code)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", row.name)
    assert row.severity in {"error", "warning"}
    assert row.culprit.endswith("here")
    assert row.victim.endswith("here")
    assert [other.name for other in CODES.values()].count(row.name) == 1


@EACH
def test_a_diagnosis_takes_its_severity_from_the_row(code):
    assert Diagnosis(code, message="m").severity == CODES[code].severity
    assert Diagnosis(code, "warning", "m").severity == "warning"


@EACH
def test_the_page(code):
    text = (FOLDER / "diagnosis" / "pages" / f"{code}.md").read_text()
    assert text.startswith(f"# {code}: ")


@EACH
def test_a_rule_makes_it(code):
    assert [path.name for path in WRITTEN_BY if f'"{code}"' in path.read_text()]


@EACH
def test_a_test_expects_it(code):
    files = [
        p for p in TESTS.rglob("test_*.py") if p.name not in {"test_codes.py", "test_pages.py"}
    ]
    assert [path.name for path in files if code in codes_in(path)]


def test_no_page_and_no_rule_is_of_a_code_that_is_not_there():
    pages = {path.stem for path in (FOLDER / "diagnosis" / "pages").glob("*.md")}
    assert pages == set(CODES)
    assert set().union(*map(codes_in, WRITTEN_BY)) <= set(CODES)


MESSAGES = [
    "one of the variables needed for gradient computation has been modified by an inplace op",
    "a leaf Variable that requires grad is being used in an in-place operation.",
    "Inference tensors cannot be saved for backward. To work around",
    "element 0 of tensors does not require grad and does not have a grad_fn",
    "Trying to backward through the graph a second time (or directly access saved tensors",
    "One of the differentiated Tensors appears to not have been used in the graph.",
    "torch.utils.checkpoint: A different number of tensors was saved during the original forward",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_one_rule_knows_a_message_of_torch(message):
    assert is_known(message)
    assert len([rule for rule in RULES if rule.pattern.search(message)]) == 1


def test_no_rule_knows_other_messages():
    assert not is_known("CUDA out of memory.")
