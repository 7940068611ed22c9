"""Fill docs/ops-that-lie.md with what `gradext check --ops` finds in torch's own ops.

    ops_that_lie.py            write the page from the committed JSON
    ops_that_lie.py --run      run every aten op again first (minutes), and write both
    ops_that_lie.py --check    exit 1 if the page is out of date with the JSON

Needs the `test` extra (expecttest, for torch's operator samples).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "ops-that-lie.md"
DATA = ROOT / "benchmarks" / "results" / "ops-that-lie.json"

INTRO = """\
# The ops that lie

Autograd trusts every op to tell it three things: which arguments it writes (the schema's
`Tensor(a!)`), that it wrote (the version counter goes up by one), and which results share
memory with an argument (the schema's `Tensor(a)`). A backward pass, `torch.compile` and gradext
itself reason from these. Where an op does otherwise, nothing raises: gradients are computed
from values that are no longer there, or a compiler moves a write past a read.

`gradext check --ops` runs every op it can make inputs for and holds three witnesses against
each other: the **schema**, the **version delta** and the **bytes**. This page is what it found
in torch's own ops. It is written by `build_tools/docs/ops_that_lie.py` from
[ops-that-lie.json](../benchmarks/results/ops-that-lie.json).
"""

# What each kind means for somebody who uses the op.
MEANINGS = {
    "declared but not bumped": """\
The op writes, says so in its schema, and does not count the write. A tensor that a backward
saved before holds other values when the backward runs, and torch's check sees nothing: **wrong
gradients, no error**. For a user: never write with these to something a pending backward needs
(call `optimizer.step()` after every backward that uses the weights; `Adam(fused=True)` does not
complain where `Adam()` does).""",
    "bumped twice": """\
One call counts more than one write. Nothing is computed wrongly; a program that counts calls by
version deltas, or that expects "version 1" in an error message, is off.""",
    "written but not declared": """\
The bytes of an argument change and the schema says nothing of it. Compilers that reorder, drop
or repeat ops by schema may lose the write or repeat it, and a saved argument changes unseen.
Batch norm's running statistics are the well-known case.""",
    "returns an undeclared alias": """\
The result can be (or share memory with) an argument, and the schema promises a tensor of its
own. Writing to the result then writes to the argument. Where the two share a version counter
("warning") autograd notices; where they do not ("error") nobody does. Often it depends on the
arguments: `dropout` in evaluation mode, `type_as` to the type that it already is, `atleast_1d`
of a vector all return their input.""",
    "wrong under inference_mode": """\
Other results, other counting, or an error that appears only under `torch.inference_mode()`.
Torch's documented refusals ("Inplace update to inference tensor outside InferenceMode") are
left out. "New memory and yet no inference tensor" is harmless by itself.""",
    "written outside the tensor": """\
The op changed bytes of the storage that are not the tensor's own.""",
    "returns other memory than declared": """\
The schema says that the result is the written argument, and it is not.""",
    "devices disagree": """\
Other counts or values from one device to the next. Needs `--device cpu,cuda`; this page was
made on one device.""",
}

YOUR_OWN = """\
## Ops of your own

    gradext check --ops --namespace mylib --import mylib

imports `mylib`, which registers its ops, and runs them on inputs made from their schemas.
`--import` takes a file too, `--op` a name or pattern, `--json FILE` writes everything,
`--device cpu,cuda` compares devices, and `--verbose` names what did not run. Exit code 0: the
run came to its end (for `aten` whatever was found), 1: an op of another namespace has a
disagreement of severity error, 2: nothing to run.

In a test, on inputs that you know to be right:

    import gradext.testing

    def test_scale_():
        gradext.testing.check_op(torch.ops.mylib.scale_, torch.rand(3), 2.0)

fails with one line per reason: which argument, which witness said what, how to fix it.

## How it is done

Inputs come from torch's own operator samples (`op_db`: every overload that a sample calls is
recorded with its arguments, and its in-place and `out=` siblings get the same, `out=` filled
with wrong values so that a write shows), from a table written by hand, and from the schema.
Each op runs on copies in six ways: grad mode twice (what differs then is random, or was never
written), inputs that require grad, `no_grad`, `inference_mode` with normal and with inference
tensors. Batches run in forked processes with a time limit and a memory limit.

What it cannot see: a write of the bytes that were there already; branches that no input took;
ops of backends that are not here. "Exercised" means that one of the inputs ran, not that every
branch did.
"""


def page(data: dict[str, Any]) -> str:
    counts = data["counts"]
    lines = [INTRO]
    lines += [
        f"torch {data['torch']}, gradext {data['gradext']}, devices: {', '.join(data['devices'])}; "
        f"command: `{data['command']}` ({data['seconds']:.0f} s; {_machine(data['machine'])}).",
        "",
        "## Counts",
        "",
        "| | overloads |",
        "| --- | --- |",
        f"| of aten, in the dispatcher | {counts['overloads']} |",
        f"| exercised | {counts['exercised']} |",
        f"| declare a write | {counts['writable']} |",
        f"| of these exercised | {counts['writable exercised']} |",
        f"| of these every declared write seen | {counts['writable with every write seen']} |",
        *(f"| {kind} | {len(ops)} |" for kind, ops in data["kinds"].items()),
        "",
    ]
    for kind, ops in data["kinds"].items():
        lines += [f"## {kind[0].upper()}{kind[1:]}: {len(ops)}", "", MEANINGS[kind], ""]
        if ops:
            lines += [*_table(kind, ops, data["findings"]), ""]
    lines += _rest(data)
    lines += [YOUR_OWN]
    return "\n".join(lines)


def _table(kind: str, ops: list[str], findings: list[dict[str, Any]]) -> list[str]:
    lines = ["| op | severity | what was seen |", "| --- | --- | --- |"]
    for op in ops:
        mine = [f for f in findings if f["op"] == op and f["kind"] == kind]
        severity = "error" if any(f["severity"] == "error" for f in mine) else "warning"
        lines.append(f"| `{op}` | {severity} | {_seen(kind, mine)} |")
    return lines


def _seen(kind: str, findings: list[dict[str, Any]]) -> str:
    """One cell: for writes the arguments, else the first half of each reason."""
    if kind in {"declared but not bumped", "written but not declared"}:
        return ", ".join(dict.fromkeys(f"`{f['subject'].partition('[')[0]}`" for f in findings))
    reasons = [f["reason"].partition(";")[0].partition(": each layer")[0] for f in findings]
    reasons = [reason.replace(", which the schema does not declare", "") for reason in reasons]
    return "; ".join(dict.fromkeys(reasons)).replace("|", "\\|")


def _rest(data: dict[str, Any]) -> list[str]:
    reasons = data["not_exercised"]["writable"]
    total = sum(map(len, reasons.values()))
    lines = [
        f"## Not exercised, of those that declare a write: {total}",
        "",
        "By what torch said to the inputs that were tried.",
        "",
    ]
    for reason, names in reasons.items():
        lines += [f"**{reason}** ({len(names)}): {_names(names)}", ""]
    others = sum(map(len, data["not_exercised"]["others"].values()))
    lines += [
        f"Of the overloads that declare no write {others} could not be exercised; the JSON names "
        "them.",
        "",
        f"## Declared, no change seen: {len(data['no_change_seen'])}",
        "",
        "They ran, and on no input a declared argument held other bytes afterwards: the inputs may "
        "have been unlucky, or the op may really not write (`requires_grad_`). No verdict.",
        "",
        ", ".join(
            f"`{name.removeprefix('aten::')}` ({', '.join(arguments)})"
            for name, arguments in data["no_change_seen"].items()
        ),
        "",
        f"## Killed their process on some input: {len(data['crashed'])}",
        "",
        "These crash on some inputs that make no sense, made from the schema.",
        "",
        *(f"- `{name}`: {how}" for name, how in data["crashed"].items()),
        "",
    ]
    return lines


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name.removeprefix('aten::')}`" for name in names)


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processor']}, Python {machine['python']}, {machine['date']}, "
        f"commit {machine['commit']}"
    )


def run() -> dict[str, Any]:
    """The survey of aten on the CPU, with where and how long it ran."""
    from gradext.mode_costs import machine
    from gradext.opcheck import survey

    def progress(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{what}: {done} of {total}", end="", file=sys.stderr, flush=True)

    start = time.monotonic()
    data = survey.run("aten", progress=progress).to_json()
    if not data["op_db"]:
        raise SystemExit("torch's operator samples are needed: pip install expecttest")
    return {
        **data,
        "command": "gradext check --ops",
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine.record(ROOT),
    }


def main() -> int:
    if "--run" in sys.argv[1:]:
        DATA.write_text(json.dumps(run(), indent=1) + "\n")
    new = page(json.loads(DATA.read_text()))
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text() != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
