"""Completion in real shells. A shell that is not installed skips its test, and says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import start

from gradext.commands import COMMANDS
from gradext.diagnosis.codes import CODES

ROOT = Path(__file__).resolve().parents[2]
GX3 = [code for code in CODES if code.startswith("GX3")]
# (the words before the cursor, what is offered)
LINES: list[tuple[list[str], list[str]]] = [
    (["expl"], ["explain"]),
    (["explain", "GX3"], GX3),
    (["run", "--format", ""], ["concise", "full"]),
    (["run", "--no-b"], ["--no-births"]),
    (["run", "--fail-on", "GX3"], GX3),
    (["run", "--quiet", "--sarif", "tra"], ["train.py"]),
    (["completion", ""], ["bash", "fish", "zsh"]),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script for each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        words = ("-m", "gradext", "completion", shell)
        made = start(words, folder, PYTHONPATH=str(ROOT))
        assert (made.code, made.err) == (0, b"")
        (folder / f"gradext.{shell}").write_text(made.text)
    (folder / "train.py").write_text("")
    return folder


def shell_of(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} is installed: its completion is not tried")
    return found


@pytest.mark.parametrize(("words", "offered"), LINES, ids=lambda value: " ".join(value)[:20])
def test_bash(words: list[str], offered: list[str], scripts: Path) -> None:
    line = " ".join(f"'{word}'" for word in ("gradext", *words))
    # compopt speaks of a completion that a key has begun, which there is none of here.
    program = (
        "source gradext.bash; compopt() { :; }; "
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _gradext; "
        'printf "%s\\n" "${COMPREPLY[@]}"; complete -p gradext'
    )
    done = subprocess.run(
        [shell_of("bash"), "--norc", "-c", program],
        cwd=scripts,
        capture_output=True,
        text=True,
        check=True,
    )
    *found, registered = done.stdout.splitlines()
    assert sorted(found) == sorted(offered)
    assert registered == "complete -F _gradext gradext"


def test_bash_leaves_the_programs_words_alone(scripts: Path) -> None:
    program = (
        "source gradext.bash; compopt() { :; }; "
        "COMP_WORDS=(gradext run --html page.html train.py --f); COMP_CWORD=5; _gradext; "
        'echo "${#COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [shell_of("bash"), "--norc", "-c", program],
        cwd=scripts,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize(("words", "offered"), LINES, ids=lambda value: " ".join(value)[:20])
def test_fish(words: list[str], offered: list[str], scripts: Path) -> None:
    line = " ".join(("gradext", *words))
    done = subprocess.run(
        [shell_of("fish"), "--no-config", "-c", f"source gradext.fish; complete -C '{line}'"],
        cwd=scripts,
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(scripts), "PATH": "/usr/bin:/bin"},
    )
    found = [row.split("\t")[0] for row in done.stdout.splitlines()]
    assert sorted(found) == sorted(offered)


@pytest.mark.parametrize(("words", "offered"), LINES, ids=lambda value: " ".join(value)[:20])
def test_zsh(words: list[str], offered: list[str], scripts: Path) -> None:
    """In an interactive zsh, by its own Tab."""
    pexpect = pytest.importorskip("pexpect")
    shell = pexpect.spawn(
        shell_of("zsh"),
        ["-f", "-i"],
        cwd=str(scripts),
        encoding="utf-8",
        timeout=60,
        dimensions=(60, 100),
        env={"HOME": str(scripts), "PATH": "/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C.UTF-8"},
    )
    try:
        shell.sendline("PS1='ready> '; unsetopt zle_bracketed_paste; setopt no_beep list_packed")
        shell.sendline("autoload -Uz compinit && compinit -u -D; source gradext.zsh; echo lo''aded")
        shell.expect("loaded")
        shell.send(" ".join(("gradext", *words)) + "\t\t")
        for one in offered:
            shell.expect_exact(one[len(words[-1]) :] if len(offered) == 1 else one)
    finally:
        shell.close(force=True)


def test_every_command_is_completed(scripts: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = (scripts / f"gradext.{shell}").read_text()
        assert all(name in text for name in COMMANDS)
        assert sys.executable not in text


def test_another_shell_is_one_line(tmp_path: Path) -> None:
    ran = start(("-m", "gradext", "completion", "tcsh"), tmp_path, PYTHONPATH=str(ROOT))
    assert ran.code == 2
    assert "invalid choice: 'tcsh'" in ran.errors.splitlines()[-1]
