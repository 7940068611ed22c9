"""GX401 to GX404 under guard(): each way around the version counter, with the exact line."""

from __future__ import annotations

import functools

import pytest
from cases import Case, Cases, check_broken, check_mended, places, run

from gradext.rules.codes import gx404_overlapping_write

_cases = Cases()
case = functools.partial(_cases, guard=True)

case(
    "GX401", "numpy_write", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    mem = h.detach().numpy()
    print("between")
    mem[1] = 7  #C
    print("after")
    h.sum().backward()
    """,
    ("h.detach().numpy()", "h.detach().clone().numpy()"), text=("`h`",),
    fix=("`h.detach().numpy().copy()`",),
)  # fmt: skip
case(
    "GX401", "numpy_write_on_the_line_of_the_handing_out", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.detach().numpy()[:] = 7  #C
    h.sum().backward()
    """,
    ("h.detach().numpy()", "h.detach().clone().numpy()"),
)  # fmt: skip
case(
    "GX401", "numpy_write_on_the_line_of_backward", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    mem = h.detach().numpy()
    mem[:] = 7; h.sum().backward()  #C
    """,
    ("mem[:] = 7; ", ""),
)  # fmt: skip
case(
    "GX401", "numpy_write_in_a_function_that_returns", """
    def spoil(array):
        array[0] = 5  #C
    def compute(x, spoil):
        h = torch.tanh(x)  #V
        spoil(h.detach().numpy())
        return h.sum()
    compute(torch.ones(3, requires_grad=True), spoil).backward()
    """,
    ("array[0] = 5", "array.copy()[0] = 5"),
)  # fmt: skip
case(
    "GX401", "numpy_write_after_a_call_on_the_same_line", """
    def value():
        number = 4.0
        return number
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    mem = h.detach().numpy()
    mem[:] = value()  #C
    other = 1
    h.sum().backward()
    """,
    ("mem[:] = value()", "value()"),
)  # fmt: skip
case(
    "GX401", "numpy_inside_a_library_function", """
    import numpy
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    mem = h.detach().numpy()
    numpy.copyto(mem, numpy.zeros(3, dtype="float32"))  #C
    other = 1
    h.sum().backward()
    """,
    ("h.detach().numpy()", "h.detach().clone().numpy()"),
)  # fmt: skip
case(
    "GX401", "from_numpy_buffer_filled_again", """
    import numpy
    buffer = numpy.ones((2, 3), dtype="float32")
    net = nn.Linear(3, 1)
    total = 0
    for step in range(2):
        buffer[...] = step + 1  #C
        total = total + net(torch.from_numpy(buffer)).sum()  #V
    total.backward()
    """,
    ("torch.from_numpy(buffer)", "torch.tensor(buffer)"),
)  # fmt: skip
case(
    "GX401", "frombuffer_bytearray", """
    data = bytearray(b"\\x01" * 16)
    x = torch.frombuffer(data, dtype=torch.float32)
    w = torch.ones(4, requires_grad=True)
    y = (w * x).sum()  #V
    data[0:4] = b"\\x00\\x00\\x80\\x3f"  #C
    z = 1
    y.backward()
    """,
    ('data[0:4] = b"\\x00\\x00\\x80\\x3f"', "pass"),
)  # fmt: skip
case(
    "GX401", "dlpack_into_numpy", """
    import numpy
    x = torch.ones(3, requires_grad=True)
    h = x.sigmoid()  #V
    mem = torch.from_dlpack(h.detach()).numpy()
    mem *= 2  #C
    h.sum().backward()
    """,
    ("h.detach()", "h.detach().clone()"),
)  # fmt: skip
case(
    "GX401", "dlpack_consumer", """
    import numpy
    x = torch.ones(3, requires_grad=True)
    h = x.sigmoid()  #V
    mem = numpy.from_dlpack(h.detach())
    try:
        mem.flags.writeable = True
    except ValueError:
        mem = h.detach().numpy()
    mem *= 2  #C
    h.sum().backward()
    """,
    ("mem *= 2", "pass"),
)  # fmt: skip
case(
    "GX401", "ctypes_memmove", """
    import ctypes
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    other = torch.zeros(3)
    ctypes.memmove(h.data_ptr(), other.data_ptr(), 12)  #C
    done = True
    h.sum().backward()
    """,
    ("h.data_ptr(), other", "other.data_ptr(), other"),
)  # fmt: skip
case(
    "GX401", "pointer_kept_for_later", """
    import ctypes
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    address = h.data_ptr()
    for k in range(3):
        pass
    ctypes.memset(address, 0, 4)  #C
    h.sum().backward()
    """,
    ("ctypes.memset(address, 0, 4)", "pass"),
)  # fmt: skip
case(
    "GX401", "storage_fill", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.untyped_storage().fill_(0)  #C
    h.sum().backward()
    """,
    ("h.untyped_storage()", "torch.zeros(1).untyped_storage()"),
)  # fmt: skip
case(
    "GX401", "storage_item", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    bytes_of_h = h.untyped_storage()
    bytes_of_h[3] = 0  #C
    h.sum().backward()
    """,
    ("bytes_of_h[3] = 0", "pass"),
)  # fmt: skip
case(
    "GX401", "data_assigned", """
    w = nn.Parameter(torch.ones(3))
    y = (w ** 2).sum()  #V
    w.data = torch.zeros(3)  #C
    y.backward()
    """,
    ("w.data = torch.zeros(3)", "pass"), text=("`w`", ".data"), fix=("after backward()",),
)  # fmt: skip
case(
    "GX401", "data_multiplied", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.data.mul_(2)  #C
    h.sum().backward()
    """,
    ("h.data.mul_(2)", "h = h.mul(2)"), fix=(".data",),
)  # fmt: skip
for _kind in ("SGD", "Adam", "AdamW"):
    case(
        "GX401", f"fused_{_kind}", f"""
        w = nn.Parameter(torch.ones(4))
        x = torch.ones(4, requires_grad=True)
        opt = torch.optim.{_kind}([w], lr=0.5, fused=True)
        y = (w * x).sum()  #V
        w.grad = torch.ones(4)
        opt.step()  #C
        torch.autograd.grad(y, [x])
        """,
        ("opt.step()", "pass"), fix=("fused=True",),
    )  # fmt: skip
case(
    "GX401", "function_without_mark_dirty_by_numpy", """
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            memory = x.detach().numpy()
            memory *= 2  #C
            return x
        @staticmethod
        def backward(ctx, g):
            return g * 2
    a = torch.ones(3, requires_grad=True)
    h = a.exp()  #V
    Scale.apply(h).sum().backward()
    """,
    ("memory = x.detach().numpy()", "memory = x.detach().clone().numpy()"), fix=("mark_dirty",),
)  # fmt: skip
case(
    "GX401", "custom_op_that_declares_nothing", """
    import uuid
    name = "lie" + uuid.uuid4().hex[:8]
    @torch.library.custom_op(f"gxguard::{name}", mutates_args=())
    def lie(x: torch.Tensor) -> torch.Tensor:
        x.detach().numpy()[:] = 3  #C
        return x.sum()
    w = torch.ones(3, requires_grad=True)
    h = w.exp()  #V
    with torch.no_grad():
        lie(h)
    h.sum().backward()
    """,
    ("x.detach().numpy()", "x.detach().clone().numpy()"),
)  # fmt: skip
case(
    "GX401", "saved_by_a_function_of_the_users", """
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x
        @staticmethod
        def backward(ctx, g):
            return g * 2 * ctx.saved_tensors[0]
    a = torch.ones(3, requires_grad=True)
    b = a * 1
    y = Square.apply(b)  #V
    b.detach().numpy()[0] = 9  #C
    y.sum().backward()
    """,
    ("b.detach().numpy()[0] = 9", "pass"),
)  # fmt: skip
case(
    "GX402", "identity_hooks", """
    x = torch.ones(3, requires_grad=True)
    h = x * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        y = h ** 2  #V
    with torch.no_grad():
        h.mul_(3)  #C
    y.sum().backward()
    """,
    ("h.mul_(3)", "h = h.mul(3)"), text=("hooks",), fix=("clone()",),
)  # fmt: skip
case(
    "GX402", "save_on_cpu", """
    w = nn.Parameter(torch.ones(3))
    with torch.autograd.graph.save_on_cpu():
        y = (w * torch.ones(3, requires_grad=True)).sum()  #V
    opt = torch.optim.SGD([w], lr=1.0)
    w.grad = torch.ones(3)
    opt.step()  #C
    y.backward()
    """,
    ("opt.step()", "pass"),
)  # fmt: skip
case(
    "GX402", "hooks_and_numpy", """
    x = torch.ones(3, requires_grad=True)
    h = x * 1
    mem = h.detach().numpy()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t, 1), lambda p: p[0]):
        y = h.exp().sum()  #V
        z = h ** 2  #V
    mem[0] = 8  #C
    (y + z.sum()).backward()
    """,
    ("mem[0] = 8", "pass"),
)  # fmt: skip
case(
    "GX402", "packed_as_a_number", """
    kept = []
    def pack(t):
        kept.append(t)
        return len(kept) - 1
    x = torch.ones(3, requires_grad=True)
    h = x * 1
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: kept[k]):
        y = h ** 2  #V
    with torch.no_grad():
        h.mul_(3)  #C
    y.sum().backward()
    """,
    ("kept.append(t)", "kept.append(t.clone())"), text=("hooks",),
)  # fmt: skip
case(
    "GX402", "packed_in_an_object_and_written_by_numpy", """
    class Box:
        def __init__(self, t):
            self.t = t
    x = torch.ones(3, requires_grad=True)
    h = x * 1
    with torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.t):
        y = h ** 2  #V
    mem = h.detach().numpy()
    mem[0] = 3  #C
    y.sum().backward()
    """,
    ("mem[0] = 3", "pass"),
)  # fmt: skip
case(
    "GX401", "evaluated_batch_norm_that_trains_before_backward", """
    norm = nn.BatchNorm1d(3)
    x = torch.rand(4, 3, requires_grad=True)
    norm.eval()
    loss = norm(x).sum()  #V
    norm.train()
    print("between")
    norm(torch.rand(4, 3))  #C
    print("after")
    loss.backward()
    """,
    ("norm(torch.rand(4, 3))", "pass"), text=("running_",),
)  # fmt: skip
case(
    "GX403", "full_backward_hook_writes", """
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    def hook(module, grad_input, grad_output):
        grad_output[0].mul_(0.1)  #C
    b.register_full_backward_hook(hook)
    x = torch.ones(1, 2, requires_grad=True)
    side = a(x)
    out = side + b(x)  #V
    out.pow(2).sum().backward()
    """,
    ("grad_output[0].mul_(0.1)", "pass"),
)  # fmt: skip
case(
    "GX403", "backward_formula_writes_its_gradient", """
    class Damp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()
        @staticmethod
        def backward(ctx, g):
            g *= 0.1  #C
            return g
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.ones(1, 2)
    side = a(x)
    out = side + Damp.apply(b(x))  #V
    out.pow(2).sum().backward()
    """,
    ("g *= 0.1\n", "g = g * 0.1\n"), fix=("g = g * 0.1",),
)  # fmt: skip
case(
    "GX403", "hook_on_a_residual_branch", """
    net = nn.Linear(2, 2)
    x = torch.ones(1, 2, requires_grad=True)
    z = x * 2
    h = net(z)
    h.register_hook(lambda g: g.mul_(0.5))  #C
    y = z + h  #V
    y.pow(2).sum().backward()
    """,
    ("g.mul_(0.5)", "g.mul(0.5)"),
)  # fmt: skip
case(
    "GX403", "hook_on_a_leaf", """
    a = torch.ones(3, requires_grad=True)
    b = torch.ones(3, requires_grad=True)
    def clip(g):
        g.clamp_(max=0.1)  #C
    b.register_hook(clip)
    y = a * 1 + b  #V
    y.pow(2).sum().backward()
    """,
    ("g.clamp_(max=0.1)", "return g.clamp(max=0.1)"),
)  # fmt: skip
case(
    "GX403", "formula_writes_after_a_reentrant_backward_has_ended", """
    from torch.utils.checkpoint import checkpoint
    class Damp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()
        @staticmethod
        def backward(ctx, g):
            g *= 0.1  #C
            return g
    z = torch.ones(1, 2, requires_grad=True) * 2
    w = Damp.apply(torch.ones(1, 2, requires_grad=True) * 3)
    x = torch.ones(1, 2, requires_grad=True)
    c = checkpoint(torch.tanh, x, use_reentrant=True)
    total = z + (w + c)  #V
    total.pow(2).sum().backward()
    """,
    ("g *= 0.1\n", "g = g * 0.1\n"),
)  # fmt: skip
case(
    "GX404", "row_of_an_expanded_tensor", """
    x = torch.zeros(4)
    z = x.expand(3, 4)  #V
    z[1] = 5  #C
    """,
    ("x.expand(3, 4)", "x.expand(3, 4).clone()"), text=("[3, 4]",), fix=("clone()",),
)  # fmt: skip
case(
    "GX404", "element_of_a_window", """
    x = torch.zeros(8)
    windows = x.unfold(0, 4, 1)  #V
    windows[2, 1] = 1  #C
    """,
    ("x.unfold(0, 4, 1)", "x.unfold(0, 4, 1).clone()"),
)  # fmt: skip
case(
    "GX404", "expanded_mask_through_two_views", """
    mask = torch.ones(1, 5)
    full = mask.expand(4, 5)  #V
    row = full[2]
    row[3:].fill_(0)  #C
    """,
    ("mask.expand(4, 5)", "mask.repeat(4, 1)"),
)  # fmt: skip


@_cases.broken()
def test_broken(case: Case) -> None:
    ran = check_broken(case)
    assert ran.error is None, "torch raises here by itself"


@_cases.broken()
def test_mended(case: Case) -> None:
    check_mended(case)


@pytest.mark.parametrize(
    "write",
    [
        "h.unfold(0, 4, 2).mul_(torch.hann_window(4))",
        "h.unfold(0, 3, 1)[1].mul_(2)",
        "torch.as_strided(h, (3, 4), (2, 1)).sigmoid_()",
    ],
)
def test_what_backward_writes_of_such_a_write_is_not_told_again(write: str) -> None:
    text = (
        f"x = torch.ones(8, requires_grad=True)\nh = x * 2\n{write}\nh.square().sum().backward()\n"
    )
    ran = run(text, "overlap-in-backward", guard=True)
    assert {(d.code, *places(d.culprits, ran.file)) for d in ran.diagnoses} == {("GX404", 3)}


def test_each_step_asks_no_more_about_what_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = gx404_overlapping_write.overlapping
    monkeypatch.setattr(
        gx404_overlapping_write, "overlapping", lambda *facts: asked.append(1) or real(*facts)
    )
    text = """
for _ in range(6):
    x = torch.ones(8, requires_grad=True)
    h = x * 2
    h.unfold(0, 4, 2).mul_(torch.hann_window(4))
    h.square().sum().backward()
"""
    ran = run(text, "overlap-in-each-step", guard=True)
    assert {d.code for d in ran.diagnoses} == {"GX404"}
    assert len(asked) == 2  # the program's write, and the one of its backward
