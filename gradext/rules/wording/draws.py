"""Draws from a distribution of torch's: `sample()` has no gradient, by what `rsample()` has one.

Reads frames only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.source import sites

if TYPE_CHECKING:
    from gradext.diagnosis.model import Frame, Site

SAMPLE = "sample"
# By the modules of torch.distributions whose sample() has no rsample() beside it.
_DISCRETE = {
    "categorical.py": "`torch.nn.functional.gumbel_softmax(logits, hard=True)`",
    "one_hot_categorical.py": "`torch.nn.functional.gumbel_softmax(logits, hard=True)`",
    "multinomial.py": "`torch.nn.functional.gumbel_softmax(logits, hard=True)`",
    "bernoulli.py": "`torch.distributions.RelaxedBernoulli(temperature, logits=...).rsample()`",
    "mixture_same_family.py": "rsample() of every component, weighted",
}
_OTHERS = ("binomial.py", "geometric.py", "negative_binomial.py", "poisson.py", "von_mises.py")


def _module(frame: Frame) -> str | None:
    """The name of a module of torch.distributions, where the frame runs in one."""
    parts = frame.file.replace("\\", "/").rsplit("/", 3)
    return parts[-1] if parts[-3:-1] == ["torch", "distributions"] else None


def of_distribution(entered: Sequence[Frame], running: Sequence[Frame]) -> Site | None:
    """The program's line that draws, where it is sample() that has entered no_grad."""
    owner = next((f for f in entered if not f.file.endswith("grad_mode.py")), None)
    if owner is None or owner.is_user or _module(owner) is None:
        return None
    site = sites.site(running, op="", label="draws without a gradient: sample() runs under no_grad")
    return dataclasses.replace(site, op=None) if site is not None else None


def instead(running: Sequence[Frame], site: Site) -> str:
    """What has a gradient in place of the draw whose op runs here, innermost frame first."""
    modules = [module for frame in running if (module := _module(frame)) is not None]
    score = "or learn by the score of what was drawn (`-log_prob(drawn) * value`)"
    relaxed = next((_DISCRETE[module] for module in modules if module in _DISCRETE), None)
    if relaxed is not None:
        return f"draw by {relaxed}, {score}"
    if any(module in _OTHERS for module in modules):
        return f"such a draw has no derivative: {score.removeprefix('or ')}"
    code = site.frame.code
    if f".{SAMPLE}(" in code:
        drawn = code.strip().replace(f".{SAMPLE}(", ".rsample(")
        return f"`{drawn}`: rsample() hands the gradient on to the distribution's parameters"
    return "call rsample() in place of sample(): it hands the gradient on"
