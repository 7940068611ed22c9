"""One op on one set of arguments, from the runs to the findings; doubtful ones are asked twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradext.opcheck import verdicts, witnesses
from gradext.opcheck.verdicts import Finding
from gradext.opcheck.witnesses import Outcome


def examine(
    op: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    source: str = "",
    device: str = "cpu",
    keep: bool = False,
) -> tuple[Outcome, list[Finding]]:
    """The outcome of the runs and what it means; no findings where the op did not run.

    Values that differ under inference_mode may be memory that the op never wrote. Then everything
    runs once more, each time on memory that holds something else: what is still found is the op's.
    """
    outcome = witnesses.observe(op, args, kwargs, source=source, device=device, keep=keep)
    findings = verdicts.judge(outcome)
    if any(finding.kind == verdicts.INFERENCE for finding in findings):
        again = witnesses.observe(op, args, kwargs, device=device, thorough=True)
        confirmed = {(f.kind, f.subject, f.reason) for f in verdicts.judge(again)}
        findings = [
            finding
            for finding in findings
            if finding.kind != verdicts.INFERENCE
            or (finding.kind, finding.subject, finding.reason) in confirmed
        ]
    return outcome, findings
