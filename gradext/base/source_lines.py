"""Lines of source as Python's linecache has them, and those of a program that no file has.

What `-c` and stdin give is kept here alone: in linecache, tracebacks would show lines where plain
Python shows none. Imports no torch.
"""

from __future__ import annotations

import linecache
from types import CodeType

_texts: dict[str, list[str]] = {}
_codes: set[CodeType] = set()


def remember(code: CodeType, text: str) -> None:
    """Keep `text`, from which `code` was compiled under a name that is no file's: "<stdin>"."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    _texts[code.co_filename] = [line + "\n" for line in lines]
    waiting = [code]
    while waiting:
        at = waiting.pop()
        _codes.add(at)
        waiting += [each for each in at.co_consts if type(each) is CodeType]


def name_of(code: CodeType) -> str:
    """The name of a code's file; another one where a program from stdin runs what it has made.

    exec() calls that "<string>" too, and its lines are not the program's.
    """
    name = code.co_filename
    return f"{name} of exec()" if name in _texts and code not in _codes else name


def typed(file: str) -> list[str] | None:
    """The lines of a program that no file has; None for any other name."""
    return _texts.get(file)


def getlines(file: str) -> list[str]:
    """All lines, each with its end; [] where there are none to read."""
    return _texts[file] if file in _texts else linecache.getlines(file)


def getline(file: str, line: int) -> str:
    """One line, counted from 1; "" where there is none."""
    if file not in _texts:
        return linecache.getline(file, line)
    lines = _texts[file]
    return lines[line - 1] if 1 <= line <= len(lines) else ""
