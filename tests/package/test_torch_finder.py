"""Which torch a build is for: every situation that pip and other front ends put it in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_tools"))
import torch_finder


def put_torch(folder: Path, version: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("")
    info = folder / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return folder


@pytest.fixture
def no_torch_here(monkeypatch, tmp_path):
    """An isolated build process: its own sys.path, and the target's folders elsewhere."""
    target = tmp_path / "target"
    target.mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "overlay")])
    monkeypatch.setattr(torch_finder, "target_folders", lambda: [str(target)])
    monkeypatch.setattr(torch_finder, "_isolated_by_pip", lambda: True)
    monkeypatch.delenv("GRADEXT_TORCH", raising=False)
    return target


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1", "2.13.0+cpu", "2.15.0+cu130"])
def test_the_torch_of_the_target_environment_wins(no_torch_here, version):
    put_torch(no_torch_here, version)
    target = torch_finder.find()
    assert (target.version, target.folder) == (version, no_torch_here)
    assert target.requirement == f"torch=={'.'.join(version.split('.')[:2])}.*"


def test_without_any_torch_the_tested_one_is_asked_for(no_torch_here):
    assert torch_finder.find() == torch_finder.Target("2.13.0", None)


def test_a_torch_that_can_be_imported_wins_over_the_target_folders(no_torch_here, tmp_path):
    put_torch(no_torch_here, "2.11.0")
    put_torch(tmp_path / "overlay", "2.13.0")
    assert torch_finder.find().version == "2.13.0"


def test_a_front_end_with_an_environment_of_its_own_cannot_tell(no_torch_here, monkeypatch):
    monkeypatch.setattr(torch_finder, "_isolated_by_pip", lambda: False)
    with pytest.raises(SystemExit) as caught:
        torch_finder.find()
    line = str(caught.value)
    assert "cannot tell which torch" in line
    assert "GRADEXT_TORCH" in line
    assert "\n" not in line


def test_the_variable_names_a_folder(no_torch_here, monkeypatch, tmp_path):
    put_torch(no_torch_here, "2.11.0")
    other = put_torch(tmp_path / "other", "2.14.1")
    for value in (other, other / "torch"):
        monkeypatch.setenv("GRADEXT_TORCH", str(value))
        assert torch_finder.find() == torch_finder.Target("2.14.1", other)


def test_the_variable_names_a_version(no_torch_here, monkeypatch):
    put_torch(no_torch_here, "2.11.0")
    monkeypatch.setenv("GRADEXT_TORCH", "2.15.0")
    assert torch_finder.find() == torch_finder.Target("2.15.0", None)


def test_the_variable_names_a_version_that_was_fetched_since(no_torch_here, monkeypatch, tmp_path):
    overlay = put_torch(tmp_path / "overlay", "2.15.0+cpu")
    monkeypatch.setenv("GRADEXT_TORCH", "2.15.0")
    assert torch_finder.find() == torch_finder.Target("2.15.0+cpu", overlay)


def test_the_variable_names_a_minor_version(no_torch_here, monkeypatch):
    monkeypatch.setenv("GRADEXT_TORCH", "2.14")
    target = torch_finder.find()
    assert target == torch_finder.Target("2.14", None)
    assert (target.to_fetch, target.requirement) == ("torch==2.14.*", "torch==2.14.*")


@pytest.mark.parametrize("wanted", ["2.14", "2.14.1", "2.14.1+cpu"])
def test_the_torch_of_the_target_environment_is_taken_where_it_is_the_named_one(
    no_torch_here, monkeypatch, wanted
):
    put_torch(no_torch_here, "2.14.1+cpu")
    monkeypatch.setenv("GRADEXT_TORCH", wanted)
    assert torch_finder.find() == torch_finder.Target("2.14.1+cpu", no_torch_here)


def test_a_version_that_begins_alike_is_another_one(no_torch_here, monkeypatch):
    put_torch(no_torch_here, "2.14.1+cpu")
    monkeypatch.setenv("GRADEXT_TORCH", "2.1.0")
    with pytest.raises(SystemExit, match="too old"):
        torch_finder.find()
    monkeypatch.setenv("GRADEXT_TORCH", "2.14.10")
    assert torch_finder.find() == torch_finder.Target("2.14.10", None)


@pytest.mark.parametrize("value", ["newest", "/nowhere/at/all", "2", "2.13.", "two.13"])
def test_a_variable_that_makes_no_sense_is_one_line(no_torch_here, monkeypatch, value):
    monkeypatch.setenv("GRADEXT_TORCH", value)
    with pytest.raises(SystemExit, match="GRADEXT_TORCH=") as caught:
        torch_finder.find()
    assert "\n" not in str(caught.value)


def test_a_torch_that_is_too_old_is_refused_with_what_to_do(no_torch_here):
    put_torch(no_torch_here, "2.10.0")
    with pytest.raises(SystemExit, match=r"2\.10\.0 .*too old.*2\.11 to 2\.\d+.*pip install torch"):
        torch_finder.find()


def test_a_newer_torch_is_tried_with_a_word(no_torch_here, capsys):
    put_torch(no_torch_here, "2.99.0")
    assert torch_finder.find().version == "2.99.0"
    assert "newer than any gradext was tested with" in capsys.readouterr().err


def test_the_real_environment_is_found():
    # In this very environment: the torch that the tests import.
    import torch

    target = torch_finder.find()
    assert torch.__version__.startswith(target.version)  # metadata may lack "+cu130"
    assert str(target.folder) in torch.__file__
    assert any(Path(torch.__file__).is_relative_to(f) for f in torch_finder.target_folders())
