"""gradext: why autograd went wrong, made visible.

This module holds the public names only. Importing it loads the compiled part (which registers
`torch.ops.gradext`) and nothing heavy on top of torch.
"""

from gradext import _install
from gradext._version import __version__

# `gradext doctor` exists for the case that the compiled part does not load, so that one command may
# go on without it; the rest of the program ends in one line instead of a traceback.
_program = _install.program_arguments()
try:
    _C = _install.load()
except ImportError as error:
    if _program is None:
        raise
    if _program[:1] != ["doctor"]:
        raise SystemExit(str(error)) from None
else:
    from gradext import ops
    from gradext.ops import shares_storage, shares_version_counter
    from gradext.state import (
        STATE_COLUMNS,
        StateTree,
        TensorState,
        inspect,
        inspect_tree,
        states,
    )

__all__ = [
    "STATE_COLUMNS",
    "StateTree",
    "TensorState",
    "__version__",
    "inspect",
    "inspect_tree",
    "ops",
    "shares_storage",
    "shares_version_counter",
    "states",
]
