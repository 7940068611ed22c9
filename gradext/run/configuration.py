"""Options of `gradext run` from pyproject.toml and from GRADEXT_* variables.

The command line wins over variables, variables over the file. OPTIONS is the one list: of what is
read, of the errors, and of the table in docs/configuration.md. Imports no torch.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradext.base import chosen, package
from gradext.base.text import clean
from gradext.diagnosis.codes import CODES
from gradext.recording.options import GUARDS, GuardReads, guard_reads, journal_bytes
from gradext.run.shown import COLORS, LAYOUTS

FILE = "pyproject.toml"
SECTION = "tool.gradext"


# A file that has this means gradext by its table. One that only names it, as a dependency, may be
# anything: no run is refused for what stands there.
_IS_MEANT = re.compile(rb"""\btool\s*\.\s*["']?gradext\b""")


class Wrong(Exception):
    """One line: which key or variable makes no sense, and what it can be."""


class Option(NamedTuple):
    """One thing that can be chosen.

    Attributes:
        key: in the file; the variable's name is made of it.
        read: makes the value of a text (a variable) or of what TOML holds; raises ValueError with
            what it can be.
        what: it does. values: that it takes, as the table shows them. flag: on the command line.
    """

    key: str
    read: Callable[[Any], Any]
    what: str
    values: str
    flag: str

    @property
    def variable(self) -> str:
        return "GRADEXT_" + self.key.replace("-", "_").upper()

    @property
    def attribute(self) -> str:
        """The name of its attribute in the parsed command line."""
        return self.key.replace("-", "_")


# --- values ---------------------------------------------------------------------------------------


def codes(value: Any) -> tuple[str, ...]:
    """Codes or their beginnings: "GX401,GX4", or a list. Raises ValueError for what none begins."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise ValueError('it is a list of codes: ["GX304", "GX4"]')
    found = tuple(word.strip().upper() for word in words if word.strip())
    unknown = [word for word in found if not any(code.startswith(word) for code in CODES)]
    if unknown:
        raise ValueError(f"no code begins with {unknown[0]}; write them as GX401,GX304 or GX4")
    return found


def exit_code(value: Any) -> int:
    """An exit code, from 1 to 255."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if type(number) is not int or not 1 <= number <= 255:
        raise ValueError(f"a whole number from 1 to 255, not {value!r}")
    return number


def _flag(value: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word is True or word in ("1", "yes", "on", "true"):
        return True
    if word is False or word in ("0", "no", "off", "false"):
        return False
    raise ValueError(f"it is true or false, not {value!r}")


def _guard(value: Any) -> GuardReads | bool:
    try:
        return guard_reads(value if value in GUARDS else _flag(value)) or False
    except ValueError:
        words = ", ".join(f'"{word}"' for word in GUARDS)
        raise ValueError(f"it is true, false, {words}, not {value!r}") from None


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"it is {' or '.join(words)}, not {value!r}")
        return str(value)

    return read


def _memory(value: Any) -> int | None:
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    try:
        if type(number) is not int:
            raise ValueError(f"it is in MiB, a whole number such as 64, not {value!r}")
        return journal_bytes(number, "it")
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).removeprefix("it: ")) from None


def _paths(value: Any) -> tuple[str, ...]:
    words = value.split(os.pathsep) if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise ValueError('it is a list of paths: ["src", "vendor/thing"]')
    if any("\0" in word or os.pathsep in word for word in words):
        raise ValueError(f"a path holds no {os.pathsep!r}")
    return tuple(word for word in words if word)


_OR = "codes, or their beginnings"
OPTIONS = (
    Option("ignore", codes, f"{_OR}, of which nothing is told", '`["GX304"]`', "--ignore"),
    Option(
        "guard",
        _guard,
        "compare the bytes of what is saved, too; `all`: also of memory that only torch has",
        '`true`, `"all"`, `false`',
        "--guard",
    ),
    Option("format", _one_of(*LAYOUTS), "of the report", "`full`, `concise`", "--format"),
    Option("color", _one_of(*COLORS), "of the report", "`auto`, `always`, `never`", "--color"),
    Option(
        "report",
        _one_of("now", "end"),
        "when silent errors are told: at once, or when the program ends",
        "`now`, `end`",
        "--report",
    ),
    Option("fail-on", codes, f"{_OR}, that make the run fail", '`["GX4"]`', "--fail-on"),
    Option(
        "error-exitcode", exit_code, "of a run that fails by these", "1 to 255", "--error-exitcode"
    ),
    Option("memory", _memory, "that the journal may take, in MiB", "`64`", "--memory"),
    Option(
        "user-paths",
        _paths,
        "folders and files whose code is yours although it is installed",
        '`["src"]`',
        "",
    ),
    Option(
        "library-paths",
        _paths,
        "folders and files that a report passes over to name the line that called them",
        '`["vendor"]`',
        "",
    ),
)
_BY_KEY = {option.key: option for option in OPTIONS}
_PATHS = {"user-paths": chosen.USER_PATHS, "library-paths": chosen.LIBRARY_PATHS}


# --- where they stand -----------------------------------------------------------------------------


def of(folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The value of each key that was chosen by a variable, or by the file for `folder`.

    Raises:
        Wrong: a key or a value makes no sense.
    """
    found = _of_file(folder)
    for option in OPTIONS:
        text = environment.get(option.variable, "")
        if text:
            found[option.key] = _read(option, text, option.variable, os.getcwd())
    return found


def apply(args: Any, folder: str) -> None:
    """Fill in what the command line leaves open, and hand on what other processes need too.

    Raises:
        Wrong: see of().
    """
    found = of(folder, os.environ)
    for key, value in found.items():
        attribute = _BY_KEY[key].attribute
        if getattr(args, attribute, None) is None:
            setattr(args, attribute, value)
    if args.ignore is not None:
        os.environ[chosen.IGNORE] = ",".join(args.ignore)
    for key, variable in _PATHS.items():
        if key in found:
            os.environ[variable] = os.pathsep.join(found[key])
    if args.ignore is not None or not _PATHS.keys().isdisjoint(found):
        chosen.forget()
        package.is_user_file.cache_clear()


def _of_file(folder: str) -> dict[str, Any]:
    """What the nearest pyproject.toml that speaks of gradext says, from `folder` upwards."""
    for at in (Path(folder), *Path(folder).parents):
        path = at / FILE
        try:
            data = path.read_bytes() if path.is_file() else b""
        except OSError:
            continue
        # Nothing is parsed for nothing, nor are errors told that are none of gradext's.
        section = _section(path, data) if b"gradext" in data else None
        if section is not None:
            return {key: _of_key(key, value, path) for key, value in section.items()}
    return {}


def _section(path: Path, data: bytes) -> dict[str, Any] | None:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = importlib.import_module(name)
    except ImportError:
        if not _IS_MEANT.search(data):
            return None
        said = "Python 3.10 reads it with tomli, which is not installed; run: pip install tomli"
        raise Wrong(f"{clean(str(path))}: {said}") from None
    try:
        document = toml.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if not _IS_MEANT.search(data):
            return None
        line = clean(str(error)).splitlines()[0]
        raise Wrong(f"{clean(str(path))} is no TOML: {line}") from None
    tool = document.get("tool")
    if not isinstance(tool, dict) or "gradext" not in tool:
        return None
    if not isinstance(tool["gradext"], dict):
        raise Wrong(f"{clean(str(path))}: {SECTION} is no table")
    found: dict[str, Any] = tool["gradext"]
    return found


def _of_key(key: str, value: Any, path: Path) -> Any:
    where = f"{clean(str(path))}: [{SECTION}]"
    if key not in _BY_KEY:
        import difflib  # lazily: a program is not to find more modules loaded than it must

        near = difflib.get_close_matches(key, _BY_KEY, n=1)
        known = f"did you mean {near[0]}?" if near else f"there are {', '.join(_BY_KEY)}"
        raise Wrong(f"{where} has no key {clean(key)!r}; {known}")
    return _read(_BY_KEY[key], value, f"{where} {key}", str(path.parent))


def _read(option: Option, value: Any, where: str, folder: str) -> Any:
    try:
        found = option.read(value)
    except ValueError as error:
        raise Wrong(f"{where}: {clean(str(error))}") from None
    if option.key in _PATHS:
        return tuple(os.path.normpath(os.path.join(folder, path)) for path in found)
    return found


def table() -> str:
    """All of them, as docs/configuration.md shows it."""
    rows = [
        "| in `[tool.gradext]` | variable | command line | values | what |",
        "| --- | --- | --- | --- | --- |",
    ]
    for option in OPTIONS:
        flag = f"`{option.flag}`" if option.flag else ""
        rows.append(
            f"| `{option.key}` | `{option.variable}` | {flag} | {option.values} | {option.what} |"
        )
    return "\n".join(rows)
