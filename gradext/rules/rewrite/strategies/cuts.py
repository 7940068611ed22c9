"""What cuts the graph is taken out of the statement: .detach(), .item(), torch.tensor(...)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite import stacked
from gradext.rules.rewrite.strategies.case import Candidate, Case, at, candidate
from gradext.source.edits import Edit, Source

_METHODS = {"detach", "item", "numpy", "tolist", "cpu", "requires_grad_"}
_REBUILDS = {"tensor", "as_tensor", "from_numpy", "Tensor", "FloatTensor", "Variable"}


class WithoutTheCut:
    """`loss = torch.tensor(x.item())` becomes `loss = x`."""

    codes = frozenset({"GX301", "GX303", "GX304", "GX401"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        lines = [*case.culprits, *case.victims]
        per_line = []
        stops = False
        for place, source, statement in case.statements(lines):
            edits = _without_cuts(source, statement)
            if edits:
                if not _HIDES.search(source.code(statement)):
                    edits += _hiding(case, source)
                per_line.append((place, source, edits))
                stops = stops or _stops(source, statement)
                title = f"take what cuts the graph out at {at(place)}"
                yield candidate(title, source.path, edits, undoes_stop=stops)
        if len(per_line) > 1:
            title = "take what cuts the graph out at " + " and ".join(at(p) for p, _, _ in per_line)
            made = {(s.path, e) for _, s, edits in per_line for e in edits if e is not None}
            pairs = sorted(made, key=lambda pair: (pair[0], pair[1].start))
            yield Candidate(title, tuple(pairs), stops)


def _without_cuts(source: Source, statement: Any) -> list[Edit | None]:
    """Edits that leave the values and drop the calls that lose their history."""
    import libcst as cst

    edits: list[Edit | None] = []
    for node in source.nodes(statement):
        if isinstance(node, cst.Attribute) and node.attr.value == "data":
            edits.append(Edit(source.span(node.value)[1], source.span(node)[1], ""))
        if not isinstance(node, cst.Call):
            continue
        if isinstance(node.func, cst.Attribute) and node.func.attr.value in _METHODS:
            inner = source.outer_span(node.func.value)[1]
            edits.append(Edit(inner, source.span(node)[1], ""))
        name = source.code(node.func).rsplit(".", 1)[-1]
        is_rebuilt = name in _REBUILDS or (name == "float" and len(node.args) == 1)
        if is_rebuilt and node.args and not node.args[0].star:
            given = node.args[0].value
            start, end = source.span(node)
            deep = _depth(source, given)
            if deep > 1:
                before, after = stacked.around(deep)
                edits.append(Edit(start, source.outer_span(given)[0], before))
                edits.append(Edit(source.outer_span(given)[1], end, after))
            elif (isinstance(given, cst.Name) and _is_list(source, given)) or isinstance(
                given, (cst.List, cst.ListComp)
            ):
                edits.append(Edit(start, source.span(given)[0], "torch.stack("))
                edits.append(Edit(source.span(given)[1], end, ")"))
                edits += _numbers_as_tensors(source, given)
            else:
                edits.append(Edit(start, source.outer_span(given)[0], "("))
                edits.append(Edit(source.outer_span(given)[1], end, ")"))
    return edits


def _depth(source: Source, given: Any) -> int:
    """How many lists that are written out are in each other; 0: that is not to be seen."""
    try:
        return stacked.depth(ast.parse(f"({source.code(given)})", mode="eval").body)
    except SyntaxError:
        return 0


def _numbers_as_tensors(source: Source, given: Any) -> Iterator[Edit]:
    """`[torch.tensor(0.0), t]` for `[0.0, t]`: only tensors can be stacked."""
    import libcst as cst

    for element in given.elements if isinstance(given, cst.List) else ():
        value = element.value
        bare = value.expression if isinstance(value, cst.UnaryOperation) else value
        if isinstance(bare, (cst.Float, cst.Integer)):
            yield source.replace(value, f"torch.tensor({source.code(value)})")


def _stops(source: Source, statement: Any) -> bool:
    """Whether it has a `.detach()` or `.data` that is no step on the way to numpy or a number."""
    import libcst as cst

    for node in source.nodes(statement):
        if not isinstance(node, cst.Attribute) or node.attr.value not in {"detach", "data"}:
            continue
        call = source.parent(node) if node.attr.value == "detach" else node
        outer = source.parent(call) if call is not None else None
        if not isinstance(outer, cst.Attribute) or outer.attr.value not in _METHODS - {"detach"}:
            return True
    return False


def _is_list(source: Source, name: Any) -> bool:
    """Whether the function binds a name to a list that it writes down, or appends to."""
    import libcst as cst

    for node in source.nodes(source.function_of(name)):
        if isinstance(node, cst.Assign) and isinstance(node.value, (cst.List, cst.ListComp)):
            targets = [target.target for target in node.targets]
            if any(isinstance(t, cst.Name) and t.value == name.value for t in targets):
                return True
    return False


class CreateGraph:
    """`torch.autograd.grad(..., create_graph=True)`: a gradient that can be differentiated."""

    codes = frozenset({"GX301", "GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in case.culprits:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            for node in source.nodes(statement) if source and statement is not None else ():
                if not isinstance(node, cst.Call) or source is None:
                    continue
                if source.code(node.func).rsplit(".", 1)[-1] not in {"grad", "backward"}:
                    continue
                asked = next(
                    (a for a in node.args if a.keyword and a.keyword.value == "create_graph"), None
                )
                if asked is not None and source.code(asked.value) == "True":
                    continue
                edit = with_keyword(source, node, "create_graph=True")
                if asked is not None:  # `create_graph=self.second_order`, which was false
                    edit = source.replace(asked.value, "True")
                yield candidate(
                    f"keep the graph of the gradient at {at(place)}", source.path, [edit]
                )


class ParametersThemselves:
    """`module.state_dict(keep_vars=True)`: its tensors are the parameters, and not detached."""

    codes = frozenset({"GX301", "GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in case.culprits[:1]:
            source = case.source(place)
            statement: Any = source.small_statement_at(place.line) if source is not None else None
            if source is None:
                continue
            if statement is None:  # `for name, value in model.state_dict().items():`
                held = source.compound_at(place.line)
                statement = held.iter if isinstance(held, cst.For) else None
            for node in source.nodes(statement) if statement is not None else ():
                if (
                    isinstance(node, cst.Call)
                    and not node.args
                    and isinstance(node.func, cst.Attribute)
                    and node.func.attr.value == "state_dict"
                ):
                    yield candidate(
                        f"take the parameters themselves at {at(place)}",
                        source.path,
                        [with_keyword(source, node, "keep_vars=True")],
                        undoes_stop=True,
                    )


# What torch computes under the name that numpy has for it, and under another one.
_SAME_NAME = (
    "exp exp2 expm1 log log2 log10 log1p sqrt square sin cos tan sinh cosh tanh abs sign floor "
    "ceil round sum mean prod cumsum maximum minimum where stack hstack vstack matmul dot outer "
    "einsum reshape squeeze diff argmax argmin argsort zeros_like ones_like full_like isnan clip "
    "hypot tril triu diag trace flip roll tile linalg.norm linalg.inv linalg.det amax amin"
)
_OTHER_NAME = (
    "absolute=abs fabs=abs power=pow concatenate=cat divide=div arccos=acos arcsin=asin "
    "arctan=atan arctan2=atan2 arccosh=acosh arcsinh=asinh arctanh=atanh expand_dims=unsqueeze "
    "add=add subtract=sub multiply=mul max=amax min=amin"
)
_OF_NUMPY = {name: name for name in _SAME_NAME.split()}
_OF_NUMPY |= dict(pair.split("=") for pair in _OTHER_NAME.split())
_KEYWORDS = {"axis": "dim", "keepdims": "keepdim"}
_FROM_TENSOR = {"detach", "numpy", "cpu", "tolist", "item"}
_TO_TENSOR = {"from_numpy", "tensor", "as_tensor", "FloatTensor", "Tensor"}


class TorchForNumpy:
    """The lines of a function that compute with numpy compute the same with torch."""

    codes = frozenset({"GX301", "GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place, source, statement in case.statements(case.culprits[:1]):
            function = source.function_of(statement)
            scope = function if isinstance(function, cst.FunctionDef) else statement
            edits: list[Edit | None] = list(_in_torch(source, scope))
            title = f"compute with torch in place of numpy at {at(place)}"
            edits = [*edits, *_hiding(case, source)] if edits else []
            yield candidate(title, source.path, edits, undoes_stop=_stops(source, scope))


def _hiding(case: Case, source: Source) -> Iterator[Edit]:
    """Takes out `loss.requires_grad = True`, which hid the cut: of what has a history it raises."""
    import libcst as cst

    for place in (*case.culprits[1:], *case.victims):
        if "leaf" not in place.label or place.file != source.path:
            continue
        statement = source.small_statement_at(place.line)
        if statement is None or not _HIDES.search(source.code(statement)):
            continue
        block, line = source.block_of(statement), source.line_of(statement)
        if block is None or not isinstance(line, cst.SimpleStatementLine) or len(line.body) > 1:
            continue
        if len(block[1]) > 1:
            yield Edit(*source.lines_span(line), "")
        else:
            yield Edit(*source.span(line.body[0]), "pass")


_HIDES = re.compile(r"(\.requires_grad *= *True|\.requires_grad_\((True|requires_grad=True)?\))$")


def _in_torch(source: Source, scope: Any) -> Iterator[Edit]:
    import libcst as cst

    for node in source.nodes(scope):
        if not isinstance(node, cst.Call):
            continue
        name = source.code(node.func)
        root, _, called = name.partition(".")
        if root in {"np", "numpy"} and called in _OF_NUMPY:
            yield Edit(*source.span(node.func), f"torch.{_OF_NUMPY[called]}")
            for argument in node.args:
                if argument.keyword is not None and argument.keyword.value in _KEYWORDS:
                    yield Edit(*source.span(argument.keyword), _KEYWORDS[argument.keyword.value])
        elif isinstance(node.func, cst.Attribute) and node.func.attr.value in _FROM_TENSOR:
            if not any(isinstance(outer, cst.SubscriptElement) for outer in source.above(node)):
                yield Edit(source.outer_span(node.func.value)[1], source.span(node)[1], "")
        elif name.rsplit(".", 1)[-1] in _TO_TENSOR and root == "torch" and node.args:
            given = node.args[0].value
            start, end = source.span(node)
            yield Edit(start, source.outer_span(given)[0], "(")
            yield Edit(source.outer_span(given)[1], end, ")")


_STEPS = {"round", "floor", "ceil", "trunc", "sign", "bernoulli"}


class StraightThrough:
    """A hard decision keeps its value, and hands back the gradient of what it was made from.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons"
    (2013), section 3.4.
    """

    codes = frozenset({"GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in case.culprits[:2]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            for node in source.nodes(statement) if source and statement is not None else ():
                soft = _decided(source, node) if source is not None else None
                if source is None or soft is None:
                    continue
                whole: Any = node
                while _is_cast(source, source.parent(source.parent(whole) or whole), whole):
                    whole = source.parent(source.parent(whole))  # type: ignore[arg-type]
                hard = source.code(whole)
                if isinstance(node, cst.Comparison) and whole is node:
                    continue  # the truth values are used as such
                title = f"hand the gradient through the decision at {at(place)}"
                made = f"({soft} + ({hard} - {soft}).detach())"
                yield candidate(title, source.path, [source.replace(whole, made)])
                break


class Reparametrised:
    """`mean + std * torch.randn_like(mean)`: what `torch.normal(mean, std)` draws, as a sum.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2013), section 2.4.
    """

    codes = frozenset({"GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place, source, statement in case.statements(case.culprits[:1]):
            for node in source.nodes(statement):
                if not isinstance(node, cst.Call) or source.code(node.func) != "torch.normal":
                    continue
                given = {
                    argument.keyword.value if argument.keyword else ("mean", "std")[number]: (
                        source.code(argument.value)
                    )
                    for number, argument in enumerate(node.args[:2])
                }
                # A number has no shape that the noise could be of.
                shaped = next((t for t in given.values() if not _NUMBER.fullmatch(t)), None)
                if len(node.args) != 2 or set(given) != {"mean", "std"} or shaped is None:
                    continue
                mean, std = (
                    text if _PLAIN.fullmatch(text) else f"({text})"
                    for text in (given["mean"], given["std"])
                )
                made = f"{mean} + {std} * torch.randn_like({shaped})"
                whole = isinstance(source.parent(node), (cst.Assign, cst.Return, cst.Arg))
                title = f"draw with a gradient at {at(place)}"
                yield candidate(
                    title, source.path, [source.replace(node, made if whole else f"({made})")]
                )


_NUMBER = re.compile(r"-?[\d.]+(e-?\d+)?")
_PLAIN = re.compile(r"[\w.]+(\([^()]*\))?")


def _decided(source: Source, node: Any) -> str | None:
    """What a decision is made from: `a - b` of `a > b`, `x` of `x.round()`."""
    import libcst as cst

    if isinstance(node, cst.Comparison) and len(node.comparisons) == 1:
        sign = node.comparisons[0].operator
        left, right = source.code(node.left), source.code(node.comparisons[0].comparator)
        if isinstance(sign, (cst.GreaterThan, cst.GreaterThanEqual)):
            return f"({left} - ({right}))"
        if isinstance(sign, (cst.LessThan, cst.LessThanEqual)):
            return f"({right} - ({left}))"
        return None
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        if node.func.attr.value not in _STEPS:
            return None
        if source.code(node.func.value) == "torch":
            return f"({source.code(node.args[0].value)})" if node.args else None
        return f"({source.code(node.func.value)})"
    return None


def _is_cast(source: Source, call: Any, inner: Any) -> bool:
    """Whether `call` is `(inner).float()` or `(inner).to(dtype)`."""
    import libcst as cst

    return (
        isinstance(call, cst.Call)
        and isinstance(call.func, cst.Attribute)
        and call.func.value is inner
        and call.func.attr.value in {"float", "to", "double", "type", "type_as", "half"}
    )


def with_keyword(source: Source, call: Any, text: str) -> Edit:
    """One more keyword argument at the end of a call."""
    if not call.args:
        end = source.span(call)[1] - 1
        return Edit(end, end, text)
    end = source.span(call.args[-1])[1]
    # Behind a trailing comma another one would be an error.
    return Edit(end, end, f", {text}")


STRATEGIES = (
    CreateGraph(),
    ParametersThemselves(),
    Reparametrised(),
    WithoutTheCut(),
    TorchForNumpy(),
    StraightThrough(),
)
