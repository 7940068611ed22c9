"""Programs for test_callbacks.py: each is run as a process of its own, plain and recorded."""

# What user code does inside the functions that gradext has wrapped. Prints one line for each check:
# they are the same without gradext.
USER_CODE = '''
import gc, sys, threading
import torch

touched = []


class Hostile:
    """Tells of everything that is asked of it."""

    @property
    def __class__(self):
        touched.append("class")
        raise ValueError("no class")

    def __bool__(self):
        touched.append("bool")
        raise ValueError("no truth")

    def __len__(self):
        touched.append("len")
        raise ValueError("no length")

    def __iter__(self):
        touched.append("iter")
        raise ValueError("no items")

    def __eq__(self, other):
        touched.append("eq")
        raise ValueError("no equality")

    def __hash__(self):
        touched.append("hash")
        raise ValueError("no hash")


class Meta(type):
    def __instancecheck__(cls, instance):
        touched.append("instancecheck")
        raise ValueError("no instances")


class OfMeta(metaclass=Meta):
    pass


class Silent(Exception):
    def __str__(self):
        touched.append("str")
        raise SystemExit("str")

    __repr__ = __str__


class Stop(BaseException):
    pass


class Sub(torch.Tensor):
    pass


def function(forward=None, backward=None, setup=None):
    def plain_forward(ctx, x, *rest):
        return x * 2

    def plain_setup_forward(x, *rest):
        return x * 2

    names = {
        "forward": staticmethod(forward or (plain_setup_forward if setup else plain_forward)),
        "backward": staticmethod(backward or (lambda ctx, g: (g * 2, *[None] * ctx.rest))),
    }
    if setup:
        names["setup_context"] = staticmethod(setup)
    return type("F", (torch.autograd.Function,), names)


def raising(error):
    def body(*args):
        raise error

    return body


def rest(count):
    def forward(ctx, x, *rest):
        ctx.rest = count
        return x * 2

    return forward


def leaf():
    return torch.ones(3, requires_grad=True)


def stale():
    y = leaf().sigmoid()
    y.mul_(2)
    y.sum().backward()


def deep(work):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    seen = []

    def go():
        try:
            go()
        except RecursionError:
            pass
        if len(seen) < 100:  # on the way back: from no room at all to enough
            try:
                work()
            except (RuntimeError, ValueError) as error:
                seen.append(type(error).__name__)

    try:
        go()
    finally:
        sys.setrecursionlimit(limit)
    return seen[0], seen[-1]


def with_hook():
    x = leaf()
    x.register_hook(raising(KeyError("hook")))
    (x * 2).sum().backward()


def set_flag(value):
    x = leaf() * 2
    x.requires_grad = value


def nested():
    inner = function(raising(ValueError("inner")))

    def forward(ctx, x):
        try:
            inner.apply(x, 3)
        except ValueError:
            return x * 3

    return function(forward, lambda ctx, g: g * 3).apply(leaf()).sum().item()


def in_thread():
    seen = []

    def work():
        try:
            function(raising(ValueError("thread"))).apply(leaf(), 3)
        except ValueError as error:
            seen.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen


class Sequence:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        touched.append("item")
        raise ValueError("no item")


def leaks(work):
    """References that are more after many calls than before."""
    marker = object()
    for _ in range(3):
        try:
            work(marker)
        except ValueError:
            pass
    gc.collect()
    before = sys.getrefcount(marker)
    for _ in range(50):
        try:
            work(marker)
        except ValueError:
            pass
    gc.collect()
    return sys.getrefcount(marker) - before


error = ValueError("the same object each time")


def backward_of(outputs, *flags, **words):
    run = torch.autograd.graph._engine_run_backward
    return run(outputs, *flags, **words)


CHECKS = {
    "int argument": lambda: function(raising(ValueError("forward"))).apply(leaf(), 3),
    "text argument": lambda: function(raising(ValueError("forward"))).apply(leaf(), "3", None, 1.5),
    "hostile argument": lambda: function(raising(ValueError("f"))).apply(leaf(), Hostile()),
    "hostile argument, no error": lambda: function(rest(1)).apply(leaf(), Hostile()),
    "class of a metaclass": lambda: function(raising(ValueError("f"))).apply(leaf(), OfMeta),
    "object of a metaclass": lambda: function(raising(ValueError("f"))).apply(leaf(), OfMeta()),
    "keyword argument": lambda: function(rest(0)).apply(leaf(), n=3),
    "no argument": lambda: function(raising(ValueError("f"))).apply(),
    "subclass": lambda: function(raising(ValueError("f"))).apply(leaf().as_subclass(Sub), 3),
    "error in setup_context": lambda: function(setup=raising(ValueError("s"))).apply(leaf(), 3),
    "error in backward": lambda: (
        function(rest(1), raising(ValueError("backward"))).apply(leaf(), 3).sum().backward()
    ),
    "error of an odd class": lambda: function(raising(Silent("x"))).apply(leaf(), 3),
    "odd error in backward": lambda: (
        function(rest(1), raising(Silent("x"))).apply(leaf(), 3).sum().backward()
    ),
    "base exception": lambda: function(raising(Stop("stop"))).apply(leaf(), 3),
    "exit in backward": lambda: (
        function(rest(1), raising(SystemExit(3))).apply(leaf(), 3).sum().backward()
    ),
    "interrupt in forward": lambda: function(raising(KeyboardInterrupt())).apply(leaf(), 3),
    "class as an error": lambda: function(raising(ValueError)).apply(leaf(), 3),
    "surrogates": lambda: function(raising(ValueError("\\udc80"))).apply(leaf(), 3),
    "hostile words": lambda: function(raising(ValueError(Hostile()))).apply(leaf(), 3),
    "same error twice": lambda: function(raising(error)).apply(leaf(), 3),
    "same error again": lambda: function(raising(error)).apply(leaf(), 3),
    "nested": nested,
    "in a thread": in_thread,
    "hook": with_hook,
    "stale": stale,
    "stale at the recursion limit": lambda: deep(stale),
    "Function at the recursion limit": lambda: deep(
        lambda: function(raising(ValueError("deep"))).apply(leaf(), 3)
    ),
    "requires_grad_ of integers": lambda: torch.ones(3, dtype=torch.int64).requires_grad_(),
    "requires_grad of a non-leaf": lambda: set_flag(False),
    "requires_grad of a hostile": lambda: set_flag(Hostile()),
    "data of a hostile": lambda: setattr(leaf(), "data", Hostile()),
    "tensor of a hostile": lambda: torch.tensor(Hostile()),
    "tensor of a sequence": lambda: torch.tensor(Sequence()),
    "as_tensor of hostiles": lambda: torch.as_tensor([Hostile()]),
    "numpy of a leaf": lambda: leaf().numpy(),
    "flags as integers": lambda: backward_of((leaf().sum(),), (torch.ones(()),), 0, 0, (),
                                             allow_unreachable=True, accumulate_grad=1),
    "hostile flag": lambda: backward_of((leaf().sum(),), (torch.ones(()),), False, Hostile(), (),
                                        allow_unreachable=True, accumulate_grad=True),
    "hostile roots": lambda: backward_of(Hostile(), (torch.ones(()),), False, False, (),
                                         allow_unreachable=True, accumulate_grad=True),
    "no arguments": lambda: backward_of(()),
    "mark_dirty of a hostile": lambda: function(
        lambda ctx, x, n: (ctx.mark_dirty(n), x * 2)[1]
    ).apply(leaf(), Hostile()),
    "increment_version": lambda: torch.autograd.graph.increment_version([leaf()]),
    "leaks of an argument": lambda: leaks(
        lambda marker: function(raising(ValueError("f"))).apply(leaf(), marker)
    ),
    "leaks of an error": lambda: leaks(
        lambda marker: function(raising(ValueError(marker))).apply(leaf(), 3)
    ),
}


def outcome(name, check):
    touched.clear()
    try:
        found = check()
        words = type(found).__name__ if torch.is_tensor(found) else repr(found)
    except BaseException as error:
        args = [a if type(a) is str else type(a).__name__ for a in error.args]
        args = [str(a).splitlines()[:1] for a in args]
        words = f"{type(error).__name__} {args!r} after {type(error.__context__).__name__}"
    return f"{name}: {words} {touched}".encode("ascii", "backslashreplace").decode()


for name, check in CHECKS.items():
    print(outcome(name, check), flush=True)
print("end")
'''

# Every place in which gradext runs Python on the program's path, slowed down from inside, and each
# way of interrupting it. Prints what the program sees, how soon, and what is left behind.
INTERRUPTED = '''
import ctypes, faulthandler, os, signal, sys, threading, time
faulthandler.dump_traceback_later(300, exit=True)
import numpy
import torch
import gradext
from gradext import _C
from gradext.rules import judge
from gradext.source import frames
from gradext.byte_guard import guard
from gradext.recording import incidents
from gradext.recording import own_errors
from gradext.rules.codes import gx401_402_saved_bytes
from gradext.diagnosis import ignore_comments

me = threading.get_ident()
handled = []
OURS = os.path.dirname(gradext.__file__) + os.sep  # a checkout may lie in a folder of this name


def handler(number, frame):
    handled.append(frame.f_code.co_filename)
    raise TimeoutError("alarm")


def of_users(number, frame):
    handled.append(frame.f_code.co_filename)
    raise ValueError("of a handler")


def quiet(number, frame):
    handled.append(frame.f_code.co_filename)


def after(seconds, work):
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()


def kill(number):
    after(0.05, lambda: os.kill(os.getpid(), number))


def asynchronous():
    set_error = ctypes.pythonapi.PyThreadState_SetAsyncExc
    after(0.05, lambda: set_error(ctypes.c_ulong(me), ctypes.py_object(Ended)))


class Ended(Exception):
    """As frameworks end threads."""


def alarm():
    signal.setitimer(signal.ITIMER_REAL, 0.05)


KINDS = {
    "interrupt": (lambda: kill(signal.SIGINT), quiet, "KeyboardInterrupt"),
    "alarm": (alarm, handler, "TimeoutError"),
    "alarm of a ValueError": (alarm, of_users, "ValueError"),
    "asynchronous": (asynchronous, quiet, "Ended"),
    "quiet handler": (alarm, quiet, None),
}


def stale():
    y = torch.ones(3, requires_grad=True).sigmoid()
    y.mul_(2)
    y.sum().backward()


def silent():
    y = torch.ones(3, requires_grad=True).sigmoid()
    y.data.mul_(2)
    y.sum().backward()


def by_numpy():
    y = torch.ones(3, requires_grad=True).sigmoid()
    y.detach().numpy()[0] = 5
    y.sum().backward()


def overlapping():
    z = torch.zeros(4).expand(3, 4)
    z[1] = 5
    for _ in range(100):  # torch swallows what observers of ops throw: it comes at a next line
        pass


PLACES = {
    "diagnosis of an error": (judge, "of_backward", stale, "RuntimeError"),
    "check for silent writes": (judge, "look", silent, None),
    "diagnosis of a guard": (guard, "_diagnosis", by_numpy, None),
    "diagnosis within an op": (guard, "_diagnosis", overlapping, None),
}


def slowed(module, name, begin):
    """The function, with an interruption on its way and, as all Python has, an `except OSError`."""
    real = getattr(module, name)

    def slow(*args):
        begin()
        end = time.perf_counter() + 20
        while time.perf_counter() < end:
            if handled and signal.getsignal(signal.SIGALRM) is quiet and begin is alarm:
                end = min(end, time.perf_counter() + 0.5)  # nothing else is to come
            try:
                sum(range(500))
            except (OSError, ValueError):
                print("swallowed")
        return real(*args)

    # Frames of gradext's, as the real ones are.
    slow.__code__ = slow.__code__.replace(co_filename=module.__file__)
    setattr(module, name, slow)
    return lambda: setattr(module, name, real)


with gradext.record(), gradext.guard() as guard:
    for place, (module, name, work, own) in PLACES.items():
        for kind, (begin, with_handler, wanted) in KINDS.items():
            handled.clear()
            signal.signal(signal.SIGALRM, with_handler)
            undo = slowed(module, name, begin)
            start = time.perf_counter()
            try:
                work()
                seen = None
            except BaseException as error:
                seen = error
            took = time.perf_counter() - start
            undo()
            wanted_here = wanted or own
            problems = []
            if type(seen).__name__ != (wanted_here or "NoneType"):
                problems.append(f"saw {seen!r}, not {wanted_here}")
            if wanted and own and type(seen.__context__).__name__ != own:
                problems.append(f"the context is {seen.__context__!r}")
            if took > 10:
                problems.append(f"took {took:.1f} s")
            if wanted not in ("KeyboardInterrupt", "Ended"):
                if len(handled) != 1 or handled[0].startswith(OURS):
                    problems.append(f"handled at {handled}")
            if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                problems.append("SIGINT has another handler")
            if signal.getsignal(signal.SIGALRM) is not with_handler:
                problems.append("SIGALRM has another handler")
            print(f"{place}, {kind}:", problems or "good", flush=True)
print("own errors:", [line for line in own_errors.lines() if "left out" not in line])
print("end")
'''

# The interpreter ends while tensors, Functions and threads still work.
ENDING = """
import atexit, threading, time
import torch


class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, n):
        raise ValueError("forward")

    @staticmethod
    def backward(ctx, g):
        return g, None


def faults():
    for work in (stale, lambda: F.apply(torch.ones(3, requires_grad=True), 3)):
        try:
            work()
        except (RuntimeError, ValueError):
            pass


def stale():
    y = torch.ones(3, requires_grad=True).sigmoid()
    y.mul_(2)
    y.sum().backward()


class AtEnd:
    def __del__(self):
        faults()
        print("deleted", flush=True)


def last():
    ends.set()
    finished.acquire()
    finished.acquire()
    faults()
    print("at exit", flush=True)


# Threads in ops of torch while the interpreter ends abort without gradext too: these wait then.
ends = threading.Event()


def forever():
    while not ends.is_set():
        faults()
        time.sleep(0)
    finished.release()
    time.sleep(60)


finished = threading.Semaphore(0)
faults()
atexit.register(last)
kept = AtEnd()
kept.itself = kept
for _ in range(2):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
print("end", flush=True)
"""
