"""Where the compiled part is, what it was built for, and whether that fits what is here.

Uses the standard library only: setup.py and `gradext doctor` use this module when the package
itself cannot be imported. `loader` loads what is found here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent
ABI_SUFFIX = EXTENSION_SUFFIXES[0]  # ".cpython-311-x86_64-linux-gnu.so": names the Python built for
REINSTALL = "pip install --force-reinstall --no-deps ."  # in a checkout of gradext


class Build(NamedTuple):
    """One compiled `_C` on disk: its path and what setup.py recorded beside it.

    `cuda_why`: why it has CUDA kernels, or has none. `cxx11_abi`: whether that torch was compiled
    with libstdc++'s newer std::string.
    """

    library: Path
    torch: str | None
    python: str | None
    cuda: str | None
    sources: str | None
    cxx11_abi: bool | None = None
    cuda_why: str | None = None


def record_path(library: Path) -> Path:
    """The file beside a compiled `_C` that says what it was built for."""
    return library.with_name(library.name.removesuffix(".so").removesuffix(".pyd") + ".json")


def read_build(library: Path) -> Build:
    """What `library` was built for; fields are None where its record is missing or unreadable."""
    try:
        record = json.loads(record_path(library).read_text())
    except (OSError, ValueError):
        record = {}
    keys = ("torch", "python", "cuda", "sources", "cxx11_abi", "cuda_why")
    return Build(library, *(record.get(key) for key in keys))


def source_hash(csrc: Path) -> str:
    """A digest of the C++/CUDA sources: names and bytes of every file under `csrc`."""
    import hashlib  # OpenSSL's library comes with it; only a checkout needs it

    digest = hashlib.sha256()
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in {".cpp", ".h", ".cu"}):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def checkout() -> Path | None:
    """The repository root when this package is imported from a checkout, else None."""
    root = PACKAGE.parent
    return root if (root / "setup.py").is_file() and (root / "csrc").is_dir() else None


def candidates() -> Iterator[Path]:
    """The compiled parts in reach, nearest first: beside this package, then along sys.path.

    The second is for a checkout: after `pip install .` the package that Python imports there is
    the checkout's, while `_C` lies in site-packages.
    """
    seen = set()
    # Outside a checkout another copy's compiled part would belong to another copy's Python code.
    elsewhere = sys.path if checkout() else []
    for folder in (PACKAGE, *(Path(entry or ".") / "gradext" for entry in elsewhere)):
        library = folder / f"_C{ABI_SUFFIX}"
        if library.is_file() and (resolved := library.resolve()) not in seen:
            seen.add(resolved)
            yield resolved


def of_several() -> list[Build]:
    """The compiled parts of a wheel that has one for each of several releases of torch.

    build_tools/join_wheels.py puts them there. Those with CUDA kernels come first: they are for a
    torch with CUDA only, which those without would do for too.
    """
    builds = [read_build(path) for path in sorted(PACKAGE.glob(f"_C.torch-*{ABI_SUFFIX}"))]
    return sorted(builds, key=lambda build: build.cuda is None)


def problem(build: Build, torch: ModuleType) -> str | None:
    """One line that says why `build` cannot serve here and what to run; None if it can."""
    found = str(torch.__version__)
    found_cuda = getattr(getattr(torch, "version", None), "cuda", None)
    again = REINSTALL
    if checkout() is None:
        again += " in gradext's source folder"
    elif build.library.parent == PACKAGE:
        again = "pip install -e . (or delete that file and run: pip install .)"
    where = f"the compiled part {build.library}"
    if build.torch is None:
        return f"{where} has no build record ({record_path(build.library).name}); run: {again}"
    if _minor(build.torch) != _minor(found):
        return f"{where} was built for torch {build.torch}, found torch {found}; run: {again}"
    # Every torch since 2.7 has the newer one; what does not tell is not asked.
    found_abi = getattr(torch, "compiled_with_cxx11_abi", lambda: None)()
    if build.cxx11_abi is not None and found_abi is not None and build.cxx11_abi != found_abi:
        return (
            f"{where} was built for a torch with cxx11_abi={build.cxx11_abi}, "
            f"found cxx11_abi={found_abi}; run: {again}"
        )
    if build.cuda and _major(build.cuda) != _major(found_cuda or ""):
        kind = f"CUDA {found_cuda}" if found_cuda else "no CUDA"
        return (
            f"{where} was built for torch {build.torch} with CUDA {build.cuda}, "
            f"found torch {found} with {kind}; run: {again}"
        )
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if build.python != here:
        return f"{where} was built for Python {build.python}, found {here}; run: {again}"
    root = checkout()
    if root is not None and build.sources != source_hash(root / "csrc"):
        return f"{where} was built from other sources than {root / 'csrc'}; run: {again}"
    return None


def nothing_built() -> str:
    """The line for when no compiled part for this Python is in reach."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    others = sorted(path.name for path in PACKAGE.glob("_C.*") if path.suffix in {".so", ".pyd"})
    if others:
        return (
            f"the compiled part {PACKAGE / others[0]} was built for another Python, "
            f"found {here}; run: pip install ."
        )
    return f"no compiled part (_C{ABI_SUFFIX}) in {PACKAGE} or on sys.path; run: pip install ."


def none_of(builds: list[Build], torch: ModuleType) -> str:
    """The line for when a wheel has compiled parts and none for this torch."""
    minors = sorted({".".join(_minor(build.torch)) for build in builds if build.torch}, key=_order)
    listed = " and ".join([", ".join(minors[:-1]), minors[-1]] if len(minors) > 1 else minors)
    return (
        f"this wheel has the compiled part for torch {listed}, found torch {torch.__version__}; "
        f"run: pip install 'torch=={minors[-1] if minors else listed}.*', or to build gradext for "
        f"this torch: {REINSTALL} in gradext's source folder"
    )


def _order(minor: str) -> tuple[int, ...]:
    return tuple(int(number) for number in minor.split("."))


def choose(torch: ModuleType) -> tuple[Build | None, list[str]]:
    """The first compiled part that fits, and the problems of those passed over before it."""
    several = of_several()
    for build in several:
        if problem(build, torch) is None:
            return build, []
    problems = [none_of(several, torch)] if several else []
    for library in candidates():
        build = read_build(library)
        fault = problem(build, torch)
        if fault is None:
            return build, problems
        problems.append(fault)
    return None, problems or [nothing_built()]


def program_arguments() -> list[str] | None:
    """The arguments after `gradext` or `python -m gradext`; None in any other process."""
    words = list(sys.orig_argv)
    takes_value = False  # the word before is an interpreter option with its value in this word
    for index, word in enumerate(words[1:], 1):
        if takes_value:
            takes_value = False
        elif word == "-m":
            return words[index + 2 :] if words[index + 1 : index + 2] == ["gradext"] else None
        elif word == "-c":
            return None
        elif word in {"-W", "-X"}:
            takes_value = True
        elif not word.startswith("-"):
            return words[index + 1 :] if Path(word).stem == "gradext" else None
    return None


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])


def _major(version: str) -> str:
    return version.split(".")[0]
