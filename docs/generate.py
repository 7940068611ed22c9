"""Fill the READMEs' generated blocks with what the programs really print.

    python docs/generate.py            run everything again and rewrite the blocks
    python docs/generate.py --check    exit 1 if a block made from committed JSON is out of date

Needs the `test` extra (transformers builds the model, with random weights).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LESSON_LINES = 46

INSPECT = """\
>>> import torch, gradext
>>> h = torch.zeros(2, 3, requires_grad=True) * 2
>>> row = h[0]                    # a view
>>> h.mul_(10)                    # and a write behind its back
>>> gradext.inspect(row)
"""
TREE = """\
>>> from transformers import GPT2Config, GPT2LMHeadModel
>>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2))
>>> gradext.inspect_tree(model)
"""


def session(text: str, before: str = "") -> str:
    """Run the `>>>` lines of `text` and return them with what the last one shows."""
    lines = [line[4:] for line in text.splitlines()]
    program = "\n".join([before, *lines[:-1], f"print({lines[-1]})"])
    return f"```\n{text}{run([sys.executable, '-c', program])}```"


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "docs")
    return done.stdout


def lesson() -> str:
    lines = run([sys.executable, "-m", "gradext", "lesson", "1"]).splitlines()[:LESSON_LINES]
    return "```\n" + "\n".join(lines).rstrip() + "\n…\n```"


def result(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return read


def where(name: str) -> str:
    m = result(name)["machine"]
    device = f", {m['gpu']}" if m["gpu"] else ""
    threads = f"{m['threads']} thread{'s' if m['threads'] != 1 else ''}"
    return (
        f"{m['processor']}{device}, {threads}, torch {m['torch']}, Python {m['python']}, "
        f"{m['date']}, commit {m['commit']}"
    )


def cost() -> str:
    rows = [
        f"| {row['what']} | `{row['through']}` | {row['times as fast as the attributes']:.2f} |"
        for row in result("state")["rows"]
        if not row["through"].startswith(("t._", "6 ", "14 "))  # the peers themselves
    ]
    head = ["| what | through | times as fast as torch's attributes |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, "", f"({where('state')})"])


def whole(name: str) -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import common

    return f"{common.table(result(name)['rows'])}\n\n({where(name)})"


# (file, block, what fills it, whether from committed JSON alone)
BLOCKS: list[tuple[str, str, Callable[[], str], bool]] = [
    ("README.md", "lesson", lesson, False),
    ("README.md", "inspect", lambda: session(INSPECT), False),
    ("README.md", "tree", lambda: session(TREE, before="import gradext"), False),
    ("README.md", "cost", cost, True),
    ("benchmarks/README.md", "state", lambda: whole("state"), True),
    ("benchmarks/README.md", "import_time", lambda: whole("import_time"), True),
]


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = False
    for name, block, fill, committed in BLOCKS:
        if check and not committed:
            continue
        path = ROOT / name
        text = path.read_text()
        filled = f"<!-- generated: {block} -->\n{fill()}\n<!-- /generated -->"
        pattern = rf"<!-- generated: {block} -->\n.*?<!-- /generated -->"
        new = re.sub(pattern, lambda _, filled=filled: filled, text, flags=re.S)
        stale |= new != text
        if not check:
            path.write_text(new)
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
