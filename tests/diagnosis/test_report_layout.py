"""The report's words around the excerpts: callers, labels, width, colour, data that is odd."""

from __future__ import annotations

import dataclasses
import linecache
import os
import re
from pathlib import Path

import pytest
from report_samples import frame, library, save, stale, write

from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.reporters import diagnosis_text as reporter
from gradext.reporters import excerpt
from gradext.reporters.diagnosis_text import report, text
from gradext.source import files

# --- callers and library frames -------------------------------------------------------------------


def test_callers_are_counted_and_cut(folder: Path) -> None:
    walk = Frame(str(folder / "train.py"), 14, "walk")
    others = tuple(Frame(str(folder / "train.py"), 20, f"f{i}") for i in range(7))
    shown = text(stale((write(frame(9, "h += y"), callers=(walk,) * 4 + others),)), width=90)
    assert (
        "  = called from line 14 in walk (4 times)\n"
        f"{'':16}line 20 in f0\n"
        f"{'':16}line 20 in f1\n"
        f"{'':16}(4 more)\n"
        f"{'':16}line 20 in f6\n"
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
    assert files.library_path(linecache.__file__) == "linecache.py"


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
