"""What each test of a guard has to leave behind: no error of gradext's own, and no recording."""

from __future__ import annotations

import pytest

from gradext.recording import own_errors, running


@pytest.fixture(autouse=True)
def _no_errors_of_its_own():
    before = own_errors.lines()
    yield
    assert own_errors.lines() == before
    assert not running.recordings
