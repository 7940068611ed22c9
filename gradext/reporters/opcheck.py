"""A survey of ops as the text that a person reads.

Reads the finished report as plain data, as `--json` writes it; never an op or a tensor.
"""

from __future__ import annotations

from typing import Any

from gradext.base.text import clean, counted
from gradext.reporters import diagnosis_text, excerpt

# Below this many disagreements each comes with its reason and its remedy, above it with --verbose.
_FEW = 12

_HEADS = {
    "declared but not bumped": "the schema says written, the bytes changed, the version did not",
    "bumped twice": "one call moved a version by more than one",
    "written but not declared": "the bytes changed, the schema says nothing of it",
    "returns an undeclared alias": "a result shares memory with an input, the schema is silent",
    "wrong under inference_mode": "other results, other counting, or an error, only there",
    "written outside the tensor": "bytes of the storage changed that are not the tensor's own",
    "returns other memory than declared": "the schema says it returns the written argument",
    "devices disagree": "other counts or other values from one device to the next",
}


def text(data: dict[str, Any], *, verbose: bool = False, width: int | None = None) -> str:
    """The report without a newline at its end; at most `width` cells wide, else the terminal."""
    cells = diagnosis_text.room(width)
    counts = data["counts"]
    where = {
        "process": "in processes of their own",
        "none": "in this process, without protection from crashes",
    }
    head = (
        f"ops of {data['namespace']} (torch {data['torch']}, on {', '.join(data['devices'])}, "
        f"{where[data['isolation']]})"
    )
    lines = excerpt.wrap(head, cells, rest="  ")
    lines += excerpt.wrap(summary(counts), cells, rest="  ")
    if data["namespace"] == "aten" and not data["op_db"]:
        lines += excerpt.wrap(
            "torch's own operator samples could not be loaded (pip install expecttest): fewer ops "
            "could be exercised",
            cells,
            rest="  ",
        )
    found = data["findings"]
    explain = verbose or len(found) <= _FEW
    for kind, ops in data["kinds"].items():
        if not ops:
            continue
        lines += ["", f"{kind}: {_ops(len(ops))} ({_HEADS[kind]})"]
        for op in ops:
            mine = [f for f in found if f["op"] == op and f["kind"] == kind]
            lines += _op(op, mine, explain, cells)
    if not found:
        lines += ["", "the three witnesses agree on every op that ran"]
    for name, how in data["crashed"].items():
        lines += ["", *excerpt.wrap(f"{name} {how} on some input", cells, "crashed: ")]
    lines += _not_exercised(data, verbose, cells)
    return "\n".join(lines)


def summary(counts: dict[str, int]) -> str:
    """The counts in one sentence."""
    return (
        f"{counted(counts['overloads'], 'overload')}, {counts['exercised']} ran on some input; "
        f"{counts['writable']} declare a write: {counts['writable exercised']} of them ran, and on "
        f"{counts['writable with every write seen']} every declared write was seen"
    )


def _op(op: str, found: list[dict[str, Any]], explain: bool, width: int) -> list[str]:
    if not explain:
        subjects = ", ".join(dict.fromkeys(_bare(f["subject"]) for f in found if f["subject"]))
        return excerpt.wrap(f"{op}  {subjects}".rstrip(), width, "  ", " " * 6)
    lines = [f"  {clean(op)}"]
    for finding in found:
        lines += excerpt.wrap(
            f"{finding['reason']} (inputs: {finding['source']})",
            width,
            f"    {finding['severity']}: ",
        )
        lines += excerpt.wrap(finding["fix"], width, "    help: ") if finding["fix"] else []
    return lines


def _not_exercised(data: dict[str, Any], verbose: bool, width: int) -> list[str]:
    lines: list[str] = []
    for key, what in (("writable", "that declare a write"), ("others", "that declare none")):
        reasons = data["not_exercised"][key]
        if not reasons:
            continue
        total = sum(map(len, reasons.values()))
        lines += ["", f"not exercised, of those {what}: {_ops(total)}"]
        for reason, names in reasons.items():
            lines += excerpt.wrap(reason, width, f"  {len(names):5}  ", " " * 9)
            if verbose:
                lines += excerpt.wrap(", ".join(names), width, " " * 9)
    unseen = data["no_change_seen"]
    if unseen:
        lines += ["", f"declared, no change seen on any input: {_ops(len(unseen))}"]
        if verbose:
            for name, arguments in unseen.items():
                lines += excerpt.wrap(f"{name}  {', '.join(arguments)}", width, " " * 9)
    if lines and not verbose:
        lines.append("(--verbose names them)")
    return lines


def _bare(subject: str) -> str:
    """`exp_avgs[0]` as `exp_avgs`: which element showed it is the inputs' business."""
    return subject.partition("[")[0]


def _ops(number: int) -> str:
    return counted(number, "op")
