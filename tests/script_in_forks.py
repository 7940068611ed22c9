"""A stem whose forks go on as `python SCRIPT ...`; those of gradext.fix.stem do as `python -m ...`.

forks.py starts it.
"""

from __future__ import annotations

import os
import socket
import sys
import types
from importlib.machinery import SourceFileLoader

# For which gradext leaves its compiled part alone: a program that imports gradext loads it.
sys.orig_argv[1:] = ["-m", "gradext.fix.stem"]

from gradext.fix import stem  # noqa: E402


def run_script(path: str) -> None:
    """Run the file as `python FILE` does, so that a traceback begins in it."""
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    path = os.path.abspath(path)
    # The stem has imported the package, and a program that imports it is to find it anew.
    for name in [*sys.modules]:
        if name.partition(".")[0] == "gradext":
            del sys.modules[name]
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    main.__loader__ = SourceFileLoader("__main__", path)
    sys.modules["__main__"] = main
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    try:
        exec(code, main.__dict__)
    except Exception as error:
        failed = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    else:
        return
    sys.last_type, sys.last_value, sys.last_traceback = type(failed), failed, failed.__traceback__
    sys.excepthook(type(failed), failed, failed.__traceback__)
    raise SystemExit(1)


def main() -> None:
    run_script(stem.wait_for_a_run(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
