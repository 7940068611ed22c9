"""GX401 where a step() of the program's own runs the backward or the forward that it spoils.

Its call cannot be moved below the backward that it makes itself.
"""

from __future__ import annotations

from advice import Advice, Advices, check

within, outside = Advices(), Advices()
_NEVER = ("move `", "below the last backward()")

within(
    "climb_and_step_with_one_loss", """
    class Sharp:
        def __init__(self, net):
            self.net = net
        def step(self, closure):
            loss = closure()
            loss.backward(retain_graph=True)
            for p in self.net.parameters():
                p.data.add_(0.1 * p.grad)
                p.grad = None
            (loss * 1).backward()
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    Sharp(net).step(lambda: net(torch.ones(4, 2)).pow(2).mean())
    """,
    ("(loss * 1).backward()", "loss = closure()\n(loss * 1).backward()"),
    words=("`p.data.add_(0.1 * p.grad)`", "run the forward", "again after it"),
    never=_NEVER,
    twin=(("(loss * 1).backward()", "closure().backward()"),),
)  # fmt: skip
within(
    "loss_given_to_a_step", """
    class Noisy:
        def __init__(self, params):
            self.params = list(params)
        def step(self, loss):
            with torch.no_grad():
                for p in self.params:
                    p.data += 0.5
            loss.backward()
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    x = torch.ones(4, 2)
    noisy = Noisy(net.parameters())
    loss = net(x).pow(2).mean()
    noisy.step(loss)
    """,
    ("loss.backward()", "loss = net(x).pow(2).mean()\nloss.backward()"),
    words=("run the forward", "again after it"),
    never=_NEVER,
    twin=(("loss.backward()", "net(x).pow(2).mean().backward()"),),
)  # fmt: skip
within(
    "function_that_is_called_step", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    class Trainer:
        def step(self, x):
            out = net(x)
            for p in net.parameters():
                p.data.mul_(0.9)
            self.finish(out)
        def finish(self, out):
            out.exp().sum().backward()
    Trainer().step(torch.ones(4, 2))
    """,
    ("self.finish(out)", "out = net(x)\nself.finish(out)"),
    words=("run the forward", "again after it"),
    never=_NEVER,
    twin=(("self.finish(out)", "self.finish(net(x))"),),
)  # fmt: skip
outside(
    "step_before_the_second_backward", """
    class Plain:
        def __init__(self, params):
            self.params = list(params)
        def step(self):
            for p in self.params:
                p.data.sub_(0.1 * p.grad)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    plain = Plain(net.parameters())
    y = net(torch.ones(4, 2))
    y.mean().backward(retain_graph=True)
    plain.step()
    y.pow(2).mean().backward()
    """,
    ("plain.step()", "pass"),
    words=("move `plain.step()`", "below the last backward()"),
    twin=(("plain.step()", "None"),),
)  # fmt: skip


@within.each()
def test_within_its_own_call(each: Advice) -> None:
    check(each, "GX401")


@outside.each()
def test_a_step_that_can_be_moved(each: Advice) -> None:
    check(each, "GX401")
