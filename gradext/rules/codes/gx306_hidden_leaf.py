"""GX306 of parameters that their module does not know: `parameters()` does not have them.

Modules and parameters in a plain list or dict, a tensor that was computed from a parameter
(`nn.Parameter(x).to(dtype)`), a tensor that requires grad and is no Parameter. Some programs hide a
teacher so. So these are told of only where the class makes them itself, all that the module knows
of and that gets gradients is stepped, and nobody clears what they get. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from gradext.base import package, raw, source_lines
from gradext.diagnosis.model import Diagnosis, Site
from gradext.objects import graph_rows, naming
from gradext.rules.rewrite import registered
from gradext.rules.rewrite.registered import Written
from gradext.rules.wording.lost_gradients import folded
from gradext.rules.wording.trained import Found, Leaf, Stacks, Stepping, Trained, Tree
from gradext.source import sites

_MOST_ITEMS = 512  # of one container
_OWN_OF_MODULE = 64  # entries of a module's `__dict__` that are looked at
_READS_GRADS = re.compile(r"\.grad\b(?!\s*\()")
_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_SILENCE = (
    "if they are to stay as they are, say so: `requires_grad_(False)`",
    "or end the line with `# gradext: ignore[GX306]`",
)


def found(now: Trained, data: Stacks, outputs: Any, known: Collection[int] = ()) -> Iterator[Found]:
    """What the modules of optimizers hold and do not know; of each line of a class once.

    Args:
        known: ids of leaves that are told of already, as what no optimizer has by mistake.
    """
    told: dict[Any, Found] = {}
    for tree in now.trees:
        filled = [leaf for leaf, found in tree.leaves.items() if found.is_filled]
        stepping = next((now.by_leaf[leaf] for leaf in filled if leaf in now.by_leaf), None)
        if stepping is None or any(k not in now.by_leaf and k not in known for k in filled):
            continue
        for path, module in tree.modules.values():
            if package.is_user_file(_file_of(type(module))):
                for held in _held(path, module):
                    one = _found(now, data, outputs, tree, stepping, held)
                    if one is not None:
                        same = told.setdefault(one.key, one)
                        same.leaves.update(one.leaves)
    yield from told.values()


def _file_of(kind: type) -> str:
    code = getattr(raw.class_attribute(kind, "forward"), "__code__", None)
    return code.co_filename if code is not None else "<frozen>"


@dataclasses.dataclass
class _Hidden:
    """What one attribute of a module holds that the module does not know.

    Attributes:
        items: (path, a module or a tensor) each. depth: how many containers are around them.
        has_names: of a dict whose keys may be names of submodules.
    """

    module: Any
    attribute: str
    items: list[tuple[str, Any]]
    depth: int = 0
    what: str = "list"
    has_names: bool = True


def _held(path: str, module: Any) -> Iterator[_Hidden]:
    own = [pair for pair in naming.items_in(raw.dict_of(module)) if pair[0] not in _OWN]
    for name, value in own[:_OWN_OF_MODULE]:
        at = naming.child_path(path, name)
        if issubclass(type(value), torch.Tensor):
            yield _Hidden(module, name, [(at, value)])
        elif type(value) in (list, tuple, dict) and value:
            hidden = _Hidden(module, name, [], what=type(value).__name__)
            _collect(hidden, at, value, 1)
            if hidden.items:
                yield hidden
    for name, value in naming.group_of(module, "_buffers"):
        yield _Hidden(module, name, [(naming.child_path(path, name), value)], what="buffer")


def _collect(hidden: _Hidden, path: str, value: Any, depth: int) -> None:
    pairs: Sequence[tuple[Any, Any]]
    if type(value) is dict:
        pairs = list(value.items())[:_MOST_ITEMS]
        names = [key for key, _ in pairs if type(key) is str and key and "." not in key]
        taken = [name for name in names if hasattr(torch.nn.ModuleDict, name)]
        if depth == 1:
            hidden.has_names = len(names) == len(pairs) and not taken
    else:
        pairs = list(enumerate(value[:_MOST_ITEMS]))
    for key, item in pairs:
        if not raw.is_plain(key):
            return
        at = f"{path}[{key!r}]"
        if issubclass(type(item), (torch.nn.Module, torch.Tensor)):
            hidden.items.append((at, item))
            hidden.depth = max(hidden.depth, depth)
        elif depth < 2 and type(item) in (list, tuple, dict):
            _collect(hidden, at, item, depth + 1)


def _found(
    now: Trained, data: Stacks, outputs: Any, tree: Tree, stepping: Stepping, held: _Hidden
) -> Found | None:
    leaves: dict[int, Leaf] = {}
    kinds: set[str] = set()
    modules = 0
    is_computed = False
    for path, item in held.items:
        if issubclass(type(item), torch.nn.Module):
            if raw.dict_of(item).get("training") is not True:
                return None
            below = Tree(path, item).leaves
            modules += 1
            kinds.add(type(item).__name__)
        else:
            who = naming.identity_of(item)
            if who is None or not who.requires_grad or who.is_inference:
                continue
            if not who.is_leaf:
                who = _only_leaf(who, outputs) if not held.depth else None
                is_computed = True
            below = {who.id: Leaf(path, who)} if who is not None else {}
            kinds.add("Parameter")
            if type(item) is torch.Tensor and not is_computed and _reads_grads(now, held.module):
                return None
        if any(leaf in now.by_leaf or leaf in now.registered for leaf in below):
            return None
        leaves |= {leaf: one for leaf, one in below.items() if one.is_filled}
    if not leaves or modules == 1:  # one teacher, say, that is to be hidden
        return None
    written = _written(held, kinds, bool(modules))
    if written is None:
        return None
    site = Site(written.frame, label=_label(held, bool(modules), is_computed))
    made = now.site_of(data, stepping, "has only what the module knows")
    say = _Said(held, tree.name, site, written, made, now.called(stepping), is_computed)
    key = ("hidden", *sites.line_of(site), held.attribute)
    return Found(key, leaves, say, stepping, keeps_gradient=True)


def _written(held: _Hidden, kinds: set[str], of_modules: bool) -> Written | None:
    if not held.depth:
        return registered.tensor(type(held.module), held.attribute)
    return registered.container(
        *(type(held.module), held.attribute, "Module" if of_modules else "Parameter", kinds),
        depth=held.depth,
        has_names=held.has_names,
    )


def _only_leaf(who: naming.Identity, outputs: Any) -> naming.Identity | None:
    """The one leaf that a tensor in the graph of `outputs` was computed from."""
    from gradext.rules import graph_copy

    graph = graph_copy.read(outputs)
    at = next((node for node in graph.nodes if node.id == who.node), None)
    if at is None:
        return None
    rows, whole = graph_copy.rows_below(outputs)
    made = at.thread, at.sequence
    pending = [k for k, row in enumerate(rows) if graph_rows.key(row) == made]
    seen: set[int] = set()
    leaves = []
    while pending and whole:
        k = pending.pop()
        if k in seen or k < 0:
            continue
        seen.add(k)
        if graph_rows.is_leaf(rows[k]):
            leaves.append(naming.identity_of(rows[k][graph_rows.NODE].variable))
        pending += rows[k][graph_rows.FOLLOWING]
    return leaves[0] if len(leaves) == 1 and len(seen) < 16 else None


def _reads_grads(now: Trained, module: Any) -> bool:
    """Whether the program reads a `.grad`: what it computes from a gradient is its own."""
    files = {frame.f_code.co_filename for frame in now.live} | {_file_of(type(module))}
    return any(
        _READS_GRADS.search(line)
        for file in files
        if package.is_user_file(file)
        for line in source_lines.getlines(file)
    )


def _label(held: _Hidden, of_modules: bool, is_computed: bool) -> str:
    if held.depth:  # gradext.rules.rewrite.strategies.trained reads it
        of = "modules" if of_modules else "parameters"
        return f"a plain {held.what} of {of}, into which parameters() does not look"
    if is_computed:
        return "computed from a parameter, and none itself"
    return "a buffer that requires grad" if held.what == "buffer" else "a tensor, and no Parameter"


@dataclasses.dataclass(frozen=True)
class _Said:
    """Says that a module does not know of parameters that it uses."""

    held: _Hidden
    root: str
    site: Site
    written: Written
    made: Site | None
    optimizer: str
    is_computed: bool

    def __call__(self, names: Sequence[str], backward: Site | None) -> Diagnosis:
        several = len(names) > 1
        are, they, them = ("are", "they", "them") if several else ("is", "it", "it")
        at = sites.where(self.site.frame)
        if self.held.depth:
            why = (
                f"{they} {are} in a plain {self.held.what} of `{type(self.held.module).__name__}`"
                f", {at}"
            )
        elif self.is_computed:
            why = (
                f"{at} keeps what it computes from a parameter, and gradients go to that one, "
                "which has no other name"
            )
        elif self.held.what == "buffer":
            why = f"it is a buffer, {at}, and no parameter"
        else:
            why = f"it is a plain tensor that requires grad, {at}, and no `nn.Parameter`"
        return Diagnosis(
            code="GX306",
            message=(
                f"{folded(names)} {are} not trained: {why}. So `{self.root}.parameters()` does "
                f"not have {them}, and {self.optimizer} does not step {them}."
            ),
            culprits=(self.site,),
            victims=sites.distinct([self.made, backward]),
            fix=self._fix(at),
            notes=_SILENCE,
        )

    def _fix(self, at: str) -> str:
        new = self.written.new
        if new is None:
            return (
                f"keep them in a `torch.nn.ModuleList` or `torch.nn.ModuleDict` (keys are "
                f"texts) instead, at {at}: what is in one is registered"
            )
        if len(new) > _MOST_TEXT or "\n" in new:
            called = new.partition(" = ")[2].partition("(")[0]
            return f"register them: put `{called}(...)` around the value, at {at}"
        return f"register {'them' if self.held.depth else 'it'}, at {at}: `{new}`"


_MOST_TEXT = 160
