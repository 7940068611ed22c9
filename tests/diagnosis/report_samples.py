"""Hand-made diagnoses of a program, train.py, for the tests of the report."""

from __future__ import annotations

import re
from pathlib import Path

from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.reporters.diagnosis_text import text

TRAIN = """\
import torch
from torch import nn


class Block(nn.Module):
    def forward(self, x):
        h = torch.sigmoid(self.fc(x))
        y = h * 2
        h += y
        return h


def step(model, x, optimizer):
    first = model(x).sum()
    first.backward(retain_graph=True)
    optimizer.step()
    return first


def main():
    for x in batches:
        loss = step(model, x, optimizer)
        loss.backward()


main()
"""
TORCH = "/usr/lib/python3/site-packages/torch/"


def frame(
    line: int,
    code: str,
    function: str = "Block.forward",
    *,
    file: str = "train.py",
    content: str | None = None,
) -> Frame:
    """The frame of an expression on one line: its columns are where `code` is on that line."""
    path = Path.cwd() / file
    whole = (path.read_text() if content is None else content).split("\n")[line - 1]
    column = whole.index(code)
    return Frame(str(path), line, function, whole.strip(), column, line, column + len(code))


def library(file: str, line: int, function: str) -> Frame:
    return Frame(TORCH + file, line, function, is_user=False)


def write(place: Frame, **facts: object) -> Site:
    return Site(place, "aten::add_", 0, 1, label="writes h in place", **facts)  # type: ignore[arg-type]


def save(place: Frame, **facts: object) -> Site:
    return Site(place, "aten::sigmoid", label="saves its output, h", **facts)  # type: ignore[arg-type]


def stale(culprits: tuple[Site, ...], victims: tuple[Site, ...] = (), **rest: object) -> Diagnosis:
    facts = {"message": "h was written in place", "fix": "write `h = h + y`", **rest}
    return Diagnosis("GX101", "error", culprits=culprits, victims=victims, **facts)  # type: ignore[arg-type]


def marked(content: str, place: Frame, width: int = 100) -> list[str]:
    """The lines between the two margins of the excerpt of a diagnosis with this one culprit."""
    Path(place.file).write_bytes(content.encode())
    lines = text(stale((Site(place, label="here"),)), width=width).split("\n")
    edges = [i for i, line in enumerate(lines) if re.fullmatch(r" +\|", line)]
    return lines[edges[0] + 1 : edges[1]]


def at(line: int, column: int | None, end_line: int | None, end_column: int | None) -> Frame:
    return Frame(str(Path.cwd() / "t.py"), line, "f", "", column, end_line, end_column)
