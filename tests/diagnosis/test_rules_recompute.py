"""GX406: a checkpoint whose recompute is not what its forward was, with the exact lines."""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest
from cases import Case, Cases, check_broken, check_mended, run

_cases = Cases()
# By the bytes, which takes a guard; and by versions alone.
by_bytes = functools.partial(_cases, "GX406")
_versions = Cases()
by_versions = functools.partial(_versions, "GX406")
# torch raises itself.
_refused = Cases()
refused = functools.partial(_refused, "GX406")

HEAD = "from torch.utils.checkpoint import checkpoint\n"

by_versions(
    "saved_and_then_written_in_the_block", """
    net, w = nn.Linear(4, 4), torch.rand(4, requires_grad=True)
    def block(x):
        h = net(x)
        a = h * w  #V
        h += 1  #C
        return (a + h).tanh()
    checkpoint(block, torch.rand(3, 4, requires_grad=True), use_reentrant=False).sum().backward()
    """,
    ("h += 1", "h = h + 1"), text=("`h`", "writes it later"), fix=("`h = h + 1`",),
)  # fmt: skip
by_versions(
    "written_through_a_row_in_a_module", """
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
        def forward(self, x):
            g = self.lin(x).sigmoid()  #V
            out = g * x
            g[:, 0] = 0.0  #C
            return (out + g).exp()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(Gate(), x, use_reentrant=False).sum().backward()
    """,
    ("g[:, 0] = 0.0", "g = g.clone(); g[:, 0] = 0.0"), fix=(".clone()",),
)  # fmt: skip
by_versions(
    "an_activation_in_place_after_a_square", """
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)
        def forward(self, x):
            h = self.a(x)
            energy = h ** 2  #V
            return self.act(h).sin() + energy  #C
    blocks = nn.ModuleList(Block() for _ in range(2))
    h = torch.rand(3, 4, requires_grad=True)
    for block in blocks:
        h = checkpoint(block, h, use_reentrant=False)
    h.sum().backward()
    """,
    ("inplace=True", "inplace=False"),
)  # fmt: skip
by_versions(
    "a_running_mean_that_it_reads", """
    class Centre(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.rand(4))
            self.lin = nn.Linear(4, 4)
        def forward(self, x):
            h = self.lin(x) * self.mean  #V
            with torch.no_grad():
                self.mean.mul_(0.5).add_(x.mean(0))  #C
            return h.exp()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(Centre(), x, use_reentrant=False).sum().backward()
    """,
    ("checkpoint(Centre(), x, use_reentrant=False)", "Centre()(x)"),
    ("* self.mean", "* self.mean.clone()"), text=("mean",),
)  # fmt: skip
by_versions(
    "weights_that_a_step_has_moved", """
    critic = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = torch.optim.SGD(critic.parameters(), lr=0.5)
    x = torch.rand(3, 4, requires_grad=True)
    value = checkpoint(critic, x, use_reentrant=False)  #V
    critic(x.detach()).square().sum().backward()
    opt.step()  #C
    value.sum().backward()
    """,
    ("opt.step()\nvalue.sum().backward()", "value.sum().backward()\nopt.step()"),
    text=("weight",), fix=("opt.step()",),
)  # fmt: skip
by_bytes(
    "a_codebook_that_is_moved_between", """
    codes = torch.rand(5, 4)
    net = nn.Linear(4, 4)
    def quantise(x):
        z = net(x)
        return (z.unsqueeze(1) - codes).square().sum(-1).softmax(-1)  #V
    x = torch.rand(3, 4, requires_grad=True)
    y = checkpoint(quantise, x, use_reentrant=False)
    codes.lerp_(torch.rand(5, 4), 0.9)  #C
    y[:, 0].sum().backward()
    """,
    ("codes.lerp_(torch.rand(5, 4), 0.9)\ny[:, 0].sum().backward()",
     "y[:, 0].sum().backward()\ncodes.lerp_(torch.rand(5, 4), 0.9)"), text=("codes",),
)  # fmt: skip
by_bytes(
    "statistics_written_through_data", """
    class Whiten(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.shift = nn.Linear(4, 4), torch.zeros(4)
        def forward(self, x):
            h = (self.lin(x) - self.shift).tanh()  #V
            self.shift.data.add_(h.detach().mean(0) + 1)  #C
            return h
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(Whiten(), x, use_reentrant=False).sum().backward()
    """,
    ("checkpoint(Whiten(), x, use_reentrant=False)", "Whiten()(x)"),
)  # fmt: skip
by_bytes(
    "dropout_without_the_random_state", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1))
    x = torch.rand(30, 4, requires_grad=True)
    y = checkpoint(net, x, use_reentrant=False, preserve_rng_state=False)  #CV
    y.sum().backward()
    """,
    (", preserve_rng_state=False", ""), text=("preserve_rng_state",), fix=("preserve_rng_state",),
)  # fmt: skip
by_bytes(
    "noise_of_the_programs_own_without_the_random_state", """
    net = nn.Linear(4, 4)
    def noisy(x):
        h = net(x)
        noise = torch.randn_like(h)
        return (h * noise).tanh()  #V
    def run(x):
        return checkpoint(noisy, x, use_reentrant=False, preserve_rng_state=False)  #C
    run(torch.rand(30, 4, requires_grad=True)).sum().backward()
    """,
    (", preserve_rng_state=False", ""), fix=("preserve_rng_state",),
)  # fmt: skip
by_bytes(
    "a_number_of_pythons", """
    import random
    scale = random.Random(3)
    net = nn.Linear(4, 4)
    def block(x):
        return (net(x) * scale.random()).tanh()  #C
    x = torch.rand(3, 4, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=False)  #V
    y.sum().backward()
    """,
    ("scale.random()", "0.5"), fix=("argument",),
)  # fmt: skip
by_bytes(
    "running_statistics_of_a_batch_norm_read_by_hand", """
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
        def forward(self, x):
            return self.norm(x).tanh() * (x - self.norm.running_mean)  #C
    x = torch.rand(3, 4, requires_grad=True) * 3
    y = checkpoint(Shifted(), x, use_reentrant=False)  #V
    y.sum().backward()
    """,
    ("x - self.norm.running_mean", "x - 1"),
)  # fmt: skip

refused(
    "another_branch_the_second_time", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.calls = nn.Linear(4, 4), 0
        def forward(self, x):
            self.calls += 1
            h = self.lin(x)
            if self.calls == 1:
                h = h.relu()  #C
            return h * h
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(Net(), x, use_reentrant=False).sum().backward()  #V
    """,
    ("if self.calls == 1:", "if True:"), text=("recompute ran",), fix=("argument",),
)  # fmt: skip
refused(
    "other_shapes", """
    lengths = [3, 2]
    net = nn.Linear(4, 4)
    def block(x):
        h = net(x)
        return h[: lengths.pop(0)].exp() * 2  #C
    x = torch.rand(3, 4, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=False)  #V
    y.sum().backward()
    """,
    ("lengths.pop(0)", "lengths[0]"), text=("float32 [3, 4]", "float32 [2, 4]"),
)  # fmt: skip
refused(
    "another_dtype", """
    mixed = {"on": True}
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    def block(x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed["on"]):
            return b(a(x).tanh()).exp()  #C
    y = checkpoint(block, torch.rand(3, 4, requires_grad=True), use_reentrant=False)  #V
    mixed["on"] = False
    y.float().sum().backward()
    """,
    ('mixed["on"] = False\n', ""), text=("bfloat16", "float32"), fix=("autocast",),
)  # fmt: skip


def _with_head(case: Case, **more: bool) -> Case:
    return dataclasses.replace(case, source=HEAD + case.source, **more)


@_cases.broken()
def test_bytes_that_differ(case: Case) -> None:
    (found,) = check_broken(_with_head(case, guard=True)).diagnoses
    assert found.severity == "error"


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no_guard"])
@_versions.broken()
def test_versions_that_differ(case: Case, guard: bool) -> None:
    check_broken(_with_head(case, guard=guard))


@_refused.broken()
def test_what_torch_refuses_has_the_first_op_that_differs(case: Case) -> None:
    (found,) = check_broken(_with_head(case)).diagnoses
    # Without the lines of what runs these tests.
    lines = [line for line in str(found).splitlines() if "called from" not in line]
    lines = [line for line in lines if not re.match(r" {20,}\S+:\d+ in ", line)]
    assert len(lines) < 25


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no_guard"])
@pytest.mark.parametrize("case", [*_cases, *_versions, *_refused], ids=lambda case: case.name)
def test_the_mended_twin_is_silent(case: Case, guard: bool) -> None:
    check_mended(_with_head(case, guard=guard))


def test_a_write_in_between_is_a_warning_where_bytes_are_not_compared() -> None:
    case = next(case for case in _versions if case.name == "weights_that_a_step_has_moved")
    case = _with_head(case)
    severities = [
        run(case.shown, case.name, guard=guard).diagnoses[0].severity for guard in (True, False)
    ]
    assert severities == ["error", "warning"]
