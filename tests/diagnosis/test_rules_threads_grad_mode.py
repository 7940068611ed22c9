"""GX301 says in which thread or task grad mode was off, and what to do there."""

from __future__ import annotations

import pytest
from cases import run

POOL = """
from concurrent.futures import ThreadPoolExecutor
net = nn.Linear(3, 1)
def quiet():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
def loss_of(x):
    out = net(x)
    return out.pow(2).mean()
with ThreadPoolExecutor(1, initializer=quiet) as pool:
    loss = pool.submit(loss_of, torch.rand(4, 3)).result()
loss.backward()
"""
NAMED = """
import threading
net, kept, made, done = nn.Linear(3, 1), [], threading.Event(), threading.Event()
def encode():
    with torch.no_grad():
        kept.append(net(torch.rand(4, 3)))
    made.set()
    done.wait(10)
thread = threading.Thread(target=encode, name="encoder")
thread.start()
made.wait(10)
try:
    kept[0].mean().backward()
finally:
    done.set()
    thread.join()
"""
TASKS = """
import asyncio
net = nn.Linear(3, 1)
async def act(queue):
    with torch.no_grad():
        for _ in range(2):
            await queue.put(net(torch.rand(4, 3)))
async def learn(queue):
    x = await queue.get()
    loss = (net(torch.rand(4, 3)) - x).pow(2).mean()
    loss.backward()
async def main():
    queue = asyncio.Queue(1)
    await asyncio.gather(act(queue), learn(queue))
asyncio.run(main())
"""
ONE_THREAD = """
net = nn.Linear(3, 1)
torch.set_grad_enabled(False)
loss = net(torch.rand(4, 3)).mean()
loss.backward()
"""
WITHIN_THE_THREAD = """
from concurrent.futures import ThreadPoolExecutor
net = nn.Linear(3, 1)
def train():
    torch.set_grad_enabled(False)
    net(torch.rand(4, 3)).mean().backward()
with ThreadPoolExecutor(1) as pool:
    pool.submit(train).result()
"""
ONE_TASK = """
import asyncio
net = nn.Linear(3, 1)
async def main():
    with torch.no_grad():
        await asyncio.sleep(0)
        out = net(torch.rand(4, 3))
    out.mean().backward()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("text", "note", "fix"),
    [
        (
            POOL,
            "in the thread of `loss_of` it was off since threads.py:5 when loss_of() computed this",
            "take `torch.set_grad_enabled(False)` out at threads.py:5",
        ),
        (NAMED, 'in thread "encoder" it was off since threads.py:4 when encode() computed', None),
        (
            TASKS,
            "the task of `act` (threads.py:4) left grad mode off when it gave way to the task of "
            "`learn` (threads.py:9)",
            "let learn() compute the loss, from threads.py:9 on, within `with torch.enable_grad()",
        ),
        (ONE_THREAD, None, None),
        (WITHIN_THE_THREAD, None, None),
        (ONE_TASK, None, None),
    ],
    ids=["a pool", "a named thread", "tasks", "one thread", "within the thread", "one task"],
)
def test_whose_grad_mode_it_was(text: str, note: str | None, fix: str | None) -> None:
    found = run(text.lstrip(), "threads").diagnoses[0]
    assert found.code == "GX301"
    said = [n for n in found.notes if "grad mode belongs to" in n or "the task of" in n]
    if note is None:
        assert said == []
        return
    assert note in said[0], found
    assert fix is None or fix in found.fix, found


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (POOL, "    torch.set_grad_enabled(False)\n", ""),
        (POOL, "def loss_of", "@torch.enable_grad()\ndef loss_of"),
        (
            TASKS,
            "    loss = (net(torch.rand(4, 3)) - x)",
            "    with torch.enable_grad():\n        loss = (net(torch.rand(4, 3)) - x)",
        ),
    ],
    ids=["taken out", "decorated", "within enable_grad"],
)
def test_each_of_the_ways_mends_it(text: str, old: str, new: str) -> None:
    assert old in text
    ran = run(text.lstrip().replace(old, new), "threads")
    assert ran.error is None, ran.error
    assert not ran.diagnoses
