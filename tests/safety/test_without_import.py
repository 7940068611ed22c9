"""Code that is run with builtins of its own, without `__import__`, as templates and sandboxes do.

What gradext looks up while such code runs must not depend on its builtins.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
import gradext
from gradext.recording import incidents
from gradext.recording import own_errors
x = torch.ones(3, requires_grad=True)
told = []
def note(error):
    told.append(gradext.explain(error)[0].code)
names = {"__builtins__": {"RuntimeError": RuntimeError}, "x": x, "torch": torch, "note": note}
with gradext.record(), gradext.guard(on_change="warn"):
    exec(CODE, names)
print(told, own_errors.lines())
"""
# What the code does, and what of it is explained.
CODES = {
    "memory that the program got hold of": (
        "h = x * 2\nbuffer = h.detach().numpy()\ny = h * h\nz = y + 1\nz.sum().backward()\n",
        "[] []",
    ),
    "gradients that are constants": (
        "y = (x * x).sum()\n(g,) = torch.autograd.grad(y, [x])\n(x * g).sum().backward()\n",
        "[] []",
    ),
    "an error of backward": (
        "h = x.exp()\nh += 1\n"
        "try:\n    h.sum().backward()\nexcept RuntimeError as e:\n    note(e)\n",
        "['GX101'] []",
    ),
    "a write that is refused": (
        "try:\n    x.add_(1)\nexcept RuntimeError as e:\n    note(e)\n",
        "['GX102'] []",
    ),
}


@pytest.mark.parametrize("what", CODES)
def test_gradext_finds_its_own_modules(what: str) -> None:
    code, told = CODES[what]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("CODE", repr(code))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == told
