"""What every benchmark script shares: the record of where it ran, the JSON, the table.

Owns no measuring; that is gradext.timing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import gradext

RESULTS = Path(__file__).resolve().parent / "results"


def parser(doc: str) -> argparse.ArgumentParser:
    """The options all benchmarks have."""
    ask = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--out", type=Path, help="folder for the JSON (default: print the table only)")
    ask.add_argument("--quick", action="store_true", help="seconds instead of minutes; rough")
    return ask


def machine() -> dict[str, Any]:
    """Where a result comes from; results of different machines are never put in one ratio."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradext": gradext.__version__,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def record(name: str, rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print `rows` and, with a folder, write them to `out/name.json` with the machine."""
    result = {"benchmark": name, "machine": machine(), "rows": rows}
    print(table(rows))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"\nwritten: {out / f'{name}.json'}")


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; the keys of the first row are the columns."""
    columns = list(rows[0])
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row[column]) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def _commit() -> str | None:
    """The commit measured, "-dirty" where the code (not: other results) has changed since."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", "csrc", "gradext", "benchmarks/*.py")
    except OSError:
        return None
    return f"{commit}-dirty" if commit and changed else commit or None
