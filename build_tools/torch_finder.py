"""Which torch is this build for? Owns the search; imports neither torch nor setuptools.

An isolated build (pip's default) runs in an environment of its own, so the torch it would import is
not the one that gradext will run with. pip keeps the interpreter's prefix, though, so the folders
of the environment that asked for the install can still be listed, and their torch be found.
"""

from __future__ import annotations

import importlib.util
import os
import re
import site
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType


def load_alone(name: str) -> ModuleType:
    """A module of gradext that needs the standard library only, without the package: that imports
    torch. `name`: its path in the package, without the ending.
    """
    path = Path(__file__).resolve().parent.parent / "gradext" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"gradext_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for what their annotations name
    spec.loader.exec_module(module)
    return module


versions = load_alone("native/versions")
TESTED = "2.13.0"  # what CI tests, and what an environment without torch gets
OLDEST: tuple[int, int] = versions.OLDEST_TORCH
NEWEST: tuple[int, int] = max(map(versions.numbers, versions.TORCHES))
VARIABLE = "GRADEXT_TORCH"


class Refused(SystemExit):
    """One line, no traceback: gradext cannot be built for this Python."""


class CannotTell(SystemExit):
    """One line, no traceback: the build does not know which torch to build for."""

    def __init__(self, text: str) -> None:
        super().__init__(f"gradext: {text}")


@dataclass(frozen=True)
class Target:
    """The torch to build for: its version, and the folder that holds it (None: not yet there).

    The version of a torch that is not there may be a minor one, "2.13": any release of it will do.
    """

    version: str
    folder: Path | None

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @property
    def requirement(self) -> str:
        """What the built wheel must require: compiled code fits one minor release of torch."""
        return f"torch=={self.minor}.*"

    @property
    def to_fetch(self) -> str:
        """What the build asks for where that torch is not there."""
        return self.requirement if self.version == self.minor else f"torch=={self.version}"


def find() -> Target:
    """The torch this build is for.

    In order: the environment variable GRADEXT_TORCH (a folder that holds ``torch/``, or a version,
    "2.13.0" or "2.13", which is fetched where it is not there), the torch that this process can
    import, the torch of the environment that pip installs into. Without any, torch TESTED, which
    pip then fetches. Raises CannotTell where the target environment cannot be seen (front ends that
    build in an environment with a prefix of its own) and for a torch outside the supported range,
    Refused in a free-threaded Python.
    """
    if (refusal := versions.free_threaded()) is not None:
        raise Refused(refusal)
    wanted = os.environ.get(VARIABLE, "").strip()
    if wanted:
        return _checked(_from_variable(wanted))
    target = _installed_in([entry for entry in sys.path if entry]) or _installed_in(
        target_folders()
    )
    if target is not None:
        return _checked(target)
    if not _isolated_by_pip():
        raise CannotTell(
            f"cannot tell which torch to build for: there is none in {sys.prefix}, and this build "
            f"cannot see the environment it is for. Set {VARIABLE} to a version ({TESTED}, "
            f"{Target(TESTED, None).minor}) or to the folder that holds torch/, or use pip."
        )
    return Target(TESTED, None)


def target_folders() -> list[str]:
    """Where the installing environment keeps packages, in the order of its sys.path."""
    in_venv = sys.prefix != sys.base_prefix
    folders = list(site.getsitepackages([sys.prefix]))
    # With --system-site-packages the base's folders come after; site lists them only when it was so
    # configured at start, which holds in pip's isolated process too.
    shared = [f for f in site.getsitepackages() if f not in folders]
    if not in_venv or shared:
        folders = folders + shared if in_venv else folders
        user = site.getusersitepackages()
        folders.insert(len(folders) - len(shared) if in_venv else 0, user)
    return folders


def _isolated_by_pip() -> bool:
    # pip's isolated environment is an overlay: same prefix, build requirements from elsewhere.
    # Other front ends make a whole environment with its own prefix, and setuptools then lies inside
    # it.
    try:
        location = Path(str(metadata.distribution("setuptools").locate_file(""))).resolve()
    except metadata.PackageNotFoundError:
        return False
    return location not in {Path(folder).resolve() for folder in target_folders()}


def _from_variable(wanted: str) -> Target:
    folder = Path(wanted)
    if folder.is_dir():
        target = _installed_in([str(folder)]) or _installed_in([str(folder.parent)])
        if target is None:
            raise CannotTell(f"{VARIABLE}={wanted}: no installed torch in that folder.")
        return target
    if re.fullmatch(r"\d+\.\d+(\.\d+\S*)?", wanted):
        for folders in ([entry for entry in sys.path if entry], target_folders()):
            target = _installed_in(folders)
            if target is not None and wanted.split("+")[0] in (
                target.minor,
                target.version.split("+")[0],
            ):
                return target
        return Target(wanted, None)
    minor = Target(TESTED, None).minor
    raise CannotTell(
        f"{VARIABLE}={wanted}: neither a folder nor a version such as {TESTED} or {minor}."
    )


def fetching(target: Target) -> str:
    """One line on the torch that the build is about to fetch."""
    return (
        f"gradext: torch is not there yet; fetching {target.to_fetch} to build against. On Linux "
        "the package index has the CUDA build, several gigabytes; for the CPU build stop here, "
        "install torch first (pytorch.org names the index of CPU wheels), and run this again"
    )


def _installed_in(folders: list[str]) -> Target | None:
    for found in metadata.distributions(name="torch", path=folders):
        folder = Path(str(found.locate_file("")))
        if (folder / "torch" / "__init__.py").is_file():
            return Target(found.version, folder)
    return None


def _checked(target: Target) -> Target:
    numbers = re.match(r"(\d+)\.(\d+)", target.version)
    if numbers is None:
        raise CannotTell(f"torch {target.version}: cannot read that version.")
    minor = (int(numbers[1]), int(numbers[2]))
    if minor < OLDEST:
        where = f" in {target.folder}" if target.folder else ""
        raise CannotTell(
            f"torch {target.version}{where} is too old; gradext builds against torch "
            f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}; run: pip install torch=={TESTED}"
        )
    if minor > NEWEST:
        print(
            f"gradext: torch {target.version} is newer than any gradext was tested with "
            f"({NEWEST[0]}.{NEWEST[1]}); trying anyway",
            file=sys.stderr,
        )
    return target
