"""gradext.install(): the hooks in a program of its own, in an interactive shell, in a notebook."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading

import pytest
from programs import start

import gradext
from gradext.run import session as sessions


@pytest.fixture
def hooks():
    """The hooks of this process are the same after the test."""
    before = sys.excepthook, threading.excepthook
    yield before
    assert (sys.excepthook, threading.excepthook) == before
    assert sessions.current() is None


def test_the_hooks_come_and_go(hooks):
    from gradext.recording import recording

    installed = gradext.install()
    assert sys.excepthook is not hooks[0]
    assert threading.excepthook is not hooks[1]
    assert recording.current() is not None
    installed.uninstall()
    installed.uninstall()  # harmless
    assert recording.current() is None
    assert (sys.excepthook, threading.excepthook) == hooks


def test_twice_is_once(hooks):
    first = gradext.install()
    hook = sys.excepthook
    second = gradext.install()
    assert sys.excepthook is hook
    first.uninstall()
    assert sys.excepthook is hook  # the second still wants it
    second.uninstall()
    assert sys.excepthook is hooks[0]


def test_a_hook_put_over_ours_stays(hooks):
    said = []
    installed = gradext.install()
    ours = sys.excepthook
    theirs = lambda *args: (said.append(args[0]), ours(*args))  # noqa: E731
    sys.excepthook = theirs
    installed.uninstall()
    assert sys.excepthook is theirs
    sys.excepthook = hooks[0]


def test_as_a_context_manager(hooks, capsys):
    import torch

    with gradext.install() as installed:
        w = torch.ones(3, requires_grad=True)
        h = w * 2
        loss = (h * h).sum()
        h.mul_(2)
        with pytest.raises(RuntimeError):
            loss.backward()
        assert [d.code for d in installed.diagnoses] == ["GX101"]
    assert "warning[GX101]" in capsys.readouterr().err
    assert installed.diagnoses == []


def test_an_error_that_leaves_the_block_is_reported_there(hooks, capsys):
    import torch

    w = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError), gradext.install():
        w.add_(1)
    assert "error[GX102]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("mistakes.stale()", "error[GX101]"),
        ("mistakes.leaf()", "error[GX102]"),
        ("mistakes.caught(mistakes.stale)", "warning[GX101]"),
        ("threading.Thread(target=mistakes.leaf).start()", "error[GX102]"),
        ("mistakes.caught(mistakes.stale); os._exit(0)", "warning[GX101]"),
    ],
)
def test_a_program(write, mistakes, tmp_path, call, expected):
    source = "import os, threading\nimport mistakes\n{}\nprint('before')\n" + call
    write(source.format("import gradext; gradext.install()"))
    write(source.format(""), "plain.py")
    plain = start(["plain.py"], tmp_path, forked=True)
    found = start(["train.py"], tmp_path, forked=True)
    assert (found.code, found.out) == (plain.code, plain.out)
    assert found.errors.replace("train.py", "plain.py").startswith(plain.errors)
    assert found.errors.count(expected) == 1
    assert found.errors.count("docs: gradext explain") == 1


def test_with_the_options_of_gradext_run(write, tmp_path):
    write(
        """
        import gradext
        files = {"json": "a.json", "sarif": "a.sarif", "output": "a.txt"}
        gradext.install(guard=True, format="concise", **files)
        import torch
        w = torch.ones(3, requires_grad=True)
        y = torch.sigmoid(w)
        z = y.exp()
        y.detach().numpy()[:] = 3
        z.sum().backward()
        """
    )
    done = start(["train.py"], tmp_path, forked=True)
    assert (done.code, done.errors) == (0, "")
    (found,) = json.loads((tmp_path / "a.json").read_text())["diagnoses"]
    assert (found["code"], found["culprits"][0]["line"]) == ("GX401", 8)
    assert "GX401" in (tmp_path / "a.sarif").read_text()
    assert (tmp_path / "a.txt").read_text().startswith("train.py:8:1: GX401 ")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"format": "loud"}, "format is one of full, concise"),
        ({"report": "later"}, "report is one of now, end"),
        ({"json": "nowhere/a.json"}, "there is no folder"),
        ({"output": "nowhere/a.txt"}, "there is no folder"),
        ({"guard": True, "saves": False}, "guard needs to know what is saved"),
        ({"guard": "some"}, "guard: it is True, False, .exposed. or .all., not 'some'"),
    ],
)
def test_options_that_make_no_sense(hooks, options, why):
    with pytest.raises(ValueError, match=why):
        gradext.install(**options)


@pytest.mark.parametrize("guard", [True, "exposed", "all"])
def test_a_guard_that_is_asked_for_later(hooks, guard):
    import torch

    with gradext.install() as first, gradext.install(guard=guard):
        w = torch.ones(3, requires_grad=True)
        y = torch.sigmoid(w)
        z = y.exp()
        y.detach().numpy()[:] = 3
        z.sum().backward()
        assert [d.code for d in first.diagnoses] == ["GX401"]


def test_the_programs_own_hook_is_called_first(write, mistakes, tmp_path):
    write(
        """
        import sys
        import gradext, mistakes
        sys.excepthook = lambda *args: print("mine", file=sys.stderr)
        gradext.install()
        mistakes.stale()
        """
    )
    done = start(["train.py"], tmp_path, forked=True)
    assert done.errors.startswith("mine\n\nerror[GX101]")


def test_under_gradext_run_it_joins_the_run(recorded, write, mistakes):
    write(
        """
        import gradext, mistakes
        with gradext.install() as installed:
            mistakes.caught(mistakes.stale)
            print([d.code for d in installed.diagnoses])
        mistakes.leaf()
        """
    )
    found, report = recorded("train.py")
    assert found.out == b"['GX101']\n"
    assert [d["severity"] for d in report["diagnoses"]] == ["error", "warning"]


def test_it_records_the_children_that_it_forks(write, mistakes, tmp_path):
    write(
        """
        import multiprocessing
        import gradext, mistakes
        gradext.install()
        process = multiprocessing.get_context("fork").Process(target=mistakes.stale)
        process.start()
        process.join()
        """
    )
    done = start(["train.py"], tmp_path, forked=True)
    assert done.errors.count("error[GX101]") == 1
    assert "in the child process" in done.errors


def test_a_notebook(mistakes, tmp_path):
    """Each failing cell shows the report below its traceback, also when it is run again."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [
        "import gradext, mistakes\nhandle = gradext.install()",
        "mistakes.stale()",
        "mistakes.stale()",
        "mistakes.leaf()",
        "mistakes.caught(mistakes.stale)",
        "1 / 0",
        "handle.uninstall()",
        "mistakes.stale()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = nbclient.NotebookClient(
        book, allow_errors=True, timeout=180, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    def said(cell):
        kinds = [output["output_type"] for output in cell["outputs"]]
        text = "".join(o["text"] for o in cell["outputs"] if o["output_type"] == "stream")
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # ipykernel sets FORCE_COLOR
        return kinds, [word for word in text.split() if word.startswith(("error[", "warning["))]

    assert [said(cell) for cell in book["cells"]] == [
        ([], []),
        (["error", "stream"], ["error[GX101]"]),
        (["error", "stream"], ["error[GX101]"]),
        (["error", "stream"], ["error[GX102]"]),
        (["stream"], ["warning[GX101]"]),
        (["error"], []),
        ([], []),
        (["error"], []),
    ]


def test_an_interactive_python(mistakes, tmp_path):
    lines = b"import gradext, mistakes\nx = gradext.install()\nmistakes.stale()\nprint('on')\n"
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=lines, cwd=tmp_path, capture_output=True, timeout=120
    )
    assert done.stdout == b"on\n"
    assert done.stderr.count(b"error[GX101]") == 1
