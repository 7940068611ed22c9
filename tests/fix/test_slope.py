"""Central differences: what they confirm, and mutants of the prover that they must find out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradext.fix import child, proof, slope
from gradext.fix.trial import Ran
from gradext.rules.rewrite import strategies as ways
from gradext.rules.rewrite.strategies.case import Case, Sources
from gradext.source.edits import CannotEdit

SIZE = 1e-4
# Of the random programs; `nox -s fuzz` runs more of them.
EXAMPLES = 1_000 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 30


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kept)


def points(
    program: Callable[[], Any], engine: Callable[[Any], Any] | None = None, size: float = SIZE
) -> list[Any]:
    """What the Nudger says of a program that returns its loss, forth and back."""
    found = []
    for step in (size, -size):
        torch.manual_seed(0)
        nudger = slope.Nudger(step, (0, 0), lambda: 0)
        with nudger:
            loss = program()
            nudger.before([loss])
            (engine or torch.Tensor.backward)(loss)
            found.append(nudger.after(()))
    return found


def two_layers() -> Any:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    two_layers.net = net  # type: ignore[attr-defined]
    return net(torch.randn(5, 3)).pow(2).mean()


def test_a_gradient_agrees() -> None:
    agrees, apart = slope.agree(*points(two_layers), SIZE)
    assert agrees
    assert apart < 1e-6


def test_a_leaf_that_backward_does_not_reach_is_found() -> None:
    def cut() -> Any:
        w = torch.randn(3, requires_grad=True)
        v = torch.randn(3, requires_grad=True)
        return (w * v.exp().detach()).sum()

    assert not slope.agree(*points(cut), SIZE)[0]


@pytest.mark.parametrize(
    "mutant",
    [
        lambda p: setattr(p, "grad", None),  # one leaf is forgotten
        lambda p: p.grad.mul_(1.1),  # ten per cent off
        lambda p: p.grad.neg_(),
    ],
)
def test_a_wrong_gradient_is_found(mutant: Callable[[Any], Any]) -> None:
    def engine(loss: Any) -> None:
        loss.backward()
        with torch.no_grad():
            mutant(two_layers.net[0].weight)  # type: ignore[attr-defined]

    assert not slope.agree(*points(two_layers, engine), SIZE)[0]


def test_a_loss_that_nothing_changes_proves_nothing() -> None:
    assert slope.agree((1.0, 0.0), (1.0, 0.0), SIZE) == (False, 0.0)


def test_a_leaf_is_moved_where_it_is_used_and_not_where_it_is_made() -> None:
    nudger = slope.Nudger(SIZE, (0, 0), lambda: 0)
    with nudger:
        net = torch.nn.Linear(2, 2)
        net.weight.dim()
        torch.nn.init.ones_(net.weight)
        assert nudger.moved == []
        net(torch.ones(1, 2))
    assert len(nudger.moved) == 2
    assert not torch.equal(net.weight, torch.ones(2, 2))


def ran(loss: str, *slopes: Any) -> Ran:
    note = {
        "at": [], "outputs": [loss], "leaves": [], "gradients": [], "raised": False,
        **({"slope": slopes[0]} if slopes else {}),
    }  # fmt: skip
    return Ran(0, "", "", {"diagnoses": []}, [note], [], False, 0.0)


UNPROVED = proof.Verdict("unproved", "")


def test_the_verdict_by_differences() -> None:
    def verdict(tried: str, *values: Any) -> proof.Verdict:
        runs = [ran("x", value) for value in values]
        return proof.by_differences(UNPROVED, ran("l"), ran(tried), runs, SIZE)

    good = (1 + SIZE, 1.0), (1 - SIZE, 1.0)
    assert verdict("l", *good).level == "verified"
    other = verdict("other", *good)
    assert (other.level, other.why[-24:]) == ("unproved", "but the loss is another one"[-24:])
    assert verdict("l", (1 + SIZE, 0.9), (1 - SIZE, 0.9)).level == "unproved"
    assert "float64" in verdict("l", None, None).why


# --- random small programs ------------------------------------------------------------------------

OPS = [
    "h = torch.sigmoid(h)",
    "h = torch.exp(h * 0.3)",
    "h = h * h",
    "v = h[0]",
    "h = h * v.sum()",
    "v = h.t()",
    "h = torch.tanh(h) + v.sum()",
]
WRITES = ["h += 1", "h *= 0.5", "h.mul_(2)", "h[0] = 0.5", "v.mul_(3)", "h.t().add_(1)", "v -= 0.1"]


def execute(text: str, *, as_saved: bool = False) -> Ran:
    """The program as a trial would note it, in this process."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    same = torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t)
    raised = False
    if as_saved:
        same.__enter__()
    try:
        exec(text, names)
        names["loss"].backward()
    except RuntimeError:
        raised = True
    finally:
        if as_saved:
            same.__exit__()
    loss, w = names.get("loss"), names.get("w", torch.zeros(()))
    note = {
        "at": [], "outputs": [child._hash(loss)], "leaves": [child._hash(w)],
        "gradients": [child._hash(w.grad)], "returned": [], "raised": raised,
    }  # fmt: skip
    facts = {"diagnoses": [{"severity": "error", "code": "GX101", "message": ""}] * raised}
    return Ran(int(raised), "", "", facts, [note], [[w.grad]], False, 0.0)


PATH = "<string>"


def cases(text: str) -> Iterator[Case]:
    """The program's case for each write that may be the culprit, and each line that may save."""
    lines = text.splitlines()
    writes = [n for n, line in enumerate(lines, 1) if line in WRITES]

    def site(line: int) -> dict[str, object]:
        return {"file": PATH, "line": line, "function": "<module>"}

    for write in writes:
        sources = Sources({}, lambda path: True)
        sources.given[PATH] = text.encode()
        diagnosis = {
            "code": "GX101", "message": "`h` `v`", "culprits": [site(write)],
            "victims": [site(n) for n in range(max(3, write - 2), write)],
        }  # fmt: skip
        yield Case.of(diagnosis, [site(len(lines))], sources)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.sampled_from([*OPS, *WRITES]), min_size=3, max_size=7))
def test_what_is_verified_is_what_differences_give(body: list[str]) -> None:
    text = "import torch\nw = torch.randn(3, 3, requires_grad=True)\nh = w * 1.5\nv = h\n"
    text += "\n".join([*body, "loss = (h * h).sum() + v.sum()", ""])
    broken = execute(text)
    if not broken.passes[0]["raised"]:
        return
    reference = execute(text, as_saved=True)
    for case in cases(text):
        for candidate in ways.propose(case):
            try:
                patched = case.sources.patched(candidate)[PATH].decode()
                tried = execute(patched)
            except (CannotEdit, NameError, AttributeError):
                continue  # it fails, and a trial says so
            if proof.judge(broken, tried, [reference], 3).level != "verified":
                continue

            def program(patched: str = patched) -> Any:
                names: dict[str, Any] = {}
                exec(patched, names)
                return names["loss"]

            torch.manual_seed(0)
            if not program().isfinite():
                continue  # a tower of exp() that has no slope
            # Towers of exp() bend so much that the larger step is no derivative.
            answers = [slope.agree(*points(program, size=s), s) for s in (SIZE, SIZE / 100)]
            assert any(agrees for agrees, _ in answers), (patched, answers)
