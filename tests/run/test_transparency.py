"""A program that autograd has nothing to say about sees, prints and returns what it would have.

Every case runs under plain python and under `gradext run`; stdout, stderr and the exit code are
compared byte for byte. No case here imports torch.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from programs import start, without_addresses

# Whatever the program can look at, in the form that is compared.
LOOK = """
import atexit, sys
names = {k: repr(v).split(" at 0x")[0] for k, v in list(globals().items())}
print(names)
print(sys.argv, sys.path, sys.orig_argv)
print(sys.modules["__main__"].__dict__ is globals(), __name__)
print(sys.flags, sys.warnoptions, sys.excepthook is sys.__excepthook__)
print("gradext" in globals(), "torch" in sys.modules)
def at_the_end():
    print(sorted(k for k in globals() if k[:2] == "__"))
atexit.register(at_the_end)
"""

# Each of them as a script, a module and a string.
ENDINGS = {
    "returns": "print('here')",
    "prints on both streams": "import sys; print('a'); print('b', file=sys.stderr); print('c')",
    "sys.exit()": "import sys; sys.exit()",
    "sys.exit(3)": "import sys; sys.exit(3)",
    "sys.exit(-1)": "import sys; sys.exit(-1)",
    "sys.exit(256)": "import sys; sys.exit(256)",
    "sys.exit(2**70)": "import sys, threading; sys.exit(2**70)",
    "sys.exit(True)": "import sys; sys.exit(True)",
    "sys.exit(text)": "import sys; print('x'); sys.exit('no é data')",
    "sys.exit(object)": "import sys; sys.exit(['a', 1])",
    "raise SystemExit": "raise SystemExit",
    "uncaught": "print('x')\ndef f(n):\n    return 1 / n\nf(0)",
    "KeyboardInterrupt": "print('x')\nraise KeyboardInterrupt('by hand')",
    "GeneratorExit": "raise GeneratorExit",
    "cause": "try:\n    {}[1]\nexcept KeyError as e:\n    raise ValueError('v') from e",
    "context": "try:\n    {}[1]\nexcept KeyError:\n    int('x')",
    "exit in handler": "try:\n    {}[1]\nexcept KeyError:\n    raise SystemExit(4)",
    "notes": "e = ValueError('a\\nb')\ngetattr(e, 'add_note', print)('note')\nraise e",
    "bad str": "class E(Exception):\n    def __str__(self): raise TypeError\nraise E",
    "recursion": "def f(n):\n    return f(n + 1)\nf(0)",
    "mutual recursion": "def f(n): return g(n + 1)\ndef g(n): return max([f(n)])\nf(0)",
    "os._exit": "import os\nprint('x', flush=True)\nos._exit(7)",
    "abort": "import os\nos.abort()",
    "kill": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "terminate": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "atexit": (
        "import atexit, sys\n"
        "atexit.register(print, 'first registered')\n"
        "atexit.register(lambda: print('second', sys.exc_info(), getattr(sys, 'last_value', 0)))\n"
        "atexit.register(lambda: 1 / 0)\n"
        "raise ValueError('v')"
    ),
    "threads": (
        "import threading, time\n"
        "def work():\n"
        "    for _ in range(3000):\n"  # until the main thread has ended, and said why
        "        if not threading.main_thread().is_alive(): break\n"
        "        time.sleep(0.01)\n"
        "    print('thread ends', threading.main_thread().is_alive())\n"
        "threading.Thread(target=work).start()\n"
        "failing = threading.Thread(target=lambda: 1 / 0)\n"
        "failing.start()\n"
        "failing.join()\n"
        "raise ValueError('main ends')"
    ),
    "thread exits": "import sys, threading\nt = threading.Thread(target=sys.exit); t.start()",
    "thread hook": (
        "import threading\n"
        "threading.excepthook = lambda args: print('mine', args.exc_type)\n"
        "threading.Thread(target=lambda: 1 / 0).start()"
    ),
    "unraisable": (
        "import sys\n"
        "class D:\n"
        "    def __del__(self): raise ValueError('in del')\n"
        "d = D(); del d\n"
        "sys.unraisablehook = lambda u: print('mine', u.exc_type)\n"
        "d = D(); del d"
    ),
    "excepthook": (
        "import sys, traceback\n"
        "def hook(kind, error, trace):\n"
        "    print('mine', kind, traceback.extract_tb(trace))\n"
        "    print(sys.last_value is error, sys.last_traceback is trace, error.__traceback__)\n"
        "sys.excepthook = hook\n"
        "1 / 0"
    ).replace("error.__traceback__)", "error.__traceback__ is trace)"),
    "excepthook fails": (
        "import sys\ndef hook(*a):\n    raise ValueError('hook')\nsys.excepthook = hook\n1 / 0"
    ),
    "excepthook exits": (
        "import sys\ndef hook(*a):\n    raise SystemExit(9)\nsys.excepthook = hook\n1 / 0"
    ),
    "excepthook missing": "import sys\ndel sys.excepthook\n1 / 0",
    "stderr closed": "import sys\nsys.stderr.close()\n1 / 0",
    "stdout closed": "import sys\nprint('x')\nsys.stdout.close()",
    "stderr replaced": "import io, sys\nsys.stderr = io.StringIO()\n1 / 0",
    "del at the end": (
        "class D:\n    def __del__(self): print('del', self.x)\nd = D(); d.x = 1\n1 / 0"
    ),
    "warnings": (
        "import warnings\n"
        "warnings.warn('shown once', DeprecationWarning)\n"
        "def f(): warnings.warn('caller', UserWarning, stacklevel=2)\n"
        "f()"
    ),
    "syntax error": "def f(:\n    pass\n",
    "indentation error": "if True:\nx = 1\n",
    "future": "print((lambda x: 1).__code__.co_flags)\nx: int = 1\nprint(__annotations__)",
    "docstring": "'the docstring'\nprint(__doc__)",
    "import error": "import no_such_module_anywhere",
    "looks": LOOK,
}
if sys.version_info < (3, 12):
    # Since then Python's own words on it depend on whether threading is loaded, which torch does.
    ENDINGS["sys.exit(2**70) without threading"] = "import sys; sys.exit(2**70)"


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("form", ["script", "module", "command"])
def test_ends_as_alone(alike, write, form, name):
    source = ENDINGS[name]
    write(source + "\n")
    words = {"script": ["train.py"], "module": ["-m", "train"], "command": ["-c", source]}[form]
    expected, report = alike(*words, "--steps", "x", "-c")
    if expected.code >= 0:
        # 120: the interpreter could not flush stdout, after everything that can know of it.
        assert report["exit_code"] == (0 if expected.code == 120 else expected.code)
    elif expected.code == -signal.SIGINT:
        assert report["exit_code"] == 130
    else:
        assert report["exit_code"] is None
    assert report["torch"] is None
    assert report["diagnoses"] == []


@pytest.mark.parametrize("name", ["uncaught", "sys.exit(text)", "looks", "threads"])
@pytest.mark.parametrize("form", ["script", "module", "command", "stdin"])
def test_the_streams_keep_their_order(alike, write, form, name):
    """Both streams into one pipe: stdout is flushed when Python flushes it."""
    source = ENDINGS[name]
    write(source + "\n")
    words = {
        "script": ["train.py"],
        "module": ["-m", "train"],
        "command": ["-c", source],
        "stdin": ["-"],
    }[form]
    stdin = source.encode() if form == "stdin" else b""
    expected, _ = alike(*words, stdin=stdin, merged=True)
    assert expected.out


ERRORS = {
    "ZeroDivisionError: division by zero": "1 / 0",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "ValueError": "raise ValueError",
    "ValueError: a\nb": "raise ValueError('a\\nb')",
    "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)": (
        "import json; json.loads('')"
    ),
    "Mine: 1": "class Mine(Exception): pass\nraise Mine(1)",
    "Bad": (  # the text of a script's own __str__ is not asked for
        "class Bad(Exception):\n    def __str__(self): return 1\nraise Bad"
    ),
}


@pytest.mark.parametrize("text", ERRORS)
def test_the_json_names_the_uncaught_error(alike, text):
    _, report = alike("-c", ERRORS[text])
    assert report["error"] == text


def test_the_json_of_a_clean_run(alike, write):
    import gradext

    write("print(1)")
    _, report = alike("train.py")
    assert report == {
        "gradext": gradext.__version__,
        "torch": None,
        "exit_code": 0,
        "error": None,
        "diagnoses": [],
    }


# --- where the program is ------------------------------------------------------------------------


def test_script_in_another_folder(alike, write):
    write("import neighbour\n" + LOOK, "sub/train.py")
    write("print('neighbour of the script')", "sub/neighbour.py")
    write("print('neighbour of the shell')", "neighbour.py")
    expected, _ = alike("sub/../sub/train.py", "a", "-x")
    assert "neighbour of the script" in expected.text


def test_script_by_an_absolute_path(alike, write):
    alike(str(write(LOOK)))


def test_script_through_a_link(alike, write, tmp_path):
    write(LOOK, "real/train.py")
    (tmp_path / "link.py").symlink_to("real/train.py")
    (tmp_path / "again.py").symlink_to("link.py")
    alike("link.py")
    alike("again.py")


def test_script_without_an_ending_or_with_odd_names(alike, write):
    write(LOOK, "train")
    alike("train")
    write(LOOK, "ein é 'x'.py")
    alike("ein é 'x'.py")


def test_script_behind_two_dashes(alike, write):
    write(LOOK, "-odd.py")
    expected, _ = alike("--", "-odd.py", "--", "-c")
    assert "'--', '-c'" in expected.text


def test_folder_and_archive(alike, write, tmp_path):
    write("import helper\n" + LOOK + "1 / 0", "app/__main__.py")
    write("print('helps', __name__)", "app/helper.py")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for name in ("__main__.py", "helper.py"):
            archive.write(tmp_path / "app" / name, name)
    alike("app", "a")
    alike("app/", "a")
    alike("app.zip", "a")


def test_folder_without_main(alike, tmp_path):
    (tmp_path / "app").mkdir()
    expected, report = alike("app")
    assert expected.code == 1
    assert "can't find '__main__' module" in expected.errors
    assert report["exit_code"] == 1


def test_package(alike, write):
    write("import sys; print('init', sys.argv)", "pkg/__init__.py")
    write("from . import other\n" + LOOK + "1 / 0", "pkg/__main__.py")
    write("print('other', __package__)\n", "pkg/other.py")
    write(LOOK, "pkg/train.py")
    alike("-m", "pkg", "-m", "x")
    alike("-mpkg.train", "--lr", "3")
    expected, _ = alike("-m", "pkg.missing")
    assert expected.code == 1
    assert "No module named pkg.missing" in expected.errors


def test_attached_command(alike):
    alike("-cprint(1)", "-c")


def test_stdin(alike):
    alike("-", "a", stdin=LOOK.encode())
    alike("-", stdin=b"import sys\nprint(repr(sys.stdin.read()))\n1 / 0\n")
    alike("-", stdin=b"def f(:\n")


def test_stdin_belongs_to_the_program(alike, write):
    write("import sys; print(input(), sys.stdin.read())")
    expected, _ = alike("train.py", stdin=b"first\nrest\nof it")
    assert expected.text == "first rest\nof it\n"


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_script_from_a_pipe(alike, write):
    """The shell's <(...): a path that can be read once."""
    write(
        """
        import os, subprocess, sys
        reading, writing = os.pipe()
        os.write(writing, b"import sys\\nprint(__file__[:8], sys.argv[1:])\\ndef f(:\\n")
        os.close(writing)
        sys.exit(subprocess.run([*sys.argv[1:], f"/dev/fd/{reading}", "a"], pass_fds=[reading],
                                stdout=sys.stdout, stderr=subprocess.PIPE).returncode)
        """,
        "outer.py",
    )
    plain = subprocess.run(
        [sys.executable, "outer.py", sys.executable], cwd=write("", "x").parent, capture_output=True
    )
    found = subprocess.run(
        [sys.executable, "outer.py", sys.executable, "-m", "gradext", "run"],
        cwd=write("", "x").parent,
        capture_output=True,
    )
    assert (found.returncode, found.stdout) == (plain.returncode, plain.stdout) == (1, b"")


@pytest.mark.parametrize("flags", [["-P"], ["-I"], ["-W", "error"], ["-X", "dev"], ["-O"], ["-u"]])
def test_the_interpreters_options_count(alike, write, flags):
    if flags == ["-P"] and sys.version_info < (3, 11):
        pytest.skip("-P came with 3.11")
    write(LOOK + "import warnings\nwarnings.warn('w')\nassert not sys.argv")
    alike("train.py", flags=flags)
    alike("-m", "train", flags=flags)
    alike("-c", LOOK, flags=flags)


# --- source --------------------------------------------------------------------------------------

SOURCES = {
    "utf-8": "print('é', 1 / 0)\n".encode(),
    "byte order mark": b"\xef\xbb\xbf" + "print('é')\n1 / 0  # é".encode(),
    "declared": "# -*- coding: latin-1 -*-\nprint('é', ascii('é'))\n1 / 0  # é".encode("latin-1"),
    "not declared": "print('é')".encode("latin-1"),
    "unknown encoding": b"# coding: nosuch\nprint(1)\n",
    "null byte": b"x = 1\n\0y\n",
    "null byte in a line": b"print(1)\nx = 2\0 + y\nprint(x)\n",
    "null byte in a comment": b"print(1)  # a\0b\nprint(2)\nprint(3)\n",
    "null byte at the end": b"print(1)\n1 / 0  # \0",
    "carriage returns": b"print(1)\r\nif 1:\r\n    1 / 0\r\n",
    "empty": b"",
    "no newline at the end": b"print(1)",
    "syntax error": b"print(1)\nx = (1,\n  'abc\n",
    "long syntax error": b"a = 1\n" * 50 + b"for x in y\n    pass\n",
    "return outside": b"return 1\n",
    "future inside": b"print((lambda: 1).__code__.co_flags)\nx: int = 1\nprint(__annotations__)\n",
}


@pytest.mark.parametrize("name", SOURCES)
def test_source_is_read_as_python_reads_it(alike, write, name):
    write(SOURCES[name])
    expected, report = alike("train.py")
    assert report["exit_code"] == expected.code


def test_compiled_source(alike, write, tmp_path):
    import py_compile

    py_compile.compile(str(write(LOOK)), cfile=str(tmp_path / "done.pyc"))
    alike("done.pyc")


def test_the_script_deletes_itself(alike, write):
    source = "import os\nos.remove(__file__)\ndef f():\n    1 / 0\nf()"
    script = write(source)
    alike_words = [str(script)]

    expected = start(alike_words, script.parent)
    write(source)
    found = start(["-m", "gradext", "run", *alike_words], script.parent)
    assert found == expected


def test_the_script_changes_the_folder(alike, write, tmp_path):
    (tmp_path / "other").mkdir()
    write("import os\nos.chdir('other')\nimport neighbour\n1 / 0")
    write("print(__file__)", "neighbour.py")
    alike("train.py")


def test_inspect_linecache_and_pickle_know_main(alike, write):
    write(
        """
        import inspect, linecache, pickle, dataclasses
        @dataclasses.dataclass
        class Config:
            lr: float = 0.1
        print(inspect.getsource(Config), inspect.getfile(Config), Config.__module__)
        print(linecache.getline(__file__, 2))
        print(pickle.loads(pickle.dumps(Config(0.5))), pickle.dumps(Config)[:40])
        import __main__
        print(__main__.Config is Config)
        """
    )
    alike("train.py")
    alike("-m", "train")


# --- what cannot be run --------------------------------------------------------------------------


def test_a_missing_script(alike, tmp_path):
    expected, report = alike("sub/missing.py", "x")
    assert expected.code == 2
    assert f"can't open file '{tmp_path}/sub/missing.py': [Errno 2]" in expected.errors
    assert report["exit_code"] == 2


def test_an_unreadable_script(alike, write):
    script = write("print(1)")
    script.chmod(0)
    alike("train.py")


@pytest.mark.parametrize("words", [[], ["--json", "x.json"], ["-m"], ["-c"], ["--memory", "3"]])
def test_nothing_to_run(plain, words):
    done = plain("-m", "gradext", "run", *words)
    assert done.code == 2
    assert "Traceback" not in done.errors
    assert done.errors.splitlines()[-1].startswith("gradext run: error: ")


@pytest.mark.parametrize(
    "words",
    [["--nonsense", "train.py"], ["--memory", "0", "train.py"], ["--memory", "many", "train.py"]],
)
def test_options_that_make_no_sense(plain, write, words):
    write("print('must not run')")
    done = plain("-m", "gradext", "run", *words)
    assert done.code == 2
    assert done.out == b""
    assert words[0] in done.errors.splitlines()[-1]


def test_help_says_what_guard_does(plain):
    done = plain("-m", "gradext", "run", "--help")
    assert done.code == 0
    said = " ".join(done.text.split())
    assert "compare the bytes of what is saved for backward too" in said
    for option in ("--json", "--light", "--memory", "--guard", "-m MODULE", "-c CODE", "SCRIPT"):
        assert option in said


@pytest.mark.parametrize(
    ("path", "said"),
    [("no/such/folder/r.json", "there is no folder"), (".", "not a regular file")],
)
def test_a_json_that_cannot_be_written(plain, write, tmp_path, path, said):
    write("print('must not run')")
    done = plain("-m", "gradext", "run", "--json", path, "train.py")
    assert (done.code, done.out) == (2, b"")
    assert len(done.errors.splitlines()) == 1
    assert done.errors.startswith(f"gradext run: cannot write {(tmp_path / path).resolve()}: ")
    assert said in done.errors


def test_a_device_is_not_replaced_by_a_json(plain, write):
    write("print('must not run')")
    done = plain("-m", "gradext", "run", "--json", os.devnull, "train.py")
    assert (done.code, done.out) == (2, b"")
    assert Path(os.devnull).is_char_device()


def test_the_json_replaces_what_a_link_points_to(plain, write, tmp_path):
    write("print(1)")
    (tmp_path / "link.json").symlink_to("real.json")
    done = plain("-m", "gradext", "run", "--json", "link.json", "train.py")
    assert done.code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text().startswith("{")


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dies", "caught", "exits"])
def test_ctrl_c(write, how):
    body = {"dies": "raise", "caught": "print('caught')", "exits": "sys.exit(5)"}[how]
    script = write(
        f"""
        import atexit, os, sys, threading, time
        atexit.register(print, "at exit")
        try:
            # Not before the line that waits: the traceback names the line.
            threading.Timer(0.5, os.write, (1, b"ready\\n")).start()
            time.sleep(60)
        except KeyboardInterrupt:
            {body}
        """
    )
    ends = []
    for words in ([], ["-m", "gradext", "run"]):
        process = subprocess.Popen(
            [sys.executable, *words, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=script.parent,
            # A shell's background job ignores it, and so would the program.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        ends.append((*process.communicate(timeout=60), process.returncode))
    assert ends[0] == ends[1]
    assert ends[0][2] == {"dies": -signal.SIGINT, "caught": 0, "exits": 5}[how]


@pytest.mark.parametrize("name", ["uncaught", "recursion", "KeyboardInterrupt", "looks", "future"])
@pytest.mark.parametrize("form", ["script", "module"])
def test_the_console_script_is_the_same_program(plain, write, form, name):
    script = Path(sys.executable).with_name("gradext")
    assert script.exists(), "gradext is not installed in this environment"
    write(ENDINGS[name] + "\n")
    words = {"script": ["train.py"], "module": ["-m", "train"]}[form]
    expected = plain(*words, forked=False)
    found = plain(str(script), "run", *words)

    assert without_addresses(found.out) == without_addresses(expected.out)
    assert (found.err, found.code) == (expected.err, expected.code)
