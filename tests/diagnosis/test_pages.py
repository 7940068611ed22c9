"""The pages: their examples do what they say in plain Python, and `gradext explain` shows them."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import forks
import pytest
import torch

from gradext.commands import explain
from gradext.diagnosis.codes import CODES, Code
from gradext.reporters import page as pages
from gradext.rules.rewrite.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent.parent
DIAGNOSED = sorted(CODES)
# What the wrong and the right example print where torch raises nothing. One that is not listed
# prints two different texts.
PRINTED = {
    "GX204": ("keeps an inference tensor: True\n", "keeps an inference tensor: False\n"),
    "GX304": ("got 1.0 expected 5.0\n", "got 5.0 expected 5.0\n"),
    "GX306": ("moved: False\n", "moved: True\n"),
    "GX401": ("got 1.5 expected 2.0\n", "got 2.0 expected 2.0\n"),
    "GX402": ("got 1.5 expected 2.0\n", "got 2.0 expected 2.0\n"),
    "GX403": ("got 0.10000000149011612 expected 1.0\n", "got 1.0 expected 1.0\n"),
    "GX404": (
        "got [5.0, 5.0, 5.0] expected [0.0, 5.0, 0.0]\n",
        "got [0.0, 5.0, 0.0] expected [0.0, 5.0, 0.0]\n",
    ),
    "GX405": ("the same: False\n", "the same: True\n"),
    "GX406": ("got 22.0 expected 16.0\n", "got 16.0 expected 16.0\n"),
}
# `gradext run` has nothing to report: found by `gradext check --inference` alone.
NOT_RUN = ["GX204"]
RUN = [code for code in DIAGNOSED if code not in NOT_RUN]
HEADINGS = [
    "What torch says",
    "Why",
    "Wrong",
    "What gradext prints",
    "Right",
    "What gradext fix makes of it",
    "Other ways to mend it",
]
# Part of the error text in every version of torch that gradext supports; 2.13's is quoted in full.
# The text of a code that is not listed is the same in all of them.
PHRASES = {
    "GX101": "modified by an inplace operation",
    "GX102": "a leaf Variable that requires grad is being used in an in-place operation",
    "GX103": "a view of a leaf Variable that requires grad is being used in an in-place operation",
    "GX104": "A view was created in no_grad mode and is being modified inplace",
    "GX105": "This view is the output of a function that returns multiple views",
    "GX106": "This view was created inside a custom Function",
    "GX107": "being vmapped over but `self` not being vmapped over",
    "GX201": "Inference tensors cannot be saved for backward",
    "GX202": "Inplace update to inference tensor outside InferenceMode is not allowed",
    "GX203": "Setting requires_grad=True on inference tensor outside InferenceMode is not allowed",
    "GX301": "does not require grad and does not have a grad_fn",
    "GX302": "Trying to backward through the graph a second time",
    "GX303": "appears to not have been used in the graph",
    "GX305": "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
}

# A guard that finds something warns, and that is what the example of GX405 is for.
GUARD_WARNS = """
import warnings
import gradext
warnings.simplefilter("ignore", gradext.GuardWarning)
"""
# Runs scripts one after the other in one process, each as a main program of its own.
DRIVER = """
import contextlib, io, json, sys

results = {}
for name, script in json.load(sys.stdin).items():
    printed, error = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(script, name, "exec"), {"__name__": "__main__"})
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
    results[name] = {"printed": printed.getvalue(), "error": error}
print(json.dumps(results))
"""


def page(code: str) -> str:
    text = explain.page(code)
    assert text is not None
    return text


def is_silent(code: str) -> bool:
    """Whether torch raises nothing, by the page."""
    return "\n## What torch says\n\nNothing" in page(code)


def blocks(code: str, heading: str, language: str) -> list[str]:
    """The fenced blocks of that language below a heading."""
    section = page(code).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def example(code: str, heading: str) -> str:
    (script,) = blocks(code, heading, "python")
    return script


def on_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def ran() -> dict[str, Any]:
    """What each example printed and raised, by "GX101 Wrong"."""
    scripts = {f"{code} {kind}": example(code, kind) for code in DIAGNOSED for kind in KINDS}
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("GRADEXT_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GUARD_WARNS + DRIVER],
        input=json.dumps(scripts),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


KINDS = ("Wrong", "Right")


# --- what the pages say --------------------------------------------------------------------------


def test_the_pages_are_those_of_the_codes_that_are_diagnosed() -> None:
    assert sorted(path.name for path in explain.PAGES.iterdir()) == [
        f"{code}.md" for code in DIAGNOSED
    ]


@pytest.mark.parametrize("code", DIAGNOSED)
def test_a_page_has_its_parts_in_order(code: str) -> None:
    text = page(code)
    assert text.startswith(f"# {code}: ")
    assert f"\n\n`{CODES[code].name}`. " in text
    headings = re.findall(r"^## (.*)$", text, re.M)
    limits = "Limits of this diagnosis" if is_silent(code) else "Limits of torch's check"
    assert headings == [*HEADINGS, limits]
    marks = re.search(
        rf"^<!-- generated: {code} -->\n(?:.*\n)?<!-- /generated -->$", text, re.M | re.S
    )
    assert (marks is not None) == (code in RUN)
    written = [line for line in text.splitlines() if not line.startswith(("+", "-"))]
    assert max(map(len, written)) <= 100


@pytest.mark.parametrize("code", RUN)
def test_what_gradext_prints_names_the_code(code: str) -> None:
    """Empty until build_tools/docs/pages.py has run; never the report of something else."""
    section = page(code).split("\n## What gradext prints\n", 1)[1].split("\n## ", 1)[0]
    inside = section.split("-->\n", 1)[1].split("<!-- /generated", 1)[0]
    if inside:
        assert re.match(rf"```\n(?:error|warning)\[{code}\] {CODES[code].name}: ", inside)
        assert f"docs: gradext explain {code}\n```\n" in inside
        assert " --> wrong.py:" in inside


@pytest.mark.parametrize("code", DIAGNOSED)
def test_a_page_names_each_strategy_for_its_code(code: str) -> None:
    section = page(code).split(f"<!-- generated: {code} fix -->\n", 1)[1]
    inside = section.split("<!-- /generated", 1)[0]
    ways = [inspect.getdoc(type(one)) for one in STRATEGIES if code in one.codes]
    assert all(way is not None for way in ways)
    for way in ways:
        assert "- " + on_one_line(str(way).split("\n\n", 1)[0]) in inside
    assert ("What it can try" in inside) == bool(ways)
    shown = re.findall(r"^### .*\n\n(\S.*)$", inside, re.M)
    assert len(shown) <= 3
    assert all(re.match(r"verified: |runs, (and changes|not proved)|fails: ", it) for it in shown)
    assert set(re.findall(r"^--- .*$", inside, re.M)) <= {"--- a/wrong.py"}


@pytest.mark.parametrize("code", [code for code in DIAGNOSED if not is_silent(code)])
def test_a_wrong_example_fails_with_the_quoted_error(ran: dict[str, Any], code: str) -> None:
    said = ran[f"{code} Wrong"]["error"]
    (quoted,) = blocks(code, "What torch says", "text")
    assert said is not None
    phrase = PHRASES.get(code)
    assert phrase is None or phrase in said
    assert phrase is None or phrase in on_one_line(quoted)
    if phrase is None or torch.__version__.startswith("2.13."):
        said = said.split(" (Triggered internally")[0]
        assert on_one_line(said) == on_one_line(quoted)


@pytest.mark.parametrize("code", [code for code in DIAGNOSED if is_silent(code)])
def test_a_silent_example_is_wrong_without_an_error(ran: dict[str, Any], code: str) -> None:
    wrong = ran[f"{code} Wrong"]
    assert wrong["error"] is None
    assert blocks(code, "Wrong", "text") == [wrong["printed"]]
    right = ran[f"{code} Right"]["printed"]
    assert wrong["printed"] != right
    assert (wrong["printed"], right) == PRINTED.get(code, (wrong["printed"], right))


@pytest.mark.parametrize("code", DIAGNOSED)
def test_a_right_example_runs_clean(ran: dict[str, Any], code: str) -> None:
    assert ran[f"{code} Right"]["error"] is None


@pytest.mark.parametrize("code", DIAGNOSED)
def test_the_two_examples_differ_in_few_lines(code: str) -> None:
    wrong, right = (
        [line.split("  #")[0] for line in example(code, kind).splitlines() if line.strip()]
        for kind in KINDS
    )
    changed = [line for line in difflib.ndiff(wrong, right) if line[0] in "+-"]
    assert 1 <= len(changed) <= 6
    assert 3 <= len(wrong) <= 15


# --- what fills the pages, and their index -------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """build_tools/docs/pages.py."""
    spec = importlib.util.spec_from_file_location(
        "generate_pages", ROOT / "build_tools" / "docs" / "pages.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.gradext = lambda folder, *words: forks.gradext(Path(folder), *words)  # type: ignore[attr-defined]
    return module


def test_the_index_lists_every_page(generate: ModuleType) -> None:
    made = generate.files()
    assert set(made) == {"index.md", *(f"{code}.md" for code in DIAGNOSED)}
    for code in DIAGNOSED:
        assert made[f"{code}.md"] == page(code)
        assert (
            f"| [{code}]({code}.md) | `{CODES[code].name}` | {explain.title(code)} |"
            in (made["index.md"])
        )


def test_filling_puts_the_report_between_the_marks(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "GX101.md").write_text(page("GX101"), encoding="utf-8")
    monkeypatch.setattr(explain, "PAGES", tmp_path)
    asked = []

    def printed(script: str) -> str:
        asked.append(script)
        return f"error[GX101] number {len(asked)} \\1"

    monkeypatch.setattr(generate, "printed", printed)
    generate.fill("GX101")
    generate.fill("GX101")
    text = page("GX101")
    assert (
        "<!-- generated: GX101 -->\n```\nerror[GX101] number 2 \\1\n```\n<!-- /generated -->"
        in text
    )
    assert "number 1" not in text
    assert asked[0] == asked[1] == blocks("GX101", "Wrong", "python")[0]


@pytest.mark.parametrize("code", NOT_RUN)
def test_a_page_without_a_report_is_one_of_a_program_without_a_report(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    assert generate.printed(example(code, "Wrong")) is None
    before = page(code)
    generate.fill(code)
    assert page(code) == before
    monkeypatch.setattr(generate, "printed", lambda script: f"error[{code}]")
    with pytest.raises(SystemExit, match=f"the page of {code} has no marks for this report"):
        generate.fill(code)
    monkeypatch.setattr(generate, "printed", lambda script: None)
    with pytest.raises(SystemExit, match="reported nothing for the wrong example of GX101"):
        generate.fill("GX101")


@pytest.mark.parametrize("line", ["torch.autograd.grad(", "out + (", "loss.backward()"])
def test_the_comment_of_gx304_silences_each_marked_line(generate: ModuleType, line: str) -> None:
    lines = example("GX304", "Wrong").splitlines()
    (number,) = [i for i, text in enumerate(lines) if line in text]
    code = lines[number].split("  #")[0]
    lines[number] = f"{code}  # gradext: ignore[GX304]"
    assert generate.printed("\n".join(lines)) is None


NOT_REPORTED = """
import torch

w, u = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
with torch.no_grad():
    term = (u * 3).sum()
((w * 2).sum() + term + (u * 3).sum().detach()).backward()

x = torch.ones(1, requires_grad=True)
out = (w * x).sum()
out.backward(retain_graph=True)
(out + (x.grad - 1).pow(2).sum()).backward()

(w * 3).detach().requires_grad_().sum().backward()
(torch.tensor((w * 3).tolist(), requires_grad=True) * u).sum().backward()
"""


def test_the_limits_of_gx304(generate: ModuleType) -> None:
    """What its page says is not reported; the page has to change when this does."""
    assert generate.printed(NOT_REPORTED) is None
    alone = NOT_REPORTED.replace("requires_grad=True) * u)", "requires_grad=True) * 2)")
    assert alone != NOT_REPORTED
    report = generate.printed(alone)
    assert report.startswith(
        "warning[GX304] silent-cut: a tensor was rebuilt as a leaf: `.tolist()`"
    )
    assert re.search(r" --> wrong\.py:15(:\d+)? in ", report)  # 3.10 keeps no columns


# --- the command ---------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gradext", "explain", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=120,
    )


def test_a_page_in_a_pipe_is_the_markdown() -> None:
    done = run("GX101")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == page("GX101")


def test_a_code_that_does_not_exist() -> None:
    done = run("stale-saved-tensro")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gradext explain: there is no code 'stale-saved-tensro'; "
        "did you mean stale-saved-tensor (GX101)?\n"
    )


def test_a_reader_that_leaves() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gradext", "explain", "GX101"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def call(*arguments: str) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    command = explain.ExplainCommand()
    command.prepare_parser(parser)
    return command.run(parser.parse_args(arguments), parser)


def test_all_codes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CODES)
    assert [line.split()[1] for line in lines] == [code.name for code in CODES.values()]
    assert lines[0].endswith("  a saved tensor was written in place before backward")
    for line in lines:
        assert line.endswith("does not diagnose it yet") is (line.split()[0] not in DIAGNOSED)


@pytest.mark.parametrize(
    "word", ["GX401", "gx401", "Gx401", "401", "silent-write", "Silent-Write", "silent_write"]
)
def test_ways_to_name_a_code(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(word) == 0
    assert capsys.readouterr().out == page("GX401")


def test_a_code_without_a_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODES, "GX999", Code("not-there-yet", "error", "", ""))
    assert call("GX999") == 0
    assert capsys.readouterr().out == (
        "GX999 not-there-yet: this version does not diagnose it yet\n"
    )


_LEAVES = (
    "leaf-written-in-place (GX102) or view-of-leaf-written (GX103) or non-leaf-grad-read (GX305)"
)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("GX108", "did you mean GX107 or GX106 or GX105?"),
        ("gx1O1", "gradext explain lists all codes"),
        ("leaf", f"did you mean {_LEAVES}?"),
        ("unused-inputs", "did you mean unused-input (GX303)?"),
        ("E501", "gradext explain lists all codes"),
        ("", "gradext explain lists all codes"),
    ],
)
def test_near_matches(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(word) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"gradext explain: there is no code {word!r}; {hint}\n"


def test_json_of_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("303", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "code": "GX303",
        "name": "unused-input",
        "title": "a gradient was asked for a tensor that the graph does not use",
        "text": page("GX303"),
    }


def test_json_of_all_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--json") == 0
    rows = json.loads(capsys.readouterr().out)["codes"]
    assert {row["code"]: row["name"] for row in rows} == {
        code: row.name for code, row in CODES.items()
    }
    assert [row["code"] for row in rows if row["text"] is not None] == DIAGNOSED


# --- in a terminal -------------------------------------------------------------------------------

MARKDOWN = """\
# GX999: a heading of several words

First line of a `paragraph
in backquotes` and more words.

```text
RuntimeError: a quoted error
that goes on.
```

## Wrong

```python
x = 1  # a long line of code that is never broken at all

y = 2
```

<!-- generated: GX999 -->
```
error[GX999]
  --> wrong.py
```
<!-- /generated -->

- one `item`
  that goes on
- two
"""


def test_rendered_without_colour() -> None:
    assert pages.render(MARKDOWN, 30, color=False) == (
        """\
GX999: a heading of several
words

First line of a
`paragraph in backquotes` and
more words.

    RuntimeError: a quoted
    error that goes on.

Wrong

    x = 1  # a long line of code that is never broken at all

    y = 2

    error[GX999]
      --> wrong.py

- one `item` that goes on
- two"""
    )


def test_rendered_with_colour() -> None:
    lines = pages.render(MARKDOWN, 80, color=True).splitlines()
    assert lines[0] == "\x1b[1mGX999: a heading of several words\x1b[0m"
    assert "First line of a \x1b[36mparagraph in backquotes\x1b[0m and more words." in lines
    assert "    \x1b[36my = 2\x1b[0m" in lines
    assert "- one \x1b[36mitem\x1b[0m that goes on" in lines


@pytest.mark.parametrize("code", DIAGNOSED)
def test_every_page_renders(code: str) -> None:
    shown = pages.render(page(code), 80, color=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "```" not in plain
    assert "<!--" not in plain
    prose = [line for line in plain.splitlines() if not line.startswith("    ")]
    assert "`" not in "\n".join(prose)
    for line in example(code, "Wrong").splitlines():
        assert f"    {line}".rstrip() in plain.splitlines()
    words = re.sub(r"[^a-z]", "", on_one_line(page(code)).replace("```python", "").lower())
    kept = re.sub(r"[^a-z]", "", plain.lower())
    assert abs(len(words) - len(kept)) <= 100  # fences and comments alone are gone


@pytest.mark.parametrize(
    ("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_gets_the_rendered_page(
    environment: dict[str, str],
    colour: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "70", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert call("GX102") == 0
    shown = capsys.readouterr().out
    assert shown == pages.render(page("GX102"), 70, color=colour) + "\n"
    assert ("\x1b[1mWhy\x1b[0m" in shown) is colour
