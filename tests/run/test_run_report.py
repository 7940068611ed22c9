"""What `gradext run` reports, from real recordings of real programs.

What a diagnosis says is tested with the rules; here: which are told, as what, in which order, and
that the program's own output stays as it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from programs import MISTAKES, RUN, Ended, start


def heads(ended: Ended) -> list[str]:
    """The first words of each diagnosis on stderr."""
    lines = ended.errors.splitlines()
    return [line.split()[0] for line in lines if line.startswith(("error[", "warning["))]


def test_an_uncaught_error(plain, recorded, write, mistakes):
    write("import mistakes\nprint('before')\nmistakes.stale()\n")
    expected = plain("train.py")
    found, report = recorded("train.py")
    assert found.code == expected.code == 1
    assert found.out == expected.out
    # Python's traceback byte for byte, then an empty line, then the report.
    assert found.err.startswith(expected.err)
    assert found.err[len(expected.err) :].startswith(b"\nerror[GX101] stale-saved-tensor: ")
    assert found.errors.endswith("docs: gradext explain GX101\n")
    assert found.err.isascii()
    assert report["exit_code"] == 1
    assert report["error"] == expected.errors.splitlines()[-1]
    (diagnosis,) = report["diagnoses"]
    assert (diagnosis["code"], diagnosis["severity"]) == ("GX101", "error")
    assert diagnosis["culprits"][0]["file"] == str(mistakes.path)
    assert diagnosis["culprits"][0]["line"] == mistakes.line("stale")
    assert diagnosis["victims"][0]["line"] == mistakes.line("stale", "victim")
    assert diagnosis["fix"]


def test_an_uncaught_error_of_a_forward(plain, recorded, write, mistakes):
    write("import mistakes\nmistakes.leaf()\n")
    expected = plain("train.py")
    found, report = recorded("train.py")
    assert found.err.startswith(expected.err)
    assert heads(found) == ["error[GX102]"]
    assert report["diagnoses"][0]["culprits"][0]["line"] == mistakes.line("leaf")


@pytest.mark.parametrize("words", [["-m", "train"], ["-"], ["-c"], ["train.py"], ["app"]])
def test_every_form_of_a_program(recorded, write, mistakes, words):
    source = "import mistakes\nmistakes.stale()\n"
    write(source)
    write(f"import sys; sys.path.insert(0, '.')\n{source}", "app/__main__.py")
    if words == ["-c"]:
        words = ["-c", source]
    found, report = recorded(*words, stdin=source.encode() if words == ["-"] else b"")
    assert found.code == 1
    assert report["diagnoses"][0]["culprits"][0]["line"] == mistakes.line("stale")


def test_a_program_typed_on_the_command_line_has_its_lines(recorded):
    code = (
        "import torch\nw = torch.ones(3, requires_grad=True)\nh = w * 2\n"
        "loss = (h * h).sum()\nh.mul_(2)\nloss.backward()"
    )
    _, report = recorded("-c", code)
    culprit = report["diagnoses"][0]["culprits"][0]
    assert (culprit["file"], culprit["line"]) == ("<string>", 5)


def test_a_relative_script_in_a_folder_that_changes(recorded, write, tmp_path, mistakes):
    (tmp_path / "elsewhere").mkdir()
    write("import os, mistakes\nos.chdir('elsewhere')\nmistakes.stale()\n")
    _, report = recorded("train.py")
    frames = [*report["diagnoses"][0]["culprits"], *report["diagnoses"][0]["victims"]]
    for frame in frames:
        assert os.path.isabs(frame["file"])
        for caller in frame.get("callers", []):
            assert caller["file"] in {str(tmp_path / "train.py"), str(mistakes.path)}


def test_a_clean_run_says_nothing(alike, write):
    write(
        """
        import os
        os.environ["OMP_NUM_THREADS"] = "3"
        import sys
        before = "torch" in sys.modules
        import torch
        print(before, torch.get_num_threads(), torch.__spec__.name, type(torch.__spec__).__name__)
        print([type(finder).__name__ for finder in sys.meta_path], sys.excepthook)
        print(sorted(k for k in os.environ if "GRAD" in k) in ([], ["GRADEXT_RUN"]))
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 2)
        optimizer = torch.optim.Adam(layer.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            loss = layer(torch.randn(8, 4)).pow(2).mean()
            loss.backward()
            optimizer.step()
        print(loss.item(), torch.get_rng_state().sum())
        print("warned", file=sys.stderr)
        """
    )
    _, report = alike("train.py")
    import torch

    assert report["torch"] == torch.__version__
    assert report["diagnoses"] == []
    assert report["exit_code"] == 0


def test_gradext_in_a_recorded_program(alike, write):
    """The names come when they are asked for, and `import gradext` leaves torch alone."""
    write(
        """
        import sys
        import gradext, gradext.ops, gradext.state.inspect
        from gradext import inspect
        import torch
        print(torch.ops.gradext.version(torch.ones(2)), inspect(torch.ones(2)).version)
        print(sorted(gradext.__all__)[:3], hasattr(gradext, "nonsense"), gradext.ops.__name__)
        print(gradext.state.inspect.inspect is gradext.inspect, gradext._C.__name__)
        """
    )
    alike("train.py")
    write("import sys, gradext\nassert 'torch' not in sys.modules\nprint(gradext.inspect)", "l.py")

    done = start([*RUN, "l.py"], write("", "x").parent)
    assert done.code == 0, done.errors


def test_torch_imported_by_a_thread(recorded, write, mistakes):
    write(
        """
        import threading
        thread = threading.Thread(target=__import__, args=("mistakes",))
        thread.start()
        thread.join()
        import mistakes
        mistakes.stale()
        """
    )
    found, report = recorded("train.py")
    assert found.code == 1
    assert report["diagnoses"][0]["culprits"][0]["line"] == mistakes.line("stale")


def test_an_import_of_torch_that_fails_once(alike, write):
    write("1 / 0", "broken/torch/__init__.py")
    write(
        """
        import sys, traceback
        sys.path.insert(0, "broken")
        try:
            import torch
        except ZeroDivisionError:
            traceback.print_exc()
        sys.path.remove("broken")
        import torch
        print(torch.ones(1))
        """
    )
    alike("train.py")


# --- caught or not -------------------------------------------------------------------------------


def test_a_caught_error_is_a_warning(plain, recorded, write, mistakes):
    write("import mistakes\nmistakes.caught(mistakes.stale)\nprint('goes on')")
    expected = plain("train.py")
    found, report = recorded("train.py")
    assert (found.code, found.out) == (expected.code, expected.out)
    assert heads(found) == ["warning[GX101]"]
    assert report["error"] is None
    assert report["exit_code"] == 0
    assert [d["severity"] for d in report["diagnoses"]] == ["warning"]


def test_a_loop_of_the_same_error_is_one_diagnosis_with_a_count(recorded, write, mistakes):
    write("import mistakes\nfor _ in range(20):\n    mistakes.caught(mistakes.stale)")
    found, report = recorded("train.py")
    (diagnosis,) = report["diagnoses"]
    assert diagnosis["count"] == 20
    assert "this happened 20 times" in found.errors


def test_two_errors_with_the_same_text_are_told_apart(recorded, write, mistakes):
    """CPython gives the second exception the address of the first, which is gone by then."""
    write(
        """
        import mistakes
        mistakes.caught(mistakes.stale)
        mistakes.caught(mistakes.other)
        mistakes.caught(mistakes.stale)
        mistakes.other()
        """
    )
    _, report = recorded("train.py")
    told = [(d["severity"], d["culprits"][0]["line"], d["count"]) for d in report["diagnoses"]]
    assert told == [
        ("error", mistakes.line("other"), 2),
        ("warning", mistakes.line("stale"), 2),
    ]


HANDLERS = {
    "raise from": ("raise ValueError('failed') from e", "error", "ValueError: failed"),
    "raise while handling": ("raise ValueError('failed')", "error", "ValueError: failed"),
    "raise again": ("raise", "error", "RuntimeError: one of the variables"),
    "raise later": ("kept = e", "error", "RuntimeError: one of the variables"),
    "sys.exit(1)": ("sys.exit(1)", "error", None),
    "sys.exit(text)": ("sys.exit('failed')", "error", None),
    "sys.exit(0)": ("sys.exit(0)", "warning", None),
    "os._exit(1)": ("os._exit(1)", "error", None),
    "os._exit(0)": ("os._exit(0)", "warning", None),
    "another error later": ("later = True", "warning", "KeyError: 1"),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_what_counts_as_caught(plain, recorded, write, mistakes, name):
    handler, severity, error = HANDLERS[name]
    write(
        f"""
        import os, sys
        import mistakes
        kept = later = None
        try:
            mistakes.stale()
        except RuntimeError as e:
            {handler}
        if kept is not None:
            raise kept
        if later:
            {{}}[1]
        """
    )
    expected = plain("train.py")
    found, report = recorded("train.py")
    assert (found.code, found.out) == (expected.code, expected.out)
    assert found.err.startswith(expected.err)
    assert heads(found) == [f"{severity}[GX101]"]
    assert [d["severity"] for d in report["diagnoses"]] == [severity]
    assert report["exit_code"] == expected.code
    assert (report["error"] or "").startswith(error or "") == (error is not None or not error)
    assert (report["error"] is None) == (error is None)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup came with 3.11")
def test_the_members_of_a_group_are_uncaught(recorded, write, mistakes):
    write(
        """
        import mistakes
        errors = []
        for f in (mistakes.stale, mistakes.leaf):
            try:
                f()
            except RuntimeError as e:
                errors.append(e)
        raise ExceptionGroup("both", errors)
        """
    )
    found, report = recorded("train.py")
    assert heads(found) == ["error[GX101]", "error[GX102]"]
    assert report["error"] == "ExceptionGroup: both (2 sub-exceptions)"


def test_errors_come_before_silent_ones_before_warnings(recorded, write, mistakes):
    write(
        """
        import mistakes
        mistakes.caught(mistakes.stale)
        mistakes.silent()
        mistakes.leaf()
        """
    )
    found, report = recorded("train.py")
    told = [(d["code"], d["severity"]) for d in report["diagnoses"]]
    assert told[0] == ("GX102", "error")
    assert told[1][0] == "GX401"
    assert told[2] == ("GX101", "warning")
    # The silent one is told when it is found.
    assert [head.split("[")[1][:5] for head in heads(found)] == ["GX401", "GX102", "GX101"]
    assert "gradext: " in found.errors  # several: counted in a headline


def test_a_silent_error_keeps_its_severity_and_the_exit_code(plain, recorded, write, mistakes):
    write("import mistakes\nmistakes.silent()")
    expected = plain("train.py")
    found, report = recorded("train.py")
    assert (found.code, found.out) == (expected.code, expected.out) == (0, b"")
    (diagnosis,) = report["diagnoses"]
    assert diagnosis["code"] == "GX401"
    assert diagnosis["severity"] == "error"
    assert report["error"] is None


@pytest.mark.parametrize("function", ["stale", "leaf"])
def test_an_error_that_ends_a_thread(plain, recorded, write, mistakes, function):
    write(
        f"""
        import threading
        import mistakes
        thread = threading.Thread(target=mistakes.{function}, name="worker")
        thread.start()
        thread.join()
        print("main goes on")
        """
    )
    expected = plain("train.py")
    found, report = recorded("train.py")
    assert (found.code, found.out) == (expected.code, expected.out)
    assert found.err.startswith(expected.err)
    assert [d["severity"] for d in report["diagnoses"]] == ["error"]
    assert report["diagnoses"][0]["culprits"][0]["line"] == mistakes.line(function)
    assert report["exit_code"] == 0


def test_the_programs_own_excepthook(plain, recorded, write, mistakes):
    write(
        """
        import sys, traceback
        import mistakes
        def hook(kind, error, trace):
            print("mine", [frame.name for frame in traceback.extract_tb(trace)])
        sys.excepthook = hook
        mistakes.stale()
        """
    )
    expected = plain("train.py")
    found, _ = recorded("train.py")
    assert (found.code, found.out, expected.err) == (expected.code, expected.out, b"")
    assert heads(found) == ["error[GX101]"]


def test_exit_functions_and_destructors_run_with_the_error_alive(plain, recorded, write, mistakes):
    """The report keeps no exception: objects die when they would have died."""
    write(
        """
        import atexit, gc, sys, weakref
        import mistakes
        class Big:
            pass
        def fails():
            big = Big()
            global seen
            seen = weakref.ref(big)
            mistakes.stale()
        mistakes.caught(fails)
        print("after the handler", seen() is None)
        atexit.register(lambda: print("at exit", seen() is None, type(sys.last_value)))
        fails()
        """
    )
    expected = plain("train.py")
    found, _ = recorded("train.py")
    assert found.out == expected.out
    assert b"after the handler True" in found.out


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the handler ends", "after it was caught"])
def test_a_kill_loses_nothing(write, mistakes, tmp_path, when):
    inside = "os.kill(os.getpid(), signal.SIGKILL)"
    write(
        f"""
        import os, signal
        import mistakes
        try:
            mistakes.stale()
        except RuntimeError:
            {inside if when.startswith("before") else "pass"}
        {inside}
        """
    )
    path = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, *RUN, "--json", str(path), "train.py"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    report = json.loads(path.read_text())
    assert report["exit_code"] is None
    assert report["error"] is None
    assert [d["code"] for d in report["diagnoses"]] == ["GX101"]
    assert sorted(p.name for p in tmp_path.iterdir() if "report" in p.name) == ["report.json"]


def test_an_old_file_does_not_outlive_the_start(write, tmp_path):
    """Killed before anything happened: the file must not tell of the run before."""
    write("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    path = tmp_path / "report.json"
    path.write_text('{"diagnoses": ["old"]}')
    subprocess.run([sys.executable, *RUN, "--json", str(path), "train.py"], cwd=tmp_path)
    report = json.loads(path.read_text())
    assert (report["exit_code"], report["diagnoses"]) == (None, [])


def test_a_folder_that_goes_away_costs_a_line(write, mistakes, tmp_path):

    (tmp_path / "out").mkdir()
    write("import shutil, mistakes\nshutil.rmtree('out')\nmistakes.caught(mistakes.stale)")
    done = start([*RUN, "--json", "out/report.json", "train.py"], tmp_path)
    assert done.code == 0
    assert heads(done) == ["warning[GX101]"]
    lines = [line for line in done.errors.splitlines() if line.startswith("gradext: ")]
    assert lines == [f"gradext: cannot write {tmp_path}/out/report.json: No such file or directory"]


# --- options and colour --------------------------------------------------------------------------


def test_light_knows_the_culprit_and_no_victim(recorded, write, mistakes):
    write("import mistakes\nmistakes.stale()")
    _, report = recorded("train.py", options=["--light"])
    (diagnosis,) = report["diagnoses"]
    assert diagnosis["culprits"][0]["line"] == mistakes.line("stale")
    assert diagnosis["victims"] == []


def test_guard_and_memory_are_accepted(recorded, write, mistakes):
    write("import mistakes\nmistakes.stale()")
    _, expected = recorded("train.py")
    _, report = recorded("train.py", options=["--guard", "--memory", "8"])
    assert report["diagnoses"] == expected["diagnoses"]


@pytest.mark.parametrize(
    ("env", "colour"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour_in_a_pipe(plain, recorded, write, mistakes, env, colour):
    """Of gradext's own lines: since 3.13 Python colours its traceback, by rules of its own."""
    write("import mistakes\nmistakes.stale()")
    expected = plain("train.py", **env)
    found, _ = recorded("train.py", **env)
    assert found.err.startswith(expected.err)
    assert (b"\x1b[" in found.err[len(expected.err) :]) == colour


@pytest.mark.skipif(os.name != "posix", reason="pseudo terminals")
@pytest.mark.parametrize("no_color", [None, "1"])
def test_colour_on_a_terminal(write, mistakes, tmp_path, no_color):
    import pty

    write("import mistakes\nmistakes.stale()")
    env = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
    if no_color:
        env["NO_COLOR"] = no_color
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *RUN, "train.py"], cwd=tmp_path, env=env, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        said += piece
    os.close(ours)
    assert process.wait(60) == 1
    report = said[said.index(b"GX101") - 20 :]
    assert (b"\x1b[" in report) == (no_color is None)


# --- gradext itself ------------------------------------------------------------------------------


def test_an_error_of_gradext_is_told_and_does_not_reach_the_program(plain, recorded, write):
    write(
        """
        import torch
        import gradext.recording.incidents
        def fails(incident):
            raise LookupError("inside gradext")
        gradext.recording.incidents.subscribe(fails)
        import mistakes
        mistakes.caught(mistakes.stale)
        print("goes on")
        """
    )
    write(MISTAKES, "mistakes.py")
    found, report = recorded("train.py")
    assert (found.code, found.out) == (0, b"goes on\n")
    assert [d["code"] for d in report["diagnoses"]] == ["GX101"]
    assert "gradext: subscriber: LookupError: inside gradext" in found.errors.splitlines()


def test_a_compiled_part_that_does_not_fit_is_said_before_the_program_runs(write, tmp_path):
    """A copy of the package whose compiled part was built for another torch."""
    import shutil
    from pathlib import Path

    import gradext

    source, library = Path(gradext.__file__).parent, Path(gradext._C.__file__)
    copy = tmp_path / "site" / "gradext"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("_C.c*", "__pycache__"))
    shutil.copy(library, copy)
    record = library.with_name(library.name.removesuffix(".so") + ".json")
    text = json.loads(record.read_text())
    (copy / record.name).write_text(json.dumps({**text, "torch": "2.9.1"}))
    write("print('must not run')")
    done = start([*RUN, "train.py"], tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert (done.code, done.out) == (1, b"")
    assert len(done.errors.splitlines()) == 1
    assert "was built for torch 2.9.1" in done.errors

    # Known only when torch is imported: the program goes on, unrecorded.
    (copy / record.name).write_text(json.dumps(text))
    write(
        f"""
        import json, pathlib
        record = pathlib.Path({str(copy / record.name)!r})
        record.write_text(json.dumps({{**json.loads(record.read_text()), "torch": "2.9.1"}}))
        import torch
        print("goes on")
        """
    )
    done = start([*RUN, "train.py"], tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert (done.code, done.out) == (0, b"goes on\n")
    assert len(done.errors.splitlines()) == 1
    assert "was built for torch 2.9.1" in done.errors
    assert done.errors.endswith("(this program goes on without being recorded)\n")


def test_no_torch_at_all(write, tmp_path):
    write("print('must not run')")
    write(
        """
        import importlib.util, sys
        sys.argv = ["gradext", "run", "train.py"]
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name)
        sys.orig_argv = [sys.executable, "gradext", "run", "train.py"]
        from gradext.__main__ import main
        sys.exit(main())
        """,
        "without.py",
    )
    done = subprocess.run([sys.executable, "without.py"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"gradext needs torch, which is not installed; run: pip install torch\n"
