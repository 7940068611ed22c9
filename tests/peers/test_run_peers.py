"""What run_peers.py makes of a run: which differences it sees, and what it calls a failure."""

from __future__ import annotations

import importlib.util
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
        (["torch"], "torch: no sdist has its tests; give a clone: --source torch=FOLDER"),
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
