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
}
_COLORS = {"verified": "32", "changes-meaning": "33", "unproved": "33", "fails": "31"}


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
    """ "verified: same loss, 12 of 12 gradients bit-equal, 3 more steps ran"."""
    said = [verdict.why]
    if verdict.gradients:
        if verdict.level == "verified":
            how = "bit-equal" if not verdict.tolerance else f"equal within {verdict.tolerance:.1e}"
            said = ["same loss", f"{verdict.equal} of {verdict.gradients} gradients {how}"]
        else:
            other = verdict.gradients - verdict.equal
            said.append(f"{other} of {verdict.gradients} gradients differ")
            if verdict.difference != float("inf"):
                said.append(f"by up to {verdict.difference:.1e} of their size")
    if verdict.level != "fails":
        passes = "1 more backward pass" if verdict.more == 1 else f"{verdict.more} more passes"
        said.append(f"{passes} ran" if verdict.more else "")
    return clean(f"{WORDS[verdict.level]}: {', '.join(part for part in said if part)}")


def text(tried: Sequence[Tried], *, color: bool) -> str:
    """The best patch, whole, and a line on each other one."""

    def painted(line: str, code: str) -> str:
        return f"\x1b[{code}m{line}\x1b[0m" if color and code else line

    lines = []
    shown = [one for one in tried if one.verdict.level != "fails"][:1]
    for one in shown:
        lines.append(painted(verdict_line(one.verdict), _COLORS[one.verdict.level]))
        lines.append(clean(one.title))
        lines.append("")
        for line in clean_lines(one.diff).rstrip("\n").split("\n"):
            paint = {"+": "32", "-": "31", "@": "36"}.get(line[:1], "")
            lines.append(painted(line, "1" if line.startswith(("+++", "---")) else paint))
    others = [one for one in tried if one not in shown]
    if others:
        lines += ["", "also tried:"]
    for one in others:
        lines.append(f"  {clean(one.title)}")
        lines.append(f"    {painted(verdict_line(one.verdict), _COLORS[one.verdict.level])}")
    return "\n".join(lines)


def as_json(tried: Sequence[Tried]) -> str:
    """The candidates, best first."""
    rows = [
        {
            "title": one.title,
            "level": one.verdict.level,
            "files": {path: data.decode("utf-8", "replace") for path, data in one.files.items()},
            "diff": one.diff,
            "proof": {k: None if v == float("inf") else v for k, v in one.verdict.facts().items()},
        }
        for one in tried
    ]
    return json.dumps({"candidates": rows}, indent=1) + "\n"
