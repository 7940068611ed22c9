"""Programs in a folder of their own, run by plain python and by `gradext run`.

Owns the fixtures; everything that runs is a real process.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from programs import MISTAKES, RUN, Ended, Mistakes, Recorded, start, without_addresses


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(source, name="train.py"): a file in the programs' folder."""

    def write(source: str | bytes, name: str = "train.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, str):
            source = textwrap.dedent(source).lstrip("\n").encode()
        path.write_bytes(source)
        return path

    return write


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., Ended]:
    """plain(*words): what plain python does with them."""

    def plain(
        *words: str,
        flags: Sequence[str] = (),
        cwd: Path | None = None,
        forked: bool = True,
        **how: Any,
    ) -> Ended:
        # Variables of gradext's are read when Python starts.
        forked = forked and not any(name[:8] == "GRADEXT_" for name in how)
        return start([*flags, *words], cwd or tmp_path, forked=forked, **how)

    return plain


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Recorded]:
    """recorded(*words): the same words behind `gradext run --json`."""

    def recorded(
        *words: str,
        flags: Sequence[str] = (),
        options: Sequence[str] = (),
        cwd: Path | None = None,
        forked: bool = True,
        **how: Any,
    ) -> Recorded:
        path = tmp_path / "reports" / "report.json"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        command = [*flags, *RUN, "--json", str(path), *options, *words]
        done = start(command, cwd or tmp_path, forked=forked, **how)
        report = json.loads(path.read_text()) if path.exists() else {}
        leftover = [p.name for p in path.parent.iterdir() if p != path]
        assert leftover == [], leftover  # drafts and children's files
        return Recorded(done, report)

    return recorded


@pytest.fixture
def alike(
    plain: Callable[..., Ended], recorded: Callable[..., Recorded]
) -> Callable[..., tuple[Ended, dict[str, Any]]]:
    """alike(*words): run both; same exit code, stdout and stderr, byte for byte."""

    def alike(*words: str, **how: Any) -> tuple[Ended, dict[str, Any]]:
        expected = plain(*words, forked=False, **how)
        found, report = recorded(*words, forked=False, **how)
        assert without_addresses(found.out) == without_addresses(expected.out)
        assert without_addresses(found.err) == without_addresses(expected.err)
        assert found.code == expected.code
        return expected, report

    return alike


@pytest.fixture
def mistakes(write: Callable[..., Path]) -> Mistakes:
    return Mistakes(write(MISTAKES, "mistakes.py"))


@pytest.fixture(scope="session")
def with_pth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which every Python runs the line that the wheel's .pth file has.

    A checkout has no such file, so sitecustomize, which site runs after the .pth files, stands in.
    """
    folder = tmp_path_factory.mktemp("site")
    line = Path(__file__).parents[2] / "build_tools" / "gradext-autostart.pth"
    (folder / "sitecustomize.py").write_text(f"exec({line.read_text()!r})\n")
    return {"PYTHONPATH": str(folder)}
