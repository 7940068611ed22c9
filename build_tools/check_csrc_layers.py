"""Finds #includes in csrc/ that lead from a room to one above it.

A room is a folder of csrc/. It includes its own headers and those of the rooms that stand before
it in ROOMS, each by its path from csrc/ ("journal/events.h"). `python
build_tools/check_csrc_layers.py` prints each breach and ends with 1; a commit runs it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The lowest first; rooms in one row do not know each other. "." are the files that are in no room.
ROOMS = (
    ("base",),
    ("state",),
    ("graph",),
    ("stacks",),
    ("fingerprint",),
    ("journal",),
    ("recorder",),
    ("findings", "guard", "call_counts", "example_ops"),
    ("benchmarks",),
    (".",),
)
FLOOR = {room: floor for floor, row in enumerate(ROOMS) for room in row}


def check(folder: Path) -> list[str]:
    """One line for each breach."""
    faults = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".cpp", ".h", ".cu"}):
        name = path.relative_to(folder)
        room = name.parts[0] if len(name.parts) > 1 else "."
        if room not in FLOOR:
            faults.append(f"{folder.name}/{name}: the room {room}/ has no place in ROOMS")
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
            if found is None or found[1].startswith("internal/"):  # CPython's own
                continue
            place = f"{folder.name}/{name}:{number}"
            other = found[1].split("/")[0] if "/" in found[1] else "."
            if not (folder / found[1]).is_file():
                faults.append(f'{place}: "{found[1]}" is no path from {folder.name}/')
            elif other != room and FLOOR.get(other, 0) >= FLOOR[room]:
                faults.append(f"{place}: {room}/ includes {found[1]}, which is not below it")
    return faults


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else ROOT / "csrc"
    faults = check(folder)
    print("".join(f"{fault}\n" for fault in faults), end="")
    if not any(folder.rglob("*.cpp")):
        print(f"check_csrc_layers: no source was found in {folder}")
        return 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
