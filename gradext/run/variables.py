"""What GRADEXT_RECORD may say: a word, or the options of `gradext run`. Imports no torch.

`GRADEXT_RECORD="--guard --json found.json"` is what `gradext run --guard --json found.json` is, for
a program that something else starts.
"""

from __future__ import annotations

import os
import shlex

from gradext.recording.options import GUARDS
from gradext.run import joint, upper
from gradext.run.settings import BadVariable, Settings

# 1 (or full), light, guard, guard=all, or options; 0 and nothing: off
RECORD = "GRADEXT_RECORD"
JSON = "GRADEXT_JSON"
# Set by launchers that start several processes of one program: none may write another's file.
RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_OFF = {"", "0", "no", "off", "false"}
_MODES: dict[str, list[str]] = {
    **{word: [] for word in ("1", "full", "yes", "on", "true")},
    "light": ["--light"],
    "guard": ["--guard"],
    **{f"guard={reads}": [f"--guard={reads}"] for reads in GUARDS},
}


def is_off() -> bool:
    """Whether nothing is asked for."""
    return os.environ.get(RECORD, "").strip().lower() in _OFF


def settings() -> Settings:
    """The settings of a new run, as the environment variables have them.

    Raises:
        BadVariable: they make no sense.
    """
    value = os.environ.get(RECORD, "").strip()
    words = _MODES.get(value.lower())
    if words is None and not value.startswith("-"):
        short = value if len(value) <= 40 else value[:37] + "..."
        known = "1 (or full), light, guard, guard=all, options of gradext run, or 0"
        raise BadVariable(f"{RECORD} is {short!r}; it can be {known}")
    try:
        words = shlex.split(value) if words is None else words
        outputs, options, shown = upper.parse_options(words)
    except ValueError as error:
        raise BadVariable(f"{RECORD}: {error}") from None
    return Settings.new(_outputs(outputs), options)._replace(shown=shown)


def _outputs(named: dict[str, str]) -> dict[str, str]:
    path = os.environ.get(JSON)
    if path and "json" not in named:
        if any(os.environ.get(rank) for rank in RANKS) and joint.of_this_process() is None:
            path = f"{path}.{os.getpid()}"
        named = {"json": path, **named}
    return joint.of_this_machine(named)
