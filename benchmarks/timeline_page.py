"""How long the page of `gradext run --html` takes to open, for a recording of a million events.

    python benchmarks/timeline_page.py [--out DIR] [--quick]

Opened by a headless Chromium through chromedriver (both have to be on PATH), from the navigation's
start to the end of its load event, script included; beside it a page without anything, opened in
turns. Each row also has its slowest round: the bar is for every opening, not for the median.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch

import gradext
from gradext.diagnosis.model import Diagnosis
from gradext.diagnosis.run_report import RunReport, Told
from gradext.recording.drawing import Drawn
from gradext.reporters import report_html

OPENED = """
const entry = performance.getEntriesByType("navigation")[0];
return [entry.loadEventEnd, document.querySelectorAll(".lane[data-lane]").length];
"""
EMPTY = "<!doctype html><meta charset=utf-8><title>empty</title>"


def recorded(events: int) -> tuple[Drawn, list[Diagnosis]]:
    """Writes to 200 tensors, a training between them, and a stale save at the end."""
    found: list[Diagnosis] = []
    with gradext.record(memory=800, uses=True) as recording:
        tensors = [torch.zeros(4) for _ in range(200)]
        net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(20)))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for number in range(events // len(tensors)):
            for tensor in tensors:
                tensor.add_(1)
            if number % 50 == 0:
                optimizer.zero_grad()
                net(torch.ones(2, 8)).sum().backward()
                optimizer.step()
        hidden = torch.sigmoid(net(torch.ones(2, 8)))
        hidden.mul_(2)
        try:
            hidden.sum().backward()
        except RuntimeError as error:
            found = list(gradext.explain(error))
        data = recording.data
        assert recording.drawing is not None
        return Drawn(data, recording.drawing), found


def pages(events: int) -> dict[str, tuple[str, int]]:
    """Of each page its text, and how many events it is of."""
    drawn, found = recorded(events)
    count = len(drawn.data.writes) + 2 * len(drawn.data.uses)

    def page(told: list[Diagnosis]) -> str:
        facts = tuple(map(Told, told))
        return report_html.text(RunReport("0", torch.__version__, 1, None, facts, drawn=drawn))

    return {"a fault": (page(found), count), "no fault": (page([]), count), "empty": (EMPTY, 0)}


def opened(texts: dict[str, tuple[str, int]], rounds: int) -> list[dict[str, Any]]:
    from selenium import webdriver

    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        common.refuse("needs chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu"):
        options.add_argument(f"--{word}")
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    times: dict[str, list[float]] = {name: [] for name in texts}
    lanes: dict[str, int] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(rounds):
                for name, (text, _) in texts.items():
                    # A new name each time: nothing of it is cached.
                    path = Path(folder, f"{name.replace(' ', '-')}-{number}.html")
                    path.write_text(text, encoding="utf-8")
                    window.get(path.as_uri())
                    milliseconds, lanes[name] = window.execute_script(OPENED)
                    times[name].append(milliseconds)
    finally:
        window.quit()
    empty = times["empty"]
    return [
        {
            "page": name,
            "events": count,
            "tensors drawn": lanes[name],
            "KiB": round(len(text.encode()) / 1024),
            "opens in, ms": round(statistics.median(times[name])),
            "slowest, ms": round(max(times[name])),
            "over an empty page": round(
                statistics.median(a / b for a, b in zip(times[name], empty, strict=True)), 1
            ),
        }
        for name, (text, count) in texts.items()
    ]


def main() -> int:
    args = common.parser(__doc__).parse_args()
    texts = pages(50_000 if args.quick else 1_000_000)
    common.record("timeline_page", opened(texts, 3 if args.quick else 15), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
