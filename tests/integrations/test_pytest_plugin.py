"""The plugin in a real pytest: reports belong to their tests, and off costs nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import forks
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

TESTS = """
import unittest
import pytest
import torch

def stale():
    w = torch.ones(3, requires_grad=True)
    y = torch.sigmoid(w * 2)
    y.add_(1)
    return y.sum()

def written_past_the_counter():
    w = torch.ones(3, requires_grad=True)
    y = torch.sigmoid(w * 2)
    z = y * y
    y.data.mul_(2)
    z.sum().backward()

def written_by_numpy():
    w = torch.ones(3, requires_grad=True)
    y = torch.sigmoid(w * 2)
    z = y * y
    y.detach().numpy()[:] = 3
    z.sum().backward()

def test_stale():
    stale().backward()

def test_expected_error():
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        stale().backward()

def test_silently_wrong():
    written_past_the_counter()

@pytest.mark.gradext(allow=["GX401"])
def test_wrong_and_allowed():
    written_past_the_counter()

@pytest.mark.gradext(guard=True)
def test_by_numpy_with_a_guard():
    written_by_numpy()

def test_by_numpy():
    written_by_numpy()

def test_no_gradients():
    assert torch.ones(2).sum() == 2

def test_other_failure():
    assert 1 == 2

def test_a_cache_of_inference_mode():
    with torch.inference_mode():
        table = torch.ones(3)
    (torch.ones(3, requires_grad=True) * table).sum().backward()

@pytest.mark.xfail(strict=True)
def test_known_to_fail():
    stale().backward()

@pytest.fixture
def hidden():
    return torch.exp(torch.ones(3, requires_grad=True))

def test_saved_in_a_fixture(hidden):
    hidden += 1
    hidden.sum().backward()

class Case(unittest.TestCase):
    def test_unit(self):
        stale().backward()

    def test_unit_expected(self):
        with self.assertRaises(RuntimeError):
            stale().backward()
"""
FAIL_PLAIN = {
    *("test_stale", "test_other_failure", "test_a_cache_of_inference_mode"),
    *("test_saved_in_a_fixture", "test_unit"),
}


class Ran(NamedTuple):
    """What one run of pytest gave: outcome by test, and what was printed."""

    outcomes: dict[str, str]
    text: str
    found: dict[str, list[str]]  # codes by test, of --gradext-json
    junit: dict[str, str]


def run(folder: Path, *options: str, tests: str = TESTS, ini: str = "", plain: bool = False) -> Ran:
    """A real pytest on `tests`: a fork of a process that has imported torch, or a `plain` one."""
    (folder / "test_program.py").write_text(tests)
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}")
    for name in ("found.json", "junit.xml"):
        (folder / name).unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRADEXT", "PYTEST"))}
    path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    words = [
        *("-m", "pytest", "-p", "gradext_pytest", "-p", "no:cacheprovider"),
        *("--junitxml", "junit.xml", *options),
    ]
    environment |= {"PYTHONPATH": path, "COLUMNS": "100"}
    if plain:
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True
        )
        said = done.stdout + done.stderr
    else:
        said = b"".join(forks.run(words, folder, environment)[1:])
    outcomes, junit = {}, {}
    if (folder / "junit.xml").exists():
        for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):
            name, kinds = case.get("name", ""), {child.tag for child in case}
            bad = kinds & {"failure", "error"}
            outcomes[name] = "failed" if bad else "skipped" if "skipped" in kinds else "passed"
            junit[name] = "".join(case.itertext())
    found = {}
    if (folder / "found.json").exists():
        for test in json.loads((folder / "found.json").read_text())["tests"]:
            codes = [diagnosis["code"] for diagnosis in test["diagnoses"]]
            found[test["nodeid"].rsplit("::", 1)[-1]] = sorted(set(codes))
    return Ran(outcomes, said.decode(), found, junit)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(
        tmp_path_factory.mktemp("recorded"), "--gradext", "--gradext-json", "found.json", plain=True
    )


def failed(ran: Ran) -> set[str]:
    return {name for name, outcome in ran.outcomes.items() if outcome == "failed"}


def test_outcomes(recorded: Ran) -> None:
    assert len(recorded.outcomes) == 13, recorded.text
    silent = {"test_silently_wrong", "test_by_numpy_with_a_guard"}
    assert failed(recorded) == FAIL_PLAIN | silent, recorded.text


def test_the_json_has_the_codes_of_each_test(recorded: Ran) -> None:
    assert recorded.found == {
        "test_stale": ["GX101"],
        "test_silently_wrong": ["GX401"],
        "test_by_numpy_with_a_guard": ["GX401"],
        "test_a_cache_of_inference_mode": ["GX201"],
        "test_saved_in_a_fixture": ["GX101"],
        "test_unit": ["GX101"],
    }


def test_each_report_stands_with_its_test(recorded: Ran) -> None:
    """In junitxml, which keeps the text of one test apart from the next."""
    for name, codes in recorded.found.items():
        text = recorded.junit[name]
        assert all(f"[{code}]" in text for code in codes), text
        assert "help:" in text
    told = {name for name, text in recorded.junit.items() if "[GX" in text}
    assert told == set(recorded.found)
    assert "add_ writes `y`: version 0 -> 1" in recorded.junit["test_stale"]
    assert "each test is recorded" in recorded.text


def test_xdist_carries_it_over(recorded: Ran, tmp_path: Path) -> None:
    ran = run(tmp_path, "--gradext", "--gradext-json", "found.json", "-n", "2", plain=True)
    assert ran.outcomes == recorded.outcomes, ran.text
    assert ran.found == recorded.found
    assert "add_ writes `y`: version 0 -> 1" in ran.junit["test_stale"]


def test_off_changes_nothing_and_imports_nothing(tmp_path: Path) -> None:
    tests = TESTS.replace('@pytest.mark.gradext(allow=["GX401"])\n', "")
    tests = tests.replace("@pytest.mark.gradext(guard=True)\n", "")
    ran = run(tmp_path, tests=tests, plain=True)
    assert failed(ran) == FAIL_PLAIN, ran.text
    # Where the package is installed, the header names it among the plugins; and the checkout, with
    # an environment in it, may lie in a folder of this name.
    said = re.sub(r"^plugins: .*$", "", ran.text, flags=re.M)
    for folder in (str(tmp_path), sys.prefix, str(ROOT)):
        said = said.replace(folder, "")
    assert "gradext" not in said.replace("gradext_pytest", "")
    nothing = "import sys\ndef test_it():\n    assert not {'torch', 'gradext'} & set(sys.modules)\n"
    assert run(tmp_path, tests=nothing, plain=True).outcomes == {"test_it": "passed"}


def test_a_marker_alone_records_its_test(tmp_path: Path) -> None:
    ran = run(tmp_path, "--gradext-json", "found.json", "-k", "guard or stale or silently")
    assert ran.found == {"test_by_numpy_with_a_guard": ["GX401"]}, ran.text
    assert failed(ran) == {"test_stale", "test_by_numpy_with_a_guard"}


@pytest.mark.parametrize("mode", ["guard", "guard-all"])
@pytest.mark.parametrize("by", ["option", "ini"])
def test_a_guard_for_all(tmp_path: Path, by: str, mode: str) -> None:
    options = (f"--gradext={mode}",) if by == "option" else ()
    ini = f"gradext = {mode}\n" if by == "ini" else ""
    ran = run(tmp_path, *options, "-k", "test_by_numpy or test_no_gradients", ini=ini)
    assert failed(ran) == {"test_by_numpy_with_a_guard", "test_by_numpy"}, ran.text
    assert "with a guard" in ran.text


def test_warn_only(tmp_path: Path) -> None:
    ran = run(tmp_path, "--gradext", "--gradext-warn", "-k", "silently or stale")
    assert failed(ran) == {"test_stale"}, ran.text
    assert "GradextWarning" in ran.text
    assert "error[GX401]" in ran.text


def test_codes_allowed_for_all(tmp_path: Path) -> None:
    ran = run(tmp_path, "--gradext", "-k", "silently", ini="gradext_allow = GX401 GX404\n")
    assert failed(ran) == set(), ran.text


def test_without_capture(tmp_path: Path) -> None:
    ran = run(tmp_path, "--gradext", "-p", "no:capture", "-k", "test_stale")
    assert "[GX101]" in ran.junit["test_stale"], ran.text


ASYNC = """
import asyncio
import torch

def test_in_a_task():
    async def train():
        y = torch.exp(torch.ones(3, requires_grad=True))
        await asyncio.sleep(0)
        y += 1
        y.sum().backward()
    asyncio.run(train())
"""


def test_async(tmp_path: Path) -> None:
    ran = run(tmp_path, "--gradext", "--gradext-json", "found.json", tests=ASYNC)
    assert ran.found == {"test_in_a_task": ["GX101"]}, ran.text


@pytest.mark.parametrize(
    ("options", "ini", "line"),
    [
        (("--gradext=loud",), "", "invalid choice: 'loud'"),
        ((), "gradext = loud\n", "gradext = loud in "),
        (("--gradext-json", "nowhere/found.json"), "", "there is no folder"),
    ],
)
def test_bad_input(tmp_path: Path, options: tuple[str, ...], ini: str, line: str) -> None:
    ran = run(tmp_path, *options, ini=ini)
    assert line in ran.text
    assert not ran.outcomes
    assert "Traceback" not in ran.text


def test_a_marker_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    tests = textwrap.dedent("""
        import pytest

        @pytest.mark.gradext("guard")
        def test_it():
            pass
    """)
    ran = run(tmp_path, tests=tests)
    assert "ERROR: test_program.py::test_it: gradext's marker takes guard=True" in ran.text
    assert "Traceback" not in ran.text


SETTLED = """
import torch

def test_one_write():
    w = torch.ones(3, requires_grad=True)
    y = torch.sigmoid(w * 2)
    z = y * y
    y.data.mul_(2)
    z.sum().backward()
"""


def test_one_cause_is_one_block(tmp_path: Path) -> None:
    ran = run(tmp_path, "--gradext", tests=SETTLED)
    assert ran.junit["test_one_write"].count("error[GX401]") == 1
    assert "Sigmoid saves `y`" in ran.junit["test_one_write"]
