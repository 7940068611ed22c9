"""GX101: a saved tensor was written before backward used it, and torch's version check saw it.

The rule works from a copy of the graph (evidence) and a recording's data; it touches no tensor.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import op_names, raw
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.recording.events import WRITES
from gradext.rules.graph_copy import Graph, Node, Saved
from gradext.rules.rewrite import in_place, saver_copy, stale_saved
from gradext.rules.wording import checkpoint_inputs, compiled, other_threads, saved_tensors
from gradext.rules.wording.lost_events import forgotten, lost
from gradext.source import bindings, sites

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Write
    from gradext.recording.tables import Data

PATTERN = re.compile(
    r"one of the variables needed for gradient computation has been modified by an inplace"
    r"|Trying to use a saved tensor that has been detached in-place"
)
_DETACHED = re.compile(r"saved tensor that has been detached in-place")
_DETAIL = re.compile(
    r"\[(?P<type>[\w.]+) \[(?P<sizes>[\d, ]*)\]\]"
    r"(?:, which is output (?P<output>\d+) of (?P<node>[\w:]+),)?"
    r" is at version (?P<version>\d+); expected version (?P<saved>\d+)"
)


def stale(
    error: BaseException,
    data: Data | None,
    graph: Graph | None = None,
    names: Names | None = None,
) -> list[Diagnosis]:
    """GX101 for the saved tensor that the engine tripped over, then for the other stale ones."""
    text = raw.message(error)
    if not PATTERN.search(text):
        return []
    wanted = _DETAIL.search(text)
    if data is None:
        return [_from_text(error, text)]
    if _DETACHED.search(text):
        return [_detached(error, data, graph, names)]
    pairs = graph.stale() if graph is not None else []
    first = _failing(pairs, wanted)
    if first is None or graph is None or names is None:
        return [_from_text(error, text, data, _by_versions(data, wanted), graph is None)]
    pairs.remove(first)
    return all_stale(graph, [first, *pairs], data, names, failed=True)


def all_stale(
    graph: Graph, pairs: Sequence[tuple[Node, Saved]], data: Data, names: Names, *, failed: bool
) -> list[Diagnosis]:
    """One diagnosis for the saved tensors of the same lines. `failed`: backward has raised."""
    diagnoses: dict[tuple[Any, ...], tuple[Diagnosis, _Fix]] = {}
    counts: dict[tuple[Any, ...], int] = {}
    whole = len(pairs) <= saved_tensors.MOST_PAIRS
    for node, saved in pairs[: saved_tensors.MOST_PAIRS]:
        diagnosis, fix = _stale_one(graph, node, saved, data, names, failed)
        key = diagnosis.key()
        if key not in diagnoses and len(diagnoses) >= saved_tensors.MOST_DIAGNOSES:
            whole = False
            continue
        counts[key] = counts.get(key, 0) + 1
        diagnoses.setdefault(key, (diagnosis, fix))
    mended = []
    for key, (diagnosis, fix) in diagnoses.items():
        by = _write_of(diagnosis)
        savers = [d.victims[0] for d, _ in diagnoses.values() if d.victims and _write_of(d) == by]
        # Looking for what mends it may mean a look at all objects.
        mended.append((dataclasses.replace(diagnosis, fix=fix(savers)), counts[key]))
    return _by_write(mended, whole)


_Fix = Callable[[Sequence[Site]], str]


def _write_of(diagnosis: Diagnosis) -> tuple[tuple[str, int], ...] | None:
    first = diagnosis.culprits[0] if diagnosis.culprits else None
    return sites.path_of((first.frame, *first.callers)) if first is not None else None


def _by_write(found: Sequence[tuple[Diagnosis, int]], whole: bool) -> list[Diagnosis]:
    """One diagnosis for what one write has spoilt: other lines that saved are victims too.

    Args:
        whole: every stale tensor was counted.
    """
    groups: dict[tuple[Any, ...], list[tuple[Diagnosis, int]]] = {}
    for number, (diagnosis, count) in enumerate(found):
        key: tuple[Any, ...] = _write_of(diagnosis) or (number,)  # of an unknown write: alone
        groups.setdefault(key, []).append((diagnosis, count))
    told = []
    for (first_one, count), *others in groups.values():
        victims = (v for d, _ in others for v in d.victims)
        fixes = [first_one.fix]
        for other, _ in others:
            if saver_copy.is_of_line(other.fix) and other.fix not in fixes:
                fixes.append(other.fix)
        merged = dataclasses.replace(
            first_one,
            victims=sites.distinct((*first_one.victims, *victims)),
            fix=", and ".join(fixes[:3]),
        )
        savers = [d.victims[0] for d in (first_one, *(d for d, _ in others)) if d.victims]
        total = count + sum(number for _, number in others)
        told.append(saved_tensors.with_count(merged, total, savers, whole))
    return told


def _failing(
    pairs: Sequence[tuple[Node, Saved]], wanted: re.Match[str] | None
) -> tuple[Node, Saved] | None:
    """The stale tensor that the message describes; the first that the engine meets if several."""
    if wanted is None:
        return pairs[0] if pairs else None
    sizes = tuple(int(n) for n in re.findall(r"\d+", wanted["sizes"]))
    version, saved_version = int(wanted["version"]), int(wanted["saved"])
    fitting = [
        pair
        for pair in pairs
        if pair[1].version == version and pair[1].saved_version == saved_version
    ]
    exact = [pair for pair in fitting if pair[1].sizes == sizes]
    chosen = exact or fitting
    return chosen[0] if chosen else None


def _blame(data: Data, saved: Saved) -> stale_saved.Blame:
    from gradext.recording import overlap

    writes = [
        write
        for write in data.writes_of_counter(saved.counter, saved.saved_version)
        if not write.is_note
    ]
    touched = [
        overlap.overlap(write, saved.offset, saved.itemsize, saved.sizes, saved.strides)
        if saved.is_strided and write.storage == saved.storage
        else None
        for write in writes
    ]
    gap = None
    before = after = None
    at = saved.saved_version
    known = data.writes_of_counter(saved.counter)
    for write in writes:
        if write.version_before > at and gap is None:
            gap, after = (at, write.version_before), write
            earlier = [w for w in known if w.order < write.order and not w.is_note]
            before = earlier[-1] if earlier else None
        at = max(at, write.version_after)
    if gap is None and saved.version is not None and at < saved.version:
        gap = (at, saved.version)
        before = writes[-1] if writes else None
    note = None
    if gap is not None:
        notes = data.notes_of_counter(saved.counter, gap[0])
        note = next((n for n in notes if n.version_before < gap[1]), None)
    return stale_saved.Blame(writes, touched, gap, before, after, note)


def _is_all_of(write: Write, saved: Saved) -> bool:
    """Whether a write reached the bytes of what was saved, all of them and no others."""
    if not saved.is_strided or write.storage != saved.storage or write.geometry is not None:
        return False
    begin = saved.offset * saved.itemsize
    return (write.begin, write.end) == (begin, begin + math.prod(saved.sizes) * saved.itemsize)


def _stale_one(
    graph: Graph, node: Node, saved: Saved, data: Data, names: Names, failed: bool
) -> tuple[Diagnosis, _Fix]:
    """The diagnosis without its fix, and what makes that."""
    name, spoken = saved_tensors.tensor_text(saved, names)
    blame = _blame(data, saved)
    culprits = saved_tensors.culprits(data, blame.writes, name, blame.touched, blame.note)
    op_name = op_names.of_node(node.name)

    def saved_as(called: str | None) -> str:
        what = f"`{called}`" if called else "it"
        return f"{op_name} saves {what} for backward, at version {saved.saved_version}"

    victims = saved_tensors.victims_of(data, graph, node, saved_as(name))
    calls = victims
    if uses := node.uses.get(saved.attribute):
        victims = compiled.inside(victims, uses, f"{saved_as(name)}, for this")
    traced = None
    if node.trace:
        traced = compiled.written_while_tracing(node, saved, victims, op_name)
    if traced is not None:
        return traced
    if name is None:
        # Nothing that runs holds it any more: the lines that made it and wrote it have a name.
        result = saved_tensors.result_name(victims[0], op_name) if victims else None
        result = result if saved.is_output else None
        whole = bool(blame.writes) and _is_all_of(blame.writes[0], saved)
        written = bindings.written_name(culprits[0], whole=whole) if culprits else None
        if whole and written is not None and len(culprits) == 1:
            culprits = saved_tensors.culprits(data, blame.writes, written, blame.touched)
        if result is not None:
            named = dataclasses.replace(victims[0], label=saved_as(result))
            victims = (named, *victims[1:])
        if (called := result or written) is not None:
            part = bindings.written_part(culprits[0]) if result is None else None
            # What was saved may be another part of it than the line writes.
            spoken = saved_tensors.called(saved, called, is_part=part not in (None, called))
    message = (
        f"{spoken} was saved for backward by {node.name} at version {saved.saved_version}; "
        f"it has been written in place since and is now at version {saved.version}."
    )
    notes: list[str] = []
    window = None
    if blame.gap is not None and blame.note is None:
        text, window = _gap(data, blame, victims)
        notes.append(text)
        if blame.writes and culprits:
            window = None
    if blame.writes and all(touched is False for touched in blame.touched):
        notes.append(
            "none of these writes touched the bytes that were saved; torch checks by the version "
            "counter, which all views of one memory share, and refuses all the same"
        )
    if sum(touched is not False for touched in blame.touched) > 1 and len(culprits) > 1:
        notes.append(
            "each of the lines named here is enough to break this backward; mend all of them"
        )
    if saved.is_output:
        notes.append(f"{node.name} keeps its own result for its derivative")
    if blame.writes and not culprits:
        notes.append(forgotten("the lines of the writes"))
    if not victims:
        notes.append(_no_victims(data, node))
    other = other_threads.of(data, node, blame.writes)
    if other is not None:
        notes.append(other.note)
    diagnosis = Diagnosis(
        code="GX101",
        message=message,
        culprits=() if window else culprits,
        victims=victims,
        notes=tuple(notes),
        window=window,
    )

    def fix(savers: Sequence[Site]) -> str:
        # A copy made within a compiled function is traced away: it is made at the call.
        at = calls if node.uses else victims
        text = stale_saved.fix(graph, saved, data, blame, culprits, at, names, failed, savers)
        return text if other is None else f"{text}; {other.help}"

    return diagnosis, fix


def _no_victims(data: Data, node: Node) -> str:
    if node.sequence is not None:
        stack, _ = data.node_stack(node.thread, node.sequence)
        if stack and not data.frames(stack):
            return forgotten("the line that saved it")
    if missing := lost(data, "saves"):
        return f"the line that saved it is not known: {missing}"
    if not len(data.saves):
        return "the light mode records no saves, so the line that saved it is not known"
    return "the line that saved it was not recorded (its op ran before the recording began)"


def _gap(
    data: Data, blame: stale_saved.Blame, victims: tuple[Site, ...]
) -> tuple[str, tuple[Frame, Frame] | None]:
    assert blame.gap is not None
    first, last = blame.gap
    text = f"no recorded op explains the step from version {first} to {last}"
    if missing := lost(data, "writes"):
        return f"{text}: {missing}", None
    text += " (compiled code, a C++ extension or a thread that was not recorded)"
    start = sites.user_frame(data.frames(blame.before.stack)) if blame.before else None
    if start is None and victims:
        start = victims[0].frame
    end = sites.user_frame(data.frames(blame.after.stack)) if blame.after else None
    if end is None and data.backwards:
        end = sites.user_frame(data.frames(data.backwards[-1].stack))
    return text, (start, end) if start and end else None


def _by_versions(data: Data, wanted: re.Match[str] | None) -> list[Write]:
    """Writes that fit the message, where the graph does not show the tensor; the latest counter's.

    The message has the versions, the sizes and the type; a write of a part of the tensor has fewer
    bytes, never more versions.
    """
    if wanted is None:
        return []
    version, saved_version = int(wanted["version"]), int(wanted["saved"])
    table = data.writes
    fitting = table[
        (table[:, WRITES.version_after] == version)
        & (table[:, WRITES.version_before] >= saved_version)
    ]
    kind = wanted["type"].rsplit(".", 1)[-1]
    itemsize = _ITEMSIZE.get(kind.replace("CUDA", "").removesuffix("Type"))
    if itemsize is not None:
        size = itemsize
        for number in re.findall(r"\d+", wanted["sizes"]):
            size *= int(number)
        whole = fitting[fitting[:, WRITES.end] - fitting[:, WRITES.begin] == size]
        fitting = whole if len(whole) else fitting
    if not len(fitting):
        return []
    counter = int(fitting[fitting[:, WRITES.order].argmax(), WRITES.counter])
    writes = data.writes_of_counter(counter, saved_version)
    return [write for write in writes if not write.is_note and write.version_after <= version]


_ITEMSIZE = {
    "FloatTensor": 4, "DoubleTensor": 8, "HalfTensor": 2, "BFloat16Tensor": 2, "IntTensor": 4,
    "LongTensor": 8, "ShortTensor": 2, "CharTensor": 1, "ByteTensor": 1, "BoolTensor": 1,
    "ComplexFloatTensor": 8, "ComplexDoubleTensor": 16,
}  # fmt: skip


def _detached(
    error: BaseException, data: Data, graph: Graph | None, names: Names | None
) -> Diagnosis:
    """detach_() took the history off a tensor that a node had saved; no version moves."""
    from gradext.source import frames

    taken = data.writes_of_op("aten::detach_")
    found: tuple[Node | None, Saved | None, Write | None] = (None, None, None)
    counters = {write.counter for write in taken}
    for node in graph.saving(counters=counters) if graph else ():
        for saved in node.saved:
            later = [
                w
                for w in taken
                if w.counter == saved.counter
                and (w.thread != node.thread or w.sequence > (node.sequence or 0))
            ]
            if later and found[0] is None:
                found = (node, saved, later[0])
    maker, held, write = found
    if write is None and taken:
        write = taken[-1]
    name = names.of_saved(held)[0] if names is not None and held is not None else None
    spoken = f"`{name}`" if name else "A tensor"
    culprits: tuple[Site, ...] = ()
    victims: tuple[Site, ...] = ()
    if write is not None:
        label = f"detach_ takes the history off {saved_tensors.quoted(name)[:60] if name else 'it'}"
        culprits = sites.distinct([sites.site(data.frames(write.stack), op=write.op, label=label)])
    if maker is not None and graph is not None:
        victims = saved_tensors.victims_of(
            data, graph, maker, f"{op_names.of_node(maker.name)} saves it for backward"
        )
    if not victims:
        failed = sites.site(
            frames.frames_of_traceback(error.__traceback__), label="the backward that failed"
        )
        victims = (failed,) if failed else ()
    fix = "use `.detach()`, which makes a new tensor, instead of `.detach_()`"
    if culprits and "zero_grad" in culprits[0].frame.code:
        fix = "let zero_grad() drop the gradients: `zero_grad(set_to_none=True)`"
    elif culprits:
        fix = in_place.out_of_place(culprits[0]) or fix
    return Diagnosis(
        code="GX101",
        message=(
            f"{spoken} was saved for backward, and detach_() has taken its history off since: "
            "backward cannot go on from it."
        ),
        culprits=culprits,
        victims=victims,
        fix=fix,
    )


def _from_text(
    error: BaseException,
    text: str,
    data: Data | None = None,
    writes: Sequence[Write] = (),
    late: bool = False,
) -> Diagnosis:
    """GX101 without the graph: no recording, asked too late, or a Function written in C++."""
    from gradext.source import frames

    wanted = _DETAIL.search(text)
    message = "A tensor that was saved for backward has been written in place since."
    if wanted:
        message = (
            f"A [{wanted['sizes']}] tensor was saved for backward at version {wanted['saved']}; "
            f"it has been written in place since and is now at version {wanted['version']}."
        )
    trace = frames.frames_of_traceback(error.__traceback__)
    failed = sites.site(trace, label="the backward that failed")
    where = (failed,) if failed else ()
    if data is None:
        note = "no recording was on, so the line of the write is not known"
        fix = "run the script with `gradext run`, or put it under `with gradext.record():`"
        return Diagnosis("GX101", "error", message, (), where, fix, (note,))
    culprits = sites.distinct(saved_tensors.write_site(data, w, None) for w in writes)
    written = bindings.written_name(culprits[0]) if culprits else None
    given = checkpoint_inputs.of_error(error, data, written)
    if given is not None and wanted is not None:
        return _of_checkpoint(given, wanted, culprits, written)
    note = "the node that saved it shows nothing of what it saved (a C++ autograd Function)"
    if late:
        note = "the graph is not at hand any more: these writes fit the versions and the size"
    fix = (in_place.out_of_place(culprits[0]) if culprits else None) or (
        "clone() the tensor before it is written"
    )
    return Diagnosis("GX101", "error", message, culprits, where, fix, (note,))


def _of_checkpoint(
    given: checkpoint_inputs.Input,
    wanted: re.Match[str],
    culprits: tuple[Site, ...],
    written: str | None,
) -> Diagnosis:
    """An input of a checkpoint: backward needs it once more, as it was, to run the block again."""
    name = given.name or written
    spoken = f"`{name}` [{wanted['sizes']}]" if name else f"A [{wanted['sizes']}] tensor"
    call = given.call
    if call is not None:
        saves = f"saves its input{f' `{name}`' if name else 's'}, at version {wanted['saved']}"
        call = dataclasses.replace(call, label=f"checkpoint {saves}", stack=())
    at = f" at {sites.where(call.frame)}" if call is not None else ""
    copy = f"`{written}.clone()`" if written else "a clone() of it"
    return Diagnosis(
        code="GX101",
        message=(
            f"{spoken} was given to the checkpoint{at} at version {wanted['saved']}; it has been "
            f"written in place since and is now at version {wanted['version']}, so that backward "
            "cannot run the block again."
        ),
        culprits=culprits,
        victims=sites.distinct([given.use, call]),
        fix=(in_place.out_of_place(culprits[0]) if culprits else None)
        or f"give the checkpoint a copy{at}: {copy}; or write after backward()",
    )
