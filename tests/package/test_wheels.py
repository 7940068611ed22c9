"""A wheel with compiled parts for several releases of torch: how it is made, and what it loads."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

import gradext
from gradext.native import build

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_tools"))
import join_wheels

LIBRARY = Path(gradext._C.__file__)
RECORD = json.loads(build.record_path(LIBRARY).read_text())
HERE = ".".join(torch.__version__.split(".")[:2])
NAME = "gradext-0.1.0-cp311-cp311-linux_x86_64.whl"
INFO = "gradext-0.1.0.dist-info"


def wheel(folder: Path, version: str, library: bytes = b"library", cuda=None, **changes) -> Path:
    """A wheel as setup.py makes it, for one torch."""
    record = {**RECORD, "torch": version, "cuda": cuda}
    minor = ".".join(version.split(".")[:2])
    files = {
        "gradext/__init__.py": b"",
        "gradext/_C.pyi": b"",
        f"gradext/_C{build.ABI_SUFFIX}": library,
        f"gradext/_C{build.ABI_SUFFIX.removesuffix('.so')}.json": json.dumps(record).encode(),
        "gradext-autostart.pth": b"import x\n",
        f"{INFO}/METADATA": f"Name: gradext\nRequires-Dist: torch=={minor}.*\n\nAbout\n".encode(),
        f"{INFO}/RECORD": b"",
        **changes,
    }
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return folder / NAME


@pytest.fixture
def unstripped(monkeypatch):
    monkeypatch.setattr(join_wheels, "stripped", lambda library, kind: library)


def test_the_parts_keep_apart_and_everything_else_is_once(tmp_path, unstripped):
    wheels = [
        wheel(tmp_path / "b", "2.14.1+cu130", b"cuda", cuda="13.0"),
        wheel(tmp_path / "a", "2.13.0+cpu", b"older"),
        wheel(tmp_path / "c", "2.14.1+cpu", b"newer"),
    ]
    made = join_wheels.join(wheels, tmp_path / "out")
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    abi = build.ABI_SUFFIX
    assert {name: files[name] for name in files if name.endswith(".so")} == {
        f"gradext/_C.torch-2.13{abi}": b"older",
        f"gradext/_C.torch-2.14{abi}": b"newer",
        f"gradext/_C.torch-2.14-cu13{abi}": b"cuda",
    }
    of_cuda = json.loads(files[f"gradext/_C.torch-2.14-cu13{abi.removesuffix('.so')}.json"])
    assert of_cuda["cuda"] == "13.0"
    assert "gradext/_C.pyi" in files
    assert b"Requires-Dist: torch>=2.13,<2.15\n" in files[f"{INFO}/METADATA"]
    listed = {line.split(",")[0]: line for line in files[f"{INFO}/RECORD"].decode().splitlines()}
    assert listed.keys() == files.keys()
    for name, data in files.items():
        if name != f"{INFO}/RECORD":
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert listed[name] == f"{name},sha256={digest},{len(data)}"
    assert join_wheels.join(wheels[::-1], tmp_path / "again").read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("minors", "told"),
    [
        (["2.13"], "torch>=2.13,<2.14"),
        (["2.9", "2.10"], "torch>=2.9,<2.11"),
        (["2.11", "2.13", "2.15"], "torch>=2.11,<2.16,!=2.12.*,!=2.14.*"),
    ],
)
def test_pip_is_told_of_the_releases_that_are_in(minors, told):
    assert join_wheels.requirement(minors) == told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradext/__init__.py": b"other"}, "was built from other sources: gradext/__init__.py"),
        ({"gradext/more.py": b""}, "was built from other sources: gradext/more.py"),
        ({"version": "2.13.1"}, "two for one torch"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, unstripped, capsys, changes, said):
    one = wheel(tmp_path / "a", "2.13.0")
    changes = dict(changes)
    other = wheel(tmp_path / "b", changes.pop("version", "2.14.0"), **changes)
    assert join_wheels.main(["--out", str(tmp_path / "out"), str(one), str(other)]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wheels_of_two_pythons_are_refused(tmp_path, capsys):
    one = wheel(tmp_path / "a", "2.13.0")
    other = wheel(tmp_path / "b", "2.14.0").rename(tmp_path / NAME.replace("311", "312"))
    assert join_wheels.main(["--out", str(tmp_path), str(one), str(other)]) == 1
    assert "not for one Python and platform" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="strip is binutils'")
def test_a_stripped_part_is_smaller_and_loads(tmp_path):
    small = join_wheels.stripped(LIBRARY.read_bytes(), "so")
    assert len(small) < 0.8 * LIBRARY.stat().st_size
    package = installed(tmp_path, {f"torch-{HERE}": {}}, small)
    done = imported(package)
    assert done.returncode == 0, done.stderr


def installed(tmp_path: Path, parts: dict[str, dict], library: bytes | None = None) -> Path:
    """The package with the running torch's compiled part under each name, with a changed record."""
    site = tmp_path / "site"
    source = Path(gradext.__file__).parent
    ignore = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(source, site / "gradext", ignore=ignore)
    for name, changes in parts.items():
        path = site / "gradext" / f"_C.{name}{build.ABI_SUFFIX}"
        path.write_bytes(library or LIBRARY.read_bytes())
        build.record_path(path).write_text(json.dumps({**RECORD, **changes}))
    return site


def imported(site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import gradext; print(gradext._C.__file__)"],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_part_of_the_running_torch_is_loaded_without_a_word(tmp_path):
    parts = {
        "torch-2.11": {"torch": "2.11.0"},
        f"torch-{HERE}": {},
        "torch-2.99": {"torch": "2.99"},
    }
    done = imported(installed(tmp_path, parts))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Path(done.stdout.strip()).name == f"_C.torch-{HERE}{build.ABI_SUFFIX}"


def test_a_wheel_without_the_running_torch_says_so_in_one_line(tmp_path):
    parts = {"torch-2.9": {"torch": "2.9.1"}, "torch-2.10": {"torch": "2.10.0+cpu"}}
    done = imported(installed(tmp_path, parts))
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(
        "ImportError: gradext: this wheel has the compiled part for torch 2.9 and 2.10, "
        f"found torch {torch.__version__}; run: pip install 'torch==2.10.*'"
    )


def fake_torch(version: str, cuda: str | None, abi: bool = True) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        __version__=version,
        version=types.SimpleNamespace(cuda=cuda),
        compiled_with_cxx11_abi=lambda: abi,
    )


@pytest.mark.parametrize(
    ("cuda", "chosen"), [(None, "torch-2.14"), ("12.8", "torch-2.14"), ("13.2", "torch-2.14-cu13")]
)
def test_kernels_for_cuda_are_loaded_with_a_torch_that_has_that_cuda(
    tmp_path, monkeypatch, cuda, chosen
):
    parts = {
        "torch-2.14": {"torch": "2.14.1", "cuda": None},
        "torch-2.14-cu13": {"torch": "2.14.1+cu130", "cuda": "13.0"},
    }
    monkeypatch.setattr(build, "PACKAGE", installed(tmp_path, parts, b"none") / "gradext")
    fits, problems = build.choose(fake_torch("2.14.0", cuda))
    assert fits is not None
    assert fits.library.name == f"_C.{chosen}{build.ABI_SUFFIX}"
    assert problems == []


def test_the_other_string_of_libstdcxx_does_not_fit(tmp_path, monkeypatch):
    parts = {"torch-2.14": {"torch": "2.14.1", "cuda": None, "cxx11_abi": True}}
    monkeypatch.setattr(build, "PACKAGE", installed(tmp_path, parts, b"none") / "gradext")
    (part,) = build.of_several()
    assert build.problem(part, fake_torch("2.14.0", None)) is None
    said = build.problem(part, fake_torch("2.14.0", None, abi=False))
    assert "cxx11_abi=True, found cxx11_abi=False" in str(said)
