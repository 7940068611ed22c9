"""check_backward(): what a backward would raise, and what is silently wrong, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.diagnosis.evidence import read
from gradext.diagnosis.model import Diagnosis

if TYPE_CHECKING:
    from gradext.events import Data
    from gradext.recording import Recording


class Checked(list[Diagnosis]):
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
        from gradext.reporters import diagnosis

        lines = [diagnosis.text(d) for d in self]
        lines.append(f"{self.checked} saved tensors checked, {len(self.unchecked)} nodes not")
        lines += [f"  not checked: {line}" for line in self.unchecked[:20]]
        return "\n".join(lines)

    __repr__ = __str__


def check(loss: Any, recording: Recording | None) -> Checked:
    """gradext.check_backward."""
    import torch

    from gradext import watch
    from gradext.diagnosis import graph as graphs
    from gradext.diagnosis import silent_writes, stale
    from gradext.diagnosis.naming import Names

    roots = [loss] if isinstance(loss, torch.Tensor) else loss
    if not isinstance(roots, (list, tuple)) or not all(
        isinstance(root, torch.Tensor) for root in roots
    ):
        raise TypeError(
            "gradext.check_backward: expected a tensor or a list of tensors, got "
            f"{type(loss).__module__}.{type(loss).__qualname__}"
        )
    if recording is None and watch.recordings:
        recording = watch.recordings[-1]
    data = recording.data if recording is not None else _no_data()
    graph = read(roots)
    names = Names(watch.frames_above())
    found = stale.all_stale(graph, graph.stale(), data, names, failed=False)
    found += graphs.freed(data, graph, names)
    found += silent_writes.silent(data, graph, names)
    unchecked = []
    for node in graph.nodes:
        if node.hooked:
            unchecked.append(
                f"{node.name}: {', '.join(node.hooked)} is packed by saved-tensor hooks "
                "(checkpointing, offloading), and unpacking would run them"
            )
        if not node.is_readable:
            unchecked.append(f"{node.name}: a C++ autograd Function shows nothing of what it saved")
    if not graph.whole:
        unchecked.append(
            f"the graph is too large or too deep: the nearest {len(graph.nodes)} nodes were read"
        )
    return Checked(found, sum(len(node.saved) for node in graph.nodes), unchecked)


def _no_data() -> Data:
    from gradext.events import Data, empty_snapshot

    return Data(empty_snapshot(), {})
