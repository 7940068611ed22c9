"""A signal that has arrived just before gradext exchanges the handlers: its error is the program's.

Python calls handlers between two instructions, so everything here happens in one call of C.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import gc
import operator
import signal
import time

import pytest

from gradext import _C


class OfValue(ValueError):
    pass


class OfSystem(TimeoutError):
    pass


class OfKey(KeyError):
    pass


RAISED = [OfValue, OfSystem, OfKey, ValueError, KeyboardInterrupt, SystemExit, RuntimeError]
SIGNALS = [signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMAX]
send = getattr(ctypes.CDLL(None), "raise")


@pytest.fixture
def handlers():
    """handlers(number, action) as signal.signal(); all are put back."""
    before = {}
    gc.collect()
    gc.disable()  # what a handler raises within a finalizer is lost in plain Python, too

    def put(number, action):
        before.setdefault(number, signal.signal(number, action))

    yield put
    gc.enable()
    for number, action in before.items():
        signal.signal(number, action)


def in_one_call(*calls):
    collections.deque(map(operator.methodcaller("__call__"), calls), maxlen=0)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kind", RAISED)
def test_its_error_is_raised(handlers, kind, number):
    def handler(*_):
        raise kind("of the program")

    handlers(number, handler)
    ran = []
    with pytest.raises(kind, match="of the program"):
        in_one_call(
            functools.partial(send, int(number)),
            functools.partial(_C.call_back, functools.partial(ran.append, 1)),
        )
    assert signal.getsignal(number) is handler
    assert ran == []


def test_a_handler_that_returns_lets_the_call_go_on(handlers):
    seen, ran = [], []
    handlers(signal.SIGUSR1, lambda *_: seen.append(1))
    in_one_call(
        functools.partial(send, int(signal.SIGUSR1)),
        functools.partial(_C.call_back, functools.partial(ran.append, 1)),
    )
    assert (seen, ran) == ([1], [1])


def test_of_two_none_is_lost(handlers):
    def first(*_):
        raise OfValue("first")

    def second(*_):
        raise OfSystem("second")

    handlers(signal.SIGUSR1, first)
    handlers(signal.SIGUSR2, second)
    found = set()

    def collect(error):
        while error is not None:
            found.add(str(error))
            error = error.__context__

    try:
        try:
            in_one_call(
                functools.partial(send, int(signal.SIGUSR1)),
                functools.partial(send, int(signal.SIGUSR2)),
                functools.partial(_C.call_back, int),
            )
        except (OfValue, OfSystem) as error:
            collect(error)
        end = time.monotonic() + 20
        while len(found) < 2 and time.monotonic() < end:  # another thread may be handed the signal
            pass
    except (OfValue, OfSystem) as error:
        collect(error)
    assert found == {"first", "second"}
    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGUSR2)) == (first, second)
