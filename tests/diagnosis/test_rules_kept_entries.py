"""GX302 of a history that an entry or an attribute kept, which holds the next tensor by then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cases import Cases, named_and_mended
from torch import nn

from gradext.objects import naming
from gradext.rules.wording.held_by_modules import named_modules

case = Cases()

case(
    "GX302", "pair_in_a_dict_made_by_a_method", """
    class Memory(nn.Module):
        def __init__(self, index):
            super().__init__()
            self.index, self.kv = index, nn.Linear(3, 6)
        def update(self, x, state):
            k, v = self.kv(x).chunk(2, -1)
            m, z = k.sigmoid().t() @ v, k.sigmoid().sum(0)
            if state is not None:
                m, z = state[0] + m, state[1] + z
            return m, z
        def forward(self, x, states):
            state = states.get(self.index)
            out = x if state is None else x @ state[0] / state[1].norm()
            states[self.index] = self.update(x, state)  #C
            return torch.tanh(out + self.kv(x)[:, :3])
    layers = nn.ModuleList(Memory(i) for i in range(2))
    states = {}
    for x in torch.rand(3, 4, 3):
        for layer in layers:
            x = layer(x, states)
        x.pow(2).mean().backward()
    """,
    ("states[self.index] = self.update(x, state)",
     "states[self.index] = tuple(t.detach() for t in self.update(x, state))"),
    text=("`states[self.index]`, an entry of `states`,"),
    fix=("`states.update({k: tuple(s.detach() for s in t) for k, t in states.items()})` below",),
)  # fmt: skip
case(
    "GX302", "potentials_in_a_list_of_a_module", """
    class Spiking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)])
            self.mem = [torch.zeros(4), torch.zeros(2)]
        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = torch.tanh(layer(x) + 0.9 * self.mem[i])
                self.mem[i] = x * x  #C
            return x
    class Trainer:
        def __init__(self):
            self.net = Spiking()
            self.opt = torch.optim.SGD(self.net.parameters(), 0.01)
        def fit(self):
            for x in torch.rand(3, 5, 3):
                loss = self.net(x).pow(2).mean()
                self.opt.zero_grad()
                loss.backward()
                self.opt.step()
    trainer = Trainer()
    trainer.fit()
    """,
    ("self.mem[i] = x * x", "self.mem[i] = (x * x).detach()"),
    text=(".mem[i]`, an attribute of Spiking,"),
    fix=("net.mem[:] = [t.detach() for t in", "` below"),
)  # fmt: skip
case(
    "GX302", "slots_in_a_list_of_lists", """
    cell = nn.GRUCell(2, 3)
    opt = torch.optim.SGD(cell.parameters(), 0.01)
    bank = [[torch.zeros(4, 3)] for _ in range(2)]
    def write(slot, x):
        new = cell(x, slot[0])
        slot[0] = new * 0.9  #C
        return new
    for x in torch.rand(3, 2, 4, 2):
        loss = sum(write(slot, part).pow(2).mean() for slot, part in zip(bank, x))
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("slot[0] = new * 0.9", "slot[0] = (new * 0.9).detach()"),
)  # fmt: skip
case(
    "GX302", "attribute_set_from_what_a_function_returns", """
    def decayed(old, new):
        mixed = 0.5 * old + 0.5 * new
        return mixed
    class Tracker:
        mean = torch.zeros(3)
        def step(self, h):
            centred = (h - self.mean).pow(2).mean()
            self.mean = decayed(self.mean, h.pow(2).mean(0))  #C
            return centred
    net, tracker = nn.Linear(2, 3), Tracker()
    opt = torch.optim.SGD(net.parameters(), 0.01)
    for x in torch.rand(3, 4, 2):
        loss = tracker.step(net(x))
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("self.mean = decayed(self.mean, h.pow(2).mean(0))",
     "self.mean = decayed(self.mean, h.pow(2).mean(0)).detach()"),
    text=("mean`"),
)  # fmt: skip

test_named, test_mended = named_and_mended(case)


class Owner:
    def __init__(self, held: object) -> None:
        self.held = held


@pytest.mark.parametrize(
    "hold",
    [lambda net: net, lambda net: [net], lambda net: (net,)],
    ids=["attribute", "list", "tuple"],
)
def test_what_gradext_has_collected_gives_no_name(hold: Callable[[nn.Module], object]) -> None:
    owner = Owner(hold(nn.Linear(1, 1)))
    names = naming.Names([])
    assert not names.is_parameter(0)  # looks at every module there is, and keeps a list of them
    paths = [path for path, _ in named_modules()]
    assert any(".held" in path for path in paths), paths
    assert not any("Names" in path or "_roots" in path for path in paths), paths
    del owner, names
