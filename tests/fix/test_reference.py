"""The reference of writes that torch refuses, of shared gradients and of checkpoints.

Each program is run under the reference, and its gradients held against those of the program that a
person would write for the same meaning.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from torch import nn

from gradext.fix import proof, reference
from gradext.fix.reference import RefusedWrites
from gradext.fix.trial import Ran


def under(program: Callable[[], Any]) -> tuple[Any, str | None]:
    torch.manual_seed(0)
    with RefusedWrites() as mode:
        return program(), mode.doubt


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def test_an_update_of_a_leaf() -> None:
    def program(update: Callable[[Any], None]) -> torch.Tensor:
        w = leaf(4)
        for _ in range(3):
            w.grad = None
            (w - 1).pow(2).sum().backward()
            update(w)
        return w.detach()

    def refused(w: Any) -> None:
        w -= 0.1 * w.grad

    def meant(w: Any) -> None:
        with torch.no_grad():
            w -= 0.1 * w.grad

    found, doubt = under(lambda: program(refused))
    torch.manual_seed(0)
    assert torch.equal(found, program(meant))
    assert doubt is None


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))
        self.w[0] = 1.0

    def forward(self, x: Any) -> Any:
        self.w.mul_(0.5)
        return (x * self.w).sum()


def test_a_parameter_is_initialised_and_one_that_forward_writes_is_doubtful() -> None:
    net, doubt = under(Masked)
    assert doubt is None
    assert net.w[0].item() == 1.0
    assert under(lambda: net(torch.ones(4)))[1] == reference._PART


@pytest.mark.parametrize(
    "program",
    [
        lambda: leaf(4).mul_(2),  # an input: scaled before it is differentiated, or for good?
        lambda: leaf(4)[1:].zero_(),
        lambda: nn.functional.relu(leaf(4), inplace=True),
        lambda: nn.Linear(2, 2).weight.copy_(leaf(2, 2) * 2),  # generated: its source is trained
    ],
)
def test_what_only_its_author_knows_is_doubtful(program: Callable[[], Any]) -> None:
    assert under(program)[1] is not None


def through_unbind(x: Any) -> None:
    for row, factor in zip(x.unbind(), (1.0, 2.0, 3.0), strict=True):
        row.mul_(factor)


def through_index(x: Any) -> None:
    for n, factor in enumerate((1.0, 2.0, 3.0)):
        x[n].mul_(factor)


def by_chunks(x: Any) -> None:
    first, second = x.chunk(2, dim=1)
    first += second  # which is read after its base was written
    second.sigmoid_()


def by_slices(x: Any) -> None:
    first, second = x[:, :2], x[:, 2:]
    first += second
    second.sigmoid_()


def by_split(x: Any) -> None:
    parts = torch.split(x, [1, 3], dim=1)
    parts[1].neg_()
    parts[0][:] = parts[1].sum(1, keepdim=True)


def by_narrow(x: Any) -> None:
    parts = x.narrow(1, 0, 1), x.narrow(1, 1, 3)
    parts[1].neg_()
    parts[0][:] = parts[1].sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("refused", "meant"),
    [(through_unbind, through_index), (by_chunks, by_slices), (by_split, by_narrow)],
)
def test_the_base_shows_what_is_written_into_a_view(
    refused: Callable[[Any], None], meant: Callable[[Any], None]
) -> None:
    def program(write: Callable[[Any], None]) -> list[torch.Tensor]:
        w = leaf(3, 4)
        x = w * 2
        write(x)
        loss = x.pow(3).sum()
        loss.backward()
        return [loss.detach(), w.grad]  # type: ignore[list-item]

    found, doubt = under(lambda: program(refused))
    torch.manual_seed(0)
    wanted = program(meant)
    assert doubt is None
    assert all(map(torch.equal, found, wanted))


def test_a_buffer_that_has_no_history_shows_the_write() -> None:
    w, buffer = torch.arange(3.0, requires_grad=True), torch.zeros(2, 3)
    with torch.no_grad():
        row = buffer[1]

    def program() -> None:
        row.add_(w * 2)
        buffer.pow(2).sum().backward()

    assert under(program)[1] is None
    assert torch.equal(w.grad, 8 * w.detach())  # type: ignore[arg-type]


def test_a_view_without_the_history_of_its_base_is_doubtful() -> None:
    x = leaf(3) * 2
    with torch.no_grad():
        view = x[:2]
    assert under(lambda: view.mul_(2))[1] == reference._STOP


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
        return gradient * 2


@pytest.mark.parametrize("reads_base", [False, True])
def test_the_view_of_a_function_is_a_clone(reads_base: bool) -> None:
    w = torch.arange(3.0, requires_grad=True)

    def program() -> None:
        x = w * 1
        y = Double.apply(x)
        y += 1
        ((y * y).sum() + (x.sum() if reads_base else 0)).backward()

    doubt = under(program)[1]
    assert doubt == (reference._READ if reads_base else None)
    if not reads_base:
        assert torch.equal(w.grad, 4 * (w.detach() + 1))  # type: ignore[arg-type]


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        under(lambda: torch.ones(2).add_(torch.ones(3)))


@pytest.fixture
def _own() -> Iterator[None]:
    kept = (
        torch.Tensor.register_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
        torch.autograd.function.BackwardCFunction.apply,
    )
    reference.own_gradients()
    yield
    torch.Tensor.register_hook = kept[0]  # type: ignore[method-assign]
    nn.Module.register_full_backward_hook = kept[1]  # type: ignore[method-assign]
    nn.Module.register_full_backward_pre_hook = kept[2]  # type: ignore[method-assign]
    torch.autograd.function.BackwardCFunction.apply = kept[3]  # type: ignore[method-assign]


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
        gradient.mul_(0.5)
        return gradient


@pytest.mark.parametrize("with_hook", [False, True])
@pytest.mark.usefixtures("_own")
def test_a_gradient_that_is_written_is_nobody_elses(with_hook: bool) -> None:
    w = torch.ones(3, requires_grad=True)
    a = w * 1
    b = w * 3
    if with_hook:
        b.register_hook(lambda gradient: None if [gradient.mul_(0.5)] else gradient)
        out = a + b
    else:
        out = a + Halved.apply(b)
    out.sum().backward()
    assert torch.equal(w.grad, torch.full((3,), 2.5))  # type: ignore[arg-type]


def ended(passes: list[dict[str, Any]], output: str = "o", doubt: str | None = None) -> Ran:
    return Ran(0, output, "", {}, passes, [], False, 0.0, None, doubt)


def test_a_doubt_is_never_verified_and_an_update_at_the_end_is_told_by_the_output() -> None:
    note = {"outputs": ["l"], "leaves": ["w"], "gradients": ["g"], "raised": False}
    broken = Ran(1, "", "", {"error": "E"}, [note], [], False, 0.0)
    good = ended([note])
    assert proof.judge(broken, good, [ended([note])], 3).level == "verified"
    assert proof.judge(broken, good, [ended([note], output="other")], 3).level == "changes-meaning"
    other = ended([{**note, "gradients": ["x"]}])
    assert proof.judge(broken, good, [other], 3).level == "changes-meaning"
    found = proof.judge(broken, good, [ended([note], doubt="why")], 3)
    assert (found.level, found.why) == ("unproved", "why")


@pytest.mark.parametrize(
    ("text", "level", "added"),
    [
        (
            """
            import torch
            h = torch.randn(3, 4, requires_grad=True) * 2
            for row in h.unbind():
                row.mul_(3)
            h.pow(2).sum().backward()
            """,
            "verified",
            "h.select(0, n)",
        ),
        (
            """
            import torch
            x = torch.ones(5, requires_grad=True)
            x *= 2
            (x ** 2).sum().backward()
            """,
            "unproved",
            "torch.no_grad()",
        ),
        (
            """
            import torch
            w = torch.ones(5, requires_grad=True)
            w.sum().backward()
            w[0] = 3
            print(w)
            """,
            "verified",
            "torch.no_grad()",
        ),
    ],
)
def test_in_a_process_of_its_own(tmp_path: Path, text: str, level: str, added: str) -> None:
    best = best_of(tmp_path, text)
    assert best["level"] == level, best
    assert added in best["diff"]


BLOCK = """
import torch
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
w = torch.randn(4, requires_grad=True)
def block(x):
    h = x * 2
{body}
for _ in range(2):
    w.grad = None
    loss = checkpoint(block, w, use_reentrant=False{more}).sum()
    loss.backward()
print(w.grad.sum() != 0)
"""


@pytest.mark.parametrize(
    ("body", "more", "added"),
    [
        ("    y = h * h\n    h += 1\n    return y * h", "", "+    h = h + 1"),
        ("    y = h.exp() * h\n    h[0] = 0\n    return y * h", "", "+    h = h.clone()"),
        (
            "    return torch.dropout(h * h, 0.5, True)",
            ", preserve_rng_state=False",
            ", preserve_rng_state=True",
        ),
    ],
)
def test_what_a_checkpoint_computes_again_is_held_against_the_first_time(
    tmp_path: Path, body: str, more: str, added: str
) -> None:
    best = best_of(tmp_path, BLOCK.format(body=body, more=more))
    assert best["level"] == "verified", best
    assert added in best["diff"]


def put_back(monkeypatch: Any) -> None:
    """At the end of the test, what no_checkpoints() replaces."""
    import torch.utils.checkpoint as module

    inner = [(module, name) for name in reference._WITHOUT_REENTRANT if hasattr(module, name)]
    for owner, name in ((module, "checkpoint"), *inner, (module.CheckpointFunction, "forward")):
        monkeypatch.setattr(owner, name, owner.__dict__[name])


def test_without_checkpoints_every_keyword_of_torchs_is_taken(monkeypatch: Any) -> None:
    """Those of this torch, whichever they are: the function gets what is left."""
    import torch.utils.checkpoint as module

    named = [
        name
        for name, one in inspect.signature(module.checkpoint).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    ]
    assert "use_reentrant" in named
    put_back(monkeypatch)
    reference.no_checkpoints()
    found = module.checkpoint(lambda *a, **k: (a, k), 1, own=2, **dict.fromkeys(named))
    assert found == ((1,), {"own": 2})


def test_without_checkpoints_a_decorated_function_is_itself(monkeypatch: Any) -> None:
    import torch.utils.checkpoint as module

    put_back(monkeypatch)
    recomputed = reference.no_checkpoints()
    x = leaf(3)
    decorate: Any = module.checkpoint  # in this way since torch 2.14
    decorate(use_reentrant=False)(lambda x: x * 2)(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    assert recomputed.doubt is None


def test_without_checkpoints_each_function_is_called_once(monkeypatch: Any) -> None:
    import torch.utils.checkpoint as module

    before = module.checkpoint
    put_back(monkeypatch)
    recomputed = reference.no_checkpoints()
    calls: list[Any] = []

    def block(x: Any, scale: float = 1.0) -> Any:
        calls.append(scale)
        return x * scale

    x = leaf(3)
    for reentrant in (True, False):
        module.checkpoint(block, x, scale=2.0, use_reentrant=reentrant).sum().backward()
    layers = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    found = module.checkpoint_sequential(layers, 2, x, use_reentrant=False)
    assert torch.equal(found, layers(x))
    assert calls == [2.0, 2.0]
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3,), 4.0))
    assert recomputed.doubt is None
    for reentrant in (True, False):
        before(block, x, use_reentrant=reentrant).sum().backward()
        assert recomputed.doubt == reference._BY_ITSELF
        recomputed.doubt = None


def best_of(folder: Path, text: str) -> Any:
    (folder / "train.py").write_text(textwrap.dedent(text))
    forks.fix(folder, "--json", "out.json", "train.py")
    return json.loads((folder / "out.json").read_text())["candidates"][0]
