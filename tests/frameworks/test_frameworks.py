"""The callbacks, in real Lightning, transformers and accelerate, on models of a few numbers.

Skipped where these are not installed; `nox -s frameworks` installs them, and forbids the skip.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradext import _C
from gradext.integrations.steps import WatchedSteps, log_to

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "frameworks"


def installed(name: str) -> Any:
    if os.environ.get("GRADEXT_REQUIRE_FRAMEWORKS") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)


class Writer:
    """A SummaryWriter's interface."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.numbers: list[tuple[str, float, int]] = []

    def add_text(self, tag: str, text: str, step: int) -> None:
        assert (tag, step >= 1) == ("gradext", True)
        self.texts.append(text)

    def add_scalar(self, tag: str, number: float, step: int) -> None:
        self.numbers.append((tag, number, step))


class Run:
    """A wandb run's interface."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def log(self, facts: dict[str, Any]) -> None:
        self.logged.append(facts)


# --- a loop of one's own --------------------------------------------------------------------------


def loop(steps: WatchedSteps, *, wrong: bool, count: int = 6) -> tuple[list[bool], torch.Tensor]:
    """Which steps were recorded, and what was learnt."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    recorded = []
    for _ in range(count):
        with steps.step():
            recorded.append(_C.recorder_active())
            gate = torch.sigmoid(net(torch.ones(2, 3)))
            loss = (gate * gate).sum()
            if wrong:
                gate.data.mul_(0.5)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not _C.recorder_active()
        if steps.wants_stop:
            break
    return recorded, net.weight.detach()


def test_one_step_in_three_is_watched() -> None:
    steps = WatchedSteps(every=3)
    recorded, _ = loop(steps, wrong=False)
    assert recorded == [True, False, False, True, False, False]
    assert steps.found == []


def test_what_is_found_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer()
    steps = WatchedSteps(every=1, logger=writer)
    with caplog.at_level(logging.WARNING, "gradext"):
        recorded, _ = loop(steps, wrong=True)
    assert len(recorded) == 6
    assert {found.code for found in steps.found} == {"GX401"}
    assert caplog.text.count("error[GX401]") == len(writer.texts) == 1
    assert writer.texts[0].startswith("    error[GX401]")
    assert writer.numbers == [("gradext/findings", 1, 1)]


def test_stop_ends_the_loop() -> None:
    steps = WatchedSteps(every=2, on_finding="stop")
    recorded, _ = loop(steps, wrong=True)
    assert recorded == [True]


def test_training_is_not_changed() -> None:
    _, watched = loop(WatchedSteps(every=2), wrong=False)
    _, alone = loop(WatchedSteps(every=10**9, guard=False), wrong=False)
    assert torch.equal(watched, alone)


def test_a_step_that_fails_leaves_nothing_on() -> None:
    steps = WatchedSteps(every=1)
    w = torch.ones(3, requires_grad=True)
    with contextlib.suppress(RuntimeError), steps.step():
        h = torch.sigmoid(w)
        h.mul_(2)
        h.sum().backward()
    assert not _C.recorder_active()
    assert [found.code for found in steps.found] == ["GX101"]


def test_a_run_of_wandb_and_a_logger_of_lightning() -> None:
    steps = WatchedSteps(every=1)
    loop(steps, wrong=True, count=1)
    run = Run()
    log_to(run, steps.found, 1)
    (facts,) = run.logged
    assert facts["gradext/findings"] == len(steps.found)
    assert "GX401" in facts["gradext/report"]

    class Logger:
        def __init__(self) -> None:
            self.metrics: list[Any] = []
            self.experiment = Run()

        def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
            self.metrics.append((metrics, step))

    logger = Logger()
    log_to(logger, steps.found, 7)
    assert logger.metrics == [({"gradext/findings": len(steps.found)}, 7)]
    assert "GX401" in logger.experiment.logged[0]["gradext/report"]
    log_to(None, steps.found, 1)  # no logger: nothing, and nothing imported


@pytest.mark.parametrize("options", [{"every": 0}, {"on_finding": "raise"}])
def test_senseless_options_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^gradext: [^\n]*$"):
        WatchedSteps(**options)


def test_nothing_is_imported_unasked() -> None:
    program = "import gradext.integrations.steps, sys; print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert not {"lightning", "pytorch_lightning", "transformers", "wandb"} & set(printed.split())


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_callback_is_short(name: str) -> None:
    text = (ROOT / "gradext" / "integrations" / f"{name}.py").read_text()
    assert len(text.splitlines()) < 80


# --- the frameworks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate"])
def test_an_example_stops_where_it_goes_wrong(name: str, tmp_path: Path) -> None:
    installed(name)
    if name == "transformers":
        installed("accelerate")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}_train.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "stopped after step 1"
    assert done.stderr.count("error[GX401]") == 1
    assert ".data" in done.stderr
    assert not any(tmp_path.glob("lightning_logs*"))


def lightning_net(pl: Any, wrong: bool) -> Any:
    class Net(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            gate = torch.sigmoid(self.layer(batch))
            if wrong:
                gate.mul_(2)  # torch refuses the backward
            return (gate * gate).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Net()


def lightning_trainer(pl: Any, folder: Path, **options: Any) -> Any:
    quiet = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return pl.Trainer(
        max_steps=4, accelerator="cpu", default_root_dir=str(folder), **quiet, **options
    )


@pytest.fixture
def batches() -> Any:
    torch.manual_seed(1)
    return torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2)


def test_lightning_trains_as_without(tmp_path: Path, batches: Any) -> None:
    pl = installed("lightning.pytorch")
    from gradext.integrations.lightning import GradextCallback

    weights = []
    for callbacks in ([], [GradextCallback(every=1)]):
        net = lightning_net(pl, wrong=False)
        lightning_trainer(pl, tmp_path, callbacks=callbacks, logger=False).fit(net, batches)
        weights.append(net.layer.weight.detach())
    assert torch.equal(*weights)
    assert callbacks[0].steps.found == []


def test_lightning_raises_what_torch_raises(tmp_path: Path, batches: Any) -> None:
    pl = installed("lightning.pytorch")
    from gradext.integrations.lightning import GradextCallback

    callback = GradextCallback(every=1)
    trainer = lightning_trainer(pl, tmp_path, callbacks=[callback], logger=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        trainer.fit(lightning_net(pl, wrong=True), batches)
    assert [found.code for found in callback.steps.found] == ["GX101"]
    assert not _C.recorder_active()


def test_lightnings_tensorboard_has_the_report(tmp_path: Path, batches: Any) -> None:
    pl = installed("lightning.pytorch")
    installed("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from gradext.integrations.lightning import GradextCallback

    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    trainer = lightning_trainer(pl, tmp_path, callbacks=[GradextCallback()], logger=logger)
    with contextlib.suppress(RuntimeError):
        trainer.fit(lightning_net(pl, wrong=True), batches)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "gradext/findings" in events.Tags()["scalars"]
    (report,) = events.Tensors("gradext/text_summary")
    assert b"error[GX101]" in report.tensor_proto.string_val[0]


def trained(callbacks: list[Any], folder: Path, **options: Any) -> Any:
    transformers = installed("transformers")
    installed("accelerate")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(16, (16, 8))]
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, report_to=[], save_strategy="no", max_steps=3,
        use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
def test_transformers_trains_as_without(options: dict[str, Any], tmp_path: Path) -> None:
    installed("transformers")
    from gradext.integrations.transformers import GradextCallback

    callback = GradextCallback(every=2)
    watched = trained([callback], tmp_path, **options)
    alone = trained([], tmp_path, **options)
    for name, parameter in watched.model.named_parameters():
        assert torch.equal(parameter, alone.model.get_parameter(name)), name
    assert callback.steps.found == []
    assert not _C.recorder_active()


def test_transformers_logs_where_it_is_told(tmp_path: Path) -> None:
    transformers = installed("transformers")
    from gradext.integrations.transformers import GradextCallback

    def squared(module: Any, inputs: Any, output: Any) -> Any:
        used = torch.tanh(output)
        out = used * used
        used.data.mul_(0.5)  # past the version counter
        return out

    class Writes(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, **how: Any) -> None:
            how["model"].transformer.ln_f.register_forward_hook(squared)

    writer = Writer()
    callback = GradextCallback(every=1, logger=writer, on_finding="stop")
    trainer = trained([callback, Writes()], tmp_path)
    assert trainer.state.global_step == 1
    assert "GX401" in writer.texts[0]
