"""Patches that drop what a list or a cache keeps, and those of writes in a row, on the text."""

from __future__ import annotations

import textwrap

from test_strategies import FREED, PATH, case_of, changed, patches

from gradext.rules.rewrite import strategies
from gradext.rules.rewrite.strategies.case import Case, Sources

ENDS = "this backward() freed the graph"


def test_a_list_that_grows_is_emptied_after_the_backward() -> None:
    text = """
    agent.logs.append(act(x))
    for episode in range(3):
        loss = torch.stack(agent.logs).sum()
        loss.backward()
    """
    message = FREED.format("`agent.logs[0]`, an entry of `agent.logs`")
    case = case_of(text, "GX302", {1: "leads back", 4: ENDS}, failed=4, message=message)
    assert changed(case, "empty `agent.logs`") == ["    agent.logs.clear()"]


def test_a_list_that_does_not_grow_is_not_emptied() -> None:
    text = """
    for x in data:
        states[0] = cell(x, states[0])
        states[0].sum().backward()
    """
    message = FREED.format("`states[0]`, an entry of `states`")
    case = case_of(text, "GX302", {2: "leads back", 3: ENDS}, failed=3, message=message)
    assert not [title for title in patches(case) if "empty" in title]


def _cached(decorator: str) -> Case:
    text = f"""
    import functools
    class Net:
        {decorator}
        def tables(self):
            return self.freq.cos()
    for x in data:
        net(x).backward()
    """
    site = {"file": PATH, "line": 5, "function": "Net.tables", "label": "leads back"}
    diagnosis = {"code": "GX302", "message": "", "culprits": [site]}
    sources = Sources({}, lambda path: True)
    sources.given[PATH] = textwrap.dedent(text).lstrip("\n").encode()
    return Case.of(diagnosis, [{"file": PATH, "line": 7, "function": "<module>"}], sources)


def test_a_cached_property_becomes_one_that_computes_again() -> None:
    case = _cached("@functools.cached_property")
    assert changed(case, "compute again") == ["    @property"]


def test_a_function_loses_its_cache() -> None:
    for decorator in ("@functools.lru_cache(maxsize=4)", "@functools.cache"):
        case = _cached(decorator)
        (text,) = (text for title, text in patches(case).items() if "compute again" in title)
        assert decorator not in text
        assert "    def tables(self):\n        return self.freq.cos()\n" in text
    assert not [title for title in patches(_cached("@property")) if "compute again" in title]


def test_a_graph_that_was_not_always_kept_is_kept() -> None:
    text = """
    for loss in losses:
        g = torch.autograd.grad(loss, w, retain_graph=loss is not losses[-1])
    total.backward()
    """
    case = case_of(text, "GX302", {2: ENDS}, failed=3)
    kept = "    g = torch.autograd.grad(loss, w, retain_graph=True)"
    assert changed(case, "keep the graph") == [kept]
    case = case_of(kept.strip() + "\ntotal.backward()\n", "GX302", {1: ENDS}, failed=2)
    assert not patches(case)


def test_an_object_is_not_made_anew_for_what_its_constructor_computed() -> None:
    text = """
    class Net:
        def __init__(self):
            self.adjacency = build(self.edges)
    net = Net()
    for x in data:
        net(x).backward()
    """
    caller = {"file": PATH, "line": 4, "function": "<module>"}
    site = {"file": PATH, "line": 3, "function": "Net.__init__", "callers": [caller]}
    diagnosis = {"code": "GX302", "message": "", "culprits": [site]}
    sources = Sources({}, lambda path: True)
    sources.given[PATH] = textwrap.dedent(text).lstrip("\n").encode()
    case = Case.of(diagnosis, [{"file": PATH, "line": 6, "function": "<module>"}], sources)
    assert not [title for title in patches(case) if "anew" in title]
    plain = case_of("net = make()\nfor x in data:\n    net(x).backward()\n", "GX302",
                    {1: "leads back"}, failed=3)  # fmt: skip
    assert [title for title in patches(plain) if "anew" in title]


def test_writes_in_a_row_are_made_in_one_block() -> None:
    text = """
    import torch
    def edit(dense, old, new):
        dense.weight[:, 1] -= old
        dense.weight[:, 1] += new
        dense.bias[0] = 1.0
    """
    case = case_of(text, "GX103", {3: "writes"}, function="edit")
    assert changed(case, "from <string>:3 on") == [
        "    with torch.no_grad():",
        "        dense.weight[:, 1] -= old",
        "        dense.weight[:, 1] += new",
    ]


def _in_a_file(text: str, line: int) -> str:
    site = {"file": "/nowhere/edits.py", "line": line, "function": "clip"}
    sources = Sources({}, lambda path: True)
    sources.given["/nowhere/edits.py"] = text.encode()
    case = Case.of({"code": "GX103", "message": "", "culprits": [site]}, [], sources)
    (found,) = strategies.propose(case)
    return sources.patched(found)["/nowhere/edits.py"].decode()


def test_a_file_that_does_not_know_torch_imports_it() -> None:
    head = '"""Edits weights."""\nfrom __future__ import annotations\n'
    body = "@decorated\ndef clip(weight):\n    weight[0] = 1.0\n"
    mended = body.replace("weight[0] =", "with torch.no_grad(): weight[0] =")
    assert _in_a_file(head + body, 5) == f"{head}import torch\n{mended}"
    for known in ("import torch\n", "import torch as t\nimport numpy, torch\n", "x = torch.e\n"):
        line = 3 + known.count("\n")
        assert _in_a_file(known + body, line) == known + mended


def test_what_is_read_by_two_names_is_copied_as_a_whole() -> None:
    text = """
    for frame in frames:
        below = frame
        for k in range(2):
            hidden[k] = cell(below, hidden[k], hidden[k - 1][0])
            below = hidden[k]
    hidden.sum().backward()
    """
    case = case_of(text, "GX101", {4: "writes"}, {4: "saves"}, failed=6)
    assert changed(case, "and what it reads of it") == [
        "        hidden = hidden.clone()",
        "        hidden[k] = cell(below, hidden[k].clone(), hidden[k - 1][0].clone())",
    ]
    alone = text.replace("below = hidden[k]", "seen = hidden[k]")
    case = case_of(alone, "GX101", {4: "writes"}, {4: "saves"}, failed=6)
    assert not [title for title in patches(case) if "and what it reads" in title]


def test_a_condition_that_switches_grad_mode_off_is_true() -> None:
    text = """
    with torch.set_grad_enabled(phase == "train"):
        loss = net(x).sum()
    loss.backward()
    """
    case = case_of(text, "GX301", {2: "runs under it", 1: "switches grad mode off"}, failed=3)
    assert changed(case, "leave grad mode on") == ["with torch.set_grad_enabled(True):"]
    on = text.replace('phase == "train"', "True")
    case = case_of(on, "GX301", {2: "runs under it", 1: "switches grad mode off"}, failed=3)
    assert not [title for title in patches(case) if "leave grad mode on" in title]


def test_parameters_are_taken_where_a_state_was() -> None:
    over = "for n, p in net.state_dict().items():"
    for line, body in (("params = dict(net.state_dict())", ""), (over, "    f(p)\n")):
        case = case_of(f"{line}\n{body}loss.backward()\n", "GX301", {1: "detached"}, failed=2)
        kept = line.replace("state_dict()", "state_dict(keep_vars=True)")
        assert changed(case, "the parameters themselves") == [kept]
    held = "params = net.state_dict(keep_vars=True)\nloss.backward()\n"
    assert not patches(case_of(held, "GX301", {1: "detached"}, failed=2))


def test_a_gradient_that_asked_for_no_graph_gets_one() -> None:
    text = "g = torch.autograd.grad(y, x, create_graph=self.second)\nloss.backward()\n"
    case = case_of(text, "GX304", {1: "gives gradients that are constants"}, failed=2)
    kept = "g = torch.autograd.grad(y, x, create_graph=True)"
    assert changed(case, "keep the graph of the gradient") == [kept]
