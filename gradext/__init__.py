"""gradext: why autograd went wrong, made visible.

What to call first:

    with gradext.record():            # note what is written, saved, made and cut
        try:
            loss = step()
            loss.backward()
        except RuntimeError as error:
            print(gradext.explain(error))   # the line that did it, and what to type instead

    gradext.install()                 # the same for the rest of the program, notebooks too
    with gradext.guard(model): ...    # who changes bytes that nothing says are written
    print(gradext.inspect(tensor))    # version, view, leaf, inference flag: one card
    gradext.fingerprint(model)        # 128 bits of each tensor's content

From a shell: `gradext run train.py`; `gradext --help` has the rest. Further names:
`inspect_tree`, `states` (many tensors at once), `compare_fingerprints`, `check_replicas`,
`audit_inference` (can a model run under inference_mode), `compare_modes` (what no_grad and
inference_mode save), `check_backward` (silent errors now), `testing.check_op` (does an op write
what it declares), `ops` (reads for code that torch.compile traces).
"""

# This module is the table of the public names; each is imported from its home when it is first
# asked for. Importing it loads the compiled part (which registers `torch.ops.gradext`) and nothing
# heavy on top of torch.
#
# In a program that is being recorded (`gradext run`, or the environment) torch and the compiled
# part come when the program imports torch: what it sets before that, such as OMP_NUM_THREADS, must
# still count.

import importlib
from typing import TYPE_CHECKING

from gradext import _wiring
from gradext._version import __version__
from gradext.run import start

if TYPE_CHECKING:
    from gradext import _C as _C
    from gradext import ops, testing
    from gradext.byte_guard.guard import GuardError, GuardWarning, guard
    from gradext.diagnosis.model import Diagnoses, Diagnosis
    from gradext.fingerprints.fingerprint import (
        Fingerprint,
        Fingerprints,
        compare_fingerprints,
        fingerprint,
    )
    from gradext.fingerprints.replicas import check_replicas
    from gradext.inference_audit.audit import audit_inference
    from gradext.mode_costs.measure import compare_modes
    from gradext.ops import shares_storage, shares_version_counter
    from gradext.recording.recording import Recording, record
    from gradext.rules.check_backward import check_backward
    from gradext.rules.explain import explain
    from gradext.run.install import install
    from gradext.state.inspect import STATE_COLUMNS, TensorState, inspect, states
    from gradext.state.tree import StateTree, inspect_tree

__all__ = [
    "STATE_COLUMNS",
    "Diagnoses",
    "Diagnosis",
    "Fingerprint",
    "Fingerprints",
    "GuardError",
    "GuardWarning",
    "Recording",
    "StateTree",
    "TensorState",
    "__version__",
    "audit_inference",
    "check_backward",
    "check_replicas",
    "compare_fingerprints",
    "compare_modes",
    "explain",
    "fingerprint",
    "guard",
    "inspect",
    "inspect_tree",
    "install",
    "ops",
    "record",
    "shares_storage",
    "shares_version_counter",
    "states",
    "testing",
]

_HOMES = {
    "gradext.byte_guard.guard": ("GuardError", "GuardWarning", "guard"),
    "gradext.diagnosis.model": ("Diagnoses", "Diagnosis"),
    "gradext.fingerprints.fingerprint": (
        *("Fingerprint", "Fingerprints", "compare_fingerprints", "fingerprint"),
    ),
    "gradext.fingerprints.replicas": ("check_replicas",),
    "gradext.inference_audit.audit": ("audit_inference",),
    "gradext.mode_costs.measure": ("compare_modes",),
    "gradext.ops": ("shares_storage", "shares_version_counter"),
    "gradext.recording.recording": ("Recording", "record"),
    "gradext.rules.check_backward": ("check_backward",),
    "gradext.rules.explain": ("explain",),
    "gradext.run.install": ("install",),
    "gradext.state.inspect": ("STATE_COLUMNS", "TensorState", "inspect", "states"),
    "gradext.state.tree": ("StateTree", "inspect_tree"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# What IPython looks for at `%load_ext gradext`; no public names.
_HOME_OF["load_ipython_extension"] = "gradext.integrations.ipython"
_HOME_OF["unload_ipython_extension"] = "gradext.integrations.ipython"


def __getattr__(name: str) -> object:
    if name == "_C":
        from gradext import native

        value = native._C
    elif name in ("ops", "testing"):
        value = importlib.import_module(f"gradext.{name}")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


_wiring.connect()
start.begin()
