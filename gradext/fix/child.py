"""The child process of one trial: runs the program with a patch, and notes each backward pass.

Started as `python -m gradext.fix.child SPEC`, a JSON file of fields (see Spec). The program is run
by `gradext run`, so what is diagnosed is what a user would see. Each outermost call of the engine
is noted: hashes of its outputs, and of the value and the gradient of each leaf that it reaches.
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


class Spec(NamedTuple):
    """What a child is told.

    Attributes:
        words: what stands behind `gradext` on the command line that is to be run.
        texts: (path, its bytes in base64) of each file that another text stands in for.
        mode: "as-is"; "as-saved": each tensor that is saved for backward is saved as a copy, so
            that later writes do not reach it; "no-inference": inference_mode() acts as no_grad().
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
    """What is written down of the passes of this process."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.pid = os.getpid()
        self.passes: list[dict[str, Any]] = []
        self.values: list[list[Any]] = []
        self.bytes = 0
        self.until = spec.until
        self.told: int | None = None  # the pass of the first silent fault
        self.ended = 0
        self.lock = threading.Lock()

    def write(self) -> None:
        if os.getpid() != self.pid:
            return  # a fork of the program
        import torch

        torch.save(self.values, self.spec.result + ".pt")
        draft = self.spec.result + ".tmp"
        with open(draft, "w", encoding="utf-8") as file:
            facts = {"passes": self.passes, "stopped": self.ended > 0, "told": self.told}
            json.dump(facts, file)
        os.replace(draft, self.spec.result)

    def diagnosed(self, incident: Any) -> None:
        if incident.kind == "backward" or self.told is not None:
            return  # it raises
        self.told = len(self.passes)
        if self.until is None:
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


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = Spec(**json.load(file))
    overlay.lay({path: base64.b64decode(text) for path, text in spec.texts})
    import random

    random.seed(spec.seed)
    notes = Notes(spec)
    torch_import.when_imported(lambda: _arm(notes))
    sys.argv = ["gradext", *spec.words]
    sys.orig_argv = [sys.executable, "-m", "gradext", *spec.words]
    try:
        # The same program that a user starts; it ends by SystemExit.
        runpy.run_module("gradext", run_name="__main__")
    finally:
        if "torch" in sys.modules:
            notes.write()


def _arm(notes: Notes) -> None:
    """torch is there, and the program has not begun to use it."""
    import torch

    from gradext.recording import incidents

    spec = notes.spec
    torch.manual_seed(spec.seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(spec.seed)
    if spec.mode == "as-saved":
        # For the rest of the process, on its first thread. torch compares no versions of what a
        # hook has packed (Note [Saved tensors] in torch/csrc/autograd/saved_variable.h).
        torch.autograd.graph.saved_tensors_hooks(torch.clone, _same).__enter__()
    elif spec.mode == "no-inference":
        for module in (torch, torch.autograd, torch.autograd.grad_mode):
            if hasattr(module, "inference_mode"):
                module.inference_mode = _no_grad_instead  # type: ignore[attr-defined]
    nudger = None
    if spec.nudge:
        from gradext.fix import slope

        torch.set_default_dtype(torch.float64)
        nudger = slope.Nudger(spec.nudge, spec.nudged, lambda: len(notes.passes))
        nudger.__enter__()  # type: ignore[no-untyped-call]
    incidents.subscribe(notes.diagnosed)
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
        leaves = _leaves(outputs)
        note: dict[str, Any] = {
            "at": _user_lines(),
            "outputs": [_hash(t) for t in outputs],
            "leaves": [_hash(leaf) for leaf in leaves],
            "raised": False,
        }
        running.depth = 1
        gradients: list[Any] = []
        if nudger is not None:
            nudger.before(outputs)
        try:
            result = engine(outputs, *args, **kwargs)
            gradients = [leaf.grad for leaf in leaves]
            note["returned"] = [_hash(t) for t in result or ()]
            if nudger is not None:
                note["slope"] = nudger.after(result)
        except BaseException:
            note["raised"] = True
            raise
        finally:
            running.depth = 0
            note["gradients"] = [_hash(t) for t in gradients]
            with notes.lock:
                notes.passes.append(note)
                notes.values.append(
                    [_kept(t, notes) for t in (*gradients, *_given(note, locals()))]
                )
        notes.enough()
        return result

    return run_backward


def _given(note: dict[str, Any], names: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine returned, if it did."""
    return tuple(names.get("result") or ()) if "returned" in note else ()


def _leaves(outputs: Any) -> list[Any]:
    from gradext.rules import graph_copy

    rows, _ = graph_copy.rows_below(outputs)
    return [row[0].variable for row in rows if row[1].endswith("AccumulateGrad")]


def _hash(tensor: Any) -> str | None:
    import hashlib

    import torch

    if not isinstance(tensor, torch.Tensor):
        return None
    plain = tensor.detach().to_dense().cpu().contiguous()
    plain = plain.resolve_conj().resolve_neg()
    head = f"{plain.dtype} {tuple(plain.shape)} "
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.blake2b(head.encode() + data, digest_size=16).hexdigest()


def _kept(tensor: Any, notes: Notes) -> Any:
    """A copy for a comparison with a tolerance; None where there is none, or no room for it."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return None
    notes.bytes += tensor.nbytes if tensor.layout == torch.strided else 0
    return tensor.detach().to_dense().cpu().clone() if notes.bytes <= _MOST_BYTES else None


def _user_lines() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    at: Any = sys._getframe(2)
    while at is not None and len(found) < 64:
        code = at.f_code
        if package.is_user_file(code.co_filename):
            name = getattr(code, "co_qualname", code.co_name)
            found.append({"file": code.co_filename, "line": at.f_lineno, "function": name})
        at = at.f_back
    return found


if __name__ == "__main__":
    main()
