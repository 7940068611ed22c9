"""Recordings for the tests of the timeline, and a browser to open pages in. Holds no test."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gradext
from gradext.diagnosis.model import Diagnosis
from gradext.diagnosis.run_report import RunReport, Told
from gradext.recording import incidents
from gradext.recording.drawing import Drawn
from gradext.reporters import report_html

Made = tuple[Drawn, list[Diagnosis]]


def made(program: Callable[[], object], **options: Any) -> Made:
    """What a program that is recorded leaves to be drawn; the error it ends with is explained."""
    seen: list[Diagnosis] = []
    stop = incidents.subscribe(lambda incident: seen.extend(incident.diagnoses))
    try:
        with gradext.record(uses=True, **options) as recording:
            with contextlib.suppress(RuntimeError):
                program()
            data = recording.data
            assert recording.drawing is not None
            recording.drawing.note_end(data)
    finally:
        stop()
    return Drawn(data, recording.drawing), seen


def page_of(drawn: Drawn | None, found: list[Diagnosis], error: str | None = None) -> str:
    told = tuple(Told(diagnosis) for diagnosis in found)
    return report_html.text(RunReport("0", torch.__version__, 1, error, told, drawn=drawn))


@contextlib.contextmanager
def browser(*, script: bool = True, width: int = 1400, dark: bool = False) -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium and chromedriver on PATH: the page is not opened")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    words = ["headless=new", "no-sandbox", "disable-gpu", f"window-size={width},1000"]
    for word in words + (["force-dark-mode"] if dark else []):
        options.add_argument(f"--{word}")
    if not script:
        options.add_experimental_option(
            "prefs", {"profile.managed_default_content_settings.javascript": 2}
        )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        # The width of what is seen, not of the window: that is never below 500.
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield window
    finally:
        window.quit()


def opened(window: Any, page: str, folder: Path) -> None:
    (folder / "page.html").write_text(page, encoding="utf-8")
    window.get((folder / "page.html").as_uri())
