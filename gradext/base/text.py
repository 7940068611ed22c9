"""Text from outside as it may be shown: on one line, with nothing that a terminal would obey.

File names, source lines, names of tensors, functions and threads, messages of exceptions and words
of the command line are whatever somebody made them. All that gradext prints of them goes through
here. Imports nothing of gradext.
"""

from __future__ import annotations

import unicodedata

_BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_MARKS = {"\u200e", "\u200f", "\u061c"}  # direct the text beside them, and are of no such class


def printable(character: str) -> str:
    """The character, or what stands for it where a terminal would obey it instead of showing it."""
    category = unicodedata.category(character)
    if category == "Cs":  # a lone surrogate: no stream encodes it
        return "\N{REPLACEMENT CHARACTER}"
    if category in {"Cc", "Zl", "Zp"}:
        return "?"
    # Marks that reverse the direction of the text behind them would show code in a false order.
    if character in _MARKS or unicodedata.bidirectional(character) in _BIDI_CONTROLS:
        return "\N{REPLACEMENT CHARACTER}"
    return character


def counted(number: int, noun: str) -> str:
    """ "1 tensor", "3 tensors"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def clean(text: str) -> str:
    """`text` on one line with only characters that are safe to print."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if character in "\n\r\t" else printable(character) for character in text)


def clean_lines(text: str) -> str:
    """`text` with its line ends and tabs, each line of it clean."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(character if character in "\n\t" else printable(character) for character in text)
