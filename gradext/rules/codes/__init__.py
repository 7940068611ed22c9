"""One module per code, or per group of codes that share one cause; RULES asks them in order.

What a recording finds without an error (GX304, GX401 and the guard's) has no message to match: the
judge and the guard ask those modules themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from gradext.diagnosis.model import Diagnosis
from gradext.rules.case import Case
from gradext.rules.codes import (
    gx101_stale_saved,
    gx102_106_refused_write,
    gx107_transformed_write,
    gx201_203_inference_tensor,
    gx301_graph_cut,
    gx302_graph_freed,
    gx303_unused_input,
    gx406_recompute_differs,
)


class Rule(NamedTuple):
    """What explains the errors whose message has a pattern."""

    pattern: re.Pattern[str]
    ask: Callable[[Case], list[Diagnosis]]


RULES = (
    Rule(
        gx102_106_refused_write.ANY,
        lambda case: gx102_106_refused_write.refused_write(case.error, case.data),
    ),
    Rule(gx107_transformed_write.ANY, lambda case: gx107_transformed_write.refused(case.error)),
    Rule(
        gx302_graph_freed.FREED,
        lambda case: gx302_graph_freed.second_backward(
            case.error, case.data, case.graph, case.names
        ),
    ),
    Rule(
        gx303_unused_input.UNUSED,
        lambda case: gx303_unused_input.unused_input(case.error, case.data, case.graph, case.names),
    ),
    Rule(
        gx101_stale_saved.PATTERN,
        lambda case: gx101_stale_saved.stale(case.error, case.data, case.graph, case.names),
    ),
    Rule(
        gx201_203_inference_tensor.ANY,
        lambda case: gx201_203_inference_tensor.misused(case.error, case.data),
    ),
    Rule(
        gx301_graph_cut.ANY,
        lambda case: gx301_graph_cut.no_gradient(case.error, case.data, case.outputs),
    ),
    Rule(
        gx406_recompute_differs.REFUSED,
        lambda case: gx406_recompute_differs.refused(case.error, case.data),
    ),
)


def is_known(text: str) -> bool:
    """Whether a message is one that a rule explains."""
    return any(rule.pattern.search(text) is not None for rule in RULES)


def diagnose(case: Case) -> list[Diagnosis]:
    """What the first rule says that knows such an error; nothing where none does."""
    text = case.text
    for rule in RULES:
        if rule.pattern.search(text) is not None:
            found = rule.ask(case)
            if found:
                return found
    return []
