"""Runs a program inside this process as the interpreter would have: script, -m, -c, stdin.

Owns what the program sees: sys.argv, sys.path[0], sys.orig_argv, the `__main__` module, and how an
uncaught exception is printed. Knows nothing of recording; of gradext it imports from base only.

The rules are those of CPython's Modules/main.c and Python/pythonrun.c. What cannot be hidden are
the frames below the program's own: `sys._getframe(1)` at its top level finds gradext's.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import pkgutil
import re
import runpy
import sys
from collections.abc import Callable
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any, NamedTuple, NoReturn

from gradext.base import overlay, source_lines

CANNOT_OPEN = 2
FAILED = 1


class Target(NamedTuple):
    """What to run: `kind` is "script", "module" or "command"; `value` its path, name or code.

    `words` are the same as they stood, and would stand behind `python`, on the command line.
    """

    kind: str
    value: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]


def _interpreter_words() -> list[str]:
    """The words before gradext on this process's command line: the interpreter and its options."""
    behind = len(sys.argv) - 1
    words = sys.orig_argv[: len(sys.orig_argv) - behind]
    if len(words) < 2:
        return [sys.executable]
    last = words.pop()
    if last == sys.argv[0]:  # the console script
        return words
    if not last.startswith("-"):
        last = words.pop()  # the option of which "gradext" was the value
    flags = last[: last.index("m")] if "m" in last else "-"
    return words if flags == "-" else [*words, flags]


def enter(target: Target) -> None:
    """Give this process the arguments and the path that it would have had."""
    options = _interpreter_words()
    first = {"module": "-m", "command": "-c"}.get(target.kind, target.value)
    sys.argv = [first, *target.arguments]
    sys.orig_argv = [*options, *target.words]
    if not _safe_path():
        del sys.path[0]  # Python's entry for gradext itself
    if _is_importable(target):
        sys.path.insert(0, _absolute(target.value))  # even under -P, as Python does
    elif not _safe_path():
        sys.path.insert(0, _path_entry(target))


def _forget_hidden(options: list[str]) -> None:
    """Let the program's own `random.py` be found where Python would have found it.

    gradext has imported modules of the standard library that Python has not when a program begins;
    a file of the same name beside the program, which hides them there, would not do so here.
    """
    try:
        beside = os.listdir(sys.path[0] or os.curdir)
    except OSError:
        return
    names = {name.partition(".")[0] for name in beside}
    hidden = [name for name in sys.stdlib_module_names & names if name in sys.modules]
    if not hidden:
        return
    # What a bare Python has loaded differs by version and by the .pth files: ask one.
    import subprocess

    command = [*options, "-c", "import sys; print(*sys.modules)"]
    # The start-up file would load gradext, and what gradext loads, by these variables.
    bare = {name: value for name, value in os.environ.items() if not name.startswith("GRADEXT_")}
    asked = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=bare
    )
    early = set(asked.stdout.decode("utf-8", "replace").split())
    if "sys" not in early:
        return
    for name in hidden:
        if name not in early:
            for known in [known for known in sys.modules if known.split(".")[0] == name]:
                del sys.modules[known]


def run(
    target: Target,
    uncaught: Callable[[BaseException], None],
    leaving: Callable[[int], None],
) -> int:
    """Run the program that `enter` prepared, and return its exit code.

    SystemExit passes through. `uncaught` is called with any other exception, after its traceback
    was printed. A KeyboardInterrupt then passes through too: the interpreter ends by SIGINT.
    `leaving` is called with the exit code to come before plain Python takes over this process.
    """
    if not _safe_path() or _is_importable(target):
        # Last of all: what gradext imports from here on would be the program's file too.
        _forget_hidden(sys.orig_argv[: len(sys.orig_argv) - len(target.words)])
    module = _fresh_main()
    run_module: Any = runpy._run_module_as_main  # type: ignore[attr-defined] # what -m calls
    from_source = False
    code: CodeType | None = None
    error: BaseException | None = None
    added: tuple[str, ...] = ()
    try:
        # No call between this function and the program's code: each would be a frame too many.
        if target.kind == "module":
            _make_room(calls=0)
            run_module(target.value, True)
        elif _is_importable(target):
            _make_room(calls=0)
            run_module("__main__", False)
        else:
            from_source = True
            added = _names_while_running(target)
            code = _load(target, module, added)
            _make_room(calls=1)
            exec(code, module.__dict__)
    except SystemExit:
        raise
    except BaseException as raised:
        error = raised  # printed below, where it is no longer being handled
    finally:
        if target.kind == "script" and from_source:
            # As Python does after a file: what it printed comes before its traceback, or before the
            # text of its SystemExit. After -c and -m it comes last, when the process ends.
            _flush()
        for name in added:
            # Python takes them away when the script ends: functions that run at exit miss them.
            module.__dict__.pop(name, None)
    if error is None:
        return 0
    if from_source and code is None and _can_be_read_again(target):
        # compile() words some errors otherwise than the interpreter that reads the file, and
        # nothing has run yet: let the interpreter say it.
        uncaught(error)
        leaving(FAILED)
        os.execv(sys.executable, sys.orig_argv)
    _print_uncaught(error.with_traceback(_above_this_file(error.__traceback__)))
    uncaught(error)
    if isinstance(error, KeyboardInterrupt):
        _end_by_interrupt(error)
    return FAILED


def exit_code(end: SystemExit) -> int:
    """The code with which the process ends, as its parent will see it."""
    code = end.code
    if code is None:
        return 0
    if not isinstance(code, int):
        return FAILED  # Python prints it on stderr
    return code & 0xFF if -(2**63) <= code < 2**63 else 255


# --- where the program is -----------------------------------------------------------------------


def _safe_path() -> bool:
    """-P, -I or PYTHONSAFEPATH: Python puts nothing before the standard library."""
    return bool(getattr(sys.flags, "safe_path", sys.flags.isolated))


def _path_entry(target: Target) -> str:
    if target.kind == "module":
        return os.getcwd()
    if target.kind == "command" or target.value == "-":
        return ""
    script = target.value
    with contextlib.suppress(OSError):
        script = os.path.join(os.path.dirname(script), os.readlink(script))
    return os.path.dirname(os.path.realpath(script))


def _is_importable(target: Target) -> bool:
    """A folder or an archive, whose `__main__` is to be run."""
    if target.kind != "script" or target.value == "-":
        return False
    return pkgutil.get_importer(_absolute(target.value)) is not None


def _absolute(path: str) -> str:
    """The path as Python makes that of a script absolute: joined, not normalised."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _fresh_main() -> ModuleType:
    module = ModuleType("__main__")
    names = module.__dict__
    names["__loader__"] = BuiltinImporter
    if sys.version_info < (3, 14):
        names["__annotations__"] = {}
    names["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = module
    return module


def _names_while_running(target: Target) -> tuple[str, ...]:
    """What a file's module has only until the file was run."""
    if target.kind != "script":
        return ()
    return ("__file__", "__cached__") if sys.version_info < (3, 15) else ("__file__",)


def _load(target: Target, module: ModuleType, added: tuple[str, ...]) -> CodeType:
    """The program's code; tells `module` where it comes from."""
    if target.kind == "command":
        return _load_command(target.value)
    names = module.__dict__
    names.update(dict.fromkeys(added))
    if target.value == "-":
        names["__file__"] = "<stdin>"
        typed = sys.stdin.buffer.read()
        from_stdin = _compile(typed, "<stdin>")
        source_lines.remember(from_stdin, typed.decode("utf-8", "replace"))
        return from_stdin
    names["__file__"] = path = _absolute(target.value)
    try:
        source = overlay.bytes_of(path) or _read(path)
    except OSError as error:
        print(
            f"{sys.orig_argv[0]}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}",
            file=sys.stderr,
        )
        raise SystemExit(CANNOT_OPEN) from None
    if path.endswith(".pyc"):
        names["__loader__"] = bytecode = SourcelessFileLoader("__main__", path)
        code = bytecode.get_code("__main__")
        assert code is not None
        return code
    names["__loader__"] = SourceFileLoader("__main__", path)
    return _compile(source, path)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _can_be_read_again(target: Target) -> bool:
    """A file with source that compile() has refused; what came through a pipe is used up."""
    return target.kind == "script" and os.path.isfile(target.value) and bool(sys.executable)


def _load_command(text: str) -> CodeType:
    if sys.version_info >= (3, 14):
        import textwrap

        text = textwrap.dedent(text)
    text += "\n"
    code = _compile(text, "<string>")
    source_lines.remember(code, text)
    register = getattr(linecache, "_register_code", None)
    if register is not None:  # 3.13: tracebacks show the lines of a -c program
        # 3.13.0 keeps the lines under the file's name, later releases under the code.
        later = hasattr(linecache, "_interactive_cache")
        with contextlib.suppress(Exception):
            register(code if later else "<string>", text, "<string>")
    return code


def _compile(source: str | bytes, name: str) -> CodeType:
    if sys.version_info < (3, 11) and isinstance(source, bytes):
        # Python 3.10 reads a file's lines as C strings, which end at a null byte: the rest of that
        # line, its end too, is not there. Later ones refuse the file, as compile() does in each.
        source = re.sub(rb"\0[^\n]*\n?", b"", source)
    code: CodeType = compile(source, name, "exec", dont_inherit=True)
    return code


# --- how it ends ----------------------------------------------------------------------------------


def _make_room(calls: int) -> None:
    """Raise the recursion limit by what lies below the program, so that it can go as deep as alone.

    `calls` is the number of calls of exec() that will run it.
    """
    levels, frame = 0, sys._getframe(1)
    while True:
        levels += 1
        if frame.f_back is None:
            break
        calls += frame.f_code.co_name == "<module>"
        frame = frame.f_back
    if sys.version_info < (3, 12):  # since then a call into C is no level of Python's recursion
        levels += calls
    sys.setrecursionlimit(sys.getrecursionlimit() + levels)


def _above_this_file(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == THIS_FILE:
        trace = trace.tb_next
    return trace


THIS_FILE = _above_this_file.__code__.co_filename


def _flush() -> None:
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(Exception):
            stream.flush()


def _print_uncaught(error: BaseException) -> None:
    """What PyErr_Print does: sys.last_*, then sys.excepthook, which may be missing or fail."""
    _set_last(error)
    kind, trace = type(error), error.__traceback__
    hook = getattr(sys, "excepthook", None)
    try:
        sys.audit("sys.excepthook", hook, kind, error, trace)
    except RuntimeError:
        return  # an audit hook forbids it
    except Exception:
        pass
    if hook is None:
        print("sys.excepthook is missing", file=sys.stderr)
        sys.__excepthook__(kind, error, trace)
        return
    try:
        hook(kind, error, trace)
    except SystemExit:
        raise
    except BaseException as failure:
        failure.__traceback__ = _above_this_file(failure.__traceback__)
        _flush()
        print("Error in sys.excepthook:", file=sys.stderr)
        sys.__excepthook__(type(failure), failure, failure.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(kind, error, trace)


def _set_last(error: BaseException) -> None:
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error


def _end_by_interrupt(error: BaseException) -> NoReturn:
    """Let the interpreter see the interrupt, for only it can die of it, but not print it again."""
    hook, trace = getattr(sys, "excepthook", sys.__excepthook__), error.__traceback__

    def already_printed(*_: object) -> None:
        sys.excepthook = hook
        _set_last(error.with_traceback(trace))

    sys.excepthook = already_printed
    raise error
