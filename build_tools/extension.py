"""What gradext._C is made of: sources, flags, and whether CUDA is in.

Shared by setup.py and cuda_check. Owns the decisions; runs no compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


# What is compiled as one, by folders of csrc/ ("." is csrc/ without its folders) or single files;
# the longest path that fits a file counts. Each unit reads torch's headers anew and compiles the
# same functions of theirs and of pybind11's, half a minute of a compiler's time: so there are as
# few as keep two compilers busy, about alike in length. A folder that is not here is a unit of its
# own. What shares a unit must not use one name for two things.
UNITS = {
    "recorder": ["call_counts", "findings", "graph", "journal", "recorder", "stacks"],
    "all_others": [
        *(".", "base", "benchmarks", "example_ops", "fingerprint", "guard", "state"),
        "recorder/kernels/fast_kernels.cpp",
    ],
    # It compiles one header several times, with other target options each.
    "fingerprint_blocks": ["fingerprint/blocks.cpp"],
}
# Loops over much memory, which -O3 unrolls. All else is calls and branches, which -O2 compiles in
# four fifths of the time.
LOOPS = {"fingerprint_blocks"}


def units() -> dict[str, list[str]]:
    """Which files of csrc/ each unit is made of, by their paths within csrc/."""
    unit_of = {place: unit for unit, places in UNITS.items() for place in places}
    found: dict[str, list[str]] = {unit: [] for unit in UNITS}
    for path in sorted((ROOT / "csrc").rglob("*.cpp")):
        name = path.relative_to(ROOT / "csrc")
        folder = name.parts[0] if len(name.parts) > 1 else "."
        places = [name.as_posix(), *(parent.as_posix() for parent in name.parents[:-1]), folder]
        unit = next((unit_of[place] for place in places if place in unit_of), folder)
        found.setdefault(unit, []).append(name.as_posix())
    return {unit: names for unit, names in found.items() if names}


def sources(cuda: bool) -> list[str]:
    """What is given to the compilers; writes the units.

    Paths are relative to the root, so that nothing built from them can name the folder.
    """
    folder = ROOT / "build" / "units"
    folder.mkdir(parents=True, exist_ok=True)
    given = []
    for unit, names in units().items():
        text = '#pragma GCC optimize("O3")\n' if unit in LOOPS and not sanitizers() else ""
        text += "".join(f'#include "{name}"\n' for name in names)
        path = folder / f"{unit}.cpp"
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
        given.append(path.relative_to(ROOT).as_posix())
    device = sorted((ROOT / "csrc").rglob("*.cu")) if cuda else []
    return given + [path.relative_to(ROOT).as_posix() for path in device]


def compile_flags(torch_folder: Path, cuda: bool) -> dict[str, list[str]]:
    # NDEBUG: torch's headers carry debug asserts that a release libtorch does not fulfil.
    # The prefix maps keep the build's folders out of __FILE__ and so out of the wheel.
    maps = [f"-ffile-prefix-map={ROOT}=.", f"-ffile-prefix-map={torch_folder}=torch"]
    # Torch's headers then declare the ops that they use, one header each, instead of all ops: a
    # quarter of what is read for a unit.
    defines = ["-DNDEBUG", "-DAT_PER_OPERATOR_HEADERS"]
    defines += ["-DGRADEXT_WITH_CUDA"] if cuda else []
    host = [*maps, "-fvisibility=hidden"]
    device = ["-Xcompiler", ",".join(host)]
    if os.environ.get("GRADEXT_OLD_GLIBC") == "1":  # for wheels that other machines install
        # Not for nvcc: it passes its options on to the compilation of what is preprocessed already,
        # where the header would be included a second time.
        host = [*host, "-include", str(ROOT / "build_tools" / "old_glibc.h")]
    checks = sanitizers()
    if checks:
        # Frame pointers and lines for the reports; -O1 keeps the stacks in them as written.
        checked = [f"-fsanitize={checks}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
        locks = "-DGRADEXT_CHECK_LOCKS"  # the order of csrc/base/locks.h
        flags = ["-O1", "-g", *defines, locks, *host, *checked, "-Wall", "-Wno-unknown-pragmas"]
        return {"cxx": flags, "nvcc": []}
    # at::parallel_for is a plain loop without it. Nothing is linked for it: the runtime is the one
    # that torch has loaded, so its thread pool is used and not a second one.
    threads = ["-fopenmp"] if sys.platform == "linux" else []
    return {
        "cxx": ["-O2", "-g0", *defines, *host, *threads, "-Wall", "-Wno-unknown-pragmas"],
        "nvcc": ["-O3", *defines, *device],
    }


def sanitizers() -> str:
    """What GRADEXT_SANITIZE asks for, as -fsanitize= takes it ("address,undefined", "thread").

    Such a build is for the tests of `nox -s asan` and `nox -s tsan`: the Python that loads it must
    be started with the sanitizer's runtime preloaded. Raises SystemExit for another word.
    """
    asked = os.environ.get("GRADEXT_SANITIZE", "")
    if asked not in {"", "address,undefined", "thread"}:
        raise SystemExit(
            f"gradext: GRADEXT_SANITIZE={asked!r}: expected 'address,undefined' or 'thread'."
        )
    return asked


@dataclass(frozen=True)
class Cuda:
    """Whether to build the CUDA kernels, and why."""

    build: bool
    why: str
    toolkit: str = ""


def decide_cuda(torch_cuda: str | None, home: Path | None) -> Cuda:
    """CUDA is built when torch is a CUDA build and a toolkit of the same major version is found.

    FORCE_CUDA=1 makes anything missing an error, FORCE_ONLY_CPU=1 leaves CUDA out. No GPU is asked
    for: the machine that builds often has none. Raises SystemExit (one line) where FORCE_CUDA
    cannot be done.
    """
    force = os.environ.get("FORCE_CUDA") == "1"
    if os.environ.get("FORCE_ONLY_CPU") == "1":
        if force:
            raise SystemExit("gradext: FORCE_CUDA=1 and FORCE_ONLY_CPU=1 contradict each other.")
        return Cuda(False, "FORCE_ONLY_CPU=1")
    if torch_cuda is None:
        missing = "this torch is a build without CUDA"
    elif home is None or (toolkit := toolkit_version(home)) is None:
        missing = "no CUDA toolkit was found (CUDA_HOME, or nvcc on PATH)"
    elif toolkit.split(".")[0] != torch_cuda.split(".")[0]:
        missing = f"the CUDA toolkit is {toolkit}, but this torch was built with CUDA {torch_cuda}"
    else:
        return Cuda(True, f"torch was built with CUDA {torch_cuda}, toolkit {toolkit}", toolkit)
    if force:
        raise SystemExit(f"gradext: FORCE_CUDA=1, but {missing}.")
    return Cuda(False, missing)


def architectures(toolkit: str) -> str:
    """The TORCH_CUDA_ARCH_LIST for a toolkit: sm_75 to the newest it knows, and PTX beyond."""
    major, minor = (int(number) for number in toolkit.split("."))
    return "7.5;8.0;8.6;9.0" + (";10.0+PTX" if (major, minor) >= (12, 8) else "+PTX")


def toolkit_home() -> Path | None:
    """The CUDA toolkit's folder: CUDA_HOME or CUDA_PATH, else what the nvcc on PATH says of itself.

    nvcc may be a wrapper or a link far from its toolkit, so its own location proves nothing.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        fixed = Path("/usr/local/cuda")
        return fixed if (fixed / "bin" / "nvcc").exists() else None
    top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "-c", "-x", "cu", "none.cu"), re.M)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parent.parent


def toolkit_version(home: Path) -> str | None:
    """The version that the toolkit's nvcc prints, "13.0"; None where there is no working nvcc."""
    found = re.search(r"release (\d+\.\d+)", _output(str(home / "bin" / "nvcc"), "--version"))
    return found[1] if found else None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout + done.stderr
