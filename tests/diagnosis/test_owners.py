"""Whose tensors these are: looked for when somebody asks, and named as a person would name them."""

from __future__ import annotations

import gc

import pytest
import torch
from cases import run
from torch import nn

from gradext.objects import naming
from gradext.rules.wording.owners import Owners

CLEAN = {
    "target_of_numbers": """
    net = nn.Linear(2, 1)
    target = torch.tensor([1.0, 2.0]) * float(torch.rand(()))
    (net(torch.ones(2)) - target).sum().backward()
    """,
    "scale_that_numpy_made": """
    net = nn.Linear(2, 1)
    scale = torch.from_numpy(torch.rand(2).numpy() + 1.0)
    (net(scale) * 2.0).sum().backward()
    """,
    "labels_that_were_decided": """
    net = nn.Linear(2, 2)
    labels = torch.rand(4, 2).argmax(1)
    F.cross_entropy(net(torch.rand(4, 2)), labels).backward()
    """,
}
TOLD = """
    net, gate = nn.Linear(2, 1), nn.Linear(2, 1)
    opt = torch.optim.SGD([*net.parameters(), *gate.parameters()], 0.1)
    weight = torch.tensor(gate(torch.ones(2)).tolist())
    (net(torch.ones(2)) * weight).sum().backward()
    """


def program(text: str) -> str:
    return "\n".join(line[4:] for line in text.strip("\n").splitlines())


@pytest.mark.parametrize("name", CLEAN)
def test_nobody_looks_at_every_object_where_nothing_is_told(name, monkeypatch):
    looks = []
    monkeypatch.setattr(naming, "every", lambda *kinds: looks.append(kinds) or [])
    assert run(program(CLEAN[name]), name).diagnoses == []
    assert looks == []


def test_what_is_told_has_its_names():
    (found,) = run(program(TOLD), "told").diagnoses
    assert found.code == "GX304"
    told = found.message + str(found.notes)
    assert "`gate.weight`" in told
    assert "`gate.bias`" in told


@pytest.fixture
def owners():
    gc.collect()
    return Owners([])


def test_an_owner_is_never_one_of_gradexts_own_lists(owners):
    def build():
        net = nn.Linear(2, 2)
        return lambda: net  # held by a cell, which has no name

    held = build()
    weight = held().weight
    assert owners.root_of  # every module has been looked at
    assert owners.of(weight) == "Linear.weight"


def test_an_owner_that_an_object_holds_is_named_by_it(owners):
    class Learner:
        def __init__(self):
            self.nets = [nn.Linear(2, 2)]

    learner = Learner()
    assert owners.of(learner.nets[0].bias) == "Learner.nets[0].bias"


def test_names_are_looked_for_one_by_one(owners, monkeypatch):
    nets = [nn.Linear(2, 2) for _ in range(8)]
    asked = []
    monkeypatch.setattr(naming.Names, "of", lambda self, tensor: asked.append(tensor) or "x")
    trainable = owners.trainable
    assert len(trainable) >= 2 * len(nets)
    assert not asked
    assert trainable[:4] == ["x"] * 4
    assert len(asked) == 4
    assert trainable[0] == "x"
    assert len(asked) == 5


def test_what_an_optimizer_has_is_known_without_names(owners):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(first.parameters(), 0.1)
    known = {naming.identity_of(p).id for p in first.parameters()}
    assert known <= owners.optimized
    assert naming.identity_of(second.weight).id not in owners.trainable_ids
    assert len(optimizer.param_groups) == 1
