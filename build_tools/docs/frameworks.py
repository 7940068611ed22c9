"""Runs the examples of docs/examples/frameworks and keeps what they print, for docs/frameworks.md.

    python build_tools/docs/frameworks.py

Needs lightning, transformers and accelerate, which is why this is no part of generate.py: `nox -s
frameworks` has them. generate.py fills the page from what is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "examples" / "frameworks"
KEPT = FOLDER / "printed.json"
NAMES = ("lightning", "transformers", "accelerate")


def printed(name: str) -> dict[str, object]:
    """What one example prints of gradext's and its own, with the version of its framework."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(FOLDER / f"{name}_train.py")],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "92"},
            capture_output=True,
            text=True,
            check=True,
        )
    lines = done.stderr.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("error[GX"))
    end = next(k for k, line in enumerate(lines) if k > start and line.startswith("docs:"))
    report = [line.replace(f"{FOLDER}{os.sep}", "") for line in lines[start : end + 1]]
    own = done.stdout.splitlines()[-1:]
    return {"version": metadata.version(name), "lines": [*report, *own]}


def block(name: str) -> str:
    """The example and what it printed, for the page."""
    kept = json.loads(KEPT.read_text())[name]
    source = (FOLDER / f"{name}_train.py").read_text()
    shown = [f"$ python {name}_train.py", *kept["lines"]]
    text = "\n".join(shown)
    return f"```python\n{source}```\n\n```\n{text}\n```\n\n({name} {kept['version']})"


def main() -> int:
    found = {name: printed(name) for name in NAMES}
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
