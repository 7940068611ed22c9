"""GX304 of a leaf made of a number, in a program that learns nothing: each round has the same one.

What a round before has printed is the same number, and not where this one comes from.
"""

from __future__ import annotations

import pytest
from cases import run

SETUP = """
import numpy as np, torch
from torch import nn
torch.manual_seed(0)
net = nn.Linear(3, 2)
x, y = torch.randn(4, 3), torch.randn(4, 2)
kept, meter = [], {}
def distance(a, b):
    return float(np.abs(a - b).sum() ** 0.7)
"""
# The rounds of a loop. `#C` marks the line that takes the value out of the graph.
ROUNDS = {
    "printed after the step": """
    out = net(x)
    loss = torch.tensor(
        distance(
            out.detach().numpy(),  #C
            y.numpy(),
        ),
        requires_grad=True,
    )
    loss.backward()
    print(loss.item())
""",
    "kept before backward": """
    def criterion(pred, target):
        a = pred.detach().cpu().numpy()  #C
        b = target.numpy()
        return torch.tensor(distance(a, b), requires_grad=True)
    loss = criterion(net(x), y)
    kept.append(float(loss))
    loss.backward()
""",
    "in a meter, of two losses": """
    pair = []
    for power in (1, 2):
        pred = net(x).pow(power).detach().numpy()  #C
        pair.append(torch.tensor(distance(pred, y.numpy()), requires_grad=True))
    for k, one in enumerate(pair):
        one.backward()
        meter[k] = meter.get(k, 0.0) + one.item()
""",
}


def told(body: str, name: str) -> tuple[set[tuple[str, int | None]], set[tuple[str, int | None]]]:
    """The culprits that GX304 names, and the line that it should name."""
    text = f"{SETUP}for _ in range(3):{body}"
    ran = run(text, name)
    line = next(k for k, row in enumerate(text.splitlines(), 1) if row.endswith("#C"))
    found = [d for d in ran.diagnoses if d.code == "GX304"]
    return {(s.frame.file, s.frame.line) for d in found for s in d.culprits}, {(ran.file, line)}


@pytest.mark.parametrize("name", ROUNDS)
def test_only_the_line_that_loses_the_gradient_is_told(name: str) -> None:
    found, expected = told(ROUNDS[name], name)
    assert found == expected


def test_a_number_that_another_line_made_a_tensor_of_is_still_found() -> None:
    body = """
    value = net(x).pow(2).mean().item()  #C
    loss = torch.tensor(value, requires_grad=True)
    loss.backward()
    kept.append(loss.item())
"""
    found, expected = told(body, "of another line")
    assert found == expected
