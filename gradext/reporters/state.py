"""TensorState as a card, a list of them as a table, in a terminal and in Jupyter.

Reads finished TensorStates and no tensor. rich is imported when something is printed.
"""

from __future__ import annotations

import html
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import terminal
from gradext.base.text import clean, counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gradext.state.inspect import TensorState

Row = tuple[str, str, str]  # label, value, remark


def describe(state: TensorState) -> str:
    """ "float32[2, 3] cpu": what a person calls the tensor."""
    sizes = ", ".join("?" if size is None else str(size) for size in state.shape)
    return f"{str(state.dtype).removeprefix('torch.')}[{sizes}] {state.device}"


def card_rows(state: TensorState) -> list[Row]:
    """The card's lines, in the order of a person's questions."""
    words = ["requires_grad" if state.requires_grad else "no requires_grad"]
    words.append("leaf" if state.is_leaf else "not a leaf")
    words.append(f"grad_fn {state.grad_fn}" if state.grad_fn else "no grad_fn")
    if state.output_nr:
        words.append(f"its output {state.output_nr}")
    stale = "out of date: its base was written since" if state.grad_fn_is_stale else ""
    rows = [("gradient", ", ".join(words), stale)]
    if state.is_inference:
        rows.append(
            (
                "inference",
                "inference tensor",
                "born under inference_mode; it has no version counter",
            )
        )
    if state.version is None:
        rows.append(("version", "none", ""))
    else:
        rows.append(("version", str(state.version), f"counter {_hex(state.version_counter)}"))
    if state.is_view:
        remark = "" if state.creation_meta == "default" else _MUST_NOT_WRITE
        rows.append(("view", f"of {_hex(state.base)}, made in {state.creation_meta}", remark))
    else:
        rows.append(("view", "no", ""))
    size = "elements kept elsewhere" if state.nbytes is None else f"{_count(state.nbytes)} bytes"
    where = "no storage of its own" if state.storage is None else f"storage {_hex(state.storage)}"
    offset = f", offset {state.storage_offset}" if state.storage is not None else ""
    freed = "freed: resized to 0 bytes" if state.storage_is_freed else ""
    rows.append(("memory", f"{size}, {where}{offset}", freed))
    rows.append(("dispatch", " ".join(state.dispatch_keys) or "none", ""))
    return rows


_MUST_NOT_WRITE = "an in-place write to it with grad mode on raises"


def card(state: TensorState) -> str:
    """The card as text, coloured when standard output is a terminal."""
    return render(_card(state))


def _card(state: TensorState) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value, remark in card_rows(state):
        text = Text(clean(value))
        if remark:
            text.append(
                f"  ({clean(remark)})", style="yellow" if label in {"gradient", "view"} else "dim"
            )
        table.add_row(label, text)
    title = clean(f"Tensor {describe(state)}  {_hex(state.id)}")
    return Group(Text(title, style="bold"), table)


def card_html(state: TensorState) -> str:
    """The card as a small table for Jupyter."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{_escape(label)}</th>"
        f"<td style='text-align:left'>{_escape(value)}"
        + (f" <em>({_escape(remark)})</em>" if remark else "")
        + "</td></tr>"
        for label, value, remark in card_rows(state)
    )
    title = _escape(f"Tensor {describe(state)}  {_hex(state.id)}")
    return f"<table><caption style='text-align:left'><b>{title}</b></caption>{rows}</table>"


# --- trees ---------------------------------------------------------------------------------------

HEADINGS = ("tensor", "type", "grad", "version", "storage", "remarks")


def tree_rows(items: Sequence[tuple[str, TensorState]]) -> list[tuple[str, ...]]:
    """One row a path, cells as in HEADINGS. Storages and counters get short names, S1 and C1, when
    more than one row has them: what has no name is shared with nobody in the list.
    """
    storages = _short_names("S", [state.storage for _, state in items])
    counters = _short_names("C", [state.version_counter for _, state in items])
    first_path: dict[int, str] = {}
    rows: list[tuple[str, ...]] = []
    for path, state in items:
        remarks = _remarks(state, first_path)
        first_path.setdefault(state.id, path)
        version = "-" if state.version is None else str(state.version)
        counter = counters.get(state.version_counter, "")
        rows.append(
            (
                path,
                describe(state),
                _grad_word(state),
                f"{version} {counter}".rstrip(),
                storages.get(state.storage, ""),
                ", ".join(remarks),
            )
        )
    return rows


def legend(items: Sequence[tuple[str, TensorState]]) -> list[str]:
    """The closing lines: totals, then what each mark that occurs in the table means."""
    tensors = {state.id: state for _, state in items}
    storages = {state.storage for state in tensors.values() if state.storage is not None}
    # Only plain numbers: adding up symbolic sizes would make torch guard on them.
    sizes = [state.nbytes for state in tensors.values() if not state.is_view]
    known = [size for size in sizes if isinstance(size, int)]
    amount = f"{_count(sum(known))} bytes" if known or not sizes else "an unknown number of bytes"
    if known and len(known) < len(sizes):
        amount = f"at least {amount}"
    text = [
        f"{counted(len(items), 'path')}, {counted(len(tensors), 'tensor')}, "
        f"{counted(len(storages), 'storage')}, {amount} outside views"
    ]
    rows = tree_rows(items)
    if any(row[4] for row in rows):
        text.append(
            "S1, S2 …  the same mark: the same storage; a write to one is a write to the others"
        )
    if any("C" in row[3] for row in rows):
        text.append(
            "C1, C2 …  the same mark: the same version counter; backward sees a write to either"
        )
    for word, meaning in _GRAD_WORDS.items():
        if any(row[2] == word for row in rows):
            text.append(f"{word:9} {meaning}")
    if any(row[3].startswith("-") for row in rows):
        text.append("version - an inference tensor has no version counter")
    return text


_GRAD_WORDS = {
    "leaf": "requires grad, and backward() fills its .grad",
    "node": "requires grad, and has a grad_fn",
    "no": "does not require grad",
}


def _grad_word(state: TensorState) -> str:
    if not state.requires_grad:
        return "no"
    return "leaf" if state.is_leaf else "node"


def _remarks(state: TensorState, first_path: dict[int, str]) -> list[str]:
    remarks = []
    if state.id in first_path:
        remarks.append(f"same tensor as {first_path[state.id]}")
    if state.is_view:
        base = first_path.get(state.base or 0)
        meta = "" if state.creation_meta == "default" else f" made in {state.creation_meta}"
        remarks.append(f"view{f' of {base}' if base else ''}{meta}")
    if state.is_inference:
        remarks.append("inference tensor")
    if state.grad_fn_is_stale:
        remarks.append("grad_fn out of date")
    if state.storage_is_freed:
        remarks.append("storage freed")
    return remarks


def tree(items: Sequence[tuple[str, TensorState]]) -> str:
    """The table with its legend as text, coloured when standard output is a terminal."""
    return render(_tree(items))


def _tree(items: Sequence[tuple[str, TensorState]]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not items:
        return Text("no tensors")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in HEADINGS:
        table.add_column(
            heading, overflow="fold", no_wrap=heading in {"grad", "version", "storage"}
        )
    for row in tree_rows(items):
        cells = [Text(clean(cell)) for cell in row]
        cells[5].stylize("yellow")
        table.add_row(*cells)
    return Group(table, Text(""), *(Text(line, style="dim") for line in legend(items)))


def tree_html(items: Sequence[tuple[str, TensorState]]) -> str:
    """The table with its legend for Jupyter."""

    def line(cells: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag} style='text-align:left'>{_escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    if not items:
        return "<p>no tensors</p>"
    body = "".join(line(row, "td") for row in tree_rows(items))
    notes = "<br>".join(_escape(text) for text in legend(items))
    return f"<table>{line(HEADINGS, 'th')}{body}</table><p>{notes}</p>"


def _escape(text: str) -> str:
    return html.escape(clean(text))


# --- shared --------------------------------------------------------------------------------------


def _short_names(letter: str, ids: Sequence[int | None]) -> dict[int | None, str]:
    counts = Counter(value for value in ids if value)
    shared = [value for value in counts if counts[value] > 1]
    return {value: f"{letter}{number}" for number, value in enumerate(shared, 1)}


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else str(number)


def _hex(identity: int | None) -> str:
    return "none" if identity is None else f"{identity:#x}"


def render(renderable: RenderableType) -> str:
    """What rich makes of it, as wide as the terminal."""
    wide = terminal.width(most=10_000) if terminal.is_terminal(sys.stdout) else 120
    # In a notebook rich would display the text instead of returning it.
    return terminal.rendered(renderable, width=wide, force_jupyter=False, legacy_windows=False)
