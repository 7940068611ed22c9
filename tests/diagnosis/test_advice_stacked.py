"""GX304's help for torch.tensor() of a list of tensors: a stack of them, typed where it says."""

from __future__ import annotations

import textwrap

import pytest
from advice import Advice, Advices, check
from cases import run

from gradext.diagnosis.model import Frame, Site
from gradext.rules.rewrite import stacked

copied = Advices()

copied(
    "rotation_by_an_angle", """
    class Align(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta, self.shift = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(2))
        def matrix(self):
            c, s = torch.cos(self.theta), torch.sin(self.theta)
            return torch.tensor([[c, -s], [s, c]])
        def forward(self, x):
            return x @ self.matrix() + self.shift
    net = Align()
    leaves = [net.theta, net.shift]
    net(torch.arange(6.0).view(3, 2)).square().sum().backward()
    """,
    ("return torch.tensor([[c, -s], [s, c]])",
     "return torch.stack([torch.stack([torch.as_tensor(v) for v in row]) "
     "for row in [[c, -s], [s, c]]])"),
    twin=(("return torch.tensor([[c, -s], [s, c]])",
           "return torch.stack([torch.stack([c, -s]), torch.stack([s, c])])"),),
)  # fmt: skip
copied(
    "affine_map_with_numbers_between", """
    scale = nn.Parameter(torch.tensor(2.0))
    bias = nn.Parameter(torch.ones(3))
    leaves = [scale, bias]
    opt = torch.optim.SGD(leaves, 0.0)
    affine = torch.tensor([(scale, 0, 1.5), (0, scale * 2, 0.0)])
    (affine @ torch.ones(3, 3) + bias).exp().sum().backward()
    """,
    ("affine = torch.tensor([(scale, 0, 1.5), (0, scale * 2, 0.0)])",
     "affine = torch.stack([torch.stack([torch.as_tensor(v) for v in row]) "
     "for row in [(scale, 0, 1.5), (0, scale * 2, 0.0)]])"),
    twin=(("affine = torch.tensor([(scale, 0, 1.5), (0, scale * 2, 0.0)])",
           "z = torch.zeros(())\n"
           "affine = torch.stack([scale, z, z + 1.5, z, scale * 2, z]).view(2, 3)"),),
)  # fmt: skip
copied(
    "weights_of_losses_of_one_dtype", """
    import torch as th
    logs = nn.ParameterList([nn.Parameter(th.zeros(())), nn.Parameter(th.ones(()))])
    shift = nn.Parameter(th.ones(2, dtype=th.float64))
    leaves = [*logs, shift]
    opt = torch.optim.SGD(leaves, 0.0)
    a, b = logs
    w = th.tensor([a.exp(), b.exp()], dtype=th.float64)
    (w * shift).square().sum().backward()
    """,
    ("w = th.tensor([a.exp(), b.exp()], dtype=th.float64)",
     "w = th.stack([th.as_tensor(v, dtype=th.float64) for v in [a.exp(), b.exp()]])"),
    twin=(("w = th.tensor([a.exp(), b.exp()], dtype=th.float64)",
           "w = th.stack([a.exp(), b.exp()]).double()"),),
)  # fmt: skip


@copied.each()
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_what_is_typed_gives_the_gradients(each: Advice) -> None:
    check(each, "GX304")


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_rows_that_are_lists_by_their_names_are_not_taken_for_tensors() -> None:
    text = """
    t = nn.Parameter(torch.tensor(0.5))
    b = nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([t, b], 0.0)
    row = [t.cos(), t.sin()]
    m = torch.tensor([row, row])
    (m @ torch.ones(2) + b).sum().backward()
    """
    ran = run(textwrap.dedent(text), "rows-by-name")
    assert [d.code for d in ran.diagnoses] == ["GX304"]
    assert "as_tensor" not in ran.diagnoses[0].fix


@pytest.mark.parametrize(
    "line",
    [
        "m = torch.tensor([f(x) for x in xs])",
        "m = torch.tensor([*xs, 1.0])",
        "m = torch.tensor([[a, b], c])",
        "m = torch.tensor(x)",
        "m = torch.tensor([a, b], pin_memory=True)",
        "m = torch.tensor([a]) + torch.tensor([b])",
        "m = torch.tensor([])",
    ],
)
def test_what_is_no_list_of_values_is_left(line: str) -> None:
    assert stacked.in_place_of_copy(Site(Frame("<none>", 1, "f", line))) is None
