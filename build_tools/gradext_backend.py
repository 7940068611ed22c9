"""The build backend: setuptools', with the right torch within reach.

Owns what torch_finder's answer changes (which torch is asked for, and whose folder joins sys.path
while setuptools works), the copy that is built where the sources cannot be written to, and the .pth
file at the top of each wheel. Everything else is setuptools.build_meta.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import preflight
import torch_finder
from setuptools import build_meta

build_sdist = build_meta.build_sdist
ROOT = Path(__file__).resolve().parent.parent

NO_SOURCES = {"build", "dist", "docs", "tests"}  # of a wheel

# Starts recording in the fresh interpreters that a recorded program starts (gradext.run.autostart).
# setuptools has no place for a file beside the packages, and none at all for an editable install.
AUTOSTART = Path(__file__).with_name("gradext-autostart.pth")


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return []  # sources are packed for any torch, so none is looked for


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    with _prepared():
        settings = _quiet(config_settings)
        return [*build_meta.get_requires_for_build_wheel(settings), *_torch_to_fetch()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    with _prepared(in_place=True):
        settings = _quiet(config_settings)
        return [*build_meta.get_requires_for_build_editable(settings), *_torch_to_fetch()]


def _torch_to_fetch() -> list[str]:
    target = torch_finder.find()
    if target.folder is not None:
        return []
    print(torch_finder.fetching(target), file=sys.stderr, flush=True)
    return [target.to_fetch]


def _quiet(config_settings: Any) -> dict[str, Any]:
    """The settings, without setuptools' line for each file: a failed build's output stays short."""
    settings = dict(config_settings or {})
    if not {"verbose", "--verbose", "quiet", "--quiet"} & set(settings):
        settings["quiet"] = "1"
    return settings


@contextmanager
def _prepared(in_place: bool = False) -> Iterator[None]:
    """The source tree as the working folder, or a copy where it cannot be written to; torch within
    reach. Raises SystemExit, one line, where something that the build needs is missing.
    """
    target = torch_finder.find()
    writable = is_writable(ROOT)
    if in_place and not writable:
        raise preflight.Stopped(
            f"pip install -e builds in {ROOT}, which cannot be written to; pip install {ROOT} "
            "builds elsewhere."
        )
    folder = str(target.folder) if target.folder else None
    added = folder is not None and folder not in sys.path
    with ExitStack() as stack:
        where = ROOT if writable else Path(stack.enter_context(TemporaryDirectory()), "gradext")
        preflight.check(target.version, where if writable else where.parent)
        if not writable:
            copy_sources(where)
            stack.callback(os.chdir, os.getcwd())
            os.chdir(where)
        if added:
            # Last, so that the isolated build's own setuptools and ninja still win.
            sys.path.append(folder)
            stack.callback(sys.path.remove, folder)
        yield


def is_writable(root: Path) -> bool:
    """Whether a build can put its files into the tree: tried, as root may write what nobody may.

    False too where an earlier build left a folder that belongs to somebody else.
    """
    for folder in (root, root / "build", root / "gradext.egg-info"):
        if not folder.exists():
            continue
        try:
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
                return False
            if error.errno == errno.ENOSPC:
                preflight.check_disk(folder)
            raise preflight.Stopped(f"cannot write to {folder}: {error.strerror}") from None
    return True


def copy_sources(target: Path) -> None:
    """What a wheel is built from, and nothing that an earlier build left there."""
    target.mkdir()
    for entry in sorted(ROOT.iterdir()):
        left_out = entry.name.startswith(".") or entry.suffix == ".egg-info"
        if left_out or entry.name in NO_SOURCES or (entry / "pyvenv.cfg").exists():
            continue
        if entry.is_dir():
            left = shutil.ignore_patterns("__pycache__", "_C.*.so", "_C.*.json", "results")
            shutil.copytree(entry, target / entry.name, ignore=left)
        elif entry.is_file():
            shutil.copy(entry, target)
    for folder, _, _ in os.walk(target):  # a read-only tree's folders may be read-only themselves
        os.chmod(folder, 0o755)


def prepare_metadata_for_build_wheel(directory: str, config_settings: Any = None) -> str:
    with _prepared():
        settings = _quiet(config_settings)
        return build_meta.prepare_metadata_for_build_wheel(directory, settings)


def prepare_metadata_for_build_editable(directory: str, config_settings: Any = None) -> str:
    with _prepared(in_place=True):
        settings = _quiet(config_settings)
        return build_meta.prepare_metadata_for_build_editable(directory, settings)


def build_wheel(directory: str, config_settings: Any = None, metadata: str | None = None) -> str:
    with _prepared():
        name = build_meta.build_wheel(directory, _quiet(config_settings), metadata)
    add_to_wheel(Path(directory, name), AUTOSTART.name, AUTOSTART.read_bytes())
    return name


def build_editable(directory: str, config_settings: Any = None, metadata: str | None = None) -> str:
    with _prepared(in_place=True):
        name = build_meta.build_editable(directory, _quiet(config_settings), metadata)
    add_to_wheel(Path(directory, name), AUTOSTART.name, AUTOSTART.read_bytes())
    return name


def add_to_wheel(wheel: Path, name: str, data: bytes) -> None:
    """Put a file at the top of a wheel, and into its RECORD, which pip removes files by.

    Everything else keeps its bytes, order, times and modes; the new file takes RECORD's.
    """
    draft = wheel.with_suffix(".tmp")
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(draft, "w") as new:
        record = next(item for item in old.infolist() if item.filename.endswith("/RECORD"))
        for item in old.infolist():
            content = old.read(item)
            if item is record:
                lines = content.decode().splitlines()
                own = lines.index(f"{record.filename},,")
                lines.insert(own, f"{name},sha256={digest},{len(data)}")
                content = "".join(f"{line}\n" for line in lines).encode()
            new.writestr(item, content, item.compress_type)
        added = zipfile.ZipInfo(name, record.date_time)
        added.external_attr = record.external_attr
        new.writestr(added, data, record.compress_type)
    os.replace(draft, wheel)
