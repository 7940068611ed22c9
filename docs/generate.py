"""Fill README.md's generated blocks with what the programs really print.

    python docs/generate.py            run everything again and rewrite the blocks
    python docs/generate.py --check    exit 1 if the block made from committed JSON is out of date

Needs the `test` extra (transformers builds the model, with random weights).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
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


def cost() -> str:
    result = json.loads((ROOT / "benchmarks" / "results" / "state.json").read_text())
    rows = [
        f"| {row['what']} | `{row['through']}` | {row['times as fast as the attributes']:.2f} |"
        for row in result["rows"]
        if row["low"] != row["high"]
    ]
    head = ["| what | through | times as fast as torch's attributes |", "| --- | --- | --- |"]
    m = result["machine"]
    where = f"{m['processor']}, {m['threads']} thread(s), torch {m['torch']}, {m['date']}"
    return "\n".join([*head, *rows, "", f"({where}; commit {m['commit']})"])


BLOCKS = {
    "lesson": lesson,
    "inspect": lambda: session(INSPECT),
    "tree": lambda: session(TREE, before="import gradext"),
    "cost": cost,
}


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    text = new = README.read_text()
    for name in ["cost"] if check else list(BLOCKS):
        block = f"<!-- generated: {name} -->\n{BLOCKS[name]()}\n<!-- /generated -->"
        pattern = rf"<!-- generated: {name} -->\n.*?<!-- /generated -->"
        new = re.sub(pattern, lambda _, block=block: block, new, flags=re.S)
    if check:
        return 0 if new == text else 1
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
