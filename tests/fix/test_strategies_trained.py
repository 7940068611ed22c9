"""Patches that make an optimizer have a parameter (GX306), on the text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from test_strategies import case_of, changed, patches

from gradext.rules.rewrite.strategies.case import Case, Sources

LOOK = ", into which parameters() does not look"


@pytest.mark.parametrize(
    ("line", "label", "title", "expected"),
    [
        (
            "self.layers = [nn.Linear(2, 2) for _ in range(3)]",
            "a plain list of modules" + LOOK,
            "in an nn.ModuleList",
            "self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])",
        ),
        (
            "self.heads = {}",
            "a plain dict of modules" + LOOK,
            "in an nn.ModuleDict",
            "self.heads = nn.ModuleDict({})",
        ),
        (
            "self.ws = (nn.Parameter(a), nn.Parameter(b))",
            "a plain tuple of parameters" + LOOK,
            "in an nn.ParameterList",
            "self.ws = nn.ParameterList((nn.Parameter(a), nn.Parameter(b)))",
        ),
        (
            "self.w = nn.Parameter(torch.ones(3)).to(device)",
            "computed from a parameter, and none itself",
            "a parameter of the result",
            "self.w = nn.Parameter(torch.ones(3).to(device))",
        ),
        (
            "self.w = torch.nn.Parameter(a, requires_grad=True).unsqueeze(0) + 1",
            "computed from a parameter, and none itself",
            "a parameter of the result",
            "self.w = torch.nn.Parameter(a.unsqueeze(0) + 1)",
        ),
        (
            "self.w = torch.zeros(3, 4, requires_grad=True)",
            "a tensor, and no Parameter",
            "a parameter of the result",
            "self.w = nn.Parameter(torch.zeros(3, 4))",
        ),
        (
            "self.w = (0.1 * torch.randn(3)).requires_grad_()",
            "a tensor, and no Parameter",
            "a parameter of the result",
            "self.w = nn.Parameter(0.1 * torch.randn(3))",
        ),
    ],
)
def test_what_is_registered(line: str, label: str, title: str, expected: str) -> None:
    text = f"class Net(nn.Module):\n    def __init__(self):\n        {line}\n"
    case = case_of(text, "GX306", {3: label}, function="Net.__init__")
    assert changed(case, title) == [f"        {expected}"]


def test_what_was_made_once_of_a_parameter_becomes_one() -> None:
    text = "class Net(nn.Module):\n    def f(self):\n        self.w = nn.Parameter(a) * 0.02\n"
    case = case_of(text, "GX302", {3: "`net.w` leads back into the graph that was freed"})
    made = "self.w = nn.Parameter(a * 0.02)"
    assert changed(case, "a parameter of the result") == [f"        {made}"]
    case = case_of(text.replace("nn.Parameter(a)", "a"), "GX302", {3: "leads back"})
    assert not [title for title in patches(case) if "a parameter of the result" in title]


def test_lists_within_a_list() -> None:
    text = "class Net(nn.Module):\n    def __init__(self):\n        self.rows = [[A()], [A()]]\n"
    case = case_of(text, "GX306", {3: "a plain list of modules" + LOOK}, function="Net.__init__")
    expected = "self.rows = nn.ModuleList(nn.ModuleList(row) for row in [[A()], [A()]])"
    assert changed(case, "in lists of an nn.ModuleList") == [f"        {expected}"]


def _moved(tmp_path: Path, text: str, made: int, given: int) -> tuple[Case, Path]:
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(text).lstrip("\n"))

    def site(line: int, label: str) -> dict[str, object]:
        return {"file": str(file), "line": line, "function": "<module>", "label": label}

    diagnosis = {
        "code": "GX306",
        "message": "",
        "culprits": [site(given, "puts new parameters in their place")],
        "victims": [site(made, "has the parameters that there are at this line")],
    }
    return Case.of(diagnosis, [], Sources({}, lambda path: True)), file


def _patched(case: Case, file: Path) -> list[str]:
    from gradext.rules.rewrite import strategies

    return [case.sources.patched(found)[str(file)].decode() for found in strategies.propose(case)]


def test_the_optimizer_goes_below_with_what_is_made_of_it(tmp_path: Path) -> None:
    text = """
    opt = torch.optim.SGD(
        net.parameters(), lr=0.1
    )
    plan = torch.optim.lr_scheduler.StepLR(opt, 3)
    for k in range(2):
        net[k] = nn.Linear(2, 2)
    train(net, opt, plan)
    """
    case, file = _moved(tmp_path, text, made=1, given=6)
    (found,) = _patched(case, file)
    assert found.splitlines() == [
        "for k in range(2):",
        "    net[k] = nn.Linear(2, 2)",
        "opt = torch.optim.SGD(",
        "    net.parameters(), lr=0.1",
        ")",
        "plan = torch.optim.lr_scheduler.StepLR(opt, 3)",
        "train(net, opt, plan)",
    ]


@pytest.mark.parametrize(
    "text",
    [
        # It is used before.
        "opt = SGD(net)\nfor x in data:\n    opt.step()\nnet.fc = Linear()\ntrain(opt)\n",
        # The line itself uses it.
        "opt = SGD(net)\n\n\nnet.fc = make(opt)\n",
        # It is made within another block.
        "if tuned:\n    opt = SGD(net)\n\nnet.fc = Linear()\n",
    ],
)
def test_the_optimizer_stays_where_it_is_needed(tmp_path: Path, text: str) -> None:
    case, file = _moved(tmp_path, text, made=2 if text.startswith("if") else 1, given=4)
    assert _patched(case, file) == []


def test_nothing_for_a_line_that_makes_no_such_thing() -> None:
    text = "class Net(nn.Module):\n    def f(self):\n        self.layers.append(nn.Linear(2, 2))\n"
    case = case_of(text, "GX306", {3: "makes new parameters in each forward pass"})
    assert patches(case) == {}
