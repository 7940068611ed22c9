"""What to type instead: reads the culprit's statement and rewrites it.

Works on source text through `ast` only. Every function returns a sentence, specific to what the
line does, or None where it cannot read the line.
"""

from __future__ import annotations

import ast
import copy
import re

import torch

from gradext.base import op_names
from gradext.diagnosis.model import Site
from gradext.source import statements
from gradext.source.sites import where

_OPERATORS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Pow: "**", ast.MatMult: "@", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
    ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip


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


def _replacement(node: ast.stmt) -> str | None:
    """`x = torch.zeros_like(x)` for `x.zero_()`, and the like."""
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
    if isinstance(called.value, ast.Subscript):
        owner = ast.unparse(called.value.value)
        return f"{owner} = {owner}.clone()`, then `{ast.unparse(node)}"
    if text.startswith("{1}") and not isinstance(
        node.value.args[0], (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
    ):
        values[1] = f"({values[1]})"
    return f"{values[0]} = {text.format(*values)}"


def _is_own_write(site: Site, word: str) -> bool:
    """Whether the statement itself wrote, and not a library function that it calls."""
    return not site.stack and (site.op is None or word in op_names.short(site.op))


def out_of_place(site: Site) -> str | None:
    """How the statement reads without the in-place write; None where it is no plain write."""
    node = statements.statement(site)
    if node is None:
        return None
    line = where(site.frame)
    if isinstance(node, ast.AugAssign):
        operator = _OPERATORS.get(type(node.op))
        if operator is not None and _is_own_write(site, _AUGMENTED.get(type(node.op), "")):
            return _augmented(site, node, operator)
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target_node = node.targets[0]
        if isinstance(target_node, ast.Subscript) and _is_own_write(site, ""):
            owner = ast.unparse(target_node.value)
            return (
                f"copy before the write, at {line}: `{owner} = {owner}.clone()`, then "
                f"`{ast.unparse(node)}` (or build the result with torch.where, masked_fill, "
                "index_put or index_copy)"
            )
    if isinstance(node, statements.BLOCKS):
        return None
    replaced = _replacement(node)
    if replaced is not None:
        return f"at {line} make a new tensor: `{replaced}`"
    change = _OutOfPlace()
    rewritten = change.visit(copy.deepcopy(node))
    if change.out:
        target = ast.unparse(change.out[0])
        if isinstance(rewritten, ast.Expr):
            return f"at {line} drop `out=`: `{target} = {ast.unparse(rewritten.value)}`"
        return f"at {line} drop `out={target}`: `{ast.unparse(rewritten)}`"
    if change.methods:
        if not isinstance(rewritten, ast.Expr):
            return f"at {line} make a new tensor: `{statements.first_line(ast.unparse(rewritten))}`"
        owner_node = statements.receiver(rewritten.value)
        owner, value = ast.unparse(owner_node), ast.unparse(rewritten.value)
        if isinstance(owner_node, ast.Subscript):
            whole = ast.unparse(owner_node.value)
            return (
                f"copy before the write, at {line}: `{whole} = {whole}.clone()`, then "
                f"`{ast.unparse(node)}`"
            )
        if isinstance(owner_node, ast.Name) and statements.loop_of(site, owner) is not None:
            return f"at {line} collect new tensors instead: `changed.append({value})`"
        return f"at {line} make a new tensor: `{owner} = {value}`"
    if change.inplace:
        return f"at {line} drop `inplace=True`: `{_assigned(rewritten)}`"
    return None


def _assigned(node: ast.stmt) -> str:
    """A call whose result nobody takes has to be assigned once it writes nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        owner = statements.receiver(node.value)
        if isinstance(owner, (ast.Name, ast.Attribute)) and not statements.is_namespace(owner):
            return f"{ast.unparse(owner)} = {ast.unparse(node.value)}"
    return statements.first_line(ast.unparse(node))


def _augmented(site: Site, node: ast.AugAssign, operator: str) -> str:
    line = where(site.frame)
    target, value = ast.unparse(node.target), ast.unparse(node.value)
    if not isinstance(node.value, (ast.Name, ast.Attribute, ast.Call, ast.Constant, ast.Subscript)):
        value = f"({value})"
    if isinstance(node.target, ast.Subscript):
        owner = ast.unparse(node.target.value)
        return (
            f"copy before the write, at {line}: `{owner} = {owner}.clone()`, then "
            f"`{target} {operator}= {value}`"
        )
    if isinstance(node.target, ast.Name) and statements.loop_of(site, target) is not None:
        return (
            f"at {line} collect new tensors instead: `changed.append({target} {operator} {value})`"
        )
    return f"at {line} make a new tensor: `{target} = {target} {operator} {value}`"


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
    """The statement under `torch.no_grad()` or `torch.inference_mode()`."""
    return f"`with torch.{mode}(): {statements.text_of(site) or '...'}`"
