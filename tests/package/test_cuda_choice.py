"""When the CUDA kernels are built: torch's CUDA, the toolkit, and the two variables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_tools"))
import extension


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A toolkit folder whose nvcc says it is 13.0."""
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    monkeypatch.delenv("FORCE_ONLY_CPU", raising=False)
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.48'\n")
    nvcc.chmod(0o755)
    return tmp_path


def test_built_when_torch_and_toolkit_agree(toolkit):
    assert extension.decide_cuda("13.2", toolkit).build


@pytest.mark.parametrize(
    ("torch_cuda", "with_toolkit", "why"),
    [
        (None, True, "without CUDA"),
        ("13.0", False, "no CUDA toolkit"),
        ("12.8", True, "toolkit is 13.0"),
    ],
)
def test_left_out_with_the_reason_and_an_error_when_forced(
    toolkit, monkeypatch, torch_cuda, with_toolkit, why
):
    home = toolkit if with_toolkit else None
    choice = extension.decide_cuda(torch_cuda, home)
    assert not choice.build
    assert why in choice.why
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but .*" + why):
        extension.decide_cuda(torch_cuda, home)


def test_force_only_cpu(toolkit, monkeypatch):
    monkeypatch.setenv("FORCE_ONLY_CPU", "1")
    assert not extension.decide_cuda("13.0", toolkit).build
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="contradict"):
        extension.decide_cuda("13.0", toolkit)


def test_the_toolkit_is_found_behind_a_wrapper(tmp_path, monkeypatch):
    real, wrappers = tmp_path / "cuda-13.0", tmp_path / "bin"
    (real / "bin").mkdir(parents=True)
    wrappers.mkdir()
    wrapper = wrappers / "nvcc"
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={real}/bin/..' >&2\n")
    wrapper.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(wrappers), prepend=":")
    assert extension.toolkit_home() == real
    monkeypatch.setenv("CUDA_HOME", "/some/where")
    assert extension.toolkit_home() == Path("/some/where")


def test_architectures_follow_the_toolkit():
    assert extension.architectures("13.0") == "7.5;8.0;8.6;9.0;10.0+PTX"
    assert extension.architectures("12.6") == "7.5;8.0;8.6;9.0+PTX"


def test_sources_are_all_of_csrc():
    root = extension.ROOT / "csrc"
    cpu, cuda = extension.sources(False), extension.sources(True)
    names = [p for p in cpu if p.startswith("csrc/")]
    for unit in (extension.ROOT / p for p in cpu if p.startswith("build/")):
        names += [f"csrc/{name}" for name in re.findall(r'#include "(.*)"', unit.read_text())]
    assert sorted(names) == sorted(f"csrc/{p.relative_to(root)}" for p in root.rglob("*.cpp"))
    assert {Path(p).name for p in set(cuda) - set(cpu)} == {p.name for p in root.rglob("*.cu")}
    assert not any(Path(p).is_absolute() for p in cuda)


def test_a_new_file_is_in_the_unit_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(extension, "ROOT", tmp_path)
    new = [
        *("guard/new.cpp", "guard/lines/deep/new.cpp", "new.cpp", "cellar/new.cpp"),
        *(
            "recorder/kernels/new.cpp",
            "recorder/kernels/fast_kernels.cpp",
            "fingerprint/blocks.cpp",
        ),
        *("cellar/shelf/new.cpp", "guard/new.h"),
    ]
    for name in new:
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).touch()
    assert extension.units() == {
        "recorder": ["recorder/kernels/new.cpp"],
        "all_others": [
            *("guard/lines/deep/new.cpp", "guard/new.cpp", "new.cpp"),
            "recorder/kernels/fast_kernels.cpp",
        ],
        "fingerprint_blocks": ["fingerprint/blocks.cpp"],
        "cellar": ["cellar/new.cpp", "cellar/shelf/new.cpp"],
    }
    assert extension.sources(False)[0] == "build/units/recorder.cpp"
    assert (tmp_path / "build/units/cellar.cpp").read_text() == (
        '#include "cellar/new.cpp"\n#include "cellar/shelf/new.cpp"\n'
    )
    assert (tmp_path / "build/units/fingerprint_blocks.cpp").read_text() == (
        '#pragma GCC optimize("O3")\n#include "fingerprint/blocks.cpp"\n'
    )
