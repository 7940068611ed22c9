"""Fill the READMEs' generated blocks with what the programs really print.

    python docs/generate.py            run everything again and rewrite the blocks
    python docs/generate.py --check    exit 1 if a block made from committed JSON is out of date

Needs the `test` extra (transformers builds the model, with random weights).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
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


MUTATIONS = """\
>>> with gradext.record() as recording:
...     h = torch.zeros(2, 3)
...     h[0] += 1
...     h.t().mul_(2)
...     h.data.clamp_(max=1)
...
>>> recording.mutations(h)
"""


def example(name: str) -> str:
    """What `gradext run` prints for a script in docs/examples, its traceback shortened."""
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", f"examples/{name}"],
        capture_output=True,
        text=True,
        cwd=ROOT / "docs",
        env={**os.environ, "COLUMNS": "92", "NO_COLOR": "1"},
    )
    lines = done.stderr.rstrip().splitlines()
    start = next(k for k, line in enumerate(lines) if re.match(r"(error|warning)\[GX", line))
    said = [line for line in lines[:start] if re.match(r"\w+Error: ", line)]
    shown = [f"$ gradext run {name}", *(["Traceback ..."] if said else []), *said, ""]
    return "```\n" + "\n".join([*shown, *lines[start:]]) + "\n```"


def mutations() -> str:
    """The table of one tensor's history; the lines are numbered as in a file of their own."""
    lines = [line[4:] for line in MUTATIONS.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        program = "\n".join(["import torch, gradext", *lines[:-1], f"print({lines[-1]})"])
        (Path(folder) / "demo.py").write_text(program)
        done = subprocess.run(
            [sys.executable, "demo.py"], capture_output=True, text=True, check=True, cwd=folder
        )
    return f"```\n{MUTATIONS}{done.stdout}```"


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


def recorder() -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import plot_recorder

    return f"{plot_recorder.summary(result('recorder')['rows'])}\n\n({where('recorder')})"


# (file, block, what fills it, whether from committed JSON alone)
BLOCKS: list[tuple[str, str, Callable[[], str], bool]] = [
    ("README.md", "run", lambda: example("train.py"), False),
    ("README.md", "silent", lambda: example("gan.py"), False),
    ("README.md", "mutations", mutations, False),
    ("README.md", "lesson", lesson, False),
    ("README.md", "inspect", lambda: session(INSPECT), False),
    ("README.md", "tree", lambda: session(TREE, before="import gradext"), False),
    ("README.md", "cost", cost, True),
    ("README.md", "recorder", recorder, True),
    ("benchmarks/README.md", "recorder", recorder, True),
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
