"""README and docs/: short where it has to be, no link to nowhere, every page in the navigation."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

import gradext

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CODES = sorted((ROOT / "gradext" / "diagnosis" / "pages").glob("*.md"))
# Made when the site is built.
GENERATED = {"cli.md", "contributing.md"}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """build_tools/docs/site_hooks.py."""
    spec = importlib.util.spec_from_file_location(
        "site_hooks", ROOT / "build_tools" / "docs" / "site_hooks.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def links(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


def test_readme_is_short_and_shows_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 200
    assert "\npip install .\ngradext lesson\n" in text
    assert "\npip install '.[test]' && python -m pytest\n" in text


@pytest.mark.parametrize("page", [*PAGES, *CODES], ids=lambda path: path.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for link in links(page.read_text("utf-8")):
        target = link.split("#")[0]
        assert not target or (page.parent / target).exists(), link


def anchors(page: Path) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    found = re.findall(r"^#+ (.*)$", prose, re.M)
    words = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in found)
    return {re.sub(r"\s+", "-", word) for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_anchor_is_a_heading(page: Path) -> None:
    for link in links(page.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        if anchor:
            assert anchor in anchors(page.parent / target if target else page), link


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    listed = [page for section in nav for pages in section.values() for page in pages]
    assert sorted(listed) == sorted({p.name for p in (ROOT / "docs").glob("*.md")} | GENERATED)


def test_the_python_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "python-api.md").read_text("utf-8")
    shown = {line.rsplit(".", 1)[-1] for line in text.splitlines() if line.startswith("::: ")}
    results = {"Fingerprint", "Fingerprints", "StateTree", "STATE_COLUMNS", "ops", "__version__"}
    assert {*gradext.__all__} - shown == results


def test_links_out_of_docs_become_pages_or_names(hooks: ModuleType) -> None:
    def made(text: str, at: str) -> str:
        page = SimpleNamespace(file=SimpleNamespace(src_uri=at))
        result: str = hooks.on_page_markdown(text, page=page, config=None, files=None)
        return result

    code = "[GX101](../gradext/diagnosis/pages/GX101.md#why)"
    assert made(code, "guard.md") == "[GX101](codes/GX101.md#why)"
    plot = "![gain](../benchmarks/results/modes-gain.png)"
    assert made(plot, "which-mode.md") == "![gain](results/modes-gain.png)"
    assert made("see [ops.py](../gradext/ops.py).", "a.md") == "see `ops.py`."
    assert made("[`csrc/`](../csrc)", "a.md") == "`csrc/`"
    assert made("[rooms](docs/architecture.md)", "contributing.md") == "[rooms](architecture.md)"
    assert made("[here](guard.md)", "a.md") == "[here](guard.md)"


def test_the_picture_has_every_floor(hooks: ModuleType) -> None:
    picture = hooks.rooms()
    for room in ("commands/", "byte_guard/", "testing.py", "native/"):
        assert f">{room}</text>" in picture
