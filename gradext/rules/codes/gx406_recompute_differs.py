"""GX406: a checkpoint's recompute packs something else than its forward did.

Two ways: torch sees it by shapes, dtypes and counts and raises; or only versions and bytes differ,
and the gradients are those of another function. Works from what gradext.recording.checkpoints
noted and a recording's events; touches no tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import op_names, package, raw
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.recording import checkpoints
from gradext.recording.events import SAVES
from gradext.rules.graph_copy import Saved, saved_of
from gradext.rules.rewrite import in_place, optimizer_step
from gradext.rules.wording import block_state, saved_tensors
from gradext.source import bindings, sites

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.checkpoints import Pass, Recomputed
    from gradext.recording.events import Write
    from gradext.recording.findings import Finding
    from gradext.recording.tables import Data

REFUSED = re.compile(
    r"torch\.utils\.checkpoint: (?:Recomputed values for the following tensors have different|"
    r"A different number of tensors was saved|trying to save more tensors)|"
    r"Detected non-determinism while running activation checkpointing"
)
_RANDOM = re.compile(r"dropout|rand|noise|bernoulli|normal_|uniform_|multinomial|rrelu", re.I)
_SILENT = "the gradients are wrong without an error"


def differs(what: Recomputed, data: Data, names: Names) -> list[Diagnosis]:
    """What differs though shapes, dtypes and counts are the same: torch raises nothing."""
    call = _call_of(data, what.forward)
    for told in what.facts:
        if not told["is_moved"]:
            continue
        item = saved_of(told["saved"], "saved")
        writes = [
            write
            for write in data.writes_of_counter(item.counter, item.saved_version)
            if write.order > told["order"]
        ]
        if writes and not told["is_same_tensor"]:
            return [_written_after(told, item, writes, data, names, call)]
        if writes and (told["is_compared"] or not _is_made_anew(what, item, data)):
            return [_state(what, told, writes, data, names, call)]
    compared = [told for told in what.facts if told["is_compared"]]
    if not compared:
        return []  # versions alone, and nobody is known to have written something else
    told = compared[0]
    if _is_random(told, data) and not what.keeps_random_state:
        return [_random(told, data, names, call)]
    writes = list(_state_writes(what, data))
    if writes:
        return [_state(what, told, writes, data, names, call)]
    if not what.keeps_random_state:
        return [_random(told, data, names, call)]
    return [_unexplained(what, told, data, names, call)]


_OVERWRITES = re.compile(
    r"(?:copy|fill|zero|normal|uniform|set|index_put|masked_fill|scatter)_|out$"
)


def _is_made_anew(what: Recomputed, item: Saved, data: Data) -> bool:
    """Whether the recompute wrote it first as a whole, so that it may hold the same as before."""
    since = what.recompute.order
    own = [write for write in data.writes_of_storage(item.storage) if write.order > since]
    return bool(own) and _OVERWRITES.match(op_names.short(own[0].op)) is not None


def _place(call: Site | None) -> str:
    return f"the checkpoint at {sites.where(call.frame)}" if call is not None else "a checkpoint"


def _call_of(data: Data, forward: Pass) -> Site | None:
    found = sites.site(data.frames(forward.stack), label="the checkpoint that is recomputed")
    return None if found is None else dataclasses.replace(found, stack=())


def _saving(data: Data, stack: int, label: str = "") -> Site | None:
    """Where something was packed, without torch's frames that pack."""
    frames = data.frames(stack)
    while frames and frames[0].file.replace("\\", "/").endswith("torch/utils/checkpoint.py"):
        frames = frames[1:]
    return sites.site(frames, label=label)


def _save_of(told: dict[str, Any], data: Data, name: str | None) -> Site | None:
    what = f"`{name}`" if name else "it"
    return _saving(data, told["stack"], f"saves {what} for backward")


def _spoken(item: Saved, names: Names, name: str | None) -> tuple[str | None, str]:
    known, spoken = saved_tensors.tensor_text(item, names)
    if known is None and name is not None:
        kind = str(item.dtype).removeprefix("torch.")
        return name, f"`{name}` ({kind} {list(item.sizes)})"
    return known, spoken


def _written_name(data: Data, writes: Sequence[Write]) -> str | None:
    place = sites.site(data.frames(writes[0].stack))
    return bindings.written_name(place) if place is not None and not place.stack else None


# --- a tensor of the block's own, written after it was saved --------------------------------------


def _written_after(
    told: dict[str, Any],
    item: Saved,
    writes: Sequence[Write],
    data: Data,
    names: Names,
    call: Site | None,
) -> Diagnosis:
    """`h` is saved, and then `h += 1` in the same block: without the checkpoint torch raises."""
    name, spoken = _spoken(item, names, _written_name(data, writes))
    culprits = saved_tensors.culprits(data, writes, name)
    save = _save_of(told, data, name)
    at = f" at {sites.where(save.frame)}" if save is not None else ""
    op = op_names.short(writes[0].op)
    line = f" ({sites.where(culprits[0].frame)})" if culprits else ""
    fix = "write into a new tensor instead"
    if culprits:
        fix = in_place.out_of_place(culprits[0]) or (
            f"write into a `.clone()` at {sites.where(culprits[0].frame)}"
        )
    return Diagnosis(
        code="GX406",
        message=(
            f"{spoken} is saved for backward{at}, in {_place(call)}, and {op}{line} writes it "
            f"later in the same block: backward computes with the new values, and {_SILENT}."
        ),
        culprits=culprits,
        victims=sites.distinct([save, call]),
        fix=fix,
        notes=(
            "without the checkpoint torch raises here; of what a checkpoint recomputes it does not "
            "compare the versions",
        ),
    )


# --- state that the block reads, and that changed in between --------------------------------------


def _state_writes(what: Recomputed, data: Data) -> Iterator[Write]:
    """Writes that changed what the recompute started from: the block's own, then those since."""
    from gradext.recording.events import WRITES

    table = data.writes
    since = what.recompute.order
    forward = table[(table[:, WRITES.order] > what.forward.order)]
    before, within = (
        forward[forward[:, WRITES.order] <= since],
        forward[forward[:, WRITES.order] > since],
    )
    again = set(before[:, WRITES.storage].tolist()) & set(within[:, WRITES.storage].tolist())
    own = [data.write(row) for row in before if int(row[WRITES.storage]) in again]
    inner = {_inner(data.frames(w.stack)) for w in map(data.write, within)}
    own = [w for w in own if _inner(data.frames(w.stack)) in inner and not _is_count(w)]
    if own:
        yield from sorted(own, key=lambda write: write.order)
        return
    held = _held_by(what.function)
    for row in before:
        write = data.write(row)
        if (write.counter in held or write.storage in held) and not _is_count(write):
            yield write


def _is_run_by(data: Data, write: Write, forward: Pass) -> bool:
    """Whether the block itself wrote, in its forward or later."""
    stack = data.frames(write.stack)
    own = len(_inner(stack))
    call = [(frame.file, frame.line) for frame in data.frames(forward.stack) if frame.is_user]
    outer = [(frame.file, frame.line) for frame in stack[own:] if frame.is_user]
    return own < len(stack) and write.order > forward.order and outer == call


def _is_count(write: Write) -> bool:
    """`num_batches_tracked`, which nothing is computed from."""
    return write.end - write.begin == 8 and write.op.startswith("aten::add_")


def _inner(stack: Sequence[Frame]) -> tuple[tuple[str, int], ...]:
    """The user's lines within the block: below torch's frames that run it."""
    found = []
    for frame in stack:
        if frame.file.replace("\\", "/").endswith("torch/utils/checkpoint.py"):
            break
        found.append((frame.file, frame.line))
    return tuple(found)


def _held_by(function: Any) -> set[int]:
    """Counters and storages of the tensors that the checkpointed function reaches."""
    from gradext.objects import naming

    found: set[int] = set()
    pending: list[Any] = [function]
    seen: set[int] = set()
    while pending and len(seen) < 256:
        thing = pending.pop()
        if thing is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        pending += _parts(thing)
        for _, root in naming.modules_in([("", thing)], depth=2):
            for _, module in naming.submodules(root):
                for _, tensor in naming.tensors_in(_own_of(module), depth=1):
                    _add(found, tensor)
        for _, tensor in naming.tensors_in([("", thing)], depth=2):
            _add(found, tensor)
    return found


def _add(found: set[int], tensor: Any) -> None:
    from gradext.objects import naming

    who = naming.identity_of(tensor)
    if who is not None:
        found |= {who.counter, who.storage} - {0}


def _parts(thing: Any) -> list[Any]:
    """What a function works with: the object it is bound to, its closure, its globals."""
    import functools
    import types

    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if type(thing) is not types.FunctionType:
        return []
    parts = []
    for cell in thing.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:
            continue
    space = thing.__globals__
    if package.is_user_file(thing.__code__.co_filename) and type(space) is dict:
        for name in thing.__code__.co_names:
            value = space.get(name)
            if not isinstance(value, (type, types.ModuleType)):
                parts.append(value)
    return parts


def _own_of(module: Any) -> list[tuple[str, Any]]:
    """The parameters, buffers and attributes of a module."""
    from gradext.objects import naming

    groups = [naming.group_of(module, group) for group in ("_parameters", "_buffers")]
    held = naming.items_in(raw.dict_of(module))
    return [*groups[0], *groups[1], *(pair for pair in held if not pair[0].startswith("_"))]


def _state(
    what: Recomputed,
    told: dict[str, Any],
    writes: Sequence[Write],
    data: Data,
    names: Names,
    call: Site | None,
) -> Diagnosis:
    """A buffer, a codebook, a weight: the recompute read it as it was after the forward."""
    first = writes[0]
    state = names.of(0, first.counter) or _written_name(data, writes)
    saved_name, _ = _spoken(saved_of(told["saved"], "saved"), names, None)
    culprits = saved_tensors.culprits(
        data, [w for w in writes if w.counter == first.counter], state
    )
    save = _save_of(told, data, saved_name)
    at = sites.where(save.frame) if save is not None else "a line of it"
    line = sites.where(culprits[0].frame) if culprits else "a line"
    which = f"`{state}`" if state else "what it reads"
    in_block = _is_run_by(data, first, what.forward) or any(
        w.order > what.recompute.order for w in data.writes_of_storage(first.storage)
    )
    if in_block:
        how = (
            f"the block writes {which} each time that it runs ({line}), so its recompute in "
            "backward starts from what the forward had left"
        )
        fix = (
            f"take the update of {which} ({line}) out of what the checkpoint runs, and make it "
            "after backward(); or call the block without the checkpoint"
        )
    else:
        how = f"{which} was written ({line}) after the forward and before backward() recomputed it"
        fix = f"make that write ({line}) after backward(), or run the forward ({at}) again after it"
        if culprits and optimizer_step.is_optimizer_step(culprits[0]):
            fix = saved_tensors.later_step(culprits[0], (save,) if save else (), first)
    seen = told["is_compared"]
    differ = f"what {at} saves for backward is then not what it was"
    return Diagnosis(
        code="GX406",
        severity="error" if seen else "warning",
        message=(
            f"{_place(call)[0].upper()}{_place(call)[1:]} recomputes something else than its "
            f"forward: {how}. {differ[0].upper()}{differ[1:]}"
            + (f", and {_SILENT}." if seen else ", if the write changed it.")
        ),
        culprits=culprits,
        victims=sites.distinct([save, call]),
        fix=fix,
        notes=() if seen else ("versions differ; with --guard the values are compared as well",),
    )


# --- random numbers, and what is not known --------------------------------------------------------


def _is_random(told: dict[str, Any], data: Data) -> bool:
    place = sites.site(data.frames(told["stack"]))
    if place is None:
        return False
    words = [place.frame.code, *(frame.function for frame in place.stack)]
    return any(_RANDOM.search(word) for word in words)


def _random(told: dict[str, Any], data: Data, names: Names, call: Site | None) -> Diagnosis:
    name, spoken = _spoken(saved_of(told["saved"], "saved"), names, None)
    save = _save_of(told, data, name)
    at = f" at {sites.where(save.frame)}" if save is not None else ""
    where = f" at {sites.where(call.frame)}" if call is not None else ""
    label = "draws other random numbers in the recompute"
    if save is not None:
        drawn = next((f.function for f in save.stack if _RANDOM.search(f.function)), "")
        save = dataclasses.replace(save, label=f"{drawn.rsplit('.', 1)[-1]} {label}".strip())
    if call is not None:
        call = dataclasses.replace(call, label="leaves the random state as it is for the recompute")
    return Diagnosis(
        code="GX406",
        message=(
            f"{spoken}, saved for backward{at}, has other values in the recompute of "
            f"{_place(call)} than in its forward: with preserve_rng_state=False it draws other "
            f"random numbers, and {_SILENT}."
        ),
        culprits=sites.distinct([call]),
        victims=sites.distinct([save]),
        fix=f"take preserve_rng_state=False out of the call of checkpoint{where}",
    )


def _packed(data: Data, *runs: Pass) -> list[Frame]:
    stacks = dict.fromkeys(stack for ran in runs for stack, _ in ran.packs)
    return block_state.lines_within(data.frames(stack) for stack in stacks)


def _unexplained(
    what: Recomputed, told: dict[str, Any], data: Data, names: Names, call: Site | None
) -> Diagnosis:
    name, spoken = _spoken(saved_of(told["saved"], "saved"), names, None)
    save = _save_of(told, data, name)
    at = f" at {sites.where(save.frame)}" if save is not None else ""
    state = block_state.changed_by(_packed(data, what.forward), (save,))
    if state is not None:
        return Diagnosis(
            code="GX406",
            severity="error" if told["is_compared"] else "warning",
            message=(
                f"{spoken}, saved for backward{at}, has other values in the recompute of "
                f"{_place(call)} than in its forward: {block_state.sentence(state)}. Backward uses "
                f"those of the recompute, and {_SILENT}."
            ),
            culprits=sites.distinct([state.site, save]),
            victims=sites.distinct([call]),
            fix=block_state.advice(state),
            notes=(block_state.READ_IN_SOURCE,),
        )
    return Diagnosis(
        code="GX406",
        severity="error" if told["is_compared"] else "warning",
        message=(
            f"{spoken}, saved for backward{at}, has other values in the recompute of "
            f"{_place(call)} than in its forward; it is the first that differs. Backward uses "
            f"those of the recompute, and {_SILENT}."
        ),
        culprits=sites.distinct([save]),
        victims=sites.distinct([call]),
        fix=(
            "hand what the block depends on and what changes in between to the checkpointed "
            "function as an argument; draw random numbers (`random`, numpy, a torch.Generator) "
            "before the call of checkpoint"
        ),
        notes=(
            "no op is known to have written what the block reads: a numpy array, running "
            "statistics of a batch norm, a Python variable, a random generator of its own",
        ),
    )


# --- what torch refuses -------------------------------------------------------------------------


def finding_of(error: BaseException, text: str) -> Finding | None:
    """The finding of torch's own error, not explained yet; None where nothing was noted."""
    noted = _notes_in(error)
    return None if noted is None else checkpoints.refused_finding(noted, text)


def refused(error: BaseException, data: Data | None) -> list[Diagnosis]:
    """torch's own error: the first op that the recompute did differently, in both runs."""
    noted = _notes_in(error)
    if noted is None or data is None:
        return []
    forward, recompute = noted.forward, noted.recompute
    call = _call_of(data, forward)
    position, then, now = _metadata(raw.message(error))
    counts = len(forward.packs), len(recompute.packs)
    notes: list[str] = []
    one: Site | None = None
    other: Site | None = None
    ran = _first_difference(data, forward, recompute)
    if ran is not None:
        one, other = ran
        if position is not None:
            notes.append(f"the first saved tensor that differs is {then}, then {now}")
    elif position is not None and position < min(counts):
        one, other = (_saving(data, ran.packs[position][0]) for ran in (forward, recompute))
    elif counts[0] != counts[1]:
        at = min(counts)
        one = _saving(data, forward.packs[at][0]) if at < counts[0] else None
        other = _saving(data, recompute.packs[at][0]) if at < counts[1] else None
    if ran is None and counts[0] != counts[1]:
        more = "more" if counts[1] > counts[0] else f"{counts[1]}"
        notes.append(f"the forward saved {counts[0]} tensors, the recompute {more}")
    text, fix = _refused_text(one, other, call, then, now), _refused_fix(then, now, one, other)
    state = block_state.changed_by(_packed(data, forward, recompute), (one, other))
    mode = block_state.mode_between(one, other)
    if mode is not None:
        text += (
            f" `self.training` ({sites.where(mode.frame)}) was another one: train() or eval() was "
            "called between the forward and backward()."
        )
        fix = "call train() and eval() before the forward or after backward(), not between them"
    elif state is not None:
        text += f" The block itself changes `{state.name}`, which it reads."
        fix = block_state.advice(state)
    changes = mode if mode is not None else state.site if state is not None else None
    found = [_labelled(one, other), _labelled(other, one, again=True)]
    return [
        Diagnosis(
            code="GX406",
            message=text,
            culprits=sites.distinct([*found, changes]),
            victims=sites.distinct([call]),
            fix=fix,
            notes=tuple(notes),
        )
    ]


def _labelled(site: Site | None, twin: Site | None, *, again: bool = False) -> Site | None:
    if site is None:
        return None
    run = "the recompute" if again else "the forward"
    label = f"{run} goes on here" if twin is not None else f"only {run} runs this"
    if twin is not None and sites.line_of(site) == sites.line_of(twin):
        label = "gives something else in the recompute"
    return dataclasses.replace(site, label=label, stack=())


def _refused_text(
    one: Site | None, other: Site | None, call: Site | None, then: str, now: str
) -> str:
    start = f"{_place(call)[0].upper()}{_place(call)[1:]} recomputed something else"
    if one is not None and other is not None:
        if sites.line_of(one) == sites.line_of(other):
            what = f"{then} in the forward and {now} in the recompute" if then else "another value"
            return f"{start}: what {sites.where(one.frame)} saves is {what}."
        return (
            f"{start}: where the forward ran {sites.where(one.frame)}, the recompute ran "
            f"{sites.where(other.frame)}."
        )
    if one is not None:
        return f"{start}: the forward ran {sites.where(one.frame)}, and the recompute did not."
    if other is not None:
        return f"{start}: the recompute ran {sites.where(other.frame)}, and the forward did not."
    return f"{start} than its forward did."


def _refused_fix(then: str, now: str, one: Site | None, other: Site | None) -> str:
    if then and now and then.split(" ")[0] != now.split(" ")[0]:
        return (
            "enter autocast around the call of checkpoint, which puts it back for the recompute, "
            "not within the block by what changes in between"
        )
    at = f" at {sites.where(one.frame)}" if one is not None else ""
    at = f" at {sites.where(other.frame)}" if not at and other is not None else at
    return (
        f"decide before the call of checkpoint what the block depends on{at} (a counter, a flag, a "
        "cache), and hand it in as an argument"
    )


def _notes_in(error: BaseException) -> checkpoints.Notes | None:
    """The notes of the checkpoint whose recompute failed, by way of a variable of torch's hook."""
    from gradext.base import errors
    from gradext.objects import naming
    from gradext.source import live_frames

    for at in errors.chain(error):
        for frame in live_frames.frames_of_error(at):
            if frame.f_code.co_name == "unpack_hook":
                notes = checkpoints.notes_of(dict(naming.locals_of(frame)).get("frame"))
                if notes is not None:
                    return notes
    return None


_POSITION = re.compile(
    r"tensor at position (?P<at>\d+):\s*saved metadata: (?P<then>.*)\s*"
    r"recomputed metadata: (?P<now>.*)"
)
_SHAPE, _DTYPE = re.compile(r"torch\.Size\((\[[^]]*\])\)"), re.compile(r"torch\.(\w+)[,}]")


def _metadata(text: str) -> tuple[int | None, str, str]:
    found = _POSITION.search(text)
    if found is None:
        return None, "", ""
    return int(found["at"]), _kind(found["then"]), _kind(found["now"])


def _kind(metadata: str) -> str:
    shape, dtype = _SHAPE.search(metadata), _DTYPE.search(metadata)
    if shape is None or dtype is None:
        return metadata.strip()
    return f"{dtype[1]} {shape[1]}"


def _first_difference(
    data: Data, forward: Pass, recompute: Pass
) -> tuple[Site | None, Site | None] | None:
    """The first op that made a node in one run and not, or on another line, in the other."""
    one, other = _ops(data, forward), _ops(data, recompute)
    if not one or not other:
        return None
    for (lines, stack), (other_lines, other_stack) in zip(one, other, strict=False):
        if lines != other_lines:
            return sites.site(data.frames(stack)), sites.site(data.frames(other_stack))
    if len(one) == len(other):
        return None
    if len(one) > len(other):
        return sites.site(data.frames(one[len(other)][1])), None
    return None, sites.site(data.frames(other[len(one)][1]))


def _ops(data: Data, ran: Pass) -> list[tuple[tuple[tuple[str, int], ...], int]]:
    """(lines within the block, stack) of each run of ops on one line, until the last pack."""
    if not ran.packs:
        return []
    last = ran.packs[-1][1]
    rows = data.saves[data.saves[:, SAVES.thread] == ran.thread]
    sequence = rows[:, SAVES.sequence]
    rows = rows[(sequence >= ran.sequence) & (sequence <= last)]
    found: list[tuple[tuple[tuple[str, int], ...], int]] = []
    for row in rows:
        stack = int(row[SAVES.stack])
        frames = data.frames(stack)
        if not any(f.file.replace("\\", "/").endswith("utils/checkpoint.py") for f in frames):
            continue
        lines = _inner(frames)
        if lines and (not found or found[-1][0] != lines):
            found.append((lines, stack))
    return found
