"""`gradext explain`: finds the page of a code and shows it.

Owns the reading of the pages (gradext/diagnosis/pages, one Markdown file a code) and how they look
in a terminal. What a page says is the page's own business.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys

from gradext.base import terminal
from gradext.base.package import FOLDER
from gradext.diagnosis.codes import CODES
from gradext.reporters.page import render

OK, UNKNOWN = 0, 2

PAGES = FOLDER / "diagnosis" / "pages"
NOT_YET = "this version does not diagnose it yet"


class ExplainCommand:
    """What a diagnosis code means: what torch says, why, a wrong and a right example.

    Without a code it lists all codes. The exit code is 2 for a code that does not exist.
    """

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "code",
            metavar="CODE",
            nargs="?",
            help="a code or its name: GX101, 101 or stale-saved-tensor (default: list all)",
        )
        parser.add_argument(
            "--json", action="store_true", help="print JSON: code, name, title and text"
        )

    def run(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        return _list(args.json) if args.code is None else _explain(args.code, args.json)


def page(code: str) -> str | None:
    """The page of a code, in Markdown; None if this version has none."""
    path = PAGES / f"{code}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def title(code: str) -> str:
    """What the page's first line says after the code; for a code without a page its name."""
    text = page(code)
    if text is None:
        return CODES[code].name.replace("-", " ")
    return text.split("\n", 1)[0].split(": ", 1)[1]


def find(word: str) -> str | None:
    """The code that a person means by "GX101", "gx101", "101" or "stale-saved-tensor"."""
    wanted = word.strip().lower().replace("_", "-").replace(" ", "-")
    for code, (name, *_) in CODES.items():
        if wanted in {code.lower(), code.lower().removeprefix("gx"), name}:
            return code
    return None


def near(word: str) -> list[str]:
    """Codes and names that look like `word`, best first, at most three."""
    wanted = word.strip().lower()
    numbers = {code.lower().removeprefix("gx"): code for code in CODES}
    names = {name: f"{name} ({code})" for code, (name, *_) in CODES.items()}
    number = wanted.removeprefix("gx")
    if number.isdecimal():
        return [numbers[n] for n in difflib.get_close_matches(number, numbers, 3, 0.5)]
    inside = [names[name] for name in names if len(wanted) > 2 and wanted in name]
    close = [names[name] for name in difflib.get_close_matches(wanted, names, 3, 0.5)]
    return list(dict.fromkeys([*inside, *close]))[:3]


def _explain(word: str, as_json: bool) -> int:
    code = find(word)
    if code is None:
        like = near(word)
        hint = f"did you mean {' or '.join(like)}?" if like else "gradext explain lists all codes"
        print(f"gradext explain: there is no code {word!r}; {hint}", file=sys.stderr)
        return UNKNOWN
    text = page(code)
    if as_json:
        fields = {"code": code, "name": CODES[code].name, "title": title(code), "text": text}
        print(json.dumps(fields, indent=2))
    elif text is None:
        print(f"{code} {CODES[code].name}: {NOT_YET}")
    elif terminal.is_terminal(sys.stdout) or terminal.wants_color(sys.stdout):
        width = terminal.width(otherwise=80)
        _write(render(text, width, color=terminal.wants_color(sys.stdout)))
    else:
        _write(text.rstrip("\n"))
    return OK


def _list(as_json: bool) -> int:
    if as_json:
        rows = [
            {"code": code, "name": name, "title": title(code), "text": page(code)}
            for code, (name, *_) in CODES.items()
        ]
        print(json.dumps({"codes": rows}, indent=2))
        return OK
    column = max(len(code.name) for code in CODES.values())
    for code, (name, *_) in CODES.items():
        words = NOT_YET if page(code) is None else title(code)
        print(f"{code}  {name:<{column}}  {words}")
    return OK


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))
