"""gradext: why autograd went wrong, made visible.

This module holds the public names only. Importing it loads the compiled part (which registers
`torch.ops.gradext`) and nothing heavy on top of torch.

In a program that is being recorded (`gradext run`, or the environment) the names come when they are
asked for, or when the program has imported torch: what a program sets before that, such as
OMP_NUM_THREADS, must still count.
"""

import os
from typing import TYPE_CHECKING

from gradext import _install
from gradext._version import __version__

__all__ = [
    "STATE_COLUMNS",
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
]

_program = _install.program_arguments()


def _leaves_torch_alone() -> bool:
    if _program is not None and _program[:1] in (["run"], ["explain"]):
        return True
    if not {"GRADEXT_RUN", "GRADEXT_RECORD"} & os.environ.keys():
        return False
    from gradext import autostart

    return autostart.wanted()


if not TYPE_CHECKING and "_load_names" not in globals() and _leaves_torch_alone():
    import contextlib
    import sys
    import threading

    _lock = threading.RLock()
    _loaded = False

    def __getattr__(name: str) -> object:
        # Not for any name: `from gradext import session` asks here before it imports the module.
        if name == "_C":
            _load_compiled()
        elif name in __all__ or name == "state":
            _load_names()
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def _load_compiled() -> None:
        # The end of torch's import may lead here too, so it comes first, and outside the lock.
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401
        with _lock:
            if "_C" not in globals():
                globals()["_C"] = _install.load()

    def _load_names() -> None:
        """Execute this module once more, this time to the end."""
        global _loaded
        _load_compiled()
        with _lock:
            if not _loaded:
                _loaded = True  # now: the names' own modules may ask for more of them
                __spec__.loader.exec_module(sys.modules[__name__])

    if _program is None:
        from gradext import autostart

        autostart.start()
    elif _program[:1] not in (["run"], ["explain"]):
        # Another gradext program, in an environment that asks for recording: not recorded.
        from gradext import torch_import

        torch_import.when_imported(_load_names)
else:
    # `gradext doctor` exists for the case that the compiled part does not load, so that one command
    # may go on without it; the rest of the program ends in one line instead of a traceback.
    try:
        if "_C" not in globals():
            globals()["_C"] = _install.load()  # _C.pyi has its type
    except ImportError as error:
        if _program is None:
            raise
        if _program[:1] != ["doctor"]:
            raise SystemExit(str(error)) from None
    else:
        from gradext import ops
        from gradext.autostart import install
        from gradext.diagnosis import Diagnosis, check_backward, explain
        from gradext.inference import audit_inference
        from gradext.integrity import (
            Fingerprint,
            Fingerprints,
            GuardError,
            GuardWarning,
            check_replicas,
            compare_fingerprints,
            fingerprint,
            guard,
        )
        from gradext.modes import compare_modes
        from gradext.ops import shares_storage, shares_version_counter
        from gradext.recording import Recording, record
        from gradext.state import (
            STATE_COLUMNS,
            StateTree,
            TensorState,
            inspect,
            inspect_tree,
            states,
        )
