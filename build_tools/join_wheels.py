"""Makes one wheel of several that differ only in the torch they were built for.

    python build_tools/join_wheels.py --out FOLDER WHEEL WHEEL ...

The result has the compiled part of each, stripped, under a name of its own
(_C.torch-2.13.cpython-...); gradext.native.build chooses among them at import. It requires a torch
that it has a part for. Owns the wheel's names, METADATA and RECORD.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

LIBRARY = re.compile(r"gradext/_C\.(?P<abi>[\w-]+)\.(?P<kind>so|pyd)")


class Part(NamedTuple):
    """The compiled part of one wheel."""

    torch: str  # "2.13"
    cuda: str | None
    name: str
    library: bytes
    record: bytes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the new wheel")
    parser.add_argument("wheels", type=Path, nargs="+")
    args = parser.parse_args(arguments)
    try:
        made = join(args.wheels, args.out)
    except ValueError as error:
        print(f"join_wheels: {error}", file=sys.stderr)
        return 1
    print(made)
    return 0


def join(wheels: list[Path], out: Path) -> Path:
    """The new wheel, in `out`. Raises ValueError where the wheels do not belong together."""
    if len({wheel.name for wheel in wheels}) != 1:
        raise ValueError(f"not for one Python and platform: {sorted(w.name for w in wheels)}")
    contents = [_read(wheel) for wheel in wheels]
    parts = sorted((_part(content) for content in contents), key=_order)
    keys = [(part.torch, part.cuda) for part in parts]
    if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
        raise ValueError(f"two for one torch: {', '.join(twice)}")
    shared = _shared(contents[0])
    for wheel, content in zip(wheels[1:], contents[1:], strict=True):
        other = _shared(content)
        differ = sorted(n for n in shared.keys() | other.keys() if shared.get(n) != other.get(n))
        if differ:
            raise ValueError(f"{wheel} was built from other sources: {', '.join(differ[:5])}")
    info = next(name.split("/")[0] for name in contents[0] if name.endswith(".dist-info/RECORD"))
    files = dict(shared)
    for part in parts:
        files[f"gradext/{part.name}"] = part.library
        files[f"gradext/{re.sub(r'[.](so|pyd)$', '.json', part.name)}"] = part.record
    metadata = contents[0][f"{info}/METADATA"].decode()
    needs = requirement(sorted({part.torch for part in parts}, key=_minor))
    metadata, count = re.subn(
        r"(?m)^Requires-Dist: torch==.*$", f"Requires-Dist: {needs}", metadata
    )
    if count != 1:
        raise ValueError(f"{wheels[0]} names its torch {count} times")
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    out.mkdir(parents=True, exist_ok=True)
    target = out / wheels[0].name
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # of one date: the same files make the same wheel
            entry.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return target


def requirement(minors: list[str]) -> str:
    """What pip is told: from the oldest to the newest, without those in between that are not in."""
    (major, first), (_, last) = _minor(minors[0]), _minor(minors[-1])
    gaps = [f"{major}.{n}" for n in range(first, last) if f"{major}.{n}" not in minors]
    return f"torch>={minors[0]},<{major}.{last + 1}" + "".join(f",!={gap}.*" for gap in gaps)


def stripped(library: bytes, kind: str) -> bytes:
    """Without what only a debugger or a linker reads; as it is where there is no strip."""
    if kind != "so" or sys.platform != "linux" or shutil.which("strip") is None:
        return library
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "library.so")
        path.write_bytes(library)
        subprocess.run(["strip", "--strip-unneeded", str(path)], check=True)
        return path.read_bytes()


def _read(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _part(content: dict[str, bytes]) -> Part:
    found = [match for name in content if (match := LIBRARY.fullmatch(name))]
    if len(found) != 1:
        raise ValueError(f"a wheel with {len(found)} compiled parts, not one")
    (match,) = found
    record = content[f"gradext/_C.{match['abi']}.json"]
    facts = json.loads(record)
    torch = ".".join(facts["torch"].split(".")[:2])
    with_cuda = f"-cu{facts['cuda'].split('.')[0]}" if facts["cuda"] else ""
    name = f"_C.torch-{torch}{with_cuda}.{match['abi']}.{match['kind']}"
    library = stripped(content[match[0]], match["kind"])
    return Part(torch, facts["cuda"], name, library, record)


def _shared(content: dict[str, bytes]) -> dict[str, bytes]:
    """What must be the same in each wheel."""
    own = ("gradext/_C.", ".dist-info/RECORD", ".dist-info/METADATA")
    return {
        name: data
        for name, data in content.items()
        if name == "gradext/_C.pyi" or not (name.startswith(own[0]) or name.endswith(own[1:]))
    }


def _record(files: dict[str, bytes], own: str) -> bytes:
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    return ("\n".join([*lines, f"{own},,"]) + "\n").encode()


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def _order(part: Part) -> tuple[tuple[int, int], bool]:
    return _minor(part.torch), part.cuda is not None


if __name__ == "__main__":
    sys.exit(main())
