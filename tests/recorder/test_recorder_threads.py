"""Threads: which are recorded, from when on, and whose event is whose."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from events import history, is_off, recorded, run_program, user_line, writes

import gradext
from gradext import _C


def in_thread(work: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


class Worker:
    """A thread that runs what it is given, from before a recording to after it."""

    def __init__(self) -> None:
        self.work: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self.done: queue.Queue[object] = queue.Queue()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while (task := self.work.get()) is not None:
            try:
                self.done.put(task())
            except BaseException as error:
                self.done.put(error)

    def __call__(self, task: Callable[[], object]) -> object:
        self.work.put(task)
        result = self.done.get(timeout=60)
        if isinstance(result, BaseException):
            raise result
        return result

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.work.put(None)
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_started_inside() -> None:
    x = torch.ones(3)
    recording = recorded(lambda: in_thread(x.neg_))
    assert history(recording, x) == [("neg_", 0, 1)]


def test_started_before_and_outliving_it() -> None:
    x = torch.ones(3)
    with Worker() as worker:
        worker(x.neg_)
        with gradext.record() as recording:
            worker(lambda: x.cos_())
            worker(lambda: x.sin_())
        worker(lambda: x.zero_())
        assert worker(is_off) is True
    assert history(recording, x) == [("cos_", 1, 2), ("sin_", 2, 3)]
    (thread,) = {w.thread for w in writes(recording)}
    main = recorded(lambda: x.neg_())
    assert writes(main)[0].thread != thread


def test_started_inside_and_outliving_it() -> None:
    x = torch.ones(3)
    with gradext.record() as recording:
        worker = Worker()
        worker(lambda: x.neg_())
    with worker:
        worker(lambda: x.cos_())
        assert worker(is_off) is True
        with gradext.record() as second:
            worker(lambda: x.sin_())
    assert history(recording, x) == [("neg_", 0, 1)]
    assert history(second, x) == [("sin_", 2, 3)]


def test_a_profile_function_of_the_program_stays() -> None:
    """A thread with a profiler of its own keeps it: it is not woken, and nothing is taken away."""
    import sys

    calls: list[str] = []

    def profiler(frame: object, event: str, argument: object) -> None:
        calls.append(event)

    with Worker() as worker:
        worker(lambda: sys.setprofile(profiler))
        with gradext.record():
            worker(lambda: None)
            assert worker(sys.getprofile) is profiler
        worker(lambda: sys.setprofile(None))
    assert "call" in calls


def test_started_from_within_a_thread() -> None:
    """A recording that another thread opens sees the main thread as well."""
    x, y = torch.ones(3), torch.ones(3)
    with Worker() as worker:
        recording = gradext.record()
        worker(recording.start)
        worker(lambda: x.neg_())
        y.neg_()
        (lambda: y.cos_())()
        worker(recording.stop)
        assert worker(is_off) is True
    (lambda: y.sin_())()
    assert is_off()
    assert history(recording, x) == [("neg_", 0, 1)]
    assert history(recording, y)[-1] == ("cos_", 1, 2)


def test_two_threads_at_once() -> None:
    count = 3000
    tensors = [torch.zeros(3), torch.zeros(3)]
    barrier = threading.Barrier(2)

    def work(x: torch.Tensor) -> None:
        barrier.wait()
        for _ in range(count):
            x.add_(1.0)

    def program() -> None:
        threads = [threading.Thread(target=work, args=(x,)) for x in tensors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    recording = recorded(program)
    for x in tensors:
        assert x.tolist() == [count] * 3
        mine = recording.mutations(x)
        assert [(w.version_before, w.version_after) for w in mine] == [
            (k, k + 1) for k in range(count)
        ]
        assert len({w.thread for w in mine}) == 1
        assert {user_line(recording, w).code for w in mine} == {"x.add_(1.0)"}
    orders = [w.order for w in recording.writes]
    assert len(set(orders)) == len(orders) == 2 * count
    assert len({w.thread for w in writes(recording)}) == 2


def test_thread_pool() -> None:
    tensors = [torch.zeros(3) for _ in range(40)]

    def work(x: torch.Tensor) -> None:
        x.add_(1.0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, tensors))  # its threads are there before the recording
        with gradext.record() as recording:
            list(pool.map(work, tensors))
        list(pool.map(work, tensors))
    assert [history(recording, x) for x in tensors] == [[("add_", 1, 2)]] * 40


def test_saves_are_keyed_by_thread() -> None:
    """Sequence numbers are each thread's own: equal numbers must not be mixed up."""
    w = torch.ones(3, requires_grad=True)
    made: dict[str, torch.Tensor] = {}

    def one() -> None:
        made["one"] = w.sin()

    def two() -> None:
        made["two"] = w.cos()

    def program() -> None:
        in_thread(one)
        in_thread(two)

    recording = recorded(program)
    found = {}
    for name, y in made.items():
        ((_, _, thread, sequence, _, _),) = [n for n in _C.graph([y])[0] if n[3] is not None]
        stack, _ = recording.data.node_stack(thread, sequence)
        found[name] = (sequence, recording.frames(stack)[0].code, thread)
    assert found["one"][:2] == (0, 'made["one"] = w.sin()')
    assert found["two"][:2] == (0, 'made["two"] = w.cos()')
    assert found["one"][2] != found["two"][2]


def test_backward_in_a_thread() -> None:
    w = torch.ones(3, requires_grad=True)
    y = w.sin().sum()
    recording = recorded(lambda: in_thread(lambda: y.backward()))
    (call,) = recording.backwards
    assert user_line(recording, call).file == __file__
    assert call.nodes[:, 1].tolist() == sorted(call.nodes[:, 1].tolist(), reverse=True)
    main = recorded(lambda: torch.ones(1).neg_())
    assert call.thread != writes(main)[0].thread


# A process of its own: once autograd has started threads, it refuses to run in a fork, which other
# tests of a worker make.
#
# It ends without the interpreter's own ending: torch's worker threads let go of Python objects
# then, which aborts the process now and then, as often without gradext (23 of 80 runs) as with it.
OWN_THREADS = """
import json, os, threading
import torch
import gradext
from gradext.source import sites

side, threads = torch.zeros(1), set()

class Deep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, depth):
        ctx.depth = depth
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        threads.add(threading.get_ident())
        if ctx.depth:
            with torch.enable_grad():
                x = torch.ones(1, requires_grad=True)
                Deep.apply(x, ctx.depth - 1).sum().backward()
        else:
            side.add_(1.0)  # deepest
        return grad, None

w = torch.ones(1, requires_grad=True)
with gradext.record() as recording:
    Deep.apply(w, 70).sum().backward()
found = [write for write in recording.mutations(side) if not write.is_note]
print(json.dumps({
    "threads": len(threads),
    "writes": [[e.op, e.version_before, e.version_after] for e in found],
    "code": [sites.user_frame(recording.frames(e.stack)).code for e in found],
    "backwards": len(recording.backwards),
}), flush=True)
os._exit(0)
"""


def test_autograds_own_threads(tmp_path: Path) -> None:
    """A reentrant backward deeper than torch's limit goes on in worker threads without frames."""
    found = json.loads(run_program(OWN_THREADS, tmp_path).stdout)
    assert found["threads"] > 1
    assert found["writes"] == [["aten::add_", 0, 1]]
    assert found["code"] == ["side.add_(1.0)  # deepest"]
    assert found["backwards"] == 71


def test_threads_by_the_hundred() -> None:
    tensors = [torch.zeros(2, requires_grad=True) for _ in range(300)]

    def work(x: torch.Tensor) -> None:
        (x * 2).add_(1.0).sum().backward()

    def program() -> None:
        for x in tensors:
            thread = threading.Thread(target=work, args=(x,))
            thread.start()
            thread.join()

    recording = recorded(program)
    assert len(writes(recording)) == 300
    assert len(recording.backwards) + recording.dropped["backwards"] == 300
    assert len({w.thread for w in writes(recording)}) == 300
    assert recording.memory["held_bytes"] <= recording.memory["limit_bytes"]


FORK = """
import faulthandler, os, threading, time
import torch
import gradext
from gradext import _C

x, busy = torch.zeros(3), torch.zeros(3)
stop = False
spinning = threading.Event()

def spin():
    w = torch.ones(3, requires_grad=True)
    while not stop:
        for _ in range(20):
            busy.add_(1.0)
            (w * 2).sin()
        spinning.set()
        time.sleep(0.001)

with gradext.record() as recording:
    x.neg_()
    thread = threading.Thread(target=spin)
    thread.start()
    # Not at its first ops: torch sets those up once, and a fork in the middle of that hangs torch.
    spinning.wait()
    children = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(30, exit=True)
            x.cos_()
            y = torch.ones(3)
            y.sin_()
            history = [(w.op, w.version_before, w.version_after) for w in recording.mutations(x)]
            assert history == [("aten::neg_", 0, 1), ("aten::cos_", 1, 2)], history
            assert len(recording.mutations(y)) == 1
            w = torch.ones(3, requires_grad=True)
            w.sin().sum().backward()
            assert len(recording.data.saves) > 0
            recording.stop()
            assert not _C.recorder_active()
            with gradext.record() as own:
                y.zero_()
            assert len(own.mutations(y)) == 1
            os._exit(7)
        children.append(pid)
    codes = []
    deadline = time.time() + 60
    for pid in children:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes.append(os.waitstatus_to_exitcode(status))
                break
            if time.time() > deadline:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                codes.append("hung")
                break
            time.sleep(0.01)
    stop = True
    thread.join()
    x.sin_()
assert codes == [7] * 20, codes
history = [(w.op, w.version_before, w.version_after) for w in recording.mutations(x)]
assert history == [("aten::neg_", 0, 1), ("aten::sin_", 1, 2)], history
print("good")
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_fork_while_another_thread_records(tmp_path: Path) -> None:
    done = run_program(FORK, tmp_path)
    assert done.stdout == "good\n"


WORKERS = """
import threading
import torch
from torch.utils.data import DataLoader, Dataset
import gradext
from gradext import _C

class Data(Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, k):
        x = torch.zeros(2)
        x.add_(k)
        x[0] = -1.0
        return x, _C.recorder_active()

def main():
    stop = threading.Event()
    busy = torch.zeros(3)
    def spin():
        while not stop.wait(0.001):
            for _ in range(20):
                busy.add_(1.0)
    with gradext.record() as recording:
        # Not at its first op: torch sets that up once, and a fork in the middle of it hangs torch.
        busy.add_(1.0)
        thread = threading.Thread(target=spin)
        thread.start()
        loader = DataLoader(
            Data(), batch_size=4, num_workers=2, multiprocessing_context=CONTEXT, timeout=60
        )
        total = torch.zeros(2)
        active = []
        for batch, flags in loader:
            total.add_(batch.sum(0))
            active += flags.tolist()
        stop.set()
        thread.join()
    assert total.tolist() == [-16.0, 120.0], total
    assert [w.version_after for w in recording.mutations(total)] == [1, 2, 3, 4]
    print("good", sum(active), len(active))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers(context: str, tmp_path: Path) -> None:
    done = run_program(WORKERS.replace("CONTEXT", repr(context)), tmp_path)
    # A forked worker is in the middle of the recording; a spawned one is a program of its own.
    assert done.stdout == f"good {16 if context == 'fork' else 0} 16\n"
    assert "rror" not in done.stderr, done.stderr
