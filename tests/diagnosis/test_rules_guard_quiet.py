"""What guard() says nothing of, and what torch raises by itself under it."""

from __future__ import annotations

from cases import Case, Cases, places, run

# A Function whose backward writes into the gradient that it gets.
DAMP = """
    class Damp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()
        @staticmethod
        def backward(ctx, g):
            g *= 0.1
            return g"""

FINE = Cases()
FINE("", "batch_norm_in_training_twice", """
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    x = torch.rand(4, 3)
    (net(x).sum() + net(x * 2).sum()).backward()
    """)  # fmt: skip
FINE("", "instance_norm_with_running_stats", """
    net = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    x = torch.rand(4, 3, 5)
    (net(x).sum() + net(x * 2).sum()).backward()
    """)  # fmt: skip
FINE("", "dropout_and_attention", """
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for _ in range(2):
        layer(torch.rand(2, 3, 8)).sum().backward()
    """)  # fmt: skip
FINE("", "numpy_read_only", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()
    values = h.detach().numpy()
    print(values.sum())
    total = float(values[0])
    h.sum().backward()
    """)  # fmt: skip
FINE("", "numpy_written_after_backward", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()
    memory = h.detach().numpy()
    h.sum().backward()
    memory[:] = 0
    """)  # fmt: skip
FINE("", "exchanged_memory_that_a_transposed_view_still_holds", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    y = net(torch.ones(2, 3)).sum()
    for p in net.parameters():
        p.data = p.data * 2
    y.backward()
    """)  # fmt: skip
FINE("", "bytes_put_back", """
    x = torch.ones(3, requires_grad=True)
    h = x * 1
    y = (h ** 2).sum()
    h.data.mul_(2)
    h.data.div_(2)
    """)  # fmt: skip
FINE("", "packed_as_a_copy", """
    x = torch.ones(3, requires_grad=True)
    h = x * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.float()):
        y = h ** 2
    with torch.no_grad():
        h.mul_(3)
    y.sum().backward()
    """)  # fmt: skip
FINE("", "checkpointed", """
    from torch.utils.checkpoint import checkpoint
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 1))
    x = torch.rand(4, 3, requires_grad=True)
    for reentrant in (False, True):
        checkpoint(net, x, use_reentrant=reentrant).sum().backward()
    """)  # fmt: skip
FINE("", "gradient_not_shared_is_written", DAMP + """
    a = torch.ones(3, requires_grad=True)
    Damp.apply(a * 2).pow(2).sum().backward()
    """)  # fmt: skip
FINE("", "gradients_accumulate_in_a_diamond", """
    x = torch.rand(4, 4, requires_grad=True)
    h = x * 1
    parts = [h.tanh(), h.exp(), h + 1, h - 2, h * h]
    y = sum(parts) + h
    for _ in range(2):
        y.pow(2).sum().backward(retain_graph=True)
    """)  # fmt: skip
FINE("", "only_some_inputs_are_asked_for", DAMP + """
    a = torch.ones(3, requires_grad=True)
    b = torch.ones(3, requires_grad=True)
    y = a * 1 + Damp.apply(b)
    torch.autograd.grad(y.pow(2).sum(), [b])
    """)  # fmt: skip
FINE("", "gradient_clipping_and_zeroing", """
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    opt = torch.optim.AdamW(net.parameters(), foreach=True)
    for _ in range(3):
        opt.zero_grad(set_to_none=False)
        net(torch.rand(4, 3)).pow(2).mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        opt.step()
    """)  # fmt: skip
FINE("", "double_backward", """
    x = torch.rand(3, requires_grad=True)
    y = (x ** 3).sum()
    (g,) = torch.autograd.grad(y, [x], create_graph=True)
    g.pow(2).sum().backward()
    """)  # fmt: skip
FINE("", "expanded_only_read", """
    x = torch.rand(1, 4, requires_grad=True)
    z = x.expand(3, 4)
    w = z.clone()
    w[1] = 0
    (w * z).sum().backward()
    """)  # fmt: skip
FINE("", "saved_and_loaded", """
    import io
    net = nn.Linear(3, 1)
    y = net(torch.rand(2, 3)).sum()
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    torch.load(stream)
    print(net.weight)
    y.backward()
    """)  # fmt: skip
FINE("", "weights_clipped_after_backward_each_step", """
    net = nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        opt.zero_grad()
        net(torch.rand(2, 3)).pow(2).sum().backward()
        opt.step()
        for p in net.parameters():
            p.data.clamp_(-1, 1)
    """)  # fmt: skip


@FINE.broken()
def test_nothing_is_said_of_programs_that_are_right(case: Case) -> None:
    ran = run(case.shown, case.name, guard=True)
    assert ran.error is None
    assert ran.diagnoses == []


TORCH_RAISES = Cases()
TORCH_RAISES("GX101", "counted_write", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.mul_(2)  #C
    h.sum().backward()
    """)  # fmt: skip
TORCH_RAISES("GX302", "second_backward", """
    x = torch.ones(3, requires_grad=True)
    y = (x ** 2).sum()  #V
    y.backward()  #C
    y.backward()
    """)  # fmt: skip


@TORCH_RAISES.broken()
def test_what_torch_raises_stays_as_it_is(case: Case) -> None:
    plain = run(case.shown, case.name)
    ran = run(case.shown, case.name, guard=True)
    assert ran.error == plain.error is not None
    assert [d.code for d in ran.diagnoses] == [case.code]
    assert places(ran.diagnoses[0].culprits, ran.file) == places(
        plain.diagnoses[0].culprits, plain.file
    )
