"""The page in a real browser, a headless Chromium: `make test-page`."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from demo_server import served
from PIL import Image as Pillow

from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prediction.config import read_config

pytestmark = [pytest.mark.page, pytest.mark.filterwarnings("default")]

pytest.importorskip("gradio", reason="the extra demo is not installed: pip install 'grasp-rl[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium found: apt-get install chromium", allow_module_level=True)

QUIET = 500
"""Milliseconds without a request after which the page is at rest."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two run folders that answer in different schemes."""
    result = {}
    for name, scheme in (("one", "box"), ("two", "points")):
        folder = tmp_path_factory.mktemp(name)
        config = read_config(None, scheme, "synthetic_sam2_small", [])
        (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
        TinyPolicy().save(folder / "checkpoints" / "step_000010" / "policy")
        result[name] = folder
    return result


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("temporary"), runs) as address:
        yield address


class Watched:
    """A tab, and what it asked for and complained about."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda asked: self._note(asked.url, address))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(address)
        self.page.get_by_role("button", name="Ask", exact=True).wait_for()

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.elsewhere.append(url)

    def example(self, words: str = "A boat on a lake", policy: str = "tiny") -> Any:
        """Choose a policy, click an example and wait for its answer."""
        self.choose("Policy", policy)
        self.page.get_by_role("button", name=words).click()
        panel = self.page.locator(f"#answers section[aria-label='{policy}']")
        panel.wait_for()
        return panel

    def choose(self, label: str, value: str) -> None:
        field = self.page.get_by_label(label, exact=True)
        if field.input_value() != value:
            field.click()
            field.fill(value)
            field.press("Enter")
            playwright.expect(field).to_have_value(value)

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """From and to shares of the image's width and height."""
        self.page.locator(".canvas").scroll_into_view_if_needed()
        seen = self.page.locator(".canvas").bounding_box()
        at = [(seen["x"] + x * seen["width"], seen["y"] + y * seen["height"]) for x, y in ((x0, y0), (x1, y1))]
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        self.page.mouse.move(*at[1], steps=6)
        self.page.mouse.up()

    @property
    def marks(self) -> Any:
        return self.page.locator("#marks textarea")

    @property
    def own(self) -> Any:
        return self.page.locator("#yours section")


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Watched]:
    watched = Watched(browser, address)
    yield watched
    watched.context.close()
    assert watched.elsewhere == [], "the page asks for something beyond this machine"
    assert watched.complaints == []


def test_load_ask_and_see_the_mask(tab: Watched) -> None:
    assert tab.page.title() == "grasp_rl"
    assert tab.page.get_by_role("heading", level=1).inner_text() == "Point at things in aerial images"
    panel = tab.example()
    picture = panel.get_by_role("img")
    assert picture.get_attribute("alt").startswith("The image with the mask of tiny in red. 1 thing")
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 448
    for text in ("What it thought", "1 vessel", "IoU with the true mask:", "Reward:", "box_iou", "s to answer"):
        assert text in panel.inner_text()
    red = picture.evaluate(
        """image => { const c = document.createElement('canvas'); c.width = image.naturalWidth; c.height = image.naturalHeight;
        const g = c.getContext('2d'); g.drawImage(image, 0, 0); const d = g.getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i] > d[i + 1] + 60 && d[i] > d[i + 2] + 60) n++; return n / (d.length / 4); }"""
    )
    assert 0.01 < red < 0.1


def test_a_question_of_ones_own(tab: Watched) -> None:
    tab.example()
    question = tab.page.get_by_label("Question")
    question.fill("the roof")
    question.press("Enter")
    tab.page.get_by_text("The truth about this question is not known").wait_for()
    assert "Reward:" not in tab.page.locator("#answers").inner_text()


def test_drag_a_box_and_click_points(tab: Watched) -> None:
    tab.example()
    tab.drag(27 / 112, 28 / 112, 54 / 112, 40 / 112)
    tab.own.wait_for()
    assert tab.marks.input_value() == "box 27 28 54 40"
    text = tab.own.inner_text()
    assert "IoU with the true mask: 0." in text
    assert "Reward:" in text
    seen = tab.page.locator(".canvas").bounding_box()
    tab.page.mouse.click(seen["x"] + seen["width"] * 43.5 / 112, seen["y"] + seen["height"] * 33.5 / 112)
    playwright.expect(tab.marks).to_have_value("box 27 28 54 40 on 43 33")
    tab.page.keyboard.down("Shift")
    tab.page.mouse.click(seen["x"] + seen["width"] * 100.5 / 112, seen["y"] + seen["height"] * 100.5 / 112)
    tab.page.keyboard.up("Shift")
    playwright.expect(tab.marks).to_have_value("box 27 28 54 40 on 43 33 off 100 100")
    tab.page.get_by_role("button", name="Clear mine").click()
    playwright.expect(tab.marks).to_have_value("")
    playwright.expect(tab.own).to_have_count(0)


def test_two_runs_side_by_side(tab: Watched) -> None:
    tab.choose("Compare with", "two")
    one = tab.example("Several roofs", policy="one")
    two = tab.page.locator("#answers section[aria-label='two']")
    two.wait_for()
    first, second = one.bounding_box(), two.bounding_box()
    assert first["y"] == pytest.approx(second["y"], abs=2)
    assert first["x"] + first["width"] <= second["x"]
    assert ", box" in one.inner_text()
    assert ", points" in two.inner_text()


def test_options_are_chosen(tab: Watched) -> None:
    tab.page.get_by_role("button", name="Segmenter, prompt scheme").click()
    tab.choose("Segmenter", "box_fill")
    tab.choose("Prompt scheme", "box")
    tab.choose("Inference options", "agreement")
    panel = tab.example()
    assert "BoxFill" in panel.inner_text()
    assert "What the inference options did" in panel.inner_text()


def test_downloads(tab: Watched, tmp_path: Path) -> None:
    panel = tab.example()
    beginnings = {"PNG": b"\x89PNG", "JSON": b"{", "GeoPackage": b"SQLite format 3"}
    for name, beginning in beginnings.items():
        with tab.page.expect_download() as waiting:
            panel.get_by_role("link", name=name).click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        assert path.read_bytes().startswith(beginning)
        assert path.stem == "answer"
    assert json.loads((tmp_path / "answer.json").read_text())["query"] == "what has a bow"


def encoded(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(np.full((height, width, 3), (30, 90, 60), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def upload(tab: Watched, name: str, content: bytes) -> None:
    chooser = tab.page.get_by_label("An image of your own")
    chooser.set_input_files({"name": name, "mimeType": "image/png", "buffer": content})


def test_upload_and_bad_upload(tab: Watched) -> None:
    upload(tab, "forest.jpg", encoded(300, 200))
    tab.page.get_by_text("your PNG, 300 x 200 pixels").wait_for()
    playwright.expect(tab.page.get_by_label("Question")).to_have_value("")
    upload(tab, "roofs.png", b"<script>document.title = 'taken'</script>")
    alert = tab.page.get_by_role("alert").filter(has_text="no PNG, JPEG or TIFF")
    alert.wait_for()
    upload(tab, "huge.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 20_000_001)
    tab.page.get_by_role("alert").filter(has_text="larger than 20 MB").wait_for()
    assert tab.page.get_by_text("your PNG, 300 x 200 pixels").is_visible(), "the image before stays"
    tab.page.get_by_label("Question").fill("the roof")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    tab.page.locator("#answers section").wait_for()
    assert tab.page.title() == "grasp_rl"


TRAPS = (
    "<script>window.owned = 1; alert(1)</script><img src=x onerror='window.owned = 1'><svg onload='window.owned = 1'>"
    "</pre></details><iframe srcdoc='<script>parent.owned = 1</script>'></iframe><a href='javascript:window.owned = 1'>x</a>"
    "${window.owned = 1}{{window.owned = 1}}@children"
)


def test_a_script_in_the_models_text_stays_text(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path, says=f"<think>{TRAPS}</think> <answer>[]</answer>{TRAPS}") as address:
        tab = Watched(browser, address)
        question = tab.page.get_by_label("Question")
        question.fill(TRAPS)
        question.press("Enter")
        panel = tab.page.locator("#answers section")
        panel.wait_for()
        for summary in panel.locator("summary").all()[1:]:
            summary.click()
        tab.marks.fill(TRAPS)
        tab.page.get_by_role("button", name="Segment mine").click()
        tab.page.get_by_role("alert").wait_for()
        tab.page.wait_for_timeout(QUIET)
        assert tab.page.evaluate("window.owned") is None
        assert panel.locator("pre").first.inner_text().startswith("<script>window.owned = 1; alert(1)</script><img")
        assert tab.page.locator("#answers :is(script, iframe, svg, a[href^=javascript])").count() == 0
        assert tab.complaints == []
        tab.context.close()


def test_a_phone(browser: Any, address: str) -> None:
    """Nothing is wider than the screen, and a finger drags a box instead of the page."""
    tab = Watched(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab.example("Several roofs")
    wide = "() => [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    assert tab.page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert tab.page.evaluate(wide) == 0
    canvas = tab.page.locator(".canvas")
    canvas.scroll_into_view_if_needed()
    seen, before = canvas.bounding_box(), tab.page.evaluate("scrollY")
    finger = tab.context.new_cdp_session(tab.page)
    x, y = seen["x"] + 40, seen["y"] + 40
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 9):
        points = [{"x": x + 15 * step, "y": y + 15 * step}]
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.own.wait_for()
    assert tab.marks.input_value().startswith("box ")
    assert tab.page.evaluate("scrollY") == before
    assert tab.complaints == []
    tab.context.close()


def tab_to(tab: Watched, matches: str) -> None:
    """Press Tab until the focus is on what ``matches``, an expression of ``e``, is true of; it must be visibly marked."""
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate(f"(() => {{ const e = document.activeElement; return Boolean({matches}); }})()"):
            marked = "getComputedStyle(e)"
            look = (
                f"(() => {{ const e = document.activeElement, s = {marked}; return [s.outlineStyle, s.boxShadow]; }})()"
            )
            outline, shadow = tab.page.evaluate(look)
            assert outline != "none" or shadow != "none", f"the focus cannot be seen on {matches}"
            return
    raise AssertionError(f"no Tab leads to {matches}")


def test_keyboard_alone(tab: Watched) -> None:
    tab_to(tab, "e.innerText === 'A boat on a lake'")
    tab.page.keyboard.press("Enter")
    tab.page.locator("#answers section").wait_for()
    tab_to(tab, "e.type === 'file'")
    tab_to(tab, "e.closest('#question')")
    tab.page.keyboard.press("Control+a")
    tab.page.keyboard.type("the pond")
    tab_to(tab, "e.id === 'ask'")
    tab.page.keyboard.press("Space")
    tab.page.get_by_text("The truth about this question is not known").wait_for()
    tab_to(tab, "e.closest('#marks')")
    tab.page.keyboard.type("box 27 28 54 40 on 43 33")
    tab_to(tab, "e.id === 'mine'")
    tab.page.keyboard.press("Enter")
    tab.own.wait_for()
    tab_to(tab, "e.download === 'answer.png'")
    assert "IoU" not in tab.own.inner_text()  # nothing is known about a pond here


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_the_other_rules_of_wcag(browser: Any, address: str, scheme: str) -> None:
    """axe-core's rules for WCAG 2.1 A and AA, with answers, marks and a problem on the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make test-page")
    tab = Watched(browser, address, color_scheme=scheme)
    tab.page.get_by_role("button", name="Segmenter, prompt scheme").click()
    panel = tab.example("Several roofs")
    for summary in panel.locator("summary").all()[1:]:
        summary.click()
    tab.marks.fill("nonsense")
    tab.page.get_by_role("button", name="Segment mine").click()
    tab.page.get_by_role("alert").wait_for()
    tab.page.wait_for_timeout(QUIET)
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
    found = axe.Axe().run(tab.page, options=rules).response["violations"]
    assert [(v["id"], [node["html"][:120] for node in v["nodes"]]) for v in found] == []
    tab.context.close()
