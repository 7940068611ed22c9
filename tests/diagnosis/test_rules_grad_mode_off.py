"""GX301 where grad mode is still off at the loss: what left it off comes before any other cut."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended, run

case = Cases()

case(
    "GX301", "switched_off_by_a_denoiser", """
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Linear(3, 1)
        def forward(self, x):
            torch.set_grad_enabled(True)
            z = x.detach().requires_grad_()
            g, = torch.autograd.grad(self.energy(z).sum(), z)
            torch.set_grad_enabled(False)  #C
            return x - g
    denoiser, step = Denoiser(), nn.Parameter(torch.ones(1))
    loss = (step * denoiser(torch.ones(2, 3))).sum()  #V
    loss.backward()  #V
    """,
    ("torch.set_grad_enabled(False)", "pass"),
    text=("set_grad_enabled",), fix=("switch grad mode on again after", ":9"),
)  # fmt: skip
case(
    "GX301", "generator_yields_within_no_grad", """
    net = nn.Linear(2, 1)
    def batches():
        with torch.no_grad():  #C
            for _ in range(2):
                yield torch.ones(3, 2)
    for x in batches():
        target = net(x).detach() * 0.5
        loss = (net(x) - target).pow(2).mean()  #V
        loss.backward()  #V
    """,
    ("with torch.no_grad():", "if True:"),
    fix=("batches() leave the block", ":3", "`with torch.enable_grad():`"),
)  # fmt: skip
case(
    "GX301", "forward_hook_switches_off", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 1)
        def forward(self, x):
            return self.head(self.body(x).detach())  #V
    def measure(module, args, out):
        torch.set_grad_enabled(False)  #C
        module.mean = out.mean()
    net = Net()
    net.body.register_forward_hook(measure)
    net(torch.ones(1, 2)).sum().backward()  #V
    """,
    ("torch.set_grad_enabled(False)", "out = out.detach()"),
    fix=("switch grad mode on again",),
)  # fmt: skip
case(
    "GX301", "validation_returns_early", """
    class Trainer:
        def __init__(self):
            self.net, self.ema = nn.Linear(2, 1), nn.Linear(2, 1)
        def validate(self, x):
            torch.set_grad_enabled(False)  #C
            if len(x) > 2:
                return self.net(x).mean()
            torch.set_grad_enabled(True)
        def step(self, x):
            with torch.no_grad():
                target = self.ema(x)
            loss = (self.net(x) - target).pow(2).mean()  #V
            loss.backward()  #V
    trainer = Trainer()
    trainer.step(torch.ones(3, 2))
    trainer.validate(torch.ones(3, 2))
    trainer.step(torch.ones(3, 2))
    """,
    ("len(x) > 2", "False"),
)  # fmt: skip
case(
    "GX301", "a_task_awaits_within_no_grad", """
    import asyncio
    net = nn.Linear(2, 1)
    async def evaluate():
        with torch.no_grad():  #C
            for _ in range(2):
                net(torch.ones(1, 2))
                await asyncio.sleep(0)
    async def train():
        for _ in range(2):
            loss = net(torch.ones(3, 2)).pow(2).mean()  #V
            loss.backward()  #V
            await asyncio.sleep(0)
    async def main():
        await asyncio.gather(evaluate(), train())
    asyncio.run(main())
    """,
    ("with torch.no_grad():", "if True:"),
    fix=("evaluate() leave the block", ":10"),
)  # fmt: skip
case(
    "GX301", "entered_on_an_exit_stack", """
    import contextlib
    net, ref, stack = nn.Linear(2, 1), nn.Linear(2, 1), contextlib.ExitStack()
    def target(x):
        stack.enter_context(torch.no_grad())  #C
        return ref(x)
    def step(x):
        goal = target(x)
        loss = (net(x) - goal).pow(2).mean()  #V
        loss.backward()  #V
    step(torch.ones(3, 2))
    """,
    ("stack.enter_context(torch.no_grad())", "pass"),
    fix=(":4", "torch.set_grad_enabled(True)"),
)  # fmt: skip
case(
    "GX301", "generator_yields_within_inference_mode", """
    net = nn.Linear(2, 1)
    class Loader:
        def __iter__(self):
            with torch.inference_mode():  #C
                for _ in range(2):
                    yield torch.ones(3, 2)
    def fit(loader):
        for x in loader:
            net(x).pow(2).mean().backward()  #V
    fit(Loader())
    """,
    ("with torch.inference_mode():", "if True:"),
    fix=("leave that block before it yields", "torch.no_grad()"),
)  # fmt: skip
case(
    "GX301", "own_context_manager", """
    import contextlib
    @contextlib.contextmanager
    def frozen(module):
        with torch.no_grad():
            yield module
    net = nn.Linear(2, 2)
    with frozen(net) as module:
        h = module(torch.ones(1, 2))  #C
        h = h * 2
    h.sum().backward()  #V
    """,
    ("with frozen(net) as module:", "if module := net:"),
    fix=("move the lines from", "out of the block that begins at", ":7", "leave `pass` in it"),
)  # fmt: skip
case(
    "GX301", "one_line_that_computes_with_what_its_block_gave_a_name", """
    class Quiet(torch.no_grad):
        def __enter__(self):
            super().__enter__()
            return net
    net = nn.Linear(2, 2)
    with Quiet() as module:
        h = module(torch.ones(1, 2))  #C
    h.sum().backward()  #V
    """,
    ("with Quiet() as module:", "if module := net:"),
    fix=("move `h = module(", "out of the block that begins at", ":6", "leave `pass` in it"),
)  # fmt: skip
case(
    "GX301", "class_that_switches_when_it_is_entered", """
    class Frozen:
        def __enter__(self):
            self.before = torch.is_grad_enabled()
            torch.set_grad_enabled(False)
        def __exit__(self, *_):
            torch.set_grad_enabled(self.before)
    net = nn.Linear(2, 2)
    with Frozen():
        h = net(torch.ones(1, 2))  #C
    h.sum().backward()  #V
    """,
    ("with Frozen():", "if True:"),
    fix=("take `with Frozen():` (", ":8)", "away, and leave `h = net("),
)  # fmt: skip
case(
    "GX301", "class_that_switches_when_it_is_made", """
    class Off:
        def __init__(self):
            self.before = torch.is_grad_enabled()
            torch.set_grad_enabled(False)
        def __enter__(self):
            return self
        def __exit__(self, *_):
            torch.set_grad_enabled(self.before)
    net = nn.Linear(2, 2)
    with Off():
        h = net(torch.ones(1, 2))  #C
    h.sum().backward()  #V
    """,
    ("with Off():", "if True:"),
    fix=("take `with Off():` (", "away, and leave `h = net("),
)  # fmt: skip
case(
    "GX301", "class_that_does_not_switch_back", """
    class Once:
        def __enter__(self):
            torch.set_grad_enabled(False)  #C
        def __exit__(self, *_):
            pass
    net = nn.Linear(2, 2)
    with Once():
        y = torch.zeros(1, 2)
    h = net(torch.ones(1, 2)) - y  #C
    h.sum().backward()  #V
    """,
    ("        pass", "        torch.set_grad_enabled(True)"),
    fix=("switch grad mode on again",),
)  # fmt: skip
case(
    "GX301", "two_names_of_a_block", """
    import contextlib
    @contextlib.contextmanager
    def both(*modules):
        with torch.no_grad():
            yield modules
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    with both(a, b) as (first, second):
        h = first(torch.ones(1, 2))  #C
        h = second(h)  #C
    h.sum().backward()  #V
    """,
    ("with both(a, b) as (first, second):", "if (first := a) and (second := b):"),
    fix=("move `h = second(h)`", "out of the block that begins at", ":7", "too, if a gradient"),
)  # fmt: skip
case(
    "GX301", "a_name_of_a_block_that_no_line_uses", """
    import contextlib
    @contextlib.contextmanager
    def constant():
        with torch.no_grad():
            yield 1
    net = nn.Linear(2, 2)
    with constant() as _:
        h = net(torch.ones(1, 2))  #C
    h.sum().backward()  #V
    """,
    ("with constant() as _:", "if True:"),
    fix=("take `with constant() as _:` (", "away, and leave `h = net("),
)  # fmt: skip
case(
    "GX301", "two_cuts_one_after_another", """
    enc, head = nn.Linear(2, 2), nn.Linear(2, 1)
    head.requires_grad_(False)
    h = enc(torch.ones(1, 2)).detach()  #C
    loss = torch.tensor(head(h).mean().item()) * 2
    loss.backward()  #V
    """,
    (".detach()", ""), ("torch.tensor(head(h).mean().item())", "head(h).mean()"),
    fix=("`h = enc(torch.ones(1, 2))`", "`loss = head(h).mean() * 2`"),
)  # fmt: skip


def test_a_second_cut_on_the_way_is_told() -> None:
    found = next(c for c in case if c.name == "two_cuts_one_after_another")
    (diagnosis,) = run(found.shown, found.name).diagnoses
    (again,) = [note for note in diagnosis.notes if "both are to be mended" in note]
    assert "`.item()` at two_cuts_one_after_another.py:4" in again


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
