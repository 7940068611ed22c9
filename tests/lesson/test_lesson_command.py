"""``gradext lesson`` as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import torch

from gradext.commands import main
from gradext.lesson import core

ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if key not in ("COLUMNS", "FORCE_COLOR", "PYTHONIOENCODING", "TTY_COMPATIBLE")
}

# A lesson of one chapter whose only claim is stated as argv[1] and comes out true.
ONE_CLAIM = """
import sys

from gradext.lesson import core

CHAPTER = core.Chapter(1, "for a test", "One claim.")


@CHAPTER.claim("One is one.", verdict=sys.argv.pop(1))
def one_is_one(lesson):
    lesson.show("one", 1)
    return True


core.chapters = lambda: [CHAPTER]

from gradext.__main__ import main

sys.exit(main())
"""


def lesson(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "gradext", "lesson", *arguments, **environment)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code, out, err = forks.run(words, Path.cwd(), {**ENVIRONMENT, **environment})
    return subprocess.CompletedProcess(words, code, out.decode(), err.decode())


def test_a_chapter_runs_and_every_claim_is_as_stated() -> None:
    done = lesson("1")
    claims = core.select(1)[0].claims
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert f"{len(claims)} claims, {len(claims)} as expected" in done.stdout
    assert done.stdout.endswith("Next: gradext lesson 2\n")
    for claim in claims:
        mark = {"true": "+", "false": "x"}[claim.stated]
        assert f"\n{claim.number}  {mark} " in done.stdout
        assert claim.instead in " ".join(done.stdout.split())
    assert "   | x = torch.ones(3, device=lesson.device)\n" in done.stdout
    assert "     requires_grad  False\n" in done.stdout


def test_a_narrow_terminal() -> None:
    done = lesson("3", COLUMNS="60")
    assert done.returncode == 0
    told = [line for line in done.stdout.splitlines() if not line.startswith("   | ")]
    assert max(map(len, told)) <= 60


def test_an_ascii_stream_on_a_terminal() -> None:
    done = lesson("2", PYTHONIOENCODING="ascii", FORCE_COLOR="1")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "\x1b[" in done.stdout


def test_list_names_every_claim(capsys: pytest.CaptureFixture[str]) -> None:
    done = lesson("--list")
    assert done.returncode == 0
    listed = " ".join(done.stdout.split())
    for chapter in core.chapters():
        assert f"{chapter.number}  {chapter.title}\n" in done.stdout
        for claim in chapter.claims:
            mark = {"true": "+", "false": "x", "depends": "?"}[claim.stated]
            assert f"{claim.number} {mark} {claim.text}" in listed

    assert main(["lesson", "--list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert [chapter["number"] for chapter in listing["chapters"]] == [1, 2, 3, 4, 5, 6]


def test_json_is_all_there_is_on_stdout() -> None:
    done = lesson("--json", "1", "3")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert set(report) == {"gradext", "torch", "device", "claims", "total", "as_stated"}
    assert report["torch"] == torch.__version__
    assert report["device"] == "cpu"
    assert report["total"] == report["as_stated"] == len(report["claims"])
    assert {claim["chapter"] for claim in report["claims"]} == {1, 3}
    for claim in report["claims"]:
        assert set(claim) == {
            "number", "chapter", "claim", "code", "stated", "verdict", "depends_on", "error",
            "evidence", "seconds", "as_stated", "instead",
        }  # fmt: skip
        assert claim["verdict"] == claim["stated"]
        assert claim["as_stated"] is True
        assert claim["evidence"]
        assert all(row["kind"] == "row" for row in claim["evidence"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["9"], "there is no chapter 9: the lesson has chapters 1 to 6"),
        (["two"], "a chapter is a number and a claim is one like 3.8, not 'two'"),
        (["3."], "a chapter is a number and a claim is one like 3.8, not '3.'"),
        (["3.99"], "there is no claim 3.99: chapter 3 has claims 3.1 to 3.13"),
        (["3.0"], "there is no claim 3.0: chapter 3 has claims"),
        (["9.1"], "there is no chapter 9"),
        (["--html", "no/such/folder/x.html", "1.1"], "cannot write no/such/folder/x.html"),
        (["--html", "x.html", "--list"], "--html goes with neither --list nor --json"),
        (["--device", "tpu"], "the lesson runs on 'cpu' or 'cuda', not on 'tpu'"),
        (["--notebook", "no/such/folder/x.ipynb"], "cannot write no/such/folder/x.ipynb"),
        (["--notebook", "x.ipynb", "--json"], "--notebook goes with neither --list nor --json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lesson", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gradext lesson: {says}")
    assert err.count("\n") == 1


def test_bad_input_ends_the_process_with_2() -> None:
    done = lesson("9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_one_line() -> None:
    done = lesson("--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("gradext lesson: device 'cuda' asked for, but ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("stated", "code"), [("true", 0), ("false", 1), ("depends", 1)])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_exit_code_is_0_only_if_all_came_out_as_stated(
    stated: str, code: int, arguments: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "one_claim.py"
    script.write_text(ONE_CLAIM)
    done = run(str(script), stated, "lesson", *arguments)
    assert done.stderr == ""
    assert done.returncode == code
    if arguments:
        assert json.loads(done.stdout)["as_stated"] == (1 if code == 0 else 0)
    elif code:
        word = {"false": "FALSE", "depends": "IT DEPENDS"}[stated]
        assert f"TRUE  NOT AS EXPECTED: {word} was" in done.stdout
        assert "1 claim, 0 as expected" in done.stdout
        assert done.stdout.endswith("Next: gradext doctor\n")


@pytest.mark.parametrize("arguments", [["2"], ["--list"], ["--json", "1"]])
def test_a_reader_that_leaves_gets_no_traceback(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "gradext", "lesson", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    # Closed before the first line is written: every write to the pipe fails.
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) not in (0, 2)
    assert errors == ""


def test_notebook_is_written(tmp_path: Path) -> None:
    file = tmp_path / "lesson.ipynb"
    done = lesson("--notebook", str(file), "1")
    assert done.returncode == 0
    claims = len(core.select(1)[0].claims)
    assert done.stdout == f"Wrote {file}: {claims} claims. Next: jupyter lab {file}\n"
    assert json.loads(file.read_text())["nbformat"] == 4


def test_one_claim_runs_alone_and_the_next_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    done = lesson("3.8")
    assert done.returncode == 0
    assert "1 claim, 1 as expected" in done.stdout
    assert "\n3.8  x backward() passes" in done.stdout
    assert done.stdout.endswith("Next: gradext lesson 3.9\n")
    assert main(["lesson", "--json", "6.2", "3.8", "6.2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [claim["number"] for claim in report["claims"]] == ["3.8", "6.2"]


def test_a_page_is_written(tmp_path: Path) -> None:
    file = tmp_path / "lesson.html"
    done = lesson("--html", str(file), "2.2", "3.1")
    assert done.returncode == 0
    assert done.stdout == f"Wrote {file}: 2 claims. Open it in a browser\n"
    text = file.read_text(encoding="utf-8")
    assert '<h3 id="c2.2">2.2 <span class="false">✗</span> The detached tensor is a copy' in text
    assert "lesson = begin(&quot;2.2&quot;)" in text
    assert "FALSE, as expected\nIt is the same memory" in text
    assert "<script" not in text
    assert text.count("<pre>") == text.count('<pre class="evidence">') == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("words", "paged"), [(["1.1"], True), (["--list"], True), (["--no-pager", "1.1"], False)]
)
def test_a_terminal_gets_a_pager(tmp_path: Path, words: list[str], paged: bool) -> None:
    import pty

    pager = tmp_path / "pager"
    pager.write_text(f"#!/bin/sh\necho paged\ncat > {tmp_path}/seen\n")
    pager.chmod(0o755)
    near, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gradext", "lesson", *words],
        stdin=far,
        stdout=far,
        stderr=far,
        env={**ENVIRONMENT, "PAGER": str(pager), "TERM": "xterm"},
    )
    os.close(far)
    shown = b""
    try:
        while chunk := os.read(near, 4096):
            shown += chunk
    except OSError:
        pass  # the other end is closed
    os.close(near)
    assert process.wait(timeout=120) == 0
    assert (b"paged" in shown) is paged
    assert (tmp_path / "seen").is_file() is paged
    text = (tmp_path / "seen").read_text() if paged else shown.decode()
    assert "requires_grad=False." in text
    assert "\x1b[" in text


def test_a_reader_that_leaves_its_pager_ends_the_lesson(monkeypatch, tmp_path) -> None:
    from gradext.base import terminal

    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nexit 0\n")
    pager.chmod(0o755)
    monkeypatch.setenv("PAGER", str(pager))
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: True)
    printed = 0
    with terminal.pager() as console:
        for _ in range(100_000):
            console.print("x" * 80)
            printed += 1
    assert printed < 100_000
