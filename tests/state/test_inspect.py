"""inspect(): each field against torch, the card that a person sees, and the line for bad input."""

from __future__ import annotations

import dataclasses
import gc
import html
import io
import re
import sys
from html.parser import HTMLParser

import numpy
import pytest
import torch
from facts import MODES, keys_by_torch

import gradext
from gradext import TensorState, ops

ESCAPE = "\x1b"


def samples(device: str = "cpu") -> dict[str, torch.Tensor]:
    leaf = torch.ones(2, 3, device=device, requires_grad=True)
    product = leaf * 2
    with torch.no_grad():
        no_grad_view = product[0]
    values, _ = torch.sort(product)
    return {
        "leaf": leaf,
        "product": product,
        "view": product[1:, 1:],
        "no_grad view": no_grad_view,
        "second output": product.unbind()[1],
        "sorted": values,
        "indices": torch.sort(product)[1],
        "transposed": product.t(),
        "expanded": product[:, :1].expand(2, 5),
        "detached": product.detach(),
        "half": torch.ones(3, dtype=torch.half, device=device)[2:],
        "0-d": torch.tensor(1, device=device),
        "empty": torch.empty(0, 3, device=device),
        "parameter": torch.nn.Parameter(torch.ones(2, device=device)),
    }


@pytest.mark.parametrize("mode", MODES)
def test_every_field_is_torch_s(mode: str, device: str) -> None:
    outside = samples(device)
    with MODES[mode]():
        for t in [*outside.values(), *samples(device).values()]:
            s = gradext.inspect(t)
            assert s.shape == tuple(t.shape)
            assert s.dtype is t.dtype
            assert s.device == t.device
            assert s.requires_grad == t.requires_grad
            assert s.is_leaf == t.is_leaf
            assert s.grad_fn == (t.grad_fn and t.grad_fn.name())
            assert s.output_nr == t.output_nr
            assert s.version == (None if t.is_inference() else t._version)
            assert s.version_counter == ops.version_counter(t)
            assert s.is_view == t._is_view()
            assert s.base == (None if t._base is None else gradext.inspect(t._base).id)
            assert s.creation_meta == ops.creation_meta(t)
            assert s.is_inference == t.is_inference()
            assert s.storage_offset == t.storage_offset()
            assert s.nbytes == t.nbytes
            assert s.dispatch_keys == keys_by_torch(t)
            assert not s.grad_fn_is_stale
            assert not s.storage_is_freed


def test_storage_ids_are_equal_exactly_for_one_storage() -> None:
    tensors = list(samples().values())
    for a in tensors:
        for b in tensors:
            same = a.untyped_storage()._cdata == b.untyped_storage()._cdata
            assert (gradext.inspect(a).storage == gradext.inspect(b).storage) == same
            assert (gradext.inspect(a).id == gradext.inspect(b).id) == (a is b)


def test_the_fields_of_the_contract_are_there() -> None:
    names = [field.name for field in dataclasses.fields(TensorState)]
    assert names[:17] == [
        "shape",
        "dtype",
        "device",
        "requires_grad",
        "is_leaf",
        "grad_fn",
        "output_nr",
        "version",
        "version_counter",
        "is_view",
        "base",
        "creation_meta",
        "is_inference",
        "storage",
        "storage_offset",
        "nbytes",
        "dispatch_keys",
    ]


def test_a_state_is_a_frozen_record_of_one_moment() -> None:
    t = torch.ones(3)
    before = gradext.inspect(t)
    assert before == gradext.inspect(t)
    assert hash(before) == hash(gradext.inspect(t))
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.version = 7
    t.add_(1)
    assert before.version == 0
    after = gradext.inspect(t)
    assert after.version == 1
    assert dataclasses.replace(after, version=0) == before


def test_a_state_keeps_nothing_alive() -> None:
    t = torch.ones(3, requires_grad=True) * 2
    counts = (t._use_count(), sys.getrefcount(t), sys.getrefcount(t.grad_fn))
    states = [gradext.inspect(t) for _ in range(3)]
    assert (t._use_count(), sys.getrefcount(t), sys.getrefcount(t.grad_fn)) == counts
    assert len(states) == 3


def test_fields_are_plain_values() -> None:
    state = gradext.inspect(torch.ones(3, requires_grad=True)[1:])
    assert type(state.shape) is tuple
    assert {type(getattr(state, name)) for name in ("requires_grad", "is_leaf", "is_view")} == {
        bool
    }
    for name in ("output_nr", "version", "version_counter", "base", "storage", "storage_offset"):
        assert type(getattr(state, name)) is int, name
    assert type(state.dispatch_keys) is tuple


# --- bad input ----------------------------------------------------------------------------------


def line_of(argument: object) -> str:
    with pytest.raises(TypeError) as caught:
        gradext.inspect(argument)
    return str(caught.value)


def test_bad_input_is_one_line_each() -> None:
    expected = "gradext.inspect: expected a torch.Tensor, got "
    assert line_of(3) == f"{expected}int"
    assert line_of(None) == f"{expected}NoneType"
    assert line_of("t") == f"{expected}str"
    assert line_of(torch.Tensor) == f"{expected}torch._C._TensorMeta"
    assert line_of(numpy.ones(2)) == (
        f"{expected}numpy.ndarray; torch.from_numpy(array) makes a tensor of it "
        "(numpy keeps no autograd state)"
    )
    storage = torch.ones(2).untyped_storage()
    assert line_of(storage).startswith(f"{expected}torch.storage.UntypedStorage; a storage has no ")
    for container in (torch.nn.Linear(1, 1), [torch.ones(1)], {"a": torch.ones(1)}):
        assert line_of(container).endswith("; gradext.inspect_tree walks modules and containers")
    for argument in (3, numpy.ones(2), storage, torch.nn.Linear(1, 1)):
        assert "\n" not in line_of(argument)


def test_a_freed_storage_is_one_line() -> None:
    t = torch.ones(2, 3)
    view = t[1:]
    t.untyped_storage().resize_(0)
    for freed, sizes, nbytes in ((t, [2, 3], 24), (view, [1, 3], 12)):
        with pytest.raises(ValueError, match="freed") as caught:
            gradext.inspect(freed)
        message = str(caught.value)
        assert message.startswith(
            f"gradext.inspect: the storage of this {sizes} tensor was freed "
            f"(it holds 0 of {nbytes} bytes)"
        )
        assert "\n" not in message
        # The ops and the batch answer: what they report is not kept in the storage.
        assert ops.version(freed) == 0
        assert gradext.states([freed]).array[0, 0] == 0
    t.untyped_storage().resize_(24)
    assert gradext.inspect(t).nbytes == 24


def test_what_only_looks_freed_is_none() -> None:
    for t in (torch.empty(0), torch.ones(3, device="meta"), torch.eye(2).to_sparse()):
        assert not gradext.inspect(t).storage_is_freed


def test_a_failed_inspect_leaves_the_object_alone() -> None:
    value = object()
    before = sys.getrefcount(value)
    for _ in range(10):
        line_of(value)
    gc.collect()  # the errors' own frames
    assert sys.getrefcount(value) == before


# --- the card -----------------------------------------------------------------------------------


def lines(t: torch.Tensor) -> dict[str, str]:
    """The card's rows by label; the title under ""."""
    title, *rows = str(gradext.inspect(t)).split("\n")
    found = {"": title}
    label = ""
    for row in rows:
        if not row.startswith(" "):
            label, _, row = row.partition(" ")
            found[label] = ""
        found[label] = f"{found[label]} {row.strip()}".strip()
    return found


def test_the_card_of_a_plain_tensor() -> None:
    t = torch.ones(2, 3)
    t.add_(1)
    s = gradext.inspect(t)
    assert str(s).split("\n") == [
        f"Tensor float32[2, 3] cpu  {s.id:#x}",
        "gradient  no requires_grad, leaf, no grad_fn",
        f"version   1  (counter {s.version_counter:#x})",
        "view      no",
        f"memory    24 bytes, storage {s.storage:#x}, offset 0",
        "dispatch  CPU ADInplaceOrView AutogradCPU AutocastCPU",
    ]
    assert repr(s) == str(s)


def test_the_card_of_a_view_with_history() -> None:
    product = torch.ones(2000, 3, requires_grad=True) * 2
    view = product.unbind()[1]
    card = lines(view)
    assert card["gradient"] == "requires_grad, not a leaf, grad_fn UnbindBackward0, its output 1"
    assert card["view"] == (
        f"of {gradext.inspect(product).id:#x}, made in multi_output_node  "
        "(an in-place write to it with grad mode on raises)"
    )
    assert lines(product)["memory"].startswith("24,000 bytes, storage 0x")


def test_the_card_of_an_inference_tensor() -> None:
    with torch.inference_mode():
        t = torch.ones(3)
    card = lines(t)
    assert card["inference"] == (
        "inference tensor  (born under inference_mode; it has no version counter)"
    )
    assert card["version"] == "none"
    assert card["dispatch"] == "CPU AutocastCPU"
    assert "inference" not in lines(torch.ones(3))


def test_the_card_of_a_stale_view() -> None:
    base = torch.ones(4, requires_grad=True) * 1
    view, other = base[:2], base[2:]
    assert "out of date" not in lines(view)["gradient"]
    other.add_(1)
    assert lines(view)["gradient"] == (
        "requires_grad, not a leaf, grad_fn SliceBackward0  "
        "(out of date: its base was written since)"
    )
    assert view.grad_fn.name() == "AsStridedBackward0"
    assert lines(view)["gradient"] == "requires_grad, not a leaf, grad_fn AsStridedBackward0"


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_the_card_of_a_view_that_must_not_be_written(mode: str) -> None:
    base = torch.ones(4, requires_grad=True) * 1
    with MODES[mode]():
        view = base[:2]
    meta = "no_grad_mode" if mode == "no_grad" else "inference_mode"
    assert lines(view)["view"] == (
        f"of {gradext.inspect(base).id:#x}, made in {meta}  "
        "(an in-place write to it with grad mode on raises)"
    )


def test_the_card_of_what_has_no_storage() -> None:
    assert lines(torch.eye(2).to_sparse())["memory"] == (
        "elements kept elsewhere, no storage of its own"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_escape_codes_outside_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.ones(4, requires_grad=True) * 1
    view = base.unbind()[0]
    base.add_(1)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.setenv(name, "1")
    for t in (base, view):
        assert ESCAPE not in str(gradext.inspect(t))
        assert ESCAPE not in str(gradext.inspect_tree({"t": t}))
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = str(gradext.inspect(view))
    assert ESCAPE in coloured
    # Only colour differs: the text is the same, but for where a narrower terminal breaks a line.
    plain = re.sub("\x1b\\[[0-9;]*m", "", coloured)
    monkeypatch.undo()
    assert plain.split() == str(gradext.inspect(view)).split()


def test_a_notebook_gets_plain_text_and_nothing_displayed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # There standard output is no terminal either, but rich takes a notebook for one that has
    # colour, and displays what it prints, besides returning it.
    import rich.console

    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    texts = [str(gradext.inspect(torch.ones(3))), str(gradext.inspect_tree([torch.ones(3)]))]
    assert capsys.readouterr().out == ""
    assert ESCAPE not in "".join(texts)


class Table(HTMLParser):
    """The text of the cells; fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "br":
            return
        self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_the_html_says_what_the_card_says() -> None:
    view = (torch.ones(4, requires_grad=True) * 1)[1:]
    text = gradext.inspect(view)._repr_html_()
    cells = Table(text).cells
    rows = dict(zip(cells[::2], cells[1::2], strict=True))
    card = lines(view)
    assert rows.keys() == card.keys() - {""}
    for label, value in rows.items():
        assert value.split() == card[label].split()
    assert f"<b>{html.escape(card[''])}</b>" in text


def test_the_html_escapes() -> None:
    state = dataclasses.replace(
        gradext.inspect(torch.ones(1)), grad_fn="<lambda>&co", dispatch_keys=("<script>",)
    )
    text = state._repr_html_()
    assert "&lt;lambda&gt;&amp;co" in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "<lambda" not in text
    assert "<lambda>&co" in str(state)
