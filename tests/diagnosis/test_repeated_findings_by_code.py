"""Every code, when it comes again: explained once for each place, told each time."""

from __future__ import annotations

import contextlib
import linecache
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import gradext
from gradext import _C
from gradext.recording import incidents, own_errors, time_share

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
import findings_faults  # noqa: E402

sys.path.remove(BENCHMARKS)

FAULTS = {what: fault for what, fault in findings_faults.FAULTS.items() if fault.code}
CLEAN = {what: fault for what, fault in findings_faults.FAULTS.items() if not fault.code}


class Heard:
    """What was told, and how often something was explained: that takes a copy of the journal."""

    def __init__(self) -> None:
        self.told: list[tuple] = []
        self.explained = 0

    def tell(self, error: BaseException) -> None:
        self.told.append(tuple(gradext.explain(error)))

    def codes(self) -> list[str]:
        return [diagnoses[0].code for diagnoses in self.told]

    def lines(self) -> list[tuple]:
        return [
            tuple(s.frame.line for s in (*diagnoses[0].culprits, *diagnoses[0].victims))
            for diagnoses in self.told
        ]

    def messages(self) -> list[str]:
        return [diagnoses[0].message for diagnoses in self.told]


@pytest.fixture
def heard(monkeypatch):
    found = Heard()
    snapshot = _C.recorder_snapshot

    def counted(since):
        found.explained += 1
        return snapshot(since)

    monkeypatch.setattr(_C, "recorder_snapshot", counted)
    forget = incidents.subscribe(lambda incident: found.told.append(incident.diagnoses))
    yield found
    forget()


@pytest.fixture
def x():
    return torch.linspace(0.0, 1.0, 8, requires_grad=True)


class On:
    """Records, or guards, as the fault needs it."""

    def __init__(self, how: str) -> None:
        self.recording = gradext.record()
        self.guard = gradext.guard() if how == "guard" else None

    def __enter__(self):
        self.recording.__enter__()
        if self.guard is not None:
            self.guard.__enter__()

    def __exit__(self, *error):
        if self.guard is not None:
            self.guard.__exit__(*error)
        self.recording._snapshot = lambda: None  # the data of a recording that ends is none
        self.recording.__exit__(*error)


PROGRAM = """
def one(x):
{text}


def two(x):
{text}


def deep(x, depth):
    if depth:
        return deep(x, depth - 1)
{text}


def by_one_line(x):
    one(x)


def by_another_line(x):
    one(x)
"""


def program(fault, tmp_path, heard):
    path = tmp_path / "program.py"
    text = findings_faults.HEAD + PROGRAM.format(text=textwrap.indent(fault.text, "    "))
    path.write_text(text)
    linecache.checkcache(str(path))
    space = {"__name__": "program", "told": heard.tell}
    exec(compile(text, str(path), "exec"), space)
    return space


@pytest.mark.parametrize("what", FAULTS)
def test_a_loop_is_explained_once_and_told_each_time(what, tmp_path, heard, x):
    fault = FAULTS[what]
    with On(fault.how):
        step = program(fault, tmp_path, heard)["one"]
        for _ in range(6):
            step(x)
    assert heard.codes() == [fault.code] * 6
    assert heard.explained == 1
    assert len(set(heard.lines())) == 1


@pytest.mark.parametrize("what", FAULTS)
def test_the_same_text_at_two_places_is_two_findings(what, tmp_path, heard, x):
    fault = FAULTS[what]
    with On(fault.how):
        space = program(fault, tmp_path, heard)
        for _ in range(3):
            for name in ("one", "two"):
                space[name](x)
    assert heard.codes() == [fault.code] * 6
    assert heard.explained == 2
    lines = heard.lines()
    assert lines == lines[:2] * 3
    assert heard.told[0] != heard.told[1]  # the callers, where the innermost line is the same


@pytest.mark.parametrize("what", FAULTS)
def test_one_function_called_from_two_lines_is_two_findings(what, tmp_path, heard, x):
    fault = FAULTS[what]
    with On(fault.how):
        space = program(fault, tmp_path, heard)
        for _ in range(3):
            for name in ("by_one_line", "by_another_line"):
                space[name](x)
    assert heard.codes() == [fault.code] * 6
    assert heard.explained == 2


@pytest.mark.parametrize("what", FAULTS)
def test_nested_loops_and_recursion_tell_each_time(what, tmp_path, heard, x):
    fault = FAULTS[what]
    with On(fault.how):
        deep = program(fault, tmp_path, heard)["deep"]
        for _ in range(3):
            for depth in (0, 2):
                for _ in range(2):
                    deep(x, depth)
    assert heard.codes() == [fault.code] * 12
    assert heard.explained == 2


@pytest.mark.parametrize("what", CLEAN)
def test_a_step_that_is_right_is_looked_at_closely_once(what, tmp_path, heard, x):
    fault = CLEAN[what]
    with On(fault.how):
        step = program(fault, tmp_path, heard)["one"]
        for _ in range(6):
            step(x)
    assert heard.told == []
    assert heard.explained <= 1


# --- where the lines that run are the same, and those that made the tensors are not ---------------


def born_here():
    with torch.inference_mode():
        return torch.ones(3)


def born_there():
    with torch.inference_mode():
        return torch.ones(3)


@pytest.mark.parametrize(
    ("code", "use"),
    [
        ("GX201", lambda x, table: x * table),
        ("GX202", lambda x, table: table.add_(1.0)),
        ("GX203", lambda x, table: table.requires_grad_()),
    ],
)
def test_inference_tensors_of_two_births_used_by_one_line(heard, code, use):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        tables = [born_here(), born_there()]
        for number in range(6):
            table = tables[number % 2]
            try:
                use(x, table)
            except RuntimeError as error:
                heard.tell(error)
        explained = heard.explained
    assert heard.codes() == [code] * 6
    functions = [diagnoses[0].culprits[0].frame.function for diagnoses in heard.told]
    assert functions == ["born_here", "born_there"] * 3
    assert explained == 2


def test_inference_tensors_of_one_birth_keep_their_own_names_and_shapes(heard):
    x = torch.ones(3, requires_grad=True)
    y = torch.ones(2, requires_grad=True)
    with gradext.record():
        with torch.inference_mode():
            cache = {name: torch.ones(size) for name, size in (("wide", 3), ("narrow", 2))}
        for name in ("wide", "narrow") * 2:
            try:
                (x if name == "wide" else y) * cache[name]
            except RuntimeError as error:
                heard.tell(error)
    assert ["[3]" in text for text in heard.messages()] == [True, False] * 2
    assert ["wide" in text for text in heard.messages()] == [True, False] * 2


def test_an_inference_tensor_made_anew_each_time_is_one_finding(heard):
    x = torch.ones(3, requires_grad=True)
    kept = []
    with gradext.record():
        for _ in range(12):
            table = born_here()
            kept.append(table)
            try:
                x * table
            except RuntimeError as error:
                heard.tell(error)
        assert heard.explained < 12
    assert heard.codes() == ["GX201"] * 12
    assert len(set(heard.lines())) == 1


def cut_here(x):
    return x.detach() * 2.0


def cut_there(x):
    return x.detach() * 2.0


def freeze_here(weight):
    weight.requires_grad_(False)


def freeze_there(weight):
    weight.requires_grad_(False)


def caught(loss):
    try:
        loss.backward()
    except RuntimeError:
        return
    raise AssertionError("backward() raised nothing")


def test_one_backward_that_two_cuts_lead_to(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(6):
            features = (cut_here if number % 2 else cut_there)(x)
            caught(features.sum())
        assert heard.explained == 2
    functions = [diagnoses[0].culprits[0].frame.function for diagnoses in heard.told]
    assert functions == ["cut_there", "cut_here"] * 3


def test_a_cut_behind_many_ops_is_seen(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(4):
            features = (cut_here if number % 2 else cut_there)(x)
            for _ in range(20):
                features = features * 1.5
            caught(features.sum())
    functions = [diagnoses[0].culprits[0].frame.function for diagnoses in heard.told]
    assert functions == ["cut_there", "cut_here"] * 2


def test_a_sum_that_grows_from_step_to_step_is_one_finding(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        total = torch.zeros(())
        for _ in range(30):
            total = total + (x * x).sum().detach()
            caught(total)
        assert heard.explained <= 4  # until the lines of the sum are all known
    assert heard.codes() == ["GX301"] * 30


def test_the_later_of_two_cuts_is_told(heard):
    """Both are as far from the loss; the one that was made last is told first."""
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(4):
            if number % 2:
                a = cut_here(x)
                b = cut_there(x)
            else:
                b = cut_there(x)
                a = cut_here(x)
            caught((a + b).sum())
    functions = [diagnoses[0].culprits[0].frame.function for diagnoses in heard.told]
    assert functions == ["cut_here", "cut_there"] * 2


def test_two_lines_that_froze_what_one_backward_misses(heard):
    with gradext.record():
        for number in range(4):
            layer = torch.nn.Linear(2, 1)
            for parameter in layer.parameters():
                (freeze_here if number % 2 else freeze_there)(parameter)
            caught(layer(torch.ones(1, 2)).sum())
            del layer, parameter
    functions = [diagnoses[0].culprits[0].frame.function for diagnoses in heard.told]
    assert functions == ["freeze_there", "freeze_here"] * 2


def test_parameters_that_get_no_gradient_are_named_as_they_are(heard):
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 1) for _ in range(2))
    with gradext.record():
        for number in (0, 1, 0, 1):
            caught(layers[number].weight.detach().sum())
    notes = [diagnoses[0].notes[0] for diagnoses in heard.told]
    assert ["layers[0].weight" in note for note in notes] == [True, False] * 2
    assert ["layers[1].weight" in note for note in notes] == [False, True] * 2


def test_a_value_that_left_for_python_on_two_lines(heard):
    x = torch.ones(3, requires_grad=True)

    def here():
        return x.exp().sum().item()

    def there():
        return x.exp().sum().item()

    with gradext.record():
        for number in range(6):
            value = (here if number % 2 else there)() * 3.0
            caught(torch.tensor(value))
    functions = [d[0].culprits[0].frame.function.rsplit(".")[-1] for d in heard.told]
    assert functions == ["there", "here"] * 3


def test_a_rebuilt_loss_that_two_lines_rebuild(heard):
    x = torch.ones(3, requires_grad=True)

    def here():
        return torch.tensor(x.exp().sum().item(), requires_grad=True)

    def there():
        return torch.tensor(x.exp().sum().item(), requires_grad=True)

    with gradext.record():
        for number in range(6):
            loss = (here if number % 2 else there)()
            loss.backward()
        assert heard.explained == 2
    functions = [d[0].culprits[0].frame.function.rsplit(".")[-1] for d in heard.told]
    assert functions == ["there", "here"] * 3


def test_a_harmless_leaf_does_not_hide_a_rebuilt_one(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(4):
            if number % 2:
                loss = torch.tensor(x.exp().sum().item(), requires_grad=True)
            else:
                loss = torch.ones((), requires_grad=True)
            loss.backward()
    assert heard.codes() == ["GX304"] * 2


def test_constant_terms_of_two_lines_that_one_line_adds(heard):
    x = torch.ones(3, requires_grad=True)

    def here(loss):
        return torch.autograd.grad(loss, x, retain_graph=True)[0]

    def there(loss):
        return torch.autograd.grad(loss, x, retain_graph=True)[0]

    with gradext.record():
        for number in range(4):
            loss = x.exp().sum()
            grad = (here if number % 2 else there)(loss)
            loss = loss + grad.square().sum()
            loss.backward()
    functions = [d[0].culprits[0].frame.function.rsplit(".")[-1] for d in heard.told]
    assert functions == ["there", "here"] * 2


def test_unused_inputs_of_two_lines_and_names(heard):
    x = torch.ones(3, requires_grad=True)

    def here():
        return x * 2.0

    def there():
        return x * 2.0

    with gradext.record():
        for number in range(4):
            other = (here if number % 2 else there)()
            loss = x.exp().sum()
            with contextlib.suppress(RuntimeError):
                torch.autograd.grad(loss, other)
        assert heard.explained == 2
    functions = [d[0].culprits[0].frame.function.rsplit(".")[-1] for d in heard.told]
    assert functions == ["there", "here"] * 2


def test_the_second_of_two_unused_inputs_is_not_taken_for_the_first(heard):
    x = torch.ones(3, requires_grad=True)
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    with gradext.record():
        for number in range(4):
            loss = ((x * a) if number % 2 else (x * b)).sum()
            with contextlib.suppress(RuntimeError):
                torch.autograd.grad(loss, (a, b))
    assert [message.split("`")[1] for message in heard.messages()] == ["a", "b"] * 2


def test_more_unused_inputs_are_each_named_as_they_are(heard):
    x = torch.ones(3, requires_grad=True)
    pairs = [[torch.ones(3, requires_grad=True) for _ in range(2)] for _ in range(2)]
    with gradext.record():
        for pair in pairs * 2:
            first, second = pair if pair is pairs[0] else pair[::-1]
            with contextlib.suppress(RuntimeError):
                torch.autograd.grad(x.exp().sum(), (first, second))
            space = dict(locals())
            names = re.findall(r"`([^`]+)`", heard.messages()[-1])
            assert eval(names[0], space) is first
            assert eval(names[1], space) is second
    assert len(heard.told) == 4


def test_views_that_two_lines_make_and_one_line_writes(heard):
    x = torch.ones(3, requires_grad=True)

    def here(h):
        return h.unbind()

    def there(h):
        return h.unbind()

    with gradext.record():
        for number in range(4):
            parts = (here if number % 2 else there)(x.exp())
            try:
                parts[0].mul_(2.0)
            except RuntimeError as error:
                heard.tell(error)
        assert heard.explained == 2
    functions = [d[0].victims[0].frame.function.rsplit(".")[-1] for d in heard.told]
    assert functions == ["there", "here"] * 2


def test_a_leaf_and_a_view_of_one_written_by_one_line(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(4):
            target = x[1:] if number % 2 else x
            try:
                target.mul_(2.0)
            except RuntimeError as error:
                heard.tell(error)
    assert heard.codes() == ["GX102", "GX103"] * 2


def test_two_lines_that_wrote_before_one_line_uses_the_view(heard):
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        for number in range(4):
            hidden = x * 2.0
            with torch.no_grad():
                view = hidden[1:]
            if number % 2:
                hidden.mul_(2.0)
            else:
                hidden.add_(2.0)
            try:
                view + 1.0
            except RuntimeError as error:
                heard.tell(error)
        assert heard.explained == 2
    codes = [diagnoses[0].culprits[0].frame.code for diagnoses in heard.told]
    assert codes == ["hidden.add_(2.0)", "hidden.mul_(2.0)"] * 2


def test_a_guard_in_a_loop_tells_of_what_it_watches(heard):
    weight = torch.ones(3)
    with gradext.record():
        for number in range(4):
            with gradext.guard({"weight": weight}):
                if number % 2:
                    weight.add_(1.0)
                else:
                    weight.mul_(3.0)
        assert heard.explained == 2
    assert heard.codes() == ["GX405"] * 4
    codes = [diagnoses[0].culprits[0].frame.code for diagnoses in heard.told]
    assert codes == ["weight.mul_(3.0)", "weight.add_(1.0)"] * 2


def test_an_older_refusal_of_the_same_line_is_not_taken_for_this_one(heard):
    """Each time another tensor is refused; the name is that of this time's."""
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        with torch.inference_mode():
            first, second = torch.ones(3), torch.ones(3)
        for tensors in ((first,), (second,)):
            try:
                x * tensors[0]
            except RuntimeError as error:
                heard.tell(error)
    assert "`first`" in heard.messages()[0]
    assert "`second`" in heard.messages()[1]


@pytest.mark.parametrize(
    "use",
    [
        lambda table: table.requires_grad_(),
        lambda table: setattr(table, "requires_grad", True),
        lambda table: torch.addcmul(table, torch.ones(3, requires_grad=True), table[:]),
    ],
)
def test_a_refused_use_of_an_inference_tensor_is_one_call_of_events(use):
    """Also where C raised the error and Python (before 3.12) has not made an object of it yet."""
    with gradext.record() as recording:
        with torch.inference_mode():
            table = torch.ones(3)
        for _ in range(2):
            with pytest.raises(RuntimeError):
                use(table)
        events = recording.refused
    assert all(event.is_inference for event in events)
    assert len({event.order for event in events}) == 2


def test_an_explanation_that_took_long_keeps_none_from_being_counted(heard, monkeypatch):
    x = torch.ones(3, requires_grad=True)

    def rebuilt():
        torch.tensor(x.exp().sum().item(), requires_grad=True).backward()

    with gradext.record():
        for number in range(5):
            rebuilt()
            if number == 0:
                monkeypatch.setitem(time_share._looked, "explained", 100.0)
        hidden = x.exp()
        loss = hidden.sum()
        hidden.data.add_(1.0)
        loss.backward()  # a new one: there is no time left to explain it, which is said
        assert heard.codes() == ["GX304"] * 5
        assert any("1 checks for silent errors" in line for line in own_errors.lines())


def test_a_guard_leaves_out_no_look_for_writes_and_has_a_limit_for_the_others(heard, monkeypatch):
    x = torch.ones(3, requires_grad=True)
    with gradext.record(), gradext.guard(on_change="warn"):
        monkeypatch.setitem(time_share._looked, "explained", 1e6)
        monkeypatch.setitem(time_share._looked, "recognised", 1e6)
        torch.tensor(x.exp().sum().item(), requires_grad=True).backward()
        hidden = x.exp()
        loss = hidden.sum()
        hidden.data.add_(1.0)
        loss.backward()
        assert set(heard.codes()) == {"GX401"}
        assert any("more than 20% of the run" in line for line in own_errors.lines())
