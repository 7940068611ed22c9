"""GX102 to GX106: writes that torch refuses, at once or at the next use of a view."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

# --- leaves ---------------------------------------------------------------------------------------

case(
    "GX102", "minus_equals_on_a_leaf", """
    w = torch.ones(3, requires_grad=True)
    (w * 2).sum().backward()
    w -= 0.1 * w.grad  #C
    """,
    ("w -= 0.1 * w.grad", "with torch.no_grad(): w -= 0.1 * w.grad"),
    fix=("`with torch.no_grad(): w -= 0.1 * w.grad`",),
)  # fmt: skip
case(
    "GX102", "parameter_in_a_loop", """
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    for p in net.parameters():
        p.sub_(p.grad, alpha=0.1)  #C
    """,
    ("p.sub_(p.grad, alpha=0.1)", "p.data = p.data.sub(p.grad, alpha=0.1)"),
    fix=("torch.no_grad()",),
)  # fmt: skip
case(
    "GX102", "attribute_of_a_module_augmented", """
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(1))
        def forward(self, x):
            self.alpha *= 0.9  #C
            return x * self.alpha
    Gate()(torch.ones(2)).sum().backward()
    """,
    ("self.alpha *= 0.9", "self.alpha.data = self.alpha.data * 0.9"),
    fix=("self.alpha *= 0.9",),
)  # fmt: skip
case(
    "GX102", "functional_inplace_on_an_input", """
    x = torch.ones(3, requires_grad=True)
    y = F.relu(x, inplace=True)  #C
    """,
    (", inplace=True", ""),
    fix=("inplace",),
)  # fmt: skip
case(
    "GX102", "module_inplace_on_an_input", """
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 1))
    x = torch.ones(3, requires_grad=True)
    net(x)  #C
    """,
    ("inplace=True", "inplace=False"),
)  # fmt: skip
case(
    "GX102", "out_is_a_leaf", """
    w = torch.ones(3, requires_grad=True)
    torch.mul(torch.ones(3), 2, out=w)  #C
    """,
    ("torch.mul(", "with torch.no_grad(): torch.mul("),
    text=("out=",),
)  # fmt: skip
case(
    "GX102", "resize_of_a_leaf", """
    w = torch.ones(3, requires_grad=True)
    w.resize_(6)  #C
    """,
    ("w.resize_(6)", "w = torch.zeros(6, requires_grad=True)"),
    text=("size",),
)  # fmt: skip
case(
    "GX102", "copy_into_a_leaf", """
    x = torch.zeros(3, requires_grad=True)
    x.copy_(torch.ones(3))  #C
    """,
    ("x.copy_", "with torch.no_grad(): x.copy_"),
)  # fmt: skip
case(
    "GX102", "normal_fill_of_a_leaf", """
    def make():
        w = torch.empty(3, requires_grad=True)
        w.normal_(0, 0.1)  #C
        return w
    make()
    """,
    ("torch.empty(3, requires_grad=True)", "torch.empty(3)"),
    ("return w", "return w.requires_grad_()"),
)  # fmt: skip
case(
    "GX102", "leaf_in_a_list", """
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    weights[1] += 1  #C
    """,
    ("weights[1] += 1", "weights[1] = weights[1] + 1"),
)  # fmt: skip
case(
    "GX102", "mark_dirty_leaf", """
    class Inplace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            x.mul_(2)  #C
            return x
        @staticmethod
        def backward(ctx, g):
            return g * 2
    w = torch.ones(3, requires_grad=True)
    Inplace.apply(w)  #C
    """,
    ("Inplace.apply(w)", "Inplace.apply(w.clone())"),
    fix=("clone()",),
)  # fmt: skip
case(
    "GX102", "foreach_on_leaves", """
    ws = [torch.ones(2, requires_grad=True) for _ in range(2)]
    torch._foreach_add_(ws, 1.0)  #C
    """,
    ("torch._foreach_add_", "with torch.no_grad(): torch._foreach_add_"),
)  # fmt: skip
case(
    "GX102", "leaf_written_in_a_hook", """
    net = nn.Linear(2, 2)
    def clamp(module, args):
        module.bias.clamp_(0, 1)  #C
    net.register_forward_pre_hook(clamp)
    net(torch.ones(1, 2))
    """,
    ("module.bias.clamp_(0, 1)", "module.bias.data = module.bias.data.clamp(0, 1)"),
)  # fmt: skip
case(
    "GX102", "leaf_written_in_a_backward_hook", """
    w = torch.ones(2, requires_grad=True)
    y = w * 2
    def hook(grad):
        with torch.enable_grad():
            w.add_(1)  #C
    y.register_hook(hook)
    y.sum().backward()
    """,
    ("w.add_(1)", "w + 1"),
)  # fmt: skip

# --- views of leaves ------------------------------------------------------------------------------

case(
    "GX103", "index_assignment_on_a_leaf_view", """
    w = torch.ones(4, requires_grad=True)
    half = w[:2]  #V
    half[0] = 5  #C
    """,
    ("half = w[:2]", "half = w[:2].clone()"),
)  # fmt: skip
case(
    "GX103", "bias_prior_written_through_a_view", """
    head = nn.Linear(3, 6)
    prior = head.bias.view(2, 3)  #V
    prior[:, 0].fill_(-4.0)  #C
    """,
    ("prior = head.bias", "prior = head.bias.detach()"),
)  # fmt: skip
case(
    "GX103", "chained_views", """
    w = torch.ones(2, 3, requires_grad=True)
    flat = w.t()
    flat = flat.reshape(3, 2)[1]  #V
    flat *= 2  #C
    """,
    ("flat *= 2", "flat = flat * 2"),
    fix=("`flat = flat * 2`",),
)  # fmt: skip
case(
    "GX103", "index_of_a_leaf_augmented", """
    w = torch.ones(4, requires_grad=True)
    w[0].add_(1)  #C
    """,
    ("w[0].add_(1)", "w.data[0].add_(1)"),
)  # fmt: skip
case(
    "GX103", "diagonal_filled", """
    w = torch.ones(3, 3, requires_grad=True)
    torch.diagonal(w).zero_()  #C
    """,
    ("torch.diagonal(w)", "torch.diagonal(w.detach())"),
)  # fmt: skip
case(
    "GX103", "masked_part_of_a_leaf", """
    x = torch.ones(2, 4, requires_grad=True)
    row = x[1]  #V
    row[row > 0.5] = 0  #C
    """,
    ("row = x[1]", "row = x[1].clone()"),
)  # fmt: skip
case(
    "GX103", "view_of_a_leaf_in_a_function", """
    def reset(block):
        block.zero_()  #C
    w = torch.ones(4, 4, requires_grad=True)
    reset(w[:2, :2])  #V
    """,
    ("reset(w[:2, :2])", "reset(w.detach()[:2, :2])"),
)  # fmt: skip
case(
    "GX103", "mark_dirty_on_a_view_of_a_leaf", """
    class Inplace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            x.mul_(2)
            return x
        @staticmethod
        def backward(ctx, g):
            return g * 2
    w = torch.ones(3, requires_grad=True)
    half = w[:2]
    Inplace.apply(half)  #C
    """,
    ("half = w[:2]", "half = w[:2].clone()"),
)  # fmt: skip

# --- views made under no_grad or inference_mode ---------------------------------------------------

case(
    "GX104", "slice_made_under_no_grad", """
    canvas = torch.zeros(4)
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        left = canvas[:2]  #V
    left += w  #C
    """,
    ("    left = canvas[:2]", "    pass\nleft = canvas[:2]"),
    fix=("no_grad", ":4"),
)  # fmt: skip
case(
    "GX104", "slice_written_by_index", """
    canvas = torch.zeros(4, 4)
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        row = canvas[1]  #V
    row[:2] = w  #C
    """,
    ("    row = canvas[1]", "    pass\nrow = canvas[1]"),
)  # fmt: skip
case(
    "GX104", "decorated_function_makes_the_view", """
    @torch.no_grad()
    def window(buffer):
        return buffer.view(2, 2)[0]  #V
    w = torch.ones(2, requires_grad=True)
    part = window(torch.zeros(4))
    part.copy_(w)  #C
    """,
    ("@torch.no_grad()\n", ""),
)  # fmt: skip
case(
    "GX104", "inference_mode_view", """
    buffer = torch.zeros(4)
    w = torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        part = buffer[2:]  #V
    part.mul_(w)  #C
    """,
    ("    part = buffer[2:]", "    pass\npart = buffer[2:]"),
    fix=("inference_mode",),
)  # fmt: skip
case(
    "GX104", "view_of_a_tensor_with_history", """
    x = torch.ones(4, requires_grad=True)
    y = x * 2
    with torch.no_grad():
        half = y[:2]  #V
    half.mul_(3)  #C
    """,
    ("    half = y[:2]", "    pass\nhalf = y[:2]"),
)  # fmt: skip
case(
    "GX104", "unbind_under_no_grad", """
    with torch.no_grad():
        rows = list(torch.zeros(2, 3))  #V
    rows[0].add_(torch.ones(3, requires_grad=True))  #C
    """,
    ("with torch.no_grad():\n    rows = list(torch.zeros(2, 3))",
     "rows = [torch.zeros(3), torch.zeros(3)]"),
)  # fmt: skip
case(
    "GX104", "base_written_then_view_used", """
    w = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        base = torch.zeros(3)
        part = base[:2]  #V
    base.add_(w)  #C
    print((part + 1).requires_grad)
    """,
    ("    part = base[:2]", "    pass"), ("part + 1", "base[:2] + 1"),
    fix=(":4", ":5"),
)  # fmt: skip
case(
    "GX104", "evaluation_leaves_views_in_a_list", """
    store = torch.zeros(3, 2)
    slots = []
    def validate():
        with torch.no_grad():
            for k in range(3):
                slots.append(store[k])  #V
    def train(w):
        for slot in slots:
            slot.copy_(w)  #C
    validate()
    train(torch.ones(2, requires_grad=True))
    """,
    ("        slots.append(store[k])", "        slots.append(torch.zeros(2))"),
)  # fmt: skip

# --- several views of one call --------------------------------------------------------------------

_MANY = {
    "unbind": ("a, b = y.unbind()", "a = y[0]"),
    "split": ("a, b = y.split(1)", "a = y[:1]"),
    "split_sizes": ("a, b = torch.split(y, [1, 1])", "a = y[:1]"),
    "chunk": ("a, b = y.chunk(2)", "a = y[:1]"),
    "unpacking": ("a, b = y", "a = y[0]"),
    "split_with_sizes": ("a, b = torch.split_with_sizes(y, [1, 1])", "a = y[:1]"),
    "starred": ("a, *rest = y", "a = y[0]"),
}
for _name, (_make, _mend) in _MANY.items():
    case(
        "GX105", f"{_name}_of_a_result", f"""
        x = torch.ones(2, requires_grad=True)
        y = x * 2
        {_make}  #V
        a.mul_(3)  #C
        """,
        (_make, _mend),
        fix=("`a = a.mul(3)`", "torch.stack"),
    )  # fmt: skip
    case(
        "GX105", f"{_name}_without_any_gradient_yet", f"""
        w = torch.ones(2, requires_grad=True)
        y = torch.ones(2)
        {_make}  #V
        a.mul_(w[:1].view(a.shape))  #C
        """,
        (_make, _mend),
    )  # fmt: skip
case(
    "GX105", "rows_of_a_loop", """
    x = torch.ones(3, 2, requires_grad=True)
    y = x * 2
    for row in y:  #V
        row /= row.sum()  #C
    """,
    ("for row in y:\n    row /= row.sum()", "y = y / y.sum(1, keepdim=True)"),
    fix=("`for i, row in enumerate(y):` at", "`row = y[i]` as the first line"),
)  # fmt: skip
case(
    "GX105", "rows_of_a_zip", """
    x = torch.ones(3, 2, requires_grad=True)
    y = x * 2
    for row, mean in zip(y, [1.0, 2.0, 3.0]):  #V
        row.sub_(mean)  #C
    """,
    ("row.sub_(mean)", "row.sub(mean)"),
    fix=("y[i]",),
)  # fmt: skip
case(
    "GX105", "comprehension_over_a_tensor", """
    y = torch.ones(3, 2, requires_grad=True) * 2
    done = [row.clamp_(0, 1) for row in y]  #CV
    """,
    ("clamp_", "clamp"),
)  # fmt: skip
case(
    "GX105", "only_view_lines_are_victims", """
    x = torch.ones(2, 6, requires_grad=True)
    gates = x * 2
    keep, new = gates.chunk(2, dim=-1)  #V
    keep.sigmoid_()  #C
    """,
    ("keep.sigmoid_()", "keep = keep.sigmoid()"),
    fix=("gates.chunk(2, dim=-1)",),
)  # fmt: skip
case(
    "GX105", "rows_of_a_leaf", """
    w = torch.ones(2, 3, requires_grad=True)
    for row in w:  #V
        row.zero_()  #C
    """,
    ("for row in w", "for row in w.detach()"),
    fix=("torch.no_grad()",),
)  # fmt: skip
case(
    "GX105", "view_of_one_of_several", """
    y = torch.ones(2, 4, requires_grad=True) * 2
    q, k = y.unbind()  #V
    q.view(2, 2)[0] = 0  #C
    """,
    ("q, k = y.unbind()", "q, k = y[0], y[1]"),
)  # fmt: skip
case(
    "GX105", "sibling_written_under_no_grad", """
    x = torch.ones(2, 3, requires_grad=True)
    a, b = (x * 2).unbind()  #V
    with torch.no_grad():
        a.mul_(0)  #C
    print(b + 1)
    """,
    ("a.mul_(0)", "a.mul(0)"),
    fix=("a.mul(0)",),
)  # fmt: skip
case(
    "GX105", "base_written_and_a_part_used", """
    x = torch.ones(2, 3, requires_grad=True)
    y = x * 2
    rows = y.unbind()  #V
    y.add_(1)  #C
    total = sum(row.sum() for row in rows)
    """,
    ("rows = y.unbind()\ny.add_(1)", "y.add_(1)\nrows = y.unbind()"),
    fix=("rows = y.unbind()",),
)  # fmt: skip
case(
    "GX105", "the_first_of_several_late_writes", """
    y = torch.ones(2, 3, requires_grad=True) * 2
    y.add_(1)
    rows = y.unbind()  #V
    y.mul_(2)  #C
    y.sub_(1)
    rows[0].sum()
    """,
    ("rows = y.unbind()", "pass"), ("rows[0].sum()", "rows = y.unbind()"),
)  # fmt: skip
case(
    "GX105", "another_tensor_s_write_is_not_blamed", """
    y = torch.ones(2, 3, requires_grad=True) * 2
    z = torch.ones(2, 3, requires_grad=True) * 2
    rows, others = y.unbind(), z.unbind()  #V
    y.mul_(2)  #C
    z.mul_(3)
    use = rows[1]
    use.sum()
    """,
    ("y.mul_(2)", "pass"), ("z.mul_(3)", "pass"),
)  # fmt: skip
case(
    "GX105", "write_by_out_argument", """
    y = torch.ones(2, 3, requires_grad=True) * 2
    rows = list(y.unbind())  #V
    rows[0].copy_(torch.zeros(3))  #C
    """,
    ("rows[0].copy_(torch.zeros(3))", "rows[0] = torch.zeros(3)"),
)  # fmt: skip
case(
    "GX105", "light_mode", """
    y = torch.ones(2, 3, requires_grad=True) * 2
    a, b = y.unbind()  #V
    a.mul_(3)  #C
    """,
    ("a.mul_(3)", "a = a.mul(3)"),
    saves=False,
)  # fmt: skip

# --- views that a Function returned ---------------------------------------------------------------

_FUNCTION = """
    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.shape = x.shape
            return x.view(-1)  #V
        @staticmethod
        def backward(ctx, g):
            return g.view(ctx.shape)
    w = torch.ones(2, 2, requires_grad=True)
"""
case(
    "GX106", "view_returned_by_a_function", _FUNCTION + """
    h = Flat.apply(w * 2)  #V
    h.mul_(3)  #C
    """,
    ("h = Flat.apply(w * 2)", "h = Flat.apply(w * 2).clone()"),
    fix=("`h = Flat.apply(w * 2).clone()`",),
)  # fmt: skip
case(
    "GX106", "view_returned_without_gradient", _FUNCTION + """
    h = Flat.apply(torch.ones(2, 2))  #V
    h += w.view(-1)  #C
    """,
    ("h = Flat.apply(torch.ones(2, 2))", "h = Flat.apply(torch.ones(2, 2)).clone()"),
)  # fmt: skip
case(
    "GX106", "input_returned_as_it_was", """
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x
        @staticmethod
        def backward(ctx, g):
            return -g
    def reverse(x):
        return Same.apply(x)  #V
    w = torch.ones(3, requires_grad=True)
    h = reverse(w * 2)
    h[0] = 0  #C
    """,
    ("return x\n", "return x.clone()\n"),
    fix=("`return Same.apply(x).clone()`",),
)  # fmt: skip
case(
    "GX106", "base_of_a_function_s_view_written", _FUNCTION + """
    y = w * 2
    h = Flat.apply(y)  #V
    y.add_(1)  #C
    h.sum()
    """,
    ("h = Flat.apply(y)\ny.add_(1)", "y.add_(1)\nh = Flat.apply(y)"),
)  # fmt: skip
case(
    "GX106", "backward_hook_and_an_in_place_module", """
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    net[0].register_full_backward_hook(lambda module, grad_in, grad_out: None)
    net(torch.ones(2, 3, requires_grad=True))  #CV
    """,
    ("inplace=True", "inplace=False"),
    fix=("nn.ReLU", "inplace=False"),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
