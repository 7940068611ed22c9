"""What to type instead: reads the culprit's statement and rewrites it.

Works on source text through `ast` only. Every function returns a sentence, specific to what the
line does, or None where it cannot read the line.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import itertools
import re

import torch

from gradext.diagnosis.model import Frame, Site
from gradext.source import syntax
from gradext.source.sites import where

_OPERATORS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Pow: "**", ast.MatMult: "@", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
    ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip


BLOCKS = (
    *(ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
)  # fmt: skip
# Methods without a namesake that makes a new tensor: what does the same, from (owner, arguments).
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


def statement(site: Site) -> ast.stmt | None:
    """The innermost statement at the site's line."""
    if syntax.around(site.frame.file, site.frame.line) is None:
        try:
            body = ast.parse(site.frame.code).body
        except (SyntaxError, ValueError):
            return None
        return body[0] if body else None
    best: ast.stmt | None = None
    for node in _statements(site):
        if best is None or _span(node) <= _span(best):
            best = node
    return best


def _statements(site: Site) -> list[ast.stmt]:
    """Those around the site's line, outermost first; a decorator is no part of what it is on."""
    line = site.frame.line
    found = syntax.statements(site.frame.file, line)
    return [node for node in found if node.lineno <= line]


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno


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


def _receiver(node: ast.expr) -> ast.expr:
    """`plane` of `plane.sub_(m).div_(s)`; `x` of `torch.relu_(x)` and `F.relu(x)`."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        node = node.args[0] if _is_namespace(owner) and node.args else owner
    return node


def _is_namespace(node: ast.expr) -> bool:
    """Whether an expression is torch, or a module of it: its functions take the tensor first."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in {"torch", "F", "nn", "functional", "init"}


def _copy(node: ast.stmt) -> ast.stmt:
    return copy.deepcopy(node)


def _replacement(node: ast.stmt) -> str | None:
    """`x = torch.zeros_like(x)` for `x.zero_()`, and the like."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return None
    called = node.value.func
    if not isinstance(called, ast.Attribute) or called.attr not in _REPLACEMENTS:
        return None
    if isinstance(called.value, ast.Call) or _is_namespace(called.value):
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
    return not site.stack and (site.op is None or word in site.op.rsplit("::", 1)[-1])


def _loop_of(site: Site, name: str) -> ast.For | None:
    """The for loop around the site's line whose variable is `name`: a new value reaches nobody."""
    found = None
    for node in _statements(site):
        if isinstance(node, ast.For) and any(
            isinstance(n, ast.Name) and n.id == name for n in ast.walk(node.target)
        ):
            found = node
    return found


def out_of_place(site: Site) -> str | None:
    """How the statement reads without the in-place write; None where it is no plain write."""
    node = statement(site)
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
    if isinstance(node, BLOCKS):
        return None
    replaced = _replacement(node)
    if replaced is not None:
        return f"at {line} make a new tensor: `{replaced}`"
    change = _OutOfPlace()
    rewritten = change.visit(_copy(node))
    if change.out:
        target = ast.unparse(change.out[0])
        if isinstance(rewritten, ast.Expr):
            return f"at {line} drop `out=`: `{target} = {ast.unparse(rewritten.value)}`"
        return f"at {line} drop `out={target}`: `{ast.unparse(rewritten)}`"
    if change.methods:
        if not isinstance(rewritten, ast.Expr):
            return f"at {line} make a new tensor: `{_first_line(ast.unparse(rewritten))}`"
        owner_node = _receiver(rewritten.value)
        owner, value = ast.unparse(owner_node), ast.unparse(rewritten.value)
        if isinstance(owner_node, ast.Subscript):
            whole = ast.unparse(owner_node.value)
            return (
                f"copy before the write, at {line}: `{whole} = {whole}.clone()`, then "
                f"`{ast.unparse(node)}`"
            )
        if isinstance(owner_node, ast.Name) and _loop_of(site, owner) is not None:
            return f"at {line} collect new tensors instead: `changed.append({value})`"
        return f"at {line} make a new tensor: `{owner} = {value}`"
    if change.inplace:
        return f"at {line} drop `inplace=True`: `{_assigned(rewritten)}`"
    return None


def _assigned(node: ast.stmt) -> str:
    """A call whose result nobody takes has to be assigned once it writes nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        owner = _receiver(node.value)
        if isinstance(owner, (ast.Name, ast.Attribute)) and not _is_namespace(owner):
            return f"{ast.unparse(owner)} = {ast.unparse(node.value)}"
    return _first_line(ast.unparse(node))


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
    if isinstance(node.target, ast.Name) and _loop_of(site, target) is not None:
        return (
            f"at {line} collect new tensors instead: `changed.append({target} {operator} {value})`"
        )
    return f"at {line} make a new tensor: `{target} = {target} {operator} {value}`"


def _first_line(text: str) -> str:
    lines = text.splitlines()
    return lines[0] if len(lines) == 1 else lines[0] + " ..."


def module_inplace(site: Site, op: str) -> str | None:
    """A library module that was built with inplace=True."""
    for frame in site.stack:
        path = frame.file.replace("\\", "/")
        if "/nn/modules/" in path and frame.function.endswith("forward"):
            kind = frame.function.rsplit(".", 2)[-2] if "." in frame.function else None
            name = op.rsplit("::", 1)[-1].rstrip("_")
            if kind in {None, "Module", "Sequential"}:
                continue
            if "inplace" in frame.code or name in frame.code or "F." in frame.code:
                kind = "Hardtanh or nn.ReLU6" if kind == "Hardtanh" else kind
                return (
                    f"build the nn.{kind} that runs inside {where(site.frame)} with inplace=False "
                    f"(it wrote with {op.rsplit('::', 1)[-1]})"
                )
    return None


def is_optimizer_step(site: Site) -> bool:
    """Whether the write was an optimizer's, torch's or one of a class of the user's."""
    if any(
        "/torch/optim/" in frame.file.replace("\\", "/")
        or (frame.function.rsplit(".", 1)[-1] == "step" and not frame.is_user)
        for frame in site.stack
    ):
        return True
    return _own_step(site) is not None


def _own_step(site: Site) -> Frame | None:
    """The line that called a `step()` which the user wrote, where the write is within it."""
    frames = (site.frame, *site.callers)
    for inner, outer in itertools.pairwise(frames):
        if inner.function.rsplit(".", 1)[-1] == "step" and ".step(" in outer.code:
            return outer
    return None


def step_frame(site: Site) -> Frame:
    """Where the optimizer's step() was called."""
    return _own_step(site) or site.frame


def step_call(site: Site) -> str:
    """`judge_opt.step()` as it stands in the line."""
    code = step_frame(site).code
    found = re.search(r"[\w.\[\]\(\)'\"]*\.step\([^()]*\)", code)
    return found[0] if found else code or "the optimizer's step()"


def source(site: Site) -> str:
    """The site's statement on one line, without its comment."""
    node = statement(site)
    if node is None or isinstance(node, BLOCKS):
        return re.sub(r"\s+#[^'\"]*$", "", site.frame.code)
    return _first_line(ast.unparse(node))


def no_grad_block(site: Site) -> str:
    """The statement under torch.no_grad()."""
    return under(site, "no_grad")


def under(site: Site, mode: str) -> str:
    """The statement under `torch.no_grad()` or `torch.inference_mode()`."""
    return f"`with torch.{mode}(): {source(site) or '...'}`"


def loop_over(site: Site) -> str | None:
    """What the `for` statement at the site's line goes over, if that is one tensor's rows."""
    node = statement(site)
    if not isinstance(node, ast.For) or node.lineno != site.frame.line:
        return None
    over = node.iter
    if (
        isinstance(over, ast.Call)
        and isinstance(over.func, ast.Name)
        and over.func.id in {"zip", "enumerate"}
        and over.args
    ):
        over = over.args[0]
    return ast.unparse(over) if isinstance(over, (ast.Name, ast.Attribute)) else None


def written_name(site: Site) -> str | None:
    """What the statement calls the tensor that it writes: `radius` of `radius *= 2`."""
    node = statement(site)
    target: ast.expr | None = None
    if isinstance(node, ast.AugAssign):
        target = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0] if isinstance(node.targets[0], ast.Subscript) else None
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        out = next((k.value for k in node.value.keywords if k.arg == "out"), None)
        if out is not None:
            target = out
        elif isinstance(called, ast.Attribute) and called.attr.endswith("_"):
            target = _receiver(node.value)
    while isinstance(target, ast.Subscript):
        target = target.value
    return ast.unparse(target) if isinstance(target, (ast.Name, ast.Attribute)) else None


def is_running_sum(site: Site, name: str) -> bool:
    """`name += x` or `name = name + x`."""
    node = statement(site)
    if isinstance(node, ast.AugAssign):
        return isinstance(node.op, ast.Add) and ast.unparse(node.target) == name
    if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
        value = node.value
        while isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            if name in (ast.unparse(value.left), ast.unparse(value.right)):
                return True
            value = value.left
    return False


def is_step_along(step: Site, grad: Site) -> bool:
    """Whether a line adds to the very tensor that a call of autograd.grad differentiated by."""
    node, call = statement(step), statement(grad)
    value = getattr(node, "value", None)
    if node is None or call is None or not isinstance(value, ast.expr):
        return False
    inputs: set[str] = set()
    for part in ast.walk(call):
        if isinstance(part, ast.Call) and ast.unparse(part.func).rsplit(".", 1)[-1] == "grad":
            given = [k.value for k in part.keywords if k.arg == "inputs"] or part.args[1:2]
            for item in given:
                inputs |= {ast.unparse(n) for n in ast.walk(item) if isinstance(n, ast.expr)}
    terms = [value] if not isinstance(node, ast.AugAssign) else [value, node.target]
    direct: set[str] = set()
    while terms:
        term = terms.pop()
        if isinstance(term, ast.BinOp) and isinstance(term.op, (ast.Add, ast.Sub)):
            terms += [term.left, term.right]
        elif isinstance(term, (ast.Name, ast.Attribute, ast.Subscript)):
            direct.add(ast.unparse(term))
    return bool(inputs & direct)


def without_call(site: Site, name: str) -> str | None:
    """The statement without `.detach()` (or `.data`); "" where it is nothing else, None unknown."""
    node = statement(site)
    if node is None or isinstance(node, BLOCKS):
        return None
    change = _Without(name)
    rewritten = change.visit(_copy(node))
    if not change.count:
        return None
    if isinstance(rewritten, ast.Expr) and not any(
        isinstance(n, ast.Call) for n in ast.walk(rewritten)
    ):
        return ""
    if isinstance(rewritten, ast.Assign) and len(rewritten.targets) == 1:
        target, value = ast.unparse(rewritten.targets[0]), ast.unparse(rewritten.value)
        if target == value:
            return ""  # `x = x` is left of `x = x.detach()`
    text = _first_line(ast.unparse(rewritten))
    return text if change.count == 1 and not text.endswith("...") else None


_MAKES_LEAVES = {"Variable", "tensor", "as_tensor", "Tensor", "Parameter"}


class _Without(ast.NodeTransformer):
    """Drops `.name()`, and `.data` where that is the name."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == self.name and self.name != "data":
            self.count += 1
            return called.value
        rebuilt = ast.unparse(called).rsplit(".", 1)[-1] in _MAKES_LEAVES and node.args
        if self.count and rebuilt and any(k.arg == "requires_grad" for k in node.keywords):
            return node.args[0]  # the value itself, and not a new leaf of it
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == self.name == "data":
            self.count += 1
            return node.value
        return node


def cloned_value(site: Site) -> str | None:
    """`h = f(x).clone()` for `h = f(x)`; `return f(x).clone()` for `return f(x)`."""
    node = statement(site)
    if isinstance(node, ast.Return) and node.value is not None:
        return f"return {ast.unparse(node.value)}.clone()"
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return f"{ast.unparse(node.targets[0])} = {ast.unparse(node.value)}.clone()"
    return None


def assigned_names(site: Site) -> list[str]:
    """The targets of the assignment at the site's line: `out` and `h` of `out, h = f(x)`."""
    node = statement(site)
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = list(node.targets)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        targets = [node.target]
    found = []
    while targets:
        target = targets.pop(0)
        if isinstance(target, (ast.Tuple, ast.List)):
            targets = [*target.elts, *targets]
        elif isinstance(target, (ast.Name, ast.Attribute, ast.Subscript)):
            found.append(ast.unparse(target))
    return found


def carried_name(made: Site, linking: Site | None) -> str | None:
    """What the line of `made` assigns and that of `linking` reads: `h` of `o, h = rnn(x, h)`."""
    names = assigned_names(made)
    node = statement(linking) if linking is not None else None
    value = getattr(node, "value", None)
    if isinstance(node, ast.AugAssign):
        return ast.unparse(node.target) if ast.unparse(node.target) in names else None
    read = {
        ast.unparse(part)
        for part in (ast.walk(value) if isinstance(value, ast.expr) else ())
        if isinstance(part, (ast.Name, ast.Attribute, ast.Subscript))
    }
    both = [name for name in names if name in read]
    if both:
        return both[0]
    return names[0] if len(names) == 1 else None


def assigning(made: Site, name: str | None, running: set[tuple[str, str]] | None = None) -> Site:
    """The site moved out to the caller's line that gives the result its name, if there is one.

    `running` are (file, name) of the functions that have not returned, and so still hold it: their
    lines come before those of others that use the same name.
    """
    if name is None:
        return made
    if running:
        frames = (made.frame, *made.callers)
        held = [i for i, f in enumerate(frames) if (f.file, f.function.split(".")[-1]) in running]
        for index in held:
            place = dataclasses.replace(made, frame=frames[index])
            if index and name.split("[")[0] in (n.split("[")[0] for n in assigned_names(place)):
                inner = (*reversed(frames[1:index]), made.frame, *made.stack)
                return dataclasses.replace(place, stack=inner, callers=frames[index + 1 :])
    wanted = name.split("[")[0]
    attribute = f".{wanted.rsplit('.', 1)[-1]}" if "." in wanted else None
    for index, frame in enumerate((made.frame, *made.callers)):
        place = dataclasses.replace(made, frame=frame)
        if any(
            given.split("[")[0] == wanted or (attribute and given.endswith(attribute))
            for given in assigned_names(place)
        ):
            if index == 0:
                return made
            inner = (*reversed(made.callers[: index - 1]), made.frame, *made.stack)
            return dataclasses.replace(place, stack=inner, callers=made.callers[index:])
    return made


def detached(name: str | None, made: Site) -> str:
    """How to cut the history of what a line made and another iteration uses."""
    if name is None:
        return "`.detach()` it"
    if name.endswith(":]"):
        name = name.split("[")[0]  # a slice of it was assigned to
    found = re.fullmatch(r"([\w.]+)\[\d+\]", name)
    several = len(assigned_names(made)) > 1
    if found or several:
        owner = found[1] if found else name
        return f"`.detach()` every tensor in `{owner}`"
    return f"`{name} = {name}.detach()`"
