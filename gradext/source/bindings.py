"""What a name stands for at a line, and who would see it bound to something else.

`x = x * 2` in place of `x *= 2` gives the name a new tensor: whoever holds the old one by another
name (the caller of a function, the list that a loop goes over) does not see that. Works on source
text through `ast` only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradext.diagnosis.model import Site
from gradext.source import statements, syntax

_Function = ast.FunctionDef | ast.AsyncFunctionDef

# Methods and functions of torch whose result is, or may be, a view of what they are given.
_VIEWS = {
    *("view", "view_as", "reshape", "flatten", "unflatten", "ravel", "t", "transpose", "permute"),
    *("movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "squeeze", "unsqueeze", "expand"),
    *("expand_as", "broadcast_to", "select", "narrow", "unfold", "diagonal", "detach", "alias"),
    *("split", "chunk", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "contiguous"),
    *("as_strided", "real", "imag", "view_as_real", "view_as_complex", "to", "float", "double"),
    *("as_tensor", "asarray", "from_numpy", "numpy", "requires_grad_"),
    # No views: what an object hands out of itself.
    *("get", "pop", "setdefault", "items", "values", "parameters", "buffers", "named_parameters"),
    *("state_dict", "data_ptr", "next", "getattr", "get_parameter", "get_buffer"),
}  # fmt: skip
_VIEW_ATTRIBUTES = {"T", "mT", "H", "mH", "real", "imag", "data"}
_LISTS = {"list", "sorted", "deque", "ParameterList", "ModuleList"}
_DICTS = {"dict", "OrderedDict", "defaultdict", "Counter", "vars", "locals", "state_dict"}


def function_of(site: Site) -> _Function | None:
    """The innermost function around the site's line; None at the top of a file."""
    found = None
    for node in statements.around(site):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found = node
        elif isinstance(node, ast.ClassDef):
            found = None
    return found


def root_of(node: ast.expr) -> ast.expr:
    """`outputs` of `outputs[key][0]`; `self.bank` of `self.bank[:, 0]`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


def container_of(site: Site, owner: ast.expr) -> str | None:
    """ "dict", "list", "tuple" or "array" for what is no tensor; None where the text shows nothing.

    Args:
        owner: what a subscript is taken of: `outputs` of `outputs[key]`.
    """
    if isinstance(owner, ast.Attribute):
        values = _attribute_values(site, owner)
    elif isinstance(owner, ast.Name):
        values = [value for value in _assigned_to(site, owner.id) if value is not None]
        of_argument = _annotation(site, owner.id)
        if of_argument is not None:
            return of_argument
    else:
        return None
    kinds = {_kind(value) or _returned(site, value) for value in values}
    return kinds.pop() if len(kinds) == 1 else None


# Of torch, what gives several tensors.
_GIVES_TUPLES = {
    *("chunk", "split", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "meshgrid"),
    *("LSTM", "GRU", "RNN", "LSTMCell", "MultiheadAttention"),
}


def _returned(site: Site, value: ast.expr) -> str | None:
    """What a call gives, by what is written of the function in the same file."""
    if not isinstance(value, ast.Call):
        return None
    name = ast.unparse(value.func).rsplit(".", 1)[-1]
    tree = syntax.around(site.frame.file, 1)
    if name in _GIVES_TUPLES:
        return "tuple"
    kinds: set[str | None] = set()
    for made in _called(tree, name) if tree is not None else ():
        if isinstance(made, str):
            kinds.add("tuple" if made in _GIVES_TUPLES else None)
            continue
        returned = [node.value for node in _own(made) if isinstance(node, ast.Return)]
        kinds |= {_kind(given) if given is not None else None for given in returned}
    return kinds.pop() if len(kinds) == 1 else None


def _called(tree: ast.AST, name: str) -> Iterator[_Function | str]:
    """What `name(...)` may run: functions of that name, or those of an object that is bound to it.

    Of an object of a class that is not written there, the name of the class.
    """
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            yield node
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        bound = [ast.unparse(target).rsplit(".", 1)[-1] for target in node.targets]
        if name not in bound:
            continue
        kind = ast.unparse(node.value.func).rsplit(".", 1)[-1]
        if kind not in classes:
            yield kind
            continue
        for method in classes[kind].body:
            if isinstance(method, ast.FunctionDef) and method.name in ("forward", "__call__"):
                yield method


def _kind(value: ast.expr) -> str | None:
    if isinstance(value, (ast.Dict, ast.DictComp)):
        return "dict"
    if isinstance(value, (ast.List, ast.ListComp)):
        return "list"
    if isinstance(value, ast.Tuple):
        return "tuple"
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Mult, ast.Add)):
        sides = {_kind(value.left), _kind(value.right)}
        return "list" if "list" in sides else None
    if isinstance(value, ast.Call):
        name = ast.unparse(value.func)
        short = name.rsplit(".", 1)[-1]
        if short in _DICTS:
            return "dict"
        if short in _LISTS:
            return "list"
        if short == "numpy" or name.split(".")[0] in {"np", "numpy"}:
            return "array"
    return None


def _annotation(site: Site, name: str) -> str | None:
    function = function_of(site)
    for argument in _arguments(function) if function is not None else ():
        if argument.arg == name and argument.annotation is not None:
            spoken = ast.unparse(argument.annotation).rsplit(".", 1)[-1].lower()
            for start, kind in (
                (("dict", "mapping", "ordereddict"), "dict"),
                (("list", "sequence"), "list"),
                (("tuple",), "tuple"),
                (("ndarray", "array"), "array"),
            ):
                if spoken.split("[")[0] in start:
                    return kind
    return None


def _arguments(function: _Function) -> list[ast.arg]:
    given = function.args
    return [
        *(*given.posonlyargs, *given.args, *given.kwonlyargs),
        *(a for a in (given.vararg, given.kwarg) if a is not None),
    ]


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below a node, without the bodies of functions and classes within it."""
    pending = list(ast.iter_child_nodes(node))
    while pending:
        child = pending.pop()
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            pending += ast.iter_child_nodes(child)


def _scope(site: Site) -> ast.AST | None:
    return function_of(site) or syntax.around(site.frame.file, site.frame.line)


def _assigned_to(site: Site, name: str) -> list[ast.expr | None]:
    """The values that the function around a line binds to a name, the nearest above it first.

    None stands for a value that is no expression of its own: an item of a loop or of what is
    unpacked.
    """
    scope = _scope(site)
    found: list[tuple[int, ast.expr | None]] = []
    for node in _own(scope) if scope is not None else ():
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            targets, value = [node.target], node.value
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            targets = [node.target]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            targets, value = [node.optional_vars], node.context_expr
        for target in targets:
            line = getattr(target, "lineno", 0)
            if isinstance(target, ast.Name) and target.id == name:
                found.append((line, None if isinstance(node, ast.For) else value))
            elif isinstance(target, (ast.Tuple, ast.List, ast.Starred)):
                for number, item in enumerate(getattr(target, "elts", [])):
                    if isinstance(item, ast.Name) and item.id == name:
                        found.append((line, _item(value, number)))
    here = site.frame.line
    found.sort(key=lambda pair: (pair[0] >= here, abs(here - pair[0])))
    return [value for _, value in found]


def values_of(site: Site, name: str) -> list[ast.expr]:
    """The expressions that the function around a line binds to a name, the nearest above first."""
    return [value for value in _assigned_to(site, name) if value is not None]


def values_of_attribute(definition: ast.AST, name: str) -> list[ast.expr]:
    """The expressions that the functions of a class, or one function, give to `self.name`."""
    found: list[ast.expr] = []
    for node in ast.walk(definition):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        elif isinstance(node, ast.Call) and _registered(node) == name:
            found.append(node)
            continue
        else:
            continue
        is_named = isinstance(target, ast.Attribute) and target.attr == name
        if is_named and ast.unparse(target) == f"self.{name}":
            found.append(value)
    return found


def _registered(call: ast.Call) -> str | None:
    """The name in `self.register_parameter("scale", ...)` and `self.add_module("head", ...)`."""
    ways = {"register_parameter", "add_module", "register_module"}
    if not (isinstance(call.func, ast.Attribute) and call.func.attr in ways and call.args):
        return None
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and type(first.value) is str else None


def _item(value: ast.expr | None, number: int) -> ast.expr | None:
    """The part of `a, b = x, y` that goes to one name; a call's result stands for each."""
    if isinstance(value, (ast.Tuple, ast.List)) and number < len(value.elts):
        return value.elts[number]
    return value if isinstance(value, ast.Call) else None


def _attribute_values(site: Site, owner: ast.Attribute) -> list[ast.expr]:
    """The values that the class around a line assigns to `self.name`, or the whole file to it."""
    tree = syntax.around(site.frame.file, site.frame.line)
    found = []
    for node in ast.walk(tree) if tree is not None else ():
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple):
                    pairs += [(t, _item(node.value, k)) for k, t in enumerate(target.elts)]
                else:
                    pairs.append((target, node.value))
        elif isinstance(node, ast.AnnAssign):
            pairs.append((node.target, node.value))
        for target, value in pairs:
            if isinstance(target, ast.Attribute) and target.attr == owner.attr:
                is_none = isinstance(value, ast.Constant) and value.value is None
                if value is not None and not is_none:
                    found.append(value)
    return found


def is_rebindable(site: Site, target: ast.expr, *, of_view: bool = False) -> bool:
    """Whether everyone who is to see a write to `target` sees the name bound to a new tensor.

    False as well where that cannot be told: for an element of what a loop goes over, an argument
    that the function only writes, a view that is written for the sake of its base, and a name of
    another scope, which an assignment would hide.

    Args:
        of_view: the write was refused because it is to a view: what the view is of keeps its values
            either way.
    """
    if isinstance(target, ast.Attribute):
        return isinstance(target.value, (ast.Name, ast.Attribute)) and target.attr not in (
            *_VIEW_ATTRIBUTES,
            "grad",
        )
    if not isinstance(target, ast.Name):
        return False
    name, function = target.id, function_of(site)
    loop = statements.loop_of(site, name)
    if loop is not None:
        return _is_read_below(loop, site, name) and not _is_read_after(site, loop)
    if _is_of_comprehension(site, name):
        return False
    if function is None:
        values = _assigned_to(site, name)
        return of_view or not (values and _is_alias(values[0], name))
    if any(isinstance(n, (ast.Global, ast.Nonlocal)) and name in n.names for n in _own(function)):
        return True
    is_argument = any(argument.arg == name for argument in _arguments(function))
    values = _assigned_to(site, name)
    above = [v for v in values if v is None or v.lineno <= site.frame.line]
    if above or (values and not is_argument):
        value = (above or values)[0]
        return of_view or not _is_alias(value, name)
    if not is_argument:
        return False  # of an outer scope: the assignment would make it a local without a value
    return _is_read_below(function, site, name) and not _is_result_dropped(site, function)


def _is_alias(value: ast.expr | None, name: str) -> bool:
    """Whether a value is, or may be, memory that something else holds too."""
    if value is None or isinstance(value, ast.Subscript):
        return True
    if isinstance(value, (ast.Name, ast.Attribute)):
        return True
    if isinstance(value, ast.IfExp):
        return _is_alias(value.body, name) or _is_alias(value.orelse, name)
    if isinstance(value, ast.Call):
        called = value.func
        short = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
        if short not in _VIEWS:
            return False
        owner = called.value if isinstance(called, ast.Attribute) else None
        if owner is None or statements.is_namespace(owner):
            owner = value.args[0] if value.args else None
        # A view of a value that nobody else has a name for is as good as the value.
        return owner is None or _is_alias(owner, name)
    return False


def _is_read_below(around: ast.AST, site: Site, name: str) -> bool:
    """Whether a name is read after the site's statement, other than to be written again."""
    node = statements.statement(site)
    if node is None:
        return False
    loop = next((n for n in statements.around(site) if isinstance(n, (ast.For, ast.While))), None)
    if isinstance(around, ast.For):
        loop = None  # the loop gives the name another value before it comes here again
    first = node.end_lineno or node.lineno
    for read in ast.walk(around):
        if not (isinstance(read, ast.Name) and read.id == name):
            continue
        if not isinstance(read.ctx, ast.Load) or node.lineno <= read.lineno <= first:
            continue
        again = loop is not None and _inside(read, loop)
        if (read.lineno > first or again) and not _is_write_of(site, read, name):
            return True
    # `return x.mul_(2)` and `y = x.add_(1)` hand the result on themselves.
    return not (isinstance(node, ast.AugAssign) or _is_bare(node))


def _is_bare(node: ast.stmt) -> bool:
    """A statement that keeps no result: `x.mul_(2)`, `x[0] = 1`."""
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Subscript) for target in node.targets)
    return isinstance(node, ast.Expr)


def _inside(node: ast.AST, outer: ast.stmt) -> bool:
    line = getattr(node, "lineno", 0)
    return outer.lineno <= line <= (outer.end_lineno or outer.lineno)


def _is_write_of(site: Site, read: ast.Name, name: str) -> bool:
    """Whether the statement of a read is itself nothing but an in-place write of the name."""
    frame = site.frame
    held = syntax.statements(frame.file, read.lineno)
    return bool(held) and isinstance(held[-1], ast.Expr) and written_in(held[-1]) == name


def written_in(node: ast.stmt) -> str | None:
    """What a statement writes in place, as text: `img` of `img.sub_(low).div_(high)`."""
    target: ast.expr | None = None
    if isinstance(node, ast.AugAssign):
        target = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0] if isinstance(node.targets[0], ast.Subscript) else None
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(called, ast.Attribute) and called.attr.endswith("_"):
            target = statements.receiver(node.value)
    if target is None:
        return None
    return ast.unparse(root_of(target))


def _is_read_after(site: Site, loop: ast.For) -> bool:
    """Whether what a loop goes over is read again below the loop, where it still has the items."""
    over: list[ast.expr] = [loop.iter]
    if isinstance(loop.iter, ast.Call):
        over = list(loop.iter.args) or [statements.receiver(loop.iter)]
    texts = {ast.unparse(item) for item in over if isinstance(item, (ast.Name, ast.Attribute))}
    scope = _scope(site)
    last = loop.end_lineno or loop.lineno
    return scope is not None and any(
        isinstance(node, (ast.Name, ast.Attribute))
        and isinstance(node.ctx, ast.Load)
        and node.lineno > last
        and ast.unparse(node) in texts
        for node in ast.walk(scope)
    )


def _is_of_comprehension(site: Site, name: str) -> bool:
    """The variable of a comprehension on the line whose results nobody keeps."""
    node = statements.statement(site)
    if not isinstance(node, ast.Expr):
        return False
    return any(
        isinstance(part, ast.comprehension)
        and any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(part.target))
        for part in ast.walk(node)
    )


def _is_result_dropped(site: Site, function: _Function) -> bool:
    """Whether the line that called the function throws away what it returned."""
    if not site.callers or function.name == "backward":
        return False  # a Function's is called by the engine, below `loss.backward()`
    node = statements.statement(Site(frame=site.callers[0]))
    if not isinstance(node, ast.Expr):
        return False
    result = node.value
    while isinstance(result, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.Await)):
        result = result.value if isinstance(result, ast.Await) else result.elt
    if not isinstance(result, ast.Call):
        return False
    return ast.unparse(result.func).rsplit(".", 1)[-1] == function.name


def written_name(site: Site, *, whole: bool = False) -> str | None:
    """What the statement calls the tensor that it writes: `radius` of `radius *= 2`.

    Args:
        whole: what it writes is the tensor that is meant, and no part of it, so that an index names
            an entry of something: `pair[1]` of `pair[1].mul_(2)`.
    """
    node = statements.statement(site)
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
            target = statements.receiver(node.value)
    full = target
    while isinstance(target, ast.Subscript):
        kind = container_of(site, target.value)
        if (kind == "tuple" or (kind is None and whole)) and isinstance(node, ast.Expr):
            return ast.unparse(full) if full is not None else None  # a tuple may hold tuples
        if kind in ("dict", "list", "tuple"):
            return ast.unparse(target)  # an item of it, and not the whole
        target = target.value
    return ast.unparse(target) if isinstance(target, (ast.Name, ast.Attribute)) else None


def written_part(site: Site) -> str | None:
    """What the statement writes, as it stands there: `pe[:, :n]` of `pe[:, :n] += 1`."""
    node = statements.statement(site)
    target: ast.expr | None = None
    if isinstance(node, ast.AugAssign):
        target = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(called, ast.Attribute) and called.attr.endswith("_"):
            target = called.value
            if statements.is_namespace(target):
                target = node.value.args[0] if node.value.args else None
    text = ast.unparse(target) if target is not None else None
    return text if text is not None and len(text) <= 40 and "\n" not in text else None


def later_writes(site: Site, name: str) -> list[ast.stmt]:
    """The statements of the site's block, from the next one on, that write the same name."""
    held = statements.around(site)
    parent = held[-2] if len(held) > 1 else None
    found: list[ast.stmt] = []
    for _, block in ast.iter_fields(parent) if parent is not None else ():
        if isinstance(block, list) and held[-1] in block:
            for node in block[block.index(held[-1]) + 1 :]:
                if not isinstance(node, ast.stmt) or written_in(node) != name:
                    break
                found.append(node)
    return found
