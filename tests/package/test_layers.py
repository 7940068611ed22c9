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
# The lesson's chapters are programs, whose text a reader sees, and import what a reader would.
CHAPTERS = "gradext.lesson.chapters."


def named_in(source: str) -> set[str]:
    """The modules of gradext that a text imports by name: import_module("gradext.…")."""
    return {
        argument.value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).split(".")[-1] in ("import_module", "__import__", "run_module")
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("gradext.")
    }


def private_in(source: str) -> set[str]:
    """What a text imports from another module that this module has for itself: `_names`."""
    return {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradext")
        for alias in node.names
        if alias.name.startswith("_") and alias.name not in ("_C", "_version", "_wiring")
        if not alias.name.startswith("__")
    }


def sources() -> dict[str, str]:
    """The text of each module, by its name."""
    found = {}
    for path in (ROOT / "gradext").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def with_named_imports(graph: grimp.ImportGraph, texts: dict[str, str]) -> grimp.ImportGraph:
    for module, text in texts.items():
        for name in named_in(text):
            graph.add_import(importer=module, imported=name)
    return graph


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    graph = grimp.build_graph("gradext", exclude_type_checking_imports=True)
    return with_named_imports(graph, sources())


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


def leading_up(texts: dict[str, str], rooms: list[list[str]]) -> list[tuple[str, str]]:
    """(importer, imported) of each import by name that leads to a room above, or to its like."""
    floor = {room: number for number, row in enumerate(rooms) for room in row}

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    return [
        (module, name)
        for module, text in texts.items()
        for name in sorted(named_in(text))
        if room(module) in floor and room(module) != room(name)
        if floor.get(room(name), -1) <= floor[room(module)]
    ]


def test_no_import_by_name_leads_up(floors):
    assert leading_up(sources(), floors) == []


@pytest.mark.parametrize(
    ("module", "line", "name"),
    [
        ("gradext.run.ending", 'importlib.import_module("gradext.fix.child").join()', "fix.child"),
        ("gradext.base.text", 'x = __import__("gradext.run.session")', "run.session"),
        ("gradext.opcheck", 'import_module(name="gradext.byte_guard.guard")', "byte_guard.guard"),
        ("gradext.fix.stem", 'runpy.run_module("gradext.commands.run")', "commands.run"),
    ],
)
def test_an_import_by_name_that_leads_up_would_be_found(floors, module, line, name):
    text = f"def later():\n    {line}\n"
    assert leading_up({module: text}, floors) == [(module, f"gradext.{name}")]


def test_a_circle_of_imports_by_name_would_be_found():
    own = grimp.build_graph("gradext", exclude_type_checking_imports=True)
    text = 'importlib.import_module("gradext.run.session")'
    (circle,) = circles(with_named_imports(own, {"gradext.base.text": text}))
    assert {"gradext.base.text", "gradext.run.session"} <= set(circle)


def test_nobody_imports_a_private_name():
    """What ruff's SLF001 does not look at: it knows `module._name` only."""
    found = {module: private_in(text) for module, text in sources().items()}
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from gradext.diagnosis.model import Site, _site", {"_site"}),
        ("def f():\n    from gradext.base.text import _x as x", {"_x"}),
        ("from gradext import _C, _wiring\nfrom gradext._version import __version__", set()),
        ("from torch._C import _cuda_init", set()),
    ],
)
def test_an_import_of_a_private_name_would_be_found(line, found):
    assert private_in(line) == found


def test_nobody_imports_the_face(graph):
    users = graph.find_modules_that_directly_import("gradext")
    assert [user for user in sorted(users) if not user.startswith(CHAPTERS)] == []


def test_nobody_imports_a_chapter(graph):
    """The lesson finds them in their folder: no room rests on what uses the face."""
    users = {
        (user, module)
        for module in graph.modules
        if module.startswith(CHAPTERS)
        for user in graph.find_modules_that_directly_import(module)
        if not user.startswith(CHAPTERS)
    }
    assert users == set()


@pytest.fixture(scope="module")
def floors() -> list[list[str]]:
    """The rooms of the contract, the top floor first; a row for those that share one."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (floors,) = (c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    return [[room.strip() for room in floor.split("|")] for floor in floors]


@pytest.fixture(scope="module")
def rooms(floors) -> list[str]:
    """Those of the contract, the top floor first."""
    return [room for floor in floors for room in floor]


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
