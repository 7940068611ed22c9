"""What gradext.recording.training notes of optimizers and modules, and what it must not do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import gradext
from gradext.recording import own_errors, training


def test_a_modules_own_dict_is_not_asked() -> None:
    asked: list[str] = []

    class Watched(dict[str, Any]):
        def get(self, *words: Any) -> Any:
            asked.append("get")
            return super().get(*words)

        def values(self) -> Any:
            asked.append("values")
            return super().values()

    class Lying:
        @property
        def __class__(self) -> Any:
            asked.append("__class__")
            return dict

    faults = own_errors.lines()
    with gradext.record():
        net = nn.Sequential(nn.Linear(2, 2))
        torch.optim.SGD(net.parameters(), 0.1)
        net._modules = Watched(net._modules)
        part = nn.Module()
        part.__dict__["_parameters"] = Lying()
        asked.clear()
        training.known.registered(net, "1", nn.Linear(2, 2))
        training.known.registered(part, "weight", nn.Parameter(torch.ones(1)))
        assert len(training.leaves_of(net)) == 2
        assert training.leaves_of(part) == []
    assert asked == []
    assert own_errors.lines() == faults


def test_an_optimizer_does_not_inherit_the_calls_of_one_that_is_gone() -> None:
    with gradext.record():
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], 0.1)
        training.known.calls_of(optimizer)
        training.known.calls[id(optimizer)] = 7
        training.known._known[id(optimizer)] = lambda: None  # type: ignore[assignment]
        training.known.got_group(optimizer)
        assert training.known.calls_of(optimizer) == 0


def test_what_is_remembered_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(training, "_MOST_MODULES", 8)
    with gradext.record():
        torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
        many = [nn.Linear(1, 1) for _ in range(60)]  # at once, so that no id comes twice
        assert len(training.known._new) == 60
        many.clear()
        kept = nn.Linear(1, 1)
        assert len(training.known._new) <= 8
        assert len(training.known._places) <= 8
        assert kept.weight is not None
