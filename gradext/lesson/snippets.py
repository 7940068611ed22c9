"""A claim's code as a learner can paste it into a file and run it.

Owns the text: the body of the claim's function, its imports, and what stands for its `return`.
There is no second copy of the code; the terminal, the notebook and the page all show this one.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradext.lesson.core import Claim

WIDTH = 88  # of an import line


def snippet(claim: Claim) -> str:
    """A whole program: imports, the claim's code, and a last line that prints the verdict."""
    head = [imports([claim]), "from gradext.lesson import begin"]
    body = [f'lesson = begin("{claim.number}")', before_the_answer(claim)]
    body.append(f"lesson.verdict({_answer(claim.code)})")
    return "\n\n".join("\n".join(filter(None, lines)) for lines in (head, body))


def cell(claim: Claim) -> str:
    """The code as a notebook's cell, which fails where the verdict is not the expected one."""
    lines = [
        f'lesson.begin("{claim.number}")',
        before_the_answer(claim),
        f"assert lesson.verdict({_answer(claim.code)})",
    ]
    return "\n".join(line for line in lines if line)


def before_the_answer(claim: Claim) -> str:
    """The body up to its `return`. Raises ValueError unless it returns once, at its end."""
    # The body alone would be "'return' outside function" to the compiler, but not to the parser.
    body = ast.parse(claim.code).body
    last = body[-1]
    if not isinstance(last, ast.Return) or last.value is None or _returns(body) != 1:
        raise ValueError(f"claim {claim.number} must return once, in its last statement")
    return "\n".join(claim.code.splitlines()[: last.lineno - 1])


def _answer(code: str) -> str:
    last = ast.parse(code).body[-1]
    assert isinstance(last, ast.Return)
    assert last.value is not None
    answer = ast.get_source_segment(code, last.value)
    assert answer is not None
    return f"\n    {answer}\n" if "\n" in answer else answer


def imports(claims: Iterable[Claim]) -> str:
    """The imports that the code needs: those of its module, and the module's own helpers."""
    listed = list(claims)
    used = {
        node.id
        for claim in listed
        for node in ast.walk(ast.parse(claim.code))
        if isinstance(node, ast.Name)
    }
    module = inspect.getmodule(listed[0].function)
    assert module is not None
    lines: list[str] = []
    helpers: list[str] = []
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            kept = [
                alias
                for alias in statement.names
                if (alias.asname or alias.name.partition(".")[0]) in used
            ]
            if kept:
                statement.names = kept
                lines.append(ast.unparse(statement))
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            helpers.append(statement.name)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            helpers.extend(target.id for target in targets if isinstance(target, ast.Name))
    needed = sorted(used.intersection(helpers))
    if needed:
        line = f"from {module.__name__} import {', '.join(needed)}"
        if len(line) > WIDTH:
            names = "".join(f"    {name},\n" for name in needed)
            line = f"from {module.__name__} import (\n{names})"
        lines.append(line)
    return "\n".join(lines)


def _returns(body: list[ast.stmt]) -> int:
    """How many return statements belong to the function itself, not to one nested in it."""
    count = 0
    pending: list[ast.AST] = list(body)
    while pending:
        node = pending.pop()
        count += isinstance(node, ast.Return)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))
    return count
