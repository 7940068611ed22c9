"""The report on hand-made diagnoses: the exact text of its excerpts."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_samples import at, frame, library, marked, save, stale, write

from gradext.diagnosis.model import Diagnosis, Site
from gradext.reporters import excerpt
from gradext.reporters.diagnosis_text import text


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
   = called from line 14 in step
                 line 22 in main
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
  ::: line 7 in Block.forward
   |
 5 | class Block(nn.Module):
 6 |     def forward(self, x):
 7 |         h = torch.sigmoid(self.fc(x))
   |                           ---------- saves its output, h (aten::sigmoid)
 8 |         y = h * 2
   |
   = called from line 14 in step
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
   = called from line 22 in main
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
   = the write is between line 14 and line 16
docs: gradext explain GX401"""
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((16, 14), "the write is between line 16 and line 14 (of a later pass)"),
        ((14, 14), "the write is in what line 14 does"),
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
