"""The build backend: setuptools', with the right torch within reach.

Owns only what torch_finder's answer changes: which torch is asked for, and whose folder joins
sys.path while setuptools works. Everything else is setuptools.build_meta.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch_finder
from setuptools import build_meta

build_sdist = build_meta.build_sdist


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
        return build_meta.build_wheel(directory, config_settings, metadata)


def build_editable(directory: str, config_settings: Any = None, metadata: str | None = None) -> str:
    with _torch_importable():
        return build_meta.build_editable(directory, config_settings, metadata)
