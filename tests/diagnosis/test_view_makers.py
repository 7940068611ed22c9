"""The line that made a refused view, where a custom Function made it: known, or honestly not."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradext


class Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x[:2], x[2:]

    @staticmethod
    def backward(ctx, first, second):
        return torch.cat([first, second])


class Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x.unbind()

    @staticmethod
    def backward(ctx, *grads):
        return torch.stack(grads)


def refused(make, *, saves=True, before=False):
    """The diagnosis of a write to the first view that `make` gives of a recorded tensor."""
    y = torch.ones(4, 6, requires_grad=True) * 2
    views = make(y) if before else None
    with gradext.record(saves=saves):
        if views is None:
            views = make(torch.ones(4, 6, requires_grad=True) * 2)
        with pytest.raises(RuntimeError) as raised:
            views[0].mul_(2)
        (found,) = gradext.explain(raised.value)
    return found


def in_checkpoint(y):
    return checkpoint(lambda y: y.chunk(2), y, use_reentrant=True)


MAKERS = {"halves": Halves.apply, "rows": Rows.apply, "checkpoint": in_checkpoint}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_call_of_the_function_is_named(make):
    found = refused(make)
    assert found.code == "GX105"
    assert found.victims
    assert found.victims[0].frame.file == __file__
    assert found.notes == ()


def test_the_light_mode_knows_the_lines_within():
    found = refused(Halves.apply, saves=False)
    assert found.victims[0].label == "the Function returns the view"


@pytest.mark.parametrize(
    ("make", "how"), [(Halves.apply, {"before": True}), (in_checkpoint, {"saves": False})]
)
def test_what_was_not_recorded_is_not_called_earlier(make, how):
    found = refused(make, **how)
    assert found.victims == ()
    (note,) = found.notes
    assert note.startswith("the line that made the view was not recorded: it ran before")
    assert "or made the view in a way" in note
