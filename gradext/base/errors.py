"""The text of an exception, and the exceptions that it came with."""

from __future__ import annotations

from typing import Any

from gradext.base import raw

MOST = 64  # exceptions that one exception can lead to


def describe(error: BaseException) -> str:
    """ "RuntimeError: the text", as the last line of a traceback; runs no code of the program."""
    name = raw.type_name(type(error)).removeprefix("__main__.")
    text = raw.message(error)
    return f"{name}: {text}" if text else name


def one_line(error: BaseException, most: int = 300) -> str:
    """describe(), of the text its first line, cut to `most` characters."""
    name, _, text = describe(error).partition(": ")
    lines = text.strip().splitlines()
    return f"{name}: {lines[0][:most]}" if lines else name


def brief(error: BaseException, most: int) -> str:
    """The message without the type: its first line, and of a long one the first sentence.

    "Error(s) in loading state_dict for Net:" says what only with the next line, which is added.
    """
    said = [part.strip() for part in raw.message(error).splitlines() if part.strip()]
    text = " ".join(said[:2] if said and said[0].endswith(":") else said[:1])
    return text if len(text) <= most else text.partition(". ")[0][: 3 * most]


def chain(*errors: BaseException | None) -> list[BaseException]:
    """The exceptions, what each was raised from or while handling, and the members of groups.

    Each once, the nearest first; at most MOST.
    """
    found: list[BaseException] = []
    waiting: list[Any] = list(errors)
    while waiting and len(found) < MOST:
        at = waiting.pop(0)
        if issubclass(type(at), BaseException) and all(at is not known for known in found):
            found.append(at)
            waiting += [*raw.members_of(at), *raw.reasons_of(at)]
    return found
