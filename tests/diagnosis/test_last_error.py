"""`gradext.explain()` explains the error that is handled, or the last that was printed."""

from __future__ import annotations

import sys

import pytest
import torch

import gradext


def fail() -> None:
    y = torch.sigmoid(torch.ones(3, requires_grad=True))
    y.add_(1)
    y.sum().backward()


@pytest.fixture(autouse=True)
def _nothing_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("last_exc", "last_value"):
        monkeypatch.delattr(sys, name, raising=False)


def test_the_one_that_is_handled() -> None:
    with gradext.record():
        try:
            fail()
        except RuntimeError:
            (found,) = gradext.explain()
    assert found.code == "GX101"


@pytest.mark.parametrize("name", ["last_exc", "last_value"])
def test_the_last_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with gradext.record():
        with pytest.raises(RuntimeError) as caught:
            fail()
        monkeypatch.setattr(sys, name, caught.value, raising=False)
        assert str(gradext.explain()).startswith("error[GX101]")


def test_none_was_raised() -> None:
    with pytest.raises(ValueError, match="no error has been raised here"):
        gradext.explain()
