"""check_backward(): what a backward would raise, and what is silently wrong, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gradext.base import display
from gradext.diagnosis.model import Diagnosis
from gradext.objects.naming import Names
from gradext.ops import graph_break
from gradext.recording import running
from gradext.rules.codes import gx101_stale_saved, gx401_silent_write
from gradext.rules.codes import gx302_graph_freed as graphs
from gradext.rules.graph_copy import read
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.recording import Recording
    from gradext.recording.tables import Data


class Checked(display.Shown, list[Diagnosis]):
    """The diagnoses of check_backward(), and what it could not look at.

    Attributes:
        checked: how many saved tensors were compared.
        unchecked: one line per node that cannot be read without running a hook, or not at all.
    """

    def __init__(self, found: list[Diagnosis], checked: int, unchecked: list[str]) -> None:
        super().__init__(found)
        self.checked = checked
        self.unchecked = unchecked

    def __str__(self) -> str:
        return "\n".join([*(display.show("diagnosis_text.text", d) for d in self), *self._last()])

    __repr__ = __str__

    def _last(self) -> list[str]:
        listed = [f"  not checked: {line}" for line in self.unchecked[:20]]
        return [f"{self.checked} saved tensors checked, {len(self.unchecked)} nodes not", *listed]

    def _repr_html_(self) -> str:
        last = display.show("ansi_html.pre", "\n".join(self._last()))
        return display.show("report_html.fragment", self) + last


@graph_break
def check_backward(loss: Any, recording: Recording | None = None) -> Checked:
    """Before `loss.backward()`: do the saved tensors still hold? Runs nothing, changes nothing.

    The list has what backward would raise (GX101, GX302) and, from a running recording, the silent
    writes that it would not (GX401). What cannot be read without running a hook is named in
    `unchecked` of the returned list; `checked` counts the saved tensors that were compared.

    Args:
        loss: a tensor, or a list or tuple of tensors.

    Raises:
        TypeError: `loss` is no tensor and holds none.
    """
    roots = [loss] if isinstance(loss, torch.Tensor) else loss
    if not isinstance(roots, (list, tuple)) or not all(
        isinstance(root, torch.Tensor) for root in roots
    ):
        raise TypeError(
            "gradext.check_backward: expected a tensor or a list of tensors, got "
            f"{type(loss).__module__}.{type(loss).__qualname__}"
        )
    if recording is None and running.recordings:
        recording = running.recordings[-1]
    data = recording.data if recording is not None else _no_data()
    graph = read(roots)
    names = Names(live_frames.frames_above())
    found = gx101_stale_saved.all_stale(graph, graph.stale(), data, names, failed=False)
    found += graphs.freed(data, graph, names)
    found += gx401_silent_write.silent(data, graph, names)
    unchecked = []
    for node in graph.unread():
        if node.hooked:
            unchecked.append(
                f"{node.name}: {', '.join(node.hooked)} is packed by saved-tensor hooks "
                "(checkpointing, offloading), and unpacking would run them"
            )
        if not node.is_readable:
            unchecked.append(f"{node.name}: a C++ autograd Function shows nothing of what it saved")
    if not graph.whole:
        unchecked.append(f"the graph is too large: the nearest {len(graph.nodes)} nodes were read")
    return Checked(found, graph.saved_count, unchecked)


def _no_data() -> Data:
    from gradext.recording.tables import Data, empty_snapshot

    return Data(empty_snapshot(), {})
