"""The report on hand-made diagnoses: its exact text, and that odd data never makes it raise."""

from __future__ import annotations

import dataclasses
import linecache
import os
import re
from pathlib import Path

import pytest

from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.reporters import diagnosis_text as reporter
from gradext.reporters import excerpt
from gradext.reporters.diagnosis_text import report, text

TRAIN = """\
import torch
from torch import nn


class Block(nn.Module):
    def forward(self, x):
        h = torch.sigmoid(self.fc(x))
        y = h * 2
        h += y
        return h


def step(model, x, optimizer):
    first = model(x).sum()
    first.backward(retain_graph=True)
    optimizer.step()
    return first


def main():
    for x in batches:
        loss = step(model, x, optimizer)
        loss.backward()


main()
"""
TORCH = "/usr/lib/python3/site-packages/torch/"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with train.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def frame(
    line: int,
    code: str,
    function: str = "Block.forward",
    *,
    file: str = "train.py",
    content: str | None = None,
) -> Frame:
    """The frame of an expression on one line: its columns are where `code` is on that line."""
    path = Path.cwd() / file
    whole = (path.read_text() if content is None else content).split("\n")[line - 1]
    column = whole.index(code)
    return Frame(str(path), line, function, whole.strip(), column, line, column + len(code))


def library(file: str, line: int, function: str) -> Frame:
    return Frame(TORCH + file, line, function, is_user=False)


def write(place: Frame, **facts: object) -> Site:
    return Site(place, "aten::add_", 0, 1, label="writes h in place", **facts)  # type: ignore[arg-type]


def save(place: Frame, **facts: object) -> Site:
    return Site(place, "aten::sigmoid", label="saves its output, h", **facts)  # type: ignore[arg-type]


def stale(culprits: tuple[Site, ...], victims: tuple[Site, ...] = (), **rest: object) -> Diagnosis:
    facts = {"message": "h was written in place", "fix": "write `h = h + y`", **rest}
    return Diagnosis("GX101", "error", culprits=culprits, victims=victims, **facts)  # type: ignore[arg-type]


def test_culprit_and_victim_near_each_other_share_an_excerpt_in_file_order(folder: Path) -> None:
    callers = (frame(14, "model(x)", "step"), frame(22, "step(model, x, optimizer)", "main"))
    d = stale(
        (write(frame(9, "h += y"), callers=callers),),
        (save(frame(7, "torch.sigmoid(self.fc(x))"), callers=callers),),
        message="h, which sigmoid saved in Block.forward, was written in place before backward",
        fix="write `h = h + y`: the sum is then a new tensor, and what sigmoid saved stays whole",
        notes=("torch compares version counters and not bytes.",),
    )
    assert text(d, width=88) == (
        """\
error[GX101] stale-saved-tensor: h, which sigmoid saved in Block.forward, was written in
  place before backward
  --> train.py:9:9 in Block.forward
   |
 5 | class Block(nn.Module):
 6 |     def forward(self, x):
 7 |         h = torch.sigmoid(self.fc(x))
   |             ------------------------- saves its output, h (aten::sigmoid)
 8 |         y = h * 2
 9 |         h += y
   |         ^^^^^^ writes h in place: version 0 -> 1 (aten::add_)
10 |         return h
   |
   = called from train.py:14 in step
                 train.py:22 in main
   = note: torch compares version counters and not bytes.
help: write `h = h + y`: the sum is then a new tensor, and what sigmoid saved stays
      whole
docs: gradext explain GX101"""
    )


def test_apart_they_have_an_excerpt_each_and_the_culprit_comes_first(folder: Path) -> None:
    stack = (
        library("optim/sgd.py", 300, "_single_tensor_sgd"),
        library("optim/sgd.py", 200, "sgd"),
        library("optim/sgd.py", 100, "SGD.step"),
        library("optim/optimizer.py", 60, "_use_grad_for_differentiable.<locals>._use_grad"),
        library("optim/optimizer.py", 500, "Optimizer.profile_hook_step.<locals>.wrapper"),
    )
    d = stale(
        (Site(frame(23, "loss.backward()", "main"), "aten::add_", 1, 2, stack=stack, times=40),),
        (save(frame(7, "self.fc(x)"), callers=(frame(14, "model(x)", "step"),)),),
    )
    assert text(d, width=100) == (
        """\
error[GX101] stale-saved-tensor: h was written in place
  --> train.py:23:9 in main
   |
21 |     for x in batches:
22 |         loss = step(model, x, optimizer)
23 |         loss.backward()
   |         ^^^^^^^^^^^^^^^ written in place here: version 1 -> 2 (aten::add_, 40 times)
   |
   = through torch/optim/sgd.py:100 in SGD.step
             torch/optim/sgd.py:200 in sgd
             torch/optim/sgd.py:300 in _single_tensor_sgd
  ::: train.py:7:27 in Block.forward
   |
 5 | class Block(nn.Module):
 6 |     def forward(self, x):
 7 |         h = torch.sigmoid(self.fc(x))
   |                           ---------- saves its output, h (aten::sigmoid)
 8 |         y = h * 2
   |
   = called from train.py:14 in step
help: write `h = h + y`
docs: gradext explain GX101"""
    )


def test_on_one_line_both_are_labelled(folder: Path) -> None:
    d = stale(
        (write(frame(14, "model(x)", "step"), stack=(library("nn/modules/dropout.py", 9, "f"),)),),
        (save(frame(14, "model(x).sum()", "step")),),
    )
    assert text(d, width=100).split("\n")[1:10] == [
        "  --> train.py:14:13 in step",
        "   |",
        "13 | def step(model, x, optimizer):",
        "14 |     first = model(x).sum()",
        "   |             ^^^^^^^^ writes h in place: version 0 -> 1 (aten::add_)",
        "   |             -------------- saves its output, h (aten::sigmoid)",
        "15 |     first.backward(retain_graph=True)",
        "   |",
        "   = line 14 through torch/nn/modules/dropout.py:9 in f",
    ]


def test_the_first_culprit_in_full_the_others_short(folder: Path) -> None:
    callers = (frame(22, "step(model, x, optimizer)", "main"),)
    d = stale(
        (
            Site(
                frame(16, "optimizer.step()", "step"), "aten::_foreach_add_", 1, 2, callers=callers
            ),
            Site(frame(9, "h += y"), "aten::add_", 0, 1, callers=callers),
            Site(
                frame(23, "loss.backward()", "main"), None, label="may write too", callers=callers
            ),
        ),
    )
    assert text(d, width=100) == (
        """\
error[GX101] stale-saved-tensor: h was written in place
  --> train.py:16:5 in step
   |
 9 |         h += y
   |         ^^^^^^ written in place here: version 0 -> 1 (aten::add_)
...
14 |     first = model(x).sum()
15 |     first.backward(retain_graph=True)
16 |     optimizer.step()
   |     ^^^^^^^^^^^^^^^^ written in place here: version 1 -> 2 (aten::_foreach_add_)
17 |     return first
...
23 |         loss.backward()
   |         ^^^^^^^^^^^^^^^ may write too
   |
   = called from train.py:22 in main
help: write `h = h + y`
docs: gradext explain GX101"""
    )


def test_a_window_is_shown_with_all_that_lies_in_it(folder: Path) -> None:
    d = Diagnosis(
        "GX401",
        "warning",
        "h was written past its version counter",
        victims=(save(frame(7, "torch.sigmoid(self.fc(x))")),),
        window=(frame(14, "model(x)", "step"), frame(16, "optimizer.step()", "step")),
    )
    assert text(d, width=100) == (
        """\
warning[GX401] silent-write: h was written past its version counter
  --> train.py:14:13 in step
   |
 5 | class Block(nn.Module):
 6 |     def forward(self, x):
 7 |         h = torch.sigmoid(self.fc(x))
   |             ------------------------- saves its output, h (aten::sigmoid)
 8 |         y = h * 2
...
13 | def step(model, x, optimizer):
14 |     first = model(x).sum()
   |             ^^^^^^^^ unchanged up to here
15 |     first.backward(retain_graph=True)
16 |     optimizer.step()
   |     ^^^^^^^^^^^^^^^^ changed by here
17 |     return first
   |
   = the write is between line 14 and line 16 of train.py
docs: gradext explain GX401"""
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((16, 14), "the write is between line 16 and line 14 (of a later pass) of train.py"),
        ((14, 14), "the write is in what line 14 of train.py does"),
    ],
)
def test_a_window_in_a_loop(folder: Path, lines: tuple[int, int], words: str) -> None:
    places = {14: frame(14, "model(x)", "step"), 16: frame(16, "optimizer.step()", "step")}
    window = (places[lines[0]], places[lines[1]])
    d = Diagnosis("GX401", "warning", "h was written", window=window)
    assert f"   = {words}\n" in text(d, width=100)


def test_a_window_between_two_files(folder: Path) -> None:
    (folder / "data.py").write_text("x[:] = 0\n")
    window = (frame(14, "model(x)", "step"), frame(1, "x[:] = 0", "<module>", file="data.py"))
    d = Diagnosis("GX401", "warning", "h was written", window=window)
    shown = text(d, width=100)
    assert "the write is between train.py:14 in step and data.py:1 in <module>" in shown
    assert "  --> train.py:14:13 in step\n" in shown
    assert "  ::: data.py:1:1 in <module>\n" in shown


# --- expressions ---------------------------------------------------------------------------------


def marked(content: str, place: Frame, width: int = 100) -> list[str]:
    """The lines between the two margins of the excerpt of a diagnosis with this one culprit."""
    Path(place.file).write_bytes(content.encode())
    lines = text(stale((Site(place, label="here"),)), width=width).split("\n")
    edges = [i for i, line in enumerate(lines) if re.fullmatch(r" +\|", line)]
    return lines[edges[0] + 1 : edges[1]]


def at(line: int, column: int | None, end_line: int | None, end_column: int | None) -> Frame:
    return Frame(str(Path.cwd() / "t.py"), line, "f", "", column, end_line, end_column)


def test_an_expression_of_several_lines(folder: Path) -> None:
    content = "def f():\n    x = g(h.add_(\n        1,\n\n        alpha=2,\n    ))\n    return x\n"
    assert marked(content, at(2, 10, 6, 5)) == [
        "1 | def f():",
        "2 |     x = g(h.add_(",
        "  |           ^^^^^^^",
        "3 |         1,",
        "  |         ^^",
        "4 |",
        "5 |         alpha=2,",
        "  |         ^^^^^^^^",
        "6 |     ))",
        "  |     ^ here",
        "7 |     return x",
    ]


def test_a_long_expression_shows_its_ends(folder: Path) -> None:
    content = "y = h.add_(\n" + "".join(f"    a{i} +\n" for i in range(9)) + "    a9)\nz = 1\n"
    assert marked(content, at(1, 4, 11, 7)) == [
        " 1 | y = h.add_(",
        "   |     ^^^^^^^",
        " 2 |     a0 +",
        "   |     ^^^^",
        "...",
        "11 |     a9)",
        "   |     ^^^ here",
        "12 | z = 1",
    ]


@pytest.mark.parametrize(
    ("content", "column", "end", "code", "carets"),
    [
        ("\tx = h.mul_(2)", 5, 14, "    x = h.mul_(2)", "        ^^^^^^^^^ here"),
        ("if a:\tb.add_(1)", 6, 15, "if a:   b.add_(1)", "        ^^^^^^^^^ here"),
        ("n = '日本'; h.mul_(2)", 10, 19, "n = '日本'; h.mul_(2)", "            ^^^^^^^^^ here"),
        ("日本.mul_(2)", 0, 9, "日本.mul_(2)", "^^^^^^^^^^^ here"),
        # An e and a combining accent are two characters and one cell.
        ("s = 'e\u0301'; h.mul_(2)", 10, 19, "s = 'e\u0301'; h.mul_(2)", "         ^^^^^^^^^ here"),
        # Characters that a terminal would obey are replaced, each by one cell.
        ("s = '\x1b[0m'; h.mul_(2)", 12, 21, "s = '?[0m'; h.mul_(2)", f"{'':12}^^^^^^^^^ here"),
        ("s = '\u202e'; h.mul_(2)", 9, 18, "s = '\ufffd'; h.mul_(2)", f"{'':9}^^^^^^^^^ here"),
        # A form feed ends no line in Python.
        ("x = 1 \x0c; h.mul_(2)", 9, 18, "x = 1 ?; h.mul_(2)", f"{'':9}^^^^^^^^^ here"),
    ],
)
def test_cells_and_characters(
    folder: Path, content: str, column: int, end: int, code: str, carets: str
) -> None:
    assert marked(f"{content}\n", at(1, column, 1, end)) == [f"1 | {code}", f"  | {carets}"]


@pytest.mark.parametrize(
    ("column", "end_line", "end", "carets"),
    [
        (4, None, 5, "    ^"),
        (6, 1, 15, "      ^^^^^^^^^"),
        (6, None, 15, "      ^^^^^^^^^"),
        (6, 1, 99, "      ^^^^^^^^^"),
        # Where it begins is known, where it ends is not.
        (6, 1, None, "      ^"),
        (6, 1, 4, "      ^"),
        (6, 30, 2, "      ^"),
        # Nothing is known but the line.
        (None, None, None, "  ^"),
        (None, 1, 9, "  ^"),
        (70, 1, 80, "  ^"),
        (-1, 1, 4, "  ^"),
    ],
)
def test_as_much_is_underlined_as_is_known(
    folder: Path, column: int | None, end_line: int | None, end: int | None, carets: str
) -> None:
    lines = marked("  y = h.mul_(2)\n", at(1, column, end_line, end))
    assert lines == ["1 |   y = h.mul_(2)", f"  | {carets} here"]


LONG = "x = " + " + ".join(f"value_{i:02}" for i in range(30))


@pytest.mark.parametrize(
    ("snippet", "code", "carets"),
    [
        (
            "value_00",
            "x = value_00 + value_01 + value_02 + value_03 + value_04 ...",
            "    ^^^^^^^^ here",
        ),
        (
            "value_14",
            "... + value_14 + value_15 + value_16 + value_17 + value_1...",
            None,
        ),
        (
            "value_29",
            "...24 + value_25 + value_26 + value_27 + value_28 + value_29",
            f"{'':52}^^^^^^^^",
        ),
    ],
)
def test_a_long_line_is_cut_around_its_marks(
    folder: Path, snippet: str, code: str, carets: str | None
) -> None:
    column = LONG.index(snippet)
    lines = marked(f"{LONG}\n", at(1, column, 1, column + len(snippet)), width=64)
    shown = lines[0].removeprefix("1 | ")
    below = lines[1].removeprefix("  | ")
    assert max(map(len, lines)) <= 64
    start = below.index("^")
    assert shown[start : start + below.count("^")] == snippet
    if carets is None:
        assert (shown[:3], shown[-3:]) == ("...", "...")
        assert snippet in shown[3:-3]
    else:
        assert shown == code
        assert below == carets


def test_an_expression_longer_than_the_width_is_cut_at_its_end(folder: Path) -> None:
    lines = marked(f"    {LONG}\n", at(1, 8, 1, 4 + len(LONG)), width=50)
    assert lines == [
        "1 |     x = value_00 + value_01 + value_02 + va...",
        "  |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        "  |         here",
    ]


def test_marks_too_far_apart_for_the_width_get_a_part_of_the_line_each(folder: Path) -> None:
    (folder / "t.py").write_text(f"{LONG}\n")
    culprit, victim = frame(1, "value_28", "f", file="t.py"), frame(1, "value_00", "f", file="t.py")
    lines = text(stale((Site(culprit, label="writes"),), (Site(victim, label="saves"),)), width=60)
    parts = [
        line[4:] for line in lines.split("\n") if "value" in line or "--- " in line or "^" in line
    ]
    assert len(parts) == 4
    assert parts[0][parts[1].index("^") :].startswith("value_28")
    assert parts[2][parts[3].index("-") :].startswith("value_00")


def test_wide_characters_are_not_split_by_a_cut(folder: Path) -> None:
    content = f"s = '{'日' * 40}'; h.mul_(2); t = '{'本' * 40}'\n"
    column = content.index("h.mul_")
    for width in range(40, 60):
        code, carets = marked(content, at(1, column, 1, column + 9), width=width)[:2]
        assert excerpt.cells(code) <= width
        before = code[: code.index("h.mul_(2)")]
        assert excerpt.cells(before) == carets.index("^")


# --- files that are not what they were ----------------------------------------------------------


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
  = /gone/model.py:7 in f: writes h in place: version 0 -> 1 (aten::add_)
  = /gone/model.py:9: saves its output, h (aten::sigmoid)
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


# --- callers and library frames -------------------------------------------------------------------


def test_callers_are_counted_and_cut(folder: Path) -> None:
    walk = Frame(str(folder / "train.py"), 14, "walk")
    others = tuple(Frame(str(folder / "train.py"), 20, f"f{i}") for i in range(7))
    shown = text(stale((write(frame(9, "h += y"), callers=(walk,) * 4 + others),)), width=90)
    assert (
        "  = called from train.py:14 in walk (4 times)\n"
        f"{'':16}train.py:20 in f0\n"
        f"{'':16}train.py:20 in f1\n"
        f"{'':16}(4 more)\n"
        f"{'':16}train.py:20 in f6\n"
    ).replace("  = ", "   = ").replace(" " * 16, " " * 17) in shown


def test_library_frames_leave_out_wrappers_and_the_middle(folder: Path) -> None:
    names = ["inner", "d", "c", "Module._call_impl", "Module._wrapped_call_impl", "b", "outer"]
    stack = tuple(library("nn/modules/module.py", i, name) for i, name in enumerate(names))
    shown = text(stale((write(frame(9, "h += y"), stack=stack),)), width=90)
    assert (
        "   = through torch/nn/modules/module.py:6 in outer\n"
        "             (2 more)\n"
        "             torch/nn/modules/module.py:1 in d\n"
        "             torch/nn/modules/module.py:0 in inner\n"
    ) in shown


def test_a_stack_of_wrappers_alone_explains_nothing(folder: Path) -> None:
    stack = (library("autograd/function.py", 5, "Function.apply"),)
    site = write(frame(9, "h += y"))
    with_stack = dataclasses.replace(site, stack=stack)
    assert text(stale((with_stack,)), width=90) == text(stale((site,)), width=90)
    # The user's own wrappers are theirs to see.
    mine = dataclasses.replace(site, stack=(Frame("/lib/mine/function.py", 5, "apply"),))
    assert "through /lib/mine/function.py:5 in apply" in text(stale((mine,)), width=90)


def test_a_frame_of_the_standard_library() -> None:
    assert excerpt.library_path(linecache.__file__) == "linecache.py"


# --- labels, prose, width, colour -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "label"),
    [
        (Site(Frame("a", 1, "f")), "written in place here"),
        (Site(Frame("a", 1, "f"), "aten::mul_"), "written in place here (aten::mul_)"),
        (
            Site(Frame("a", 1, "f"), "aten::mul_", label="aten::mul_ writes h"),
            "aten::mul_ writes h",
        ),
        (Site(Frame("a", 1, "f"), "aten::mul_.Tensor", label="mul_ writes h"), "mul_ writes h"),
        (Site(Frame("a", 1, "f"), "aten::mul", label="mul_ on h"), "mul_ on h (aten::mul)"),
        (Site(Frame("a", 1, "f"), None, 3, 3, label="writes h"), "writes h: the version stays 3"),
        (Site(Frame("a", 1, "f"), None, 3, 4, label="h: version 3 -> 4"), "h: version 3 -> 4"),
        (Site(Frame("a", 1, "f"), None, 3, 5, label="writes h"), "writes h: version 3 -> 5"),
        (Site(Frame("a", 1, "f"), label="writes\nh", times=2), "writes h (2 times)"),
    ],
)
def test_labels_say_what_they_do_not_say_already(site: Site, label: str) -> None:
    assert text(stale((site,)), width=90).split("\n")[2] == f"  = {label}"


@pytest.mark.parametrize(
    ("code", "culprit", "victim"),
    [
        ("GX101", "written in place here", "saved for backward here"),
        ("GX102", "written in place here", "the leaf is made here"),
        ("GX103", "written in place here", "the view is made here"),
        ("GX105", "written in place here", "the view is made here"),
        ("GX202", "the inference tensor is made here", "the inference tensor is used here"),
        ("GX302", "the graph is freed here", "the freed graph is built here"),
        ("GX303", "its gradient is asked for here", "the tensor is made here"),
        ("GX401", "written in place here", "saved for backward here"),
    ],
)
def test_what_a_site_without_a_label_is_called(code: str, culprit: str, victim: str) -> None:
    sites = (Site(Frame("a", 1, "")),), (Site(Frame("b", 2, "")),)
    shown = text(Diagnosis(code, "error", "m", *sites), width=90)
    assert f" --> a:1\n  = {culprit}\n ::: b:2\n  = {victim}\n" in shown


def test_narrow(folder: Path) -> None:
    d = stale(
        (write(frame(16, "optimizer.step()", "step")),),
        message="the weight of Block.fc was written in place after it was saved",
        fix="call `optimizer.step()` after the last `backward()` of the round",
        notes=("the bytes that were written are those that were saved.",),
    )
    assert text(d, width=40) == (
        """\
error[GX101] stale-saved-tensor: the
  weight of Block.fc was written in
  place after it was saved
  --> train.py:16:5 in step
   |
14 |     first = model(x).sum()
15 |     first.backward(retain_graph=...
16 |     optimizer.step()
   |     ^^^^^^^^^^^^^^^^
   |     writes h in place: version 0 ->
   |     1 (aten::add_)
17 |     return first
   |
   = note: the bytes that were written
     are those that were saved.
help: call `optimizer.step()` after the
      last `backward()` of the round
docs: gradext explain GX101"""
    )


@pytest.mark.parametrize("width", [-5, 0, 1, 39, 40, 41, 57, 80, 100, 200])
def test_every_line_that_may_be_broken_fits_every_width(folder: Path, width: int) -> None:
    callers = (frame(14, "model(x)", "step"),)
    d = stale(
        (write(frame(9, "h += y"), callers=callers), write(frame(16, "optimizer.step()", "step"))),
        (save(frame(7, "torch.sigmoid(self.fc(x))"), callers=callers),),
        message="词 " * 60,
        fix="write `h = h + y`, and `x = torch.where(mask, value, x)` in place of the other " * 3,
        notes=("a note " * 40, "b"),
    )
    for line in text(d, width=width).split("\n"):
        assert excerpt.cells(line) <= max(width, 40)
        assert line == line.rstrip()


def test_a_fix_of_several_lines_keeps_its_code(folder: Path) -> None:
    fix = "update under no_grad:\n    with torch.no_grad():\n        w -= lr * w.grad"
    shown = text(stale((write(frame(9, "h += y")),), fix=fix), width=50)
    assert shown.endswith(
        "help: update under no_grad:\n"
        "          with torch.no_grad():\n"
        "              w -= lr * w.grad\n"
        "docs: gradext explain GX101"
    )


def test_code_in_backquotes_is_not_broken() -> None:
    assert excerpt.wrap("write `a = b + c` here", 16) == ["write", "`a = b + c` here"]
    assert excerpt.wrap("a `b c d e f g h i` j", 8) == ["a `b c d", "e f g h", "i` j"]
    assert excerpt.wrap("one averyveryverylongword two", 8) == [
        "one",
        "averyveryverylongword",
        "two",
    ]


def test_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    d = stale((), message="word " * 60)
    for columns, widest in (("60", 60), ("300", 100), ("10", 40)):
        monkeypatch.setenv("COLUMNS", columns)
        longest = max(map(len, text(d).split("\n")))
        assert widest - 5 < longest <= widest
    monkeypatch.setenv("COLUMNS", "wide")
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((70, 20)))
    assert 65 < max(map(len, text(d).split("\n"))) <= 70
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((0, 0)))
    assert 95 < max(map(len, text(d).split("\n"))) <= 100


def test_plain_text_of_ascii_code_is_ascii(folder: Path) -> None:
    shown = text(stale((write(frame(9, "h += y")),), (save(frame(7, "self.fc(x)")),)), width=90)
    assert shown.isascii()
    assert "\x1b" not in shown


def test_colour_changes_no_character(folder: Path) -> None:
    sites = (write(frame(9, "h += y")),), (save(frame(7, "self.fc(x)")),)
    for d in (stale(*sites), dataclasses.replace(stale(*sites), severity="warning")):
        coloured = text(d, width=90, color=True)
        assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == text(d, width=90)
    lines = text(stale(*sites), width=90, color=True).split("\n")
    assert lines[0].startswith("\x1b[1;31merror[GX101]\x1b[0m\x1b[1m stale-saved-tensor: h was")
    assert lines[1] == "\x1b[1;34m  --> \x1b[0mtrain.py:9:9 in Block.forward"
    assert (
        "\x1b[1;34m   | \x1b[0m        "
        "\x1b[1;31m^^^^^^ writes h in place: version 0 -> 1 (aten::add_)\x1b[0m"
    ) in lines
    assert lines[-2] == "\x1b[1;32mhelp:\x1b[0m write `h = h + y`"
    assert text(dataclasses.replace(stale(()), severity="warning"), color=True).startswith(
        "\x1b[1;33m"
    )


def test_report_puts_all_below_the_header(folder: Path) -> None:
    a = stale((write(frame(9, "h += y")),))
    b = Diagnosis("GX303", "warning", "x is not used")
    assert report([a, b], width=90, header="gradext: 1 error, 1 warning") == (
        f"gradext: 1 error, 1 warning\n\n{text(a, width=90)}\n\n{text(b, width=90)}"
    )
    assert report([a], width=90) == text(a, width=90)
    assert report([]) == ""
    assert report([], header="gradext: nothing") == "gradext: nothing"
    assert report([b], header="h", color=True).startswith("\x1b[1mh\x1b[0m\n\n\x1b[1;33mwarning")


def test_a_diagnosis_of_words_alone() -> None:
    d = Diagnosis("GX303", "warning", "x is not used", notes=("it was bound again.",))
    assert text(d, width=90) == (
        "warning[GX303] unused-input: x is not used\n"
        "  = note: it was bound again.\n"
        "docs: gradext explain GX303"
    )


def test_a_code_that_this_version_does_not_know() -> None:
    d = Diagnosis("GX999", "error", "something new", (Site(Frame("a", 1, "f")),), fix="do it")
    assert text(d, width=90) == (
        "error[GX999] something new\n --> a:1 in f\n  = written in place here\nhelp: do it"
    )


def test_the_same_site_is_shown_once(folder: Path) -> None:
    site = write(frame(9, "h += y"))
    assert text(stale((site, site, site)), width=90) == text(stale((site,)), width=90)


def test_the_text_of_a_diagnosis_is_the_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    d = stale((write(frame(9, "h += y")),), message="word " * 40)
    assert str(d) == text(d, width=77)


def test_a_failure_of_the_layout_still_names_the_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no layout today")

    monkeypatch.setattr(reporter, "_excerpt", fail)
    d = stale((write(Frame("a\udce9.py", 3, "f")),), (save(Frame("b.py", 4, "g")),))
    assert text(d) == (
        "error[GX101]: h was written in place\n"
        "  --> a\N{REPLACEMENT CHARACTER}.py:3\n"
        "  --> b.py:4\n"
        "help: write `h = h + y`\n"
        "(gradext could not lay out this report: ZeroDivisionError: no layout today)"
    )


@pytest.mark.parametrize("line", [None, "7", 7.5])
def test_data_of_a_wrong_type_does_not_raise(line: object) -> None:
    place = Frame("a.py", line, "f", "code", 1, 2, 3)  # type: ignore[arg-type]
    assert "h was written in place" in text(stale((write(place),)), width=90)
