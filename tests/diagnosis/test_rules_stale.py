"""GX101: who wrote a tensor that was saved for backward, in every way that people do."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

# --- writes as they are typed ---------------------------------------------------------------------

case(
    "GX101", "augmented_add", """
    x = torch.ones(3, requires_grad=True)
    h = torch.sigmoid(x)  #V
    h += 1  #C
    h.sum().backward()
    """,
    ("h += 1", "h = h + 1"),
    fix=("`h = h + 1`",), text=("`h` (float32 [3])",),
)  # fmt: skip
case(
    "GX101", "augmented_with_an_expression", """
    x = torch.ones(3, requires_grad=True)
    h = torch.exp(x)  #V
    h *= x - 1  #C
    h.sum().backward()
    """,
    ("h *= x - 1", "h = h * (x - 1)"),
    fix=("`h = h * (x - 1)`",),
)  # fmt: skip
case(
    "GX101", "method_chain", """
    x = torch.ones(3, requires_grad=True)
    h = x.tanh()  #V
    h.sub_(1).div_(2)  #C
    h.sum().backward()
    """,
    ("h.sub_(1).div_(2)", "h = h.sub(1).div(2)"),
    fix=("`h = h.sub(1).div(2)`",),
)  # fmt: skip
case(
    "GX101", "torch_function_in_place", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    torch.relu_(h)  #C
    h.sum().backward()
    """,
    ("torch.relu_(h)", "h = torch.relu(h)"),
    fix=("`h = torch.relu(h)`",),
)  # fmt: skip
case(
    "GX101", "functional_inplace_flag", """
    x = torch.ones(3, requires_grad=True)
    h = x.sigmoid()  #V
    F.relu(h, inplace=True)  #C
    h.sum().backward()
    """,
    ("F.relu(h, inplace=True)", "h = F.relu(h)"),
    fix=("drop `inplace=True`", "h = F.relu(h)"),
)  # fmt: skip
case(
    "GX101", "module_inplace_flag", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.ReLU(inplace=True))
    y = net(torch.ones(2, 3))  #CV
    y.sum().backward()
    """,
    ("inplace=True", "inplace=False"),
    fix=("nn.ReLU", "inplace=False"),
)  # fmt: skip
case(
    "GX101", "out_argument", """
    x = torch.ones(3, requires_grad=True)
    buffer = torch.zeros(3)
    torch.add(buffer, 1, out=buffer)
    y = x * buffer  #V
    torch.mul(buffer, 2, out=buffer)  #C
    y.sum().backward()
    """,
    ("torch.mul(buffer, 2, out=buffer)", "buffer = torch.mul(buffer, 2)"),
    fix=("`buffer = torch.mul(buffer, 2)`",),
)  # fmt: skip
case(
    "GX101", "index_assignment", """
    x = torch.ones(4, requires_grad=True)
    h = torch.sqrt(x)  #V
    h[0] = 0  #C
    h.sum().backward()
    """,
    ("h[0] = 0", "h = h.clone(); h[0] = 0"),
    fix=("`h = h.clone()`", "`h[0] = 0`"),
)  # fmt: skip
case(
    "GX101", "mask_assignment", """
    x = torch.linspace(-1, 1, 4, requires_grad=True)
    h = x.exp()  #V
    h[x > 0] = 1.0  #C
    h.sum().backward()
    """,
    ("h[x > 0] = 1.0", "h = torch.where(x > 0, torch.ones(()), h)"),
    fix=("h.clone()",),
)  # fmt: skip
case(
    "GX101", "augmented_index", """
    x = torch.ones(4, 2, requires_grad=True)
    h = torch.tanh(x)  #V
    h[:, 0] += 1  #C
    h.sum().backward()
    """,
    ("h[:, 0] += 1", "h = h + torch.tensor([1.0, 0.0])"),
    fix=("`h = h.clone()`",),
)  # fmt: skip
case(
    "GX101", "attribute_augmented", """
    class State:
        pass
    state = State()
    x = torch.ones(3, requires_grad=True)
    state.h = x.sigmoid()  #V
    state.h *= 0.5  #C
    state.h.sum().backward()
    """,
    ("state.h *= 0.5", "state.h = state.h * 0.5"),
    fix=("`state.h = state.h * 0.5`",), text=("`state.h`",),
)  # fmt: skip
case(
    "GX101", "write_in_a_multi_line_statement", """
    x = torch.ones(3, requires_grad=True)
    h = x.sigmoid()  #V
    total = (
        h.sum()
        + h.mul_(2).sum()  #C
        + 1
    )
    total.backward()
    """,
    ("h.mul_(2)", "h.mul(2)"),
)  # fmt: skip
case(
    "GX101", "write_in_a_lambda", """
    x = torch.ones(3, requires_grad=True)
    double = lambda t: t.mul_(2)  #C
    h = x.sigmoid()  #V
    double(h).sum().backward()
    """,
    ("t.mul_(2)", "t.mul(2)"),
)  # fmt: skip
case(
    "GX101", "write_in_a_comprehension", """
    x = torch.ones(3, requires_grad=True)
    parts = [x.sigmoid(), x.tanh()]  #V
    done = [p.add_(1) for p in parts]  #C
    sum(d.sum() for d in done).backward()
    """,
    ("p.add_(1)", "p.add(1)"),
)  # fmt: skip
case(
    "GX101", "write_in_a_decorator", """
    def scaled(function):
        def inner(*args):
            result = function(*args)
            result *= 0.1  #C
            return result
        return inner
    @scaled
    def gate(t):
        return torch.sigmoid(t)  #V
    gate(torch.ones(3, requires_grad=True)).sum().backward()
    """,
    ("result *= 0.1", "result = result * 0.1"),
    fix=("`result = result * 0.1`",),
)  # fmt: skip
case(
    "GX101", "write_in_a_property", """
    class Box:
        def __init__(self, value):
            self._value = value
        @property
        def value(self):
            return self._value.clamp_(0, 0.5)  #C
    box = Box(torch.ones(3, requires_grad=True).exp())  #V
    box.value.sum().backward()
    """,
    ("clamp_(0, 0.5)", "clamp(0, 0.5)"),
    fix=("self._value.clamp(0, 0.5)",),
)  # fmt: skip
case(
    "GX101", "write_in_a_generator", """
    def noisy(batches):
        for batch in batches:
            yield batch
            batch.zero_()  #C
    w = torch.ones(3, requires_grad=True)
    loss = 0
    for batch in noisy([torch.ones(3), torch.ones(3)]):
        loss = loss + (w * batch).sum()  #V
    loss.backward()
    """,
    ("batch.zero_()", "pass"),
)  # fmt: skip
case(
    "GX101", "loader_refills_one_tensor", """
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            row = torch.zeros(3)
            for k in range(3):
                row.fill_(k)  #C
                yield row
    w = torch.ones(3, requires_grad=True)
    total = 0
    for row in torch.utils.data.DataLoader(Stream(), batch_size=None):
        total = total + (w * row).sum()  #V
    total.backward()
    """,
    ("yield row", "yield row.clone()"),
)  # fmt: skip
case(
    "GX101", "write_through_a_view", """
    x = torch.ones(2, 3, requires_grad=True)
    h = x.exp()  #V
    flat = h.view(-1)
    flat[2] = 0  #C
    h.sum().backward()
    """,
    ("flat = h.view(-1)", "flat = h.clone().view(-1)"),
)  # fmt: skip
case(
    "GX101", "write_through_detach", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.detach().clamp_(max=1)  #C
    h.sum().backward()
    """,
    ("h.detach().clamp_", "h.detach().clamp"),
)  # fmt: skip
case(
    "GX101", "write_that_misses_the_saved_bytes", """
    x = torch.ones(3, requires_grad=True)
    table = torch.ones(4, 3)
    y = x * table[0]  #V
    table[2] = 5  #C
    y.sum().backward()
    """,
    ("x * table[0]", "x * table[0].clone()"),
)  # fmt: skip
case(
    "GX101", "the_write_that_overlaps_comes_first", """
    x = torch.ones(3, requires_grad=True)
    table = torch.ones(4, 3)
    y = x * table[0]  #V
    table[2] = 5
    table[0] = 7  #C
    y.sum().backward()
    """,
    ("x * table[0]", "x * table[0].clone()"),
)  # fmt: skip
case(
    "GX101", "write_before_the_save_is_not_blamed", """
    x = torch.ones(3, requires_grad=True)
    scale = torch.ones(3)
    scale.mul_(2)
    y = x * scale  #V
    scale.add_(1)  #C
    y.sum().backward()
    scale.mul_(3)
    """,
    ("scale.add_(1)", "scale = scale.add(1)"),
)  # fmt: skip
case(
    "GX101", "slice_written_then_used_by_a_product", """
    x = torch.ones(4, requires_grad=True)
    out = torch.zeros(4)
    out[:2] = x[:2] * 2
    out[2:] = out[:2] * out[:2]  #CV
    out.sum().backward()
    """,
    ("out[:2] * out[:2]", "out[:2].clone() ** 2"),
)  # fmt: skip
case(
    "GX101", "copy_slices_value_overwritten", """
    x = torch.ones(4, requires_grad=True)
    value = x.exp()  #V
    out = torch.zeros(2, 4)
    out[0] = value
    value.add_(1)  #C
    out.sum().backward()
    """,
    ("value.add_(1)", "value = value.add(1)"),
)  # fmt: skip
case(
    "GX101", "running_sum_in_a_loop", """
    x = torch.ones(3, requires_grad=True)
    acc = torch.zeros(3)
    total = 0
    for _ in range(2):
        acc += x  #C
        total = total + (acc ** 2).sum()  #V
    total.backward()
    """,
    ("acc += x", "acc = acc + x"),
    fix=("`acc = acc + x`",),
)  # fmt: skip
case(
    "GX101", "expanded_base_written", """
    base = torch.ones(1, 3)
    w = torch.ones(4, 3, requires_grad=True)
    y = base.expand(4, 3) * w  #V
    base.add_(1)  #C
    y.sum().backward()
    """,
    ("base.add_(1)", "base = base.add(1)"),
    fix=("`base = base.add(1)`",),
)  # fmt: skip
case(
    "GX101", "loop_variable_written", """
    x = torch.ones(3, requires_grad=True)
    layers = [x.exp(), x.tanh()]  #V
    for layer in layers:
        layer.mul_(2)  #C
    torch.stack(layers).sum().backward()
    """,
    ("    layer.mul_(2)", "    pass"),
    fix=("enumerate(layers):`", "`layers[i] = layer.mul(2)`"),
)  # fmt: skip
case(
    "GX101", "zero_of_a_state", """
    x = torch.ones(3, requires_grad=True)
    memory = torch.ones(3)
    y = (x * memory).sum()  #V
    memory.zero_()  #C
    y.backward()
    """,
    ("memory.zero_()", "memory = torch.zeros_like(memory)"),
    fix=("`memory = torch.zeros_like(memory)`",),
)  # fmt: skip
case(
    "GX101", "copy_into_a_state", """
    x = torch.ones(3, requires_grad=True)
    memory = torch.ones(3)
    y = (x * memory).sum()  #V
    memory.copy_(torch.arange(3))  #C
    y.backward()
    """,
    ("memory.copy_(torch.arange(3))", "memory = torch.arange(3).clone()"),
    fix=("`memory = torch.arange(3).clone()`",),
)  # fmt: skip
case(
    "GX101", "integer_index_written", """
    table = torch.ones(5, 2, requires_grad=True)
    index = torch.tensor([0, 1])
    y = table[index].sum()  #V
    index += 1  #C
    y.backward()
    """,
    ("index += 1", "index = index + 1"),
    fix=("`index = index + 1`",), text=("`index` (int64 [2])",),
)  # fmt: skip
case(
    "GX101", "mask_written_after_masked_fill", """
    x = torch.ones(3, requires_grad=True)
    mask = torch.tensor([True, False, True])
    y = x.masked_fill(mask, 0)  #V
    mask.logical_not_()  #C
    y.sum().backward()
    """,
    ("mask.logical_not_()", "mask = ~mask"),
)  # fmt: skip
case(
    "GX101", "residual_add_on_activation", """
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)
        def forward(self, x):
            h = torch.relu(self.fc(x))  #V
            h += x  #C
            return h
    Block()(torch.ones(2, 3)).sum().backward()
    """,
    ("h += x", "h = h + x"),
    fix=("`h = h + x`",),
)  # fmt: skip
case(
    "GX101", "softmax_edited", """
    x = torch.ones(2, 3, requires_grad=True)
    p = x.softmax(-1)  #V
    p[:, 0] = 0  #C
    p.log().sum(0)[1].backward()
    """,
    ("p[:, 0] = 0", "p = p.clone(); p[:, 0] = 0"),
)  # fmt: skip
case(
    "GX101", "norm_result_clamped", """
    x = torch.ones(2, 3, requires_grad=True)
    n = x.norm(dim=-1, keepdim=True)  #V
    n.clamp_(min=1e-6)  #C
    (x / n).sum().backward()
    """,
    ("n.clamp_(min=1e-6)", "n = n.clamp(min=1e-6)"),
    fix=("`n = n.clamp(min=1e-06)`",),
)  # fmt: skip
case(
    "GX101", "light_mode_names_the_write", """
    x = torch.ones(3, requires_grad=True)
    h = x.sigmoid()
    h += 1  #C
    h.sum().backward()
    """,
    ("h += 1", "h = h + 1"),
    saves=False,
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
