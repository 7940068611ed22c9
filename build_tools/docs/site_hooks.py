"""Hooks of mkdocs: the pages that are made from the package, and links that lead out of docs/.

Adds the pages of the codes with their index, the command line's reference (from `--help`),
CONTRIBUTING.md, a picture of the rooms (from the layers that import-linter checks), and the plots
of benchmarks/results. A link to a file of the repository that the site has not becomes its name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_tools" / "docs"))
import pages  # noqa: E402

from gradext import commands  # noqa: E402

PAGES = "gradext/diagnosis/pages/"
PICTURE = "<!-- the site has a picture of the rooms here -->"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+)([^)#]*)(#[^)]*)?\)")


def on_files(files: Any, *, config: Any) -> Any:
    """Add the generated files to those of docs/."""
    from mkdocs.structure.files import File

    made: dict[str, str | bytes] = {f"codes/{name}": text for name, text in pages.files().items()}
    made["cli.md"] = command_line()
    made["contributing.md"] = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    made["rooms.svg"] = rooms()
    for plot in (ROOT / "benchmarks" / "results").glob("*.png"):
        made[f"results/{plot.name}"] = plot.read_bytes()
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_config(config: Any) -> Any:
    """List the pages of the codes in the navigation, the index first."""
    codes = sorted(pages.files(), key=lambda name: (name != "index.md", name))
    for section in config.nav:
        if "Codes" in section:
            section["Codes"] = [
                f"codes/{name}"
                if name == "index.md"
                else {f"{name[:-3]} {pages.CODES[name[:-3]].name}": f"codes/{name}"}
                for name in codes
            ]
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository into links of the site, or into the file's name."""

    def inside(match: re.Match[str]) -> str:
        picture, text, _, target, anchor = match.groups()
        up = "../" * page.file.src_uri.count("/")
        name = Path(target).name
        if target.startswith(PAGES):
            return f"{picture}[{text}]({up}codes/{name}{anchor or ''})"
        if target.startswith("benchmarks/results/") and name.endswith(".png"):
            return f"{picture}[{text}]({up}results/{name})"
        if target.startswith("docs/"):
            return f"{picture}[{text}]({up}{target.removeprefix('docs/')}{anchor or ''})"
        return text if "`" in text else f"`{text}`"

    if page.file.src_uri == "contributing.md":  # it lies in the root: its links have no ../
        markdown = re.sub(r"\]\((docs/|gradext/|csrc/)", r"](../\1", markdown)
    markdown = markdown.replace(PICTURE, "![the rooms, the top floor first](rooms.svg)")
    return LINK.sub(inside, markdown)


def command_line() -> str:
    """Every command's `--help`, as a page."""

    def asked(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gradext", *words, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "88", "NO_COLOR": "1"},
        )
        return f"```text\n{done.stdout.rstrip()}\n```\n"

    parts = ["# The command line\n", "What `--help` prints.\n", asked()]
    for command in commands.COMMANDS:
        parts += [f"## gradext {command}\n", asked(command)]
    return "\n".join(parts)


def rooms() -> str:
    """The floors of gradext/ as a picture: each room imports only from floors below it."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    floors = next(c["layers"] for c in contracts if c["type"] == "layers")
    width, height = 640, 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * len(floors)}" '
        'font-family="monospace" font-size="13">'
    ]
    for floor, line in enumerate(floors):
        names = [name.strip().removeprefix("gradext.") for name in line.split("|")]
        names = [f"{n}/" if (ROOT / "gradext" / n).is_dir() else f"{n}.py" for n in names]
        room = width / len(names)
        for k, name in enumerate(names):
            x, y = k * room + 3, floor * height + 3
            parts.append(
                f'<rect x="{x:g}" y="{y}" width="{room - 6:g}" height="{height - 6}" rx="5" '
                'fill="#ff7043" fill-opacity=".18" stroke="#d84315"/>'
                f'<text x="{x + room / 2 - 3:g}" y="{y + 19}" text-anchor="middle" '
                f'fill="#d84315">{escape(name)}</text>'
            )
    return "\n".join([*parts, "</svg>"])
