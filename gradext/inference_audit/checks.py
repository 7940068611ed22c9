"""The named checks: what each experiment's findings mean, and what to do about them.

Owns the order of the experiments and the words of the report. Runs nothing itself.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradext.base.random_numbers import RandomNumbers
from gradext.base.text import counted
from gradext.diagnosis.model import Diagnosis, Site
from gradext.inference_audit import experiments, isolation, result_trees
from gradext.inference_audit.experiments import Trouble
from gradext.inference_audit.isolation import Failed, Place, Subject
from gradext.inference_audit.report import CHECKS, Check, InferenceAudit
from gradext.inference_audit.survivors import Kept, Written
from gradext.source import sites

MOST_PATHS = 20  # that a check lists
_OUTSIDE = "with torch.inference_mode(False), torch.no_grad():"


def audit(
    value: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, fork: bool, seconds: float
) -> InferenceAudit:
    """gradext.inference_audit.audit.audit(), with everything given."""
    subject = _subject(value, args, kwargs)
    random = RandomNumbers.now()
    place = isolation.choose(subject, fork=fork, seconds=seconds)
    lab = _Lab(subject, random, place)
    checks = _checks(lab)
    return InferenceAudit(
        subject=subject.title,
        verdict=_verdict(checks, lab),
        checks=tuple(checks[name] for name in CHECKS),
        not_checked=tuple(_not_checked(checks, lab)),
        isolation=place.kind,
    )


def _subject(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Subject:
    owner = value
    base = value.func if type(value) is functools.partial else value
    if type(value) is types.MethodType:
        owner = value.__self__
        title = f"{type(owner).__name__}.{value.__func__.__name__}"
    else:
        found = getattr(base, "__name__", None)
        title = found if isinstance(found, str) else type(base).__name__
    name = (
        "model" if issubclass(type(owner), torch.nn.Module) else title.rpartition(".")[0] or title
    )
    called = owner.forward if issubclass(type(value), torch.nn.Module) else value
    return Subject(value, owner, name, title, args, kwargs, _named(called, args, kwargs))


def _named(
    called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[str, Any], ...]:
    """The arguments under the names of the parameters that take them."""
    try:
        bound = inspect.signature(called).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return (*((f"args[{i}]", value) for i, value in enumerate(args)), *kwargs.items())
    kinds = bound.signature.parameters
    found: list[tuple[str, Any]] = []
    for name, value in bound.arguments.items():
        if kinds[name].kind is inspect.Parameter.VAR_KEYWORD:
            found += value.items()
        else:
            found.append((name, value))
    return tuple(found)


# --- running -------------------------------------------------------------------------------------


class _Lab:
    """Runs experiments and keeps what they found: each runs once, when it is first asked for."""

    def __init__(self, subject: Subject, random: RandomNumbers, place: Place) -> None:
        self.subject, self.random, self.place = subject, random, place
        self._results: dict[str, Any] = {}
        self.faults: dict[str, str] = {}

    def ask(self, name: str) -> dict[str, Any]:
        """An experiment's findings; empty if it did not come to its end (`faults` says why)."""
        if name not in self._results:
            try:
                experiment = functools.partial(_EXPERIMENTS[name], self.random)
                self._results[name] = self.place.run(experiment, self.subject)
            except Failed as fault:
                self._results[name] = {}
                self.faults[name] = str(fault)
        found: dict[str, Any] = self._results[name]
        return found


_EXPERIMENTS: dict[str, Callable[[RandomNumbers, Subject], dict[str, Any]]] = {
    "inference": experiments.under_inference_mode,
    "no_grad": experiments.under_no_grad,
    "no_grad again": experiments.under_no_grad,
    "afterwards": functools.partial(experiments.afterwards, torch.inference_mode),
    "afterwards no_grad": functools.partial(experiments.afterwards, experiments.no_grad),
    "repeated": experiments.repeated,
}


def _checks(lab: _Lab) -> dict[str, Check]:
    found = lab.ask("inference")
    if not found:
        message = f"the run under inference_mode ended early: {lab.faults['inference']}"
        first = Check("runs", "fail", message)
    elif found["error"] is not None:
        first = _does_not_run(lab, found["error"])
    else:
        first = Check("runs", "pass", "runs under inference_mode")
    if first.status == "fail":
        rest = [Check(name, "skipped", "it does not run") for name in CHECKS[1:]]
        return {check.name: check for check in (first, *rest)}
    every = [
        first,
        _same_outputs(lab),
        _writes(lab),
        _registered(found["kept"]),
        _kept(lab, found["kept"]),
        _train_step(lab),
        *_afterwards(lab),
        _threads(lab),
    ]
    return {check.name: check for check in every}


def _does_not_run(lab: _Lab, error: Trouble) -> Check:
    other = lab.ask("no_grad").get("error")
    if other is not None:
        also = " as well" if other.text == error.text else f": {other.text}"
        message = f"{error.text} (under no_grad it fails{also}, so the mode is not the cause)"
        fix = "make the call itself work first"
    else:
        message = f"{error.text} (it runs under no_grad)"
        fix = _fix_of(error) or "keep no_grad for this call"
    return Check("runs", "fail", message, _sites(error), error.tensors, fix, error.diagnoses)


def _fix_of(error: Trouble) -> str:
    return next((diagnosis.fix for diagnosis in error.diagnoses if diagnosis.fix), "")


def _sites(*found: Trouble | Site | None) -> tuple[Site, ...]:
    return sites.distinct(item.site if isinstance(item, Trouble) else item for item in found)


# --- the checks ----------------------------------------------------------------------------------


def _same_outputs(lab: _Lab) -> Check:
    name = "same outputs"
    found, other = lab.ask("inference"), lab.ask("no_grad")
    if not other:
        return Check(name, "skipped", f"no run to compare with: {lab.faults['no_grad']}")
    if other["error"] is not None:
        message = f"runs under inference_mode but not under no_grad: {other['error'].text}"
        return Check(name, "warn", message, _sites(other["error"]))
    difference = result_trees.compare(found["output"], other["output"])
    if difference is None:
        tensors = sum(isinstance(value, torch.Tensor) for _, value in found["output"])
        if not found["output"]:
            return Check(name, "skipped", "no tensor, number or text in what the call returns")
        what = counted(tensors, "tensor") if tensors else "no tensor, and its numbers and texts are"
        return Check(name, "pass", f"{what} equal to the bit with those under no_grad")
    again = lab.ask("no_grad again")
    control = again and again["error"] is None
    noise = result_trees.compare(again["output"], other["output"]) if control else None
    if noise is not None:
        message = f"{difference.text}; two runs under no_grad differ too ({noise.text})"
        return Check(
            name, "warn", message + ": the call is not deterministic", paths=(difference.path,)
        )
    if difference.kind == "rounding":
        message = f"{difference.text}: rounding, as other kernels give it; two no_grad runs agree"
        return Check(name, "warn", message, paths=(difference.path,))
    fix = "look for code that asks for the mode: is_inference_mode_enabled, is_inference, _version"
    message = f"{difference.text} from what it is under no_grad; two no_grad runs agree"
    return Check(name, "fail", message, paths=(difference.path,), fix=fix)


def _writes(lab: _Lab) -> Check:
    found: list[Written] = lab.ask("inference")["writes"]
    under_no_grad = lab.ask("no_grad").get("writes")
    if not found:
        return Check(
            "writes", "pass", "writes to no input, parameter or buffer, nor to what else it holds"
        )
    by_role: dict[str, list[str]] = {}
    for item in found:
        by_role.setdefault(item.role, []).append(item.path)
    words = {"attribute": "other tensor", "shared": "tensor held outside it"}
    parts = [f"{counted(len(paths), words.get(role, role))}" for role, paths in by_role.items()]
    same = under_no_grad is not None and {item.path for item in found} <= set(under_no_grad)
    also = ", as it does under no_grad" if same else ""
    uncounted = [item.path for item in found if not item.counted]
    note = f"; no counter saw the write to {_listed(uncounted)}" if uncounted else ""
    lines = sites.distinct(place for item in found for place in item.sites)
    fix = ""
    if "input" in by_role:
        fix = f"copy first where the caller must not see it: `{by_role['input'][0]} = "
        fix += f"{by_role['input'][0]}.clone()`"
    message = f"writes in place to {' and '.join(parts)}: {_listed([i.path for i in found])}{also}"
    paths = tuple(item.path for item in found)
    return Check("writes", "warn", message + note, lines, paths[:MOST_PATHS], fix)


def _registered(kept: list[Kept]) -> Check:
    name = "parameters and buffers"
    bad = [item for item in kept if item.role in {"parameter", "buffer"}]
    if not bad:
        return Check(name, "pass", "no parameter or buffer is an inference tensor afterwards")
    before = [item for item in bad if item.was_before]
    became = [item for item in bad if not item.was_before]
    parts = []
    if became:
        parts.append(f"{_listed([i.path for i in became])} {_is(became)} made under inference_mode")
    if before:
        parts.append(f"{_listed([i.path for i in before])} {_is(before)} so before the call")
    first = (became or before)[0]
    if first.role == "buffer" and became:
        fix = f"write into the buffer instead of replacing it: `{first.path}.copy_(new)`"
    elif became:
        fix = f"make it in __init__, or under `{_OUTSIDE}`"
    else:
        fix = "build, convert and load the model outside inference_mode"
    message = f"{counted(len(bad), 'inference tensor')} among them: {'; '.join(parts)}"
    places = _sites(*(place for item in bad for place in (item.birth, item.mode)))
    return Check(name, "fail", message, places, tuple(i.path for i in bad)[:MOST_PATHS], fix)


def _is(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _kept(lab: _Lab, every: list[Kept]) -> Check:
    name = "kept tensors"
    kept = [item for item in every if item.role not in {"parameter", "buffer"}]
    if not kept:
        return Check(name, "pass", "nothing else keeps an inference tensor after the block")
    where = _listed([item.path for item in kept])
    message = f"{counted(len(kept), 'inference tensor')} kept after the block: {where}"
    if lab.place.kind != "process":
        shared = [item.path for item in kept if item.role == "shared"]
        if lab.place.kind == "none" or shared:
            left = [item.path for item in kept] if lab.place.kind == "none" else shared
            message += f"; in this process too: {_listed(left)}"
    places = _sites(*(place for item in kept for place in (item.birth, item.mode)))
    paths = tuple(item.path for item in kept)[:MOST_PATHS]
    diagnoses = tuple(_cached(item) for item in kept[:3])
    return Check(name, "warn", message, places, paths, _fix_kept(kept[0]), diagnoses)


def _fix_kept(item: Kept) -> str:
    line = f", or put that `with` around {sites.where(item.birth.frame)}" if item.birth else ""
    if "<lru_cache>" in item.path:
        owner = item.path.partition(".<lru_cache>")[0]
        return f"`{owner}.cache_clear()` after the block, or fill the cache under no_grad before it"
    if "<" in item.path:
        place = sites.where(item.birth.frame) if item.birth else "the line that makes it"
        return f"make what is kept outside the mode: `{_OUTSIDE}` around {place}"
    copy = f"`{_OUTSIDE} {item.path} = {item.path}.clone()`"
    return f"keep a copy that is no inference tensor: {copy}{line}"


def _cached(item: Kept) -> Diagnosis:
    return Diagnosis(
        "GX204",
        "warning",
        f"`{item.path}` ({item.what}) was made under inference_mode and is kept after the block: "
        "the first use of it that autograd saves for backward will raise",
        culprits=_sites(item.birth, item.mode),
        fix=_fix_kept(item),
    )


def _train_step(lab: _Lab) -> Check:
    name = "train step"
    if not lab.place.is_disposable:
        return Check(name, "skipped", "it would train the caller's own object")
    found = lab.ask("inference")["train"]
    other = lab.ask("no_grad").get("train")
    if "skipped" in found:
        return Check(name, "skipped", found["skipped"])
    if "error" in found:
        error: Trouble = found["error"]
        if other is not None and "error" in other and found["through"]:
            message = f"{found['through']} does not work on a fresh copy: {other['error'].text}"
            return Check(name, "skipped", message)
        if other is not None and "error" in other and other["error"].text == error.text:
            message = f"fails in {found['doing']} on a fresh copy too: {error.text}"
            return Check(name, "warn", message, _sites(error), diagnoses=error.diagnoses)
        kept: list[Kept] = lab.ask("inference")["kept"]
        met = [item for item in kept if item.path in error.tensors] or kept
        message = f"{found['doing']} fails after the call: {error.text}"
        if met:
            sure = "it met" if error.tensors else "kept since the call:"
            message += f"; {sure} {_listed([item.path for item in met])}"
        places = [place for item in met for place in (item.birth, item.mode)]
        return Check(
            name,
            "fail",
            message,
            _sites(error, *places),
            tuple(item.path for item in met)[:MOST_PATHS],
            _fix_kept(met[0]) if met else _fix_of(error),
            error.diagnoses,
        )
    if other is None or "gradients" not in other:
        why = lab.faults.get("no_grad", "it fails there")
        return Check(name, "warn", f"works, but there is no fresh copy to compare with: {why}")
    difference = result_trees.compare(found["gradients"], other["gradients"])
    if difference is None:
        what = counted(len(found["gradients"]), "gradient")
        how = f" ({found['through']})" if found["through"] else ""
        message = f"works{how}; {what} equal to the bit with those of a fresh copy"
        return Check(name, "pass", message)
    if difference.kind == "rounding":
        # Which kernels a backward gets, and how they split the work, is not the mode's doing.
        message = f"works; up to rounding, gradients are those of a fresh copy ({difference.text})"
        return Check(name, "pass", message)
    again = lab.ask("no_grad again").get("train", {})
    noise = result_trees.compare(again.get("gradients", []), other["gradients"])
    if noise is not None:
        message = f"works; gradients differ between two fresh copies as well ({noise.text})"
        return Check(name, "warn", message)
    message = f"works, but the gradient of {difference.text} from that of a fresh copy"
    return Check(name, "fail", message, paths=(difference.path,))


def _afterwards(lab: _Lab) -> list[Check]:
    names = CHECKS[6:11]
    if not lab.place.is_disposable:
        return [Check(n, "skipped", "it would change the caller's own object") for n in names]
    found = lab.ask("afterwards")
    if not found:
        why = f"the run ended early: {lab.faults['afterwards']}"
        return [Check(name, "skipped", why) for name in names]
    if found["error"] is not None:
        why = f"the call failed when it was repeated on a fresh copy: {found['error'].text}"
        return [Check(name, "skipped", why) for name in names]
    return [_one_afterwards(lab, name, found[name]) for name in names]


_WORKS = {
    "no_grad afterwards": "a call under no_grad works after it",
    "deepcopy": "copy.deepcopy works after it",
    "state_dict": "state_dict() and load_state_dict() of it work after it",
    "to": ".to(dtype) and back works after it",
    "save and load": "torch.save and torch.load of the whole object work after it",
}
_MODULE_ONLY = {"state_dict", "to"}


def _one_afterwards(lab: _Lab, name: str, error: Trouble | None) -> Check:
    is_module = issubclass(type(lab.subject.owner), torch.nn.Module)
    if name in _MODULE_ONLY and not is_module:
        return Check(name, "skipped", "a function has none")
    if error is None:
        return Check(name, "pass", _WORKS[name])
    other = lab.ask("afterwards no_grad").get(name)
    if other is not None:
        message = f"does not work without inference_mode either: {other.text}"
        return Check(name, "skipped", message)
    kept: list[Kept] = lab.ask("inference")["kept"]
    fix = _fix_of(error) or (_fix_kept(kept[0]) if kept else "")
    return Check(name, "fail", error.text, _sites(error), error.tensors, fix, error.diagnoses)


def _threads(lab: _Lab) -> Check:
    name = "threads"
    if not lab.place.is_disposable:
        return Check(name, "skipped", "it would call the caller's own object from other threads")
    found = lab.ask("repeated")
    if not found:
        return Check(name, "skipped", f"the run ended early: {lab.faults['repeated']}")
    started: list[Site] = lab.ask("inference")["threads"]
    if started:
        normal = lab.ask("inference")["normal_outputs"]
        message = (
            f"it starts {counted(len(started), 'thread')} of its own, and inference_mode does not "
            "reach into them"
        )
        if normal:
            message += f": {_listed(normal)} {_is(normal)} no inference tensor"
        fix = "enter inference_mode in the function that the thread runs"
        return Check(name, "warn", message, sites.distinct(started), tuple(normal), fix)
    for key, words in (
        ("error", "a repeated run"),
        ("again error", "a second call"),
        ("thread error", "a call in another thread"),
        ("together error", "one of two calls at once"),
    ):
        error: Trouble | None = found.get(key)
        if error is not None:
            message = f"{words} fails under inference_mode: {error.text}"
            return Check(name, "fail", message, _sites(error), error.tensors, _fix_of(error))
    if found.get("thread") is not None and found.get("again") is None:
        message = f"in another thread {found['thread'].text}"
        return Check(name, "fail", message, paths=(found["thread"].path,))
    if found.get("again") is not None:
        message = (
            f"a second call gives another result ({found['again'].text}): it keeps state, so calls "
            "at once were not compared"
        )
        return Check(name, "warn", message, paths=(found["again"].path,))
    if found["random"]:
        message = "works in another thread, with equal outputs; calls at once were not compared, "
        return Check(name, "pass", message + "as it draws random numbers")
    if found.get("together") is not None:
        message = f"of calls in two threads at once one differs: {found['together'].text}"
        return Check(name, "fail", message, paths=(found["together"].path,))
    return Check(name, "pass", "equal outputs in another thread and in two threads at once")


# --- the whole -----------------------------------------------------------------------------------


def _verdict(checks: dict[str, Check], lab: _Lab) -> str:
    if checks["runs"].status != "pass":
        return f"does not run under inference_mode: {checks['runs'].message}"
    kept: list[Kept] = lab.ask("inference")["kept"]
    failed = [name for name in CHECKS if checks[name].status == "fail"]
    text = "runs under inference_mode and leaves nothing behind"
    if kept:
        where = _listed([item.path for item in kept])
        text = f"runs, but leaves {counted(len(kept), 'inference tensor')} in {where}"
        if checks["train step"].status == "fail":
            text += "; training afterwards fails"
            failed.remove("train step")
        failed = [name for name in failed if name != "parameters and buffers"]
        return text + (f"; fails: {', '.join(failed)}" if failed else "")
    if failed:
        return f"{text}, but fails: {', '.join(failed)}"
    if checks["writes"].status == "warn":
        return f"{text}; {checks['writes'].message.partition(':')[0]}"
    return text


def _not_checked(checks: dict[str, Check], lab: _Lab) -> list[str]:
    found = ["other inputs and branches than those of this call"]
    place = lab.place
    if place.kind == "copy":
        found.append(
            f"what it does to globals, closures and caches was not undone here: it ran on deep "
            f"copies in this process ({place.why})"
        )
    elif place.kind == "none":
        found.append(
            f"nothing was isolated: it ran on the object itself in this process ({place.why})"
        )
    else:
        found.append("CUDA: every run was on the CPU, in a process with one thread for kernels")
    found.append("tensors that only C++ code or another process holds")
    result = lab.ask("inference")
    if result.get("cut"):
        found.append("part of what it holds: there is more than the walk enters")
    if result.get("compared_contents") is False:
        found.append("writes that no version counter counts: it holds too much to be copied")
    for name in CHECKS:
        if checks[name].status == "skipped" and checks["runs"].status == "pass":
            found.append(f"{name}: {checks[name].message}")
    return found


def _listed(paths: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:most])
    return shown + (f" and {len(paths) - most} more" if len(paths) > most else "")
