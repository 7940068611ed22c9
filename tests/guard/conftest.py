"""What each test of a guard has to leave behind: no error of gradext's own, and no recording."""

from __future__ import annotations

import pytest

from gradext.recording import own_errors, running


@pytest.fixture(autouse=True)
def _no_errors_of_its_own():
    before = _errors()
    yield
    assert _errors() == before
    assert not running.recordings


def _errors() -> list[str]:
    # Checks that are left out on a busy machine (without a guard) are no error.
    return [line for line in own_errors.lines() if "were left out" not in line]
