"""Where gradext itself lies, and which folders hold code that nobody trains with."""

from __future__ import annotations

import functools
import os
import stat
import sys
from pathlib import Path
from typing import Any

from gradext.base import chosen

FOLDER = Path(__file__).resolve().parent.parent  # of the package gradext
PREFIX = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # of its files


def standard_library() -> tuple[str, str]:
    """The standard library's folder, and the one that an environment has in its place.

    Of os and sys alone. sysconfig fills a table at its first call: cut short in that by a signal,
    the table stays half full, for the program too, whose own calls then fail.
    """
    shared = os.path.dirname(os.path.abspath(os.__file__))
    own = os.path.join(sys.exec_prefix, sys.platlibdir, os.path.basename(shared))
    return shared, own


@functools.cache
def library_folders() -> tuple[str, ...]:
    """Folders whose code is nobody's training script: torch, gradext, the standard library."""
    folders = set(standard_library())
    folders.add(PREFIX.rstrip(os.sep))
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch, "__file__", None):
        folders.add(os.path.dirname(os.path.abspath(str(torch.__file__))))
    both = {os.path.realpath(folder) for folder in folders} | folders
    return tuple(sorted(folder + os.sep for folder in both))


@functools.lru_cache(maxsize=4096)
def is_user_file(file: str) -> bool:
    """Whether code in `file` is the user's: not torch's, gradext's, Python's or installed.

    Where a person has said whose it is, it is that (gradext.base.chosen).
    """
    if file.startswith("<"):
        # "<string>", "<stdin>" and "<ipython-input-...>" are typed by a person; frozen modules,
        # generated __init__s and fx graphs are not.
        return not file.startswith(("<frozen", "<attrs", "<__array", "<eval_with_key", "<torch_"))
    if (said := chosen.is_user_path(file)) is not None:
        return said
    parts = file.replace("\\", "/").split("/")
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    return not file.startswith(library_folders()) and not is_launcher(file)


def user_lines(frame: Any) -> list[dict[str, Any]]:
    """The user's lines among a live frame and those that called it, innermost first; at most 64."""
    found: list[dict[str, Any]] = []
    while frame is not None and len(found) < 64:
        code = frame.f_code
        if is_user_file(code.co_filename):
            name = getattr(code, "co_qualname", code.co_name)
            found.append({"file": code.co_filename, "line": frame.f_lineno, "function": name})
        frame = frame.f_back
    return found


def is_launcher(file: str) -> bool:
    """Whether `file` is a command that an installer wrote: `gradext`, `torchrun`, `pytest`.

    Such a file lies in a folder of commands and does nothing but call a function that it imports
    (packaging.python.org, entry points specification). A script of the user's own that lies there
    does more than that.
    """
    folder = os.path.dirname(file)
    if os.path.basename(folder) not in {"bin", "Scripts", "condabin"}:
        return False
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            return False  # to open a pipe would wait
        with open(file, "rb") as stream:
            if stream.read(2) != b"#!":
                return False
            text = stream.read(4096)
            if stream.read(1):
                return False
    except (OSError, ValueError):
        return False
    return _only_starts(b"#!" + text)


@functools.cache
def command_is_launcher() -> bool:
    """Whether this process runs `python -c CODE` of such code: `from train import main; main()`."""
    words = sys.orig_argv[1:-1]
    at = words.index("-c") if "-c" in words else None
    return at is not None and _only_starts(sys.orig_argv[at + 2].encode("utf-8", "replace"))


def _only_starts(program: bytes) -> bool:
    """Whether a program does nothing but call a function that it imports."""
    import ast  # lazy: every start of a recorded program would pay for it

    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    # A docstring may begin it.
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        del body[0]
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    if len(rest) == 1 and isinstance(rest[0], ast.If):  # if __name__ == "__main__":
        rest = rest[0].body
    names = {alias.asname or alias.name for node in imports for alias in node.names}

    def only_starts(node: ast.stmt) -> bool:
        """`sys.argv[0] = ...`, `sys.exit(main())`, `raise SystemExit(main())` or `main()`."""
        if isinstance(node, ast.If):
            return all(map(only_starts, [*node.body, *node.orelse]))
        if isinstance(node, ast.Assign):
            return all(ast.unparse(target).startswith("sys.argv") for target in node.targets)
        value = node.value if isinstance(node, ast.Expr) else getattr(node, "exc", None)
        if not isinstance(value, ast.Call):
            return False
        called = ast.unparse(value.func)
        ends = called in {"sys.exit", "exit", "SystemExit"}
        return ends or (called in names and not value.args and not value.keywords)

    return bool(imports and rest) and all(map(only_starts, rest))
