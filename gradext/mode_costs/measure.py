"""What grad, no_grad, inference_mode and detach cost: one call timed under each, and counted.

Owns the modes and the measuring; `timing` repeats and judges, `clocks` reads a device's time,
`call_counts` counts. What comes out is a ModeComparison.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from gradext.base import errors, terminal
from gradext.mode_costs import timing
from gradext.mode_costs.call_counts import count
from gradext.mode_costs.comparison import ModeComparison, ModeTime
from gradext.native import _C

SECONDS, WIDTH = 5.0, 0.02
ModeName = Literal["grad", "no_grad", "inference_mode", "detached", "no_grad_frozen"]


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to run a call. ``frozen``: inputs are detached, parameters do not require grad."""

    name: ModeName
    says: str
    context: Callable[[], contextlib.AbstractContextManager[Any]]
    frozen: bool = False

    @contextlib.contextmanager
    def on(self, parameters: Iterable[torch.Tensor] = ()) -> Iterator[None]:
        """Run a block in the mode; ``parameters`` are frozen in it where the mode says so."""
        frozen = [p for p in parameters if p.requires_grad] if self.frozen else []
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            with self.context():
                yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)


MODES: dict[ModeName, Mode] = {
    mode.name: mode
    for mode in (
        Mode("grad", "a graph is recorded", torch.enable_grad),
        Mode("no_grad", "no graph", torch.no_grad),
        Mode("inference_mode", "no graph, no version counters, no views", torch.inference_mode),
        Mode(
            "detached",
            "grad mode on, inputs detached and parameters frozen",
            torch.enable_grad,
            frozen=True,
        ),
        Mode("no_grad_frozen", "no_grad, and parameters frozen", torch.no_grad, frozen=True),
    )
}


def compare_modes(
    fn: Callable[..., object],
    *args: Any,
    modes: Sequence[ModeName] = tuple(MODES),
    over: ModeName | None = None,
    kwargs: Mapping[str, Any] | None = None,
    inputs: Literal["given", "copied"] = "given",
    seconds: float = SECONDS,
    width: float = WIDTH,
    threads: int | None = None,
    device: str | None = None,
    counts: bool = True,
    graphs: bool = True,
    progress: bool | Callable[[float], object] | None = None,
    label: str | None = None,
) -> ModeComparison:
    """Time ``fn(*args, **kwargs)`` under each mode, the modes taking turns, and count what it does.

    modes: names of `gradext.mode_costs.measure.MODES`: "grad", "no_grad", "inference_mode",
    "detached" (grad mode on, inputs detached, parameters frozen), "no_grad_frozen". Parameters are
    those of the modules that ``fn`` is, is bound to, closes over or is given. They are put back.
    over: the mode that the others are divided by; "inference_mode" if it is among them.
    inputs: "given": the tensors as they are; "copied": copies made inside each mode, as values are
    that a model computes there (so that under inference_mode they are inference tensors).
    seconds, width: measure until the interval of each ratio is narrower than ``width`` times the
    ratio, or until ``seconds`` have passed.
    threads: torch's CPU threads meanwhile (as they are). device: whose clock counts, "cpu" or
    "cuda"; by default that of the tensors. On CUDA the times are those of CUDA events, and with
    ``graphs`` each mode has a second row, its CUDA graph replayed.
    progress: a bar on standard error (by default where that is a terminal), or a function that is
    told the part done, 0 to 1.

    The interval is that of the rounds of this process; `gradext bench modes` uses several. A mode
    in which the call raises has a row that says so; ValueError where it raises in all of them, and
    for names that do not exist. ``fn`` is called many times: what it changes, it changes many
    times.
    """
    if not callable(fn):
        raise TypeError(f"compare_modes: expected a function or a module, got {type(fn).__name__}")
    if inputs not in ("given", "copied"):
        raise ValueError(f"compare_modes: inputs is 'given' or 'copied', not {inputs!r}")
    keywords = dict(kwargs or {})
    parameters = _parameters(fn, args, keywords)
    tensors = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, torch.Tensor)]
    where = device or _device([*tensors, *parameters])
    known = [*tensors, *parameters]

    def build(mode: Mode) -> Callable[[], object]:
        mine, named = args, keywords
        if inputs == "copied":
            mine, named = tree_map_only(torch.Tensor, _copied, (mine, named))
            known.extend(t for t in tree_leaves((mine, named)) if isinstance(t, torch.Tensor))
        if mode.frozen:
            mine, named = tree_map_only(torch.Tensor, _detached, (mine, named))
        return functools.partial(fn, *mine, **named)

    with _shown(progress) as told:
        return measure(
            build,
            parameters=parameters,
            known=known,
            modes=modes,
            over=over,
            seconds=seconds,
            width=width,
            threads=threads,
            device=where,
            counts=counts,
            graphs=graphs,
            progress=told,
            label=label or _name(fn),
        )


def measure(
    build: Callable[[Mode], Callable[[], object]],
    *,
    parameters: Sequence[torch.Tensor] = (),
    known: Iterable[torch.Tensor] = (),
    modes: Sequence[str] = tuple(MODES),
    over: str | None = None,
    seconds: float = SECONDS,
    width: float = WIDTH,
    threads: int | None = None,
    device: str = "cpu",
    counts: bool = True,
    graphs: bool = True,
    progress: Callable[[float], object] | None = None,
    label: str = "",
    least_rounds: int = timing.MIN_ROUNDS,
    limit: float | None = None,
) -> ModeComparison:
    """`compare_modes` for a call that is made anew in each mode: ``build(mode)`` returns it.

    ``build`` runs in the mode, with ``parameters`` frozen where the mode freezes them, so that what
    it makes is what a program in that mode would have. Raises `OverLimit`, after a call or two,
    where ``least_rounds`` rounds would take longer than ``limit`` seconds.
    """
    chosen, baseline = _chosen(modes, over)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        rows: dict[str, ModeTime] = {}
        clocks: dict[str, Any] = {}
        cases: dict[str, timing.Case] = {}
        for mode in chosen:
            try:
                context = functools.partial(mode.on, parameters)
                with context():
                    call = build(mode)
                    _try(call, len(chosen) * (least_rounds + 2), limit)
                counted = None
                if counts:
                    with context():
                        counted = count(call, device=device, known=known)
                rows[mode.name] = ModeTime(mode.name, counts=counted)
                _add(cases, clocks, mode.name, call, context, device)
            except OverLimit:
                raise
            except Exception as error:
                rows[mode.name] = ModeTime(mode.name, error=errors.one_line(error))
                continue
            if graphs and torch.device(device).type == "cuda":
                name = f"{mode.name}, CUDA graph"
                rows[name] = _captured(cases, clocks, name, call, context, device)
        if not cases:
            said = "; ".join(f"{row.mode}: {row.error}" for row in rows.values())
            raise ValueError(f"the call raises in every mode ({said})")
        if baseline not in cases:
            baseline = next(iter(cases))
        measured = timing.compare(
            cases,
            budget_seconds=seconds,
            enough=lambda so_far: _narrow(so_far, baseline, width),
            progress=progress,
            least_rounds=least_rounds,
        )
        now = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    for name in cases:
        rows[name] = dataclasses.replace(rows[name], launch=clocks[name].launch_seconds)
    return ModeComparison.of(
        measured, baseline, rows=rows, label=label, device=device, threads=now, notes=_notes()
    )


class OverLimit(RuntimeError):
    """Timing would take longer than it may."""


def _try(call: Callable[[], object], calls: int, limit: float | None) -> None:
    """Call once; where so many calls seem to be over the limit, once more: the first may compile.

    Raises OverLimit if they are.
    """
    for _ in range(2):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        if limit is None or seconds * calls <= limit:
            return
    raise OverLimit(
        f"a call takes {seconds:.1f} s and {calls} are needed, which is more than {limit:.0f} s"
    )


def _chosen(names: Sequence[str], over: str | None) -> tuple[list[Mode], str]:
    if isinstance(names, str) or not names:
        raise ValueError(f"modes: expected some of {', '.join(MODES)}, got {names!r}")
    by_name: dict[str, Mode] = {mode.name: mode for mode in MODES.values()}
    for name in names:
        if name not in by_name:
            raise ValueError(f"modes: no mode is called {name!r}; there are {', '.join(MODES)}")
    baseline = over or ("inference_mode" if "inference_mode" in names else names[0])
    if baseline not in names:
        raise ValueError(f"over: {baseline!r} is not among the modes {', '.join(names)}")
    return [by_name[name] for name in dict.fromkeys(names)], baseline


def _add(
    cases: dict[str, timing.Case],
    clocks: dict[str, Any],
    name: str,
    call: Callable[[], object],
    context: Callable[[], contextlib.AbstractContextManager[Any]],
    device: str,
) -> None:
    from gradext.mode_costs.clocks import clock_of

    clocks[name] = clock_of(device, call)
    cases[name] = timing.Case(call, context, clocks[name].block)


def _captured(
    cases: dict[str, timing.Case],
    clocks: dict[str, Any],
    name: str,
    call: Callable[[], object],
    context: Callable[[], contextlib.AbstractContextManager[Any]],
    device: str,
) -> ModeTime:
    from gradext.mode_costs.clocks import captured

    try:
        with context():
            replay = captured(call, device)
    except Exception as error:
        return ModeTime(name, error=f"cannot be captured: {errors.one_line(error)}")
    _add(cases, clocks, name, replay, context, device)
    return ModeTime(name)


def _narrow(measured: timing.Comparison, over: str, width: float) -> bool:
    for name in measured.seconds:
        if name != over:
            ratio = measured.ratio(name, over)
            if ratio.high - ratio.low > width * ratio.value:
                return False
    return True


def _parameters(fn: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The parameters, requiring grad, of the modules within reach of the call."""
    found: dict[int, torch.Tensor] = {}
    todo, seen = [fn, *tree_leaves((args, kwargs))], set()
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.nn.Module):
            found.update((id(p), p) for p in thing.parameters() if p.requires_grad)
        elif isinstance(thing, functools.partial):
            todo += [thing.func, *tree_leaves((thing.args, thing.keywords))]
        else:
            near = [getattr(thing, "__self__", None), *(getattr(thing, "__defaults__", None) or ())]
            todo += [thing for thing in near if _is_module(thing)]
            for cell in getattr(thing, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # not filled yet
                    inside = cell.cell_contents
                    if _is_module(inside) or callable(inside):
                        todo.append(inside)
            code = getattr(thing, "__code__", None)
            names = getattr(thing, "__globals__", {})
            if code is not None:
                todo += [names[n] for n in code.co_names if _is_module(names.get(n))]
    return list(found.values())


def _is_module(thing: object) -> bool:
    return isinstance(thing, torch.nn.Module)


def _device(tensors: Sequence[torch.Tensor]) -> str:
    return next((str(t.device) for t in tensors if t.device.type == "cuda"), "cpu")


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().clone()
    if tensor.requires_grad and not copy.is_inference():
        copy.requires_grad_(True)
    return copy


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name: str = getattr(fn, "__qualname__", None) or type(fn).__name__
    return name


def _notes() -> tuple[str, ...]:
    notes = []
    if _C.recorder_active():
        notes.append("a recording is on: the times contain what recording costs")
    if torch.is_anomaly_enabled():
        notes.append("anomaly mode is on: the times contain what it costs")
    return tuple(notes)


@contextlib.contextmanager
def _shown(
    progress: bool | Callable[[float], object] | None,
) -> Iterator[Callable[[float], object] | None]:
    """The function to tell how far it is: the given one, that of a bar on stderr, or None."""
    if callable(progress):
        yield progress
        return
    from rich.progress import Progress

    console = terminal.console(sys.stderr, **({"force_terminal": True} if progress else {}))
    if progress is False or not (progress or terminal.is_terminal(sys.stderr)):
        yield None
        return
    # No thread that redraws it: it would take part of the processor that is measured.
    with Progress(console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("timing the modes", total=1.0)
        last = -math.inf

        def told(part: float) -> None:
            nonlocal last
            if part - last >= 0.02:  # drawing takes milliseconds
                last = part
                bar.update(task, completed=part, refresh=True)

        yield told
