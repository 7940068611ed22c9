"""GX301: backward of a value that has no gradient, and where it lost it.

Works from the chain of births and flows behind the tensor (chains). Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import op_names, package, raw
from gradext.diagnosis.model import Diagnosis, Site
from gradext.recording import events
from gradext.recording.events import FLAGS, Birth, Flow
from gradext.rules.wording import chains, other_threads
from gradext.rules.wording.cuts import Cut, best, describe, fix
from gradext.rules.wording.lost_events import lost
from gradext.rules.wording.lost_gradients import listed, names_lost
from gradext.rules.wording.owners import Owners
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data
    from gradext.rules.wording.chains import Chain

ROOT = re.compile(r"element (?P<index>\d+) of tensors does not require grad and does not have a gr")
INPUT = re.compile(r"One of the differentiated Tensors does not require grad")
ANY = re.compile(f"{ROOT.pattern}|{INPUT.pattern}")


def no_gradient(error: BaseException, data: Data | None, outputs: Any = None) -> list[Diagnosis]:
    """GX301: backward of a tensor without history. Where it was cut, or that it never had one."""
    text = raw.message(error)
    wanted = ROOT.search(text)
    if not issubclass(type(error), RuntimeError) or (wanted is None and not INPUT.search(text)):
        return []
    from gradext.source import frames, live_frames

    stack = frames.frames_of_traceback(error.__traceback__)
    live = _live_frames(error)
    if not any(frame.is_user for frame in stack):
        stack = (
            frames.stack_of([(f.f_code, f.f_lasti) for f in live_frames.frames_above()]) or stack
        )

    asks = sites.site(stack, label="backward() finds no gradient to compute")
    index = int(wanted["index"]) if wanted else None
    roots = _roots(live, outputs, index)
    if data is None:
        return [_without_recording(asks)]
    names = Owners(live)
    chain = chains.back_from(data, [_origin(data, root) for root in roots])
    spoken = next((f"`{name}`" for root in roots if (name := names.of(root))), "The loss")
    if index is None:
        asks = dataclasses.replace(asks, label="asks for a gradient of it") if asks else None
        spoken = "the input" if spoken == "The loss" else spoken
    cuts = [cut for step in chain.cuts() if (cut := describe(data, step))]
    off = _of_mode_still_off(data, chain, cuts)
    found = best(data, off or cuts, names)
    if index is None and roots:
        asked = _input_of_grad(data, chain, found, names, spoken, roots[0], asks)
        if asked is not None:
            return [asked]
    if found is not None:
        return [_cut_diagnosis(data, chain, found, names, spoken, asks, is_off=bool(off))]
    return [_never_required(data, chain, names, spoken, asks, live, roots)]


def in_question(error: BaseException, outputs: Any) -> tuple[list[Any], tuple[object, ...]]:
    """What no_gradient() looks at: the tensors that the error is about, and, of those whose .grad
    the running functions read, the names and numbers of the places that made them."""
    from gradext.native import _C

    wanted = ROOT.search(raw.message(error))
    live = _live_frames(error)
    roots = _roots(live, outputs, int(wanted["index"]) if wanted else None)
    made = tuple((name, _C.made_at(value)) for name, value in _read_for_grad(live))
    return roots, made


def _of_mode_still_off(data: Data, chain: Chain, cuts: Sequence[Cut]) -> list[Cut]:
    """The cuts of the grad mode that is off where the loss itself is computed; empty: it is on.

    Nothing else that loses the gradient matters as long as it is off.
    """
    if not cuts:
        return []
    off = [
        cut
        for step in chain.steps
        if step.after is None and chains.is_without_grad_mode(step.origin)
        if (cut := describe(data, step)) is not None and cut.mode is not None
    ]
    modes = {_entered(cut) for cut in off}
    return [cut for cut in cuts if _entered(cut) in modes] or off if modes else []


def _entered(cut: Cut) -> tuple[str, int] | None:
    return None if cut.mode is None else sites.line_of(cut.mode.site)


def _also_cut(data: Data, cut: Cut) -> list[Cut]:
    """What loses the gradient as well, between the cut and the loss, on other lines."""
    lines = {sites.line_of(site) for site in cut.sites}
    found = []
    # The nearest to the cut first. The ops of one mode, and the functions that a value passes on
    # its way through Python, are one thing to mend.
    came_back = cut.kind == "read"
    for step in cut.step.barriers():
        other = describe(data, step)
        if other is None or not other.sites:
            continue
        was_away, came_back = came_back, other.kind == "read"
        if (was_away and other.kind == "copy") or lines & {sites.line_of(s) for s in other.sites}:
            continue
        if other.mode is not None and _entered(other) == _entered(cut):
            continue
        lines |= {sites.line_of(site) for site in other.sites}
        found.append(other)
    return found


def _cut_diagnosis(
    data: Data,
    chain: Chain,
    cut: Cut,
    names: Owners,
    spoken: str,
    asks: Site | None,
    *,
    is_off: bool,
) -> Diagnosis:
    lost = names_lost(data, chain, names)
    culprit = cut.sites[0] if cut.sites else None
    where = f", at {sites.where(culprit.frame)}," if culprit is not None else ""
    message = (
        f"{spoken} does not require grad: {cut.what}{where} cut it off from what it was computed "
        "from, and nothing that was computed after that has a gradient."
    )
    notes = []
    if lost:
        several = len(lost) > 1
        notes.append(f"{listed(lost)} get{'' if several else 's'} no gradient because of it")
    other_mode = other_threads.of_mode(data, cut)
    if other_mode is not None:
        notes.append(other_mode.note)
    also = _also_cut(data, cut)
    for other in also[:2]:
        notes.append(
            f"{other.what} at {sites.where(other.sites[0].frame)} cuts the same way again: both "
            "are to be mended"
        )
    if not is_off:
        others = [c for s in chain.cuts() if s is not cut.step and (c := describe(data, s))]
        for other in _distinct_lines(others, cut)[:2]:
            notes.append(f"{other.what} cuts another way, at {sites.where(other.sites[0].frame)}")
    if not cut.step.is_sure:
        notes.append(
            "the value came back from Python, where nobody sees what is computed: that it is this "
            "one follows from the functions that it went through"
        )
    mends = [fix(data, each, asks) for each in (cut, *also[:1])]
    if other_mode is not None and other_mode.help is not None:
        mends[0] = other_mode.help
    victims = [asks, *_inputs_of(data, chain, cut), *_after(data, cut)]
    return Diagnosis(
        code="GX301",
        message=message,
        culprits=cut.sites,
        victims=sites.distinct(victims),
        fix="; then ".join(mends),
        notes=tuple(notes),
    )


def _input_of_grad(
    data: Data,
    chain: Chain,
    cut: Cut | None,
    names: Owners,
    spoken: str,
    root: Any,
    asks: Site | None,
) -> Diagnosis | None:
    """autograd.grad() was asked about a value that requires no grad: the line that made it."""
    origin = _origin(data, root)
    if origin is None or isinstance(origin, Birth):
        return None
    name = names.of(root)
    label = f"makes {spoken}, which does not require grad"
    made = sites.site(data.frames(origin.stack), op=origin.op, label=label)
    if made is None:
        return None
    line = sites.where(made.frame)
    mend = f"`{name or 'x'}.requires_grad_()` after {line}, before anything is computed from it"
    notes = []
    if cut is not None and cut.sites:
        mend += f"; or, if the gradient is to reach what it was made of, {fix(data, cut)}"
        notes.append(f"{cut.what} cut it off at {sites.where(cut.sites[0].frame)}")
    return Diagnosis(
        code="GX301",
        message=(
            f"A gradient with respect to {spoken} is asked for, and it does not require grad: it "
            f"was made at {line} from nothing that has a gradient."
        ),
        culprits=sites.distinct([made, *(cut.sites if cut else ())]),
        victims=sites.distinct([asks]),
        fix=mend,
        notes=tuple(notes),
    )


def _distinct_lines(cuts: Iterable[Cut], but: Cut) -> list[Cut]:
    seen = {sites.line_of(site) for site in but.sites}
    found = []
    for cut in cuts:
        if cut.sites and sites.line_of(cut.sites[0]) not in seen:
            seen.add(sites.line_of(cut.sites[0]))
            found.append(cut)
    return found


def _inputs_of(data: Data, chain: Chain, cut: Cut) -> list[Site | None]:
    """Behind a Function: the lines that made what went in without requiring grad."""
    if cut.mode is None or cut.mode.name != "forward":
        return []
    label = "makes what goes in, which does not require grad"
    found: list[Site | None] = []
    for step in chain.steps:
        origin = step.origin
        applied = isinstance(origin, Flow) and origin.op == "autograd.Function.apply"
        for number in origin.parents if applied and isinstance(origin, Flow) else ():
            given = data.origin(number)
            if isinstance(given, Flow) and not given.has(events.IN_FUNCTION):
                found.append(sites.site(data.frames(given.stack), op=given.op, label=label))
    return found[-2:][::-1]


def _after(data: Data, cut: Cut) -> list[Site | None]:
    """The first line behind the cut that computes with the value."""
    taken = {sites.line_of(site) for site in cut.sites}
    for step in cut.step.way():
        if step is cut.step:
            continue
        label = f"{op_names.bare(step.origin.op)} computes with the value that was cut off"
        site = sites.site(data.frames(step.origin.stack), op=step.origin.op, label=label)
        if site is not None and sites.line_of(site) not in taken:
            return [site]
    return []


def _never_required(
    data: Data,
    chain: Chain,
    names: Owners,
    spoken: str,
    asks: Site | None,
    live: Sequence[Any],
    roots: Sequence[Any],
) -> Diagnosis:
    """The diagnosis where nothing that went into the loss ever required grad."""
    asked = _asked_for_grad(data, live)
    frozen = _frozen(data, names)
    fed = names.untracked_in_optimizer
    culprits: tuple[Site, ...] = ()
    notes: list[str] = []
    if asked is not None:
        name, site = asked
        message = (
            f"{spoken} does not require grad, and nothing that it was computed from ever did: "
            f"`{name}`, whose .grad is read, was made without requires_grad=True."
        )
        fix = f"`{name}.requires_grad_()` after {sites.where(site.frame)}, before it is used"
        culprits = sites.distinct([site, *(line for line, _, _ in frozen)])
    elif frozen:
        line, count, example = frozen[0]
        many = f"{count} parameters" if count > 1 else f"`{example}`"
        message = (
            f"{spoken} does not require grad, and nothing that it was computed from did: "
            f"requires_grad was switched off for {many} at {sites.where(line.frame)}."
        )
        fix = (
            f"leave what is to be trained out of the freezing at {sites.where(line.frame)}, or "
            "switch it on again: `p.requires_grad_(True)`"
        )
        if names.trainable:
            fix = (
                f"compute the loss through what still requires grad ({listed(names.trainable)}); "
                f"the rest was frozen at {sites.where(line.frame)}"
            )
        culprits = sites.distinct(line for line, _, _ in frozen)
    else:
        ends = [
            (step, made)
            for step in chain.ends()
            if (made := sites.site(data.frames(step.origin.stack), op=step.origin.op))
        ]
        attributes = [
            (made, names.by_id(step.origin.tensor) or "")
            for step, made in ends
            if isinstance(step.origin, Flow) and names.is_attribute(step.origin)
        ]
        plain = [name for _, name in attributes]
        label = "makes a value that requires no grad"
        if fed:
            message = (
                f"{spoken} does not require grad, and nothing that it was computed from ever did: "
                f"{listed(fed)}, which the optimizer is to train, "
                f"do{'' if len(fed) > 1 else 'es'} not require grad."
            )
            fix = f"make {listed(fed)} with requires_grad=True (an nn.Parameter has it)"
        elif plain:
            message = (
                f"{spoken} does not require grad, and nothing that it was computed from ever did: "
                f"{listed(plain)} {'are plain tensors' if len(plain) > 1 else 'is a plain tensor'}"
                ", not a parameter."
            )
            fix = f"make {listed(plain)} an nn.Parameter: `nn.Parameter(...)` around its value"
        else:
            message = (
                f"{spoken} does not require grad, and nothing that it was computed from ever did."
            )
            fix = (
                "set requires_grad=True on the tensor that is to be trained before the loss is "
                "computed from it, or compute the loss from the model's parameters"
            )
        named = [made for step, made in ends if names.is_alive(step.origin)]
        first = named[::-1] if fed else [made for made, _ in attributes]
        ordered = [*first, *(made for _, made in reversed(ends))]
        culprits = sites.distinct([dataclasses.replace(s, label=label) for s in ordered])
        if names.trainable:
            notes.append(
                f"{listed(names.trainable)} require{'' if len(names.trainable) > 1 else 's'} "
                "grad, but took no part in it"
            )
    if not chain.steps:
        notes.append(_no_steps(data))
    victims = sites.distinct([asks, *(_chain_lines(data, chain) if culprits else [])])
    if not culprits and asks is not None:
        culprits = (asks,)
    return Diagnosis(
        code="GX301",
        message=message,
        culprits=culprits,
        victims=victims,
        fix=fix,
        notes=tuple(notes),
    )


def _chain_lines(data: Data, chain: Chain) -> list[Site | None]:
    label = "computes it from values without gradient"
    return [
        sites.site(data.frames(step.origin.stack), op=step.origin.op, label=label)
        for step in chain.steps[:2]
    ]


def _no_steps(data: Data) -> str:
    if missing := lost(data, "flows"):
        return f"how it was computed is not known: {missing}"
    return "how it was computed was not recorded (before the recording began, or cuts are off)"


def _without_recording(asks: Site | None) -> Diagnosis:
    return Diagnosis(
        code="GX301",
        message="backward() was called on a tensor that has no history: nothing to differentiate.",
        culprits=(asks,) if asks else (),
        fix="look for what cut it off above this line: .detach(), .item(), numpy, torch.tensor(), "
        "no_grad, frozen parameters; run it with `gradext run` to see which",
        notes=("no recording was on, so the line that cut it off is not known",),
    )


def _asked_for_grad(data: Data, live: Sequence[Any]) -> tuple[str, Site] | None:
    """A tensor that the program reads the `.grad` of, and that does not require grad."""
    from gradext.objects import naming

    for name, value in _read_for_grad(live):
        facts = naming.facts_of(value)
        if facts is None or facts.requires_grad:
            continue
        flow = data.flow_of(facts.id)
        label = f"makes `{name}` without requires_grad"
        site = sites.site(data.frames(flow.stack), op=flow.op, label=label) if flow else None
        if site is not None:
            return name, site
    return None


def _read_for_grad(live: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The local variables that are tensors and that the running functions read the `.grad` of."""
    import torch

    from gradext.objects import naming

    for frame in live:
        if not package.is_user_file(frame.f_code.co_filename):
            continue
        wanted = _names_read(frame.f_code)
        values = dict(naming.locals_of(frame)) if wanted else {}
        for name in wanted:
            if issubclass(type(values.get(name)), torch.Tensor):
                yield name, values[name]


@functools.lru_cache(maxsize=1024)
def _names_read(code: Any) -> tuple[str, ...]:
    """The names that a function reads the `.grad` of, in its source."""
    import inspect

    try:
        source = "".join(inspect.getsourcelines(code)[0])
    except (OSError, TypeError, IndexError):
        return ()
    return tuple(dict.fromkeys(re.findall(r"\b([A-Za-z_]\w*)\.grad\b", source)))


def _frozen(data: Data, names: Owners) -> list[tuple[Site, int, str]]:
    """Lines that switched requires_grad off for what is alive: (line, how many, a name)."""
    lines: dict[tuple[str, int], tuple[Site, int, str]] = {}
    for row in data.flags[data.flags[:, FLAGS.value] == 0]:
        tensor, stack = int(row[FLAGS.tensor]), int(row[FLAGS.stack])
        if not names.is_parameter(tensor):
            continue
        site = sites.site(data.frames(stack), label="switches requires_grad off")
        if site is None:
            continue
        known = lines.get(sites.line_of(site))
        name = names.by_id(tensor) or "a parameter"
        lines[sites.line_of(site)] = (
            (site, 1, name) if known is None else (site, known[1] + 1, known[2])
        )
    return sorted(lines.values(), key=lambda item: -item[1])


# --- the tensors in question ---------------------------------------------------------------------


def _live_frames(error: BaseException) -> list[Any]:
    from gradext.source import live_frames

    found = live_frames.frames_of_error(error)
    known = {id(frame) for frame in found}
    return [*found, *(f for f in live_frames.frames_above() if id(f) not in known)]


def _roots(live: Sequence[Any], outputs: Any, index: int | None) -> list[Any]:
    """The tensors that the error is about: a root of backward, or an input of grad()."""
    from gradext.objects import naming

    def tensors(value: Any) -> list[Any]:
        items = value if type(value) in (tuple, list) else (value,)
        return [item for item in items if naming.facts_of(item) is not None]

    if index is None:
        for frame in live:
            if frame.f_code.co_name == "grad" and _is_autograd(frame):
                inputs = tensors(dict(naming.locals_of(frame)).get("inputs"))
                return [t for t in inputs if not naming.facts_of(t).requires_grad]  # type: ignore[union-attr]
        return []
    found = tensors(outputs) if outputs is not None else []
    for frame in () if found else live:
        if frame.f_code.co_name in ("backward", "grad") and _is_autograd(frame):
            known = dict(naming.locals_of(frame))
            for name in ("tensors", "outputs", "self"):
                if not found:
                    found = tensors(known.get(name))
    if index < len(found):
        chosen = found[index]
        return [chosen]
    return found


def _is_autograd(frame: Any) -> bool:
    file = frame.f_code.co_filename.replace("\\", "/")
    return bool(file.endswith(("torch/autograd/__init__.py", "torch/_tensor.py")))


def _origin(data: Data, tensor: Any) -> Birth | Flow | None:
    from gradext.objects import naming

    facts = naming.facts_of(tensor)
    if facts is None:
        return None
    if facts.is_inference:
        return data.birth_of(facts.id if facts.storage is None else facts.storage)
    return data.flow_of(facts.id)
