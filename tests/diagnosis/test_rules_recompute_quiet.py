"""Checkpoints that recompute what their forward computed: GX406 says nothing of them."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases import Case, Cases, run
from torch.utils.checkpoint import checkpoint

import gradext
from gradext.recording import incidents

CHECKPOINT = "from torch.utils.checkpoint import checkpoint, checkpoint_sequential\n"

FINE = Cases()


def fine(name: str, source: str) -> None:
    FINE("", name, source)


fine("dropout_with_the_random_state_kept", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1))
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(net, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("nothing_random_and_the_state_not_kept", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(net, x, use_reentrant=False, preserve_rng_state=False).sum().backward()
    """)  # fmt: skip
fine("batch_norm_in_the_middle", """
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    for _ in range(2):
        checkpoint(net, torch.rand(3, 4), use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("batch_norm_last", """
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    x = torch.rand(3, 1, 5, 5, requires_grad=True)
    (checkpoint(net, x, use_reentrant=False) ** 2).sum().backward()
    """)  # fmt: skip
fine("batch_norm_whose_statistics_are_set_in_between", """
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    y = checkpoint(net, torch.rand(3, 4), use_reentrant=False)
    net[1].running_mean.zero_()
    net[1].running_var.fill_(1)
    y.sum().backward()
    """)  # fmt: skip
fine("instance_norm_with_running_stats", """
    net = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    x = torch.rand(4, 3, 5, requires_grad=True)
    (checkpoint(net, x, use_reentrant=False) ** 2).sum().backward()
    """)  # fmt: skip
fine("the_op_that_updates_the_statistics_itself", """
    w, b = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    mean, var = torch.zeros(4), torch.ones(4)
    def block(x):
        y, *_ = torch.ops.aten._batch_norm_with_update(x.exp(), w, b, mean, var, 0.1, 1e-5)
        return y.sin()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("rrelu_draws_into_what_it_saves", """
    net = nn.Sequential(nn.Linear(4, 4), nn.RReLU(), nn.Linear(4, 1), nn.Tanh())
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(net, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("attention_and_lstm", """
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    lstm = nn.LSTM(8, 4, 2, batch_first=True, dropout=0.3)
    x = torch.rand(2, 3, 8, requires_grad=True)
    h = checkpoint(layer, x, use_reentrant=False)
    out, _ = checkpoint(lstm, h, use_reentrant=False)
    (out ** 2).sum().backward()
    """)  # fmt: skip
fine("nested", """
    inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Tanh())
    def outer(x):
        return checkpoint(inner, x.exp(), use_reentrant=False).sin()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(outer, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("several_and_the_whole_block_recomputed", """
    nets = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.2)) for _ in range(3)]
    h = torch.rand(3, 4, requires_grad=True)
    for net in nets:
        h = checkpoint(net, h, use_reentrant=False, early_stop=False)
    h.sum().backward()
    """)  # fmt: skip
fine("sequential_in_segments_over_many_steps", """
    net = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)) for _ in range(4)])
    step = torch.optim.AdamW(net.parameters())
    for _ in range(3):
        step.zero_grad()
        x = torch.rand(3, 4, requires_grad=True)
        checkpoint_sequential(net, 2, x, use_reentrant=False).sum().backward()
        step.step()
    """)  # fmt: skip
fine("under_autocast", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.rand(3, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = checkpoint(net, x, use_reentrant=False)
    y.float().sum().backward()
    """)  # fmt: skip
fine("written_in_place_before_it_is_saved", """
    net = nn.Linear(4, 4)
    def block(x):
        h = net(x)
        h += 1
        h[0] = 0
        h = h.relu_()
        mask = torch.zeros(4)
        mask[1] = 1
        return (h * mask).exp()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("backward_twice_and_a_second_derivative", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))
    x = torch.rand(3, 4, requires_grad=True)
    y = checkpoint(net, x, use_reentrant=False).sum()
    y.backward(retain_graph=True)
    y.backward()
    y = checkpoint(net, x, use_reentrant=False).sum()
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    (y + g.square().sum()).backward()
    """)  # fmt: skip
fine("a_gradient_taken_within_the_block", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    def energy(x):
        (force,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return force.square()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(energy, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("selective", """
    import functools
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
    def policy(ctx, op, *args, **kwargs):
        keep = op == torch.ops.aten.mm.default
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    w = torch.rand(4, 4, requires_grad=True)
    def block(x):
        return (x @ w).sigmoid() @ w
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False, context_fn=contexts).sum().backward()
    """)  # fmt: skip
fine("gradients_gathered_before_the_step", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        for part in range(2):
            checkpoint(net, torch.rand(3, 4), use_reentrant=False).sum().backward()
        step.step()
        step.zero_grad()
    """)  # fmt: skip
fine("a_counter_and_statistics_that_nothing_reads", """
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(4))
        def forward(self, x):
            h = self.net(x)
            self.calls += 1
            with torch.no_grad():
                self.mean.lerp_(h.mean(0), 0.1)
            return h.tanh()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(Counted(), x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("a_cache_written_anew_each_time", """
    cache = torch.zeros(4)
    net = nn.Linear(4, 4)
    def block(x):
        with torch.no_grad():
            cache.copy_(torch.arange(4.0).cos())
        return (net(x) * cache).tanh()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("hooks_of_the_programs_own_around_it", """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.rand(3, 4, requires_grad=True)
    with torch.autograd.graph.save_on_cpu():
        y = checkpoint(net, x, use_reentrant=False)
    y.sum().backward()
    """)  # fmt: skip
fine("a_function_of_the_programs_own", """
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x
        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g
    net = nn.Linear(4, 4)
    def block(x):
        return Square.apply(net(x)).exp()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("spectral_and_weight_norm_in_evaluation", """
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 1)),
    ).eval()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(net, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("values_that_are_not_numbers", """
    net = nn.Linear(4, 4)
    def block(x):
        scores = net(x).masked_fill(torch.tensor([True, False, False, True]), -torch.inf)
        return scores.softmax(-1) * torch.tensor([1.0, 2.0, torch.nan, 1.0]).nan_to_num()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip
fine("complex_and_integers", """
    w = torch.rand(5, 4, dtype=torch.complex64, requires_grad=True)
    def block(x):
        z = torch.fft.fft(x) @ w.t()
        index = z.abs().argsort(-1)
        return z.real.gather(-1, index).sin()
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    """)  # fmt: skip


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no_guard"])
@FINE.broken()
def test_nothing_is_said_of_checkpoints_that_are_right(case: Case, guard: bool) -> None:
    ran = run(CHECKPOINT + case.shown, f"{case.name}-{guard}", guard=guard)
    assert ran.error is None
    assert ran.diagnoses == []


def test_a_process_with_many_recordings_is_told_each_time() -> None:
    """The limit on what is explained is one of the recordings that run, not of the process."""
    buffer = torch.zeros(3)
    heard: list[object] = []
    stop = incidents.subscribe(heard.append)
    try:
        for _ in range(70):
            with gradext.record(), warnings.catch_warnings():
                warnings.simplefilter("ignore", gradext.GuardWarning)
                with gradext.guard():
                    x = torch.ones(3, requires_grad=True)
                    out = checkpoint(lambda t: t * buffer, x.exp(), use_reentrant=False)
                    buffer.add_(1.0)
                    out.sum().backward()
    finally:
        stop()
    assert len(heard) == 70
