"""A backward that fails, and the lines of it: what the tests of asking ask about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def line_of(text: str) -> int:
    """The number of the line of this file that ends in a comment `text`."""
    lines = Path(__file__).read_text().splitlines()
    (found,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {text}")]
    return found


def broken() -> torch.Tensor:
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  # asked: saves
    h.add_(1)  # asked: writes
    return h.sum()


def failed(**raising: Any) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        broken().backward()
    return caught.value
