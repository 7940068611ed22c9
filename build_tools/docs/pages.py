"""Fill the pages of the codes with what gradext prints and mends of their wrong examples.

    python build_tools/docs/pages.py            run each wrong example, and put into its page the
                                                report and what `gradext fix` makes of it
    python build_tools/docs/pages.py GX101 …    only these pages

`gradext fix` needs LibCST.

The pages lie in gradext/diagnosis/pages: `gradext explain` shows them from there, and the site
takes them, with the index that files() makes.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from gradext.commands import explain
from gradext.diagnosis.codes import CODES
from gradext.rules.rewrite import strategies

INDEX = "index.md"
MOST_SHOWN = 3  # patches of one page
WIDTH = 98
REPORT = re.compile(r"^(?:gradext: |(?:error|warning)\[GX\d{3}\])", re.M)


def example(text: str, heading: str) -> str:
    """The Python script below the heading "Wrong" or "Right" of a page."""
    match = re.search(rf"^## {heading}\n\n```python\n(.*?)^```$", text, re.M | re.S)
    if match is None:
        raise ValueError(f"the page has no Python example under {heading!r}")
    return match[1]


def gradext(folder: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What `gradext WORDS` does in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "gradext", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "92", "NO_COLOR": "1"},
    )


def printed(script: str, *options: str) -> str | None:
    """What `gradext run` reports for a script called wrong.py; None if it reports nothing."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "wrong.py").write_text(script, encoding="utf-8")
        done = gradext(folder, "run", *options, "wrong.py")
    # "fix:" is printed where LibCST is installed: a page is the same everywhere.
    said = re.sub(r"^fix: gradext fix .*\n", "", done.stderr, flags=re.M)
    start = REPORT.search(said)
    return None if start is None else said[start.start() :].rstrip()


def fill(code: str) -> None:
    """Put into the page of `code` what gradext prints for its wrong example.

    A page has the marks exactly if there is a report: GX204 has none, and says so in words.
    """
    path = explain.PAGES / f"{code}.md"
    text = path.read_text(encoding="utf-8")
    report = printed(example(text, "Wrong"), *(["--guard"] if CODES[code].needs_guard else []))
    pattern = rf"<!-- generated: {code} -->\n.*?<!-- /generated -->"
    has_marks = re.search(pattern, text, re.S) is not None
    if has_marks and report is None:
        raise SystemExit(f"gradext reported nothing for the wrong example of {code}")
    if not has_marks and report is not None:
        raise SystemExit(f"the page of {code} has no marks for this report:\n{report}")
    block = f"<!-- generated: {code} -->\n```\n{report}\n```\n<!-- /generated -->"
    text = re.sub(pattern, lambda _: block, text, flags=re.S)
    block = f"<!-- generated: {code} fix -->\n{mended(code, text)}\n<!-- /generated -->"
    pattern = rf"<!-- generated: {code} fix -->\n.*?<!-- /generated -->"
    path.write_text(re.sub(pattern, lambda _: block, text, flags=re.S), encoding="utf-8")


def mended(code: str, text: str) -> str:
    """What `gradext fix` tries for a code, and what it makes of the wrong example of its page."""
    known = ways(code)
    if not known:
        return "It has no patch for this code: what is meant, only the author knows."
    lines = ["What it can try for this code:", "", *(f"- {way}" for way in known), ""]
    tried = candidates(example(text, "Wrong"))
    if not tried:
        return "\n".join([*lines, "For the example above it has no patch."])
    lines.append("For the example above, the best first:")
    for one in tried[:MOST_SHOWN]:
        said = re.sub(r"((?:bytes|iB)), (?:\d+\.\d\dx|too short to time)$", r"\1", one["said"])
        lines += ["", f"### {one['title']}", "", textwrap.fill(said, WIDTH)]
        if one["level"] != "fails":
            lines += ["", f"```diff\n{one['diff'].rstrip()}\n```"]
    return "\n".join(lines)


def ways(code: str) -> list[str]:
    """The strategies for a code, each by the first sentence of what it says of itself."""
    return [
        (inspect.getdoc(type(one)) or "").split("\n\n", 1)[0].replace("\n", " ")
        for one in strategies.STRATEGIES
        if code in one.codes
    ]


def candidates(script: str) -> list[dict[str, str]]:
    """The patches that `gradext fix` has tried on a script called wrong.py."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "wrong.py").write_text(script, encoding="utf-8")
        done = gradext(folder, "fix", "--json", "out.json", "wrong.py")
        try:
            found: dict[str, list[dict[str, str]]]
            found = json.loads((Path(folder) / "out.json").read_text(encoding="utf-8"))
        except OSError:
            raise SystemExit(f"gradext fix wrote nothing: {done.stderr}") from None
    return found["candidates"]


def files() -> dict[str, str]:
    """The pages that there are, and their index, by file name."""
    pages = {code: explain.page(code) for code in CODES}
    found = {f"{code}.md": text for code, text in pages.items() if text is not None}
    rows = [
        f"| {f'[{code}]({code}.md)' if pages[code] else code} | `{name}` | "
        f"{explain.title(code) if pages[code] else explain.NOT_YET} |"
        for code, (name, *_) in CODES.items()
    ]
    head = [
        "# Diagnosis codes",
        "",
        "What `gradext explain CODE` prints. Each page says what torch says and why, shows a wrong",
        "and a right example, and names what torch's check does not see.",
        "",
        "| code | name | what happened |",
        "| --- | --- | --- |",
    ]
    found[INDEX] = "\n".join([*head, *rows, ""])
    return found


def main() -> int:
    for code in sys.argv[1:] or CODES:
        if explain.page(code) is not None:
            fill(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
