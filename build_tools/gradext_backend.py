"""The build backend: setuptools', with the right torch within reach.

Owns what torch_finder's answer changes (which torch is asked for, and whose folder joins sys.path
while setuptools works) and the .pth file at the top of each wheel. Everything else is
setuptools.build_meta.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch_finder
from setuptools import build_meta

build_sdist = build_meta.build_sdist

# Starts recording in the fresh interpreters that a recorded program starts (gradext.run.autostart).
# setuptools has no place for a file beside the packages, and none at all for an editable install.
AUTOSTART = Path(__file__).with_name("gradext-autostart.pth")


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return []  # sources are packed for any torch, so none is looked for


def _requires() -> list[str]:
    target = torch_finder.find()
    return [] if target.folder else [f"torch=={target.version}"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requires()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requires()]


@contextmanager
def _torch_importable() -> Iterator[None]:
    target = torch_finder.find()
    folder = str(target.folder) if target.folder else None
    if folder is None or folder in sys.path:
        yield
        return
    # Last, so that the isolated build's own setuptools and ninja still win.
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def prepare_metadata_for_build_wheel(directory: str, config_settings: Any = None) -> str:
    with _torch_importable():
        return build_meta.prepare_metadata_for_build_wheel(directory, config_settings)


def prepare_metadata_for_build_editable(directory: str, config_settings: Any = None) -> str:
    with _torch_importable():
        return build_meta.prepare_metadata_for_build_editable(directory, config_settings)


def build_wheel(directory: str, config_settings: Any = None, metadata: str | None = None) -> str:
    with _torch_importable():
        name = build_meta.build_wheel(directory, config_settings, metadata)
    add_to_wheel(Path(directory, name), AUTOSTART.name, AUTOSTART.read_bytes())
    return name


def build_editable(directory: str, config_settings: Any = None, metadata: str | None = None) -> str:
    with _torch_importable():
        name = build_meta.build_editable(directory, config_settings, metadata)
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
