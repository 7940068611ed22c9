"""GX101 names the thread or the task that wrote, where it is not the one that ran the forward."""

from __future__ import annotations

import textwrap

import pytest
from cases import run

A_THREAD_THAT_RUNS = """
import threading
buffer = torch.ones(3)
wrote, done = threading.Event(), threading.Event()
def collect():
    buffer.mul_(2)
    wrote.set()
    done.wait(10)
w = torch.ones(3, requires_grad=True)
loss = (w * buffer).sum()
thread = threading.Thread(target=collect, name="collector")
thread.start()
wrote.wait(10)
try:
    loss.backward()
finally:
    done.set()
    thread.join()
"""
A_POOL = """
from concurrent.futures import ThreadPoolExecutor
state = {"scale": torch.ones(3)}
def decay(factor):
    state["scale"] *= factor
w = torch.ones(3, requires_grad=True)
loss = (w * state["scale"]).sum()
with ThreadPoolExecutor(1) as pool:
    pool.submit(decay, 0.5).result()
loss.backward()
"""
TASKS = """
import asyncio
weights = torch.ones(3)
async def learn():
    await asyncio.sleep(0)
    weights.add_(1)
async def act():
    w = torch.ones(3, requires_grad=True)
    loss = (w * weights).sum()
    await asyncio.sleep(0.01)
    loss.backward()
async def main():
    await asyncio.gather(act(), learn())
asyncio.run(main())
"""
ONE_TASK = """
import asyncio
async def main():
    w = torch.ones(3, requires_grad=True)
    scale = torch.ones(3)
    loss = (w * scale).sum()
    await asyncio.sleep(0)
    scale.add_(1)
    loss.backward()
asyncio.run(main())
"""
FORWARD_IN_A_THREAD = """
import threading
kept = []
scale = torch.ones(3)
def forward():
    w = torch.ones(3, requires_grad=True)
    kept.append((w * scale).sum())
thread = threading.Thread(target=forward)
thread.start()
thread.join()
scale.add_(1)
kept[0].backward()
"""


@pytest.mark.parametrize(
    ("text", "said", "lock"),
    [
        (A_THREAD_THAT_RUNS, 'in thread "collector" (', "a threading.Lock"),
        (A_POOL, "in the thread of `decay` (", "a threading.Lock"),
        (TASKS, "in the task of `learn` (", "an asyncio.Lock"),
        (ONE_TASK, None, None),
    ],
    ids=["a thread", "a pool", "tasks", "one task"],
)
def test_who_wrote(text: str, said: str | None, lock: str | None) -> None:
    found = run(textwrap.dedent(text).lstrip(), "threads").diagnoses[0]
    assert found.code == "GX101"
    notes = [note for note in found.notes if note.startswith("the write runs in ")]
    if said is None:
        assert notes == []
        assert "Lock" not in found.fix
        return
    assert said in notes[0], found
    assert f"hold {lock} from forward to backward" in found.fix


def test_the_main_thread_wrote() -> None:
    """The thread that began at the top of the program has no function to be named by."""
    found = run(FORWARD_IN_A_THREAD.lstrip(), "threads").diagnoses[0]
    assert found.code == "GX101"
    said = [note for note in found.notes if note.endswith(", the forward in another")]
    assert said[0].startswith("the write runs in the main thread ("), found
