"""The report in a real browser, a headless Chromium: `make test-page`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import build_run, fail

from grasp_rl.reporting import render

pytestmark = [pytest.mark.page, pytest.mark.filterwarnings("default")]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium found: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of six axes, so that labels are long, with a run that failed and a name that is markup."""
    folder = tmp_path_factory.mktemp("study")
    axes = ["reward.terms.mask_iou.tiers", "algorithm.prompts_per_step", "algorithm", "data.target", "prompt", "reward"]
    for place, key in enumerate(["", *axes]):
        words = [f"{name}={'other' if name == key else 'usual'}" for name in axes]
        build_run(folder / f"r{place}", [*words, "seed=0"], gain=0.1 * place)
    fail(folder / "lost", ["algorithm=<b>mine</b>", "seed=0"], "no <script>alert(1)</script> luck")
    render.write_report(folder, out=folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_alone_and_fits(report: Path, browser: Any, width: int, scheme: str) -> None:
    page = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url[:60]))
    page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length") == 0
    overlapping = """[...document.querySelectorAll("thead tr")].some(row => [...row.cells].some(
        cell => cell.scrollWidth > cell.clientWidth + 1))"""
    assert not page.evaluate(overlapping)


def test_a_number_opens_its_samples(report: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    link = page.locator("tbody tr:not(.best) td a").first
    target = page.locator(str(link.get_attribute("href")))
    assert not target.is_visible()  # folded: only the best configuration's stand open
    link.click()
    assert target.is_visible()
    assert target.locator("img").count() > 0
