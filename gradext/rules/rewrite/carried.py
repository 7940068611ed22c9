"""Where to cut the history of a tensor that one iteration leaves to the next.

After the backward that used the graph up, in a function that still runs and knows the tensor: cut
at the top of a forward, a history that one backward goes through would be cut as well. Reads
running frames and source text; keeps none of them.
"""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Sequence
from typing import Any

from gradext.base import package, raw
from gradext.diagnosis.model import Frame, Site
from gradext.objects import naming
from gradext.rules.rewrite import detach, exchanged, order_of_calls
from gradext.rules.wording.held_by_modules import module_with
from gradext.source import sites, statements, syntax

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*|\[('[^']*'|\d+)\])*")


def cut(name: str, live: Sequence[Any]) -> str | None:
    """What to type, and where: "`state = state.detach()` below train.py:42"; None if unknown.

    Args:
        name: how the tensor is reached: `state`, `hidden[0]`, `net.lif.v`.
        live: the frames that run, innermost first; one of them called backward().
    """
    if not _PATH.fullmatch(name):
        return None
    root = re.split(r"[.\[]", name)[0]
    for frame in live:
        if not package.is_user_file(frame.f_code.co_filename) or root == "self":
            continue
        function = frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else ""
        place = Frame(frame.f_code.co_filename, frame.f_lineno, function)
        loop = _loop_around(place)
        if loop is None or not _is_known(frame, root):
            continue
        if "." not in name:
            told = _of_variable(_item_of(frame, name), root, place, loop, frame)
            if told is not None:
                return told
            continue
        owner = name.rpartition("[")[0] if name.endswith("]") else None
        if exchanged.value_at(frame, name) is None or (
            owner and _all_tensors(exchanged.value_at(frame, owner))
        ):
            return f"`{_detached(name)}` below {_below(place)}"
        told = exchanged.detached_in(frame, name, whole=True)
        return f"`{told}` below {_below(place)}" if told is not None else None
    return None


def cut_entries(name: str, live: Sequence[Any]) -> str | None:
    """cut() of an entry `states[i]`: of all entries, in the container that a loop's frame has.

    They are put into the container itself, for whoever has it under another name.
    """
    owner = name.split("[")[0]
    if "[" not in name or not _PATH.fullmatch(owner):
        return None
    root, *attributes = owner.split(".")
    for frame in live:
        if not package.is_user_file(frame.f_code.co_filename):
            continue
        place = Frame(frame.f_code.co_filename, frame.f_lineno, "")
        if _loop_around(place) is None or not _is_known(frame, root):
            continue
        held = dict(naming.locals_of(frame))
        value = held.get(root, frame.f_globals.get(root))
        for attribute in attributes:
            value = raw.attribute(value, attribute)
        each = _each_detached(value)
        if each is None:
            continue
        entries = f"{{k: {each} for k, t in {owner}.items()}}"
        told = f"{owner}.update({entries})"
        if type(value) is list:
            told = f"{owner}[:] = [{each} for t in {owner}]"
        return f"`{told}` below {_below(place)}"
    return None


def cleared(name: str, made: Site, linking: Site | None, live: Sequence[Any]) -> str | None:
    """For an entry of a list that each round appends to, and of which all entries are used.

    "`agent.log_probs.clear()` below train.py:21"; None where the list is not filled so, or a line
    asks for certain entries: the last one, which is carried on.
    """
    owner = name.rpartition("[")[0]
    if not owner or not name.endswith("]") or not _PATH.fullmatch(name) or linking is None:
        return None
    last = owner.rpartition(".")[2]
    if not any(_is_appended_to(place, last) for place in (made, linking)):
        return None
    if not _goes_over(linking, last):
        return None
    root = re.split(r"[.\[]", owner)[0]
    for frame in live:
        if not package.is_user_file(frame.f_code.co_filename) or root == "self":
            continue
        place = Frame(frame.f_code.co_filename, frame.f_lineno, "")
        if not _is_known(frame, root):
            continue
        if type(exchanged.value_at(frame, owner)) not in (list, collections.deque):
            return None
        return f"`{owner}.clear()` below {_below(place)}"
    return None


def _is_appended_to(place: Site, last: str) -> bool:
    """Whether the file of a line appends to a list of this name, and assigns none of its items."""
    tree = syntax.around(place.frame.file, place.frame.line)
    grows = False
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, (ast.Name, ast.Attribute)) and _last_of(node.value) == last:
                return False
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if node.func.attr in GROWING and isinstance(owner, (ast.Name, ast.Attribute)):
                grows = grows or _last_of(owner) == last
    return grows


# Methods of a list or a deque that add to it.
GROWING = ("append", "extend", "appendleft")
# Decorators of functools that keep what a function has returned.
CACHES = ("lru_cache", "cache", "cached_property")


def _goes_over(linking: Site, last: str) -> bool:
    """Whether a line, or a loop around it, reads a list as a whole."""
    held = statements.around(linking)
    read: list[ast.AST] = [node.iter for node in held if isinstance(node, (ast.For, ast.AsyncFor))]
    read += [held[-1]] if held and not isinstance(held[-1], statements.BLOCKS) else []
    nodes = [node for each in read for node in ast.walk(each)]
    parts = {id(node.value) for node in nodes if isinstance(node, (ast.Subscript, ast.Attribute))}
    whole = False
    for node in nodes:
        if isinstance(node, (ast.Name, ast.Attribute)) and _last_of(node) == last:
            whole = whole or id(node) not in parts
    return whole


def _last_of(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _each_detached(container: Any) -> str | None:
    """What an entry `t` becomes without history; None where the entries are not alike."""
    if type(container) is not dict and type(container) is not list:
        return None
    entries = [*(container.values() if type(container) is dict else container)]
    if entries and all(naming.identity_of(entry) is not None for entry in entries):
        return "t.detach()"
    kinds = {type(entry) for entry in entries}
    if kinds not in ({tuple}, {list}):
        return None
    if not all(naming.identity_of(part) is not None for entry in entries for part in entry):
        return None
    return "tuple(s.detach() for s in t)" if kinds == {tuple} else "[s.detach() for s in t]"


def _is_known(frame: Any, root: str) -> bool:
    code = frame.f_code
    return root in code.co_varnames or root in code.co_freevars or root in frame.f_globals


def _item_of(frame: Any, name: str) -> str:
    """The name, or that of an item where it is a tuple, a list or a dict by now."""
    held = dict(naming.locals_of(frame))
    value = held[name] if name in held else frame.f_globals.get(name)
    if type(value) in (tuple, list) and _all_tensors(value):
        return f"{name}[0]"
    return f"{name}['']" if type(value) is dict else name


def _all_tensors(value: Any) -> bool:
    """Whether a list, a tuple or a dict has tensors only."""
    if type(value) not in (tuple, list, dict) or not value:
        return False
    entries = value.values() if type(value) is dict else value
    return all(naming.identity_of(entry) is not None for entry in entries)


def _loop_around(place: Frame) -> ast.For | ast.While | None:
    loops = [n for n in statements.around(Site(place)) if isinstance(n, (ast.For, ast.While))]
    return loops[-1] if loops else None


def _of_variable(name: str, root: str, place: Frame, loop: ast.stmt, frame: Any) -> str | None:
    """A variable that the loop around the running line binds again."""
    bound = [
        node
        for node in ast.walk(loop)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and root in _targets(node)
    ]
    if not bound:
        return None
    if name == root and exchanged.value_at(frame, root) is not None:
        told = exchanged.detached_in(frame, root)
        if told is None:
            return None
        if told != f"{root} = {root}.detach()":
            return f"`{told}` below {_below(place)}"
    for node in bound:
        if not isinstance(node, ast.Assign) or root != name or len(node.targets) > 1:
            continue
        # Given on to the next iteration by its name, and used for nothing else there.
        if isinstance(node.value, (ast.Name, ast.Attribute)) and node.lineno > place.line:
            where = sites.where(Frame(place.file, node.lineno, place.function))
            return f"`{root} = {ast.unparse(node.value)}.detach()` at {where}"
    return f"`{_detached(name)}` below {_below(place)}"


def _detached(name: str) -> str:
    """The assignment that cuts a tensor's history, and that of its neighbours in a container."""
    found = re.fullmatch(r"(.+)\[(\d+|'[^']*')\]", name)
    if found is None:
        return f"{name} = {name}.detach()"
    owner = found[1]
    if found[2].isdigit():
        return f"{owner} = type({owner})(t.detach() for t in {owner})"
    return f"{owner} = {{k: t.detach() for k, t in {owner}.items()}}"


def _targets(node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}


def _below(place: Frame) -> str:
    """The end of the statement that runs at a line."""
    held = syntax.statements(place.file, place.line)
    last = held[-1].end_lineno if held else None
    return sites.where(Frame(place.file, last or place.line, place.function))


def running_sum(name: str, made: Site, first: Site) -> str | None:
    """What starts a sum anew below the backward() that used it up."""
    if not detach.is_running_sum(made, name) or made.frame.function != first.frame.function:
        return None
    return f"`{name} = {name}.detach()` below {_below(first.frame)}"


def once(first: Site, again: Site) -> str | None:
    """`(a + b).backward()` in place of `a.backward()` and, in the same block, `b.backward()`."""
    one, other = _owner_of_backward(first), _owner_of_backward(again)
    if one is None or other is None or one == other:
        return None
    if order_of_calls.may_move_below(first, again.frame) is None:
        return None
    where = sites.where(again.frame)
    return f"add them, `({one} + {other}).backward()` at {where} in place of both calls"


def keeping_graph(place: Site) -> str | None:
    """`loss.backward(retain_graph=True)` for the line `loss.backward()`."""
    owner = _owner_of_backward(place)
    node = statements.statement(place)
    call = node.value if isinstance(node, ast.Expr) else None
    if owner is None or not isinstance(call, ast.Call):
        return None
    if any(word.arg in ("retain_graph", None) for word in call.keywords):
        return None
    given = [ast.unparse(part) for part in (*call.args, *call.keywords)]
    return f"`{owner}.backward({', '.join([*given, 'retain_graph=True'])})`"


def _owner_of_backward(place: Site) -> str | None:
    node = statements.statement(place)
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        return ast.unparse(call.func.value) if call.func.attr == "backward" else None
    return None


def path_of(made: Site, target: str) -> str:
    """`net.lif.v` for the `self.v` of the line that made it, if one module can be meant."""
    owner, _, attribute = target.partition(".")
    function = made.frame.function.split(".<locals>.")[-1]
    if owner == "self" and "." in function:
        found = module_with(function.rsplit(".", 2)[-2], attribute.split("[")[0].split(".")[0])
        if found is not None:
            return f"{found[0]}.{attribute}"
    return target
