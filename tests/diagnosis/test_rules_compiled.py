"""Writes within torch.compile: the user's line where the graph knows it, else the call."""

from __future__ import annotations

import pytest
import torch
from cases import Case, Cases, check_broken, check_mended

case = Cases()

# Where the op within runs as itself its own line is known; a compiled backward has only the call.
_SEEN = {"eager": ("  #V", ""), "aot_eager": ("", "  #V")}
for _backend in ("eager", "aot_eager"):
    case(
        "GX101", f"write_outside_{_backend}", f"""
        @torch.compile(backend="{_backend}")
        def gate(x):
            return torch.sigmoid(x * 2){_SEEN[_backend][0]}
        x = torch.ones(3, requires_grad=True)
        h = gate(x){_SEEN[_backend][1]}
        h += 1  #C
        h.sum().backward()
        """,
        ("h += 1", "h = h + 1"),
    )  # fmt: skip
    case(
        "GX101", f"input_written_inside_{_backend}", f"""
        @torch.compile(backend="{_backend}")
        def bump(t):
            t.add_(1)  #C
            return t * 2
        x = torch.ones(3, requires_grad=True)
        state = torch.ones(3)
        y = x * state  #V
        z = bump(state)  #C
        (y.sum() + z.sum()).backward()
        """,
        ("t.add_(1)", "t = t + 1"),
    )  # fmt: skip
case(
    "GX101", "write_inside_eager_names_its_line", """
    @torch.compile(backend="eager")
    def gate(x):
        h = torch.sigmoid(x)
        h.mul_(2)  #C
        return h
    x = torch.ones(3, requires_grad=True)
    y = gate(x)
    y.sum().backward()
    """,
    ("h.mul_(2)", "h = h.mul(2)"),
)  # fmt: skip
case(
    "GX101", "step_between_two_losses_aot_eager", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    run = torch.compile(net, backend="aot_eager")
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    y = run(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    opt.step()  #C
    y.sum().backward()
    """,
    ("opt.step()\ny.sum", "y.sum"),
)  # fmt: skip

# What AOTAutograd traces has no values: the graph that it traces from has the lines.
for _backend in ("aot_eager", "inductor"):
    case(
        "GX101", f"result_written_inside_{_backend}", f"""
        @torch.compile(backend="{_backend}")
        def gate(x, w):
            h = torch.exp(x * w)  #V
            h.mul_(2.0)  #C
            return h
        x = torch.ones(3, requires_grad=True)
        gate(x, torch.ones(3)).sum().backward()
        """,
        ("h.mul_(2.0)", "h = h.mul(2.0)"),
        fix=("`h = h.mul(2.0)`",),
        text=("`h`",),
    )  # fmt: skip
    case(
        "GX101", f"operand_written_by_a_helper_{_backend}", f"""
        def clear(rows):
            rows[0] = 0.0  #C
        def loss_of(x, w):
            s = x + 1
            y = s * w  #V
            clear(s)
            return (y + s).sum()
        run = torch.compile(loss_of, backend="{_backend}")
        x = torch.ones(3, requires_grad=True)
        w = torch.ones(3, requires_grad=True)
        run(x, w).backward()
        """,
        ("y = s * w", "y = s.clone() * w"),
    )  # fmt: skip
    case(
        "GX101", f"view_written_in_a_module_{_backend}", f"""
        class Cell(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(2, 2)
            def forward(self, x):
                for _ in range(2):
                    x = torch.sigmoid(self.lin(x))  #V
                    left = x[:, :1]
                    left += 1  #C
                return x
        net = torch.compile(Cell(), backend="{_backend}")
        net(torch.ones(3, 2)).sum().backward()
        """,
        ("left = x[:, :1]", "x = x.clone(); left = x[:, :1]"),
    )  # fmt: skip
case(
    "GX101", "weight_written_after_a_compiled_forward_names_the_line_inside", """
    def head(h, w):
        s = h.sigmoid()
        return (s * w).sum()  #V
    def loss_of(h, w):
        return head(h * 2, w)
    run = torch.compile(loss_of, backend="aot_eager")
    w = torch.ones(3, requires_grad=True)
    h = torch.ones(3, requires_grad=True)
    loss = run(h, w)
    with torch.no_grad():
        w.mul_(0.5)  #C
    loss.backward()
    """,
    ("loss = run(h, w)", "loss = run(h, w.clone())"),
)  # fmt: skip
case(
    "GX101", "buffer_written_after_a_compiled_module_names_the_line_inside", """
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("gain", torch.ones(3))
        def forward(self, x):
            x = torch.tanh(x)
            return x * self.gain  #V
    net = Scale()
    run = torch.compile(net, backend="aot_eager")
    out = run(torch.ones(3, requires_grad=True))
    net.gain.fill_(2.0)  #C
    out.sum().backward()
    """,
    ("net.gain.fill_(2.0)", "net.gain = torch.full((3,), 2.0)"),
)  # fmt: skip
case(
    "GX101", "step_between_losses_names_the_layer_inside", """
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 1)
        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h)  #V
    net = Two()
    run = torch.compile(net, backend="aot_eager")
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    y = run(torch.ones(2, 3))
    y.mean().backward(retain_graph=True)
    opt.step()  #C
    y.sum().backward()
    """,
    ("opt.step()\ny.sum", "y.sum"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)


def test_tensors_without_values_reach_no_report() -> None:
    """What is traced has neither sizes nor versions that a person could look up."""
    for name in ("result_written_inside_aot_eager", "operand_written_by_a_helper_aot_eager"):
        (found,) = check_broken(next(c for c in case if c.name == name)).diagnoses
        assert "float32" not in found.message
        assert "version" not in found.message
        assert found.window is None
        text = str(found)
        assert "unchanged" not in text, text
        assert "version" not in text, text


def test_a_line_inside_has_its_expression() -> None:
    """Code that torch.compile made has lines without columns; the source has the expression."""
    for name in ("write_inside_eager_names_its_line", "result_written_inside_aot_eager"):
        (found,) = check_broken(next(c for c in case if c.name == name)).diagnoses
        for site in (*found.culprits, *found.victims):
            frame = site.frame
            assert frame.column is not None, site
            assert frame.end_column is not None, site
            assert frame.end_column - frame.column > 5, site
