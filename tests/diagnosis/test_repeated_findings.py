"""A finding that comes again: explained once, counted each time, and never another one's text."""

from __future__ import annotations

import ast
import itertools
import linecache
from pathlib import Path

import pytest
import torch

import gradext
from gradext import _C
from gradext.objects import naming
from gradext.recording import findings, incidents
from gradext.recording.judge import Occasion
from gradext.rules import judge
from gradext.source import syntax


@pytest.fixture
def heard():
    found = []
    forget = incidents.subscribe(found.append)
    yield found
    forget()


@pytest.fixture
def explained(monkeypatch):
    """How often something was explained anew."""
    calls = []
    of_backward, look = judge.of_backward, judge.look

    def looks(occasion, *args):
        if occasion is Occasion.UNCOUNTED_WRITE:
            calls.append("look")
        return look(occasion, *args)

    monkeypatch.setattr(
        judge, "of_backward", lambda *args: calls.append("of_backward") or of_backward(*args)
    )
    monkeypatch.setattr(judge, "look", looks)
    return calls


def caught(loss):
    with pytest.raises(RuntimeError) as info:
        loss.backward()
    return info.value


def messages(incidents):
    return [incident.diagnoses[0].message for incident in incidents]


def culprits(incidents):
    return [incident.diagnoses[0].culprits[0].frame.code for incident in incidents]


def test_the_second_and_later_times_explain_nothing_and_tell_all(heard, explained):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for _ in range(5):
            h = x.exp()
            loss = h.sum()
            h.add_(1)
            told = gradext.explain(caught(loss))
            assert told[0].code == "GX101"
    assert len(heard) == 5
    assert explained == ["of_backward"]
    assert len(set(messages(heard))) == 1
    assert heard[0].diagnoses == heard[4].diagnoses


def test_two_faults_that_one_backward_line_meets_in_turn(heard, explained):
    """Same error text, same forward, same backward: the line that wrote is another."""
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(6):
            h = x.exp()
            loss = h.sum()
            if number % 2:
                h.add_(1)
            else:
                h.mul_(2)
            caught(loss)
    assert culprits(heard) == ["h.mul_(2)", "h.add_(1)"] * 3
    assert len(explained) == 2


def first(x):
    return x.exp()


def second(x):
    return x.exp()


def test_two_forwards_that_one_backward_line_meets_in_turn(heard, explained):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(4):
            h = (first if number % 2 else second)(x)
            loss = h.sum()
            h.add_(1)
            caught(loss)
    victims = [incident.diagnoses[0].victims[0].frame.line for incident in heard]
    assert victims[0] == victims[2] != victims[1] == victims[3]
    assert len(explained) == 2


def test_a_fault_whose_tensor_has_another_name_is_told_by_that_name(heard, explained):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(4):
            outs = [x.exp(), x.exp()]
            loss = outs[0].sum() + outs[1].sum()
            outs[number % 2].add_(1)
            caught(loss)
    assert [message[:9] for message in messages(heard)] == ["`outs[0]`", "`outs[1]`"] * 2


def test_parameters_of_a_list_of_layers_are_not_taken_for_each_other(heard):
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
    x = torch.ones(1, 2, requires_grad=True)
    with gradext.record():
        for number in range(4):
            loss = layers[number % 2](x).sum()
            with torch.no_grad():
                layers[number % 2].weight.add_(1)
            caught(loss)
    assert [message.split("`")[1] for message in messages(heard)] == [
        "layers[0].weight",
        "layers[1].weight",
    ] * 2


def test_another_shape_is_told_with_its_sizes(heard):
    with gradext.record():
        for size in (3, 4, 3):
            x = torch.ones(size, requires_grad=True)
            h = x.exp()
            loss = h.sum()
            h.add_(1)
            caught(loss)
    assert ["[3]" in text for text in messages(heard)] == [True, False, True]
    assert "[4]" in messages(heard)[1]


def test_ever_new_shapes_are_explained_a_bounded_number_of_times(heard, explained):
    with gradext.record():
        for size in range(1, 30):
            x = torch.ones(size, requires_grad=True)
            h = x.exp()
            loss = h.sum()
            h.add_(1)
            caught(loss)
    assert len(heard) == 29
    assert len(explained) == findings.MOST_VARIANTS
    assert "are those of that time" in heard[-1].diagnoses[0].notes[-1]
    assert "are those of that time" not in " ".join(heard[0].diagnoses[0].notes)


def test_versions_that_move_on_are_said_to_be_of_the_first_time(heard, explained):
    w = torch.ones(3, requires_grad=True)
    with gradext.record():
        for _ in range(3):
            loss = (w * w).sum()
            with torch.no_grad():
                w.add_(1)
            caught(loss)
    assert len(explained) == 1
    assert "at version 0" in messages(heard)[2]
    assert [d.notes[-1].count("versions") for i in heard for d in i.diagnoses[:1]] == [0, 1, 1]


def test_a_silent_write_in_a_loop(heard, explained):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(6):
            h = x.exp()
            loss = h.sum()
            if number % 2:
                h.data.add_(1)
            else:
                h.data.mul_(2)
            loss.backward()
    assert [incident.diagnoses[0].code for incident in heard] == ["GX401"] * 6
    assert culprits(heard) == ["h.data.mul_(2)", "h.data.add_(1)"] * 3
    assert len(explained) == 2


def test_a_write_of_other_columns_is_no_repetition_of_a_harmful_one(heard):
    x = torch.ones(2, 2, requires_grad=True)
    with gradext.record():
        for column in (1, 0, 1, 0):
            h = x.exp()
            part = h[:, 0]
            loss = (part * part).sum()
            h.data[:, column].add_(1)
            loss.backward()
    with gradext.record():
        for column in (0, 0):
            h = x.exp()
            part = h[:, 0]
            loss = (part * part).sum()
            h.data[:, column].add_(1)
            loss.backward()
    assert len(heard) >= 4


def test_a_graph_that_is_used_twice_in_a_loop(heard, explained):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for _ in range(4):
            loss = (x * x).sum()
            loss.backward()
            caught(loss)
    assert [incident.diagnoses[0].code for incident in heard] == ["GX302"] * 4
    assert len(explained) == 1


def test_each_recording_explains_for_itself(heard, explained):
    x = torch.ones(3, requires_grad=True)
    for saves in (True, False):
        with gradext.record(saves=saves):
            for _ in range(2):
                h = x.exp()
                loss = h.sum()
                h.add_(1)
                caught(loss)
    assert len(explained) == 2
    assert heard[0].diagnoses[0].victims
    assert not heard[3].diagnoses[0].victims


def test_explain_after_the_recording_knows_a_repeated_error():
    x = torch.ones(3, requires_grad=True)
    with gradext.record() as recording:
        errors = []
        for _ in range(3):
            h = x.exp()
            loss = h.sum()
            h.add_(1)
            errors.append(caught(loss))
    assert [recording.explain(error)[0].code for error in errors] == ["GX101"] * 3


def test_a_guard_counts_each_time(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.guard() as one:
        for _ in range(4):
            h = x.exp()
            loss = h.sum()
            h.detach().numpy()[0] = 5.0
            loss.backward()
    assert len(one.diagnoses) == 1
    assert len(heard) == 4


def test_what_the_journal_tells_of_is_not_told_again_by_a_guard(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.record(), gradext.guard():
        for _ in range(3):
            h = x.exp()
            loss = h.sum()
            h.data.add_(1)
            loss.backward()
    assert len(heard) == 3


def test_the_memory_of_findings_is_bounded(monkeypatch):
    known = findings.Known()
    monkeypatch.setattr(known._places, "_most", 3)
    for number in range(9):
        known.keep(findings.Finding((number,), ()), [])
    assert len(known._places) == 3
    assert known.recall(findings.Finding((0,), ()), ()) is None
    assert known.recall(findings.Finding((8,), ()), ()) == ()


def test_nothing_of_the_program_is_kept_alive():
    import weakref

    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for _ in range(3):
            h = x.exp()
            loss = h.sum()
            h.add_(1)
            gone = weakref.ref(h)
            caught(loss)
            del h, loss
            assert gone() is None


def test_names_of_modules_beyond_the_frames_are_found_when_they_are_asked_for():
    class Holder:
        pass

    def hidden():
        holder = Holder()
        holder.deep = [[[torch.nn.Linear(2, 2)]]]
        return holder

    holder = hidden()
    weight = holder.deep[0][0][0].weight
    number = naming.identity_of(weight).id
    del weight
    names = naming.Names([])
    assert not names._is_complete
    assert names.is_parameter(number)
    assert names._is_complete


def test_instances_are_told_by_their_type_alone():
    class Liar:
        @property
        def __class__(self):
            raise AssertionError("asked")

    class Sub(torch.nn.Linear):
        pass

    objects = [Liar(), Sub(1, 1), 3, torch.nn.ReLU(), object()]
    found = _C.instances(objects, (torch.nn.Module,))
    assert [type(thing) for thing in found] == [Sub, torch.nn.ReLU]


# --- the statements of a long file ---------------------------------------------------------------


LONG = '''"""A text with
def no(function):
in it."""
import os


class Holder:
    """Of functions."""

    @decorated(
        1,
    )
    def first(self, a):
        text = """
def at_the_margin(x):
    a.mul_(2)
"""
        for item in a:
            if item:
                item.add_(1)

        def inner(b):
            try:
                b.mul_(2)
            except ValueError:
                b.zero_()
            return b

        return inner(text)

    async def second(self): return 1


with open(os.devnull) as file:
    file.read()
value = [
    1,
    2,
]
'''


@pytest.fixture(params=[0, 1500], ids=["short", "long"])
def long_file(request, tmp_path):
    path = tmp_path / "long.py"
    filler = "".join(f"def f{n}(a):\n    return a + {n}\n\n\n" for n in range(request.param // 4))
    path.write_text(filler + LONG + "\n\n" + filler.replace("def f", "def g"))
    yield str(path), filler.count("\n")
    linecache.checkcache(str(path))


def test_the_statements_are_those_of_the_whole_file(long_file):
    file, above = long_file
    tree = ast.parse(Path(file).read_text())
    asked = 0
    for line, text in enumerate(LONG.splitlines(), above + 1):
        whole = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt) and syntax.span(node)[0] <= line <= node.end_lineno
        ]
        inside_text = any(
            isinstance(n, ast.Constant) and isinstance(n.value, str) and n.lineno < line
            for statement in whole[-1:]
            for n in ast.walk(statement)
            if isinstance(n, ast.Constant) and n.lineno <= line <= n.end_lineno
        )
        if not whole or inside_text or not text.strip():
            continue  # no line that can be running
        asked += 1
        innermost = min(reversed(whole), key=lambda n: syntax.span(n)[1] - syntax.span(n)[0])
        found = syntax.statements(file, line)
        assert found, (line, text)
        assert ast.dump(found[-1], include_attributes=True) == ast.dump(
            innermost, include_attributes=True
        ), (line, text)
    assert asked > 20


def test_a_long_file_is_not_parsed_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "program.py"
    methods = "".join(f"    def m{n}(self, a):\n        return a + {n}\n\n" for n in range(4000))
    path.write_text(f"class Program:\n{methods}")
    parsed = []
    parse = ast.parse
    monkeypatch.setattr(ast, "parse", lambda text: parsed.append(len(text)) or parse(text))
    found = syntax.statements(str(path), 6000)
    assert ast.unparse(found[-1]) == "return a + 1999"
    assert syntax.statements(str(path), 6000)[-1] is found[-1]
    assert max(itertools.chain(parsed)) < 1000
    assert len(parsed) == 1


def test_the_lines_around_one_are_looked_for_once(tmp_path, monkeypatch):
    path = tmp_path / "program.py"
    text = "".join(f"def f{n}(a):\n    return a + {n}\n\n" for n in range(800))
    path.write_text(text)
    looked = []
    cuts = syntax._cuts
    monkeypatch.setattr(syntax, "_cuts", lambda *a: looked.append(1) or cuts(*a))
    for _ in range(3):
        assert ast.unparse(syntax.statements(str(path), 1502)[-1]) == "return a + 500"
        assert ast.unparse(syntax.statements(str(path), 1505)[-1]) == "return a + 501"
    assert len(looked) == 2
    path.write_text("x = 1\n\n" + text.replace("return a", "return  7"))
    linecache.checkcache(str(path))
    assert ast.unparse(syntax.statements(str(path), 1504)[-1]) == "return 7 + 500"
    monkeypatch.setattr(syntax, "_MOST_PARTS", 5)
    for line in range(1, 200):
        syntax.around(str(path), line)
    assert len(syntax._parts) <= 5


def test_the_objects_of_the_program_are_looked_through_once_for_one_answer(monkeypatch):
    # A leaf that no variable leads to: it may be any module's.
    hidden = {"a": {"b": {"c": {"d": torch.ones(2, requires_grad=True)}}}}
    looks = []
    every = naming.every
    monkeypatch.setattr(naming, "every", lambda *kinds: looks.append(kinds) or every(*kinds))
    with gradext.record():
        loss = hidden["a"]["b"]["c"]["d"].detach().sum()
        told = gradext.explain(caught(loss))
    assert [each.code for each in told] == ["GX301"]
    assert len(looks) == 1


def test_a_file_that_has_changed_is_read_anew(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("x = 1\n")
    assert ast.unparse(syntax.statements(str(path), 1)[0]) == "x = 1"
    path.write_text("y = 22\n")
    linecache.checkcache(str(path))
    assert ast.unparse(syntax.statements(str(path), 1)[0]) == "y = 22"


def test_what_cannot_be_parsed_has_no_statements(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("def (:\n" * 2000)
    assert syntax.statements(str(path), 5) == []
    assert syntax.statements("/no/such/file.py", 5) == []
