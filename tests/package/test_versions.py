"""The one table of versions, what is made from it, and the refusal of a Python without a GIL."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradext
from gradext.commands import doctor
from gradext.native import loader, versions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_tools"))
import torch_finder

ROOT = Path(__file__).resolve().parents[2]
OF_PYTHON = versions.Passed("2026-02-03", "whole suite", "2.13.0")
OF_TORCH = versions.Passed("2026-02-03", "whole suite", "3.11.7")
TABLES = [versions.PYTHONS, versions.TORCHES]


@pytest.mark.parametrize("table", TABLES, ids=["python", "torch"])
def test_each_version_has_a_day_that_has_been_and_says_what_was_run(table):
    for version, passed in table.items():
        assert re.fullmatch(r"\d+\.\d+", version)
        day = datetime.date.fromisoformat(passed.date)
        assert datetime.date(2026, 1, 1) <= day <= datetime.date.today() + datetime.timedelta(1)
        folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
        assert passed.what == "whole suite" or set(passed.what.split(", ")) <= folders
        assert re.fullmatch(r"\d+\.\d+\.\d+", passed.partner)


def test_the_partners_are_in_the_other_table():
    # A run is one of a Python and a torch: neither table may claim what the other does not know.
    for passed in versions.PYTHONS.values():
        assert versions.minor(passed.partner) in versions.TORCHES
    for passed in versions.TORCHES.values():
        assert versions.minor(passed.partner) in versions.PYTHONS


def test_no_python_between_the_oldest_and_the_newest_is_left_out():
    # requires-python is a range: pip would install gradext on what lies between.
    (major, first), (_, last) = map(versions.numbers, versions.span(versions.PYTHONS))
    assert set(versions.PYTHONS) == {f"{major}.{k}" for k in range(first, last + 1)}


def test_the_order_of_versions_is_that_of_numbers():
    table = dict.fromkeys(["3.10", "3.9", "3.14"], versions.Passed("2026-11-28", "state", "2.13.0"))
    assert versions.span(table) == ("3.9", "3.14")


def test_metadata_says_what_the_table_says(tmp_path):
    code = (
        f"import gradext_backend as b; print(b.prepare_metadata_for_build_wheel({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "build_tools"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    (wanted,) = (line.split(": ")[1] for line in lines if line.startswith("Requires-Python"))
    assert sorted(wanted.split(",")) == sorted(versions.requires_python().split(","))
    said = [line.rpartition(":: ")[2] for line in lines if "Python :: 3." in line]
    assert said == sorted(versions.PYTHONS, key=versions.numbers)


def test_readme_says_what_the_table_says():
    text = (ROOT / "README.md").read_text()
    assert f"<!-- generated: versions -->\n{versions.sentence()}\n<!-- /generated -->" in text


@pytest.mark.parametrize(
    ("table", "version", "says"),
    [
        (
            {"3.13": versions.Passed("2026-02-03", "state, guard", "2.13.0")},
            "3.13.7",
            "state, guard",
        ),
        (
            {"3.13": OF_PYTHON},
            "3.13.0rc1",
            "2026-02-03",
        ),
        ({"3.13": OF_PYTHON}, "3.1.3", "not tried"),
        (
            {"2.13": OF_TORCH},
            "2.15.0.dev1",
            "not tried",
        ),
        (
            {"2.1": OF_TORCH},
            "2.13.0+cpu",
            "not tried",
        ),
    ],
)
def test_the_verdict_on_a_version(table, version, says):
    assert says in versions.verdict(table, version)


@pytest.mark.parametrize("torch_version", ["2.99.0", "2.99.0.dev20261129+cpu"])
def test_doctor_says_not_tried(monkeypatch, torch_version):
    found = {
        "version": torch_version,
        "folder": "x",
        "cuda": None,
        "devices": [],
        "no_device": "none",
    }
    monkeypatch.setattr(doctor, "_torch", lambda: found)
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.99.1")
    report = doctor.examine()
    assert report["tried"] == {"python": "not tried", "torch": "not tried"}
    lines = doctor.as_lines(report)
    assert [line for line in lines if line.startswith("tried")] == [
        "tried       Python 3.99: not tried",
        "tried       torch 2.99: not tried",
    ]
    json.dumps(report)


def test_doctor_without_torch_does_not_speak_of_torch(monkeypatch):
    monkeypatch.setattr(doctor, "_torch", lambda: None)
    report = doctor.examine()
    assert report["tried"]["torch"] is None
    assert len([line for line in doctor.as_lines(report) if line.startswith("tried")]) == 1


@pytest.fixture
def free_threaded(monkeypatch):
    monkeypatch.setattr(sys, "abiflags", "t", raising=False)


def test_a_python_without_a_gil_is_refused_at_the_build(free_threaded):
    with pytest.raises(SystemExit, match="does not support free-threaded Python") as caught:
        torch_finder.find()
    assert "\n" not in str(caught.value)


def test_a_python_without_a_gil_is_refused_at_the_import(free_threaded):
    with pytest.raises(ImportError, match="does not support free-threaded Python") as caught:
        loader.load()
    assert "\n" not in str(caught.value)


def test_a_python_without_a_gil_is_refused_in_one_line_by_the_program(tmp_path):
    patched = "import sys; sys.abiflags = 't'; import gradext"
    done = subprocess.run(
        [sys.executable, "-c", patched],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(gradext.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    (line,) = (text for text in done.stderr.splitlines() if "free-threaded" in text)
    assert line.startswith("ImportError: gradext does not support free-threaded Python")


def test_an_ordinary_python_is_not_refused():
    assert versions.free_threaded() is None
