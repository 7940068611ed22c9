"""A callback for transformers' Trainer: every Nth step is recorded and guarded.

Imported only by who uses it, for it imports transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from gradext.integrations.steps import WatchedSteps
from gradext.recording.options import GuardReads

if TYPE_CHECKING:
    TrainerCallback: Any = object
else:
    TrainerCallback = importlib.import_module("transformers").TrainerCallback


class GradextCallback(TrainerCallback):  # type: ignore[misc]
    """`Trainer(..., callbacks=[GradextCallback(every=100)])`.

    Findings go to the logger `gradext` of `logging`, and to `logger`.

    Args:
        every, guard: as WatchedSteps takes them; a step is one of the optimizer, with the
            micro-batches that it accumulates.
        on_finding: "warn", or "stop": training ends after the step, as early stopping does.
        logger: TensorBoard's SummaryWriter or a wandb run; without one, the run of wandb that is
            under way, where there is one. A Trainer's own writers cannot be reached from here.

    Attributes:
        steps: the WatchedSteps, whose `found` has what was found.
    """

    def __init__(
        self,
        every: int = 100,
        *,
        guard: bool | GuardReads = True,
        on_finding: Literal["warn", "stop"] = "warn",
        logger: Any = None,
    ) -> None:
        self.steps = WatchedSteps(every, guard=guard, on_finding=on_finding, logger=logger)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first micro-batch's forward."""
        self.steps.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the optimizer."""
        self.steps.end()
        if self.steps.wants_stop:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """However it ended."""
        self.steps.end()
