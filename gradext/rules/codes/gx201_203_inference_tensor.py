"""GX201 to GX203: a tensor that was made under inference_mode was used where autograd is at work.

The culprit is the line that made it; the victim the line that used it. The recorder notes which
tensor an op refused; without that the frames of the traceback are searched. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import op_names, package, raw
from gradext.diagnosis.model import Diagnosis, Site
from gradext.rules.wording import cached_results, line_names
from gradext.rules.wording.lost_events import lost
from gradext.rules.wording.lost_gradients import listed
from gradext.source import mode_blocks, sites, statements

if TYPE_CHECKING:
    from gradext.recording.events import Birth, Refused
    from gradext.recording.tables import Data

SAVED = re.compile(r"Inference tensors cannot be saved for backward")
WRITTEN = re.compile(r"Inplace update to inference tensor outside InferenceMode")
MISUSED = re.compile(
    r"Setting requires_grad=True on inference tensor outside InferenceMode"
    r"|Inference tensors do not track version counter"
    r"|Cannot set version_counter for inference tensor"
    r"|a tensor that does not have a version counter\. Was it created in inference mode"
)
ANY = re.compile("|".join(p.pattern for p in (SAVED, WRITTEN, MISUSED)))
# What is looked at for a name: a program may hold millions of objects, and waits meanwhile.
_MOST = 10_000
_MOST_ITEMS = 1024  # of one of them
_MOST_NAMED = 8
_CODES = (("GX201", SAVED), ("GX202", WRITTEN), ("GX203", MISUSED))


@dataclasses.dataclass(frozen=True)
class _Found:
    """The inference tensor in question, as far as it is known.

    Attributes:
        name: how the line that failed calls it; holder: what keeps it, where that is another name.
        is_leftover: no inference tensor any more, but without a counter since it was one.
        more: how many others the search found that may be meant just as well.
        typed: what the line that failed calls it.
        is_typable: whether the line that failed can reach what the holder's name begins with.
        siblings: what else was made under the same mode and is still held: it fails next.
    """

    storage: int
    tensor: int
    text: str = ""
    name: str | None = None
    holder: str | None = None
    is_parameter: bool = False
    is_leftover: bool = False
    more: int = 0
    typed: str | None = None
    is_typable: bool = True
    siblings: tuple[str, ...] = ()


def misused(error: BaseException, data: Data | None = None) -> list[Diagnosis]:
    """The diagnosis of an error about an inference tensor, from its text, trace and recording."""
    text = raw.message(error)
    code = next((code for code, pattern in _CODES if pattern.search(text)), None)
    if code is None or not issubclass(type(error), RuntimeError):
        return []
    from gradext.source import frames

    trace = frames.frames_of_traceback(error.__traceback__)
    events = _events(text, data, trace)
    event = events[0] if events else None
    found = _find(error, events, data)
    if found is not None and found.is_leftover:
        code = "GX203"
    stack = (data.frames(event.stack) if event is not None and data is not None else ()) or trace
    op = event.op if event is not None else None
    spoken = _spoken(found)
    victim = sites.site(stack, op=op, label=_victim_label(code, op, found))
    birth = _birth(data, found)
    made = entered = None
    mode: mode_blocks.Mode | None = None
    if birth is not None and data is not None:
        running = data.frames(birth.stack)
        made = sites.site(running, op=birth.op, label=_birth_label(birth, found))
        mode = mode_blocks.find(data.frames(birth.mode), running)
        entered = mode.site if mode is not None else None
    culprits = sites.distinct([made, entered])
    victims = sites.distinct([victim])
    notes = _notes(code, data, birth, found, victim)
    if not culprits and victim is not None:
        culprits, victims = (victim,), ()
    return [
        Diagnosis(
            code=code,
            message=_message(code, spoken, op, made, mode, found),
            culprits=culprits,
            victims=victims,
            fix=_fix(code, found, made, _typed_at(mode, birth, data), victim),
            notes=tuple(notes),
        )
    ]


def _events(text: str, data: Data | None, trace: Any) -> list[Refused]:
    """The refusals of the failed call, those of this traceback first; the latest call's only."""
    if data is None:
        return []
    places = {(frame.file, frame.line) for frame in trace}
    fitting = [
        event
        for event in data.refused[::-1]
        if (event.is_inference or event.is_leftover)
        and (what := event.what.strip())
        and (what in text or text.strip() in what or _same_rule(what, text))
    ]
    here = [
        event
        for event in fitting
        if any((f.file, f.line) in places for f in data.frames(event.stack))
    ]
    chosen = here or fitting
    if not chosen:
        return []
    return [event for event in chosen if event.order == chosen[0].order][::-1]


def _same_rule(first: str, second: str) -> bool:
    """load_state_dict and others wrap the text in one of their own."""
    return any(pattern.search(first) and pattern.search(second) for _, pattern in _CODES)


def _find(error: BaseException, events: list[Refused], data: Data | None) -> _Found | None:
    from gradext.objects import naming, walk
    from gradext.source import live_frames

    live = [*live_frames.frames_of_error(error), *live_frames.frames_above()]
    places = [(event.storage, event.tensor) for event in events]
    modules = walk.modules()
    words = set(re.findall(r"\w+", _line_of(error)))
    at_hand = {} if places else _at_hand(live)
    found: list[tuple[int, str, Any]] = []
    # A dict that only torch's function holds comes last: a name of the user's is better.
    held = (_held_by(roots) for roots in (walk.roots_of_frames(live), modules))
    for path, tensor in itertools.chain(*held, at_hand.values()):
        who = naming.identity_of(tensor)
        if who is None or not (who.is_inference or who.counter == 0):
            continue
        facts = naming.facts_of(tensor)
        if facts is None:
            continue
        leftover = not facts.is_inference and facts.version is None
        if not facts.is_inference and not leftover:
            continue
        rank = 2
        if places:
            if facts.id in {tensor for _, tensor in places}:
                rank = 0
            elif facts.storage is not None and facts.storage in {s for s, _ in places}:
                rank = 1
            else:
                continue
        elif facts.id in at_hand:
            rank = 0
        elif re.split(r"\W", path)[0] in words:
            rank = 1
        is_parameter = issubclass(type(tensor), torch_parameter())
        found.append((rank, path, (facts, is_parameter, leftover)))
    del held
    if not found:
        if not events:
            return None
        event = events[0]
        return _Found(event.storage, event.tensor, is_leftover=event.is_leftover)
    found.sort(key=lambda item: item[0])
    rank, name, (facts, is_parameter, leftover) = found[0]
    typed = _in_line(error, live, facts)
    name = typed if typed and not _is_typable(name, live) else name
    storage = facts.id if facts.storage is None else facts.storage
    same = [item for item in found if item[2][0].storage == facts.storage]
    holder = next((path for _, path, _ in same if re.search(r"[.\[]", path)), None)
    # What a library function was given all at once was made all at once.
    others = (
        set()
        if at_hand
        else {item[2][0].storage for item in found if item[0] == rank} - {facts.storage}
    )
    kind = f"{str(facts.dtype).removeprefix('torch.')} {list(facts.shape)}"
    holder = _lasting(facts.id, facts.storage, live, modules) or holder
    is_typable = _is_typable(holder, live)
    # A line of a method mends every object that it runs for.
    own = typed.removeprefix("self") if typed and typed.startswith("self.") else "?"
    siblings = [n for n in _siblings(data, facts, live, modules) if not n.endswith(own)]
    return _Found(
        storage=storage,
        tensor=facts.id,
        text=kind,
        name=name,
        holder=holder if holder is not None and not f".{holder}".endswith(f".{name}") else None,
        is_parameter=is_parameter or any(item[2][1] for item in same),
        is_leftover=leftover,
        more=len(others) if not places else 0,
        is_typable=is_typable,
        typed=typed,
        siblings=tuple(siblings),
    )


def _in_line(error: BaseException, live: Sequence[Any], facts: Any) -> str | None:
    """What the line that failed calls the tensor itself, or one of its memory."""
    from gradext.objects import naming
    from gradext.source import frames

    frame = sites.user_frame(frames.frames_of_traceback(error.__traceback__))
    alias = None
    for text, tensor in line_names.tensors_of_line(live, frame.line if frame is not None else None):
        who = naming.identity_of(tensor)
        if who is not None and who.id == facts.id:
            return text
        if who is not None and facts.storage is not None and who.storage == facts.storage:
            alias = alias or text
    return alias


def _at_hand(live: Sequence[Any]) -> dict[int, tuple[str, Any]]:
    """Inference tensors that the library function which raised was given, by their ids."""
    from gradext.objects import naming

    found: dict[int, tuple[str, Any]] = {}
    for frame in live:
        if found or package.is_user_file(frame.f_code.co_filename):
            break
        for path, tensor in naming.tensors_in(naming.locals_of(frame), depth=1):
            who = naming.identity_of(tensor)
            if who is not None and who.is_inference:
                found.setdefault(who.id, (path, tensor))
    return found


def _held_by(roots: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    from gradext.objects import walk

    return walk.walk(roots, most=_MOST, items=_MOST_ITEMS, grads=False)


def _lasting(
    tensor: int,
    storage: int | None,
    live: Sequence[Any],
    modules: Sequence[tuple[str, Any]],
) -> str | None:
    """What keeps the tensor when the function that failed has returned: `model.rope._cache[16]`.

    A bare local of a caller is no such thing, nor is what hangs on it if a module or a global does.
    """
    from gradext.objects import naming, walk

    user = [f for f in live if package.is_user_file(f.f_code.co_filename)]
    lasting: list[tuple[str, Any]] = []
    for space in {id(f.f_globals): f.f_globals for f in user}.values():
        lasting += walk.globals_of(space)
    outer = [pair for f in user[1:] if f.f_code.co_name != "<module>" for pair in _own(f)]
    for roots in (lasting, outer, modules):
        same = None
        for path, held in _held_by(roots):
            who = naming.identity_of(held)
            if who is None or not re.search(r"[.\[<]", path):
                continue
            if who.id == tensor:
                return path
            if storage is not None and who.storage == storage:
                same = same or path
        if same is not None:
            return same
    return None


def _is_typable(holder: str | None, live: Sequence[Any]) -> bool:
    frame = next((f for f in live if package.is_user_file(f.f_code.co_filename)), None)
    if holder is None or frame is None:
        return False
    root = re.split(r"\W", holder)[0]
    code = frame.f_code
    return root in (*code.co_varnames, *code.co_freevars) or root in frame.f_globals


def _siblings(
    data: Data | None, facts: Any, live: Sequence[Any], modules: Sequence[tuple[str, Any]]
) -> tuple[str, ...]:
    """Names of other tensors that the same block or function made, and that are kept."""
    from gradext.objects import naming, walk

    own = _birth_of(data, facts.id, facts.storage)
    if data is None or own is None:
        return ()
    user = [f for f in live if package.is_user_file(f.f_code.co_filename)]
    roots: list[tuple[str, Any]] = []
    for space in {id(f.f_globals): f.f_globals for f in user}.values():
        roots += walk.globals_of(space)
    found: dict[int, str] = {}
    for path, tensor in itertools.chain(_held_by(roots), _held_by(modules)):
        who = naming.identity_of(tensor)
        if who is None or not who.is_inference or who.id == facts.id or len(found) >= _MOST_NAMED:
            continue
        storage = who.storage or who.id
        if storage == facts.storage or storage in found or not re.search(r"[.\[]", path):
            continue
        birth = _birth_of(data, who.id, who.storage)
        if "<" not in path and birth is not None and birth.mode == own.mode:
            found[storage] = path
    return tuple(found.values())


def _birth_of(data: Data | None, tensor: int, storage: int | None) -> Birth | None:
    if data is None:
        return None
    return (data.birth_of(storage) if storage else None) or data.birth_of(tensor)


def _own(frame: Any) -> list[tuple[str, Any]]:
    from gradext.objects import naming

    return [pair for pair in naming.locals_of(frame) if pair[0] not in ("self", "cls")]


def torch_parameter() -> Any:
    import torch

    return torch.nn.Parameter


def _line_of(error: BaseException) -> str:
    from gradext.source import frames

    frame = sites.user_frame(frames.frames_of_traceback(error.__traceback__))
    return frame.code if frame is not None else ""


def _birth(data: Data | None, found: _Found | None) -> Birth | None:
    if data is None or found is None:
        return None
    if found.is_leftover:
        return data.birth_of(found.tensor) or data.birth_of(found.storage)
    return data.birth_of(found.storage) or data.birth_of(found.tensor)


def _spoken(found: _Found | None) -> str:
    if found is None or (found.name is None and not found.text):
        return "A tensor"
    if found.name is None:
        return f"A {found.text} tensor"
    kind = f" ({found.text})" if found.text else ""
    of = f", kept as `{found.holder}`," if found.holder else ""
    return f"`{found.name}`{kind}{of}"


def _quoted(found: _Found | None) -> str:
    return f"`{found.name}`" if found is not None and found.name else "it"


def _victim_label(code: str, op: str | None, found: _Found | None) -> str:
    name = _quoted(found)
    if code == "GX201":
        return f"{op_names.bare(op)} would have to save {name} for backward"
    if code == "GX202":
        return f"{op_names.bare(op)} writes {name} outside inference_mode"
    if found is not None and found.is_leftover:
        return f"{op_names.bare(op)} needs the version counter that {name} never got"
    return f"{op_names.bare(op)} uses {name} as a tensor of autograd"


def _birth_label(birth: Birth, found: _Found | None) -> str:
    made = found.holder or found.name if found is not None else None
    # A parameter is a detached alias of its data: nobody has written that detach().
    op = "" if birth.op == "aten::detach" else f"{op_names.bare(birth.op)} "
    return f"{op}makes {f'`{made}`' if made else 'it'} under inference_mode"


def _message(
    code: str,
    spoken: str,
    op: str | None,
    made: Site | None,
    mode: mode_blocks.Mode | None,
    found: _Found | None,
) -> str:
    where = f" at {sites.where(made.frame)}" if made is not None else ""
    if found is not None and found.is_leftover:
        return (
            f"{spoken} was made under inference_mode{where} and has been given other memory since: "
            "it no longer counts as an inference tensor, but it has no version counter, and "
            f"{op_names.bare(op)} needs one."
        )
    said = f"{spoken} is an inference tensor, made under inference_mode{where}"
    by = op_names.bare(op)
    if code == "GX201":
        return (
            f"{said}; {by} needs it for backward, and autograd saves no tensor whose writes it "
            "cannot count."
        )
    if code == "GX202":
        return (
            f"{said}; outside that mode {by} may not write it in place, since nothing would count "
            "the write."
        )
    return f"{said}; outside that mode {by} cannot use it: autograd does not follow it."


def _typed_at(
    mode: mode_blocks.Mode | None, birth: Birth | None, data: Data | None
) -> mode_blocks.Mode | None:
    """The mode with the line that enters torch's own, within a context manager of the user's."""
    if mode is None or birth is None or data is None or mode.how != "with":
        return mode
    place = sites.site(data.frames(birth.mode))
    if "inference_mode" in mode.site.frame.code or place is None:
        return mode
    if not place.frame.is_user or "inference_mode" not in place.frame.code:
        return mode
    return dataclasses.replace(mode, site=place)


def _fix(
    code: str,
    found: _Found | None,
    made: Site | None,
    mode: mode_blocks.Mode | None,
    victim: Site | None,
) -> str:
    instead = _instead(mode)
    name = found.name if found is not None else None
    held = (found.holder or name) if found is not None else None
    if found is not None and not found.is_parameter:
        # An attribute or an item, as the line that failed writes it, is what it works with.
        is_kept = found.typed is not None and re.search(r"[.\[]", found.typed)
        held = found.typed if is_kept else held
        held = held if is_kept or found.is_typable else (found.typed or name)
    before = f" before {sites.where(victim.frame)}" if victim is not None else ""
    if found is not None and (found.is_leftover or found.is_parameter):
        target = held or "the parameter"
        where = f" ({sites.where(made.frame)})" if made is not None else ""
        again = f"`{target} = nn.Parameter({target}.detach().clone())` outside inference_mode"
        if made is None:
            return f"make the parameter anew: {again}{before}"
        keep = f"make it outside inference_mode{where}"
        return f"{instead or keep}; or make the parameter anew{before}: {again}"
    cached = cached_results.function_of(held)
    if cached is not None:
        clear = cached_results.cleared(cached, made, mode)
        is_result = (held or "").endswith(".<lru_cache>") and code == "GX201"
        own = cached_results.copied(cached, victim) if is_result else None
        if clear or own:
            return "; or ".join(each for each in (instead, own, clear) if each)
    if held and "<" in held:
        typed = found.typed if found is not None else None
        held = next((text for text in (typed, name) if text and "<" not in text), None)
    clone = f"`{held} = {held}.clone()`" if held else "a clone() of it"
    if found is not None and found.siblings:
        clone += f", and likewise of {listed(found.siblings)} (made there too)"
    if code == "GX202" and mode is not None and victim is not None:
        return (
            f"{instead}; or take a normal copy{before}: {clone}; or do the write under "
            "inference_mode as well"
        )
    copy = f"take a normal copy{before}, outside inference_mode: {clone}"
    return f"{instead}; or {copy}" if instead else copy


def _instead(mode: mode_blocks.Mode | None) -> str:
    if mode is None:
        return ""
    line = sites.where(mode.site.frame)
    if mode.how == "decorator":
        return f"decorate with `@torch.no_grad()` instead of inference_mode, at {line}"
    if mode.how == "with":
        return f"use `torch.no_grad()` instead of inference_mode, at {line}"
    call = statements.text_of(mode.site)
    if mode.how == "switch":
        return (
            f"leave the mode that `{call}` ({line}) enters before the tensor is made, or enter "
            "`torch.no_grad()` there"
        )
    return f"keep `{call}` ({line}), which runs under inference_mode, from making it"


def _notes(
    code: str, data: Data | None, birth: Birth | None, found: _Found | None, victim: Site | None
) -> list[str]:
    notes = []
    if data is None:
        notes.append("no recording was on, so the line that made the tensor is not known")
    elif birth is None:
        missing = lost(data, "births")
        notes.append(
            f"the line that made the tensor is not known: {missing}"
            if missing
            else "the tensor was made before the recording began, or by code that runs no op"
        )
    if found is not None and found.more:
        more = found.more
        notes.append(
            f"{more} more inference tensor{'s' if more > 1 else ''} within reach of this line may "
            "be meant as well"
        )
    if code == "GX202":
        notes.append("torch raises after the write: the values may have changed already")
    if found is not None and found.is_parameter:
        notes.append(
            "copy.deepcopy() of a module, outside inference_mode, has normal parameters throughout"
        )
    if found is not None and found.is_parameter and not found.is_leftover:
        notes.append(
            "a parameter made under inference_mode can also miss its gradient without an error: "
            "where nothing has to be saved for it, its .grad stays None"
        )
    return notes
