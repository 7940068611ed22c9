"""What a report calls tensors, and where it says that leaves and views were made."""

from __future__ import annotations

import dataclasses
import re

import pytest
from cases import Case, Cases, check_broken

from gradext.diagnosis.model import Diagnosis, Frame, Site

case = Cases()

case(
    "GX102", "parameter_of_a_library_module", """
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(4, 3)  #V
        def pad(self):
            self.emb.weight[0].zero_() if False else self.emb.weight.mul_(2)  #C
    Tagger().pad()
    """,
    text=("emb.weight`",),
)  # fmt: skip
case(
    "GX102", "parameter_that_a_loop_goes_over", """
    def shrink(net):
        for p in net.parameters():
            p.mul_(0.9)  #C
    net = nn.Sequential(
        nn.Linear(2, 3),  #V
        nn.Tanh(),
    )
    shrink(net)
    """,
    text=("`net[0].weight`",),
)  # fmt: skip
case(
    "GX102", "leaf_handed_to_a_function", """
    def step(x, rate):
        x -= rate  #C
    def train():
        point = torch.zeros(3, requires_grad=True)  #V
        step(point, 0.1)
    train()
    """,
    text=("`",),
)  # fmt: skip
case(
    "GX102", "leaf_made_by_requires_grad", """
    def start(n):
        return torch.zeros(n).requires_grad_()  #V
    x = start(3)
    x += 1  #C
    """,
    text=("`x`",),
)  # fmt: skip
case(
    "GX102", "registered_parameter", """
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter("scale", nn.Parameter(torch.ones(2)))  #V
        def forward(self, x):
            self.scale.clamp_(0, 1)  #C
            return x * self.scale
    Gate()(torch.ones(2))
    """,
    text=("scale`",),
)  # fmt: skip
case(
    "GX103", "view_and_leaf_have_names", """
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(2, 4)  #V
        def prior(self):
            flat = self.out.bias.view(2, 2)  #V
            flat[:, 0] = -2.0  #C
    Head().prior()
    """,
    text=("out.bias`", "`flat`"),
)  # fmt: skip
case(
    "GX103", "row_of_a_table", """
    table = torch.zeros(4, 2, requires_grad=True)
    row = table[1]  #V
    row.fill_(1.0)  #C
    """,
    text=("`table`", "`row`"),
)  # fmt: skip
case(
    "GX105", "part_of_a_split", """
    def gates(h):
        i, f = h.split(2)  #V
        i.sigmoid_()  #C
        return i * f
    gates(torch.ones(4, requires_grad=True) * 2)
    """,
    text=("`i`", "`h`"),
)  # fmt: skip
case(
    "GX105", "rows_of_a_loop", """
    def scale(images):
        for image in images:  #V
            image.mul_(2)  #C
    scale(torch.ones(2, 3, requires_grad=True) * 1)
    """,
    text=("`image`", "`images`"),
)  # fmt: skip
case(
    "GX101", "result_of_a_function_that_has_returned", """
    def weights(x):
        a = torch.softmax(x, -1)  #V
        total = (a * 2).sum()
        a[0] = 0.0  #C
        return total
    weights(torch.ones(2, 3, requires_grad=True)).backward()
    """,
    text=("`a` (float32 [2, 3])",),
)  # fmt: skip
case(
    "GX101", "result_written_under_another_name", """
    def zero(t):
        t[0] = 0.0  #C
    def gate(x):
        s = torch.sigmoid(x)  #V
        zero(s)
        return s.sum()
    gate(torch.ones(3, requires_grad=True)).backward()
    """,
    text=("`s` (float32 [3])",),
)  # fmt: skip
case(
    "GX101", "result_of_a_module_with_one_op", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()
        def forward(self, x):
            y = self.act(x)  #V
            y += 1  #C
            return y * 2
    Net()(torch.ones(3, requires_grad=True)).sum().backward()
    """,
    text=("`y` (float32 [3])",),
)  # fmt: skip


@case.broken()
def test_names_and_lines(case: Case) -> None:
    found = check_broken(case).diagnoses[0]
    lines = {site.frame.line for site in found.victims}
    # Every line that is marked, and not one of them.
    assert case.lines("V") <= lines, str(found)
    assert not re.search(r"\b[Aa]n? \w+ \[[^]]*\] tensor", str(found)), str(found)


def test_a_result_within_a_container_has_not_the_name_of_its_result() -> None:
    """`y = net(x)` names what the last module of `net` makes, and nothing in between."""
    cases = Cases()
    cases(
        "GX101", "dropout_within_a_sequential", """
        net = nn.Sequential(nn.ReLU(), nn.Dropout(0.5, inplace=True), nn.Linear(3, 3))
        def run(x):
            y = net(x)  #CV
            return y.sum()
        run(torch.ones(2, 3, requires_grad=True) * 2).backward()
        """,
    )  # fmt: skip
    found = check_broken(cases[0]).diagnoses[0]
    assert "`y`" not in str(found), str(found)


# --- files, labels and counts ---------------------------------------------------------------------


def test_the_only_file_is_named_once() -> None:
    cases = Cases()
    cases(
        "GX101", "only_file", """
        def scale(h):
            h *= 2  #C
            return h
        def run(x):
            h = x.exp()  #V
            return scale(h).sum()
        run(torch.ones(3, requires_grad=True)).backward()
        """,
    )  # fmt: skip
    ran = check_broken(cases[0])
    found = ran.diagnoses[0]

    def own(sites: tuple[Site, ...]) -> tuple[Site, ...]:
        # Without the frames of this test, which called the program.
        return tuple(
            dataclasses.replace(s, callers=tuple(f for f in s.callers if f.file == ran.file))
            for s in sites
        )

    found = dataclasses.replace(found, culprits=own(found.culprits), victims=own(found.victims))
    text = str(found)
    assert text.count("only_file.py") == 1, text
    assert "= line 2 called from line 6 in run" in text, text
    assert "help: at line 2 make a new tensor: `h = h * 2`" in text, text


def _site(file: str, line: int, label: str, column: int = 4, end: int = 10) -> Site:
    return Site(Frame(file, line, "f", "h += y", column, line, end), label=label)


def test_with_two_files_each_line_has_its_file() -> None:
    found = Diagnosis(
        "GX101",
        message="h, saved at b.py:3, was written at a.py:7.",
        culprits=(_site("/gone/a.py", 7, "writes h"),),
        victims=(_site("/gone/b.py", 3, "saves h"),),
        fix="clone it at b.py:3",
    )
    text = str(found)
    assert "saved at b.py:3, was written at a.py:7" in text
    assert "help: clone it at b.py:3" in text


def test_code_in_backquotes_and_other_files_stay_as_they_are() -> None:
    found = Diagnosis(
        "GX101",
        message="h of a.py:7 is not that of data/a.py:7 or aa.py:7, `open('a.py:7')`.",
        culprits=(_site("/gone/a.py", 7, "writes h"),),
    )
    assert "h of line 7 is not that of data/a.py:7 or aa.py:7, `open('a.py:7')`" in " ".join(
        str(found).split()
    )


def test_one_expression_has_one_row_of_carets() -> None:
    found = Diagnosis(
        "GX101",
        message="m",
        culprits=(_site("/gone/a.py", 7, "writes h"),),
        victims=(_site("/gone/a.py", 7, "saves h"),),
    )
    text = str(found)
    assert text.count("^") + text.count("-----") <= 8, text
    assert "writes h; saves h" in text, text


@pytest.mark.parametrize("rows", [2, 5])
def test_what_one_write_spoils_is_counted(rows: int) -> None:
    cases = Cases()
    cases(
        "GX101", "several_saves", f"""
        w = torch.ones(3)
        x = torch.ones(3, requires_grad=True)
        total = sum((x * w).sum() for _ in range({rows}))  #V
        w += 1  #C
        total.backward()
        """,
    )  # fmt: skip
    (found,) = check_broken(cases[0]).diagnoses
    assert f"{rows} saved tensors are stale by this write" in found.notes, found.notes


def test_saves_of_lines_that_are_shown_need_no_count() -> None:
    cases = Cases()
    cases(
        "GX101", "two_lines_that_save", """
        w = torch.ones(3)
        x = torch.ones(3, requires_grad=True)
        a = x * w  #V
        b = x / w  #V
        w += 1  #C
        (a + b).sum().backward()
        """,
    )  # fmt: skip
    (found,) = check_broken(cases[0]).diagnoses
    assert len(found.victims) == 2
    assert not [note for note in found.notes if "saved tensor" in note], found.notes


def test_a_label_stands_on_the_header_of_a_loop() -> None:
    cases = Cases()
    cases(
        "GX105", "loop_with_a_body", """
        def scale(images):
            for image in images:  #V
                image.mul_(2)  #C
                image.sum()
        scale(torch.ones(2, 3, requires_grad=True) * 1)
        """,
    )  # fmt: skip
    found = check_broken(cases[0]).diagnoses[0]
    frame = found.victims[0].frame
    assert (frame.line, frame.end_line) == (2, 2)
    assert frame.code[frame.column - 4 : frame.end_column - 4] == "images"


def test_a_graph_that_was_freed_is_labelled_once() -> None:
    cases = Cases()
    cases(
        "GX302", "carried_state", """
        def step(x, state):
            state = torch.tanh(x + state)  #CV
            return state
        state = torch.zeros(2)
        x = torch.ones(2, requires_grad=True)
        for _ in range(2):
            state = step(x, state)
            state.sum().backward()
        """,
    )  # fmt: skip
    text = str(check_broken(cases[0]).diagnoses[0])
    assert "note: the graph was freed by the backward" not in text, text
    assert not re.search(r"\^+[^\n]*\n[ |]*-{5,} Tanh made a part", text), text
