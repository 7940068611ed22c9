"""Fill the generated blocks of README and docs/ with what the programs really print.

    python build_tools/docs/generate.py                run everything again and rewrite the blocks
    python build_tools/docs/generate.py --committed    only those that are made from committed JSON
    python build_tools/docs/generate.py --check        exit 1 if one of these is out of date

Needs the `test` extra (transformers builds the model, with random weights).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_tools"))
import frameworks  # noqa: E402
import torch_finder  # noqa: E402

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


def example(name: str, *options: str, whole: bool = False) -> str:
    """What `gradext run` prints for a script in docs/examples, its traceback shortened.

    `whole`: with the script, and what the script itself prints.
    """
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", *options, f"examples/{name}"],
        capture_output=True,
        text=True,
        cwd=ROOT / "docs",
        env={**os.environ, "COLUMNS": "92", "NO_COLOR": "1"},
    )
    lines = done.stderr.rstrip().splitlines()
    start = next(k for k, line in enumerate(lines) if re.match(r"(error|warning)\[GX", line))
    said = [line for line in lines[:start] if re.match(r"\w+Error: ", line)]
    command = " ".join(["$ gradext run", *options, name])
    printed = done.stdout.splitlines() if whole else []
    shown = [command, *printed, *(["Traceback ..."] if said else []), *said, ""]
    text = "```\n" + "\n".join([*shown, *lines[start:]]) + "\n```"
    if whole:
        source = (ROOT / "docs" / "examples" / name).read_text()
        text = f"```python\n{source}```\n\n{text}"
    return text


def fix_benchmark() -> str:
    """The programs of benchmarks/fix.py, and what `gradext fix` makes of them."""
    rows = result("fix")["rows"]
    stale = [row for row in rows if row["code"] == "GX101"]
    mended = [sum(row["patch like the twin"] is not None for row in some) for some in (rows, stale)]
    wrong = sum(row["verified and wrong"] for row in rows)
    shares = [row["gradext fix, s"] / row["bar, s"] for row in rows]
    lines = [
        "| program | code | answer | like the twin | tried | time over bar |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    places = {None: "none of the first two", 1: "the first patch", 2: "the second patch"}
    lines += [
        f"| {row['program']} | {row['code']} | {row['answer']} "
        f"| {places[row['patch like the twin']]} | {row['tried']} | {share:.2f} |"
        for row, share in zip(rows, shares, strict=True)
    ]
    said = (
        f"Of {len(rows)} programs the first two patches mend {mended[0]}, of the {len(stale)} with "
        f"GX101 {mended[1]}; {wrong} are called verified and compute something else. The time is "
        f"at most {max(shares):.2f} of its bar."
    )
    return f"{said}\n\n" + "\n".join(lines) + f"\n\n({where('fix')})"


def fix() -> str:
    """What `gradext fix` prints for docs/examples/train.py."""
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "fix", "train.py"],
        capture_output=True,
        text=True,
        cwd=ROOT / "docs" / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "92", "NO_COLOR": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"gradext fix: exit code {done.returncode}: {done.stderr}")
    lines = [*done.stderr.splitlines(), "", *done.stdout.splitlines()]
    # The time is measured anew in each run, and is none to be quoted.
    text = re.sub(
        r"((?:bytes|iB), )(\d+\.\d\dx|too short to time)$", r"\1...", "\n".join(lines), flags=re.M
    )
    return "```\n$ gradext fix train.py\n" + text + "\n```"


def in_examples(*words: str) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` does in a copy of docs/examples, where it may write files."""
    with tempfile.TemporaryDirectory() as folder:
        for source in (ROOT / "docs" / "examples").glob("*.py"):
            shutil.copy(source, folder)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "92", "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=folder, env=env
        )


def ranks() -> str:
    """Two ranks under torchrun, each of which runs gradext."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    program = ("-m", "gradext", "run", "--json", "all.json", "ranks.py")
    done = in_examples(*launch, *program)
    if done.returncode:
        raise RuntimeError(done.stderr)
    report = done.stderr[done.stderr.index("error[GX") :].rstrip()
    source = (ROOT / "docs" / "examples" / "ranks.py").read_text()
    command = "$ torchrun --standalone --nproc-per-node 2 -m gradext run --json all.json ranks.py"
    return f"```python\n{source}```\n\n```\n{command}\n{report}\n```"


def preempted() -> str:
    """A program that SIGTERM ends while gradext knows something that it has not told."""
    done = in_examples("-m", "gradext", "run", "preempted.py")
    source = (ROOT / "docs" / "examples" / "preempted.py").read_text()
    shown = (
        f"$ gradext run preempted.py; echo $?\n{done.stdout}{done.stderr}{128 - done.returncode}"
    )
    return f"```python\n{source}```\n\n```\n{shown}\n```"


def configuration() -> str:
    """The keys of [tool.gradext] and the variables."""
    from gradext.run import configuration

    return configuration.table()


def places() -> str:
    """The rows of benchmarks/places.py: how, what is named, whether anything changes, the cost."""
    lines = [
        "| place | how | broken: named are | clean | cost |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result("places")["rows"]:
        same = [
            word
            for word in ("stdout", "exit code", "parameters")
            if not row[f"same {word}"] or not row["quiet"]
        ]
        clean = "unchanged, no report" if not same else f"**other {', '.join(same)}**"
        cost = "" if row["cost"] is None else f"{row['cost']:g} [{row['low']:g}, {row['high']:g}]"
        lines.append(f"| {row['place']} | `{row['how']}` | {row['named']} | {clean} | {cost} |")
    return "\n".join(lines) + f"\n\n({where('places')})"


def pytest_program() -> str:
    return f"```python\n{(ROOT / 'docs' / 'examples' / 'test_scores.py').read_text()}```"


def pytest_report() -> str:
    """What pytest prints with the plugin, without the lines of its tracebacks through torch."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "gradext_pytest", "--gradext", "--tb=short"),
            *("-q", "--color=no", "--rootdir=.", "-c", os.devnull, "-p", "no:cacheprovider"),
            "test_scores.py",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT / "docs" / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "92"},
    )
    printed = re.sub(r"^/.*: in .*\n(    .*\n)", "", done.stdout, flags=re.M)
    printed = re.sub(r" in \d+\.\d+s$", "", printed.rstrip())
    return f"```\n$ pytest --gradext --tb=short test_scores.py\n{printed}\n```"


CELLS = (
    "%load_ext gradext",
    "import torch\nw = torch.ones(3, requires_grad=True)\ny = torch.sigmoid(w)",
    "y.add_(1)",
    "y.sum().backward()",
)


def cells() -> str:
    """What a cell that fails prints below its traceback, in IPython."""
    program = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor", history_length=0)
for cell in {CELLS!r}:
    shell.run_cell(cell, store_history=True)
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": folder, "COLUMNS": "92"},
        )
    report = re.sub(r"\n  = called from <string>.*", "", done.stderr.strip())
    shown = [
        f"In [{number}]: " + cell.replace("\n", "\n   ...: ")
        for number, cell in enumerate(CELLS, 1)
    ]
    return "```\n" + "\n".join([*shown, "...", report]) + "\n```"


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
    common = in_folder("benchmarks", "common")
    return f"{common.table(result(name)['rows'])}\n\n({where(name)})"


def recorder() -> str:
    plot_recorder = in_folder("benchmarks", "plot_recorder")
    return f"{plot_recorder.summary(result('recorder')['rows'])}\n\n({where('recorder')})"


def short_cost() -> str:
    """README's table: what the ways to record cost in a train step, beside anomaly mode."""
    steps = {
        "MLP step, SGD": "MLP",
        "transformer 2 layers d=64 batch 2×16, SGD": "transformer, 2 layers of 64",
        "transformer 4 layers d=256 batch 8×128, AdamW": "transformer, 4 layers of 256",
    }
    recorded = {(row.get("way"), row["subject"]): row for row in result("recorder")["rows"]}
    guarded = {(row["under"], row["what"]): row for row in result("guard")["rows"]}
    ways = {
        "`gradext run`": (recorded, "gradext.record()", "times nothing"),
        "`gradext run --light`": (recorded, "gradext.record(saves=False)", "times nothing"),
        "`gradext run --guard`": (
            guarded,
            "a guard from the program's start",
            "times the step with nothing",
        ),
        "anomaly mode": (recorded, "detect_anomaly(check_nan=False)", "times nothing"),
    }
    lines = [f"| | {' | '.join(steps.values())} |", f"|{' --- |' * (len(steps) + 1)}"]
    for shown, (rows, way, column) in ways.items():
        found = [rows[way, step] for step in steps]
        cells = (f"{r[column]:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in found)
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    machines = f"({where('recorder')}; the guard: {where('guard')})"
    return "\n".join([*lines, "", machines])


def first_program() -> str:
    """docs/examples/train.py."""
    return f"```python\n{(ROOT / 'docs' / 'examples' / 'train.py').read_text()}```"


def audit() -> str:
    """What `gradext check --inference` prints for docs/examples/rope.py."""
    command = ["check", "--inference", "rope.py:make_model"]
    done = subprocess.run(
        [sys.executable, "-m", "gradext", *command],
        capture_output=True,
        text=True,
        cwd=ROOT / "docs" / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "92"},
    )
    if done.returncode != 1 or not done.stdout:  # 1 is also the exit code of an exception
        raise RuntimeError(f"gradext check: exit code {done.returncode}: {done.stderr}")
    return "```\n$ gradext " + " ".join(command) + f"\n{done.stdout}```"


def architectures() -> str:
    """The audited architectures, one row a call."""
    rows = result("audit")["rows"]
    head = ["architecture", "call", "answer", "fails", "warns", "skipped"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        answer = row["verdict"].replace(" in `", ": `").replace("under inference_mode ", "")
        cells = (row[key] for key in ("fails", "warns", "skipped"))
        lines.append(f"| {row['architecture']} | {row['call']} | {answer} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"({rows[0]['versions']}; {where('audit')})"])


def findings() -> str:
    """The failures and the kept tensors among them, with their lines."""
    lines = []
    for row in result("audit")["rows"]:
        for name, found in row["details"].items():
            if name == "writes":
                continue
            lines.append(f"- **{row['architecture']}** ({row['call']}), {name}: {found['message']}")
            lines += [f"  - `{line}`" for line in found["lines"]]
    return "\n".join(lines)


def audit_news() -> str:
    """What the audit of the architectures found, in a few lines."""
    rows = result("audit")["rows"]
    clean = [row for row in rows if "leaves nothing behind" in row["verdict"]]
    names = {row["architecture"] for row in rows}
    library = rows[0]["versions"].partition(",")[0]
    lines = [
        f"{len(rows)} calls of {len(names)} architectures ({library}): "
        f"{len(clean)} leave nothing behind. The others:",
        "",
    ]
    lines += [
        f"- {row['architecture']}, {row['call']}: {row['verdict']}"
        for row in rows
        if row not in clean
    ]
    return "\n".join(lines)


FINGERPRINT = """\
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
>>> before = gradext.fingerprint(model)
>>> model[0].weight.data[0, 0] = 0.25              # no version counter sees this
>>> model[1].running_mean = torch.zeros(4)
>>> gradext.compare_fingerprints(before, gradext.fingerprint(model))
"""


def lies() -> str:
    """What `gradext check --ops` found in torch, in one sentence."""
    found = result("ops-that-lie")
    counts, kinds = found["counts"], found["kinds"]
    return (
        f"It is not the only one. Of the {counts['writable']:,} aten overloads of torch "
        f"{found['torch']} that declare a write, `gradext check --ops` ran "
        f"{counts['writable exercised']:,}: {len(kinds['declared but not bumped'])} do not count "
        f"it, {len(kinds['bumped twice'])} count it more than once; and "
        f"{len(kinds['written but not declared'])} ops write what they do not declare."
    )


COMPARE = """\
>>> from gradext.lesson.models import ViT
>>> model, images = ViT().eval(), torch.rand(1, 3, 32, 32)
>>> gradext.compare_modes(model, images, threads=1)
"""


def in_folder(folder: str, name: str) -> Any:
    """A module of build_tools/docs/ or benchmarks/, which are scripts and no packages."""
    sys.path.insert(0, str(ROOT / folder))
    return importlib.import_module(name)


def peers() -> str:
    """One row for each peer and way of running it; the ratios are to its plain run."""
    columns = ("peer", "mode", *("tests", "passed", "failed", "skipped", "seconds", "MB"))
    head = (*columns, "differ", "own errors", "time", "memory", "findings")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in result("peers")["rows"]:
        cells = [str(row[name]) for name in columns]
        if row["mode"] == "plain":
            cells += [""] * 5
        else:
            cells += [str(len(row["different"])), str(len(row["own errors"]))]
            cells += [f"{row['time']:.2f}", f"{row['memory']:.2f}"]
            cells.append(", ".join(f"{n} {what}" for what, n in row["findings"].items()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"({where('peers')})"])


def verdicts() -> str:
    """The claims people repeat about the modes, with their verdicts."""
    which_mode = in_folder("build_tools/docs", "which_mode")
    table: str = which_mode.verdict_table(which_mode.Results(result("modes")))
    return f"{table}\n\n({where('modes')})"


def modes() -> str:
    """The matrix: a line a row, the modes as columns."""
    suite = in_folder("benchmarks", "modes")
    return f"{suite.short(result('modes')['rows'])}\n\n({where('modes')})"


def overlapping() -> str:
    """How far the two committed runs of the mode benchmark agree."""
    overlap = in_folder("benchmarks", "overlap")
    first, again = result("modes"), result("modes-again")
    overlap.check_machines(first["machine"], again["machine"])
    both = overlap.pairs(first["rows"], again["rows"])
    alike = sum(overlap.overlaps(a, b) for a, b in both)
    return (
        f"Two full runs are committed. Of the {len(both)} rows with an interval that both have, "
        f"the intervals of {alike} overlap ({100 * alike / len(both):.1f} %)."
    )


def fingerprint(name: str) -> str:
    """The table, and which of its required ratios were missed."""
    missed = [
        f"{row['what']}, {row['threads']} thread{'s' if row['threads'] != 1 else ''}, "
        f"{row['through']} against {row['against']} ({row['times as fast']:.3g} of "
        f"{row['required']:g})"
        for row in result(name)["rows"]
        if row["required"] and row["times as fast"] < row["required"]
    ]
    said = "Missed in this run: " + "; ".join(missed) + "." if missed else "None was missed."
    return f"{whole(name)}\n\n{said}"


# (file, block, what fills it, whether from committed JSON alone)
BLOCKS: list[tuple[str, str, Callable[[], str], bool]] = [
    ("README.md", "versions", torch_finder.versions.sentence, True),
    ("docs/install.md", "versions", torch_finder.versions.sentence, True),
    ("README.md", "run", lambda: example("train.py"), False),
    ("docs/index.md", "run", lambda: example("train.py"), False),
    ("docs/first-report.md", "first_program", first_program, True),
    ("docs/first-report.md", "run", lambda: example("train.py"), False),
    ("docs/first-report.md", "fix", fix, False),
    ("docs/fix.md", "fix", fix, False),
    ("docs/fix.md", "fix_benchmark", fix_benchmark, True),
    ("docs/pytest.md", "pytest_program", pytest_program, True),
    ("docs/pytest.md", "pytest_report", pytest_report, False),
    ("docs/notebooks.md", "cells", cells, False),
    ("docs/ranks.md", "ranks", ranks, False),
    ("docs/ranks.md", "preempted", preempted, False),
    ("benchmarks/README.md", "timeline_page", lambda: whole("timeline_page"), True),
    ("docs/places.md", "places", places, True),
    ("docs/configuration.md", "configuration", configuration, True),
    *(
        ("docs/frameworks.md", f"frameworks_{name}", lambda name=name: frameworks.block(name), True)
        for name in frameworks.NAMES
    ),
    ("docs/find-the-line.md", "mutations", mutations, False),
    ("docs/silent-gradients.md", "fused", lambda: example("fused.py", whole=True), False),
    ("docs/silent-gradients.md", "guard", lambda: example("ring.py", "--guard", whole=True), False),
    ("docs/silent-gradients.md", "lies", lies, True),
    ("docs/inference-mode.md", "born", lambda: example("rotary.py"), False),
    ("docs/inference-mode.md", "audit_news", audit_news, True),
    ("docs/lost-gradients.md", "cut", lambda: example("cut.py"), False),
    ("docs/lesson.md", "lesson", lesson, False),
    ("docs/state.md", "inspect", lambda: session(INSPECT), False),
    ("docs/state.md", "tree", lambda: session(TREE, before="import gradext"), False),
    ("docs/state.md", "cost", cost, True),
    ("README.md", "short_cost", short_cost, True),
    ("docs/costs.md", "short_cost", short_cost, True),
    ("docs/costs.md", "recorder", recorder, True),
    ("docs/costs.md", "guard_cost", lambda: whole("guard"), True),
    (
        "docs/compare-modes.md",
        "compare_modes",
        lambda: session(COMPARE, before="import torch, gradext"),
        False,
    ),
    ("docs/inference-audit.md", "audit", audit, False),
    ("docs/inference-audit.md", "architectures", architectures, True),
    ("docs/inference-audit.md", "findings", findings, True),
    (
        "docs/fingerprint.md",
        "fingerprint_session",
        lambda: session(FINGERPRINT, before="import torch, gradext"),
        False,
    ),
    ("docs/fingerprint.md", "fingerprint", lambda: fingerprint("fingerprint"), True),
    (
        "docs/fingerprint.md",
        "fingerprint_cuda",
        lambda: fingerprint("h200/fingerprint_cuda"),
        True,
    ),
    ("docs/fingerprint.md", "fingerprint_quality", lambda: whole("fingerprint_quality"), True),
    ("docs/probe-ops.md", "axpby_rate", lambda: whole("h200/axpby_rate"), True),
    ("docs/peers.md", "peers", peers, True),
    ("docs/guard.md", "guard_cost", lambda: whole("guard"), True),
    ("benchmarks/README.md", "recorder", recorder, True),
    ("benchmarks/README.md", "modes", modes, True),
    ("benchmarks/README.md", "overlap", overlapping, True),
    ("benchmarks/README.md", "layers", lambda: whole("layers"), True),
    ("benchmarks/README.md", "layers_cuda", lambda: whole("h200/layers_cuda"), True),
    ("benchmarks/README.md", "state", lambda: whole("state"), True),
    ("benchmarks/README.md", "import_time", lambda: whole("import_time"), True),
]


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = False
    for name, block, fill, committed in BLOCKS:
        if sys.argv[1:] and not committed:
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
