"""Is a wheel the same as what is installed here?  python build_tools/compare_wheel.py WHEEL

Two builds of one source in two folders must give the same bytes: then no folder's name is in them.
"""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path


def main(wheel: str) -> int:
    installed = Path(sysconfig.get_path("platlib"))
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("gradext/")]
        differ = [
            name
            for name in names
            if not (installed / name).is_file()
            or (installed / name).read_bytes() != archive.read(name)
        ]
    if differ or not any(name.startswith("gradext/_C.") for name in names):
        print(f"differ from the installed files: {differ or 'no _C in the wheel'}", file=sys.stderr)
        return 1
    print(f"{len(names)} files, byte for byte those installed")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
