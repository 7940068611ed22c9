"""Calls that a specialising interpreter enters by itself: its helper frames are nobody's.

After a few calls, CPython runs `__init__`, properties, `__getitem__` and generators without a call
in C; since 3.12 with a frame of its own below an `__init__`, whose code has no file and no line.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from events import writes

import gradext

OFTEN = 60
seen: list[list[tuple[str, int]]] = []


def write(x: torch.Tensor) -> None:
    """Writes in place, and notes the stack that Python itself tells at that moment."""
    frames = traceback.walk_stack(sys._getframe())
    seen.append([(frame.f_code.co_name, line) for frame, line in frames])
    x.add_(1); seen[-1][0] = ("write", sys._getframe().f_lineno)  # fmt: skip # noqa: E702


class Plain:
    def __init__(self, x: torch.Tensor) -> None:
        write(x)


class Derived(Plain):
    def __init__(self, x: torch.Tensor) -> None:
        super().__init__(x)


class Keyword:
    def __init__(self, *, x: torch.Tensor, more: int = 3) -> None:
        write(x)


@dataclasses.dataclass
class Data:
    x: torch.Tensor

    def __post_init__(self) -> None:
        write(self.x)


class Closure:
    def __init__(self, x: torch.Tensor) -> None:
        self.later = lambda: write(x)  # `x` lives in a cell: the frame begins by making it
        self.later()


class Reader:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    @property
    def value(self) -> int:
        write(self.x)
        return 1

    def __getitem__(self, index: int) -> int:
        write(self.x)
        return index

    def __getattr__(self, name: str) -> int:
        write(self.__dict__["x"])
        return 1

    def __iter__(self) -> Iterator[int]:
        write(self.x)
        yield 1


def read_property(x: torch.Tensor) -> Any:
    return Reader(x).value


def read_item(x: torch.Tensor) -> Any:
    return Reader(x)[3]


def read_attribute(x: torch.Tensor) -> Any:
    return Reader(x).anything


def read_generator(x: torch.Tensor) -> Any:
    return [item for item in Reader(x)]  # noqa: C416


CALLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "__init__": lambda x: Plain(x),
    "super().__init__": lambda x: Derived(x),
    "keyword __init__": lambda x: Keyword(x=x),
    "dataclass": lambda x: Data(x),
    "cell": lambda x: Closure(x),
    "property": read_property,
    "__getitem__": read_item,
    "__getattr__": read_attribute,
    "generator": read_generator,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_stack_is_the_one_that_python_tells(call: Callable[[torch.Tensor], Any]) -> None:
    seen.clear()
    x = torch.zeros(3)
    with gradext.record() as recording:
        for _ in range(OFTEN):
            call(x)
    events = writes(recording)
    assert len(events) == OFTEN
    for event, told in zip(events, seen, strict=True):
        frames = recording.frames(event.stack)
        names = [frame.function.rpartition(".")[2] for frame in frames]
        here = [(name, frame.line) for name, frame in zip(names, frames, strict=True)]
        # The lambda's and comprehension's names are told alike; the test's own line moves.
        upto = next(k for k, (name, _) in enumerate(told) if name.startswith("test_the_stack"))
        assert here[:upto] == told[:upto]
        assert all(frame.line > 0 for frame in frames)
