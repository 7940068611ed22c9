"""The page of a timeline: whole without a script or a network, and what a browser makes of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from pages import Made, browser, made, opened, page_of

from gradext.reporters.timeline import picture

EVIL = "</script><img src=x onerror=alert(1)><!--"


def fault() -> None:
    w = torch.ones(4, 4, requires_grad=True)
    h = torch.sigmoid(w * 2)
    h[0].mul_(2)  # <b>&"' </script>
    h.sum().backward()


@pytest.fixture(scope="module")
def stale() -> Made:
    return made(fault)


class Seen(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_whole_in_itself(stale: Made) -> None:
    page = page_of(*stale)
    tags = Seen(page).tags
    assert not {name for _, attributes in tags for name in attributes} & {"src", "href", "onerror"}
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert "url(" not in page


def test_a_picture_without_a_script(stale: Made) -> None:
    tags = Seen(page_of(*stale)).tags
    drawn = [attributes for tag, attributes in tags if tag == "path"]
    red = [each["d"] for each in drawn if "x" in str(each["class"]).split()]
    assert len(red) == 3  # the save, the write, the use
    assert ("form", "hidden") in {(tag, name) for tag, names in tags for name in names}


def test_the_way_from_backward_to_the_save(stale: Made) -> None:
    page = page_of(*stale)
    way = re.findall(r"<li><b>(\w+|[\w:]+)</b>", page)
    assert way[0] == "SumBackward0"
    assert way[-1] == "SigmoidBackward0"


def test_a_silent_write_has_a_way_too() -> None:
    def silent() -> None:
        net = torch.nn.Linear(4, 4)
        gate = torch.sigmoid(net(torch.ones(2, 4)))
        loss = (gate * gate).mean() + net(gate).mean()
        gate.data.clamp_(max=0.0)  # no sigmoid is so small: each value changes
        loss.backward()

    page = page_of(*made(silent))
    assert "<h1>gradext: 1 finding</h1>" in page  # three saves, one cause
    (way,) = re.findall(r'<ol class="way">(.*?)</ol>', page)
    nodes = re.findall(r"<li><b>(\w+)</b>", way)
    assert nodes[0] == "AddBackward0"
    assert nodes[-1] in page.split("saved for backward by")[1][:40]


@pytest.mark.parametrize("where", ["error", "code", "name", "file"])
def test_texts_of_programs_are_escaped(where: str, tmp_path: Path) -> None:
    name = "train<b>.py" if where == "file" else "train.py"
    variable = "h"
    source = (
        "import torch\n"
        "w = torch.ones(3, requires_grad=True)\n"
        f"{variable} = torch.sigmoid(w * 2)  # {EVIL if where == 'code' else ''}\n"
        f"{variable}.mul_(2)  # {EVIL if where == 'code' else ''}\n"
        f"{variable}.sum().backward()\n"
    )
    (tmp_path / name).write_text(source)
    space: dict[str, object] = {"__name__": "__main__"}
    events, found = made(lambda: exec(compile(source, str(tmp_path / name), "exec"), space))
    if where == "name":
        kept = events.drawing.writes
        events.drawing.writes.update(dict.fromkeys(kept, EVIL))
        events.drawing.uses.update(dict.fromkeys(events.drawing.uses, EVIL))
        events.drawing.writes[int(events.data.writes[-1, 0])] = EVIL
    page = page_of(events, found, EVIL if where == "error" else None)
    tags = [tag for tag, _ in Seen(page).tags]
    assert "img" not in tags
    assert tags.count("script") == 2
    data = re.search(r'id="ticks">(.*?)</script>', page, re.S)
    assert data is not None
    assert json.loads(data[1])["lanes"]


def test_a_report_without_events_is_a_page_too() -> None:
    page = page_of(None, [])
    assert "Nothing was found." in page
    assert "<svg" not in page


def test_a_timeline_that_cannot_be_drawn_costs_no_report(
    stale: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("<b>of ours")

    monkeypatch.setattr(picture, "of", fails)
    page = page_of(*stale)
    assert "could not be drawn: ValueError" in page
    assert "<b>of ours" not in page
    assert "stale-saved-tensor" in page


def test_a_large_recording_is_a_small_page() -> None:
    def many() -> None:
        tensors = [torch.zeros(2) for _ in range(300)]
        for _ in range(200):
            for tensor in tensors:
                tensor.add_(1)

    events, found = made(many)
    assert len(events.data.writes) >= 50_000
    page = page_of(events, found)
    assert len(page.encode()) < 2 << 20
    assert "more tensors are not drawn" in page


# --- in a browser ---------------------------------------------------------------------------------


def test_a_click_shows_line_stack_and_op(stale: Made, tmp_path: Path) -> None:
    with browser() as window:
        opened(window, page_of(*stale), tmp_path)
        window.execute_script(
            "const strip = document.querySelector('.lane.view.bad svg');"
            "const box = strip.getBoundingClientRect();"
            "const at = strip.querySelector('path.w.x').getBoundingClientRect();"
            "strip.dispatchEvent(new MouseEvent('click', {clientX: at.left, bubbles: true}));"
        )
        shown = window.find_element("id", "shown").text
        assert "aten::mul_ writes: version 0 to 1 (of a fault)" in shown
        assert "h[0].mul_(2)" in shown
        assert "test_timeline_page.py:" in shown
        assert not [each for each in window.get_log("browser") if each["level"] == "SEVERE"]


def test_search_leaves_what_matches(stale: Made, tmp_path: Path) -> None:
    with browser() as window:
        opened(window, page_of(*stale), tmp_path)
        lanes = "return document.querySelectorAll('.lane[data-lane]:not(.off)').length"
        everything = window.execute_script(lanes)
        window.find_element("id", "search").send_keys("mul_")
        some = window.execute_script(lanes)
        assert 0 < some < everything
        window.find_element("id", "search").send_keys("\n")
        assert "mul_" in window.find_element("id", "shown").text
        window.find_element("id", "search").send_keys(" no such thing")
        assert window.execute_script(lanes) == 0


def test_zoom_and_keys(stale: Made, tmp_path: Path) -> None:
    with browser() as window:
        opened(window, page_of(*stale), tmp_path)
        box = "return document.querySelector('.lanes svg').getAttribute('viewBox').split(' ')[2]"
        before = float(window.execute_script(box))
        window.find_element("css selector", "[data-zoom='0.5']").click()
        closer = float(window.execute_script(box))
        assert closer < before
        window.find_element("css selector", "[data-zoom='0']").click()
        assert float(window.execute_script(box)) == before
        window.find_element("css selector", ".lane.bad svg").send_keys("\ue014")  # right
        assert "saves it" in window.find_element("id", "shown").text


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("script", [True, False])
def test_it_fits_and_shows_its_lanes(width: int, script: bool, stale: Made, tmp_path: Path) -> None:
    with browser(width=width, script=script) as window:
        opened(window, page_of(*stale), tmp_path)
        lane = window.find_element("css selector", ".lane.bad svg")
        assert lane.is_displayed()
        assert lane.size["width"] > width * 0.4
        assert window.find_element("css selector", ".tools").is_displayed() == script
        for element in window.find_elements("css selector", "body, .sides, .timeline, .lanes"):
            assert element.rect["x"] + element.rect["width"] <= width + 1


def test_light_and_dark(stale: Made, tmp_path: Path) -> None:
    with browser() as window:
        opened(window, page_of(*stale), tmp_path)
        seen = set()
        for theme in ("light", "dark"):
            feature = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            window.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
            seen.add(window.execute_script("return getComputedStyle(document.body).color"))
        assert len(seen) == 2
