"""Which patches come first, which are not tried, and which leave the fault where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_fix_command import candidates, fix, write

from gradext.fix import order, proof, search

OLD = b"for x in xs:\n    h = cell(x, h)\n    loss = h.sum()\n    loss.backward()\n"


@pytest.mark.parametrize(
    ("given", "now", "is_undone"),
    [
        # A cut that was put in is taken out again, on a line of its own and within one.
        (OLD + b"    h = h.detach()\n", OLD, True),
        (OLD.replace(b"h.sum()", b"h.detach().sum()"), OLD + b"    h = h.detach()\n", False),
        (
            OLD.replace(b"h.sum()", b"h.detach().sum()") + b"    h = h.detach()\n",
            OLD + b"    h = h.detach()\n",
            True,
        ),
        # The same cut once more behind it.
        (OLD + b"    h = h.detach()\n", OLD + b"    h = h.detach()\n    h = h.detach()\n", True),
        # Another name's, and the same name's elsewhere, are more patches.
        (OLD + b"    h = h.detach()\n", OLD + b"    c = c.detach()\n    h = h.detach()\n", False),
        (OLD + b"    h = h.detach()\n", b"h = h.detach()\n" + OLD + b"    h = h.detach()\n", False),
        (OLD, OLD.replace(b"h.sum()", b"h.mean()"), False),
    ],
)
def test_a_patch_that_takes_back_another(given: bytes, now: bytes, is_undone: bool) -> None:
    assert order.is_undone({"a.py": OLD}, {"a.py": given}, {"a.py": now}) is is_undone


def _tried(title: str, level: str, *, cuts: bool, edges: int = 0, more: int = 3) -> search.Tried:
    verdict = proof.Verdict(level, "", more=more)
    return search.Tried(title, {}, {}, verdict, cuts=cuts, edges=edges)


def test_what_cuts_the_least_comes_first_among_what_cuts() -> None:
    tried = [
        _tried("fails", proof.FAILS, cuts=True, edges=900),
        _tried("call once", proof.UNPROVED, cuts=False, edges=10),
        _tried("each step", proof.UNPROVED, cuts=True, edges=20),
        _tried("each round", proof.UNPROVED, cuts=True, edges=100),
        _tried("keep the graph", proof.UNPROVED, cuts=False, edges=1000),
    ]
    titles = [one.title for one in order.best_first(tried)]
    assert titles == ["call once", "each round", "each step", "keep the graph", "fails"]


CARRIED = {
    "a_membrane_of_a_module": (
        """
        import torch
        from torch import nn
        class Leaky(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.mem = nn.Linear(6, 6), torch.zeros(3, 6)
            def forward(self, x):
                self.mem = 0.9 * self.mem + self.fc(x)
                return torch.sigmoid(5 * (self.mem - 1))
        net = Leaky()
        for seq in torch.rand(4, 5, 3, 6):
            loss = (sum(net(x) for x in seq).mean() - 1) ** 2
            net.zero_grad()
            loss.backward()
        """,
        "net.mem = net.mem.detach()",
    ),
    "both_states_of_an_lstm_by_chunks": (
        """
        import torch
        from torch import nn
        cell, head = nn.LSTMCell(3, 4), nn.Linear(4, 1)
        h = c = torch.zeros(2, 4)
        for chunk in torch.randn(40, 2, 3).split(10):
            loss = 0
            for x in chunk:
                h, c = cell(x, (h, c))
                loss = loss + head(h).pow(2).mean()
            loss.backward()
        """,
        "    h = h.detach()",
    ),
    "a_state_handed_through_a_function": (
        """
        import torch
        from torch import nn
        gru, head = nn.GRUCell(3, 4), nn.Linear(4, 1)
        def unroll(chunk, h):
            total = 0
            for x in chunk:
                h = gru(x, h)
                total = total + head(h).pow(2).mean()
            return total, h
        state = torch.zeros(2, 4)
        for chunk in torch.randn(4, 6, 2, 3):
            loss, state = unroll(chunk, state)
            loss.backward()
        """,
        "state = state.detach()",
    ),
}


@pytest.mark.parametrize("name", CARRIED)
def test_carried_state_is_cut_once_for_each_backward(name: str, tmp_path: Path) -> None:
    import textwrap

    text, line = CARRIED[name]
    path = write(tmp_path, textwrap.dedent(text))
    fix(tmp_path, "--json", "out.json", "train.py")
    best: dict[str, Any] = candidates(tmp_path / "out.json")[0]
    assert best["level"] == "unproved"
    assert line in next(iter(best["files"].values()))
    assert line not in path.read_text()


STANDS = {
    "a_table_of_numpy_filled_by_item": """
        import numpy as np
        import torch
        from torch import nn
        def soft_dtw(x, y, gamma=0.5):
            n, m = len(x), len(y)
            cost = torch.cdist(x, y)
            table = np.full((n + 1, m + 1), 1e6, dtype=np.float32)
            table[0, 0] = 0
            for i in range(n):
                for j in range(m):
                    around = [table[i, j], table[i, j + 1], table[i + 1, j]]
                    r = torch.logsumexp(torch.tensor(around) / -gamma, 0) * -gamma
                    table[i + 1, j + 1] = (cost[i, j] + r).item()
            return torch.tensor(table[n, m])
        enc = nn.Linear(3, 2)
        for _ in range(2):
            z = enc(torch.randn(4, 3))
            (soft_dtw(z, torch.randn(5, 2)) + z.pow(2).mean()).backward()
        """,
    "a_running_list_of_numbers": """
        import torch
        from torch import nn
        net, scale = nn.Linear(3, 1), nn.Linear(1, 1)
        optimizer = torch.optim.SGD([*net.parameters(), *scale.parameters()], 0.1)
        def smooth(values):
            out = [values[0].item()]
            for v in values[1:]:
                out.append(0.9 * out[-1] + 0.1 * v.item())
            return torch.tensor(out)
        for x in torch.randn(3, 6, 3):
            loss = scale(smooth(net(x).squeeze(1)).unsqueeze(1)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
}


@pytest.mark.parametrize("name", STANDS)
def test_a_patch_after_which_the_fault_is_still_there_fails(name: str, tmp_path: Path) -> None:
    import textwrap

    write(tmp_path, textwrap.dedent(STANDS[name]))
    fix(tmp_path, "--json", "out.json", "train.py")
    for one in candidates(tmp_path / "out.json"):
        assert one["level"] != "unproved" or "GX304" not in one["proof"]["why"]
