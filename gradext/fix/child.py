"""The child process of one trial: runs the program with a patch, and notes each backward pass.

Started as `python -m gradext.fix.child SPEC`, a JSON file of fields (see Spec). The program is run
by `gradext run`, so what is diagnosed is what a user would see. Each outermost call of the engine
is noted: hashes of its outputs, and of the value and the gradient of each leaf that it reaches.

The processes that the program starts (ranks, workers) are armed like it, and write notes of their
own beside its: gradext.run.autostart calls `join` in those that begin anew; forks inherit.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
import sys
import threading
from typing import Any, NamedTuple, NoReturn

from gradext.base import overlay, package, torch_import
from gradext.fix.circumstances import Circumstances
from gradext.fix.cost import Meter
from gradext.objects import graph_rows
from gradext.run import autostart, fixes


class Spec(NamedTuple):
    """What a child is told.

    Attributes:
        words: what stands behind `gradext` on the command line that is to be run.
        texts: (path, its bytes in base64) of each file that another text stands in for.
        mode: "as-is", or how a reference is run, with commas between several. "as-saved": each
            tensor that is saved for backward is saved as a copy, so that later writes do not reach
            it; "no-inference": inference_mode() acts as no_grad(); "refused-writes" and
            "no-checkpoint" (both as-saved too) and "own-gradients": see gradext.fix.reference.
        until: passes after which the program is ended; None: see `more`.
        more: passes after the first diagnosis of a silent fault, after which it is ended.
        seed: of Python's, numpy's and torch's generators, set before the program begins.
        nudge: how far the leaves are moved along a fixed direction, in a program that computes in
            float64; 0: not at all. nudged: before which pass, and from the end of which one on.
        result: where the notes are written: JSON, and `.pt` beside it for gradients.
    """

    words: list[str]
    texts: list[tuple[str, str]]
    mode: str
    until: int | None
    more: int
    seed: int
    result: str
    nudge: float = 0.0
    nudged: tuple[int, int] = (0, 0)


_MOST_BYTES = 256 << 20  # of gradients that are kept as numbers; of all of them a hash is kept


class _Enough(SystemExit):
    """Ends the program when it has run far enough."""


class Notes:
    """The notes of the backward passes of this process."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.pid = os.getpid()
        self.is_first = True  # the process that the trial has started
        self.passes: list[dict[str, Any]] = []
        self.values: list[list[Any]] = []
        self.bytes = 0
        self.until = spec.until
        self.told: int | None = None  # the pass of the first silent fault
        self.ended = 0
        self.lock = threading.Lock()
        self.meter = Meter()
        self.circumstances = Circumstances()
        self.doubtful: list[Any] = []  # what changes how a reference runs; each has a `doubt`

    def forked(self) -> None:
        """Begin new notes in a child of fork(): the parent has the passes until now."""
        self.lock = threading.Lock()
        self.pid, self.is_first = os.getpid(), False
        self.meter = Meter()
        self.passes, self.values, self.bytes = [], [], 0
        # A pool would start another worker for one that ends early, and wait for its answer.
        self.until, self.told, self.ended = None, None, 0

    def write(self) -> None:
        if os.getpid() != self.pid:
            return
        path = self.spec.result if self.is_first else f"{self.spec.result}.{self.pid}"
        if self.values:  # a program without a backward pass may have no torch either
            import torch

            torch.save(self.values, path + ".pt")
        draft = path + ".tmp"
        facts: dict[str, Any] = {
            "process": "" if self.is_first else _name(),
            "pid": self.pid,
            "passes": self.passes,
            "stopped": self.ended > 0,
            "told": self.told,
            "doubt": next((one.doubt for one in self.doubtful if one.doubt is not None), None),
            "circumstances": self.circumstances.facts() if self.is_first else {},
        }
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(facts, file)
        os.replace(draft, path)

    def add(self, note: dict[str, Any], gradients: list[Any], returned: tuple[Any, ...]) -> None:
        """One more pass, with what it computed."""
        note["gradients"] = [_hash(t) for t in gradients]
        with self.lock:
            self.passes.append(note)
            self.values.append([_kept(t, self) for t in (*gradients, *returned)])
        count = len(self.passes)
        if not self.is_first and (note["raised"] or count <= 8 or not count & (count - 1)):
            self.write()  # it may be killed before it can write at its end

    def diagnosed(self, incident: Any) -> None:
        if incident.kind == "backward" or self.told is not None:
            return  # it raises
        self.told = len(self.passes)
        if self.until is None and (self.is_first or _rank() is not None):
            self.until = self.told + 1 + self.spec.more

    def enough(self) -> None:
        if self.until is None or len(self.passes) < self.until:
            return
        self.ended += 1
        if self.ended == 1:
            raise _Enough(0)
        self.write()  # the program has caught it, and goes on
        _leave()


def _leave() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _rank() -> str | None:
    return os.environ.get("RANK")


def _name() -> str:
    """What this process is called in each run of the program: "rank 1", "SpawnProcess-2"."""
    from multiprocessing import process

    parts = [f"rank {_rank()}"] if _rank() is not None else []
    name = process.current_process().name
    return " ".join(parts + ([name] if name != "MainProcess" else []))


def main() -> None:
    if sys.argv[1] == _SCRIPT:  # a rank, see `join`
        _run_script(sys.argv[2:])
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = Spec(**json.load(file))
    os.environ[autostart.TRIAL] = sys.argv[1]
    notes = _prepare(spec)
    fixes.enabled = False
    sys.argv = [os.path.join(package.PREFIX, "__main__.py"), *spec.words]
    sys.orig_argv = [sys.executable, "-m", "gradext", *spec.words]
    try:
        # The same program that a user starts; it ends by SystemExit.
        runpy.run_module("gradext", run_name="__main__")
    finally:
        if sys.modules.get("torch") is not None:
            notes.write()


def _prepare(spec: Spec) -> Notes:
    """Set up this process before the program begins and before torch is imported."""
    overlay.lay({path: base64.b64decode(text) for path, text in spec.texts})
    import random

    random.seed(spec.seed)
    notes = Notes(spec)
    os.register_at_fork(after_in_child=notes.forked)
    torch_import.when_imported(lambda: _arm(notes))
    return notes


_SCRIPT = "--script"


def join(session: Any) -> None:
    """Note the passes of this process, which the program has started and `session` records."""
    with open(os.environ[autostart.TRIAL], encoding="utf-8") as file:
        spec = Spec(**json.load(file))
    words = fixes.program_of(sys.orig_argv)
    if words and overlay.is_among(words[0], [path for path, _ in spec.texts]):
        # The interpreter would read the file itself, and not what stands in for it.
        options = sys.orig_argv[: len(sys.orig_argv) - len(words)]
        os.execv(sys.executable, [*options, "-m", "gradext.fix.child", _SCRIPT, *words])
    notes = _prepare(spec)
    notes.forked()
    if _rank() is not None:
        notes.until = spec.until
    session.at_end.append(notes.write)


def _run_script(words: list[str]) -> NoReturn:
    from gradext.run import program, session

    target = program.Target("script", words[0], tuple(words[1:]), tuple(words))
    sys.argv = ["gradext", *words]
    program.enter(target)
    recorded = session.current()

    def uncaught(error: BaseException) -> None:
        if recorded is not None:
            recorded.uncaught(error)

    sys.exit(program.run(target, uncaught, lambda code: None))


def _arm(notes: Notes) -> None:
    """Install what notes the passes: torch is imported, and the program has not used it yet."""
    import torch

    from gradext.recording import incidents

    notes.circumstances.imported()
    spec = notes.spec
    torch.manual_seed(spec.seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:  # a program may also say there that it wants none
        numpy.random.seed(spec.seed)
    modes = spec.mode.split(",")
    if set(modes) & {"as-saved", "refused-writes", "no-checkpoint"}:
        # For the rest of the process, on its first thread. torch compares no versions of what a
        # hook has packed (Note [Saved tensors] in torch/csrc/autograd/saved_variable.h).
        torch.autograd.graph.saved_tensors_hooks(torch.clone, _same).__enter__()
    if "no-inference" in modes:
        for module in (torch, torch.autograd, torch.autograd.grad_mode):
            if hasattr(module, "inference_mode"):
                module.inference_mode = _no_grad_instead  # type: ignore[attr-defined]
    if "refused-writes" in modes:
        from gradext.fix import reference

        refused: Any = reference.RefusedWrites()
        refused.__enter__()
        notes.doubtful.append(refused)
    if "own-gradients" in modes:
        from gradext.fix import reference

        reference.own_gradients()
    if "no-checkpoint" in modes:
        from gradext.fix import reference

        notes.doubtful.append(reference.no_checkpoints())
    nudger = None
    if spec.nudge:
        from gradext.fix import slope

        torch.set_default_dtype(torch.float64)
        nudger = slope.Nudger(spec.nudge, spec.nudged, lambda: len(notes.passes))
        nudger.__enter__()  # type: ignore[no-untyped-call]
    incidents.subscribe(notes.diagnosed)
    notes.meter.arm()
    engine = torch.autograd.graph._engine_run_backward
    noted = _noted(engine, notes, nudger)
    torch.autograd.graph._engine_run_backward = noted
    torch.autograd._engine_run_backward = noted  # type: ignore[attr-defined]


def _same(tensor: Any) -> Any:
    return tensor


def _no_grad_instead(mode: Any = True) -> Any:
    import torch

    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else torch.enable_grad()


def _noted(engine: Any, notes: Notes, nudger: Any) -> Any:
    running = threading.local()

    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(running, "depth", 0):
            return engine(outputs, *args, **kwargs)
        notes.enough()  # it was caught the first time
        begun, imported = notes.meter.seconds(), notes.meter.imported()
        leaves, note = notes.meter.aside(lambda: _note(outputs, len(notes.passes), notes.meter))
        note.update(at=package.user_lines(sys._getframe(1)), begun=begun, imported=imported)
        running.depth = 1
        gradients: list[Any] = []
        if nudger is not None:
            nudger.before(outputs)
        try:
            result = engine(outputs, *args, **kwargs)
            gradients = [leaf.grad for leaf in leaves]
            note["returned"] = notes.meter.aside(lambda: [_hash(t) for t in result or ()])
            if nudger is not None:
                note["slope"] = nudger.after(result)
        except BaseException:
            note["raised"] = True
            raise
        finally:
            running.depth = 0
            returned = _given(note, locals())
            notes.meter.aside(lambda: notes.add(note, gradients, returned))
        notes.enough()
        return result

    return run_backward


def _note(outputs: Any, number: int, meter: Meter) -> tuple[list[Any], dict[str, Any]]:
    """The leaves that a pass reaches, and what is written down before it runs."""
    leaves, edges = _leaves(outputs)
    return leaves, {
        "edges": edges,
        "outputs": [_hash(t) for t in outputs],
        "leaves": [_hash(leaf) for leaf in leaves],
        "raised": False,
        "held": meter.held(number, outputs),
    }


def _given(note: dict[str, Any], names: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine returned, if it did."""
    return tuple(names.get("result") or ()) if "returned" in note else ()


def _leaves(outputs: Any) -> tuple[list[Any], int]:
    """The leaves below `outputs`, and the number of edges of the graph."""
    from gradext.rules import graph_copy

    rows, _ = graph_copy.rows_below(outputs)
    edges = sum(following >= 0 for row in rows for following in row[graph_rows.FOLLOWING])
    return graph_rows.leaves(rows), edges


def _hash(tensor: Any) -> str | None:
    import ctypes
    import hashlib

    import torch

    if not isinstance(tensor, torch.Tensor):
        return None
    plain = tensor.detach().to_dense().cpu().contiguous()
    plain = plain.resolve_conj().resolve_neg()
    head = f"{plain.dtype} {tuple(plain.shape)} "
    # Not by .numpy(): a program may be run without NumPy.
    data = ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.numel() else b""
    return hashlib.blake2b(head.encode() + data, digest_size=16).hexdigest()


def _kept(tensor: Any, notes: Notes) -> Any:
    """A copy for a comparison with a tolerance; None where there is none, or no room for it."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return None
    notes.bytes += tensor.nbytes if tensor.layout == torch.strided else 0
    return tensor.detach().to_dense().cpu().clone() if notes.bytes <= _MOST_BYTES else None


if __name__ == "__main__":
    main()
