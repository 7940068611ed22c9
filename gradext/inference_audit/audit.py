"""gradext.audit_inference: can this call run under inference_mode, and what would be different?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradext.inference_audit import checks
from gradext.inference_audit.report import SECONDS, InferenceAudit


def audit_inference(model_or_fn: Any, /, *args: Any, **kwargs: Any) -> InferenceAudit:
    """Can this call run under inference_mode instead of no_grad, and what does it leave behind?

    Runs `model_or_fn(*args, **kwargs)` several times, each time in a process forked for it (Linux,
    CPU), so that nothing changes here; where that is impossible on a deep copy, and where that is
    impossible too on the object itself, which the report says. Train and eval flags are as given.

    Returns:
        The report: print it, or read `.checks`, `.ok`, `.verdict`, `.to_json()`.

    Raises:
        TypeError: `model_or_fn` cannot be called.
    """
    return audit(model_or_fn, args, kwargs)


def audit(
    model_or_fn: Any,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    fork: bool = True,
    seconds: float = SECONDS,
) -> InferenceAudit:
    """audit_inference() with choices.

    Args:
        fork: False never forks. seconds: time limit of one run in a forked process.
    """
    if not callable(model_or_fn):
        kind = type(model_or_fn)
        raise TypeError(
            "gradext.audit_inference: expected a module or a function, got "
            f"{kind.__module__}.{kind.__qualname__}, which cannot be called"
        )
    return checks.audit(model_or_fn, tuple(args), dict(kwargs or {}), fork=fork, seconds=seconds)
