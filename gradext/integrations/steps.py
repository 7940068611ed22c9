"""Every Nth step of a training loop, recorded and guarded: what the frameworks' callbacks share.

A loop of one's own uses it as it is: `with steps.step():` around forward, backward and the
optimizer. Nothing is recorded between the steps that are watched.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from gradext.base.met_before import MetBefore
from gradext.byte_guard import guard as byte_guard
from gradext.diagnosis import folding
from gradext.diagnosis.model import Diagnosis
from gradext.recording import incidents
from gradext.recording.options import GuardReads, guard_reads
from gradext.recording.recording import record
from gradext.reporters import diagnosis_text

log = logging.getLogger("gradext")


class WatchedSteps:
    """Watches one step in `every`.

    Args:
        every: the first step is watched, then each `every`-th.
        guard: compare the bytes of what is saved for backward too (GX401 to GX404); "all": also in
            memory that only torch has.
        on_finding: "warn" (the logger `gradext` of `logging`, once for each finding), or "stop":
            `wants_stop` is set too, which the frameworks' callbacks hand on.
        logger: where findings are logged too: TensorBoard's SummaryWriter, a wandb run, or a
            logger of Lightning's. What it is, is told by its methods; nothing is imported.

    Attributes:
        found: what was found so far, each once.
        wants_stop: training should end.

    Raises:
        ValueError: `every` is below 1, or `guard` or `on_finding` none of what it can be.
    """

    def __init__(
        self,
        every: int = 100,
        *,
        guard: bool | GuardReads = True,
        on_finding: Literal["warn", "stop"] = "warn",
        logger: Any = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"gradext: every is 1 or more, got {every!r}")
        if on_finding not in ("warn", "stop"):
            raise ValueError(f'gradext: on_finding is "warn" or "stop", got {on_finding!r}')
        try:
            self.guard = guard_reads(guard)
        except ValueError as error:
            raise ValueError(f"gradext: guard: {error}") from None
        self.every, self.on_finding, self.logger = every, on_finding, logger
        self.found: list[Diagnosis] = []
        self._told = MetBefore[None]()  # by Diagnosis.key()
        self.wants_stop = False
        self._count = 0
        self._open: contextlib.ExitStack | None = None

    def begin(self) -> None:
        """A step begins."""
        self.end()  # of a step whose end nobody told of: it failed
        self._count += 1
        if (self._count - 1) % self.every:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(incidents.subscribe(self._hear))
            stack.enter_context(record())
            if self.guard:
                stack.callback(byte_guard.start_quietly(self.guard))
            self._open = stack.pop_all()

    def end(self) -> None:
        """The step has ended; its recording does too, and what was silent is told."""
        stack, self._open = self._open, None
        if stack is not None:
            stack.close()

    @contextlib.contextmanager
    def step(self) -> Iterator[WatchedSteps]:
        """Around one step of a loop of one's own."""
        self.begin()
        try:
            yield self
        finally:
            self.end()

    def _hear(self, incident: incidents.Incident) -> None:
        new = [each for each in incident.diagnoses if self._told.meet(each.key(), None)]
        self.found += new
        new = folding.by_cause(new)
        if new:
            self.wants_stop |= self.on_finding == "stop"
            log.warning("%s", diagnosis_text.report(new, color=False))
            log_to(self.logger, new, self._count)


def log_to(logger: Any, found: Sequence[Diagnosis], step: int) -> None:
    """Hand findings to a logger: their number as a metric, the report as a text."""
    if logger is None:
        wandb = sys.modules.get("wandb")
        logger = getattr(wandb, "run", None)
    text = diagnosis_text.report(found, color=False)
    metric = "gradext/findings"
    log_metrics = _method(logger, "log_metrics")
    if log_metrics is not None:  # of Lightning; its `experiment` is the writer or the run
        log_metrics({metric: len(found)}, step=step)
        logger = getattr(logger, "experiment", None)
    if (add_text := _method(logger, "add_text")) is not None:
        add_text("gradext", "    " + text.replace("\n", "\n    "), step)  # Markdown's code
        add_scalar = _method(logger, "add_scalar")
        if log_metrics is None and add_scalar is not None:
            add_scalar(metric, len(found), step)
    elif (log_all := _method(logger, "log")) is not None:
        log_all({metric: len(found), "gradext/report": text})


def _method(of: Any, name: str) -> Callable[..., Any] | None:
    found = getattr(of, name, None)
    return found if callable(found) else None
