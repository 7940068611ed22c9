"""The writes of optimizers and of gradient accumulation, as the recorder notes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from events import history, recorded, short, user_line, writes

import gradext

Expected = list[tuple[str, int, int]]

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], Expected]] = {
    # The writes to the parameter itself, in two steps.
    "SGD": (torch.optim.SGD, {"foreach": False}, [("add_", 0, 1), ("add_", 1, 2)]),
    "SGD foreach": (
        torch.optim.SGD,
        {"foreach": True},
        [("_foreach_add_", 0, 1), ("_foreach_add_", 1, 2)],
    ),
    "SGD fused": (torch.optim.SGD, {"fused": True}, [("_fused_sgd_", 0, 0)] * 2),
    "Adam": (torch.optim.Adam, {"foreach": False}, [("addcdiv_", 0, 1), ("addcdiv_", 1, 2)]),
    "Adam foreach": (
        torch.optim.Adam,
        {"foreach": True},
        [("_foreach_addcdiv_", 0, 1), ("_foreach_addcdiv_", 1, 2)],
    ),
    "Adam fused": (torch.optim.Adam, {"fused": True}, [("_fused_adam_", 0, 0)] * 2),
    "AdamW": (
        torch.optim.AdamW,
        {"foreach": False},
        [("mul_", 0, 1), ("addcdiv_", 1, 2), ("mul_", 2, 3), ("addcdiv_", 3, 4)],
    ),
    "AdamW foreach": (
        torch.optim.AdamW,
        {"foreach": True},
        [
            ("_foreach_mul_", 0, 1),
            ("_foreach_addcdiv_", 1, 2),
            ("_foreach_mul_", 2, 3),
            ("_foreach_addcdiv_", 3, 4),
        ],
    ),
    "AdamW fused": (torch.optim.AdamW, {"fused": True}, [("_fused_adamw_", 0, 0)] * 2),
}


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name: str, saves: bool) -> None:
    make, options, expected = OPTIMIZERS[name]
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = make(parameters, lr=0.1, **options)

    def program() -> None:
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()

    recording = recorded(program, saves=saves)
    for parameter in parameters:
        assert history(recording, parameter) == expected
        assert parameter._version == expected[-1][2]
        for write in recording.mutations(parameter):
            assert write.declared_only is ("fused" in name)
            frame = user_line(recording, write)
            assert (frame.code, frame.file) == ("optimizer.step()", __file__)


def test_a_fused_step_names_every_list_it_writes() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
    parameter.grad = torch.ones(2)
    recording = recorded(optimizer.step)
    found = [(w.argument, w.counter) for w in writes(recording) if "fused" in w.op]
    state = optimizer.state[parameter]
    tensors = [parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
    assert found == [(k, gradext.inspect(t).version_counter) for k, t in enumerate(tensors)]


def test_gradient_accumulation_is_a_write_by_backward() -> None:
    w = torch.ones(2, requires_grad=True)
    (w * 3).sum().backward()
    assert w.grad is not None
    grad = w.grad

    def program() -> None:
        (w * 3).sum().backward()

    recording = recorded(program)
    (write,) = recording.mutations(grad)
    assert short(write) == ("add_", 0, 1)
    assert user_line(recording, write).code == "(w * 3).sum().backward()"
