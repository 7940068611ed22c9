"""What to type instead: reads the culprit's statement and rewrites it.

Works on source text through `ast` only. Every function returns a sentence, specific to what the
line does, or None where it cannot read the line or the change would not do what the line did.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradext.base import op_names, source_lines
from gradext.diagnosis.model import Site
from gradext.source import bindings, files, statements
from gradext.source.sites import where

# In-place methods with no out-of-place twin, and what does the same. {0}: the receiver, {1}: the
# first argument.
_REPLACEMENTS = {
    "zero_": "torch.zeros_like({0})",
    "fill_": "torch.full_like({0}, {1})",
    "copy_": "{1}.clone()",
    "uniform_": "torch.rand_like({0})",
    "normal_": "torch.randn_like({0})",
    "bernoulli_": "torch.bernoulli(torch.full_like({0}, {1}))",
    "fill_diagonal_": "torch.diagonal_scatter({0}, {0}.new_full({0}.diagonal().shape, {1}))",
}
# The op that a statement of augmented assignment calls; __imatmul__ does not write in place.
_AUGMENTED = {
    ast.Add: "add_", ast.Sub: "sub_", ast.Mult: "mul_", ast.Div: "div_", ast.FloorDiv: "floor_di",
    ast.Mod: "remainder_", ast.Pow: "pow_", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor",
    ast.LShift: "lshift", ast.RShift: "rshift",
}  # fmt: skip


COPY_BEFORE = "copy before the write"


class _Written(NamedTuple):
    """What out_of_place() has to know of the tensor that is written."""

    is_held: bool
    of_view: bool
    below_copy: str | None


class _OutOfPlace(ast.NodeTransformer):
    """Renames `x.mul_(y)` to `x.mul(y)`, drops `inplace=True` and `out=x`."""

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.out: list[ast.expr] = []
        self.inplace = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute):
            plain = node.func.attr[:-1]
            if (
                re.fullmatch(r"[a-z]\w*[^_]_", node.func.attr)
                and hasattr(torch.Tensor, plain)
                and plain not in {"requires_grad", "data"}
            ):
                self.methods.append(node.func.attr)
                node.func.attr = plain
        keep = []
        for keyword in node.keywords:
            if keyword.arg == "out":
                self.out.append(keyword.value)
            elif keyword.arg == "inplace" and isinstance(keyword.value, ast.Constant):
                self.inplace = self.inplace or bool(keyword.value.value)
            else:
                keep.append(keyword)
        node.keywords = keep
        return node


def _replacement(node: ast.stmt) -> tuple[ast.expr, str] | None:
    """(x, `torch.zeros_like(x)`) for `x.zero_()`, and the like."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return None
    called = node.value.func
    if not isinstance(called, ast.Attribute) or called.attr not in _REPLACEMENTS:
        return None
    if isinstance(called.value, ast.Call) or statements.is_namespace(called.value):
        return None
    text = _REPLACEMENTS[called.attr]
    values = [ast.unparse(called.value), *(ast.unparse(value) for value in node.value.args)]
    if "{1}" in text and len(values) < 2:
        return None
    if text.startswith("{1}") and not isinstance(
        node.value.args[0], (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
    ):
        values[1] = f"({values[1]})"
    return called.value, text.format(*values)


def _is_own_write(site: Site, word: str) -> bool:
    """Whether the statement itself wrote, and not a library function that it calls."""
    return not site.stack and (site.op is None or word in op_names.short(site.op))


def out_of_place(
    site: Site,
    ops: Sequence[str] = (),
    *,
    is_held: bool = False,
    of_view: bool = False,
    below_copy: str | None = None,
) -> str | None:
    """How the statement reads without the in-place write.

    None where it is no plain write, and where a new tensor would not reach all who are to see the
    write (bindings.is_rebindable).

    Args:
        ops: what the line did to the tensor that it wrote, where that was recorded.
        is_held: a module has the tensor as a parameter or a buffer: no attribute takes a new one.
        of_view: the write was refused, since it is to a view (see bindings.is_rebindable).
        below_copy: how the statement is to read below a copy of the whole, where not as it does.
    """
    written = _Written(is_held, of_view, below_copy)
    node = statements.statement(site)
    if node is None:
        return None
    line = where(site.frame)
    if isinstance(node, ast.AugAssign):
        word = _AUGMENTED.get(type(node.op))
        if word is not None and _is_own_write(site, word):
            new = ast.unparse(ast.BinOp(node.target, node.op, node.value))
            # A tensor's item is written back, as a second write of the same memory.
            is_item = bool(ops) and word in ops[0] and len(ops) == 1
            again = ast.unparse(node)
            return _instead(site, node.target, new, again, is_item=is_item, written=written)
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Subscript) and _is_own_write(site, ""):
            copied = _copied(site, target.value, ast.unparse(node), written=written)
            if copied is None or bindings.container_of(site, target.value) is not None:
                return copied
            return (
                f"{copied} (or build the result with torch.where, masked_fill, index_put or "
                "index_copy)"
            )
    if isinstance(node, statements.BLOCKS):
        return None
    replaced = _replacement(node)
    if replaced is not None:
        return _instead(site, *replaced, ast.unparse(node), is_item=False, written=written)
    change = _OutOfPlace()
    rewritten = change.visit(copy.deepcopy(node))
    if change.out:
        target_node = change.out[0]
        target_text = ast.unparse(target_node)
        if not _takes_new(site, target_node, written=written):
            return None
        if isinstance(rewritten, ast.Expr):
            return f"at {line} drop `out=`: `{target_text} = {ast.unparse(rewritten.value)}`"
        return f"at {line} drop `out={target_text}`: `{ast.unparse(rewritten)}`"
    if change.methods:
        if not isinstance(rewritten, ast.Expr):
            text = statements.first_line(ast.unparse(rewritten))
            if isinstance(rewritten, (ast.Assign, ast.AnnAssign, ast.Return)):
                return f"at {line} make a new tensor: `{text}`"
            return None
        owner, value = statements.receiver(rewritten.value), ast.unparse(rewritten.value)
        return _instead(site, owner, value, ast.unparse(node), is_item=False, written=written)
    if change.inplace:
        return f"at {line} drop `inplace=True`: `{_assigned(rewritten)}`"
    return None


def returned(site: Site) -> str | None:
    """For a hook that writes into what it is given: autograd takes what a hook returns instead.

    A new tensor under the hook's own name for it would reach nobody. None where the function
    returns something as it is, or writes something else than what it was given.
    """
    node, function = statements.statement(site), bindings.function_of(site)
    if node is None or function is None:
        return None
    if any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(function)):
        return None
    target, new = _written(node)
    root = bindings.root_of(target) if target is not None else None
    if target is None or not isinstance(root, ast.Name):
        return None
    if all(argument.arg != root.id for argument in function.args.args):
        return None
    line, name = where(site.frame), root.id
    last = max(n.end_lineno or 0 for n in ast.walk(function) if isinstance(n, ast.stmt))
    if new is not None and root is target and (node.end_lineno or node.lineno) == last:
        return f"return a new tensor from the hook, at {line}: `return {new}`"
    change = f"`{name} = {new}`" if new is not None and root is target else None
    change = change or f"`{name} = {name}.clone()`, then `{ast.unparse(node)}`"
    return (
        f"return a new tensor from the hook: at {line} {change}, and `return {name}` at the end of "
        f"`{function.name}`"
    )


def _written(node: ast.stmt) -> tuple[ast.expr | None, str | None]:
    """What a statement writes in place, and the value that it would have; None if not known."""
    if isinstance(node, ast.AugAssign):
        return node.target, ast.unparse(ast.BinOp(node.target, node.op, node.value))
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        return node.targets[0], None
    replaced = _replacement(node)
    if replaced is not None:
        return replaced
    change = _OutOfPlace()
    rewritten = change.visit(copy.deepcopy(node))
    if change.methods and isinstance(rewritten, ast.Expr):
        return statements.receiver(rewritten.value), ast.unparse(rewritten.value)
    return None, None


def value_of(node: ast.stmt) -> str | None:
    """`y.clamp(max=1)` for the statement `y.clamp_(max=1)`; None for what is no such call."""
    replaced = _replacement(node)
    if replaced is not None:
        return replaced[1]
    change = _OutOfPlace()
    rewritten = change.visit(copy.deepcopy(node))
    if change.methods and isinstance(rewritten, ast.Expr):
        return ast.unparse(rewritten.value)
    return None


def _takes_new(site: Site, target: ast.expr, *, written: _Written) -> bool:
    """Whether `target = ...` does what a write to it was to do."""
    if isinstance(target, ast.Attribute) and written.is_held:
        return False
    if isinstance(target, ast.Subscript):
        return bindings.container_of(site, target.value) in ("dict", "list")
    return bindings.is_rebindable(site, target, of_view=written.of_view)


def _instead(
    site: Site, target: ast.expr, new: str, write: str, *, is_item: bool, written: _Written
) -> str | None:
    """`target = new` in place of the statement `write`.

    Args:
        is_item: known to be an item of a dict or a list, and no part of a tensor.
    """
    line, text = where(site.frame), ast.unparse(target)
    if isinstance(target, ast.Subscript):
        if is_item or bindings.container_of(site, target.value) in ("dict", "list"):
            return f"at {line} make a new tensor: `{text} = {new}`"
        return _copied(site, target.value, write, written=written)
    if _takes_new(site, target, written=written):
        return f"at {line} make a new tensor: `{text} = {new}`"
    return _by_index(site, target, new)


def _copied(site: Site, owner: ast.expr, write: str, *, written: _Written) -> str | None:
    """A copy of the whole, and the write into it; None where nobody else would see the copy."""
    whole, kind = ast.unparse(owner), bindings.container_of(site, owner)
    if kind in ("dict", "list", "tuple") or isinstance(owner, ast.Call):
        return None  # what the statement writes is an item's memory, and not named by it
    if isinstance(owner, ast.Subscript):
        # A part of a part: of a tensor in a dict or a list, most of the time.
        if bindings.container_of(site, owner.value) not in ("dict", "list"):
            return None
    elif not _takes_new(site, owner, written=written):
        return None
    method = "copy" if kind == "array" else "clone"
    line = where(site.frame)
    write = written.below_copy or write
    return f"{COPY_BEFORE}, at {line}: `{whole} = {whole}.{method}()`, then `{write}`"


def _by_index(site: Site, target: ast.expr, new: str) -> str | None:
    """For an item of a list that a loop goes over: the list gets the new tensor."""
    loop = statements.loop_of(site, target.id) if isinstance(target, ast.Name) else None
    if loop is None or not isinstance(loop.target, ast.Name):
        return None
    if not isinstance(loop.iter, (ast.Name, ast.Attribute)):
        return None
    if bindings.container_of(site, loop.iter) != "list":
        return None
    items, name = ast.unparse(loop.iter), loop.target.id
    head = f"for i, {name} in enumerate({items}):"
    start = where(dataclasses.replace(site.frame, line=loop.lineno))
    return (
        f"put new tensors into the list: `{head}` at {start}, and `{items}[i] = {new}` at "
        f"{where(site.frame)}"
    )


def _assigned(node: ast.stmt) -> str:
    """A call whose result nobody takes has to be assigned once it writes nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        owner = statements.receiver(node.value)
        if isinstance(owner, (ast.Name, ast.Attribute)) and not statements.is_namespace(owner):
            return f"{ast.unparse(owner)} = {ast.unparse(node.value)}"
    return statements.first_line(ast.unparse(node))


def module_inplace(site: Site, op: str) -> str | None:
    """A library module that was built with inplace=True."""
    for frame in site.stack:
        path = frame.file.replace("\\", "/")
        if "/nn/modules/" in path and frame.function.endswith("forward"):
            kind = frame.function.rsplit(".", 2)[-2] if "." in frame.function else None
            name = op_names.short(op).rstrip("_")
            if kind in {None, "Module", "Sequential"}:
                continue
            if "inplace" in frame.code or name in frame.code or "F." in frame.code:
                kind = "Hardtanh or nn.ReLU6" if kind == "Hardtanh" else kind
                return (
                    f"build the nn.{kind} that runs inside {where(site.frame)} with inplace=False "
                    f"(it wrote with {op.rsplit('::', 1)[-1]})"
                )
    return None


def under(site: Site, mode: str) -> str:
    """The statement under `torch.no_grad()` or `torch.inference_mode()`, with those like it."""
    name = bindings.written_name(site)
    more = bindings.later_writes(site, name) if name is not None else []
    if more:
        last = where(dataclasses.replace(site.frame, line=more[-1].end_lineno or more[-1].lineno))
        told = f"`with torch.{mode}():` around the lines from {where(site.frame)} to {last}"
    else:
        told = f"`with torch.{mode}(): {statements.text_of(site) or '...'}`"
    file = site.frame.file
    is_file = not file.startswith("<") and not source_lines.typed(file)
    text = "".join(source_lines.getlines(file)) if is_file else ""
    if text and not files.knows_torch(text):
        told += ", and `import torch` at the top of that file"
    return told
