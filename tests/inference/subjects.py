"""Small modules and functions, each with one habit that inference_mode meets.

A line that a test names ends in `#: NAME`; `line("NAME")` is its number.
"""

from __future__ import annotations

import functools
import json
import os
import random
import threading
import time
from pathlib import Path

import numpy
import torch
from torch import nn

FILE = Path(__file__)
TABLES: dict[int, torch.Tensor] = {}


def line(name: str) -> int:
    marked = [
        number
        for number, text in enumerate(FILE.read_text().splitlines(), 1)
        if text.endswith(f"#: {name}")
    ]
    assert len(marked) == 1, (name, marked)
    return marked[0]


class Clean(nn.Module):
    """Leaves nothing behind."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x):
        return torch.relu(self.up(x))


class Rope(Clean):
    """Builds its table on the first call and keeps it."""

    def __init__(self):
        super().__init__()
        self._cache = {}

    def forward(self, x):
        n = x.shape[0]
        if n not in self._cache:
            angles = torch.arange(n * 4.0).view(n, 4)
            self._cache[n] = torch.cos(angles)  #: ROPE BORN
        return self.up(x) * self._cache[n]  #: ROPE USED


def hides(x):
    """Keeps a tensor where no person would look: in a module of Python's own."""
    json.kept = torch.cos(x)  #: HIDDEN BORN
    return x * 2


class CleanSampler(Clean):
    @torch.no_grad()
    def sample(self, x, times=1):
        for _ in range(times):
            x = self(x)
        return x


class Encodes(Clean):
    """Has a method that takes less than forward needs."""

    def forward(self, x, y):
        if y is None:
            raise ValueError("y is needed")
        return super().forward(x)

    @torch.no_grad()
    def encode(self, x, y=None):
        return self.up(x)


class Sampler(Rope):
    """Generates without gradients, by way of forward."""

    @torch.no_grad()
    def sample(self, x):
        return self(x)


class Decoder(nn.Module):
    """Holds a Rope as a submodule."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Rope()])

    def forward(self, x):
        return self.layers[0](x)


class OwnMode(Rope):
    """Enters inference_mode by itself to build its table."""

    def forward(self, x):
        if 0 not in self._cache:
            with torch.inference_mode():  #: OWN MODE ENTERED
                self._cache[0] = torch.ones(4)  #: OWN MODE BORN
        return self.up(x) * self._cache[0]  #: OWN MODE USED


class Count(Clean):
    """Counts its calls in a buffer, in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)  #: COUNTED
        return super().forward(x)


class Average(Clean):
    """Replaces a buffer by a new tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        y = self.up(x) * self.mean  #: MEAN USED
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  #: MEAN BORN
        return y


class Lazy(Clean):
    """Makes a parameter on the first call."""

    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(x.shape[-1]))  #: SCALE BORN
        return self.up(x) * self.scale


class Kv(Clean):
    """Allocates a cache on the first call and writes into it on each."""

    cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.zeros(4)
        self.cache[0] += 1  #: KV WRITTEN
        return self.up(x)


class Score(nn.Module):
    """Differentiates inside, with grad mode switched on for it."""

    def forward(self, x):
        with torch.enable_grad():
            leaf = (x * 1).requires_grad_()
            energy = leaf.square().sum()
            return torch.autograd.grad(energy, leaf)[0]  #: SCORE FAILS


class Asks(Clean):
    """Gives something else when it is asked under inference_mode."""

    def __init__(self, extra=1.0):
        super().__init__()
        self.extra = extra

    def forward(self, x):
        y = super().forward(x) + 1
        return y * (1 + self.extra) if torch.is_inference_mode_enabled() else y


class Noise(Clean):
    """Draws from where no seed reaches."""

    def forward(self, x):
        return super().forward(x) + int.from_bytes(os.urandom(4), "big")


class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no such mode: 'fancy'")  #: BROKEN


class Locks(Clean):
    """Keeps what can be neither copied nor saved, under inference_mode only."""

    def forward(self, x):
        if torch.is_inference_mode_enabled():
            self.lock = threading.Lock()
        return super().forward(x)


class Uncopyable(Rope):
    """Can never be copied or saved."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Restless(Uncopyable):
    """Draws from every generator and switches itself to eval mode."""

    def forward(self, x):
        self.eval()
        drawn = random.random() + float(numpy.random.rand()) + float(torch.rand(()))
        return super().forward(x) + drawn


class Converts(Clean):
    """Refuses .to() after a call under inference_mode."""

    touched = False

    def forward(self, x):
        self.touched |= torch.is_inference_mode_enabled()
        return super().forward(x)

    def _apply(self, fn, recurse=True):
        if self.touched:
            raise RuntimeError("cannot convert any more")
        return super()._apply(fn, recurse)


class Threads(Clean):
    """Works in a thread of its own."""

    def forward(self, x):
        results = []
        thread = threading.Thread(target=lambda: results.append(super(Threads, self).forward(x)))
        thread.start()  #: THREAD STARTED
        thread.join()
        return results[0].detach()


class MainOnly(Clean):
    def forward(self, x):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("only in the main thread")  #: MAIN ONLY
        return super().forward(x)


class Shares(Clean):
    """Two calls at once disturb each other."""

    busy = 0

    def forward(self, x):
        self.busy += 1
        time.sleep(0.2)
        result = super().forward(x) * self.busy
        self.busy -= 1
        return result


class Steps(Clean):
    """Each call gives another result."""

    step = 0

    def forward(self, x):
        self.step += 1
        return super().forward(x) + self.step


class Dies(nn.Module):
    def forward(self, x):
        os._exit(3)


class Sleeps(nn.Module):
    def forward(self, x):
        time.sleep(60)
        return x


class Whole(nn.Module):
    """Returns whole numbers only."""

    def forward(self, x):
        return x.argmax(-1)


@functools.lru_cache(maxsize=8)
def make_mask(n):
    return torch.ones(n, 4).tril()  #: MASK BORN


def masked(x, weight):
    return make_mask(x.shape[0]) * weight * x  #: MASK USED


def from_tables(x, weight):
    n = x.shape[0]
    if n not in TABLES:
        TABLES[n] = torch.ones(4)  #: TABLE BORN
    return x * weight * TABLES[n]


def closing_over():
    kept = []

    def step(x):
        if not kept:
            kept.append(torch.ones(4))  #: CLOSURE BORN
        return x * kept[0]

    return step


def zeroes_its_input(x):
    x[0] = 0  #: INPUT WRITTEN
    return x * 2


def goes_around(x):
    x.detach().numpy()[0] = 7
    return x * 2


def plain(x):
    return x * 2
