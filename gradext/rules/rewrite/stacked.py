"""`torch.tensor([[c, -s], [s, c]])`, which copies numbers, as a stack of the tensors themselves.

Works on source text through `ast` only.
"""

from __future__ import annotations

import ast
import copy
import re

from gradext.diagnosis.model import Site
from gradext.source import statements, syntax

_COPIES = ("tensor", "as_tensor")
_MOST_DEEP = 3
_NAMES = ("v", "row", "rows")


def around(deep: int, torch: str = "torch", given: str = "") -> tuple[str, str]:
    """What stands before and after a list of lists, `deep` in each other, so that it is stacked.

    `torch.as_tensor` gives a tensor itself back, with its history, and makes one of a number.

    Args:
        deep: 1 for `[a, b]`, 2 for `[[a, b], [c, d]]`.
        given: further arguments of as_tensor(): "device=x.device".
    """
    each = f"{torch}.as_tensor({_NAMES[0]}{f', {given}' if given else ''})"
    for level in range(deep - 1):
        each = f"{torch}.stack([{each} for {_NAMES[level]} in {_NAMES[level + 1]}])"
    return f"{torch}.stack([{each} for {_NAMES[deep - 1]} in ", "])"


def in_place_of_copy(site: Site) -> str | None:
    """The statement with a stack in place of its one torch.tensor() of a list that is written out.

    None where the depth of the list is not to be seen: an element may be a list by its name.
    """
    node = copy.deepcopy(statements.statement(site))
    if node is None or isinstance(node, statements.BLOCKS):
        return None
    calls = statements.method_calls(node, _COPIES)
    if len(calls) != 1 or len(calls[0].args) != 1:
        return None
    call, listed = calls[0], calls[0].args[0]
    deep = depth(listed)
    words = [word for word in call.keywords if word.arg != "requires_grad"]
    if not deep or any(word.arg not in ("dtype", "device") for word in words):
        return None
    if re.search(r"\b(float|int)\(|\.(item|detach|data|tolist|numpy)\b", ast.unparse(listed)):
        return None  # what its elements are has no history before it is copied
    tree = syntax.around(site.frame.file, site.frame.line)
    if tree is None or _lists(tree) & {n.id for n in ast.walk(listed) if isinstance(n, ast.Name)}:
        return None
    given = ", ".join(f"{word.arg}={ast.unparse(word.value)}" for word in words)
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if not isinstance(owner, ast.Name):
        return None
    before, after = around(deep, owner.id, given)
    stack = ast.parse(f"{before}{ast.unparse(listed)}{after}", mode="eval").body
    assert isinstance(stack, ast.Call)  # for the type checker
    call.func, call.args, call.keywords = stack.func, stack.args, []
    text = statements.first_line(ast.unparse(ast.fix_missing_locations(node)))
    return None if text.endswith("...") else text


def depth(node: ast.AST) -> int:
    """How many lists are in each other, 2 for `[[a, b], [c, d]]`; 0 where that is not seen."""
    if not isinstance(node, (ast.List, ast.Tuple)) or not node.elts:
        return 0
    inner = [isinstance(element, (ast.List, ast.Tuple)) for element in node.elts]
    if not any(inner):
        kinds = (ast.Starred, ast.ListComp, ast.GeneratorExp)
        return 0 if any(isinstance(element, kinds) for element in node.elts) else 1
    depths = {depth(element) for element in node.elts}
    deep = depths.pop()
    return 0 if depths or not deep or deep == _MOST_DEEP else deep + 1


def _lists(tree: ast.AST) -> set[str]:
    """The names that are given a list somewhere."""
    kinds = (ast.List, ast.ListComp, ast.Tuple)
    return {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, kinds)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
