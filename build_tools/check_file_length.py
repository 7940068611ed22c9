"""Finds files of this repository that are longer than 600 lines: such a file has several subjects.

`python build_tools/check_file_length.py` looks at what git knows, prints each file that is too long
and ends with 1; a commit runs it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 600
FOLDERS = ("gradext", "csrc", "tests", "build_tools", "benchmarks", "docs")
ENDINGS = {".py", ".pyi", ".cpp", ".h", ".cu"}


def check(root: Path) -> tuple[int, list[str]]:
    """How many files were looked at, and a line for each that is too long."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *FOLDERS]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    files = [root / name for name in listed.split("\0") if Path(name).suffix in ENDINGS]
    faults = []
    present = [path for path in files if path.is_file()]
    for path in present:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MOST:
            name = path.relative_to(root).as_posix()
            faults.append(f"{name}: {lines} lines, at most {MOST}: split it by subject")
    return len(present), faults


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else ROOT
    count, faults = check(root)
    print("".join(f"{fault}\n" for fault in faults), end="")
    if count == 0:
        print(f"check_file_length: no file was found in {root}")
    return 1 if faults or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
