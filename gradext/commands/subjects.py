"""Models, functions and inputs that a person names on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from gradext.base import errors


class BadInput(Exception):
    """Something on the command line makes no sense; the text is one line that says what to do."""


def subject_of(factory: str, inputs: str | None) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(what to call, args, kwargs) from the two words of the command line.

    Raises:
        BadInput: nothing there, it raised, or it returned nothing that can be called like this.
    """
    made = _made(factory, "--inference")
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if type(made) is tuple:
        if not 1 <= len(made) <= 3:
            raise BadInput(
                f"{factory} returned a tuple of {len(made)}, not (model, args) or "
                "(model, args, kwargs)"
            )
        made, *rest = made
        args, kwargs = _inputs(rest, factory)
    if not callable(made):
        raise BadInput(
            f"{factory} returned {_kind(made)}, which cannot be called; return a model or function"
        )
    if inputs is not None:
        found = _made(inputs, "--inputs")
        both = type(found) is tuple and len(found) == 2 and type(found[1]) is dict
        if both and type(found[0]) in (tuple, list):
            args, kwargs = tuple(found[0]), found[1]
        else:
            args, kwargs = _inputs([found], inputs)
    _fit(made, args, kwargs)
    return made, args, kwargs


def _inputs(given: list[Any], factory: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """args and kwargs as a person may have written them: a tuple, a dict, one tensor, or both."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    for item in given:
        if type(item) is dict:
            kwargs = item
        elif item is given[0]:
            args = tuple(item) if type(item) in (tuple, list) else (item,)
        else:
            raise BadInput(f"{factory} returned {_kind(item)} as kwargs, not a dict")
    odd = next((key for key in kwargs if type(key) is not str), None)
    if odd is not None:
        raise BadInput(f"{factory} returned kwargs with the key {odd!r}; keys are argument names")
    return args, kwargs


def _fit(made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Whether it can be called with these inputs, as far as its signature tells."""
    import torch

    called = made.forward if isinstance(made, torch.nn.Module) else made
    name = getattr(called, "__qualname__", type(made).__name__)
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        if args or kwargs:
            raise BadInput(f"the inputs do not fit {name}{signature}: {error}") from None
        raise BadInput(
            f"{name} needs inputs ({error}); return (model, args) from the factory, or name a "
            "function that returns them with --inputs"
        ) from None


def _made(word: str, option: str) -> Any:
    """What the function that `word` names returns; a module object itself where it names one."""
    import torch

    found = _find(word, option)
    if isinstance(found, torch.nn.Module):
        return found
    if not callable(found):
        raise BadInput(f"{word} is {_kind(found)}, not a function that makes a model or inputs")
    try:
        return found()
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(where.filename)}:{where.lineno}"
        raise BadInput(f"{word} raised at {place}: {errors.one_line(error)}") from None


def _find(word: str, option: str) -> Any:
    module_name, colon, name = word.rpartition(":")
    if not colon or not module_name or not name:
        raise BadInput(
            f"{option} takes MODULE:FUNCTION or file.py:FUNCTION, as in mymodels:make_model; "
            f"got {word!r}"
        )
    module = module_named(module_name)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise BadInput(f"{module_name} has no {name!r}") from None
    return found


def module_named(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    is_file = name.endswith(".py") or os.sep in name
    if is_file and not os.path.isfile(name):
        raise BadInput(f"no such file: {name}")
    try:
        return _of_file(Path(name)) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise BadInput(
                f"no module named {error.name!r} in the current folder or installed"
            ) from None
        raise BadInput(f"importing {name} failed: {errors.one_line(error)}") from None
    except (Exception, SystemExit) as error:
        raise BadInput(f"importing {name} failed: {errors.one_line(error)}") from None


def _of_file(path: Path) -> ModuleType:
    """The module in a file, under the file's name, so that its classes can be pickled."""
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.absolute()):
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path.absolute())
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
