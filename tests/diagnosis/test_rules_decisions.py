"""GX304: a comparison, an index or a number is the only way from what is trained to the loss."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

# --- whole numbers that tell a place --------------------------------------------------------------

case(
    "GX304", "tone_looked_up_in_a_palette", """
    tone, palette = nn.Linear(3, 1), nn.Embedding(8, 3)
    opt = torch.optim.SGD([*tone.parameters(), *palette.parameters()], 0.1)
    for x in torch.rand(2, 4, 3):
        opt.zero_grad()
        p = tone(x).sigmoid()[:, 0]
        place = (p * 7).long()  #C
        (palette(place) - x).square().mean().backward()  #V
        opt.step()
    """,
    ("place = (p * 7).long()", "place = p.softmax(0)"),
    ("palette(place)", "(place[:, None] * palette.weight[:4])"),
    fix=("between two neighbours: `a[i]",),
)  # fmt: skip
case(
    "GX304", "values_taken_out_of_a_table_of_constants", """
    curve = torch.linspace(0, 1, 9) ** 2
    net, head = nn.Linear(2, 1), nn.Linear(1, 1)
    opt = torch.optim.SGD([*net.parameters(), *head.parameters()], 0.1)
    def corrected(p):
        return curve[(p * 8).clamp(0, 8).int()]  #C
    for x in torch.rand(2, 4, 2):
        opt.zero_grad()
        head(corrected(net(x).sigmoid())).square().mean().backward()
        opt.step()
    """,
    ("curve[(p * 8).clamp(0, 8).int()]", "p ** 2"),
    fix=("between two neighbours: `a[i]",),
)  # fmt: skip
case(
    "GX304", "frames_repeated_by_durations", """
    enc, durations, dec = nn.Embedding(5, 4), nn.Linear(4, 1), nn.Linear(4, 2)
    opt = torch.optim.SGD([*enc.parameters(), *durations.parameters(), *dec.parameters()], 0.1)
    for ids in torch.randint(0, 5, (2, 6)):
        opt.zero_grad()
        h = enc(ids)
        n = (durations(h).exp()[:, 0] * 2).to(torch.int64).clamp(1, 3)  #C
        dec(h.repeat_interleave(n, 0)).square().mean().backward()
        opt.step()
    """,
    ("n = (durations(h).exp()[:, 0] * 2).to(torch.int64).clamp(1, 3)",
     "h, n = h * durations(h), torch.full((6,), 2)"),
    fix=("a size or an index has no derivative",),
)  # fmt: skip
case(
    "GX304", "rounded_values_that_are_no_index", """
    net, head = nn.Linear(2, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*net.parameters(), *head.parameters()], 0.1)
    for x in torch.rand(2, 4, 2):
        opt.zero_grad()
        head((net(x) * 8).int().float()).square().mean().backward()  #C
        opt.step()
    """,
    ("(net(x) * 8).int().float()", "net(x)"),
    fix=("the floating values in place of the cast",),
)  # fmt: skip

# --- decisions ------------------------------------------------------------------------------------

case(
    "GX304", "index_of_the_best_expert", """
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(4, 3), nn.Embedding(3, 4)
        def forward(self, x):
            best = self.gate(x).argmax(-1)  #C
            return x * self.experts(best)  #V
    net = Router()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 6, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("self.gate(x).argmax(-1)", "self.gate(x).softmax(-1)"),
    ("self.experts(best)", "(best @ self.experts.weight)"),
    text=("`net.gate.weight` and `net.gate.bias` get no gradient", "ends at `argmax`"),
    fix=("softmax",),
)  # fmt: skip
case(
    "GX304", "threshold_of_a_shrinkage_without_an_optimizer", """
    cut = torch.tensor(0.3, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    def shrink(x):
        return torch.where(x.abs() > cut, scale * x, torch.zeros_like(x))  #C
    x = torch.randn(8)
    for _ in range(3):
        (shrink(x) - x).pow(2).sum().backward()
    """,
    ("torch.where(x.abs() > cut, scale * x, torch.zeros_like(x))",
     "scale * x.sign() * torch.relu(x.abs() - cut)"),
    text=("`cut` gets no gradient", "the comparison `>`"), fix=("sigmoid",),
)  # fmt: skip
case(
    "GX304", "scores_that_only_select", """
    scorer, head = nn.Linear(4, 1), nn.Linear(4, 1)
    opt = torch.optim.SGD([*scorer.parameters(), *head.parameters()], 0.1)
    def select(x):
        s = scorer(x).squeeze(-1)
        keep = s.topk(2).indices  #C
        return x[keep]
    for x in torch.rand(3, 6, 4):
        loss = head(select(x)).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("return x[keep]", "return x[keep] * s[keep].unsqueeze(-1).sigmoid()"),
    text=("`scorer.weight`", "`topk`"),
)  # fmt: skip
case(
    "GX304", "sample_without_a_gradient", """
    logits, ops = nn.Parameter(torch.zeros(3)), nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    opt = torch.optim.SGD([logits, *ops.parameters()], 0.1)
    for x in torch.rand(4, 5, 2):
        pick = torch.multinomial(logits.softmax(0), 1)  #C
        mask = F.one_hot(pick, 3).float().squeeze(0)
        loss = sum(m * op(x) for m, op in zip(mask, ops)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("F.one_hot(pick, 3).float().squeeze(0)", "F.gumbel_softmax(logits, hard=True)"),
    text=("`logits` gets no gradient", "`multinomial`"), fix=("gumbel_softmax",),
)  # fmt: skip
case(
    "GX304", "learned_bin_edges", """
    edges, table = nn.Parameter(torch.linspace(0, 1, 4)), nn.Embedding(5, 2)
    opt = torch.optim.SGD([edges, *table.parameters()], 0.1)
    for x in torch.rand(3, 6):
        bins = torch.bucketize(x, edges)  #C
        loss = table(bins).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("table(bins)", "(table(bins) * (x[:, None] - edges).sigmoid().sum(1, keepdim=True))"),
    text=("`edges` gets no gradient", "`bucketize`"),
)  # fmt: skip
case(
    "GX304", "loss_of_ranks", """
    net, heat = nn.Linear(3, 1), nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([*net.parameters(), heat], 0.1)
    y = torch.arange(5.0)
    for x in torch.rand(3, 5, 3):
        s = net(x).squeeze(-1)
        ranks = s.argsort().argsort().float()  #C
        loss = ((ranks - y) * heat).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("s.argsort().argsort().float()", "(s[:, None] - s).sigmoid().sum(1)"),
    text=("`net.weight` and `net.bias`",),
)  # fmt: skip
case(
    "GX304", "gain_that_is_rounded", """
    width, net = nn.Parameter(torch.tensor(2.6)), nn.Linear(4, 1)
    opt = torch.optim.SGD([width, *net.parameters()], 0.1)
    for x in torch.rand(3, 5, 4):
        gain = width.round()  #C
        loss = (net(x) * gain).pow(2).mean()
        opt.zero_grad()
        loss.backward()  #V
        opt.step()
    """,
    ("width.round()", "width + (width.round() - width).detach()"),
    text=("`width` gets a gradient of zero", "`round`"), fix=("detach()",),
)  # fmt: skip
case(
    "GX304", "halting_by_a_comparison_in_a_loop", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.halt = nn.Linear(3, 3), nn.Linear(3, 1)
        def forward(self, x):
            going = torch.ones(len(x), 1)
            for _ in range(3):
                x = x + going * self.cell(x).tanh()  #V
                p = self.halt(x).sigmoid()
                going = going * p.lt(0.5)  #C
            return x
    net = Net()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("going * p.lt(0.5)", "going * (1 - p)"),
    text=("`net.halt.weight`", "`<`"),
)  # fmt: skip

# --- terms that are numbers -----------------------------------------------------------------------

case(
    "GX304", "entropy_bonus_computed_with_math", """
    import math
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    def entropy(p):
        e = 0.0
        for v in p.mean(0).tolist():  #C
            e -= v * math.log(v)
        return e
    for x in torch.rand(3, 4, 3):
        p = net(x).softmax(-1)
        bonus = entropy(p)
        loss = -p[:, 0].log().mean()
        loss -= 0.1 * bonus  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("p.mean(0).tolist()", "p.mean(0)"), ("math.log(v)", "v.log()"),
    text=("is a number: `.tolist()`",),
)  # fmt: skip
case(
    "GX304", "auxiliary_loss_kept_as_a_float", """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Linear(4, 2), nn.Linear(2, 4)
            self.aux = 0.0
        def forward(self, x):
            h = self.enc(x)
            self.aux = 0.5 * float(h.abs().mean())  #C
            return self.dec(h)
    model = Model()
    x = torch.rand(5, 4)
    out = model(x)
    loss = ((out - x) ** 2).mean() + model.aux  #V
    loss.backward()
    """,
    ("float(h.abs().mean())", "h.abs().mean()"),
    text=("is a number: `float()`",),
)  # fmt: skip
case(
    "GX304", "penalty_through_a_text", """
    net = nn.Linear(3, 1)
    def penalty(w):
        text = f"{w.pow(2).sum().item():.6f}"  #C
        return torch.tensor(float(text))
    loss = net(torch.rand(4, 3)).pow(2).mean() + penalty(net.weight)  #V
    loss.backward()
    """,
    ('f"{w.pow(2).sum().item():.6f}"', "w.pow(2).sum()"),
    ("torch.tensor(float(text))", "text"),
    text=("`.item()`",),
)  # fmt: skip
case(
    "GX304", "frozen_model_and_an_input_that_is_optimised", """
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).requires_grad_(False)
    z = torch.rand(2, 4, requires_grad=True)
    opt = torch.optim.Adam([z])
    for _ in range(3):
        near = model(z).pow(2).mean()
        prior = (z.norm() - 1).abs().item()  #C
        loss = near + 0.1 * prior  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    (".abs().item()", ".abs()"),
    text=("`.item()`",), fix=("`prior = (z.norm() - 1).abs()`",),
)  # fmt: skip

# --- values that came back through memory ---------------------------------------------------------

case(
    "GX304", "features_concatenated_into_a_tensor", """
    import numpy as np
    enc, dec = nn.Linear(4, 3), nn.Linear(6, 4)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], 0.1)
    both = torch.empty(5, 6)
    for x in torch.rand(2, 5, 4):
        h = enc(x).detach().numpy()  #C
        np.concatenate([h, h ** 2], axis=1, out=both.numpy())
        loss = (dec(both) - x).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("enc(x).detach().numpy()", "enc(x)"),
    ("np.concatenate([h, h ** 2], axis=1, out=both.numpy())", "both = torch.cat([h, h ** 2], 1)"),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "buffer_that_is_copied_to", """
    import numpy as np
    enc, dec = nn.Linear(4, 3), nn.Linear(3, 4)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], 0.1)
    buffer = np.zeros((5, 3), dtype="float32")
    code = torch.from_numpy(buffer)
    for x in torch.rand(2, 5, 4):
        h = enc(x)
        a = h.detach().cpu().numpy()  #C
        np.copyto(buffer, np.clip(a, -1, 1))
        loss = (dec(code) - x).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("h.detach().cpu().numpy()", "h"),
    ("np.copyto(buffer, np.clip(a, -1, 1))", "code = a.clamp(-1, 1)"),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "slices_of_an_array_read_as_a_buffer", """
    import numpy as np
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 4)
        def forward(self, x):
            z = self.a(x)
            store = np.zeros((len(x), 6), dtype=np.float32)
            store[:, :3] = z.detach().numpy()  #C
            store[:, 3:] = store[:, :3] ** 2
            return self.b(torch.frombuffer(store, dtype=torch.float32).view(len(x), 6))  #V
    net = Coder()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(2, 5, 4):
        opt.zero_grad()
        (net(x) - x).pow(2).mean().backward()
        opt.step()
    """,
    ("store = np.zeros((len(x), 6), dtype=np.float32)", "store = torch.zeros(len(x), 6)"),
    ("z.detach().numpy()", "z"), ("store[:, 3:] = store[:, :3] ** 2", "store[:, 3:] = z ** 2"),
    ("torch.frombuffer(store, dtype=torch.float32).view(len(x), 6)", "store"),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "shared_memory_of_another_process", """
    import numpy as np
    from multiprocessing import shared_memory
    enc, dec = nn.Linear(4, 3), nn.Linear(3, 4)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], 0.1)
    block = shared_memory.SharedMemory(create=True, size=5 * 3 * 4)
    try:
        slot = np.ndarray((5, 3), dtype=np.float32, buffer=block.buf)
        for x in torch.rand(2, 5, 4):
            slot[:] = enc(x).tanh().detach().numpy()  #C
            code = torch.from_numpy(slot)
            loss = (dec(code) - x).pow(2).mean()  #V
            opt.zero_grad()
            loss.backward()
            opt.step()
    finally:
        slot = code = loss = None
        block.unlink()
    """,
    ("slot[:] = enc(x).tanh().detach().numpy()", "code = enc(x).tanh()"),
    ("code = torch.from_numpy(slot)", "pass"),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "shared_tensor_written_through_numpy", """
    class Worker:
        def __init__(self):
            self.slot = torch.zeros(5, 3).share_memory_()
            self.memory = self.slot.numpy()
            self.enc = nn.Linear(4, 3)
        def fill(self, x):
            h = self.enc(x)
            self.memory[...] = h.detach().numpy()  #C
            return self.slot
    worker, dec = Worker(), nn.Linear(3, 4)
    opt = torch.optim.SGD([*worker.enc.parameters(), *dec.parameters()], 0.1)
    for x in torch.rand(2, 5, 4):
        loss = (dec(worker.fill(x)) - x).abs().sum()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("self.memory[...] = h.detach().numpy()", "pass"), ("return self.slot", "return h"),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "mapped_memory_read_by_two_views", """
    import mmap
    import numpy as np
    enc, dec = nn.Linear(4, 3), nn.Linear(3, 4)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], 0.1)
    memory = mmap.mmap(-1, 5 * 3 * 4)
    ours = np.frombuffer(memory, dtype=np.float32).reshape(5, 3)
    theirs = torch.frombuffer(memory, dtype=torch.float32).view(5, 3)
    for x in torch.rand(2, 5, 4):
        h = enc(x)
        np.multiply(h.detach().numpy(), 2, out=ours)  #C
        loss = (dec(theirs) - x).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("np.multiply(h.detach().numpy(), 2, out=ours)", "theirs = h * 2"),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "block_read_as_a_buffer_by_a_reader", """
    import numpy as np
    from multiprocessing import shared_memory
    enc, dec = nn.Linear(4, 3), nn.Linear(3, 4)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], 0.1)
    block = shared_memory.SharedMemory(create=True, size=64)
    try:
        writer = np.ndarray((5, 3), dtype=np.float32, buffer=block.buf)
        reader = torch.frombuffer(block.buf, dtype=torch.float32)[:15].view(5, 3)
        for x in torch.rand(2, 5, 4):
            h = enc(x).sin()
            np.copyto(writer, h.detach().numpy())  #C
            loss = (dec(reader) - x).pow(2).mean()  #V
            opt.zero_grad()
            loss.backward()
            opt.step()
    finally:
        writer = reader = loss = None
        block.unlink()
    """,
    ("np.copyto(writer, h.detach().numpy())", "reader = h"),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "bytes_filled_through_a_memoryview", """
    import numpy as np
    enc, dec = nn.Linear(4, 3), nn.Linear(3, 4)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], 0.1)
    store = bytearray(60)
    room = memoryview(store).cast("f")
    slots = np.asarray(room).reshape(5, 3)
    code = torch.frombuffer(store, dtype=torch.float32).reshape(5, 3)
    for x in torch.rand(2, 5, 4):
        slots[:] = enc(x).sigmoid().detach().numpy()  #C
        loss = (dec(code) - x).abs().mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("slots[:] = enc(x).sigmoid().detach().numpy()", "code = enc(x).sigmoid()"),
    text=("rebuilt from numbers",),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    ran = check_broken(case)
    assert ran.error is None
    assert {(d.code, d.severity) for d in ran.diagnoses} == {("GX304", "warning")}
    assert len({d.key() for d in ran.diagnoses}) == 1  # one root cause, one warning


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
