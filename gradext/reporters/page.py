"""A Markdown page of a code as a terminal shows it."""

from __future__ import annotations

import re

BOLD = "\x1b[1m"
CODE = "\x1b[36m"
PLAIN = "\x1b[0m"


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
            title = block[0].lstrip("# ")
            # All of it is bold: code is not marked within.
            heading = wrap(title.replace("`", "") if color else title, width)
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
