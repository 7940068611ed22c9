"""Reading the program's objects runs none of the program's code, whatever a class defines.

Each class below acts (it notes that it was called) when it is asked something; each reader of
gradext meets one of each, as an item, an attribute, a local variable and an exception.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gradext
from gradext.base import raw

CALLED: list[str] = []


def acting(name: str, answer: Any = None) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        CALLED.append(name)
        return answer

    return act


def _plain_class(name: str, answer: Any = None) -> Any:
    return type(f"With{name}", (), {name: acting(name, answer)})()


def _property(name: str) -> Any:
    cls = type(f"Property{name}", (), {name: property(acting(name))})
    return cls()


def _metaclass(name: str, answer: Any) -> Any:
    meta = type("Meta", (type,), {name: acting(f"metaclass {name}", answer)})
    return meta("OfMeta", (), {})()


def _getattribute() -> Any:
    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            CALLED.append(f"__getattribute__ {name}")
            return object.__getattribute__(self, name)

    return Hostile()


def _that_has(name: str) -> Any:
    """Of a class that has an acting object where Python keeps one of its own."""
    held = _getattribute()
    thing = type("Odd", (), {})()
    thing.h = torch.ones(2, requires_grad=True) * 2
    setattr(type(thing), name, {"h": held} if name == "__dataclass_fields__" else held)
    return thing


def _dict_property() -> Any:
    class Hostile:
        __slots__ = ("x",)
        __dict__ = property(acting("__dict__", {}))  # type: ignore[assignment]

    return Hostile()


def _descriptor() -> Any:
    class Descriptor:
        __get__ = acting("__get__")
        __set_name__ = lambda *_: None  # noqa: E731

    return type("Described", (), {"x": Descriptor(), "_fields": Descriptor()})()


def _dict_subclass() -> Any:
    names = ("items", "keys", "values", "__iter__", "__getitem__", "__len__", "get", "__contains__")
    cls = type("HostileDict", (dict,), {name: acting(f"dict {name}", ()) for name in names})
    return cls(a=torch.ones(2))


def _ordered_dict_subclass() -> Any:
    names = ("items", "keys", "__iter__", "__len__", "__getitem__")
    cls = type(
        "HostileOrdered",
        (collections.OrderedDict,),
        {name: acting(f"ordered {name}", ()) for name in names},
    )
    return cls([("a", torch.ones(2))])


def _sequence_subclass(base: type) -> Any:
    names = ("__iter__", "__len__", "__getitem__", "__contains__")
    methods = {name: acting(f"{base.__name__} {name}", 0) for name in names}
    return type("HostileSequence", (base,), methods)([torch.ones(2)])


def _mapping() -> Any:
    cls = type(
        "HostileMapping",
        (collections.abc.Mapping,),
        {name: acting(f"mapping {name}", 0) for name in ("__getitem__", "__iter__", "__len__")},
    )
    return cls()


def _named_tuple() -> Any:
    base = collections.namedtuple("Pair", "first second")
    methods = {"__iter__": acting("named __iter__"), "first": property(acting("first"))}
    return type("HostilePair", (base,), methods)(torch.ones(2), 3)


def _dataclass() -> Any:
    @dataclasses.dataclass
    class Data:
        x: Any = None

        def __getattribute__(self, name: str) -> Any:
            CALLED.append(f"dataclass {name}")
            return object.__getattribute__(self, name)

    found = Data(torch.ones(2))
    Data.y = property(acting("dataclass property"))  # type: ignore[attr-defined]
    return found


def _key() -> Any:
    names = ("__repr__", "__str__", "__format__")
    key = type("HostileKey", (), {name: acting(f"key {name}", "key") for name in names})()
    return {key: torch.ones(2)}


def _enum_key() -> Any:
    class Color(enum.Enum):
        RED = 1

        def __repr__(self) -> str:
            CALLED.append("enum __repr__")
            return "red"

    return {Color.RED: torch.ones(2)}


def _python_module() -> Any:
    module = types.ModuleType("hostile")
    module.__dict__["__getattr__"] = acting("module __getattr__")  # PEP 562
    return module


def _nn_module() -> Any:
    class Hostile(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.other = torch.ones(2)

        named_parameters = named_buffers = named_modules = acting("nn named", ())
        children = modules = parameters = buffers = acting("nn parameters", ())
        hidden = property(acting("nn property"))

        def __getattr__(self, name: str) -> Any:
            CALLED.append(f"nn __getattr__ {name}")
            return super().__getattr__(name)

        def __repr__(self) -> str:
            CALLED.append("nn __repr__")
            return ""

    return Hostile()


def _torch_function() -> Any:
    class Hostile(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            CALLED.append(f"__torch_function__ {func}")
            return super().__torch_function__(func, types, args, kwargs or {})

        device = is_sparse = layout = property(acting("tensor property"))  # type: ignore[assignment]

    return torch.ones(2).as_subclass(Hostile)


HOSTILE: dict[str, Callable[[], Any]] = {
    **{
        name: (lambda name=name, answer=answer: _plain_class(name, answer))
        for name, answer in {
            "__getattr__": None,
            "__eq__": True,
            "__ne__": True,
            "__hash__": 1,
            "__repr__": "x",
            "__str__": "x",
            "__format__": "x",
            "__bool__": True,
            "__len__": 1,
            "__iter__": iter(()),
            "__contains__": True,
            "__getitem__": 0,
            "__call__": None,
            "__dir__": [],
            "__index__": 1,
            "__reduce_ex__": "",
            "__deepcopy__": None,
            "__instancecheck__": True,
        }.items()
    },
    **{
        f"property {name}": (lambda name=name: _property(name))
        for name in ("__class__", "x", "_parameters", "grad", "data", "__wrapped__", "__code__")
    },
    **{
        f"metaclass {name}": (lambda name=name, answer=answer: _metaclass(name, answer))
        for name, answer in {
            "__instancecheck__": True,
            "__subclasscheck__": True,
            "__eq__": True,
            "__hash__": 1,
            "__repr__": "x",
            "__getattr__": None,
            "__len__": 1,
            "__bool__": False,
        }.items()
    },
    "__getattribute__": _getattribute,
    "__dict__ property": _dict_property,
    "descriptor": _descriptor,
    "dict subclass": _dict_subclass,
    "OrderedDict subclass": _ordered_dict_subclass,
    "list subclass": lambda: _sequence_subclass(list),
    "tuple subclass": lambda: _sequence_subclass(tuple),
    "set subclass": lambda: _sequence_subclass(set),
    "mapping": _mapping,
    "a view of a mapping": lambda: types.MappingProxyType(_dict_subclass()),
    "named tuple": _named_tuple,
    "dataclass": _dataclass,
    "key": _key,
    "enum key": _enum_key,
    "Python module": _python_module,
    "nn.Module": _nn_module,
    "tensor with __torch_function__": _torch_function,
    "parameters of a dataclass": lambda: _that_has("__dataclass_params__"),
    "fields of a dataclass": lambda: _that_has("__dataclass_fields__"),
    "a __setattr__ of its own": lambda: _that_has("__setattr__"),
}


def _inspect(thing: Any) -> None:
    with contextlib.suppress(TypeError):  # no tensor
        gradext.inspect(thing)


def _inspect_tree(thing: Any) -> None:
    with contextlib.suppress(TypeError):  # nothing that holds tensors
        str(gradext.inspect_tree(thing))
    str(gradext.inspect_tree([thing, {"k": thing}, (thing,), torch.ones(1)]))


def _explain(thing: Any) -> None:
    with pytest.raises(TypeError, match="expected an exception"):
        gradext.explain(thing)


def _fingerprint(thing: Any) -> None:
    str(gradext.fingerprint({"a": thing, "t": torch.ones(2), "l": [thing]}))


def _watch(thing: Any) -> None:
    with gradext.guard([thing, torch.ones(2)]):
        pass


def _backward(thing: Any) -> None:
    """A diagnosis that looks for names among locals, globals and modules."""
    local = thing  # noqa: F841
    holder = {"thing": thing, "list": [thing]}  # noqa: F841
    net = torch.nn.Linear(2, 2)
    net.__dict__["thing"] = thing  # setattr() asks for its __class__
    with gradext.record() as recording:
        x = torch.ones(2, requires_grad=True)
        y = x.exp()
        y.mul_(2)
        try:
            y.sum().backward()
        except RuntimeError as error:
            found = recording.explain(error)
    assert [d.code for d in found] == ["GX101"]
    str(found[0])


def _check_backward(thing: Any) -> None:
    local = thing  # noqa: F841
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    y.mul_(2)
    gradext.check_backward(y.sum())


def _audit_tree(thing: Any) -> None:
    from gradext.inference_audit import result_trees

    result_trees.flat(thing)


def _exchanged(thing: Any) -> None:
    """What the help of GX302 and GX304 reads of what holds a tensor."""
    from gradext.rules.rewrite import exchanged
    from gradext.rules.wording import module_hooks

    h = torch.ones(2, requires_grad=True) * 2
    pair = (h, thing)  # noqa: F841
    entries = {"h": h, "thing": thing}  # noqa: F841
    record = type("Record", (), {})()
    record.__dict__.update(h=h, thing=thing)
    module = torch.nn.Linear(2, 2)
    module.__dict__.update(_backward_hooks=thing, _is_full_backward_hook=thing)
    frame = sys._getframe()
    for path in ("thing", "thing.h", "thing['h']", "thing[0]", "pair[0]", "entries['h']", "record"):
        exchanged.detached_in(frame, path)
        exchanged.detached_in(frame, path, whole=True)
    assert exchanged.detached_in(frame, "pair[0]") == "pair = (pair[0].detach(), *pair[1:])"
    assert exchanged.detached_in(frame, "record.h") == "record.h = record.h.detach()"
    module_hooks.hooks()


READERS = {
    "exchanged": _exchanged,
    "inspect": _inspect,
    "inspect_tree": _inspect_tree,
    "explain": _explain,
    "fingerprint": _fingerprint,
    "guard watch": _watch,
    "backward": _backward,
    "check_backward": _check_backward,
    "audit": _audit_tree,
}
# A copy of a tensor is made by torch, which asks the tensor's class.
ASKED = {("audit", "tensor with __torch_function__")}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_code_runs(name: str, reader: str) -> None:
    thing = HOSTILE[name]()
    CALLED.clear()
    READERS[reader](thing)
    called = list(CALLED)
    assert called == [] or (reader, name) in ASKED


# --- exceptions ---


def _error_str() -> BaseException:
    return type("E", (RuntimeError,), {"__str__": acting("__str__", "x")})("told")


def _error_repr() -> BaseException:
    return type("E", (RuntimeError,), {"__repr__": acting("__repr__", "x")})("told")


def _error_argument() -> BaseException:
    return RuntimeError(_plain_class("__str__", "x"))


def _key_error_argument() -> BaseException:
    return KeyError(_plain_class("__repr__", "x"))


def _two_arguments() -> BaseException:
    return RuntimeError("told", _plain_class("__repr__", "x"))


def _file_name() -> BaseException:
    return OSError(2, "told", _plain_class("__repr__", "x"))


def _import_message() -> BaseException:
    error = ImportError("told")
    error.msg = _plain_class("__str__", "x")  # type: ignore[assignment]
    return error


def _error_attributes() -> BaseException:
    class E(RuntimeError):
        def __getattribute__(self, name: str) -> Any:
            CALLED.append(f"error {name}")
            return super().__getattribute__(name)

    return E("told")


def _error_properties() -> BaseException:
    names = ("args", "__class__", "__dict__", "__cause__", "__context__", "exceptions")
    return type("MyGroup", (RuntimeError,), {n: property(acting(n)) for n in names})("told")


def _error_eq() -> BaseException:
    methods = {"__eq__": acting("__eq__", True), "__hash__": acting("__hash__", 1)}
    return type("E", (RuntimeError,), methods)("told")


ERRORS = [
    *(_error_str, _error_repr, _error_argument, _key_error_argument, _two_arguments, _file_name),
    *(_import_message, _error_attributes, _error_properties, _error_eq),
]


@pytest.mark.parametrize("make", ERRORS)
def test_no_code_of_an_exception_runs(make: Callable[[], BaseException]) -> None:
    from gradext.base import errors
    from gradext.recording import incidents

    error = make()
    CALLED.clear()
    texts = [errors.describe(error), errors.one_line(error)]
    errors.chain(error)
    incidents._mark_of(error)
    incidents.incident_of(error)
    with gradext.record() as recording:
        assert recording.explain(error) == []
    called = list(CALLED)
    assert called == []
    for text in texts:
        assert type(error).__name__ in text.split(":")[0]


@pytest.mark.parametrize("make", ERRORS)
def test_a_backward_that_raises_it(make: Callable[[], BaseException]) -> None:
    """The program's own exception, out of its own Function: gradext asks it nothing."""
    error = make()

    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            raise error

    def run() -> list[str]:
        y = Raises.apply(torch.ones(2, requires_grad=True)).sum()
        CALLED.clear()
        caught = None
        try:
            y.backward()
        except BaseException as raised:
            caught = raised
        called = list(CALLED)
        assert caught is error
        return called

    alone = run()  # torch itself asks for the text
    with gradext.record():
        recorded = run()
    assert recorded == alone


TEXTS = [
    (ValueError("x"), "x"),
    (ValueError(), ""),
    (ValueError("a", 1), "('a', 1)"),
    (KeyError("k"), "'k'"),
    (FileNotFoundError(2, "No such file", "f"), "[Errno 2] No such file: 'f'"),
    (SyntaxError("bad", ("f.py", 3, 1, "x")), "bad (f.py, line 3)"),
    (RuntimeError(3), "3"),
    (RuntimeError(torch.float32), "torch.float32"),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=repr)
def test_texts_are_those_of_str(error: BaseException, text: str) -> None:
    assert raw.message(error) == text == str(error)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_the_text_of_a_group() -> None:
    group = ExceptionGroup("both", [_error_str(), _error_repr()])  # type: ignore[type-var]  # noqa: F821
    CALLED.clear()
    assert raw.message(group) == "both (2 sub-exceptions)"
    assert len(raw.members_of(group)) == 2
    called = list(CALLED)
    assert called == []


def test_the_text_of_a_library_is_trusted_and_that_of_a_script_is_not() -> None:
    import subprocess

    error = subprocess.CalledProcessError(3, "false")
    assert raw.message(error) == str(error)
    assert raw.message(_error_str()) == "told"
