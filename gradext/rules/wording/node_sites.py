"""Where the node of a graph was made, as a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradext.diagnosis.model import Site
from gradext.rules.graph_copy import Node
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data


def site_of(data: Data, node: Node, label: str) -> Site | None:
    if node.sequence is None:
        return None
    stack, _ = data.node_stack(node.thread, node.sequence)
    return sites.site(data.frames(stack), label=label)
