"""A callback for Lightning: every Nth batch is recorded and guarded, and findings are logged.

Imports Lightning, so only who uses it imports this: `pytorch_lightning` where that is imported and
`lightning` is not, whose callbacks are other classes.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Literal

from gradext.integrations.steps import WatchedSteps
from gradext.recording.options import GuardReads

if TYPE_CHECKING:
    Callback: Any = object
else:
    is_old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    _module = importlib.import_module("pytorch_lightning" if is_old else "lightning.pytorch")
    Callback = _module.Callback


class GradextCallback(Callback):  # type: ignore[misc]
    """`Trainer(callbacks=[GradextCallback(every=100)])`.

    Findings go to the logger `gradext` of `logging` and to the Trainer's own loggers (TensorBoard:
    a text and a metric; wandb: a metric and the report).

    Args:
        every, guard: as WatchedSteps takes them; a step is a batch of training.
        on_finding: "warn", or "stop": the Trainer stops after the batch, as early stopping does.

    Attributes:
        steps: the WatchedSteps, whose `found` has what was found.
    """

    def __init__(
        self,
        every: int = 100,
        *,
        guard: bool | GuardReads = True,
        on_finding: Literal["warn", "stop"] = "warn",
    ) -> None:
        super().__init__()
        self.steps = WatchedSteps(every, guard=guard, on_finding=on_finding)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The Trainer's loggers are there."""
        self.steps.logger = _All(trainer.loggers) if trainer.loggers else None

    def on_train_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Before forward."""
        self.steps.begin()

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """After the optimizer."""
        self.steps.end()
        if self.steps.wants_stop:
            trainer.should_stop = True

    def on_exception(self, *_: Any, **__: Any) -> None:
        """The batch failed; what is known of it has been told."""
        self.steps.end()


class _All:
    """Several loggers as one."""

    def __init__(self, loggers: Any) -> None:
        self._loggers = loggers

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        for each in self._loggers:
            each.log_metrics(metrics, step=step)

    @property
    def experiment(self) -> Any:
        return self._loggers[0].experiment
