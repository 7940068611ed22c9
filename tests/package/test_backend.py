"""The build backend: a tree that cannot be written to, what is asked for, what is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_tools"))
import gradext_backend
import torch_finder

ROOT = Path(gradext_backend.__file__).resolve().parents[1]


@pytest.fixture
def unwritable(tmp_path, monkeypatch):
    """The backend of a tree in which nothing can be made, and the folder that pip starts it in."""
    monkeypatch.setattr(gradext_backend, "is_writable", lambda root: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tree_that_cannot_be_written_to_is_built_in_a_copy(unwritable):
    with gradext_backend._prepared():
        here = Path.cwd()
        assert not here.is_relative_to(ROOT)
        assert here != unwritable
        packed = {path.name for path in here.iterdir()}
        assert {"setup.py", "pyproject.toml", "csrc", "gradext", "build_tools"} <= packed
        assert {path.name for path in ROOT.glob("*.py")} <= packed
        assert not {"build", "dist", "docs", "tests", ".git"} & packed
        assert not list(here.glob("gradext/_C.*.so"))
        # As pip's backend would: setup.py is read, and writes beside itself.
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "egg_info"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (here / "gradext.egg-info" / "PKG-INFO").is_file()
    assert Path.cwd() == unwritable
    assert not here.exists()


def test_an_editable_install_of_such_a_tree_is_one_line(unwritable):
    with pytest.raises(SystemExit, match=r"pip install -e builds in .*cannot be written") as caught:
        gradext_backend.build_editable(str(unwritable))
    assert "\n" not in str(caught.value)


def test_what_an_earlier_build_of_somebody_else_left_makes_it_unwritable(tmp_path, monkeypatch):
    (tmp_path / "build").mkdir()
    assert gradext_backend.is_writable(tmp_path)

    def temporary_file(dir):
        if dir.name == "build":
            raise PermissionError(13, "Permission denied")
        return open(dir / "probe", "w")

    monkeypatch.setattr(gradext_backend, "TemporaryFile", temporary_file)
    assert not gradext_backend.is_writable(tmp_path)


def test_a_torch_that_is_not_there_is_asked_for_with_a_word(monkeypatch, capsys):
    monkeypatch.setattr(torch_finder, "find", lambda: torch_finder.Target("2.13.0", None))
    assert gradext_backend._torch_to_fetch() == ["torch==2.13.0"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "fetching torch==2.13.0" in line
    assert "CUDA build, several gigabytes" in line
    assert "install torch first" in line
    monkeypatch.setattr(torch_finder, "find", lambda: torch_finder.Target("2.13.0", ROOT))
    assert gradext_backend._torch_to_fetch() == []
    assert capsys.readouterr().err == ""


def test_setuptools_is_quiet_unless_it_is_asked_not_to_be():
    assert gradext_backend._quiet(None) == {"quiet": "1"}
    assert gradext_backend._quiet({"verbose": "1"}) == {"verbose": "1"}
