"""What can stop the build, looked for before anything is fetched or compiled.

Owns the checks of the compiler, Python's headers, memory and disk. Each that fails is one line that
says what is missing and how to get it. Uses the standard library only.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# A unit's compiler at its largest: 2.06 GiB (all_others, g++ 12.2, -O2, torch 2.13's headers).
UNIT_MEMORY = 5 * 1024**3 // 2
# Objects, library and wheel, and what the compiler writes to the temporary folder in between.
DISK = 200 * 1024**2

# torch's headers need C++20 since 2.12, and torch's own flags say so; 2.11 needs C++17.
CPP20_SINCE = (2, 12)
TRIAL = {
    "c++20": """
#include <bit>
#include <string_view>
#if __cplusplus <= 201703L
#error this compiler stays at C++17
#endif
template <typename T> concept Sum = requires(T a) { a + a; };
template <Sum T> int sum(T a) { return static_cast<int>(a + a); }
int trial() { return sum(std::bit_width(3u)); }
""",
    "c++17": """
#include <optional>
#include <string_view>
#if __cplusplus < 201703L
#error this compiler stays at C++14
#endif
int trial() { if constexpr (true) { return std::optional<int>(1).value(); } }
""",
}
ENOUGH = {"c++20": "g++ 11 or clang 14", "c++17": "g++ 9 or clang 10"}


class Stopped(SystemExit):
    """One line, no traceback: what stops the build and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(f"gradext: {text}")


def check(torch_version: str, folder: Path) -> None:
    """Raise Stopped, one line, where a build in `folder` for that torch cannot succeed."""
    if os.name == "posix":  # elsewhere setuptools finds the compiler, and says what it lacks
        check_compiler(torch_version)
        check_headers()
    check_disk(folder, Path(tempfile.gettempdir()))
    jobs()


def compiler() -> list[str]:
    """The words that start the C++ compiler: those of CXX, or the first that is on PATH.

    Raises Stopped where there is none.
    """
    named = os.environ.get("CXX", "").strip()
    if named:
        words = shlex.split(named)
        if shutil.which(words[0]) is None:
            raise Stopped(f"CXX={named}: there is no such program; unset CXX, or name a compiler.")
        return words
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found is None:
        raise Stopped(
            "no C++ compiler was found (c++, g++ or clang++ on PATH), and gradext is compiled for "
            f"your torch; install one: {how_to_get('compiler')}"
        )
    return [found]


def standard(torch_version: str) -> str:
    """The C++ standard that torch's own flags ask for when an extension is built."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", torch_version)[:2])
    return "c++20" if numbers >= CPP20_SINCE else "c++17"


def check_compiler(torch_version: str) -> None:
    """Compile a few lines as the build will. Raises Stopped where that fails."""
    words = compiler()
    needed = standard(torch_version)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "trial.cpp")
        source.write_text("#include <cstddef>\nstd::size_t trial() { return 0; }\n")
        plain = _tried(words, source)
        source.write_text(TRIAL[needed])
        modern = _tried(words, source, f"-std={needed}")
    name = " ".join(words)
    if plain is not None:
        raise Stopped(f"the C++ compiler {name} does not work here: {plain}")
    if modern is not None:
        raise Stopped(
            f"the C++ compiler {name} ({_version(words)}) is too old: torch {torch_version} needs "
            f"{needed.upper()}, as {ENOUGH[needed]} and newer have; install one and name it: "
            "CXX=g++-12 pip install ."
        )


def _tried(words: list[str], source: Path, *flags: str) -> str | None:
    """The first error of a compiler that is given `source`; None where it has none."""
    command = [*words, *flags, "-fPIC", "-c", str(source), "-o", str(source.with_suffix(".o"))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=source.parent)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = (done.stderr + done.stdout).splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return errors[0].strip() if errors else f"it ended with exit code {done.returncode}"


def _version(words: list[str]) -> str:
    done = subprocess.run([*words, "--version"], capture_output=True, text=True)
    return next(iter((done.stdout + done.stderr).splitlines()), "no version").strip()


def check_headers() -> None:
    """Raise Stopped where this Python has no headers to compile against."""
    folders = [sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        raise Stopped(
            f"the headers of Python {sys.version_info[0]}.{sys.version_info[1]} are missing "
            f"(no Python.h in {folders[0]}); install them: {how_to_get('headers')}"
        )


def check_disk(*folders: Path) -> None:
    """Raise Stopped where a folder that the build writes to has too little space left."""
    for folder in folders:
        free = shutil.disk_usage(folder).free
        if free < DISK:
            raise Stopped(
                f"{free // 1024**2} MiB are free on the disk of {folder}, and the build needs "
                f"{DISK // 1024**2}; free some space, or name another folder for temporary files "
                "with TMPDIR."
            )


def jobs() -> int:
    """How many units are compiled at a time: MAX_JOBS, or what processors and memory allow.

    Raises Stopped where MAX_JOBS is no number, or is not set and memory is too small for one unit.
    """
    asked = os.environ.get("MAX_JOBS", "").strip()
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise Stopped(f"MAX_JOBS={asked}: expected a whole number from 1.")
        return int(asked)
    here = getattr(os, "sched_getaffinity", None)
    processors = len(here(0)) if here else os.cpu_count() or 1
    free = free_memory()
    if free is None:
        return processors
    # A tenth less is tried: a need that was measured on one machine is no exact one.
    if free < UNIT_MEMORY * 0.9:
        raise Stopped(
            f"compiling takes {_gib(UNIT_MEMORY)} of memory and {_gib(free)} is free here; end "
            "other programs, raise the container's limit or add swap, or try it all the same: "
            "MAX_JOBS=1 pip install ."
        )
    return max(1, min(processors, free // UNIT_MEMORY))


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory and swap that this process can still take; None where nothing tells."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    if "MemAvailable" not in table:
        return None
    limits = [table["MemAvailable"] + table.get("SwapFree", 0)]
    limits += [limit for group in _control_groups(root) if (limit := _left_in(group)) is not None]
    return min(limits)


def _control_groups(root: Path) -> list[Path]:
    """The folders of the control groups that limit this process, itself and all above."""
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    base = root / "sys/fs/cgroup"
    found = []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = base / "memory" if controllers else base  # version 1 has a tree of its own for each
        inner = top / path.lstrip("/")
        found += [group for group in (inner, *inner.parents) if group.is_relative_to(top)]
    return found


def _left_in(group: Path) -> int | None:
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit, usage, given_back in names:
        try:
            highest = int((group / limit).read_text())
            used = int((group / usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # "max" is no limit
            continue
        return highest - used + int(stat.get(given_back, 0))
    return None


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


def how_to_get(what: str) -> str:
    """The command that installs a compiler or Python's headers on this system."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    commands = {
        "apt-get": {"compiler": "apt install g++", "headers": f"apt install python{version}-dev"},
        "dnf": {"compiler": "dnf install gcc-c++", "headers": f"dnf install python{version}-devel"},
        "zypper": {
            "compiler": "zypper install gcc-c++",
            "headers": f"zypper install python{version.replace('.', '')}-devel",
        },
        "pacman": {"compiler": "pacman -S gcc", "headers": "pacman -S python"},
        "apk": {"compiler": "apk add g++", "headers": "apk add python3-dev"},
    }
    if sys.platform == "darwin":
        return "xcode-select --install"
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/sbin", "/usr/sbin"])
    for program, names in commands.items():
        if shutil.which(program, path=places):
            return names[what]
    return f"{commands['apt-get'][what]} (Debian, Ubuntu), {commands['dnf'][what]} (Fedora)"
