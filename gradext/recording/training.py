"""Which optimizers a program has made, and what its modules were given after the first of them.

An optimizer steps the parameters that it was given when it was made: what takes their place later
is in no optimizer (GX306). Hears of `Optimizer.add_param_group`, which each optimizer is made by,
and from then on of what is registered in modules: a program that builds its modules first pays
nothing. Holds weak references and numbers of stacks, and no tensor, module or optimizer.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from gradext.base import raw
from gradext.native import _C
from gradext.objects import naming
from gradext.ops import graph_break

_FIRST = 2  # backwards from something new to a look; from one look to the next twice as many
_MOST_PLACES = 1024  # stacks that are remembered
_MOST_OF_PLACE = 64
_MOST_MODULES = 20_000
_PARTS = ("_parameters", "_modules")  # of a module's `__dict__`


class Made(NamedTuple):
    """An optimizer got parameters.

    Attributes:
        stack: for Recording.frames(). number: of all that is noted here, in order.
    """

    optimizer: weakref.ref[Any]
    stack: int
    number: int


class Given(NamedTuple):
    """A module got a parameter or a module of its own.

    Attributes:
        kind: the module's class.
        had: the parameters that stood under that name before, or below it.
        is_first: the module was empty: it was being built.
    """

    module: weakref.ref[Any]
    name: str
    kind: str
    gets: weakref.ref[Any]
    had: tuple[weakref.ref[Any], ...]
    is_first: bool
    stack: int
    number: int


class Training:
    """What is known of the process; one for all recordings.

    Attributes:
        made: of each optimizer the first time, oldest first. grown: the later times.
        given: by stack, oldest first.
    """

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.grown: list[Made] = []
        self.given: dict[int, list[Given]] = {}
        self._numbers = itertools.count(1)
        self._new: dict[int, weakref.ref[Any]] = {}  # modules that are being built, by id()
        self._places: dict[tuple[int, str], Given] = {}
        self.calls: dict[int, int] = {}  # see calls_of(); by id() of the optimizer
        self._counts_calls = False
        self._until_next = _FIRST
        self._known: dict[int, weakref.ref[Any]] = {}  # optimizers, by id()

    def living(self) -> list[tuple[Made, Any]]:
        """The optimizers that there are; those that are gone are forgotten."""
        self.made = [made for made in self.made if made.optimizer() is not None]
        found = [(made, made.optimizer()) for made in self.made]
        return [(made, optimizer) for made, optimizer in found if optimizer is not None]

    @property
    def last(self) -> int:
        """The number of what was noted last."""
        return max([made.number for made in (*self.made[-1:], *self.grown[-1:])], default=0)

    def got_group(self, optimizer: Any) -> None:
        made = Made(weakref.ref(optimizer), _C.recorder_stack(), next(self._numbers))
        known = self._known.get(id(optimizer))
        is_known = known is not None and known() is optimizer
        self._known[id(optimizer)] = made.optimizer
        (self.grown if is_known else self.made).append(made)
        del self.grown[:-_MOST_OF_PLACE], self.made[:-_MOST_PLACES]
        if not is_known:
            self.calls.pop(id(optimizer), None)  # of one that had this id before
            self._look_soon()

    def registered(self, module: Any, name: Any, gets: Any) -> None:
        if type(name) is not str or not self.made or gets is None:
            return
        parts = [pair for kind in _PARTS for pair in naming.group_of(module, kind)]
        is_first = not parts
        if is_first:
            self._new[id(module)] = weakref.ref(module)
            if len(self._new) > _MOST_MODULES:
                # A list first: another thread may be building a module, too.
                self._new = {key: ref for key, ref in [*self._new.items()] if ref() is not None}
        known = self._new.get(id(module))
        is_built = known is not None and known() is module
        before = [item for key, item in parts if key == name]
        place = (id(module), name)
        last = self._places.get(place)
        had = tuple(map(weakref.ref, leaves_of(before[0]))) if before else ()
        if last is not None and last.module() is module and last.had:
            had = last.had  # what was there when there was no such exchange yet
        elif before and before[0] is gets:
            return
        given = Given(
            *(weakref.ref(module), name, raw.type_name(type(module)).rpartition(".")[2]),
            *(weakref.ref(gets), had, is_built),
            *(_C.recorder_stack(), next(self._numbers)),
        )
        self._places[place] = given
        if len(self._places) > _MOST_MODULES:
            places = [*self._places.items()]
            self._places = {key: g for key, g in places if g.module() is not None}
        if given.stack not in self.given:
            if len(self.given) >= _MOST_PLACES:
                self.given.pop(next(iter([*self.given])), None)
            self._look_soon()
        same = self.given.setdefault(given.stack, [])
        same.append(given)
        del same[:-_MOST_OF_PLACE]

    def is_latest(self, given: Given, module: Any) -> bool:
        """Whether nothing took that place in the module since."""
        return self._places.get((id(module), given.name)) is given

    def _look_soon(self) -> None:
        self._until_next = _FIRST
        _C.recorder_look_after(_FIRST)

    def calls_of(self, optimizer: Any) -> int:
        """How often its step() was called in vain, from the first time on that somebody asks.

        That is, with no gradient of anything that it has. Where one call had any, none counts.
        """
        if not self._counts_calls:
            from torch.optim import optimizer as of_torch

            self._counts_calls = True
            hook: Any = _C.wrap_method(_nothing, _steps)
            _undo.append(of_torch.register_optimizer_step_pre_hook(hook).remove)
        return self.calls.get(id(optimizer), 0)

    def looked(self) -> None:
        """A look has been taken: the next one follows later than this one did."""
        if self.living():
            _C.recorder_look_after(self._until_next)
            self._until_next *= 2


def leaves_of(thing: Any) -> list[Any]:
    """The parameters of a module and of those below it; a parameter itself."""
    if issubclass(type(thing), torch.Tensor):
        return [thing]
    below = itertools.islice(naming.submodules(thing, last_first=True), _MOST_MODULES)
    return [leaf for _, at in below for _, leaf in naming.group_of(at, "_parameters")]


def params_of(optimizer: Any) -> Iterator[Any]:
    """The tensors of all groups of an optimizer, without its own code running."""
    held = raw.dict_of(optimizer)
    groups = held.get("param_groups") if type(held) is dict else None
    for group in list(groups) if type(groups) is list else ():
        params = group.get("params") if type(group) is dict else None
        yield from list(params) if type(params) is list else ()


known = Training()
_undo: list[Callable[[], None]] = []  # takes the hooks of torch.nn away


def forget() -> None:
    """The last recording has ended."""
    global known
    while _undo:
        _undo.pop()()
    known = Training()
    _C.recorder_look_after(0)


@graph_break
def on_group(optimizer: Any, *_: Any) -> None:
    """An optimizer is about to be given parameters."""
    known.got_group(optimizer)
    if not _undo:
        from torch.nn.modules import module

        # A C function, which calls no line of Python's that is not kept aside.
        hook: Any = _C.wrap_method(_nothing, _registered)
        for register in (
            module.register_module_parameter_registration_hook,
            module.register_module_module_registration_hook,
        ):
            _undo.append(register(hook).remove)


@graph_break
def _registered(module: Any, name: Any, gets: Any) -> None:
    known.registered(module, name, gets)


@graph_break
def _steps(optimizer: Any, *_: Any) -> None:
    before = known.calls.get(id(optimizer), 0)
    if before >= 0:
        who = (naming.identity_of(tensor) for tensor in params_of(optimizer))
        is_fed = any(found is not None and found.grad for found in who)
        known.calls[id(optimizer)] = -1 if is_fed else before + 1


@graph_break
def _nothing(*_: Any) -> None:
    """What torch takes for an answer: what is registered stays as it is."""
