"""The report where a source file is missing, has changed, is no text, or lies elsewhere."""

from __future__ import annotations

import dataclasses
import linecache
import os
from pathlib import Path

import pytest
from report_samples import TRAIN, at, frame, marked, save, stale, write

from gradext.diagnosis.model import Frame
from gradext.reporters.diagnosis_text import text
from gradext.source import syntax


def test_a_missing_file_falls_back_to_the_code_of_the_frame(folder: Path) -> None:
    gone = Frame("/gone/model.py", 7, "f", "h += y", 4, 7, 10)
    assert text(stale((write(gone),)), width=100) == (
        """\
error[GX101] stale-saved-tensor: h was written in place
 --> /gone/model.py:7:5 in f
  |
7 | h += y
  | ^ writes h in place: version 0 -> 1 (aten::add_)
  |
help: write `h = h + y`
docs: gradext explain GX101"""
    )


def test_without_code_there_is_the_place_alone(folder: Path) -> None:
    places = Frame("/gone/model.py", 7, "f"), Frame("/gone/model.py", 9, "")
    assert text(stale((write(places[0]),), (save(places[1]),)), width=100) == (
        """\
error[GX101] stale-saved-tensor: h was written in place
 --> /gone/model.py:7 in f
  = line 7 in f: writes h in place: version 0 -> 1 (aten::add_)
  = line 9: saves its output, h (aten::sigmoid)
help: write `h = h + y`
docs: gradext explain GX101"""
    )


def test_a_file_changed_since_shows_what_ran_and_says_so(folder: Path) -> None:
    place = frame(9, "h += y")
    (folder / "train.py").write_text(f"# a new first line\n{TRAIN}")
    assert text(stale((write(place),)), width=100).split("\n")[1:7] == [
        " --> train.py:9:9 in Block.forward",
        "  |",
        "9 | h += y",
        "  | ^ writes h in place: version 0 -> 1 (aten::add_)",
        "  |",
        "  = train.py has changed since this code ran",
    ]


@pytest.mark.parametrize("line", [0, -3, 27, 10**9])
def test_a_line_that_the_file_does_not_have(folder: Path, line: int) -> None:
    place = Frame(str(folder / "train.py"), line, "f")
    shown = text(stale((write(place),)), width=100)
    assert f"--> train.py:{line} in f\n" in shown
    assert "writes h in place: version 0 -> 1 (aten::add_)" in shown
    assert "train.py has changed since this code ran" in shown


@pytest.mark.parametrize(
    "content", [b"\x00\x01\x02" * 100, b"", b"\xff\xfeh\x00"], ids=["binary", "empty", "utf-16"]
)
def test_a_file_that_is_no_source(folder: Path, content: bytes) -> None:
    (folder / "t.py").write_bytes(content)
    place = Frame(str(folder / "t.py"), 2, "f", "h += y", 0, 2, 6)
    assert "2 | h += y\n  | ^ writes h" in text(stale((write(place),)), width=100)


def test_a_file_in_an_encoding_that_nobody_knows(folder: Path) -> None:
    (folder / "t.py").write_text("# coding: no-such-encoding\nh += y\n")
    place = Frame(str(folder / "t.py"), 2, "f", "h += y", 0, 2, 6)
    assert "2 | h += y\n  | ^^^^^^ writes h" in text(stale((write(place),)), width=100)


def test_folders_pipes_and_unreadable_files(folder: Path) -> None:
    (folder / "closed.py").write_text("h += y\n")
    (folder / "closed.py").chmod(0)
    os.mkfifo(folder / "pipe.py")
    for name in ("", "pipe.py", "closed.py", "n\0ul.py", "x" * 5000):
        place = Frame(str(folder / name), 1, "f", "h += y")
        assert "1 | h += y\n  | ^ writes h" in text(stale((write(place),)), width=100)


def test_source_in_its_declared_encoding(folder: Path) -> None:
    content = "# coding: latin-1\ns = 'é'; h.mul_(2)\n"
    (folder / "t.py").write_bytes(content.encode("latin-1"))
    place = frame(2, "h.mul_(2)", "f", file="t.py", content=content)
    assert "2 | s = 'é'; h.mul_(2)\n  |          ^^^^^^^^^ writes" in text(
        stale((write(place),)), width=90
    )


def test_bytes_that_do_not_decode(folder: Path) -> None:
    (folder / "t.py").write_bytes(b"s = '\xff'; h.mul_(2)\n")
    place = Frame(str(folder / "t.py"), 1, "f", "", 9, 1, 18)
    assert "1 | s = '\ufffd'; h.mul_(2)\n  |          ^^^^^^^^^ wr" in text(
        stale((write(place),)), width=90
    )


def test_surrogates_never_reach_the_stream(folder: Path) -> None:
    place = Frame("/gone/caf\udce9.py", 3, "f\udce9", "h\udce9 += y")
    d = stale((write(place),), message="h\ud800 was written", fix="use h\udfff", notes=("n\udc80",))
    for color in (False, True):
        text(d, width=80, color=color).encode("utf-8")


def test_code_that_python_keeps_without_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["h = f(x)\n", "h += y\n"]
    monkeypatch.setitem(linecache.cache, "<cell 3>", (16, None, lines, "<cell 3>"))
    place = Frame("<cell 3>", 2, "<module>", "h += y", 0, 2, 6)
    assert text(stale((write(place),)), width=90).split("\n")[1:5] == [
        " --> <cell 3>:2:1 in <module>",
        "  |",
        "1 | h = f(x)",
        "2 | h += y",
    ]


def test_windows_line_ends(folder: Path) -> None:
    lines = marked("a = 1\r\nh += y\r\nb = 2\r\n", at(2, 0, 2, 6))
    assert lines == ["1 | a = 1", "2 | h += y", "  | ^^^^^^ here", "3 | b = 2"]


def test_paths_outside_the_working_folder_stay_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = frame(9, "h += y")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert f"--> {folder}/train.py:9:9 in" in text(stale((write(place),)), width=90)
    elsewhere.rmdir()
    assert f"--> {folder}/train.py:9:9 in" in text(stale((write(place),)), width=90)


def test_a_working_folder_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    place = dataclasses.replace(frame(9, "h += y"), file=str(link / "train.py"))
    assert "--> train.py:9:9 in" in text(stale((write(place),)), width=90)


def test_trees_of_many_files_take_a_bounded_room(tmp_path, monkeypatch):
    monkeypatch.setattr(syntax, "_trees", type(syntax._trees)())
    monkeypatch.setattr(syntax, "_MOST_LINES", 1000)
    files = [tmp_path / f"part_{number}.py" for number in range(8)]
    for number, file in enumerate(files):
        file.write_text("".join(f"x{line} = {number}\n" for line in range(300)))
    for file in files:
        (found,) = syntax.statements(str(file), 7)
        assert found.lineno == 7
        assert sum(last - first for _, first, last in syntax._trees) <= 1000
    assert [Path(file).name for file, _, _ in syntax._trees] == [f.name for f in files[-3:]]
    again = syntax.around(str(files[5]), 1)
    assert syntax.around(str(files[5]), 9) is again  # one that is asked about stays
