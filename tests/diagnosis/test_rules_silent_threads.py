"""GX401 among threads: what another thread wrote before the forward is no silent write."""

from __future__ import annotations

import pytest
from cases import run

# Another thread has nodes of its own; `written` is what it does to BUFFER, before this thread's
# forward pass or after it.
_PROGRAM = """
import threading

buffer, other, scratch = torch.ones(8), torch.zeros(4), torch.zeros(2)
x = torch.ones(8, requires_grad=True)

def work():
    y = torch.ones(3, requires_grad=True)
    (y * y).sum().backward()
    {written}

def aside():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

{before}
scratch.add_(1.0)
warm = (x * 3.0).sum()
loss = (x * buffer).sum()
{after}
other.data.add_(1.0)
loss.backward()
"""
WRITES = {
    "through_data": "buffer.data.add_(1.0)",
    "a_part": "buffer.data[2:5] = 7.0",
    "twice": "buffer.data.mul_(2.0); buffer.data.clamp_(0.0, 1.5)",
    "in_a_loop": "[buffer.data.mul_(0.9) for _ in range(50)]",
}


def told(written: str, *, before: str = "pass", after: str = "pass") -> list[str]:
    program = _PROGRAM.format(written=written, before=before, after=after)
    return [diagnosis.code for diagnosis in run(program, "threads").diagnoses]


@pytest.mark.parametrize("name", WRITES)
def test_what_a_thread_wrote_before_the_forward_is_no_silent_write(name):
    assert told(WRITES[name], before="aside()") == []


@pytest.mark.parametrize("name", WRITES)
def test_what_a_thread_wrote_after_the_forward_is_one(name):
    assert set(told(WRITES[name], after="aside()")) == {"GX401"}
