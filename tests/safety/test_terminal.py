"""No text from outside reaches a terminal as something that it would obey, nor HTML as a tag."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gradext
from gradext.base.text import clean, clean_lines
from gradext.diagnosis.model import Diagnosis, Frame, Site

EVIL = "a\x1b]0;t\x07\x1b[31m\x9b31m\x08\r\u202eb\u2066c\u200f\u2028d\x00<b>[bold]e[/bold]&"


def is_harmless(text: str) -> bool:
    controls = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return not any(
        (unicodedata.category(c) in {"Cc", "Zl", "Zp"} and c != "\n")
        or unicodedata.category(c) == "Cs"
        or unicodedata.bidirectional(c) in controls
        or c in "\u200e\u200f\u061c"
        for c in text
    )


def test_every_character() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert is_harmless(clean(every))
    assert "\n" not in clean(every)
    assert len(clean(every)) == len(every)
    assert is_harmless(clean_lines(every).replace("\t", ""))
    assert clean_lines("a\n\tb") == "a\n\tb"
    plain = "naïve – ünïcode 漢字 🙂"
    assert clean(plain) == plain


FRAME = Frame(f"/x/{EVIL}.py", 3, f"f{EVIL}", f"x = {EVIL!r} {EVIL}", 0, 3, 5)
SITE = Site(FRAME, f"aten::{EVIL}", 0, 1, (FRAME,), (FRAME,), EVIL, 2, True)
DIAGNOSIS = Diagnosis("GX101", "error", EVIL, (SITE,), (SITE,), EVIL, (EVIL, EVIL))


def _state() -> Any:
    return dataclasses.replace(gradext.inspect(torch.ones(2)), grad_fn=EVIL, dispatch_keys=(EVIL,))


def _tree() -> Any:
    module = torch.nn.Module()
    module.__dict__["_buffers"][EVIL] = torch.ones(2)
    return {EVIL: torch.ones(2), "m": module}


def _mutations() -> str:
    from gradext.recording.events import Write
    from gradext.reporters import recording

    write = Write(1, EVIL, EVIL, 0, 5, 6, 0, 4, 0, 1, 1, 0, 0, None, *[False] * 5)
    return recording.mutations([write], [FRAME], clean(EVIL))


def _compared() -> str:
    from gradext.reporters import compare_modes

    return compare_modes._table(EVIL, ["mode", EVIL], [[EVIL, EVIL]])


def _survey() -> str:
    from gradext.reporters import opcheck

    finding = {
        "op": EVIL,
        "kind": "bumped twice",
        "subject": EVIL,
        "reason": EVIL,
        "source": EVIL,
        "severity": "error",
        "fix": EVIL,
    }
    counts = {
        "overloads": 1,
        "exercised": 1,
        "writable": 1,
        "writable exercised": 1,
        "writable with every write seen": 1,
    }
    data = {
        "counts": counts,
        "namespace": EVIL,
        "torch": EVIL,
        "devices": [EVIL],
        "isolation": "none",
        "op_db": True,
        "findings": [finding],
        "kinds": {"bumped twice": [EVIL]},
        "crashed": {EVIL: EVIL},
        "not_exercised": {"writable": {EVIL: [EVIL]}, "others": {}},
        "no_change_seen": {EVIL: [EVIL]},
    }
    return opcheck.text(data, verbose=True)


def _broken_report() -> str:
    from gradext.reporters import diagnosis_text

    return diagnosis_text._bare(DIAGNOSIS, ValueError(EVIL))


def _changes() -> str:
    before = gradext.fingerprint({EVIL: torch.ones(2), "x": torch.ones(1)})
    after = gradext.fingerprint({"x": torch.zeros(1)})
    return str(gradext.compare_fingerprints(before, after))


REPORTS: dict[str, Callable[[], str]] = {
    "diagnosis": lambda: str(DIAGNOSIS),
    "a report that failed": _broken_report,
    "card": lambda: str(_state()),
    "tree": lambda: str(gradext.inspect_tree(_tree())),
    "fingerprints": lambda: str(gradext.fingerprint(_tree())),
    "changes": _changes,
    "modes": _compared,
    "mutations": _mutations,
    "ops": _survey,
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports(name: str) -> None:
    text = REPORTS[name]()
    assert is_harmless(text), ascii(text)
    assert "[bold]" in text or "[bold" in text.replace("\n", "")  # no markup was followed


@pytest.mark.parametrize("make", [_state, lambda: gradext.inspect_tree(_tree())])
def test_html(make: Callable[[], Any]) -> None:
    text = make()._repr_html_()
    assert "<b>[bold]" not in text
    assert "&lt;b&gt;[bold]" in text
    assert is_harmless(text)


# A command line with the text in it, by the words behind `gradext`.
WORD = EVIL.replace("\x00", "")
COMMANDS: dict[str, list[str]] = {
    "no command": [WORD],
    "unknown option": ["run", f"--{WORD}", "x.py"],
    "json": ["run", "--json", f"/no/{WORD}", "x.py"],
    "memory": ["run", "--memory", WORD, "x.py"],
    "no such script": ["run", WORD],
    "explain": ["explain", WORD],
    "bench": ["bench", WORD],
    "bench against": ["bench", "state", "--against", WORD],
    "lesson": ["lesson", WORD],
    "check": ["check", "--inference", f"{WORD}:f"],
    "check a file": ["check", "--inference", f"{WORD}.py:f"],
    "check ops": ["check", "--ops", "--import", WORD],
    "doctor": ["doctor", WORD],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gradext", *COMMANDS[name]],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1", "PYTHON_COLORS": "0"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode != 0
    for stream in (done.stdout, done.stderr):
        assert is_harmless(stream.decode()), stream
    assert done.stderr


PROGRAM = """
import threading, torch
x = torch.ones(3, requires_grad=True)
def fail():
    y = x.exp()
    y.mul_(2)  # {evil}
    y.sum().backward()
thread = threading.Thread(target=fail, name={evil!r})
thread.start(); thread.join()
try:
    fail()
except RuntimeError as error:
    raise SystemExit(0)
"""


def test_a_run(tmp_path: Path) -> None:
    evil = WORD.replace("\r", "").replace("\u2028", "")
    script = tmp_path / f"{evil.replace('/', '')}.py"
    script.write_text(PROGRAM.format(evil=evil), encoding="utf-8")
    code = f"import threading; threading.excepthook = lambda a: 0\n{script.read_text('utf-8')}"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", str(script)],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert b"GX101" in done.stderr
    assert is_harmless(done.stderr.decode()), done.stderr
