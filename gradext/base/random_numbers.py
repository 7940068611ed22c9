"""Saves and restores the state of the random number generators that a program uses."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch

from gradext.base.forks import uses_cuda


@dataclasses.dataclass(frozen=True)
class RandomNumbers:
    """The state of the random number generators that a model may draw from, at one moment."""

    torch_state: torch.Tensor
    cuda_states: tuple[torch.Tensor, ...]
    python_state: Any
    numpy_state: Any

    @classmethod
    def now(cls) -> RandomNumbers:
        with torch.inference_mode(False):
            cuda = torch.cuda.get_rng_state_all() if uses_cuda() else []
            return cls(
                torch.get_rng_state(), tuple(cuda), random.getstate(), numpy.random.get_state()
            )

    def restore(self) -> None:
        torch.set_rng_state(self.torch_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(list(self.cuda_states))
        random.setstate(self.python_state)
        numpy.random.set_state(self.numpy_state)

    def is_now(self) -> bool:
        """Whether no random number has been drawn since then."""
        state = numpy.random.get_state()
        return (
            torch.equal(self.torch_state, torch.get_rng_state())
            and self.python_state == random.getstate()
            and all(numpy.array_equal(a, b) for a, b in zip(self.numpy_state, state, strict=True))
        )

    @staticmethod
    @contextlib.contextmanager
    def kept() -> Iterator[None]:
        """A block after which the generators are as they were before it."""
        state = RandomNumbers.now()
        try:
            yield
        finally:
            state.restore()
