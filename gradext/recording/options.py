"""What a recording notes, declared once.

record(), the command line, the processes of one run and the compiled part all take it from here.
Imports no torch.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, get_args

# Of what a guard reads the bytes: of memory that can be written without torch knowing, or of all
# that is saved. The first is what a guard does that was not told.
GuardReads = Literal["exposed", "all"]
GUARDS: Final[tuple[GuardReads, ...]] = get_args(GuardReads)
EXPOSED, ALL = GUARDS
GUARD_WORDS = " or ".join(f'"{word}"' for word in GUARDS)


def guard_reads(value: Any) -> GuardReads | None:
    """Whether a person wants a guard, and what it is to read: True, False or one of GUARDS.

    Raises:
        ValueError: it is something else; with what it can be.
    """
    if value is None or value is False:
        return None
    if value is True:
        return EXPOSED
    for known in GUARDS:
        if value == known:
            return known
    raise ValueError(f"it is True, False, {GUARD_WORDS}, not {value!r}")


MEMORY = 64 << 20  # bytes
MIB = 1 << 20


class RecordOptions(NamedTuple):
    """What to record.

    Attributes:
        saves: what is saved for backward too, and not writes alone.
        births: the lines that make inference tensors; None: as `saves`.
        cuts: where values lose their gradient; None: as `saves`.
        memory: bytes that the journal may take; None for the default.
        guard: compare the bytes of saved tensors too, and of which (`gradext run --guard`).
        uses: at each backward, which tensors the nodes below it had saved (for a timeline).
        times: when writes happened, and when nodes were made and ran (for a trace).
    """

    saves: bool = True
    births: bool | None = None
    cuts: bool | None = None
    memory: int | None = None
    guard: GuardReads | None = None
    uses: bool = False
    times: bool = False

    @property
    def wants(self) -> tuple[bool, bool, bool]:
        """(saves, births, cuts), as the compiled part takes them."""
        births, cuts = (self.saves if one is None else one for one in (self.births, self.cuts))
        return self.saves, births, cuts

    @property
    def limit(self) -> int:
        """The journal's bytes."""
        return MEMORY if self.memory is None else self.memory

    def wrong(self) -> str | None:
        """The name of the first option whose value makes no sense; for values from outside."""
        return next((name for name in self._fields if not _SOUND[name](getattr(self, name))), None)


def journal_bytes(memory: int | None, who: str) -> int | None:
    """`memory` MiB in bytes. `who`: what is told of a value that makes no sense.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1, or more than this machine has.
    """
    if memory is None:
        return None
    try:
        size = None if isinstance(memory, bool) else operator.index(memory)
    except TypeError:
        size = None
    if size is None:
        kind = type(memory).__name__
        raise TypeError(f"{who}: memory is in MiB, a whole number such as 64; got {kind}")
    most = _machine_memory()
    if not 1 <= size <= most:
        raise ValueError(
            f"{who}: memory is in MiB, from 1 to the {most:,} of this machine; got {size:,}"
        )
    return size * MIB


def _machine_memory() -> int:
    """MiB of this machine's memory; as much as the journal could count where that is not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    except (AttributeError, OSError, ValueError):
        return 2**24


def _is_flag(value: Any) -> bool:
    return value is None or type(value) is bool


_SOUND: dict[str, Callable[[Any], bool]] = {
    "saves": lambda value: type(value) is bool,
    "births": _is_flag,
    "cuts": _is_flag,
    "memory": lambda value: value is None or (type(value) is int and MIB <= value < 2**44),
    "guard": lambda value: value is None or value in GUARDS,
    "uses": lambda value: type(value) is bool,
    "times": lambda value: type(value) is bool,
}
