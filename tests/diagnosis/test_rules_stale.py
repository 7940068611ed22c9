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
    fix=("collect new tensors", "layer.mul(2)"),
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

# --- optimizers, parameters, training patterns ----------------------------------------------------

_GAN = """
    torch.manual_seed(0)
    gen, disc = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    gopt = torch.optim.{0}(gen.parameters(), lr=0.1)
    dopt = torch.optim.{0}(disc.parameters(), lr=0.1)
    fake = gen(torch.ones(5, 2))
    score = disc(fake)  #V
    loss_d, loss_g = score.mean(), -score.mean()
    loss_d.backward(retain_graph=True)
    dopt.step()  #C
    loss_g.backward()
    gopt.step()
"""
for _kind in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"):
    case(
        "GX101", f"gan_{_kind}", _GAN.format(_kind),
        ("dopt.step()\nloss_g.backward()", "loss_g.backward()\ndopt.step()"),
        fix=("move `dopt.step()`", "backward() at", ":10"), text=("disc[2].weight",),
    )  # fmt: skip
for _flag in ("foreach=True", "foreach=False"):
    case(
        "GX101", f"two_losses_{_flag}", f"""
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
        opt = torch.optim.SGD(net.parameters(), lr=0.1, {_flag})
        y = net(torch.ones(2, 3))  #V
        y.mean().backward(retain_graph=True)
        opt.step()  #C
        y.pow(2).mean().backward()
        """,
        ("opt.step()\ny.pow", "y.pow"),
    )  # fmt: skip
case(
    "GX101", "the_other_optimizer_is_not_blamed", """
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt_a = torch.optim.SGD(a.parameters(), lr=0.1)
    opt_b = torch.optim.SGD(b.parameters(), lr=0.1)
    h = a(torch.ones(2, 3))
    y = b(h)  #V
    y.mean().backward(retain_graph=True)
    opt_a.step()
    opt_b.step()  #C
    y.sum().backward()
    """,
    ("opt_b.step()", "pass"),
    fix=("`opt_b.step()`",),
)  # fmt: skip
case(
    "GX101", "own_optimizer_class", """
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.add_(p.grad, alpha=-0.1)  #C
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = Plain(net.parameters())
    y = net(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    opt.step()
    y.sum().backward()
    """,
    ("opt.step()\ny.sum", "y.sum"),
    fix=("move `opt.step()`",),
)  # fmt: skip
case(
    "GX101", "lbfgs_closure_without_forward", """
    w = torch.ones(3, requires_grad=True)
    opt = torch.optim.LBFGS([w], lr=0.1, max_iter=3)
    loss = (w ** 3).sum()  #V
    def closure():
        opt.zero_grad()
        loss.backward(retain_graph=True)
        return loss
    opt.step(closure)  #C
    """,
    ("opt.zero_grad()\n    loss", "opt.zero_grad()\n    loss = (w ** 3).sum()\n    loss"),
    fix=("inside the closure",),
)  # fmt: skip
case(
    "GX101", "grad_scaler_step", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    y = net(torch.ones(2, 3))  #V
    scaler.scale(y.mean()).backward(retain_graph=True)
    scaler.step(opt)  #C
    scaler.update()
    y.sum().backward()
    """,
    ("y.sum().backward()", "pass"),
    fix=("`scaler.step(opt)`",),
)  # fmt: skip
case(
    "GX101", "graph_carried_past_the_step", """
    cell = nn.RNNCell(2, 2)
    opt = torch.optim.SGD(cell.parameters(), lr=0.1)
    h = torch.zeros(1, 2)
    for _ in range(3):
        h = cell(torch.ones(1, 2), h)  #V
        opt.zero_grad()
        h.sum().backward(retain_graph=True)
        opt.step()  #C
    """,
    ("h = cell(torch.ones(1, 2), h)", "h = cell(torch.ones(1, 2), h.detach())"),
    fix=("`h = h.detach()`", "earlier iteration"),
)  # fmt: skip
case(
    "GX101", "weight_clipped_between", """
    critic = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    y = critic(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    with torch.no_grad():
        for p in critic.parameters():
            p.clamp_(-0.01, 0.01)  #C
    y.sum().backward()
    """,
    ("p.clamp_(-0.01, 0.01)", "pass"),
    fix=("below the backward() at", ":7"),
)  # fmt: skip
case(
    "GX101", "load_state_dict_between", """
    q, target = nn.Linear(3, 1), nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    loss = (q(x) - target(x)).pow(2).mean()  #V
    target.load_state_dict(q.state_dict())  #C
    loss.backward()
    """,
    ("target.load_state_dict(q.state_dict())\nloss.backward()",
     "loss.backward()\ntarget.load_state_dict(q.state_dict())"),
    fix=("move `target.load_state_dict(q.state_dict())`", "below the backward() at"),
    text=("target.weight",),
)  # fmt: skip
case(
    "GX101", "init_between", """
    net = nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    y = net(x).sum()  #V
    nn.init.zeros_(net.weight)  #C
    y.backward()
    """,
    ("nn.init.zeros_(net.weight)\ny.backward()", "y.backward()\nnn.init.zeros_(net.weight)"),
    fix=("move `nn.init.zeros_(net.weight)`",), text=("`net.weight",),
)  # fmt: skip
case(
    "GX101", "soft_update_between", """
    q, target = nn.Linear(3, 1), nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    loss = (q(x) - target(x)).mean()  #V
    with torch.no_grad():
        for p, t in zip(q.parameters(), target.parameters()):
            t.lerp_(p, 0.1)  #C
    loss.backward()
    """,
    ("t.lerp_(p, 0.1)", "pass"),
)  # fmt: skip
case(
    "GX101", "averaged_model_updated_between", """
    q = nn.Linear(3, 1)
    mean = torch.optim.swa_utils.AveragedModel(q)
    mean.update_parameters(q)
    x = torch.ones(2, 3, requires_grad=True)
    loss = (q(x) - mean(x)).mean()  #V
    mean.update_parameters(q)  #C
    loss.backward()
    """,
    ("mean.update_parameters(q)\nloss", "loss"),
)  # fmt: skip
case(
    "GX101", "weight_renormalised_in_forward", """
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 3))
        def forward(self, x):
            with torch.no_grad():
                self.w.div_(self.w.norm())  #C
            return x @ self.w.t()  #V
    net = Unit()
    x = torch.ones(2, 3, requires_grad=True)
    (net(x) * net(x)).sum().backward()
    """,
    ("self.w.div_(self.w.norm())\n", "pass\n"),
)  # fmt: skip
case(
    "GX101", "buffer_of_running_statistics", """
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.ones(3))
        def forward(self, x):
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)  #C
            return x * self.mean  #V
    net = Norm()
    x = torch.ones(2, 3, requires_grad=True)
    (net(x) + net(x)).sum().backward()
    """,
    ("return x * self.mean", "return x * self.mean.clone()"),
    text=("`net.mean`",),
)  # fmt: skip
case(
    "GX101", "queue_of_keys_rotated", """
    class Queue(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("keys", torch.ones(4, 3))
        def push(self, k):
            self.keys[:2] = k.detach()  #C
    queue = Queue()
    x = torch.ones(2, 3, requires_grad=True)
    logits = x @ queue.keys.t()  #V
    queue.push(x)
    logits.sum().backward()
    """,
    ("queue.keys.t()", "queue.keys.clone().t()"),
)  # fmt: skip
case(
    "GX101", "embedding_max_norm", """
    table = nn.Embedding(4, 3, max_norm=0.5)
    all_rows = table.weight * 2
    scores = table.weight @ torch.ones(3, 2, requires_grad=True)  #V
    row = table(torch.tensor([1]))  #C
    (scores.sum() + row.sum()).backward()
    """,
    ("table.weight @ torch", "table.weight.clone() @ torch"),
    fix=("max_norm", ".clone()"),
)  # fmt: skip
case(
    "GX101", "gradient_accumulated_with_create_graph", """
    w = torch.ones(3, requires_grad=True)
    (w ** 3).sum().backward(create_graph=True)
    penalty = (w.grad ** 2).sum()  #V
    w.grad.zero_()  #C
    penalty.backward()
    """,
    ("w.grad.zero_()", "w.grad = None"),
)  # fmt: skip
case(
    "GX101", "zero_grad_set_to_none_false", """
    w = torch.ones(3, requires_grad=True)
    opt = torch.optim.SGD([w], lr=0.1)
    (w ** 3).sum().backward(create_graph=True)
    penalty = (w.grad ** 2).sum()  #V
    opt.zero_grad(set_to_none=False)  #C
    penalty.backward()
    """,
    ("set_to_none=False", "set_to_none=True"),
    fix=("set_to_none=True",),
)  # fmt: skip
case(
    "GX101", "gradient_clipped_with_create_graph", """
    w = torch.ones(3, requires_grad=True)
    (w ** 3).sum().backward(create_graph=True)
    penalty = (w.grad ** 2).sum()  #V
    nn.utils.clip_grad_norm_([w], 0.1)  #C
    penalty.backward()
    """,
    ("nn.utils.clip_grad_norm_([w], 0.1)\npenalty.backward()",
     "penalty.backward()\nnn.utils.clip_grad_norm_([w], 0.1)"),
)  # fmt: skip
case(
    "GX101", "double_backward_then_write", """
    x = torch.ones(3, requires_grad=True)
    scale = torch.ones(3)
    y = ((x * scale) ** 3).sum()  #V
    (g,) = torch.autograd.grad(y, [x], create_graph=True)  #V
    scale.mul_(2)  #C
    g.sum().backward()
    """,
    ("scale.mul_(2)", "scale = scale.mul(2)"),
)  # fmt: skip
case(
    "GX101", "second_derivative_saves_the_gradient", """
    x = torch.ones(3, requires_grad=True)
    (g,) = torch.autograd.grad((x ** 3).sum(), [x], create_graph=True)
    e = g.exp()  #V
    g2 = torch.autograd.grad(e.sum(), [x], create_graph=True)[0]
    e.add_(1)  #C
    g2.sum().backward()
    """,
    ("e.add_(1)", "e = e.add(1)"),
)  # fmt: skip
case(
    "GX101", "autograd_grad_call", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.add_(1)  #C
    torch.autograd.grad(h.sum(), [x])
    """,
    ("h.add_(1)", "h = h.add(1)"),
)  # fmt: skip
case(
    "GX101", "actor_critic_step_between", """
    actor, critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = torch.optim.Adam(critic.parameters())
    def act(state):
        return torch.tanh(actor(state))
    state = torch.ones(1, 2)
    value = critic(act(state))  #V
    critic_loss = (value - 1).pow(2).mean()
    def update(loss, optimizer, keep=True):
        optimizer.zero_grad()
        loss.backward(retain_graph=keep)
        optimizer.step()  #C
    update(critic_loss, opt)
    (-value).mean().backward()
    """,
    ("update(critic_loss, opt)\n(-value).mean().backward()",
     "(-value).mean().backward(retain_graph=True)\nupdate(critic_loss, opt)"),
    fix=("optimizer.step()", "backward() at"),
)  # fmt: skip

case(
    "GX101", "forward_outside_the_training_loop", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    opt = torch.optim.Adam(net.parameters())
    y = net(torch.ones(1, 2))  #V
    for _ in range(2):
        opt.zero_grad()
        y.pow(2).sum().backward(retain_graph=True)
        opt.step()  #C
    """,
    ("y.pow(2)", "net(torch.ones(1, 2)).pow(2)"),
    fix=("`y` is made once", ":3", "`opt.step()`"),
)  # fmt: skip
case(
    "GX101", "old_probabilities_kept_with_their_graph", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    def log_prob(x):
        return net(x).log_softmax(-1)  #V
    old = log_prob(torch.ones(4, 2))
    for _ in range(2):
        loss = (log_prob(torch.ones(4, 2)) - old).exp().mean()
        loss.backward(retain_graph=True)
        opt.step()  #C
    """,
    ("- old)", "- old.detach())"),
    fix=("`old = old.detach()`", ":5"),
)  # fmt: skip

case(
    "GX101", "state_detached_in_place", """
    cell = nn.RNNCell(2, 2)
    h = torch.zeros(1, 2)
    total = 0
    for _ in range(2):
        h = cell(torch.ones(1, 2), h)
        total = total + (h * h).sum()  #V
        h.detach_()  #C
    total.backward()
    """,
    ("h.detach_()", "h = h.detach()"),
    fix=("`h = h.detach()`",), text=("detach_()",),
)  # fmt: skip

# --- hooks, Functions, checkpoint, threads --------------------------------------------------------

case(
    "GX101", "write_in_a_forward_hook", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    def scale(module, args, output):
        output.mul_(2)  #C
    net[1].register_forward_hook(scale)
    net(torch.ones(2, 3)).sum().backward()  #V
    """,
    ("output.mul_(2)", "return output * 2"),
    fix=("`output = output.mul(2)`",),
)  # fmt: skip
case(
    "GX101", "write_in_a_tensor_hook", """
    x = torch.ones(3, requires_grad=True)
    scale = torch.ones(3)
    h = x * scale  #V
    y = h * 2
    def hook(grad):
        scale.add_(1)  #C
    y.register_hook(hook)
    y.sum().backward()
    """,
    ("scale.add_(1)", "pass"),
)  # fmt: skip
case(
    "GX101", "write_in_a_custom_backward", """
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t, s):
            ctx.s = s
            return t * s
        @staticmethod
        def backward(ctx, g):
            ctx.s.add_(1)  #C
            return g * ctx.s, None
    s = torch.ones(3)
    x = torch.ones(3, requires_grad=True)
    h = x * s  #V
    Scale.apply(h, s).sum().backward()
    """,
    ("ctx.s.add_(1)", "pass"),
)  # fmt: skip
case(
    "GX101", "custom_function_saved_tensors", """
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            ctx.save_for_backward(t)  #V
            return t * t
        @staticmethod
        def backward(ctx, g):
            (t,) = ctx.saved_tensors
            return 2 * g * t
    x = torch.ones(3, requires_grad=True)
    h = x + 1
    y = Square.apply(h)  #V
    h.add_(1)  #C
    y.sum().backward()
    """,
    ("h.add_(1)", "h = h.add(1)"),
)  # fmt: skip
case(
    "GX101", "custom_function_saves_then_writes_with_mark_dirty", """
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            ctx.mark_dirty(t)
            return t.mul_(2)  #C
        @staticmethod
        def backward(ctx, g):
            return g * 2
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    Double.apply(h).sum().backward()
    """,
    ("Double.apply(h)", "Double.apply(h.clone())"),
)  # fmt: skip
case(
    "GX101", "custom_function_without_mark_dirty", """
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            t.mul_(2)  #C
            return t.clone()
        @staticmethod
        def backward(ctx, g):
            return g * 2
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    Double.apply(h).sum().backward()
    """,
    ("Double.apply(h)", "Double.apply(h.clone())"),
)  # fmt: skip
case(
    "GX101", "write_in_another_thread", """
    import threading
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    def work():
        h.add_(1)  #C
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    h.sum().backward()
    """,
    ("h.add_(1)", "h + 1"),
)  # fmt: skip
case(
    "GX101", "whole_step_in_another_thread", """
    import threading
    failed = []
    def work():
        try:
            x = torch.ones(3, requires_grad=True)
            h = x.exp()  #V
            h.add_(1)  #C
            h.sum().backward()
        except RuntimeError as error:
            failed.append(error)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    """,
    ("h.add_(1)", "h = h.add(1)"),
)  # fmt: skip
case(
    "GX101", "reentrant_checkpoint", """
    from torch.utils.checkpoint import checkpoint
    def block(t):
        h = t.exp()  #V
        h += 1  #C
        return h
    x = torch.ones(3, requires_grad=True)
    checkpoint(block, x, use_reentrant=True).sum().backward()
    """,
    ("h += 1", "h = h + 1"),
    fix=("`h = h + 1`",),
)  # fmt: skip
case(
    "GX101", "parametrised_weight", """
    net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 1))
    y = net(torch.ones(2, 3))  #V
    with torch.no_grad():
        net.parametrizations.weight.original1.mul_(2)  #C
    y.sum().backward()
    """,
    ("    net.parametrizations.weight.original1.mul_(2)", "    pass"),
)  # fmt: skip
case(
    "GX101", "functional_call_parameters_written", """
    net = nn.Linear(3, 1)
    params = {k: v.detach().clone().requires_grad_() for k, v in net.named_parameters()}
    x = torch.ones(2, 3, requires_grad=True)
    y = torch.func.functional_call(net, params, (x,))  #V
    with torch.no_grad():
        for value in params.values():
            value.sub_(0.1)  #C
    y.sum().backward()
    """,
    ("value.sub_(0.1)", "pass"),
    text=("params['weight']",),
)  # fmt: skip
case(
    "GX101", "rnn_hidden_reset_in_place", """
    cell = nn.RNNCell(2, 2)
    h = torch.zeros(1, 2)
    total = 0
    for step in range(3):
        h = cell(torch.ones(1, 2), h)  #V
        total = total + h.sum()
        if step == 1:
            h.zero_()  #C
    total.backward()
    """,
    ("h.zero_()", "h = torch.zeros_like(h)"),
)  # fmt: skip
case(
    "GX101", "simulation_state_in_a_matrix", """
    pos = torch.zeros(3, 2)
    v = torch.ones(2, requires_grad=True)
    for t in range(1, 3):
        pos[t] = pos[t - 1] + v * pos[t - 1].cos()  #CV
    pos.sum().backward()
    """,
    ("v * pos[t - 1].cos()", "v * pos[t - 1].clone().cos()"),
)  # fmt: skip
case(
    "GX101", "dataclass_state", """
    import dataclasses
    @dataclasses.dataclass
    class Cache:
        keys: torch.Tensor
        def write(self, k):
            self.keys[0] = k  #C
    cache = Cache(torch.zeros(2, 3))
    q = torch.ones(3, requires_grad=True)
    s = cache.keys @ q  #V
    cache.write(q.detach())
    (s + cache.keys @ q).sum().backward()
    """,
    ("self.keys[0] = k", "self.keys = torch.stack([k, self.keys[1]])"),
    text=("cache.keys",), fix=("self.keys.clone()",),
)  # fmt: skip
case(
    "GX101", "increment_version", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    torch.autograd.graph.increment_version(h)  #C
    h.sum().backward()
    """,
    ("torch.autograd.graph.increment_version(h)", "pass"),
)  # fmt: skip
case(
    "GX101", "random_fill", """
    x = torch.ones(3, requires_grad=True)
    noise = torch.empty(3)
    total = 0
    for _ in range(2):
        noise.normal_()  #C
        total = total + (x * noise).sum()  #V
    total.backward()
    """,
    ("x * noise", "x * noise.clone()"),
)  # fmt: skip
case(
    "GX101", "scatter_into_attention", """
    q = torch.ones(2, 2, requires_grad=True)
    a = torch.softmax(q @ q.t(), -1)  #V
    a.scatter_(1, torch.zeros(2, 1, dtype=torch.long), 0.0)  #C
    (a @ q).sum().backward()
    """,
    ("a.scatter_(", "a = a.scatter("),
    fix=("a = a.scatter(",),
)  # fmt: skip
case(
    "GX101", "vmap_inside", """
    x = torch.ones(4, 3, requires_grad=True)
    h = torch.func.vmap(torch.sigmoid)(x)  #V
    h.mul_(2)  #C
    h.sum().backward()
    """,
    ("h.mul_(2)", "h = h.mul(2)"),
)  # fmt: skip
case(
    "GX101", "dropout_in_place", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    F.dropout(h, 0.5, True, inplace=True)  #C
    h.sum().backward()
    """,
    ("F.dropout(h, 0.5, True, inplace=True)", "h = F.dropout(h, 0.5, True)"),
    fix=("h = F.dropout(h, 0.5, True)",),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
