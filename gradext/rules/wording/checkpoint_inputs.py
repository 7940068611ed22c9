"""GX101 for an input of a checkpoint without reentry: who uses it, and which call has saved it.

Such a checkpoint saves what its block is given, and asks for it when backward runs the block again.
torch's error comes from there, from a line of torch's; what is told of is the user's line in the
block that uses the input, and the call of `checkpoint()`.
"""

from __future__ import annotations

import ast
import types
from typing import Any, NamedTuple

from gradext.base import raw
from gradext.diagnosis.model import Site
from gradext.objects import naming
from gradext.recording import checkpoints
from gradext.recording.tables import Data
from gradext.source import live_frames, sites, syntax

_FILE = "torch/utils/checkpoint.py"


class Input(NamedTuple):
    """An input that a checkpoint has saved.

    Attributes:
        name: of the block's parameter, None where it is not known.
        call: of `checkpoint()`. use: the first line of the block that uses the input and saves
            something for backward.
    """

    name: str | None
    call: Site | None
    use: Site | None


def of_error(error: BaseException, data: Data, written: str | None) -> Input | None:
    """The input that torch refused to hand to the block; None for an error from elsewhere.

    Args:
        written: what the source calls the tensor that was written since, where that is known.
    """
    running = live_frames.frames_of_error(error)
    for number, frame in enumerate(running):
        if frame.f_code.co_name != "get_inputs" or not _is_torchs(frame.f_code.co_filename):
            continue
        owner = dict(naming.locals_of(frame)).get("self")
        notes = checkpoints.notes_of(owner)
        if notes is None:
            return None
        inner = [dict(naming.locals_of(one)).get("arg") for one in running[: number + 1]]
        call = sites.site(data.frames(notes.log.begun))
        function, parameter = _parameter(owner, inner, _position(call, written))
        return Input(parameter, call, _use(notes, function, parameter, data))
    return None


def _is_torchs(file: str) -> bool:
    return file.replace("\\", "/").endswith(_FILE)


def _position(call: Site | None, name: str | None) -> int | None:
    """Which argument of the block `name` is in the call of checkpoint(), from 0; None if unclear.

    From Python 3.12 on the error's frames show no variable of a list comprehension, which is where
    torch asks for each input.
    """
    held = syntax.statements(call.frame.file, call.frame.line) if call is not None else []
    calls = [
        node
        for node in (ast.walk(held[-1]) if held else ())
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "checkpoint"
        and not any(isinstance(given, ast.Starred) for given in node.args)
    ]
    if len(calls) != 1 or name is None:
        return None
    found = [n for n, given in enumerate(calls[0].args[1:]) if ast.unparse(given) == name]
    return found[0] if len(found) == 1 else None


def _parameter(
    owner: Any, asked: list[Any], position: int | None
) -> tuple[types.CodeType | None, str | None]:
    """(the block's code, the name of the parameter that the refused input is given for)."""
    code, own = _code_of(checkpoints.function_of(raw.attribute(owner, "recompute_fn")))
    inputs = raw.attribute(owner, "saved_args")
    if code is None or type(inputs) is not list:
        return code, None
    # torch.autograd's SavedTensor; what is no tensor stands there as it is.
    saved = [n for n, one in enumerate(inputs) if raw.type_name(type(one)).endswith("SavedTensor")]
    at = [n for n in saved if any(inputs[n] is one for one in asked)]
    at = at or [n for n in saved if n == position] or saved
    if len(at) != 1 or at[0] + own >= code.co_argcount:
        return code, None
    return code, code.co_varnames[at[0] + own]


def _code_of(function: Any) -> tuple[types.CodeType | None, int]:
    """The code of a function or of a module's forward, and how many parameters are its own."""
    if type(function) is types.MethodType:
        found, own = function.__func__, 1
    elif type(function) is types.FunctionType:
        found, own = function, 0
    else:
        found, own = raw.class_attribute(type(function), "forward"), 1
    return (found.__code__, own) if type(found) is types.FunctionType else (None, 0)


def _use(
    notes: checkpoints.Notes, code: types.CodeType | None, name: str | None, data: Data
) -> Site | None:
    if code is None or name is None:
        return None
    for stack, _ in notes.forward.packs:
        frames = data.frames(stack)
        while frames and _is_torchs(frames[0].file):  # of the hook that packs
            frames = frames[1:]
        for number, frame in enumerate(frames):
            if _is_torchs(frame.file):
                break  # what called the block
            in_block = frame.is_user and frame.function.rsplit(".", 1)[-1] == code.co_name
            if in_block and _mentions(frame.file, frame.line, name):
                label = f"uses `{name}`, in backward once more"
                return sites.site(frames[number:], label=label)
    return None


def _mentions(file: str, line: int, name: str) -> bool:
    held = syntax.statements(file, line)
    return bool(held) and any(
        isinstance(node, ast.Name) and node.id == name for node in ast.walk(held[-1])
    )
