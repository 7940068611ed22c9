"""What run_peers.py makes of a run: which differences it sees, and what it calls a failure."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("run_peers.py")
SPEC = importlib.util.spec_from_file_location("run_peers", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
run_peers: Any = importlib.util.module_from_spec(SPEC)
sys.modules["run_peers"] = run_peers  # dataclasses look there
SPEC.loader.exec_module(run_peers)


def outcome(tests: dict[str, str], own: tuple[str, ...] = (), seconds: float = 1.0) -> Any:
    return run_peers.Outcome(tests, seconds, 100.0, 0, list(own), [], "")


def wrong(**modes: Any) -> list[str]:
    return run_peers.faults(run_peers.compare("peer", modes))


SAME = {"a": "passed", "b": "failed", "c": "skipped"}


def test_the_same_outcomes_are_no_fault_though_some_failed() -> None:
    assert wrong(plain=outcome(SAME), run=outcome(dict(SAME), seconds=9.0)) == []


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ({**SAME, "a": "failed"}, "peer, run: a: passed, then failed"),
        ({**SAME, "b": "passed"}, "peer, run: b: failed, then passed"),
        ({"a": "passed", "b": "failed"}, "peer, run: c: skipped, then absent"),
        ({**SAME, "d": "passed"}, "peer, run: d: absent, then passed"),
    ],
)
def test_one_other_outcome_is_a_fault(tests: dict[str, str], said: str) -> None:
    assert wrong(plain=outcome(SAME), run=outcome(tests)) == [said]


def test_errors_of_its_own_and_no_tests_are_faults() -> None:
    found = wrong(plain=outcome(SAME), guard=outcome(SAME, own=("recorder: broken",)))
    assert found == ["peer, guard: gradext's own error: recorder: broken"]
    assert wrong(plain=outcome({})) == ["peer, plain: no test ran (exit code 0)"]


@pytest.mark.parametrize(
    ("line", "own"),
    [
        ("gradext: recorder: NestedTensorImpl doesn't support sizes (2 times)", True),
        ("gradext: not recording: OSError: full", True),
        ("gradext: 2 errors, 3 warnings", False),
        ("gradext: 1 error", False),
        ("gradext: 12 checks for silent errors were left out: they would have taken", False),
        ("    gradext: quoted in a source", False),
    ],
)
def test_which_lines_tell_of_its_own_errors(line: str, own: bool) -> None:
    assert bool(run_peers.OWN.match(line)) is own


def test_outcomes_are_read_from_junit(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="m" name="a"/><testcase classname="m" name="a"><failure/></testcase>'
        '<testcase classname="m" name="s"><skipped/></testcase>'
        '<testcase classname="m" name="e"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    assert run_peers.outcomes(file) == {
        "m::a": "passed",
        "m::a #2": "failed",
        "m::s": "skipped",
        "m::e": "failed",
    }
    assert run_peers.outcomes(tmp_path / "absent.xml") == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonesuch"], "unknown: nonesuch"),
        (["einops", "--modes", "plain,fast"], "unknown: fast"),
        (["torch"], "torch: its tests must be given: --source torch=FOLDER"),
    ],
)
def test_a_users_error_is_one_line_and_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_peers.py", *arguments, "--work", str(tmp_path)])
    try:
        code = run_peers.main()
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def repository(folder: Path) -> str:
    """A repository with two commits; the first one's name."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    folder.mkdir()
    git("init", "-q")
    for text in ("first", "second"):
        (folder / "test_a.py").write_text(text)
        (folder / "picture.png").write_text(text)
        git("add", ".")
        git("commit", "-q", "-m", text)
    return git("rev-parse", "HEAD~1")


def test_a_checkout_is_of_the_pinned_commit_and_without_pictures(tmp_path: Path) -> None:
    commit = repository(tmp_path / "clone")
    for clone, address in ((tmp_path / "clone", "nowhere"), (None, str(tmp_path / "clone"))):
        work = tmp_path / f"work{clone is None}"
        work.mkdir()
        folder = run_peers.checkout("a", address, commit, work, clone)
        assert [at.name for at in folder.iterdir()] == ["test_a.py"]
        assert (folder / "test_a.py").read_text() == "first"
        assert run_peers.checkout("a", "nowhere", commit, work, None) == folder


def test_a_commit_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    repository(tmp_path / "clone")
    with pytest.raises(run_peers.Unavailable) as info:
        run_peers.checkout("a", "nowhere", "0" * 40, tmp_path, tmp_path / "clone")
    assert str(info.value).startswith("a: git archive: ")
    assert "\n" not in str(info.value)
