"""audit_inference names the line where a kept inference tensor was born, and the mode it was in."""

from __future__ import annotations

import pytest
import subjects
import torch
from subjects import line

from gradext.inference_audit import audit

X = torch.linspace(-1, 1, 16 * 4).view(16, 4)


def lines_of(check):
    return [site.frame.line for site in check.sites]


@pytest.mark.parametrize(
    ("subject", "born", "op"),
    [
        (subjects.Decoder(), "ROPE BORN", "aten::cos"),
        (subjects.closing_over(), "CLOSURE BORN", "aten::ones"),
    ],
)
def test_the_birth_line_of_what_is_kept(subject, born, op):
    report = audit.audit(subject, (X.clone(),))
    kept = report["kept tensors"]
    assert lines_of(kept) == [line(born)]
    assert kept.sites[0].op == op
    assert kept.sites[0].label == "the inference tensor is made here"
    assert [site.frame.line for site in kept.diagnoses[0].culprits] == [line(born)]
    assert line(born) in lines_of(report["train step"])


@pytest.mark.parametrize(
    ("subject", "born"), [(subjects.masked, "MASK BORN"), (subjects.from_tables, "TABLE BORN")]
)
def test_the_birth_line_in_a_cache_and_in_a_global(subject, born):
    report = audit.audit(subject, (X.clone(), torch.ones(4, requires_grad=True)))
    assert lines_of(report["kept tensors"]) == [line(born)]
    assert line(born) in lines_of(report["train step"])


@pytest.mark.parametrize(
    ("subject", "born"), [(subjects.Average, "MEAN BORN"), (subjects.Lazy, "SCALE BORN")]
)
def test_the_birth_line_of_a_buffer_and_a_parameter(subject, born):
    report = audit.audit(subject(), (X.clone(),))
    assert lines_of(report["parameters and buffers"]) == [line(born)]


def test_the_failing_line_comes_before_the_birth():
    report = audit.audit(subjects.Rope(), (X.clone(),))
    assert lines_of(report["train step"]) == [line("ROPE USED"), line("ROPE BORN")]


def test_a_mode_that_the_model_enters_itself_is_named():
    report = audit.audit(subjects.OwnMode(), (X.clone(),))
    kept = report["kept tensors"]
    assert lines_of(kept) == [line("OWN MODE BORN"), line("OWN MODE ENTERED")]
    assert kept.sites[1].label == "inference_mode is entered here"
    expected = [line(name) for name in ("OWN MODE USED", "OWN MODE BORN", "OWN MODE ENTERED")]
    # The same table is made under no_grad: a fresh copy fails alike, which the message says.
    assert lines_of(report["train step"])[0] == expected[0]


def test_the_audits_own_mode_is_not_named():
    kept = audit.audit(subjects.Rope(), (X.clone(),))["kept tensors"]
    assert lines_of(kept) == [line("ROPE BORN")]
