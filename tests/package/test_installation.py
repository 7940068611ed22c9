"""Finding the compiled part, from a checkout and from a wheel, and what is said if it misfits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradext
from gradext.native import build

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(gradext._C.__file__)
RECORD = json.loads(build.record_path(LIBRARY).read_text())


def python(
    *arguments: str, cwd: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def package(tmp_path):
    """A copy of the package with its compiled part, as a wheel lays it out; change its record."""
    copy = tmp_path / "site" / "gradext"
    shutil.copytree(ROOT / "gradext", copy, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    shutil.copy(ROOT / "gradext" / "_C.pyi", copy)

    def with_record(folder: Path = copy, **changes: object) -> Path:
        shutil.copy(LIBRARY, folder / LIBRARY.name)
        record = build.record_path(folder / LIBRARY.name)
        record.write_text(json.dumps({**RECORD, **changes}))
        return folder.parent

    return with_record


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_the_copy_works_when_nothing_is_changed(package, tmp_path):
    done = python("-c", "import gradext; print(gradext.__file__)", cwd=tmp_path, path=package())
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.9.1"}, f"was built for torch 2.9.1, found torch {torch.__version__}"),
        ({"cuda": "99.0"}, "with CUDA 99.0, found torch"),
        ({"python": "3.9"}, "was built for Python 3.9, found 3."),
        ({"torch": None}, "has no build record"),
    ],
)
def test_a_compiled_part_that_does_not_fit_is_one_line(package, tmp_path, change, said):
    site = package(**change)
    done = python("-c", "import gradext", cwd=tmp_path, path=site)
    assert done.returncode == 1
    line = last_line(done)
    assert line.startswith("ImportError: gradext: the compiled part ")
    assert said in line
    assert "; run: pip install" in line
    assert "undefined symbol" not in done.stderr


def test_the_program_ends_in_one_line_without_a_traceback(package, tmp_path):
    done = python("-m", "gradext", "lesson", cwd=tmp_path, path=package(torch="2.9.1"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "was built for torch 2.9.1" in done.stderr


def test_doctor_runs_when_the_import_does_not(package, tmp_path):
    site = package(torch="2.9.1")
    done = python("-W", "ignore", "-m", "gradext", "doctor", cwd=tmp_path, path=site)
    assert done.returncode == 1
    assert done.stderr == ""
    assert f"torch       {torch.__version__}" in done.stdout
    assert "verdict     gradext: the compiled part" in done.stdout


def test_a_patch_release_of_torch_fits(monkeypatch):
    built = build.Build(LIBRARY, "2.13.7+cpu", RECORD["python"], None, RECORD["sources"])

    class Torch:
        __version__ = "2.13.0+cu130"

        class version:
            cuda = "13.0"

    assert build.problem(built, Torch) is None


def test_a_cuda_build_under_a_cpu_torch_is_named():
    built = build.Build(LIBRARY, "2.13.0+cu130", RECORD["python"], "13.0", RECORD["sources"])

    class Torch:
        __version__ = "2.13.0+cpu"

        class version:
            cuda = None

    assert "with CUDA 13.0, found torch 2.13.0+cpu with no CUDA" in str(build.problem(built, Torch))


@pytest.fixture
def checkout(tmp_path, package):
    """A checkout without a compiled part, and a site folder with one."""
    root = tmp_path / "checkout"
    (root / "gradext").parent.mkdir()
    shutil.copytree(
        ROOT / "gradext", root / "gradext", ignore=shutil.ignore_patterns("_C.c*", "__pycache__")
    )
    shutil.copytree(ROOT / "csrc", root / "csrc")
    shutil.copy(ROOT / "setup.py", root)
    return root


def test_import_from_a_checkout_finds_the_installed_part(package, checkout):
    done = python(
        "-c",
        "import gradext; print(gradext.__file__); print(gradext._C.__file__)",
        cwd=checkout,
        path=package(),
    )
    assert done.returncode == 0, done.stderr
    source, library = done.stdout.split()
    assert Path(source).is_relative_to(checkout)
    assert not Path(library).is_relative_to(checkout)


def test_a_leftover_in_the_checkout_is_passed_over_with_a_word(package, checkout):
    site = package()
    package(checkout / "gradext", torch="2.9.1")
    done = python("-c", "import gradext; print(gradext._C.__file__)", cwd=checkout, path=site)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(site)
    assert "passed over a leftover" in done.stderr
    assert "was built for torch 2.9.1" in done.stderr


def test_a_leftover_alone_is_one_line(checkout, package):
    package(checkout / "gradext", torch="2.9.1")
    # -S -I would lose torch too: hide the real gradext by an empty folder that comes first instead.
    done = python("-c", HIDE_INSTALLED + "import gradext", cwd=checkout)
    assert "was built for torch 2.9.1" in last_line(done)
    assert "pip install -e . (or delete that file" in last_line(done)


def test_sources_changed_since_the_build_are_noticed(checkout, package):
    package(checkout / "gradext")
    (checkout / "csrc" / "op_schemas.cpp").open("a").write("// changed\n")
    done = python("-c", HIDE_INSTALLED + "import gradext", cwd=checkout)
    assert "was built from other sources than" in last_line(done)


def test_a_leftover_of_another_python_is_named(checkout):
    (checkout / "gradext" / "_C.cpython-39-x86_64-linux-gnu.so").write_bytes(b"")
    done = python("-c", HIDE_INSTALLED + "import gradext", cwd=checkout)
    assert "was built for another Python" in last_line(done)


def test_nothing_built_at_all_says_what_to_run(checkout):
    done = python("-c", HIDE_INSTALLED + "import gradext", cwd=checkout)
    assert "no compiled part" in last_line(done)
    assert last_line(done).endswith("run: pip install .")


@pytest.mark.parametrize(
    "words", [("bench", "state", "--quick"), ("fix", "x.py"), ("run", "x.py"), ("lesson", "1.1")]
)
def test_a_command_without_the_compiled_part_is_one_line(checkout, words):
    (checkout / "x.py").write_text("import torch\n")
    (checkout / "benchmarks").mkdir()
    for name in ("modes.py", "common.py", "state.py"):
        shutil.copy(ROOT / "benchmarks" / name, checkout / "benchmarks")
    start = f"""
import sys
sys.argv = ["gradext", *{words!r}]
sys.orig_argv = ["python", *sys.argv]
from gradext.commands import main
sys.exit(main())
"""
    done = python("-c", HIDE_INSTALLED + start, cwd=checkout)
    assert done.returncode != 0
    assert "no compiled part" in last_line(done)
    assert "Traceback" not in done.stderr


# Leaves torch's folder on sys.path but no gradext in it: each candidate is asked is_file().
HIDE_INSTALLED = """
import pathlib
real = pathlib.Path.is_file
here = pathlib.Path.cwd()
def is_file(self):
    return real(self) and (self.name[:3] != "_C." or self.resolve().is_relative_to(here))
pathlib.Path.is_file = is_file
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python", "-m", "gradext", "doctor"], ["doctor"]),
        (["python", "-W", "error", "-X", "dev", "-m", "gradext"], []),
        (["python", "/somewhere/bin/gradext", "lesson", "3"], ["lesson", "3"]),
        (["python", "-m", "pytest", "gradext"], None),
        (["python", "train.py", "gradext"], None),
        (["python"], None),
    ],
)
def test_which_processes_are_the_program(monkeypatch, words, expected):
    monkeypatch.setattr(sys, "orig_argv", words)
    assert build.program_arguments() == expected


def test_import_loads_nothing_heavy(tmp_path):
    heavy = [
        "rich",
        "matplotlib",
        "torch._dynamo",
        "torch._subclasses.fake_tensor",
        "transformers",
        "nbformat",
    ]
    code = (
        "import torch, sys; before = set(sys.modules); import gradext\n"
        f"print([m for m in {heavy} if m in sys.modules and m not in before])\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('gradext')))"
    )
    done = python("-c", code, cwd=tmp_path)
    loaded, ours = done.stdout.splitlines()
    assert loaded == "[]"
    assert "gradext.lesson" not in ours
    assert "gradext.reporters" not in ours


def test_import_inside_modes_leaves_them_alone_and_works(tmp_path):
    code = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
class Spy(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        print("seen", func)
        return func(*args, **(kwargs or {}))
before = torch.get_rng_state()
with torch.inference_mode(), Spy():
    import gradext
assert torch.equal(torch.get_rng_state(), before)
print("version", gradext.ops.version(torch.ones(2)))
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "version 0\n"


def test_the_library_names_no_folder_of_the_build():
    data = LIBRARY.read_bytes()
    assert str(ROOT).encode() not in data
    assert str(Path(torch.__file__).parent).encode() not in data
    assert b"pip-build-env" not in data


def test_doctor_reports_the_facts():
    from gradext.commands import doctor

    report = doctor.examine()
    assert report["usable"]
    assert report["torch"]["version"] == torch.__version__
    assert report["compiled"]["torch"] == torch.__version__
    assert [claim for claim, _ in report["self_tests"]]
    assert all(holds for _, holds in report["self_tests"])
    assert bool(report["compiled"]["cuda"]) == gradext._C.WITH_CUDA
    lines = doctor.as_lines(report)
    assert lines[-1] == "verdict     usable"


def test_doctor_json(tmp_path):
    done = python("-m", "gradext", "doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["usable"] is True


@pytest.mark.parametrize("words", [["nonsense"], ["lesson", "--nonsense"]])
def test_a_command_line_that_makes_no_sense_exits_2(tmp_path, words):
    done = python("-m", "gradext", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_program_without_arguments_lists_its_commands(tmp_path):
    done = python("-m", "gradext", cwd=tmp_path)
    assert done.returncode == 0
    assert "lesson" in done.stdout
    assert "doctor" in done.stdout
    version = python("-m", "gradext", "--version", cwd=tmp_path)
    assert version.stdout == f"gradext {gradext.__version__}\n"


def test_readme_figures_come_from_the_committed_results():
    done = python("build_tools/docs/generate.py", "--check", cwd=ROOT)
    assert done.returncode == 0, "build_tools/docs/generate.py has to be run again"


@pytest.mark.parametrize("words", [["doctor"], ["lesson", "--list"], ["explain", "GX101"]])
def test_who_reads_may_stop_reading(words):
    command = [sys.executable, "-m", "gradext", *words]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert done.returncode in (1, 141)  # rich ends with 1 by itself
    assert done.stderr == ""
