"""How a process or a thread of the program may end or fork, and how its session hears of that.

A session asks to hear of an end here; it is handed in, and what it says of the end is its own.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NoReturn

from gradext.base import raw

if TYPE_CHECKING:
    from gradext.run.session import Session


def hook_os_exit(session: Session) -> Callable[[], None]:
    """os._exit() runs nothing of atexit: say what there is to say before it. Returns the undo."""
    original = os._exit

    @functools.wraps(original)
    def _exit(status: int) -> NoReturn:
        try:
            if session.is_current:
                session.at_os_exit(status)
        finally:
            original(status)

    def undo() -> None:
        if os._exit is _exit:
            os._exit = original

    os._exit = _exit
    return undo


def hook_threads(session: Session) -> Callable[[], None]:
    """Hear of the errors that end a thread, after they were printed. Returns what undoes it."""
    previous = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        previous(args)
        if session.is_current and args.exc_value is not None and args.exc_type is not SystemExit:
            session.uncaught(args.exc_value, in_thread=True)

    def undo() -> None:
        if threading.excepthook is excepthook:
            threading.excepthook = previous

    threading.excepthook = excepthook
    return undo


_hears_of_forks = False


def hear_of_forks(
    current: Callable[[], Session | None], call_in_child: Callable[[Callable[[], None]], None]
) -> None:
    """A forked child begins anew at once, and not only when its session is first used.

    `call_in_child` is the compiled part's: calls a function in every forked child, from C.
    """
    global _hears_of_forks
    if _hears_of_forks:
        return
    _hears_of_forks = True

    def in_child() -> None:
        session = current()
        if session is not None:
            session.here()

    # No function of Python's runs in os.fork(): handlers of signals would run in it, and CPython
    # prints what they raise, and goes on. And nobody waits there for a lock that another thread
    # has: the child makes a new one.
    call_in_child(in_child)


def watch_multiprocessing(session: Session, wrap_run: Callable[..., Any]) -> None:
    """Know how the children that multiprocessing starts end: by os._exit, without atexit.

    `wrap_run` is the compiled part's: a run() that hands on the error that ends it.

    Their last call into Python runs the finalizers. A child starts by forgetting the finalizers
    that it has inherited, so they are asked for again in each.
    """
    from multiprocessing import util

    def await_child_end(session: Session) -> None:
        if session.is_current:
            util.Finalize(None, _child_ends, args=(session,), exitpriority=-1000)
            if sys.version_info >= (3, 13):
                _hear_of_child_error(session, wrap_run)

    util.register_after_fork(session, await_child_end)
    await_child_end(session)
    if sys.version_info >= (3, 13):
        _hear_of_spawned(session, wrap_run)


def _child_ends(session: Session) -> None:
    from multiprocessing import process

    if process.parent_process() is None or not session.is_current:
        return  # no such child: atexit will tell when this process ends
    error = sys.exc_info()[1]  # still in flight before Python 3.13
    if error is not None:
        session.ends_with(error)
    session.process_ends()


def _hear_of_spawned(session: Session, wrap_run: Callable[..., Any]) -> None:
    """A spawned process runs its session before it knows which child it is, and forgets nothing."""
    from multiprocessing import context

    spawned = getattr(context, "SpawnProcess", None)
    original = getattr(spawned, "_after_fork", None)
    if not callable(original):
        return

    def _after_fork() -> None:
        original()
        if session.is_current:
            _hear_of_child_error(session, wrap_run)

    setattr(spawned, "_after_fork", staticmethod(_after_fork))  # noqa: B010 mypy knows no such name


def _hear_of_child_error(session: Session, wrap_run: Callable[..., Any]) -> None:
    """Since Python 3.13 an error is caught and printed before the finalizers run."""
    from multiprocessing import process

    if process.parent_process() is None:
        return  # the program's own process has no run()
    child = process.current_process()
    held, run = raw.dict_of(child), raw.class_attribute(type(child), "run")
    if type(held) is not dict or type(run) is not FunctionType or "run" in held:
        return  # its class has another way to find it

    def on_error(error: BaseException) -> None:
        if session.is_current:
            session.ends_with(error)

    # An attribute of this one object, for as long as it is not called.
    forget = functools.partial(held.pop, "run", None)
    held["run"] = wrap_run(MethodType(run, child), forget, on_error)
