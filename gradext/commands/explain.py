"""`gradext explain`: finds the page of a code and shows it.

Owns the reading of the pages (gradext/diagnosis/pages, one Markdown file a code) and how they look
in a terminal. What a page says is the page's own business.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shutil
import sys

from gradext.base.package import FOLDER

OK, UNKNOWN, BROKEN_PIPE = 0, 2, 141
MAX_WIDTH = 100

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
        try:
            status = _list(args.json) if args.code is None else _explain(args.code, args.json)
            # A reader that left is noticed now, not when the interpreter closes the stream.
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            # The interpreter flushes stdout once more at exit, and would print a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE


def page(code: str) -> str | None:
    """The page of a code, in Markdown; None if this version has none."""
    path = PAGES / f"{code}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def title(code: str) -> str:
    """What the page's first line says after the code; for a code without a page its name."""
    from gradext.diagnosis.model import CODES

    text = page(code)
    if text is None:
        return CODES[code].replace("-", " ")
    return text.split("\n", 1)[0].split(": ", 1)[1]


def find(word: str) -> str | None:
    """The code that a person means by "GX101", "gx101", "101" or "stale-saved-tensor"."""
    from gradext.diagnosis.model import CODES

    wanted = word.strip().lower().replace("_", "-").replace(" ", "-")
    for code, name in CODES.items():
        if wanted in {code.lower(), code.lower().removeprefix("gx"), name}:
            return code
    return None


def near(word: str) -> list[str]:
    """Codes and names that look like `word`, best first, at most three."""
    from gradext.diagnosis.model import CODES

    wanted = word.strip().lower()
    numbers = {code.lower().removeprefix("gx"): code for code in CODES}
    names = {name: f"{name} ({code})" for code, name in CODES.items()}
    number = wanted.removeprefix("gx")
    if number.isdecimal():
        return [numbers[n] for n in difflib.get_close_matches(number, numbers, 3, 0.5)]
    inside = [names[name] for name in names if len(wanted) > 2 and wanted in name]
    close = [names[name] for name in difflib.get_close_matches(wanted, names, 3, 0.5)]
    return list(dict.fromkeys([*inside, *close]))[:3]


def _explain(word: str, as_json: bool) -> int:
    from gradext.diagnosis.model import CODES

    code = find(word)
    if code is None:
        like = near(word)
        hint = f"did you mean {' or '.join(like)}?" if like else "gradext explain lists all codes"
        print(f"gradext explain: there is no code {word!r}; {hint}", file=sys.stderr)
        return UNKNOWN
    text = page(code)
    if as_json:
        fields = {"code": code, "name": CODES[code], "title": title(code), "text": text}
        print(json.dumps(fields, indent=2))
    elif text is None:
        print(f"{code} {CODES[code]}: {NOT_YET}")
    elif _is_terminal():
        width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
        _write(render(text, width, color=_wants_color()))
    else:
        _write(text.rstrip("\n"))
    return OK


def _list(as_json: bool) -> int:
    from gradext.diagnosis.model import CODES

    if as_json:
        rows = [
            {"code": code, "name": name, "title": title(code), "text": page(code)}
            for code, name in CODES.items()
        ]
        print(json.dumps({"codes": rows}, indent=2))
        return OK
    column = max(map(len, CODES.values()))
    for code, name in CODES.items():
        words = NOT_YET if page(code) is None else title(code)
        print(f"{code}  {name:<{column}}  {words}")
    return OK


def _is_terminal() -> bool:
    return bool(getattr(sys.stdout, "isatty", lambda: False)())


def _wants_color() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


# --- Markdown in a terminal ----------------------------------------------------------------------

BOLD, CODE, PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[0m"


def render(markdown: str, width: int, *, color: bool) -> str:
    """A page for reading in a terminal.

    Knows what the pages use: headings, paragraphs, lists of one level, fenced code, `code` in
    backquotes, and comments, which are left out.
    """
    from gradext.reporters.excerpt import wrap

    lines: list[str] = []
    previous = ""
    for kind, block in _blocks(markdown):
        if previous and not kind == previous == "item":
            lines.append("")
        if kind == "code":
            lines += [f"    {_paint(line, CODE, color)}".rstrip() for line in block]
        elif kind == "quote":
            quoted = wrap(" ".join(block), width - 4)
            lines += [f"    {_paint(line, CODE, color)}" for line in quoted]
        elif kind == "heading":
            heading = wrap(block[0].lstrip("# "), width)
            lines += [_paint(line, BOLD, color) for line in heading]
        elif kind == "item":
            lines += [_inline(line, color) for line in wrap(" ".join(block)[2:], width, "- ")]
        else:
            lines += [_inline(line, color) for line in wrap(" ".join(block), width)]
        previous = kind
    return "\n".join(lines)


def _blocks(markdown: str) -> list[tuple[str, list[str]]]:
    """(kind, lines) of each block.

    Kinds: "heading", "text", "item" (one of a list), "code" and "quote" (a ```text block, which
    may be wrapped as code may not).
    """
    blocks: list[tuple[str, list[str]]] = []
    kind = ""  # of the block that the next line may belong to; "" after an empty line
    for line in markdown.splitlines():
        if kind in {"code", "quote"}:
            if line.startswith("```"):
                kind = ""
            else:
                blocks[-1][1].append(line)
        elif line.startswith("```"):
            kind = "quote" if line.startswith("```text") else "code"
            blocks.append((kind, []))
        elif not line.strip() or re.fullmatch(r"\s*<!--.*-->\s*", line):
            kind = ""
        elif line.startswith("#"):
            kind = ""
            blocks.append(("heading", [line]))
        elif line.startswith("- "):
            kind = "item"
            blocks.append((kind, [line]))
        elif kind:
            blocks[-1][1].append(line.strip())
        else:
            kind = "text"
            blocks.append((kind, [line]))
    return blocks


def _inline(line: str, color: bool) -> str:
    # A terminal without colour keeps the backquotes: they are what marks the code there.
    return re.sub(r"`([^`]+)`", rf"{CODE}\1{PLAIN}", line) if color else line


def _paint(text: str, style: str, color: bool) -> str:
    return f"{style}{text}{PLAIN}" if color and text else text
