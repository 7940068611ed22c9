"""Hints for a command line whose words are in an order that gradext does not take.

Reads source text only, and imports nothing of the program's.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Collection
from pathlib import Path

# They read no command line.
PLAIN = {"gradext", "numpy", "torch", "torchaudio", "torchvision"}
PARSERS = {"argparse", "cmd", "fileinput", "getopt", "optparse", "runpy", "subprocess", "unittest"}


def command(word: str, commands: Collection[str]) -> str | None:
    """One line about a word that stands where a command is expected, and is not one."""
    if word in commands:
        return None
    if word.endswith(".py") or Path(word).is_file():
        return f"{word} is no command; to run a program: gradext run {word}"
    near = difflib.get_close_matches(word, commands, n=1)
    return f"{word} is no command; did you mean gradext {near[0]}?" if near else None


def reads_no_arguments(script: str) -> bool:
    """Whether nothing in the file can read the command line: no argv, and no module that might."""
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    plain = (PLAIN | set(sys.stdlib_module_names)) - PARSERS
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "" if node.level == 0 else "", *(a.name for a in node.names)]
            if names[0].split(".")[0] not in plain or {"argv", "orig_argv"} & set(names):
                return False
            continue
        elif isinstance(node, ast.Attribute) and node.attr in ("argv", "orig_argv"):
            return False
        if any(name.split(".")[0] not in plain for name in names):
            return False
    return True
