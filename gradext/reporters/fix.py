"""What `gradext fix` found: the best patch as a diff, a line on each other one; JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from gradext.base.text import clean, clean_lines

WORDS = {
    "verified": "verified",
    "changes-meaning": "runs, and changes what is computed",
    "unproved": "runs, not proved",
    "fails": "fails",
    "untried": "not tried",
}
_COLORS = {"verified": "32", "changes-meaning": "33", "unproved": "33", "fails": "31"}


class Cost(Protocol):
    """gradext.fix.cost.Cost."""

    @property
    def bytes(self) -> int | None: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def seconds(self) -> float | None: ...


class Verdict(Protocol):
    """gradext.fix.proof.Verdict."""

    @property
    def level(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def equal(self) -> int: ...
    @property
    def gradients(self) -> int: ...
    @property
    def difference(self) -> float: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def more(self) -> int: ...
    @property
    def cost(self) -> Cost: ...
    def facts(self) -> dict[str, Any]: ...


class Tried(Protocol):
    """gradext.fix.search.Tried."""

    @property
    def title(self) -> str: ...
    @property
    def files(self) -> dict[str, bytes]: ...
    @property
    def diff(self) -> str: ...
    @property
    def verdict(self) -> Verdict: ...


def verdict_line(verdict: Verdict) -> str:
    """ "verified: same loss, 12 of 12 gradients bit-equal, 3 more passes ran; +0.4 MiB, 1.00x"."""
    said = [verdict.why]
    if verdict.gradients:
        if verdict.level == "verified":
            how = "bit-equal" if not verdict.tolerance else f"equal within {verdict.tolerance:.1e}"
            said = ["same loss", f"{verdict.equal} of {verdict.gradients} gradients {how}"]
        else:
            other = verdict.gradients - verdict.equal
            if not other:
                how = "bit-equal" if not verdict.difference else "equal"
                said.append(f"{verdict.equal} of {verdict.gradients} gradients {how}")
            else:
                said.append(f"{other} of {verdict.gradients} gradients differ")
            if other and verdict.difference != float("inf"):
                said.append(f"by up to {verdict.difference:.1e} of their size")
    if verdict.level != "fails":
        passes = "1 more backward pass" if verdict.more == 1 else f"{verdict.more} more passes"
        said.append(f"{passes} ran" if verdict.more else "")
    line = f"{WORDS[verdict.level]}: {', '.join(part for part in said if part)}"
    costs = _cost(verdict.cost) if verdict.level != "fails" else ""
    return clean(f"{line}; {costs}" if costs else line)


def _cost(cost: Cost) -> str:
    """ "+0.4 MiB, 1.00x"; "" where nothing could be measured."""
    said = []
    if cost.bytes is not None:
        said.append(_more_bytes(cost.bytes))
    if cost.ratio is not None:
        said.append(f"{cost.ratio:.2f}x")
    elif cost.seconds is not None:
        said.append("too short to time")
    return ", ".join(said)


def _more_bytes(number: int) -> str:
    sign, size = "-" if number < 0 else "+", abs(number)
    if size < 1024:
        return f"{sign}{size} bytes"
    scaled, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB"):
        if scaled >= 1024 / 10:  # 0.4 MiB
            scaled, unit = scaled / 1024, larger
    return f"{sign}{scaled:.1f} {unit}"


def text(tried: Sequence[Tried], *, color: bool) -> str:
    """The best patch, whole, and a line on each other one."""
    lines = []
    shown = [one for one in tried if one.verdict.level != "fails"][:1]
    for one in shown:
        lines.append(_painted(verdict_line(one.verdict), _COLORS[one.verdict.level], color))
        lines.append(clean(one.title))
        lines.append("")
        lines.append(_diff(one, color))
    others = [one for one in tried if one not in shown]
    if others:
        lines += ["", "also tried:"]
    for one in others:
        lines.append(f"  {clean(one.title)}")
        lines.append(
            f"    {_painted(verdict_line(one.verdict), _COLORS[one.verdict.level], color)}"
        )
    return "\n".join(lines)


def listed(tried: Sequence[Tried], *, color: bool) -> str:
    """Candidates that were not run: each with its diff."""
    return "\n\n".join(f"{clean(one.title)}\n\n{_diff(one, color)}" for one in tried)


def _diff(one: Tried, color: bool) -> str:
    lines = []
    for line in clean_lines(one.diff).rstrip("\n").split("\n"):
        paint = {"+": "32", "-": "31", "@": "36"}.get(line[:1], "")
        lines.append(_painted(line, "1" if line.startswith(("+++", "---")) else paint, color))
    return "\n".join(lines)


def _painted(line: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{line}\x1b[0m" if color and code else line


def as_json(tried: Sequence[Tried]) -> str:
    """The candidates, best first."""
    rows = [
        {
            "title": one.title,
            "level": one.verdict.level,
            "said": verdict_line(one.verdict),
            "files": {path: data.decode("utf-8", "replace") for path, data in one.files.items()},
            "diff": one.diff,
            "proof": {k: None if v == float("inf") else v for k, v in one.verdict.facts().items()},
        }
        for one in tried
    ]
    return json.dumps({"candidates": rows}, indent=1) + "\n"
