"""An entry of what a function has returned is called what the line that writes it calls it."""

from __future__ import annotations

import textwrap

import pytest
from cases import run

# The source; how the message speaks of what was saved; how the label speaks of what is written.
WRITTEN = {
    "of_a_module_written_in_the_file": (
        """
        class Enc(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            def forward(self, x):
                mean = self.a(x).sigmoid()
                logvar = self.b(x).exp()
                return mean, logvar
        enc = Enc()
        def loss(x):
            out = enc(x)
            kl = (out[0] ** 2 + out[1]).sum()
            out[1].clamp_(max=3.0)
            return kl
        loss(torch.randn(2, 4)).backward()
        """,
        "Tensor `logvar`",
        "clamp_ writes `out[1]`",
    ),
    "of_a_tuple_in_the_tuple_of_a_library": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.LSTM(3, 3, batch_first=True)
            def forward(self, x):
                out = self.rnn(x)
                score = (out[1][0] * out[1][1]).sum() + out[0].sum()
                out[1][1].zero_()
                return score
        Net()(torch.randn(2, 5, 3)).backward()
        """,
        "Tensor `out[1][1]`",
        "zero_ writes `out[1][1]`",
    ),
    "of_an_argument": (
        """
        def use(pair, scale):
            z = (pair[0] * scale).sum() + (pair[1] * scale).sum()
            pair[1].mul_(3)
            return z
        def both(w):
            return w.sigmoid(), (w * 2).tanh()
        def total():
            w, scale = torch.randn(4, 4, requires_grad=True), torch.randn(4, requires_grad=True)
            return use(both(w), scale)
        total().backward()
        """,
        "Tensor `pair[1]`",
        "mul_ writes `pair[1]`",
    ),
    "of_a_list_of_pieces": (
        """
        def pieces(w):
            return [w.exp(), w.sin(), w.sigmoid()]
        def fit():
            w = torch.randn(3, requires_grad=True)
            held = pieces(w)
            total = held[0] + held[2]
            held[2].add_(1)
            return total.sum()
        fit().backward()
        """,
        "Tensor `held[2]`",
        "add_ writes `held[2]`",
    ),
    "a_row_of_a_tensor_stays_one": (
        """
        def fit():
            w = torch.randn(3, 4, requires_grad=True)
            rows = w.exp()
            total = rows.sum()
            rows[1].mul_(2)
            return total
        fit().backward()
        """,
        "Tensor `rows`",
        "mul_ writes `rows`",
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_entry_is_named(name: str) -> None:
    text, spoken, label = WRITTEN[name]
    ran = run(textwrap.dedent(text).lstrip("\n"), f"entry-{name}")
    first = ran.diagnoses[0]
    assert first.code == "GX101"
    assert first.message.startswith(spoken)
    assert first.culprits[0].label.startswith(label)
    assert ("`rows = rows.clone()`" in first.fix) == ("row" in name)  # a tuple has no clone()
