"""What GX301 prints as help where a mode was on, typed where it says."""

from __future__ import annotations

from advice import Advice, Advices, check

advice = Advices()

advice(
    "closure_called_by_a_step_without_grad", """
    class Sign(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})
        @torch.no_grad()
        def step(self, closure):
            loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
            return loss
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    opt = Sign(net.parameters())
    def closure():
        opt.zero_grad()
        loss = net(torch.ones(3, 2)).pow(2).sum()
        loss.backward()
        return loss
    opt.step(closure)
    """,
    ("loss = closure()", "with torch.enable_grad():\n    loss = closure()"),
    words=("`with torch.enable_grad():` around `loss = closure()`",),
    never=("take the decorator",),
    twin=(("@torch.no_grad()", "# grad mode stays on"),
          ("p.sub_(p.grad.sign(), alpha=group[\"lr\"])", "pass")),
)  # fmt: skip
advice(
    "callback_run_in_a_block", """
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    def attack(x):
        net(x).sum().backward()
    def each(function, batches):
        with torch.no_grad():
            for x in batches:
                function(x)
    each(attack, [torch.ones(1, 2)])
    """,
    ("function(x)", "with torch.enable_grad():\n    function(x)"),
    words=("`with torch.enable_grad():` around `function(x)`",),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "forward_and_backward_in_one_block", """
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    with torch.no_grad():
        loss = net(torch.ones(1, 2)).sum()
        loss.backward()
    """,
    ("loss = net(torch.ones(1, 2)).sum()",
     "with torch.enable_grad():\n    loss = net(torch.ones(1, 2)).sum()"),
    words=("`with torch.enable_grad():` around `loss = net(torch.ones(1, 2)).sum()`",),
    never=("move `",),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "statement_of_a_block", """
    body, head = nn.Linear(2, 2), nn.Linear(2, 1)
    leaves = list(head.parameters())
    def loss_of(x):
        with torch.no_grad():
            h = body(x)
            out = head(h)
        return out.sum()
    loss_of(torch.ones(1, 2)).backward()
    """,
    ("out = head(h)", "pass"),
    ("return out.sum()", "out = head(h)\nreturn out.sum()"),
    words=("move `out = head(h)`", "out of the block that begins at", "`h = body(x)` too"),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "inference_mode_around_all", """
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    def step(x):
        return net(x).sum()
    with torch.inference_mode():
        for _ in range(1):
            loss = step(torch.ones(1, 2))
            loss.backward()
    """,
    ("loss = step(torch.ones(1, 2))",
     "with torch.inference_mode(False):\n    loss = step(torch.ones(1, 2))"),
    words=("`with torch.inference_mode(False):` around `loss = step(torch.ones(1, 2))`",),
    twin=(("with torch.inference_mode():", "if True:"),),
)  # fmt: skip
advice(
    "all_lines_of_a_block", """
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    x, y = torch.ones(4, 2), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        out = net(x)
        loss = nn.functional.cross_entropy(out, y)
    loss.backward()
    """,
    ("with torch.no_grad():", "if True:"),
    words=("take `with torch.no_grad():`", "away, and leave the lines"),
    never=("move `",),
    twin=(("out = net(x)", "with torch.enable_grad(): out = net(x)"),
          ("loss = nn.functional.cross_entropy(out, y)",
           "with torch.enable_grad(): loss = nn.functional.cross_entropy(out, y)")),
)  # fmt: skip
advice(
    "lines_at_the_end_of_a_block", """
    body, head = nn.Linear(2, 2), nn.Linear(2, 3)
    leaves = list(head.parameters())
    def step(x):
        with torch.no_grad():
            h = body(x)
            out = head(h)
            score = out.log_softmax(-1)
            loss = -score[:, 0].mean()
        loss.backward()
    step(torch.ones(4, 2))
    """,
    ("out = head(h)", "pass"),
    ("score = out.log_softmax(-1)", "pass"),
    ("loss = -score[:, 0].mean()", "pass"),
    ("loss.backward()", "out = head(h)\nscore = out.log_softmax(-1)\n"
     "loss = -score[:, 0].mean()\nloss.backward()"),
    words=("move the lines from lines_at_the_end_of_a_block.py:6 to "
           "lines_at_the_end_of_a_block.py:8 out of the block",),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "condition_of_a_block", """
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    def run(phase, x, y):
        with torch.set_grad_enabled(phase == "train"):
            out = net(x)
            loss = nn.functional.cross_entropy(out, y)
        if phase == "training":
            loss.backward()
    run("training", torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    """,
    ('with torch.set_grad_enabled(phase == "train"):',
     'with torch.set_grad_enabled(phase == "training"):'),
    words=("let `phase == 'train'` (condition_of_a_block.py:4) be true",),
    never=("move", "out of the block"),
    twin=(('with torch.set_grad_enabled(phase == "train"):', "if True:"),),
)  # fmt: skip


@advice.each()
def test_typed_as_printed(each: Advice) -> None:
    check(each, "GX301")
