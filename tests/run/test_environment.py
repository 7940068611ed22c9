"""GRADEXT_RECORD and GRADEXT_JSON, the .pth file that they work through, and how it is packed."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from programs import start

ROOT = Path(__file__).parents[2]
LINE = ROOT / "build_tools" / "gradext-autostart.pth"


def test_without_the_variables_the_line_does_nothing(tmp_path):
    code = (
        "import os, sys\n"
        "before = set(sys.modules)\n"
        f"exec({LINE.read_text()!r})\n"
        "print(set(sys.modules) - before, set(globals()) - {'before'} - set(dir(sys)))"
    )
    done = start(["-c", code], tmp_path)
    assert done.text.startswith("set() ")
    assert "gradext" not in done.text


def test_the_line_is_what_site_runs():
    """site executes a line that starts with "import "; there must be one, and be small."""
    (line,) = LINE.read_text().splitlines()
    assert line.startswith("import ")
    compile(line, "gradext-autostart.pth", "exec")


@pytest.mark.parametrize("function", ["stale", "leaf", "caught stale"])
def test_recording_by_the_environment(plain, write, mistakes, tmp_path, with_pth, function):
    name = function.removeprefix("caught ")
    call = f"mistakes.caught(mistakes.{name})" if "caught" in function else f"mistakes.{name}()"
    write(f"import mistakes\nprint('before')\n{call}")
    expected = plain("train.py")
    env = {**with_pth, "GRADEXT_RECORD": "1", "GRADEXT_JSON": "report.json"}
    found = plain("train.py", **env)
    assert (found.code, found.out) == (expected.code, expected.out)
    assert found.err.startswith(expected.err)
    severity = "warning" if "caught" in function else "error"
    assert found.errors[len(expected.errors) :].startswith(f"\n{severity}[GX10")
    report = json.loads((tmp_path / "report.json").read_text())
    (diagnosis,) = report["diagnoses"]
    assert diagnosis["severity"] == severity
    assert diagnosis["culprits"][0]["line"] == mistakes.line(name)
    assert report["exit_code"] == (None if "caught" in function else 1)
    assert [p.name for p in tmp_path.iterdir() if "report" in p.name] == ["report.json"]


def test_the_light_mode(plain, write, mistakes, tmp_path, with_pth):
    write("import mistakes\nmistakes.stale()")
    env = {**with_pth, "GRADEXT_RECORD": "light", "GRADEXT_JSON": "report.json"}
    plain("train.py", **env)
    (diagnosis,) = json.loads((tmp_path / "report.json").read_text())["diagnoses"]
    assert diagnosis["culprits"][0]["line"] == mistakes.line("stale")
    assert diagnosis["victims"] == []


def test_off(plain, write, mistakes, with_pth):
    write("import mistakes\nimport gradext\nprint(gradext.inspect)\nmistakes.stale()")
    found = plain("train.py", **with_pth, GRADEXT_RECORD="0")
    assert "GX101" not in found.errors


def test_a_clean_program_and_one_without_torch(plain, write, tmp_path, with_pth):
    write("import torch\nprint(torch.ones(2))")
    write("import sys\nprint('torch' in sys.modules)\nsys.exit(4)", "small.py")
    env = {**with_pth, "GRADEXT_RECORD": "1", "GRADEXT_JSON": "report.json"}
    assert plain("small.py", **env) == plain("small.py", forked=False, **with_pth)
    assert not (tmp_path / "report.json").exists()  # it has not used torch
    assert plain("train.py", **env) == plain("train.py")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["diagnoses"], report["error"]) == ([], None)


def test_the_processes_of_a_launcher_share_a_file(write, mistakes, tmp_path, with_pth):
    """What started both is this process; which of them ends last does not matter."""
    write("import mistakes\nmistakes.stale()")
    (tmp_path / "temporary").mkdir()
    for rank in "01":
        env = {"GRADEXT_RECORD": "1", "GRADEXT_JSON": "report.json", "RANK": rank}
        env["TMPDIR"] = str(tmp_path / "temporary")
        start(["train.py"], tmp_path, **with_pth, **env)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("report")] == ["report.json"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [found["rank"] for found in report["diagnoses"]] == [0, 1]
    assert [part["exit_code"] for part in report["processes"]] == [1, 1]


def test_children_are_merged_into_the_file_of_the_first(write, mistakes, tmp_path, with_pth):
    write("import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'])")
    write("import mistakes\nmistakes.stale()", "child.py")
    write("import torch, subprocess, sys\nsubprocess.run([sys.executable, 'child.py'])", "t.py")
    for script in ("train.py", "t.py"):
        env = {"GRADEXT_RECORD": "1", "GRADEXT_JSON": "report.json"}
        done = start([script], tmp_path, **with_pth, **env)
        assert done.errors.count("error[GX101]") == 1
        (diagnosis,) = json.loads((tmp_path / "report.json").read_text())["diagnoses"]
        assert "pid" in diagnosis
        assert [p.name for p in tmp_path.iterdir() if "report" in p.name] == ["report.json"]
        (tmp_path / "report.json").unlink()


def test_a_json_that_cannot_be_written_costs_a_line(write, mistakes, tmp_path, with_pth):
    write("import mistakes\nprint('runs')\nmistakes.stale()")
    env = {"GRADEXT_RECORD": "1", "GRADEXT_JSON": "no/folder/r.json"}
    done = start(["train.py"], tmp_path, **with_pth, **env)
    assert (done.code, done.out) == (1, b"runs\n")
    lines = [line for line in done.errors.splitlines() if line.startswith("gradext: ")]
    folder = f"{tmp_path}/no/folder"
    assert lines == [f"gradext: cannot write {folder}/r.json: there is no folder {folder}"]
    assert "error[GX101]" in done.errors


def test_without_the_pth_file_importing_gradext_is_enough(write, mistakes, tmp_path):
    write("import torch\nimport gradext\nimport mistakes\nmistakes.stale()")
    done = start(["train.py"], tmp_path, GRADEXT_RECORD="1")
    assert "error[GX101]" in done.errors


# --- the wheel -----------------------------------------------------------------------------------


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    pytest.importorskip("setuptools")
    import gradext_backend

    return gradext_backend


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {
            "thing/__init__.py": "x = 1\n",
            "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\n",
            "thing-1.0.dist-info/RECORD": (
                "thing/__init__.py,,\nthing-1.0.dist-info/WHEEL,,\nthing-1.0.dist-info/RECORD,,\n"
            ),
        }.items():
            item = zipfile.ZipInfo(name, (2020, 2, 2, 2, 2, 2))
            item.external_attr = 0o100664 << 16
            archive.writestr(item, data)
    return path


def test_a_file_is_added_to_a_wheel_and_to_its_record(backend, wheel):
    with zipfile.ZipFile(wheel) as archive:
        before = {item.filename: archive.read(item) for item in archive.infolist()}
    backend.add_to_wheel(wheel, "top.pth", b"import os\n")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        after = {item.filename: archive.read(item) for item in archive.infolist()}
        times = {item.date_time for item in archive.infolist()}
        modes = {item.external_attr for item in archive.infolist()}
    assert after.pop("top.pth") == b"import os\n"
    record = after.pop("thing-1.0.dist-info/RECORD").decode()
    del before["thing-1.0.dist-info/RECORD"]
    assert after == before
    assert times == {(2020, 2, 2, 2, 2, 2)}
    assert modes == {0o100664 << 16}
    rows = list(csv.reader(record.splitlines()))
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"import os\n").digest()).decode()
    assert ["top.pth", f"sha256={digest.rstrip('=')}", "10"] in rows
    assert rows[-1] == ["thing-1.0.dist-info/RECORD", "", ""]
    assert len(rows) == 4


def test_the_same_wheel_gives_the_same_bytes(backend, wheel, tmp_path):
    other = tmp_path / "other" / wheel.name
    other.parent.mkdir()
    other.write_bytes(wheel.read_bytes())
    for path in (wheel, other):
        backend.add_to_wheel(path, "top.pth", b"import os\n")
    assert wheel.read_bytes() == other.read_bytes()


def test_pip_takes_the_file_away_again(backend, tmp_path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    info = "thing-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        names = ("thing/__init__.py", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD")
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    backend.add_to_wheel(wheel, LINE.name, LINE.read_bytes())
    home = tmp_path / "home"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = str(home / "bin" / "python")

    def pip(*words: str) -> None:
        command = [sys.executable, "-m", "pip", "-q", "--python", python, *words]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    pip("install", "--no-index", "--no-deps", str(wheel))
    (found,) = home.rglob(LINE.name)
    assert found.read_bytes() == LINE.read_bytes()
    assert found.parent.name == "site-packages"
    pip("uninstall", "-y", "thing")
    assert list(home.rglob(LINE.name)) == []
    assert list(home.rglob("thing*")) == []


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_both_kinds_of_wheel_get_the_line(backend, wheel, tmp_path, monkeypatch, hook):
    def build(directory, *_):
        (Path(directory) / wheel.name).write_bytes(wheel.read_bytes())
        return wheel.name

    monkeypatch.setattr(backend.build_meta, hook, build)
    out = tmp_path / "dist"
    out.mkdir()
    name = getattr(backend, hook)(str(out))
    with zipfile.ZipFile(out / name) as archive:
        assert archive.read("gradext-autostart.pth") == LINE.read_bytes()


def test_an_installed_gradext_has_the_line():
    """pip's own record of the installation that the tests run on."""
    from importlib.metadata import files

    names = [file.name for file in files("gradext") or []]
    assert "gradext-autostart.pth" in names, "installed before the .pth file was there, or wrongly"
    code = "import sys; print('gradext.run.autostart' in sys.modules)"
    for env, expected in (({}, "False"), ({"GRADEXT_RECORD": "1"}, "True")):
        assert start(["-c", code], Path.cwd(), **env).text == f"{expected}\n"


def test_the_program_is_not_slowed_by_an_unset_variable(with_pth, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "1"],
        env={"PATH": "", **with_pth},
        capture_output=True,
        text=True,
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "site" in modules
    assert not {name for name in modules if name.partition(".")[0] == "gradext"}
