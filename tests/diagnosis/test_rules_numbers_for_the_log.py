"""GX304 of a number that is a term of the loss, beside other numbers that were only kept."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

case(
    "GX304", "history_of_an_object_beside_what_it_returns", """
    net = nn.Linear(3, 2)
    class Client:
        def __init__(self):
            self.history = []
        def losses(self, x):
            out = net(x)
            parts = {"rec": out.pow(2).mean(), "adv": out.abs().mean().item()}  #C
            for value in parts.values():
                self.history.append(float(value))
            return parts
        def update(self, x):
            parts = self.losses(x)
            total = sum(0.3 * value for value in parts.values())  #V
            total.backward()
    Client().update(torch.ones(4, 3))
    """,
    ("out.abs().mean().item()", "out.abs().mean()"),
)  # fmt: skip
case(
    "GX304", "meter_that_was_told_the_other_term", """
    net = nn.Linear(3, 2)
    class Trainer:
        def __init__(self):
            self.logs = {}
        def terms(self, x):
            out = net(x)
            fit, size = out.pow(2).mean(), float(out.abs().mean())  #C
            self.logs["fit"] = round(fit.item(), 4)
            return fit, size
        def run(self, x):
            terms = self.terms(x)
            loss = terms[0] + 0.25 * (terms[1] - 0.5)  #V
            loss.backward()
    Trainer().run(torch.ones(4, 3))
    """,
    ("float(out.abs().mean())", "out.abs().mean()"),
)  # fmt: skip
case(
    "GX304", "object_made_from_the_number", """
    net = nn.Linear(3, 2)
    class Penalty:
        def __init__(self, out):
            self.value = out.abs().mean().item() / 3  #C
    def loss_of(x):
        out = net(x)
        penalty = Penalty(out)
        return out.pow(2).mean() + 2 * penalty.value  #V
    loss_of(torch.ones(4, 3)).backward()
    """,
    (".mean().item()", ".mean()"),
)  # fmt: skip
case(
    "GX304", "method_that_returns_its_object", """
    net = nn.Linear(3, 2)
    class Penalty:
        def of(self, out):
            self.value = out.abs().mean().item() / 3  #C
            return self
    def loss_of(x):
        out = net(x)
        penalty = Penalty().of(out)
        return out.pow(2).mean() + 2 * penalty.value  #V
    loss_of(torch.ones(4, 3)).backward()
    """,
    (".mean().item()", ".mean()"),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    assert check_broken(case).error is None


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
