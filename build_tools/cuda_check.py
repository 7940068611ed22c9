"""Compile and link gradext._C with its CUDA kernels on a machine that has a toolkit but no GPU.

    python build_tools/cuda_check.py [--torch FOLDER]

Takes a CUDA build of torch apart (FOLDER holds an unpacked wheel; without it, torch 2.11.0 is
fetched for this Python) and builds against its headers and libraries, without importing it: its
CUDA libraries need not be installed. Then checks what was linked: every symbol that gradext wants
from torch is there, and machine code for each architecture is inside. It cannot show that a kernel
runs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import extension

TORCH = "2.11.0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", type=Path, help="folder that holds torch/ of a CUDA build")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        library = compiled(args.torch, Path(sysconfig.get_path("include")), Path(scratch))
    return 1 if library is None else 0


def compiled(folder: Path | None, python_headers: Path, scratch: Path) -> Path | None:
    """The linked library, None where something is missing; prints what was found.

    `folder` holds torch/ of a CUDA build, which is fetched without it. `python_headers` are those
    of the Python that the library is for. Raises CalledProcessError, the compiler's output printed.
    """
    toolkit = extension.toolkit_home()
    version = extension.toolkit_version(toolkit) if toolkit else None
    if toolkit is None or version is None:
        print("cuda_check: no CUDA toolkit (CUDA_HOME, or nvcc on PATH)", file=sys.stderr)
        return None
    architectures = wanted(version)
    folder = folder or fetch(scratch)
    library = build(folder / "torch", toolkit, architectures, python_headers, scratch)
    faults = missing_symbols(library, folder / "torch")
    for fault in faults:
        print(f"cuda_check: {fault}", file=sys.stderr)
    if faults:
        return None
    size = library.stat().st_size
    print(f"cuda_check: compiled for {', '.join(architectures)} and linked, {size:,} bytes")
    return library


def fetch(scratch: Path) -> Path:
    """Headers and libraries of the CUDA build of torch, unpacked."""
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch)]
    subprocess.run([*download, f"torch=={TORCH}"], check=True)
    (wheel,) = scratch.glob("torch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = ("torch/include/", "torch/lib/")
        archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(inside)])
    wheel.unlink()
    return scratch


def wanted(version: str) -> list[str]:
    """The architectures ("sm_75") that a wheel built with this toolkit is for."""
    listed = extension.architectures(version).split(";")
    return [f"sm_{entry.removesuffix('+PTX').replace('.', '')}" for entry in listed]


def build(
    torch: Path, toolkit: Path, architectures: list[str], python_headers: Path, scratch: Path
) -> Path:
    """The linked library. Raises CalledProcessError, the compiler's output printed."""
    nvcc = str(toolkit / "bin" / "nvcc")
    includes = [
        f"-I{extension.ROOT / 'csrc'}",
        f"-I{torch / 'include'}",
        f"-I{torch / 'include/torch/csrc/api/include'}",
        f"-I{python_headers}",
        f"-I{toolkit / 'include'}",
    ]
    flags = extension.compile_flags(torch, cuda=True)
    common = [
        *includes,
        "-std=c++20",
        "-DTORCH_EXTENSION_NAME=_C",
        "-DTORCH_API_INCLUDE_EXTENSION_H",
    ]
    gencode = [f"-gencode=arch={sm.replace('sm', 'compute')},code={sm}" for sm in architectures]
    commands, objects = [], []
    for source in extension.sources(cuda=True):
        target = scratch / (source.replace("/", "_") + ".o")
        objects.append(str(target))
        tail = ["-c", str(extension.ROOT / source), "-o", str(target)]
        if source.endswith(".cu"):
            device = [*flags["nvcc"], "-Xcompiler", "-fPIC", *gencode]
            commands.append([nvcc, *common, *device, *tail])
        else:
            # Unoptimised: what is checked is that it compiles and links.
            commands.append(["c++", *common, *flags["cxx"], "-O0", "-fPIC", *tail])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    library = scratch / "_C.so"
    names = ("c10", "torch_cpu", "torch", "torch_python", "c10_cuda", "torch_cuda")
    link = ["c++", "-shared", *objects, f"-L{torch / 'lib'}", *(f"-l{name}" for name in names)]
    where = [
        f"-L{toolkit / 'lib64'}",
        "-lcudart",
        "-Wl,--allow-shlib-undefined",
        "-o",
        str(library),
    ]
    subprocess.run([*link, *where], check=True)
    return library


def symbols(library: Path, kind: str) -> set[str]:
    done = subprocess.run(
        ["nm", "-D", f"--{kind}", str(library)], check=True, capture_output=True, text=True
    )
    # A weak name ("w") may stay undefined: the linker asks for none.
    entries = [line.split() for line in done.stdout.splitlines()]
    weak = {"w", "v"} if kind == "undefined-only" else set()
    return {words[-1].split("@")[0] for words in entries if words[-2] not in weak}


def missing_symbols(library: Path, torch: Path) -> list[str]:
    """Names of torch's that are nowhere: a shared library links with anything missing."""
    wants = symbols(library, "undefined-only")
    has: set[str] = set()
    for found in sorted((torch / "lib").glob("lib*.so*")):
        has |= symbols(found, "defined-only")
    ours = re.compile(r"_Z\w*?(3c10|2at|5torch|7gradext)")
    return [f"undefined symbol {name}" for name in sorted(wants - has) if ours.match(name)]


if __name__ == "__main__":
    sys.exit(main())
