"""Signals and locks at a fork: gradext waits for nobody in os.fork(), and loses no handler's error.

CPython prints what leaves a function that os.fork() calls, and goes on as if nothing had happened.
"""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# A thread holds LOCK while the main thread forks; an alarm's handler raises meanwhile.
HELD = """
import os, signal, sys, threading, time
import torch
from gradext.run import session
from gradext.recording import incidents
class Away(Exception):
    pass
def handler(number, frame):
    raise Away
signal.signal(signal.SIGALRM, handler)
held, stop = threading.Event(), threading.Event()
def hold():
    with LOCK:
        held.set()
        stop.wait(60)
thread = threading.Thread(target=hold)
thread.start()
held.wait()
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 0)
        y = torch.ones(3, requires_grad=True).exp()
        y.mul_(2)
        try:
            y.sum().backward()
        except RuntimeError:
            print("child", flush=True)
        os._exit(3)
    signal.setitimer(signal.ITIMER_REAL, 0)  # the child may take its time
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    time.sleep(30)
    print("lost")
except Away:
    print("away")
stop.set()
thread.join()
"""


@pytest.mark.parametrize("lock", ["session.current()._lock", "incidents._lock"])
def test_a_lock_that_another_thread_holds(recorded, write, lock):
    write(HELD.replace("LOCK", lock))
    found, report = recorded("train.py")
    assert found.out == b"child\n3\naway\n"
    assert "Exception ignored" not in found.errors
    assert [d["code"] for d in report["diagnoses"]] == ["GX101"]


# A signal is there when the functions begin that os.fork() calls in the child: the first of them
# has sent it, from C, where no handler runs.
PENDING = """
import ctypes, functools, os, signal, sys
import torch
class Away(Exception):
    pass
def handler(number, frame):
    seen.append(sys._getframe(1).f_globals.get("__name__"))
    raise Away
seen = []
signal.signal(signal.SIGUSR1, handler)
hit = functools.partial(getattr(ctypes.CDLL(None), "raise"), int(signal.SIGUSR1))
from gradext import _C
called = []
_C.call_in_child(lambda: called.append(_C.recorder_stack()))
os.register_at_fork(after_in_child=hit)
os.register_at_fork(after_in_child=_C._in_child)
try:
    pid = os.fork()
    if pid == 0:
        for _ in range(1000):
            pass
        os._exit(9)
except Away:
    print("away", seen, len(called), flush=True)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_signal_in_the_child_is_the_programs(recorded, write):
    write(PENDING)
    found, _ = recorded("train.py")
    assert found.out == b"away ['__main__'] 2\n4\n"
    assert "Exception ignored" not in found.errors


# Another thread forks while the main thread is in gradext's hands: its handlers are exchanged.
ELSEWHERE = """
import os, signal, threading, time
import torch
from gradext import _C
class Away(Exception):
    pass
def handler(number, frame):
    raise Away
signal.signal(signal.SIGUSR1, handler)
inside, forked = threading.Event(), threading.Event()
def fork():
    inside.wait()
    pid = os.fork()
    if pid == 0:
        code = 5
        try:
            is_ours = signal.getsignal(signal.SIGUSR1) is handler
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(1000):
                pass
        except Away:
            code = 6 if is_ours else 7
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    forked.set()
def wait():
    inside.set()
    forked.wait(60)
thread = threading.Thread(target=fork)
thread.start()
_C.call_back(wait)
thread.join()
print(signal.getsignal(signal.SIGUSR1) is handler)
"""


def test_another_thread_forks_while_the_handlers_are_exchanged(recorded, write):
    write(ELSEWHERE)
    found, _ = recorded("train.py")
    assert found.out == b"6\nTrue\n"
    assert "Exception ignored" not in found.errors
