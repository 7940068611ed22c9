"""Variables of the environment are input: nonsense costs one line, and nothing is recorded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from programs import start

SOUND: dict[str, Any] = {
    "run": "0123456789abcdef",
    "root": 12345,
    "path": "/tmp/report.json",
    "outputs": [],
    "options": {
        "saves": True,
        "births": None,
        "cuts": None,
        "memory": None,
        "guard": None,
        "uses": False,
        "times": False,
    },
    "shown": {
        "layout": "full",
        "color": None,
        "path": None,
        "quiet": False,
        "github": None,
        "at_once": True,
    },
    "stderr": [5, 7],
    "claims": "/tmp/report.json.told",
}
PROGRAM = """
import os, sys
print("runs")
import torch
x = torch.ones(3, requires_grad=True)
y = x.exp()
y.mul_(2)
try:
    y.sum().backward()
except RuntimeError:
    print("fails")
from gradext.recording import recording
from gradext.run import session
print(recording.current(), session.current())
"""
AS_ALONE = b"runs\nfails\nNone None\n"
# What is refused is refused before the program begins: most need not import torch to see it.
SHORT = "print('runs')\n"


@pytest.fixture
def refused(tmp_path: Path, with_pth: dict[str, str]) -> Any:
    def refused(short: bool = False, **env: str) -> str:
        """The one line on stderr of a program that otherwise runs as without gradext."""
        (tmp_path / "train.py").write_text(SHORT if short else PROGRAM)
        done = start(["train.py"], tmp_path, **with_pth, **env)
        assert (done.code, done.out) == (0, b"runs\n" if short else AS_ALONE)
        assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
        lines = done.errors.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("gradext: not recording: ")
        assert lines[0].isprintable()
        return lines[0].removeprefix("gradext: not recording: ")

    return refused


@pytest.mark.parametrize(
    "text",
    ["nonsense", "[]", "3", "null", '{"run": 1}', '["a","b",3,true]', "[" * 9999, '"\\u001b[31m"'],
    ids=range(8),
)
def test_no_settings(refused: Any, text: str) -> None:
    assert "GRADEXT_RUN is not what" in refused(text != "nonsense", GRADEXT_RUN=text)


WRONG: dict[str, list[Any]] = {
    "run": [3, "", "xyz", "0123456789ABCDEF", "../../../../etc/x", "0" * 17],
    "root": [0, -1, True, "1", 2**40, 1.5],
    "path": [3, "", "3", "r.json", "./r.json", "/no/folder/r.json", "/tmp/", "/tmp/\0x"],
    "outputs": [1, None, "yes", [3], [["json"]], [["xml", "/tmp/r"]], [["json", "r.json"]], {}],
    "stderr": [1, "x", [], [1], [1, True], [1, 2, 3], [None, 1]],
    "claims": [3, None, "", "r.told", "/no/folder/r.told", "/tmp/"],
}
WRONG_SHOWN: dict[str, list[Any]] = {
    "layout": ["loud", None, []],
    "color": [1, "always"],
    "path": [3, "r.txt", "/tmp/\x1b"],
    "quiet": [None, 1],
    "github": [0, "yes"],
    "at_once": [None, 0],
}
WRONG_OPTIONS: dict[str, list[Any]] = {
    "saves": [0, None],
    "memory": [0, -5, True, "64", 1000, 2**44, 2.0**26],
    "births": [0, "no"],
    "cuts": [1],
    "guard": [True, False, "x"],
    "uses": [None, 1],
    "times": [None, 0],
}


def test_each_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gradext.recording.options import RecordOptions
    from gradext.run.settings import ENVIRONMENT, BadVariable, Settings
    from gradext.run.shown import Shown

    def read(**changes: Any) -> Settings | None:
        monkeypatch.setenv(ENVIRONMENT, json.dumps({**SOUND, **changes}))
        return Settings.from_environment()

    plain = {"outputs": (), "options": RecordOptions(), "shown": Shown(), "stderr": (5, 7)}
    assert read() == Settings(**{**SOUND, **plain})
    assert {*WRONG, "options", "shown"} == set(Settings._fields)
    assert set(WRONG_SHOWN) == set(Shown._fields)
    assert set(WRONG_OPTIONS) == set(RecordOptions._fields)
    for name, values in WRONG.items():
        for value in values:
            with pytest.raises(BadVariable, match=f"its {name} is wrong"):
                read(**{name: value})
    for name, values in WRONG_OPTIONS.items():
        for value in values:
            with pytest.raises(BadVariable, match=f"its {name} is wrong"):
                read(options={**SOUND["options"], name: value})
    for name, values in WRONG_SHOWN.items():
        for value in values:
            with pytest.raises(BadVariable, match=f"its {name} is wrong"):
                read(shown={**SOUND["shown"], name: value})
    for shown in (None, [], {}, {**SOUND["shown"], "more": 1}):
        with pytest.raises(BadVariable, match="this version"):
            read(shown=shown)
    for options in (None, [], {}, {**SOUND["options"], "more": 1}):
        with pytest.raises(BadVariable, match="this version"):
            read(options=options)
    with pytest.raises(BadVariable):
        read(more=1)


def test_one_wrong_setting_in_a_program(refused: Any) -> None:
    said = refused(GRADEXT_RUN=json.dumps({**SOUND, "path": "3"}))
    assert said == "GRADEXT_RUN is not what gradext sets: its path is wrong"
    # Nor is the other variable followed then: who set them meant something else.
    refused(GRADEXT_RUN="nonsense", GRADEXT_RECORD="1")


@pytest.mark.parametrize("value", ["xyz", "2", "true false", "\x1b[31mfull", "x" * 5000])
def test_no_mode(refused: Any, value: str) -> None:
    said = refused(value != "xyz", GRADEXT_RECORD=value)
    assert said.startswith("GRADEXT_RECORD is '")
    known = "1 (or full), light, guard, guard=all, options of gradext run, or 0"
    assert said.endswith(f"; it can be {known}")
    assert len(said) < 200


def test_words_for_one_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradext.run import variables

    def read(value: str) -> Any:
        monkeypatch.setenv("GRADEXT_RECORD", value)
        found = variables.settings() if not variables.is_off() else None
        return found and (found.options, found.outputs, found.shown)

    monkeypatch.delenv("GRADEXT_JSON", raising=False)
    assert read("1")[0].saves
    assert all(read(word) == read("1") for word in ("full", "yes", "TRUE", " on "))
    assert not read("light")[0].saves
    assert [read(word) for word in ("0", "", "off", "no", "False")] == [None] * 5


@pytest.mark.parametrize("value", ["yes", "light"])
def test_the_modes(value: str, tmp_path: Path, with_pth: dict[str, str]) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    done = start(["train.py"], tmp_path, **with_pth, GRADEXT_RECORD=value)
    assert b"None None" not in done.out
    assert b"GX101" in done.err


def test_the_options_of_gradext_run(tmp_path: Path, with_pth: dict[str, str]) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\nw = torch.ones(3, requires_grad=True)\ny = torch.sigmoid(w)\nz = y.exp()\n"
        "y.detach().numpy()[:] = 3\nz.sum().backward()\n"
    )
    for value, codes in (
        ("1", []),
        ("guard", ["GX401"]),
        ("guard=all", ["GX401"]),
        ("--guard --format concise", ["GX401"]),
        ("--guard=all --format concise", ["GX401"]),
    ):
        done = start(
            ["train.py"], tmp_path, **with_pth, GRADEXT_RECORD=value, GRADEXT_JSON="a.json"
        )
        found = json.loads((tmp_path / "a.json").read_text())["diagnoses"]
        assert sorted({d["code"] for d in found}) == codes, value
        assert ("train.py:5" in done.errors) == bool(codes)
    assert done.errors.startswith("train.py:5:1: GX401 ")
    options = "--guard --sarif b.sarif -o report.txt --memory 8"
    done = start(["train.py"], tmp_path, **with_pth, GRADEXT_RECORD=options)
    assert done.errors == ""
    assert "GX401" in (tmp_path / "b.sarif").read_text()
    assert "GX401" in (tmp_path / "report.txt").read_text()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--guard train.py", "'train.py' is no option of gradext run"),
        ("--guard --light", "--guard needs to know what is saved"),
        ("--fail-on GX4", "need gradext run"),
        ("--memory x", "--memory"),
        ("--json 'a", "No closing quotation"),
        ("-o nowhere/x", "there is no folder"),
    ],
)
def test_options_that_make_no_sense(refused: Any, value: str, why: str) -> None:
    said = refused(value != "--nonsense", GRADEXT_RECORD=value)
    assert said.startswith("GRADEXT_RECORD: ")
    assert why in said


@pytest.mark.parametrize("flag", ["-E", "-I"])
def test_flags_that_ignore_the_environment(flag: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"import gradext\n{PROGRAM}")
    done = start([flag, "train.py"], tmp_path, GRADEXT_RECORD="1", GRADEXT_RUN="nonsense")
    assert (done.code, done.out, done.err) == (0, AS_ALONE, b"")


@pytest.mark.parametrize(("real", "effective"), [("getuid", "geteuid"), ("getgid", "getegid")])
def test_a_program_with_other_rights(
    monkeypatch: pytest.MonkeyPatch, real: str, effective: str
) -> None:
    from gradext.run import autostart

    monkeypatch.setenv("GRADEXT_RECORD", "1")
    assert autostart.wanted()
    monkeypatch.setattr(os, effective, lambda: getattr(os, real)() + 1)
    assert not autostart.wanted()


# --- the line of the .pth file --------------------------------------------------------------------

LINE = (Path(__file__).parents[2] / "build_tools" / "gradext-autostart.pth").read_text()
BROKEN = {
    "raises": "raise RuntimeError('half \\x1b[31m gone\\nsecond')",
    "no module": "import gradext_part_that_is_gone",
    "syntax": "def (",
    "no encoding": "\udc80",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_gradext_costs_one_line(name: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "gradext").mkdir(parents=True)
    (site / "gradext" / "__init__.py").write_bytes(BROKEN[name].encode("utf-8", "surrogateescape"))
    # Without site, which would execute the line of an installed gradext as well.
    words = ["-S", "-c", f"exec({LINE!r}); print('runs')"]
    done = start(words, tmp_path, PYTHONPATH=str(site), GRADEXT_RECORD="1")
    assert (done.code, done.out) == (0, b"runs\n")
    (line,) = done.errors.splitlines()
    assert line.startswith("gradext: not recording: ")
    assert line.isprintable()
    unset = start(words, tmp_path, PYTHONPATH=str(site))
    assert (unset.code, unset.out, unset.err) == (0, b"runs\n", b"")


def test_the_line_is_one_that_site_executes() -> None:
    assert LINE.startswith("import ")
    assert LINE.count("\n") == 1
    assert LINE.endswith("\n")
