"""GX102 to GX106: an in-place write that torch refused because of what the tensor is.

The culprit is the write; the victim is the line that made the view. Most such writes raise, and
what was known of the tensor then is in the recording's Refused event. A write to the base, or under
no_grad, goes through, and the next use of a view raises: then the write is looked for in the
journal. Without a recording the traceback answers. Keeps no tensor and no frame.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import op_names, raw
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.rules.wording import leaf_sites, module_hooks, refused_writes
from gradext.rules.wording.lost_events import lost
from gradext.source import bindings, sites

if TYPE_CHECKING:
    from gradext.recording.events import Refused, View
    from gradext.recording.tables import Data

# The texts of check_inplace and handle_view_on_rebase in torch/csrc/autograd.
_CODES = (
    ("GX103", re.compile(r"view of a leaf Variable that requires grad is being used in an in-pl")),
    ("GX102", re.compile(r"leaf Variable that requires grad (?:is being|has been) used in an in-")),
    ("GX105", re.compile(r"output of a function that returns multiple views")),
    ("GX106", re.compile(r"view was created inside a custom Function")),
    (
        "GX104",
        re.compile(r"view (?:which )?was created in (?:the )?(?:no_grad|inference)[ _]mode"),
    ),
)
# Two refusals that do not say whether the tensor is a leaf; the Refused event does.
_OTHER = re.compile(
    r"functions with out=\.\.\. arguments don't support automatic differentiation"
    r"|cannot resize variables that require grad"
)
ANY = re.compile("|".join(pattern.pattern for _, pattern in _CODES) + "|" + _OTHER.pattern)
# The write has been done already, and the tensor is used afterwards.
_INDIRECT = re.compile(r"its base or another view of its base has been modified")


def is_indirect(text: str) -> bool:
    """Whether the write has gone through, and a use of a view after it was refused."""
    return _INDIRECT.search(text) is not None


def refused_write(error: BaseException, data: Data | None = None) -> list[Diagnosis]:
    """The diagnosis of a refused in-place write, from the error's text, trace and recording."""
    text = raw.message(error)
    code = next((code for code, pattern in _CODES if pattern.search(text)), None)
    if not issubclass(type(error), RuntimeError) or (code is None and not _OTHER.search(text)):
        return []
    from gradext.source import frames

    trace = frames.frames_of_traceback(error.__traceback__)
    indirect = bool(_INDIRECT.search(text))
    event = _event(text, data, trace, strict=indirect)
    if code is None:
        if event is None or not (event.is_leaf and event.requires_grad):
            return []
        code = "GX102"
    if indirect:
        return _used_afterwards(error, code, text, data, trace)
    seen = _seen_in(event) if event is not None else None
    stack = (data.frames(event.stack) if event is not None and data is not None else ()) or trace
    op = event.op if event is not None else None
    culprit = sites.site(stack, op=op)
    if culprit is None:
        return []
    name = bindings.written_name(culprit) if not culprit.stack else None
    part = bindings.written_part(culprit) if not culprit.stack else None
    leaf, made = _leaf_of(code, event, error, data)
    hooked = refused_writes.is_of_hook(seen)
    label = refused_writes.label(code, op, name, part, leaf, hooked=hooked)
    culprit = dataclasses.replace(culprit, label=label)
    culprits: tuple[Site, ...] = (culprit,)
    if event is None and data is not None and "has been used in an in-place" in text:
        culprits = _written_in_function(data, culprit) or culprits
    victims = _victims(code, seen, data, culprit)
    if hooked:
        victims = sites.distinct([*victims[:2], module_hooks.registered(culprit)])
    if made is not None and sites.line_of(made) != sites.line_of(culprits[0]):
        victims = (*victims[:2], made)
    return [
        Diagnosis(
            code=code,
            message=refused_writes.message(code, culprits[0], text, leaf, victims, hooked=hooked),
            culprits=culprits,
            victims=victims,
            fix=refused_writes.fix(code, culprit, victims, text, seen),
            notes=refused_writes.notes(code, seen, data, victims),
        )
    ]


def _leaf_of(
    code: str, event: Refused | None, error: BaseException, data: Data | None
) -> tuple[str | None, Site | None]:
    """The name of the leaf that was to be written, and the line that made it."""
    from gradext.objects import naming
    from gradext.source import live_frames

    if event is None or code not in {"GX102", "GX103"}:
        return None, None
    leaf = event.base if code == "GX103" else event.tensor
    live = [*live_frames.frames_of_error(error), *live_frames.frames_above()]
    names = naming.Names(live)
    # A `p` that a loop goes over says less than the module's own name for it.
    way = names.way_to(leaf)
    name = names.of(leaf)
    if way and name is not None and "." not in name:
        name = names.of_module(leaf) or name
    return name, leaf_sites.made(leaf, names, data, live, name)


def _event(text: str, data: Data | None, trace: Sequence[Frame], strict: bool) -> Refused | None:
    """The latest refusal with this text, of this traceback if there is one."""
    if data is None:
        return None
    wanted = text.strip()
    places = {(frame.file, frame.line) for frame in trace}
    latest = None
    for event in reversed(data.refused):
        what = event.what.strip()
        if not what or not (what in wanted or wanted in what):
            continue
        if any((frame.file, frame.line) in places for frame in data.frames(event.stack)):
            return event
        latest = latest or event
    return None if strict else latest


def _seen_in(event: Refused) -> refused_writes.Seen:
    return refused_writes.Seen(
        order=event.order,
        storage=event.storage,
        begin=event.begin,
        end=event.end,
        tensor=event.tensor,
        chain=event.chain,
        base_is_leaf=event.base_is_leaf,
    )


def _written_in_function(data: Data, call: Site) -> tuple[Site, ...]:
    """A leaf handed to mark_dirty: torch raises at apply(), after the write within forward()."""
    for row in data.writes[::-1]:
        note = data.write(row)
        if not note.is_note or not note.op.endswith("mark_dirty"):
            continue
        frames = data.frames(note.stack)
        if sites.line_of(call) not in {(frame.file, frame.line) for frame in frames}:
            return ()
        writes = [
            write
            for write in data.writes_of_counter(note.counter)
            if not write.is_note
            and sites.line_of(call) in {(f.file, f.line) for f in data.frames(write.stack)}
        ]
        label = "writes the leaf inside the Function"
        found = [sites.site(data.frames(w.stack), op=w.op, label=label) for w in writes[-1:]]
        marks = sites.site(frames, label="says that the Function writes the leaf")
        apply = dataclasses.replace(call, label="hands the leaf to the Function")
        return sites.distinct([*found, marks, apply])
    return ()


def _used_afterwards(
    error: BaseException, code: str, text: str, data: Data | None, trace: Sequence[Frame]
) -> list[Diagnosis]:
    """The base, or another view of it, was written; this use of a view raised."""
    use = sites.site(trace, label="uses the view, and raises")
    if use is None:
        return []
    culprits: tuple[Site, ...] = ()
    victims: tuple[Site, ...] = ()
    seen = None
    if data is not None:
        found = _live_view(error, code, use.frame)
        seen = _seen_of(*found) if found is not None else None
        del found
        culprits, seen = _writes_before(code, seen, data)
        if culprits:
            victims = _victims(code, seen, data, culprits[0])
    notes = ["the write itself went through; torch raises when a view is used after it"]
    if not culprits:
        culprits = (use,)
        missing = None if data is None else lost(data, "writes")
        notes.append(
            "no recording was on, so the line that wrote is not known; it comes before this one"
            if data is None
            else f"the line that wrote is not known, it comes before this one: {missing}"
            if missing
            else "the line that wrote was not recorded; it comes before this one"
        )
    else:
        victims = sites.distinct([*victims[:2], use])
    kind = _KINDS[code]
    mode = "inference_mode" if "inference" in text else "no_grad"
    op = op_names.short(culprits[0].op) if culprits[0].op else "A write"
    return [
        Diagnosis(
            code=code,
            message=(
                f"{op} wrote the memory that {kind.format(mode=mode)} shares; autograd cannot "
                "carry the write over to the view, and refuses to use it."
            ),
            culprits=culprits,
            victims=victims,
            fix=refused_writes.fix_afterwards(code, culprits, victims, use, mode),
            notes=tuple(notes),
        )
    ]


_KINDS = {
    "GX102": "a leaf",
    "GX103": "a view of a leaf",
    "GX104": "a view made under {mode}",
    "GX105": "one of several views that one call made",
    "GX106": "a view that an autograd.Function returned",
}
_METAS = {
    "GX104": ("no_grad_mode", "inference_mode"),
    "GX105": ("multi_output_node",),
    "GX106": ("in_custom_function",),
}


def view_used(error: BaseException) -> Any:
    """The view whose use raised after a write to its memory; None if no local variable holds it."""
    from gradext.source import frames

    text = raw.message(error)
    code = next((code for code, pattern in _CODES if pattern.search(text)), None)
    use = sites.user_frame(frames.frames_of_traceback(error.__traceback__))
    if code is None or use is None:
        return None
    found = _live_view(error, code, use)
    return found[0] if found is not None else None


def _live_view(error: BaseException, code: str, use: Frame) -> tuple[Any, Any] | None:
    """The view whose use raised, and its facts, if a local variable holds it."""
    from gradext.objects import naming

    wanted = _METAS.get(code, ())
    words = set(re.findall(r"\w+", use.code))
    best: tuple[bool, tuple[Any, Any]] | None = None
    traceback = error.__traceback__
    live = []
    while traceback is not None:
        live.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(live):
        for path, tensor in naming.tensors_in(naming.locals_of(frame), depth=2):
            who = naming.identity_of(tensor)
            facts = naming.facts_of(tensor) if who is not None and who.is_view else None
            if facts is None or facts.creation_meta not in wanted or facts.storage is None:
                continue
            if not facts.grad_fn_is_stale:
                continue
            mentioned = re.split(r"\W", path)[0] in words
            if best is None or (mentioned and not best[0]):
                best = (mentioned, (tensor, facts))
    return best[1] if best is not None else None


def _seen_of(tensor: Any, facts: Any) -> refused_writes.Seen:
    from gradext.native import _C
    from gradext.recording.overlap import extent

    chain: list[tuple[str, int, int]] = []
    rows, _ = _C.graph([tensor], 64)
    at = 0 if rows else -1
    while at >= 0 and len(chain) < 16:
        _, name, thread, sequence, following, _ = rows[at]
        chain.append((name, thread, -1 if sequence is None else sequence))
        at = following[0] if following else -1
    begin, end = extent(tensor)
    return refused_writes.Seen(
        order=1 << 62,
        storage=facts.storage,
        begin=begin,
        end=end,
        tensor=facts.id,
        chain=tuple(chain),
        base_is_leaf=False,
    )


def _writes_before(
    code: str, seen: refused_writes.Seen | None, data: Data
) -> tuple[tuple[Site, ...], refused_writes.Seen | None]:
    """Lines that wrote the memory after the view was made, the first one first."""
    wanted = _METAS.get(code, ())
    if code == "GX106":
        wanted = ("in_custom_function", "no_grad_mode")  # forward() runs under no_grad
    views = [data.view(row) for row in data.views]
    views = [view for view in views if view.creation_meta in wanted]
    if seen is not None:
        views = [view for view in views if view.storage == seen.storage] or [_as_view(seen)]
        views = [view for view in views if view.tensor == seen.tensor] or views
    for view in reversed(views):
        writes = [w for w in data.writes_of_storage(view.storage) if w.order > view.order]
        writes = [w for w in writes if w.version_after > w.version_before]
        if not writes:
            continue
        found = []
        for write in writes:
            label = f"{op_names.short(write.op)} writes the memory of the view"
            if write.version_after > write.version_before:
                label += f": version {write.version_before} -> {write.version_after}"
            found.append(
                sites.site(
                    data.frames(write.stack),
                    op=write.op,
                    version_before=write.version_before,
                    version_after=write.version_after,
                    label=label,
                )
            )
        if seen is None:
            seen = refused_writes.Seen(
                1 << 62, view.storage, view.begin, view.end, view.tensor, (), False
            )
        return sites.distinct(found), seen
    return (), seen


def _as_view(seen: refused_writes.Seen) -> View:
    """A view that the journal does not have (made before it began): everything came after."""
    from gradext.recording.events import View

    return View(-1, "", seen.storage, seen.begin, seen.end, seen.tensor, 0, 0, 0, "default")


def _victims(
    code: str, event: refused_writes.Seen | None, data: Data | None, culprit: Site
) -> tuple[Site, ...]:
    """Lines that made the view, the nearest that is not the culprit's own line first."""
    if event is None or data is None or code == "GX102":
        return ()
    found: list[Site | None] = []
    if code in {"GX104", "GX105"}:
        wanted = {"no_grad_mode", "inference_mode"} if code == "GX104" else {"multi_output_node"}
        views = [
            view
            for view in data.views_of_storage(event.storage)
            if view.order < event.order
            and view.creation_meta in wanted
            and view.begin <= event.begin
            and event.end <= view.end
        ]
        # The very object first, then the tightest around it, then the latest.
        views.sort(key=lambda v: (v.tensor != event.tensor, v.end - v.begin, -v.order))
        for view in views:
            made = sites.site(data.frames(view.stack), op=view.op)
            found.append(refused_writes.view_made(made, op_names.short(view.op)))
    for name, thread, sequence in event.chain:
        if sequence < 0 or name.endswith("AccumulateGrad"):
            continue
        if code == "GX106" and not _is_function(name):
            continue
        # A custom Function may return several views of its input: then its call made this one.
        returned = code == "GX105" and _is_function(name) and not any(found)
        if code != "GX106" and not _is_view_node(name) and not returned:
            break  # this one made the memory that is viewed
        stack, _ = data.node_stack(thread, sequence)
        found.append(refused_writes.view_made(sites.site(data.frames(stack)), _op_name(name)))
    if code in {"GX105", "GX106"} and not any(found):
        found += _views_in_function(event, data)
    here = sites.line_of(culprit)
    places = list(sites.distinct(found, 8))
    places.sort(key=lambda place: sites.line_of(place) == here)
    return tuple(places[:3])


def _views_in_function(event: refused_writes.Seen, data: Data) -> list[Site | None]:
    """Where nothing required grad there is no node: the call, and the line within forward()."""
    for view in reversed(data.views_of_storage(event.storage)):
        if view.order > event.order or view.creation_meta != "no_grad_mode":
            continue
        made = sites.site(
            data.frames(view.stack),
            op=view.op,
            label=f"{op_names.short(view.op)} views it",
        )
        if made is not None and made.frame.function.rsplit(".", 1)[-1] == "forward":
            call = made.callers[0] if made.callers else None
            label = "the Function returns the view"
            return [Site(frame=call, label=label) if call is not None else None, made]
    return []


_VIEW_NODES = re.compile(
    r"(View|AsStrided|Select|Slice|Split|SplitWithSizes|Unbind|Chunk|Transpose|T|Permute|Squeeze"
    r"|Unsqueeze|Expand|Diagonal|Alias|Unfold|Narrow|Reshape|UnsafeView|Detach|Real|Imag|MoveDim"
    r"|TensorSplit|Flatten|Movedim|ViewAsReal|ViewAsComplex|Values|Indices|CopySlices"
    r"|UnsafeSplit|UnsafeSplitWithSizes|UnsafeChunk|NestedView\w*|LiftFresh|Conj|NegView"
    r"|Mt|Mh|Adjoint|Swapaxes|Swapdims|HSplit|VSplit|DSplit|ExpandAs|ViewAs)"
    r"(Aliases)?(Backward\w*)?$"
)


def _is_view_node(name: str) -> bool:
    return bool(_VIEW_NODES.match(op_names.short(name)))


def _is_function(name: str) -> bool:
    """A user's autograd.Function: its node is named after the class, without a number."""
    short = op_names.short(name)
    return short.endswith("Backward") and not _VIEW_NODES.match(short)


def _op_name(name: str) -> str:
    short = op_names.short(name)
    return re.sub(r"Backward\d*$", "", short)
