"""Several threads use one graph while gradext looks at it: run it, expose its memory, copy it.

    python tests/safety/programs/shared_graphs.py exposed      # one trunk, run and written at once
    python tests/safety/programs/shared_graphs.py all
    python tests/safety/programs/shared_graphs.py copied       # copied while a backward frees it
    python tests/safety/programs/shared_graphs.py found
    python tests/safety/programs/shared_graphs.py hooked
    python tests/safety/programs/shared_graphs.py kept         # what Functions keep on ctx
    python tests/safety/programs/shared_graphs.py late         # guards begin meanwhile

Torch allows all of it. Each ends with 0 and "ok"; what they are there for is that they end at all,
also under a sanitizer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

import gradext
from gradext import _C
from gradext.recording import own_errors

Work = Callable[[], None]


def together(*works: Work) -> None:
    """Each in a thread of its own; raises what one of them has raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        all_here = threading.Barrier(len(works))  # or an idle thread would take the next one too

        def run(work: Work) -> None:
            all_here.wait()
            work()

        list(pool.map(run, works))


def run_while_exposed(reads: str, rounds: int) -> None:
    """Three threads run one trunk, two more write what it has saved, through NumPy."""
    for _ in range(rounds):
        with gradext.guard(reads=reads):
            leaf = torch.ones(64, requires_grad=True)
            trunk = [leaf * 1]
            for k in range(20):
                trunk.append(trunk[-1].sin() if k % 2 else trunk[-1] * trunk[-1])
            all_here = threading.Barrier(5)

            def run(trunk=trunk, leaf=leaf, all_here=all_here) -> None:
                all_here.wait()
                for _ in range(20):
                    torch.autograd.grad(trunk[-1].sum(), [leaf], retain_graph=True)

            def write(trunk=trunk, all_here=all_here) -> None:
                all_here.wait()
                for k in range(40):
                    trunk[k * 7 % len(trunk)].detach().numpy()[0] += 1e-3
                    trunk[k * 3 % len(trunk)].data  # noqa: B018

            together(run, run, run, write, write)


class Keeps(torch.autograd.Function):
    """Keeps tensors as an attribute, of which torch knows nothing."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = [x.detach().clone() for _ in range(8)]
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def run_what_keeps(rounds: int) -> None:
    for _ in range(rounds):
        with gradext.guard():
            leaf = x = torch.ones(64, requires_grad=True)
            for _ in range(20):
                x = Keeps.apply(x)
                x.grad_fn.kept[0].numpy()[0] = 9
            all_here = threading.Barrier(4)

            def run(x=x, leaf=leaf, all_here=all_here) -> None:
                all_here.wait()
                torch.autograd.grad(x.sum(), [leaf], retain_graph=True)

            together(run, run, run, run)


def sliced(count: int) -> torch.Tensor:
    """Its nodes are CopySlices, each with one within it that it lets go of once it has run."""
    x = torch.ones(16, requires_grad=True) * 1
    for k in range(count):
        x[k % 16].mul_(1.5)
    return x.sum()


def copy(loss: torch.Tensor) -> None:
    found = _C.GraphCopy((loss,), 1 << 20)
    for k in range(len(found)):
        found.node(k)
    _C.graph((loss,))


def find(loss: torch.Tensor) -> None:
    for what in ("freed", "stale"):
        _C.finding(what, (loss,), 0)


def run_hooked(loss: torch.Tensor) -> None:
    with contextlib.suppress(RuntimeError):  # another thread has freed it
        (loss * 1).backward()


def free_while_used(use: Callable[[torch.Tensor], None], rounds: int) -> None:
    shared: list[torch.Tensor] = [sliced(1)]
    done = threading.Event()

    def free() -> None:
        try:
            for _ in range(rounds):
                loss = sliced(60)
                shared[0] = loss
                with contextlib.suppress(RuntimeError):
                    loss.backward()
        finally:
            done.set()

    def look() -> None:
        while not done.is_set():
            use(shared[0])

    together(free, look, look)


def begin_meanwhile(rounds: int) -> None:
    """Guards begin and put hooks on nodes while other threads run these."""
    leaf = torch.ones(32, requires_grad=True)
    for _ in range(rounds):
        trunk = leaf
        for _ in range(60):
            trunk = (trunk * 1.01).sin()
        done = threading.Event()

        def run(trunk=trunk, done=done) -> None:
            while not done.is_set():
                torch.autograd.grad(trunk.sum(), [leaf], retain_graph=True)

        def begin(trunk=trunk, done=done) -> None:
            try:
                for reads in ("all", "exposed") * 4:
                    with gradext.guard(reads=reads):
                        head = Keeps.apply(trunk).sum()
                        torch.autograd.grad(head, [leaf], retain_graph=True)
            finally:
                done.set()

        together(run, run, begin)


def main(name: str, size: float) -> int:
    faulthandler.enable()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if name in ("exposed", "all"):
        run_while_exposed(name, int(15 * size))
    elif name == "kept":
        run_what_keeps(int(20 * size))
    elif name == "late":
        begin_meanwhile(int(40 * size))
    elif name == "hooked":
        with gradext.guard(reads="all"):
            free_while_used(run_hooked, int(150 * size))
    else:
        with gradext.record():
            free_while_used({"copied": copy, "found": find}[name], int(300 * size))
    for line in own_errors.lines():
        print(line, file=sys.stderr)
    print("ok")
    return int(bool(own_errors.lines()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0))
