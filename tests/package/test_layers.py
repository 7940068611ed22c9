"""The import graph of gradext: no circle, lazy imports included, and nobody imports the face.

The floors themselves are contracts of import-linter (pyproject.toml), which a commit's hooks check.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import grimp
import pytest

import gradext

if sys.version_info >= (3, 11):
    import tomllib
else:  # import-linter brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# They are written as a user's program is, with `import gradext`.
USES_THE_FACE = ("gradext.lesson", "gradext.commands.lesson", "gradext.__main__")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("gradext", exclude_type_checking_imports=True)


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """The modules that reach each other, a list for each circle (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph.find_modules_directly_imported_by(module):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph.modules):
        if module not in index:
            visit(module)
    return [circle for circle in found if len(circle) > 1]


def test_the_table_of_public_names_is_what_a_type_checker_reads():
    tree = ast.parse((ROOT / "gradext" / "__init__.py").read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    read = {
        alias.name: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom) and node.module != "gradext"
        for alias in node.names
    }
    assert {name: home for home, names in gradext._HOMES.items() for name in names} == read
    assert {*read, "ops", "testing", "__version__"} == set(gradext.__all__)


@pytest.mark.parametrize("name", gradext.__all__)
def test_each_public_name_is_there(name):
    assert getattr(gradext, name) is not None
    assert name in dir(gradext)


def test_no_circle(graph):
    assert circles(graph) == []


def test_a_circle_would_be_found(graph):
    own = grimp.build_graph("gradext", exclude_type_checking_imports=True)
    own.add_import(importer="gradext.base.text", imported="gradext.run.session")
    (circle,) = circles(own)
    assert {"gradext.base.text", "gradext.run.session"} <= set(circle)


def test_nobody_imports_the_face(graph):
    users = graph.find_modules_that_directly_import("gradext")
    assert [user for user in sorted(users) if not user.startswith(USES_THE_FACE)] == []


@pytest.fixture(scope="module")
def rooms() -> list[str]:
    """Those of the contract, the top floor first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (floors,) = (c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    return [room.strip() for floor in floors for room in floor.split("|")]


def test_the_page_lists_the_rooms_in_their_order(rooms):
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| (`[^|]*) \|", text.split("## Where")[0], re.M)
    listed = [name for row in table for name in re.findall(r"`(\w+)", row)]
    assert [f"gradext.{name}" for name in listed] == rooms


def test_every_module_is_in_a_room_of_the_contract(graph, rooms):
    door = {"gradext", "gradext.__main__", "gradext._version", "gradext._wiring", "gradext._C"}
    loose = {m for m in graph.modules if ".".join(m.split(".")[:2]) not in set(rooms)}
    assert loose <= door


def test_no_two_files_of_tests_have_one_name():
    """Folders of tests are no packages: pytest imports each file by its bare name."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
