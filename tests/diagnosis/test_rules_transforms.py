"""GX107: writes in place that a transform of torch.func refuses; and names under torch.func."""

from __future__ import annotations

import pytest
import torch
from cases import Cases, named_and_mended, run

_cases = Cases()

_cases(
    "GX107", "a_row_by_index", """
    from torch.func import vmap
    def one_hot(value, index):
        row = torch.zeros(4)  #V
        row[index] = value  #C
        return row
    vmap(one_hot)(torch.ones(3), torch.tensor([0, 2, 1]))
    """,
    ("torch.zeros(4)", "value.new_zeros(4)"), text=("`row`", "for all examples"),
    fix=("`row = value.new_zeros(4)`",),
)  # fmt: skip
_cases(
    "GX107", "a_sum_in_a_loop", """
    def total(x):
        acc = torch.ones(3)  #V
        for _ in range(2):
            acc *= x  #C
        return acc
    torch.vmap(total)(torch.ones(4, 3))
    """,
    ("torch.ones(3)", "x.new_ones(3)"), fix=("`acc = x.new_ones(3)`",),
)  # fmt: skip
_cases(
    "GX107", "an_argument_that_is_given_whole", """
    from torch.func import vmap
    def centre(x, shift):
        x.add_(shift)  #C
        return x.sum()
    points = torch.ones(3)
    vmap(centre, (None, 0))(points, torch.ones(4, 3))  #V
    """,
    ("x.add_(shift)", "x = x.add(shift)"), text=("`x` is one tensor",), fix=("`x = x.add(shift)`",),
)  # fmt: skip
_cases(
    "GX107", "a_buffer_of_a_module_under_functional_call", """
    from torch.func import functional_call, vmap
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))
        def forward(self, x):
            self.seen.add_(x)  #C
            return self.seen * 2
    net = Counter()
    def call(x):
        return functional_call(net, {}, (x,))
    vmap(call)(torch.ones(4, 3))  #V
    """,
    ("self.seen.add_(x)", "self.seen = self.seen + x"), ("return self.seen * 2", "return x * 2"),
    ("self.seen = self.seen + x", "pass"), text=("`self.seen`",),
)  # fmt: skip
_cases(
    "GX107", "captured_under_grad", """
    from torch.func import grad
    scale = torch.ones(3)
    def loss(w):
        scale.mul_(w.sum().detach())  #C
        return (w * scale).sum()
    grad(loss)(torch.ones(3))  #V
    """,
    ("scale.mul_(w.sum().detach())", "pass"), text=("`scale` is none of the arguments",),
    fix=("as an argument",),
)  # fmt: skip

test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(_cases)


@pytest.mark.parametrize(
    "text",
    [
        "x = torch.ones(3)\nx.add_(torch.ones(4, 3))",
        "from torch.func import vmap\nvmap(torch.sin)(torch.ones(3))\n"
        "y = torch.zeros(2)\ny += torch.ones(3, 2)",
    ],
)
def test_a_shape_that_does_not_fit_outside_of_vmap_is_no_such_fault(text: str) -> None:
    assert run(text, "shapes").diagnoses == []


NAMED = """
from torch.func import {imports}
w = torch.ones(3)
def loss(w, x):
    h = torch.sigmoid(w * x)
    h.add_(1)
    return h.sum()
{call}
"""


@pytest.mark.parametrize(
    ("imports", "call"),
    [
        ("grad", "grad(loss)(w, torch.ones(3))"),
        ("grad, vmap", "vmap(grad(loss), (None, 0))(w, torch.ones(2, 3))"),
        ("vjp", "out, pull = vjp(loss, w, torch.ones(3))\npull(torch.ones(()))"),
        ("jacrev", "jacrev(loss)(w, torch.ones(3))"),
    ],
)
def test_tensors_have_names_under_transforms(imports: str, call: str) -> None:
    ran = run(NAMED.format(imports=imports, call=call).lstrip(), "named")
    first = ran.diagnoses[0]
    assert first.code == "GX101"
    assert "`h`" in first.message, first
    assert first.culprits[0].frame.line == 5
    assert first.victims[0].frame.line == 4


# --- what the page says ---------------------------------------------------------------------------


def test_the_claims_of_the_page() -> None:
    def fill(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(4).index_put((torch.tensor(1),), x)

    def out_of_place(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(4).index_put((torch.tensor(1),), x)

    for function in (fill, out_of_place):
        assert torch.func.vmap(function)(torch.ones(3)).tolist() == [[0, 1, 0, 0]] * 3

    def shifted(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return x.add_(shift)

    given = torch.ones(3).repeat(4, 1)
    assert torch.func.vmap(shifted)(given, torch.ones(4, 3)).tolist() == [[2, 2, 2]] * 4
    with pytest.raises(RuntimeError):
        torch.func.vmap(shifted)(torch.ones(3).expand(4, 3), torch.ones(4, 3))

    count = torch.zeros(())

    def counted(x: torch.Tensor) -> torch.Tensor:
        count.add_(1)
        return x * 2

    torch.func.vmap(counted)(torch.ones(4))
    assert count.item() == 1
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        torch.func.grad(counted)(torch.ones(()))
