"""Edits: what is not touched stays byte for byte, and no statement is broken."""

from __future__ import annotations

import textwrap

import pytest

from gradext.rules.rewrite import strategies
from gradext.rules.rewrite.strategies.case import Candidate, Case, Sources
from gradext.source.edits import CannotEdit, Edit, Source

PATH = "<string>"


def case_of(
    text: str | bytes,
    code: str,
    culprit: int,
    *,
    victims: tuple[int, ...] = (),
    failed: int | None = None,
    message: str = "",
    label: str = "",
    in_library: bool = False,
) -> Case:
    data = text if isinstance(text, bytes) else textwrap.dedent(text).lstrip("\n").encode()

    def site(line: int) -> dict[str, object]:
        facts: dict[str, object] = {"file": PATH, "line": line, "function": "<module>"}
        return {**facts, "label": label, **({"stack": [{}]} if in_library else {})}

    diagnosis = {
        "code": code,
        "message": message,
        "culprits": [site(culprit)],
        "victims": [site(line) for line in victims],
    }
    at = [{"file": PATH, "line": failed, "function": "<module>"}] if failed else []
    sources = Sources({}, lambda path: True)
    found = Case.of(diagnosis, at, sources)
    sources.given[PATH] = data
    return found


def patched(case: Case, title: str) -> bytes:
    """The text after the one candidate whose title has these words."""
    found = [c for c in strategies.propose(case) if title in c.title]
    assert len(found) == 1, [c.title for c in strategies.propose(case)]
    return case.sources.patched(found[0])[PATH]


WRITES = [
    ("x += y", "x = x + y"),
    ("x -= a if b else c", "x = x - (a if b else c)"),
    ("self.h *= 2", "self.h = self.h * 2"),
    ("x **= y + 1", "x = x ** (y + 1)"),
    ("x.mul_(y)", "x = x.mul(y)"),
    ("x.mul_(a).add_(b)", "x = x.mul(a).add(b)"),
    ("torch.relu_(x)", "x = torch.relu(x)"),
    ("F.relu(x, inplace=True)", "x = F.relu(x)"),
    ("F.dropout(x, 0.5, inplace=True, training=t)", "x = F.dropout(x, 0.5, training=t)"),
    ("torch.add(a, b, out=x)", "x = torch.add(a, b)"),
    ("x.zero_()", "x = torch.zeros_like(x)"),
    ("x.copy_(a + b)", "x = (a + b).clone()"),
    ("y = x.clamp_(0, 1)", "y = x.clamp(0, 1)"),
    ("return x.mul_(2)  # 'é'", "return x.mul(2)  # 'é'"),
    ("f(x.exp_(), n=1)", "f(x.exp(), n=1)"),
]


@pytest.mark.parametrize(("line", "expected"), WRITES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("indent", ["    ", "\t"])
def test_out_of_place(line: str, expected: str, newline: str, indent: str) -> None:
    head = "def f(self, x, y, a, b, c, t):"
    last = f"{indent}return x, self"
    text = newline.join((head, f"{indent}z = 'ü'  # kept", f"{indent}{{}}", last, ""))
    case = case_of(text.format(line).encode(), "GX101", 3)
    if line.startswith("f("):
        assert not [c for c in strategies.propose(case) if "new tensor" in c.title]
        return  # nobody takes the result of the call within
    assert patched(case, "make a new tensor") == text.format(expected).encode()


def test_several_lines_stay_as_they_are() -> None:
    text = """
    def f(x, y):
        x += torch.where(
            y > 0,  # kept
            y,
              -y,
        )
        return x
    """
    case = case_of(text, "GX101", 2)
    data = patched(case, "make a new tensor")
    assert data == case.sources.given[PATH].replace(b"x += torch", b"x = x + torch")


@pytest.mark.parametrize(
    ("before", "line", "after"),
    [
        ("x[0] = 1\n", 1, "x = x.clone()\nx[0] = 1\n"),
        ("if c: x[0] = 1\n", 1, "if c: x = x.clone(); x[0] = 1\n"),
        ("y = 2; x[0] = y\n", 1, None),  # the first statement of the line writes nothing
        (
            "for i in r:\n\tself.x[i] += 1\n",
            2,
            "for i in r:\n\tself.x = self.x.clone()\n\tself.x[i] += 1\n",
        ),
        (
            "def f(x):\r\n  x[\r\n   0] = 1\r\n  g(x)\r\n",
            2,
            "def f(x):\r\n  x = x.clone()\r\n  x[\r\n   0] = 1\r\n  g(x)\r\n",
        ),
    ],
)
def test_a_copy_before_the_write(before: str, line: int, after: str | None) -> None:
    case = case_of(before.encode(), "GX101", line)
    found = [c for c in strategies.propose(case) if "before the write" in c.title]
    if after is None:
        assert not found
        return
    assert case.sources.patched(found[0])[PATH].decode() == after


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def f(h, n):\n    h[:, n:] = 0\n", 2),  # a parameter: the caller's tensor is meant
        ("def f(h):\n    g = h * 2\n    h += 1\n    return g\n", 3),
        ("for w in ws:\n    w *= 0.5\n", 2),  # the list keeps the old ones
        ("def f(ws):\n    for w in ws:\n        w.mul_(0.5)\n    return ws\n", 3),
    ],
)
def test_a_new_tensor_that_reaches_nobody_is_not_proposed(text: str, line: int) -> None:
    titles = [c.title for c in strategies.propose(case_of(text, "GX101", line))]
    assert not [t for t in titles if "new tensor" in t or "before the write" in t], titles


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def f(h):\n    h += 1\n    return h\n", 2),
        ("def f(self):\n    self.h += 1\n", 2),  # read through the object
        (
            "def f(xs):\n    h = 0\n    for x in xs:\n        g(h)\n        h += x\n",
            5,
        ),  # next round
        ("h += 1\n", 1),  # any function may read it
    ],
)
def test_a_new_tensor_that_is_read_is_proposed(text: str, line: int) -> None:
    assert patched(case_of(text, "GX101", line), "make a new tensor")


def test_a_byte_order_mark_and_a_coding_line_stay() -> None:
    for data, encoding in (
        ("# é\nx += y\n".encode("utf-8-sig"), "utf-8-sig"),
        ("# coding: latin-1\n# é\nx += y\n".encode("latin-1"), "latin-1"),
    ):
        line = data.count(b"\n")
        done = patched(case_of(data, "GX101", line), "make a new tensor")
        assert done == data.replace(b"x += y", b"x = x + y")
        assert done.decode(encoding)


def test_a_lambda_cannot_be_given_a_statement() -> None:
    case = case_of("f = lambda t: t.mul_(2)\n", "GX101", 1)
    assert patched(case, "make a new tensor") == b"f = lambda t: t.mul(2)\n"


def test_a_module_is_constructed_without_inplace() -> None:
    lines = ("a = nn.ReLU(True)", "b = nn.Dropout(0.5, inplace=True)", "c = nn.ELU(1.0, True)")
    case = case_of("\n".join((*lines, "d = f(True)", "b(x)", "")), "GX101", 5, in_library=True)
    expected = b"a = nn.ReLU()\nb = nn.Dropout(0.5)\nc = nn.ELU(1.0, True)\nd = f(True)\nb(x)\n"
    assert patched(case, "without inplace=True") == expected


def test_a_step_moves_below_the_backward() -> None:
    text = """
    for x in data:
        a.backward(retain_graph=True)
        if n:
            opt.step()  # with its comment
        b.zero_grad()
        with ctx():
            b.backward()
        done()
    """
    case = case_of(text, "GX101", 4, failed=7)
    lines = case.sources.given[PATH].decode().splitlines(keepends=True)
    expected = "".join([*lines[:2], *lines[4:7], *lines[2:4], *lines[7:]])
    assert patched(case, "move").decode() == expected


def test_a_step_at_the_end_of_a_file_without_a_line_end() -> None:
    case = case_of(b"opt.step()\nb.backward()", "GX101", 1, failed=2)
    assert patched(case, "move").decode() == "b.backward()\nopt.step()\n"


def test_a_leaf_is_written_under_no_grad() -> None:
    case = case_of("for w in ws:\n    w -= (\n        0.1 * w.grad)\n", "GX102", 2)
    expected = b"for w in ws:\n    with torch.no_grad(): w -= (\n        0.1 * w.grad)\n"
    assert patched(case, "no_grad") == expected


def test_an_entry_of_a_dict_is_replaced() -> None:
    case = case_of("out = {}\nout[k] /= a + b\n", "GX101", 2)
    assert patched(case, "make a new tensor") == b"out = {}\nout[k] = out[k] / (a + b)\n"


def test_state_is_cut_off_where_it_is_read() -> None:
    text = """
    class Cell:
        def forward(self, x):
            if self.h is None:
                self.h = self.c = zeros(x)
            i = self.gate(x, self.h)
            self.c = i * self.c
            self.h = tanh(self.c)
    """
    lines = patched(case_of(text, "GX302", 5), "cut the history of self.h and self.c").decode()
    assert "        self.h, self.c = self.h.detach(), self.c.detach()\n        i = " in lines


def test_a_hook_returns_what_it_wrote() -> None:
    text = "def clip(grad, bound=1):\n    norm = grad.norm()\n    grad *= bound / norm\n"
    expected = text.replace("grad *= bound / norm", "grad = grad * (bound / norm)\n    return grad")
    assert patched(case_of(text, "GX403", 3), "hand on a new gradient").decode() == expected
    text = "def backward(ctx, g):\n    g.mul_(ctx.scale)\n    return g, None\n"
    expected = text.replace("g.mul_(ctx.scale)", "g = g.mul(ctx.scale)")
    assert patched(case_of(text, "GX403", 2), "hand on a new gradient").decode() == expected


def test_a_view_is_made_with_grad_mode_on() -> None:
    text = """
    def slots(canvas):
        with torch.no_grad(), timed():
            for row in canvas:
                found.append(row[0])
    """
    data = patched(case_of(text, "GX104", 1, victims=(4,)), "leave grad mode on").decode()
    assert "    with torch.enable_grad(), timed():\n" in data


def test_what_cuts_is_taken_out() -> None:
    case = case_of("loss = torch.tensor(\n    f(x).item())  # kept\n", "GX301", 1)
    assert patched(case, "what cuts") == b"loss = (f(x))  # kept\n"
    case = case_of("loss = torch.tensor([l.item() for l in losses]).mean()\n", "GX301", 1)
    assert patched(case, "what cuts") == b"loss = torch.stack([l for l in losses]).mean()\n"


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        (
            "t = torch.tensor([0.0, end * end])\n",
            "t = torch.stack([torch.tensor(0.0), end * end])\n",
        ),
        ("t = torch.tensor([-1, a, 2.5])\n", None),
        ("t = torch.tensor([a.item(), b])\n", "t = torch.stack([a, b])\n"),
    ],
)
def test_numbers_are_stacked_as_tensors(line: str, mended: str | None) -> None:
    if mended is None:
        mended = "t = torch.stack([torch.tensor(-1), a, torch.tensor(2.5)])\n"
    assert patched(case_of(line, "GX304", 1), "what cuts").decode() == mended


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        ("s = torch.normal(mu, sigma)\n", "s = mu + sigma * torch.randn_like(mu)\n"),
        (
            "return_ = torch.normal(mean=m(x), std=0.1)\n",
            "return_ = m(x) + 0.1 * torch.randn_like(m(x))\n",
        ),
        (
            "s = torch.normal(0.0, std=sd.exp())\n",
            "s = 0.0 + sd.exp() * torch.randn_like(sd.exp())\n",
        ),
    ],
)
def test_a_normal_draw_is_reparametrised(line: str, mended: str) -> None:
    assert patched(case_of(line, "GX304", 1), "draw with a gradient").decode() == mended


def test_a_normal_draw_within_a_product() -> None:
    case = case_of("s = 2 * torch.normal(a - b, c)\n", "GX304", 1)
    mended = b"s = 2 * ((a - b) + c * torch.randn_like(a - b))\n"
    assert patched(case, "draw with a gradient") == mended


@pytest.mark.parametrize(
    "line", ["s = torch.normal(0.0, 1.0, (3,))\n", "s = torch.normal(0.0, 1.0, size=(2, 3))\n"]
)
def test_a_draw_of_numbers_is_left_as_it_is(line: str) -> None:
    found = strategies.propose(case_of(line, "GX304", 1))
    assert not any("draw with a gradient" in c.title for c in found)


def test_a_graph_is_kept_last() -> None:
    case = case_of(
        "loss.backward(\n)\nloss.backward()\n", "GX302", 1, label="this backward() freed the graph"
    )
    titles = [c.title for c in strategies.propose(case)]
    assert "keep the graph" in titles[-1]
    assert (
        patched(case, "keep the graph") == b"loss.backward(\nretain_graph=True)\nloss.backward()\n"
    )


def test_edits_that_overlap_and_nonsense_are_refused() -> None:
    source = Source(PATH, b"x = 1\n")
    with pytest.raises(CannotEdit, match="overlap"):
        source.applied([Edit(0, 3, "y"), Edit(2, 5, "z")])
    with pytest.raises(CannotEdit, match="no Python"):
        source.applied([Edit(0, 5, "x =")])
    with pytest.raises(CannotEdit, match="cannot be parsed"):
        Source(PATH, b"def (:\n")
    with pytest.raises(CannotEdit, match="cannot be parsed"):
        Source(PATH, b"# coding: nonsense\n")


def test_a_library_is_never_changed() -> None:
    case = case_of("x += 1\n", "GX101", 1)
    path = case.culprits[0].file
    closed = Sources({}, lambda _: False)
    assert closed.get(path) is None
    with pytest.raises(CannotEdit, match="cannot be changed"):
        closed.patched(Candidate("", ((path, Edit(0, 0, "")),)))
