"""Ops without grad mode: nothing is noted of most, and none that matters is passed over for that.

Whether a value may have lost a gradient is asked without a lock, of a table of counts by address
(journal/live_table.h): it may say yes too often, and never no.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

import gradext
from gradext.recording import events
from gradext.recording.events import Flow

w = torch.ones(3, requires_grad=True)
x = torch.ones(3)
places = torch.tensor([0, 1, 2])

# What takes in a tensor in ways that a kernel reads differently: alone, as one of several, in a
# list, as an option, through an op without an unboxed kernel, by a write, as a view.
READERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "alone": lambda t: torch.tanh(t),
    "the second": lambda t: x + t,
    "in a list": lambda t: torch.cat([x, t]),
    "in a stack": lambda t: torch.stack([x, x, t]),
    "an option": lambda t: torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2), t),
    "an index": lambda t: x.index_select(0, t.argmax(0, keepdim=True)),
    "boxed": lambda t: torch.lgamma(t),
    "boxed list": lambda t: torch.block_diag(x, t),
    "remainder": lambda t: torch.remainder(t, 2),
    "division": lambda t: torch.ops.aten.div.Scalar(t, 2),
    "comparison": lambda t: torch.ge(x, t),
    "all true": lambda t: torch._is_all_true(t > 0),
    "deviation": lambda t: t.std(),
    "scattered": lambda t: x.scatter_add(0, places, t),
    "written": lambda t: torch.zeros(3).add_(t),
    "masked": lambda t: torch.zeros(3).masked_fill_(t > 0, 1),
    "combined": lambda t: torch.ones(3, dtype=torch.bool).logical_and_(t > 0),
    "viewed": lambda t: t.detach()[1:],
}


def origins_of(recording: gradext.Recording, tensor: torch.Tensor) -> list[Flow]:
    """The flow of the tensor, and what it was made of, back to the first."""
    at = recording.data.flow_of(id_of(tensor))
    found: list[Flow] = []
    while isinstance(at, Flow):
        found.append(at)
        at = recording.data.origin(at.parents[0]) if at.parents else None  # type: ignore[assignment]
    return found


def id_of(tensor: torch.Tensor) -> int:
    return gradext.inspect(tensor).id


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("source", ["a cut value", "a parameter"])
def test_a_value_that_lost_its_gradient_is_followed(reader: str, source: str) -> None:
    with gradext.record() as recording:
        cut = (w * 2).detach()
        with torch.no_grad():
            result = READERS[reader](cut if source == "a cut value" else w)
        found = origins_of(recording, result)
    assert found, "nothing is known of the result"
    assert any(flow.has(events.CUT) for flow in found)


@pytest.mark.parametrize("reader", [*READERS])
def test_nothing_is_noted_of_values_that_never_had_one(reader: str) -> None:
    plain = torch.ones(3)
    with gradext.record() as recording:
        with torch.no_grad():
            result = READERS[reader](plain)
        assert recording.data.flow_of(id_of(result)) is None


def test_values_stay_known_while_thousands_of_others_come_and_go() -> None:
    with gradext.record() as recording, torch.no_grad():
        kept = [w * k for k in range(200)]
        for _ in range(5000):
            _ = w * 3  # an entry each, most of which are removed again
        del kept[::2]
        gc.collect()
        results = [value + 1 for value in kept]
        parents = [origins_of(recording, result)[1].tensor for result in results]
    assert parents == [id_of(value) for value in kept]


def test_what_another_thread_has_cut_is_known() -> None:
    made: list[torch.Tensor] = []
    with gradext.record() as recording:
        worker = threading.Thread(target=lambda: made.append((w * 2).detach()))
        worker.start()
        worker.join()
        with torch.no_grad():
            result = made[0] * 2
        ops = [flow.op for flow in origins_of(recording, result)]
    assert ops == ["aten::mul", "aten::detach"]


def test_nothing_of_an_earlier_recording_is_known() -> None:
    with gradext.record():
        cut = (w * 2).detach()
    with gradext.record() as recording:
        with torch.no_grad():
            result = cut + 1
        assert recording.data.flow_of(id_of(result)) is None


def test_an_inference_tensor_is_followed_out_of_its_mode() -> None:
    with gradext.record() as recording:
        with torch.inference_mode():
            born = torch.ones(3) * 2
        with torch.no_grad():
            result = born + 1
        flow = recording.data.flow_of(id_of(result))
        assert flow is not None
        birth = recording.data.origin(flow.parents[0])
    assert birth is not None
    assert birth.op == "aten::mul"


def to_numpy(tensor: torch.Tensor) -> Any:
    return tensor.numpy()


def test_numpy_is_noted_once_of_a_tensor_and_again_of_another() -> None:
    first, second = torch.ones(3), torch.ones(3)
    with gradext.record() as recording:
        for _ in range(3):
            to_numpy(first)
        to_numpy(second)
        known = [recording.data.flow_of(id_of(tensor)) for tensor in (first, second)]
        count = len(recording.data.flows_with(events.FROM_PYTHON))
    assert [flow.op for flow in known if flow is not None] == ["Tensor.numpy"] * 2
    assert count == 2


@pytest.mark.parametrize("leave", [to_numpy, torch.Tensor.tolist, lambda t: float(t.sum())])
def test_only_values_that_had_a_gradient_are_noted_when_they_leave(
    leave: Callable[[torch.Tensor], Any],
) -> None:
    with gradext.record() as recording:
        leave(torch.ones(3))
        assert not recording.data.flows_with(events.TO_PYTHON)
        leave((w * 2).detach())
        assert len(recording.data.flows_with(events.TO_PYTHON)) == 1


def test_the_lines_are_right_where_a_loop_has_more_frames_than_the_cache() -> None:
    lines = 6000
    source = "def all_of(w):\n" + "".join(f"    kept.append(w + {k})\n" for k in range(lines))
    kept: list[torch.Tensor] = []
    program: dict[str, Any] = {"kept": kept}
    exec(compile(source, "many_lines.py", "exec"), program)
    with gradext.record() as recording, torch.no_grad():
        for _ in range(2):
            kept.clear()
            program["all_of"](w)
        data = recording.data
        flows = [data.flow_of(id_of(value)) for value in kept[::7]]
        found = [data.frames(flow.stack)[0].line for flow in flows if flow is not None]
    assert found == [*range(2, lines + 2)][::7]
    assert numpy.unique(found).size == len(kept[::7])
