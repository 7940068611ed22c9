"""Writing a patch: whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from gradext.fix import apply


def test_a_file_that_changed_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"new\n")
    with pytest.raises(apply.CannotApply, match="has changed"):
        apply.write({str(path): b"patched\n"}, {str(path): b"old\n"})
    assert path.read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["a.py"]


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_bytes(b"1\n")
    second.write_bytes(b"2\n")
    replace, calls = os.replace, []

    def fails_at_the_second(a: str, b: str) -> None:
        calls.append(b)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(a, b)

    monkeypatch.setattr(os, "replace", fails_at_the_second)
    before = {str(first): b"1\n", str(second): b"2\n"}
    with pytest.raises(KeyboardInterrupt):
        apply.write({str(first): b"x\n", str(second): b"y\n"}, before)
    assert (first.read_bytes(), second.read_bytes()) == (b"1\n", b"2\n")
    assert sorted(os.listdir(tmp_path)) == ["a.py", "b.py"]


def test_a_link_stays_a_link_and_older_backups_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.py", tmp_path / "link.py"
    real.write_bytes(b"1\n")
    link.symlink_to(real)
    (tmp_path / "link.py.before-fix").write_bytes(b"an older one\n")
    ((_, backup),) = apply.write({str(link): b"2\n"}, {str(link): b"1\n"})
    assert link.is_symlink()
    assert real.read_bytes() == b"2\n"
    assert Path(backup).read_bytes() == b"1\n"
    assert (tmp_path / "link.py.before-fix").read_bytes() == b"an older one\n"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(apply.CannotApply, match="no file"):
        apply.write({"<string>": b""}, {"<string>": b""})
    gone = str(tmp_path / "gone.py")
    with pytest.raises(apply.CannotApply, match="cannot read"):
        apply.write({gone: b""}, {gone: b""})


def test_an_interrupt_while_it_writes_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link = tmp_path / "real.py", tmp_path / "link.py"
    real.write_bytes(b"1\n")
    real.chmod(0o640)
    link.symlink_to(real)
    replace = os.replace

    def interrupted(a: str, b: str) -> None:
        replace(a, b)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        apply.write({str(link): b"2\n"}, {str(link): b"1\n"})
    assert link.is_symlink()
    assert real.read_bytes() == b"1\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.py", "real.py"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_file_without_a_write_bit_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"1\n")
    path.chmod(0o444)
    with pytest.raises(apply.CannotApply, match="may not be written"):
        apply.write({str(path): b"2\n"}, {str(path): b"1\n"})
    assert path.read_bytes() == b"1\n"
