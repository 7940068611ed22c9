"""Reading objects of the program without running any code of the program.

Attributes may be properties, `isinstance` asks `__class__`, and iteration, `repr` and `==` are the
program's own wherever a class defines them: here they are read past all of that, from the type's
own dictionaries and through the built-in types' own methods. Imports no torch.
"""

from __future__ import annotations

import builtins
import collections
import enum
import gc
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from gradext.base.package import is_user_file

_mro: Any = type.__dict__["__mro__"]
_class_dict: Any = type.__dict__["__dict__"]
_type_names: Any = (type.__dict__["__module__"], type.__dict__["__qualname__"])
_PLAIN = (str, int, float, bool, complex, bytes, type(None), type(...))


def mro_of(kind: type) -> tuple[type, ...]:
    """`kind.__mro__`, past what a metaclass may say of it."""
    found: tuple[type, ...] = _mro.__get__(kind)
    return found


def class_dict(kind: type) -> types.MappingProxyType[str, Any]:
    """`kind.__dict__`, past what a metaclass may say of it."""
    found: types.MappingProxyType[str, Any] = _class_dict.__get__(kind)
    return found


def module_of(kind: type) -> str:
    """`kind.__module__`, past what a metaclass may say of it; "" where it is no text."""
    try:
        name = _type_names[0].__get__(kind)
    except AttributeError:
        return ""
    return name if type(name) is str else ""


def type_name(kind: type) -> str:
    """ "package.module.Class", without the module for what is built in."""
    module, name = (descriptor.__get__(kind) for descriptor in _type_names)
    return name if module == "builtins" or type(module) is not str else f"{module}.{name}"


def is_plain(value: Any) -> bool:
    """Whether a value is of a built-in type whose `repr` and `==` are its own: a number, a text."""
    # `is`, not `in`: a metaclass may answer == and hash() with code of its own.
    kind = type(value)
    if kind is tuple:
        return all(is_plain(item) for item in value)
    return any(kind is plain for plain in _PLAIN)


def class_attribute(kind: type, name: str) -> Any:
    """What a class or its bases have under `name`, unbound; None where they have nothing."""
    for cls in mro_of(kind):
        found = class_dict(cls).get(name)
        if found is not None:
            return found
    return None


def dict_of(owner: Any) -> Any:
    """The `__dict__` of an object, without its own code running; None if it has none."""
    # A class may define a `__dict__` of its own, as a property.
    found = class_attribute(type(owner), "__dict__")
    if found is not None:
        # `is`, not `in`: a metaclass may answer == with code of its own.
        kind = type(found)
        if kind is not types.GetSetDescriptorType and kind is not types.MemberDescriptorType:
            return None
    try:
        return object.__getattribute__(owner, "__dict__")
    except Exception:
        return None


def attribute(owner: Any, name: str, default: Any = None) -> Any:
    """An attribute that is stored in the object: in its `__dict__` or in a slot of its class."""
    held = dict_of(owner)
    if type(held) is dict and name in held:
        return held[name]
    slot = class_attribute(type(owner), name)
    if type(slot) is types.MemberDescriptorType:
        try:
            return slot.__get__(owner)
        except AttributeError:
            return default
    return default


def field_names(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass or of a named tuple; None for any other class."""
    fields = class_attribute(kind, "__dataclass_fields__")
    if type(fields) is dict:
        import dataclasses  # the class has come by way of it

        return tuple(
            name
            for name, field in fields.items()
            if type(field) is dataclasses.Field
            and getattr(field, "_field_type", None) is dataclasses._FIELD  # type: ignore[attr-defined]
        )
    if issubclass(kind, tuple):
        names = class_attribute(kind, "_fields")
        if type(names) is tuple and all(type(name) is str for name in names):
            return names
    return None


def items_of(mapping: Any) -> Iterable[tuple[Any, Any]] | None:
    """The items that a dict, a read-only view of one or a UserDict holds; None for all else."""
    kind = type(mapping)
    if kind is collections.OrderedDict:
        return list(mapping.items())
    if issubclass(kind, dict):
        return list(dict.items(mapping))
    if kind is types.MappingProxyType:
        # A copy asks the mapping below for its items, which may be anybody's: only a plain one.
        below = next(iter(gc.get_referents(mapping)), None)
        kind = type(below)
        return items_of(below) if kind is dict or kind is collections.OrderedDict else None
    if is_user_dict(kind):
        return items_of(attribute(mapping, "data"))
    if kind is collections.ChainMap:
        return _items_of_chain(attribute(mapping, "maps"))
    return None


def _items_of_chain(maps: Any) -> list[tuple[Any, Any]] | None:
    """The items in ChainMap's own order: the last mapping's first, with the first one's values."""
    if type(maps) is not list:
        return None
    found: dict[Any, tuple[Any, Any]] = {}
    for mapping in reversed(maps):
        for key, value in items_of(mapping) or ():
            found[key if is_plain(key) else _Same(key)] = key, value
    return list(found.values())


class _Same:
    """A key that equals itself only, whatever its class says."""

    def __init__(self, key: Any) -> None:
        self._id = id(key)

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and other._id == self._id


def is_user_dict(kind: type) -> bool:
    # Not issubclass(): that of an abstract class asks the metaclass, and keeps the answer.
    return any(cls is collections.UserDict for cls in mro_of(kind))


def sequence_of(value: Any) -> Iterator[Any] | None:
    """What a list, tuple, set or frozenset holds, whatever iteration a subclass has."""
    kind = type(value)
    for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
            return iter(list(base.__iter__(value)))
    return None


def key_text(key: Any) -> str:
    """A dictionary's key as a person would write it; only its class where that would run code."""
    kind = type(key)
    if is_plain(key):
        return repr(key)
    if kind is tuple:
        parts = [key_text(item) for item in key]
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if issubclass(kind, enum.Enum):
        return f"{type_name(kind).rsplit('.', 1)[-1]}.{attribute(key, '_name_', '?')}"
    if not _flags.__get__(kind) & _HEAP_TYPE and type_name(kind).startswith("torch."):
        return repr(key)  # a dtype, a device: C's own
    return f"<{type_name(kind)}>"


_flags: Any = type.__dict__["__flags__"]
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class of Python's


# --- exceptions -----------------------------------------------------------------------------------

_cause: Any = BaseException.__dict__["__cause__"]
_context: Any = BaseException.__dict__["__context__"]
_args: Any = BaseException.__dict__["args"]
_error_dict: Any = BaseException.__dict__["__dict__"]


def reasons_of(error: BaseException) -> tuple[Any, Any]:
    """(`__cause__`, `__context__`)."""
    return _cause.__get__(error), _context.__get__(error)


def error_dict(error: BaseException) -> dict[str, Any]:
    """The `__dict__` of an exception, which every exception has."""
    found: dict[str, Any] = _error_dict.__get__(error)
    return found


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """The exceptions that a group holds; none for any other exception."""
    group: Any = getattr(builtins, "BaseExceptionGroup", None)
    if group is None:  # before 3.11 there is a package for it
        group = getattr(sys.modules.get("exceptiongroup"), "BaseExceptionGroup", None)
    if group is None or not issubclass(type(error), group):
        return ()
    found = class_dict(group)["exceptions"].__get__(error)
    return tuple(item for item in found if issubclass(type(item), BaseException))


def message(error: BaseException) -> str:
    """str(error), unless that would run code of the program; then the arguments of the exception.

    `__str__` of the built-in exceptions and of installed packages is trusted, and that of the
    script is not; nor is any where an argument is an object with a text of its own.
    """
    own = class_attribute(type(error), "__str__")
    code = getattr(own, "__code__", None) if type(own) is types.FunctionType else None
    built_in = type(own) is types.WrapperDescriptorType
    args = _args.__get__(error)
    # A group's text is made of its message, which is one, and of the number of its members.
    asked = args[:1] if members_of(error) else args
    plain = all(map(is_plain, (*asked, *_built_in_fields(error))))
    try:
        if plain and (built_in or (code is not None and not is_user_file(code.co_filename))):
            return str(error)
        if len(args) == 1:
            return args[0] if type(args[0]) is str else key_text(args[0])
        return f"({', '.join(map(key_text, args))})" if args else ""
    except Exception:
        return "<exception str() failed>"


def _built_in_fields(error: BaseException) -> Iterator[Any]:
    """What the built-in classes' `__str__` reads beside the arguments."""
    for kind, names in (
        (OSError, ("errno", "strerror", "filename", "filename2")),
        (SyntaxError, ("msg", "filename", "lineno")),
        (ImportError, ("msg",)),
        (UnicodeError, ("object", "start", "end", "reason", "encoding")),
    ):
        if issubclass(type(error), kind):
            for name in names:
                try:
                    descriptor = class_attribute(kind, name)
                    yield None if descriptor is None else descriptor.__get__(error)
                except (TypeError, AttributeError):
                    continue
