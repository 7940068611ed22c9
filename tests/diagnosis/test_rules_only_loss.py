"""GX303 of outputs that do not tell what they were made of: the one line that lost the history."""

from __future__ import annotations

import pytest
from cases import Cases, named_and_mended, places, run

case = Cases()

case(
    "GX303", "network_with_a_memory_is_fed_a_detached_copy", """
    net, head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 1)
    def adversary(embed):
        noise = torch.zeros_like(embed).requires_grad_()
        moved = embed + noise
        out, _ = net(moved.detach())  #C
        return torch.autograd.grad(head(out).sum(), noise)  #V
    adversary(torch.rand(2, 4, 2))
    """,
    ("moved.detach()", "moved"),
    text=("`noise`", "lost its history at `.detach()`"), fix=("`out, _ = net(moved)`", ":5"),
)  # fmt: skip
case(
    "GX303", "store_of_detached_maps_and_a_learned_prior", """
    class Store(list):
        def keep(self, maps):
            self.append(maps.data)  #C
    store, key, prior = Store(), nn.Linear(3, 3), nn.Parameter(torch.zeros(4, 3))
    def update(latents):
        latents = latents.clone().requires_grad_()
        store.keep(key(latents).softmax(-1))
        loss = (torch.stack(list(store)).mean(0) + prior).pow(2).mean()
        return torch.autograd.grad(loss, latents)  #V
    update(torch.rand(4, 3))
    """,
    ("maps.data", "maps"),
    text=("`latents`", "lost its history at `.data`"),
)  # fmt: skip
case(
    "GX303", "choice_of_the_nearest_is_embedded", """
    table, rnn = nn.Embedding(6, 3), nn.LSTM(3, 4)
    def saliency(x):
        x = x.requires_grad_()
        code = torch.cdist(x, table.weight).argmin(1)  #C
        out, _ = rnn(table(code)[:, None])
        return torch.autograd.grad(out.sum(), x)  #V
    saliency(torch.rand(5, 3))
    """,
    ("torch.cdist(x, table.weight).argmin(1)", "(-torch.cdist(x, table.weight)).softmax(1)"),
    ("table(code)", "(code @ table.weight)"),
)  # fmt: skip

test_named, test_mended = named_and_mended(case)

ELSEWHERE = """
net = nn.GRU(2, 3)
x = torch.rand(4, 1, 2, requires_grad=True)
{line}
out, _ = net(torch.rand(4, 1, 2))
torch.autograd.grad(out.sum(), x)
"""


@pytest.mark.parametrize(
    "line",
    [
        "shown = x.detach().numpy()",
        "print(x.mean().item())",
        "with torch.no_grad():\n    size = x.norm() + 1",
        "a, b = x.exp().detach(),\\\n    x.sin().detach()",
    ],
    ids=["printed", "a_number", "without_grad_mode", "more_than_one_line"],
)
def test_what_is_only_looked_at_is_not_blamed(line: str) -> None:
    ran = run(ELSEWHERE.format(line=line), "elsewhere")
    assert [d.code for d in ran.diagnoses] == ["GX303"]
    assert 4 not in places(ran.diagnoses[0].culprits, ran.file)
    assert "lost its history" not in ran.diagnoses[0].message
