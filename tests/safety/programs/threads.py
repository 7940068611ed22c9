"""Threads that train, raise GX101 and catch it, while recordings start and stop (or one runs).

    python tests/safety/programs/threads.py --threads 8 --steps 40
    python tests/safety/programs/threads.py --recording one     # no start and no stop in between
    python tests/safety/programs/threads.py --shared            # all threads train one model

A diagnosis looks at the process while the other threads' backward passes write gradients without
the GIL. The program ends with 0 and one line of counts; what it is there for is that it ends at
all, also under a sanitizer.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import threading
import time
import warnings
from typing import Any

import torch
from torch import nn

import gradext
from gradext.recording import incidents, own_errors

RECORDINGS = ("restart", "one", "none")


class Counts:
    """What all threads have done so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.steps = self.caught = self.explained = 0
        self.wrong: list[str] = []

    def add(self, steps: int = 0, caught: int = 0, explained: int = 0) -> None:
        with self.lock:
            self.steps += steps
            self.caught += caught
            self.explained += explained


def model(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def train(net: nn.Module, batch: torch.Tensor, is_shared: bool) -> None:
    """One step; the gradients are made anew, by the engine, without the GIL."""
    loss = net(batch).square().mean()
    if is_shared:
        # The engine alone touches the gradients, under its locks: with the history of each it
        # exchanges them. Anything else would be a race of this program's own.
        loss.backward(create_graph=True)
        return
    for parameter in net.parameters():
        parameter.grad = None
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-3)


def stale(net: nn.Module, batch: torch.Tensor) -> bool:
    """Whether torch refused, as it must: a saved tensor is written before backward() needs it."""
    hidden = net(batch).exp()
    loss = hidden.sum()
    hidden.add_(1.0)
    try:
        loss.backward()
    except RuntimeError as error:
        return "modified by an inplace" in str(error)
    return False


def work(counts: Counts, shared: nn.Module | None, args: argparse.Namespace) -> None:
    net = shared if shared is not None else model(args.width)
    batch = torch.randn(4, args.width)
    for step in range(args.steps):
        train(net, batch, shared is not None)
        caught = 0
        if step % args.every == 0:
            caught = stale(net, batch)
            if not caught:
                counts.wrong.append("a stale saved tensor was let through")
        counts.add(steps=1, caught=caught)


def recordings(counts: Counts, done: threading.Event, pause: float) -> int:
    started = 0
    while not done.is_set():
        with gradext.record():
            started += 1
            time.sleep(pause)
        time.sleep(pause / 4)
    return started


def main(argv: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--threads", type=int, default=8)
    ask.add_argument("--steps", type=int, default=40, help="training steps of each thread")
    ask.add_argument("--every", type=int, default=2, help="every how many steps one is refused")
    ask.add_argument("--width", type=int, default=16)
    ask.add_argument("--pause", type=float, default=0.02, help="seconds that a recording lasts")
    ask.add_argument("--recording", choices=RECORDINGS, default="restart")
    ask.add_argument("--shared", action="store_true", help="one model for all threads")
    ask.add_argument("--guard", action="store_true", help="with a guard on all the time")
    args = ask.parse_args(argv)
    faulthandler.enable()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = Counts()

    def heard(incident: Any) -> None:
        counts.add(explained=incident.error is not None)

    forget = incidents.subscribe(heard)
    shared = model(args.width) if args.shared else None
    threads = [
        threading.Thread(target=work, args=(counts, shared, args)) for _ in range(args.threads)
    ]
    one = gradext.record().start() if args.recording == "one" or args.guard else None
    guard = gradext.guard().start() if args.guard else None
    for thread in threads:
        thread.start()
    done = threading.Event()

    def wait() -> None:
        for thread in threads:
            thread.join()
        done.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    started = 1 if one is not None else 0
    if args.recording == "restart":
        started += recordings(counts, done, args.pause)
    waiting.join()
    if guard is not None:
        guard.stop()
    if one is not None:
        one.stop()
    forget()
    own = own_errors.lines()
    print(
        f"steps {counts.steps}, caught {counts.caught}, explained {counts.explained}, "
        f"recordings {started}, own errors {len(own)}"
    )
    for line in [*counts.wrong[:3], *own]:
        print(line, file=sys.stderr)
    expected = args.threads * args.steps
    return int(bool(counts.wrong) or counts.steps != expected)


if __name__ == "__main__":
    sys.exit(main())
