"""gradext asks sysconfig for nothing while a program runs.

sysconfig fills a table at its first call. Where a signal cut that short inside gradext, the table
stayed half full, and each later call in that process, the program's own too, raised AttributeError.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch

import gradext
from gradext import _C
from gradext.base import interrupts, package
from gradext.recording import incidents, own_errors
from gradext.source import files


def refused(*_: Any, **__: Any) -> NoReturn:
    raise AttributeError("py_version_short")


@pytest.fixture(autouse=True)
def _half_full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process in which sysconfig fails and gradext has looked at nothing yet."""
    caches = (package.library_folders, package.is_user_file, interrupts._is_library)
    for cached in caches:
        cached.cache_clear()
    for name in ("get_path", "get_paths", "get_config_var", "get_config_vars"):
        monkeypatch.setattr(sysconfig, name, refused)
    yield
    for cached in caches:
        cached.cache_clear()


def test_a_failed_backward_is_explained() -> None:
    before = own_errors.lines()
    with gradext.record() as recording:
        y = torch.ones(3, requires_grad=True).exp()
        y.mul_(2)
        with pytest.raises(RuntimeError) as error:
            y.sum().backward()
        (found,) = recording.explain(error.value)
    assert found.code == "GX101"
    assert os.path.basename(__file__) in str(found)
    assert own_errors.lines() == before


def test_a_write_behind_autograds_back_is_found() -> None:
    before = own_errors.lines()
    incidents.incidents.clear()
    with gradext.record():
        w = torch.ones(3, requires_grad=True)
        y = w.exp()
        y.data.mul_(2)
        y.sum().backward()
        assert [found.code for found in incidents.incidents[-1].diagnoses] == ["GX401"]
    assert own_errors.lines() == before


def test_whose_an_exception_is() -> None:
    assert interrupts.is_the_programs(_C.CutShort())
    with pytest.raises(ValueError, match="mine") as mine:
        raise ValueError("mine")
    assert not interrupts.is_the_programs(mine.value)
    with pytest.raises(TypeError) as theirs:  # raised in the standard library's own line
        os.path.join(1)  # type: ignore[call-overload]
    assert not interrupts.is_the_programs(theirs.value)


def test_a_path_of_the_standard_library() -> None:
    assert not package.is_user_file(os.__file__)
    assert package.is_user_file(os.path.abspath(__file__))
    assert files.library_path(os.__file__) == "os.py"


def test_the_folders_are_those_of_sysconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    assert package.standard_library() == asked
    assert {folder + os.sep for folder in asked} <= set(package.library_folders())
