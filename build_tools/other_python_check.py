"""Compile and link gradext._C for a Python that this machine has beside the running one.

    python build_tools/other_python_check.py [--python PATH] [--torch FOLDER] [--cuda]

A shared library links with names missing, and then fails to load: 3.13 has stopped exporting a
function that 3.12 had. So each name that gradext wants of CPython is looked for among those that
the other Python's program or library exports. torch's headers are those of FOLDER (without it, of
the torch that this Python imports): they are the same for every Python. It runs nothing of what it
compiled. Where there is no other Python, it says so and is content.

With --cuda, what is compiled has the CUDA kernels in it, and cuda_check's questions are asked of it
as well: one build for both. Where there is no other Python, they are asked of the running one's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cuda_check
import extension
import torch_finder

# What a Python is asked of itself.
QUESTION = """
import json, os, sys, sysconfig
get = sysconfig.get_config_var
print(json.dumps({
    "version": ".".join(map(str, sys.version_info[:3])),
    "include": sysconfig.get_path("include"),
    "executable": os.path.realpath(sys.executable),
    "library": os.path.join(get("LIBDIR") or "", get("LDLIBRARY") or ""),
    "free_threaded": bool(get("Py_GIL_DISABLED")),
}))
"""


@dataclass(frozen=True)
class Python:
    """A Python to compile for: its headers, and the files that export its names."""

    version: str
    include: Path
    exporters: tuple[Path, ...]

    @property
    def minor(self) -> str:
        return torch_finder.versions.minor(self.version)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="the other Python's program")
    parser.add_argument("--torch", type=Path, help="folder that holds torch/")
    parser.add_argument("--cuda", action="store_true", help="with the kernels; see cuda_check")
    args = parser.parse_args()
    other = look_at(args.python) if args.python else newest_other()
    if other is None and args.python:
        print(f"other_python_check: {args.python} is no Python with headers; nothing was compiled")
        return 1
    if other is None:
        print(f"other_python_check: {NONE}" + ("" if args.cuda else "; nothing was compiled"))
        if not args.cuda:
            return 0
    with tempfile.TemporaryDirectory() as scratch:
        library = compiled(args, other, Path(scratch))
        if library is None:
            return 1
        if other is None:
            return 0
        missing = missing_names(library, other.exporters)
    for name in missing:
        print(
            f"other_python_check: Python {other.version} exports no {name}: `import gradext` would "
            "fail there",
            file=sys.stderr,
        )
    if not missing:
        print(f"other_python_check: compiled for Python {other.version}; it exports all names used")
    return 1 if missing else 0


def compiled(args: argparse.Namespace, other: Python | None, scratch: Path) -> Path | None:
    """The linked library; None, the reason printed, where there is no fit torch or CUDA's part."""
    if args.cuda:
        headers = other.include if other else Path(sysconfig.get_path("include"))
        return cuda_check.compiled(args.torch, headers, scratch)
    folder = args.torch or torch_finder.find().folder
    if folder is None or other is None:
        print("other_python_check: no torch whose headers could be used", file=sys.stderr)
        return None
    return build(folder / "torch", other, scratch)


NONE = "no other supported Python with headers on this machine"


def newest_other() -> Python | None:
    """The newest Python beside the running one, of a version that gradext knows; None without."""
    here = torch_finder.versions.minor(sys.version.split()[0])
    known = torch_finder.versions.COMPILED_FOR
    found = [other for path in programs() if (other := look_at(path)) is not None]
    others = [other for other in found if other.minor != here and other.minor in known]
    return max(others, key=lambda other: torch_finder.versions.numbers(other.version), default=None)


def programs() -> list[Path]:
    """Where other Pythons may be: on PATH, and where the running one's neighbours are installed."""
    named = [shutil.which(f"python{version}") for version in torch_finder.versions.COMPILED_FOR]
    beside = sorted(Path(sys.base_prefix).resolve().parent.glob("*/bin/python3"))
    return [*(Path(name) for name in named if name), *beside]


def look_at(program: Path) -> Python | None:
    """What `program` says of itself; None if it is no Python with headers and a GIL."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [str(program), "-I", "-c", QUESTION],
            capture_output=True,
            text=True,
            timeout=30,
            env=env,
        )
        facts = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    include = Path(facts["include"])
    if facts["free_threaded"] or not (include / "Python.h").is_file():
        return None
    files = (Path(facts["executable"]), Path(facts["library"]))
    exporters = tuple(path for path in files if path.is_file() and path.suffix != ".a")
    return Python(facts["version"], include, exporters)


def build(torch: Path, other: Python, scratch: Path) -> Path:
    """The linked library. Raises CalledProcessError, the compiler's output printed."""
    common = [
        f"-I{extension.ROOT / 'csrc'}",
        f"-I{torch / 'include'}",
        f"-I{torch / 'include/torch/csrc/api/include'}",
        f"-I{other.include}",
        "-std=c++20",
        "-DTORCH_EXTENSION_NAME=_C",
        "-DTORCH_API_INCLUDE_EXTENSION_H",
        *extension.compile_flags(torch, cuda=False)["cxx"],
        # Unoptimised: what is checked is that it compiles and which names it wants.
        "-O0",
        "-fPIC",
    ]
    compiler = os.environ.get("CXX") or "c++"
    commands, objects = [], []
    for source in extension.sources(cuda=False):
        target = scratch / (source.replace("/", "_") + ".o")
        objects.append(str(target))
        commands.append([compiler, *common, "-c", str(extension.ROOT / source), "-o", str(target)])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    library = scratch / "_C.so"
    names = [f"-l{name}" for name in ("c10", "torch_cpu", "torch", "torch_python")]
    link = [compiler, "-shared", *objects, f"-L{torch / 'lib'}", *names]
    subprocess.run([*link, "-Wl,--allow-shlib-undefined", "-o", str(library)], check=True)
    return library


def missing_names(library: Path, exporters: tuple[Path, ...]) -> list[str]:
    """The names of CPython's that `library` cannot do without and none of `exporters` exports."""
    wants = cuda_check.symbols(library, "undefined-only")
    has: set[str] = set()
    for exporter in exporters:
        has |= cuda_check.symbols(exporter, "defined-only")
    return sorted(name for name in wants - has if re.match(r"_?Py[A-Z_]", name))


if __name__ == "__main__":
    sys.exit(main())
