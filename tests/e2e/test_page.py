"""The page in a real browser: pictures in, answers drawn, settings live; by keyboard, on a phone, in the dark."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.services import ROOT, Running, picture
from tests.unit.bundles import known_bundle

CHROMIUM = os.environ.get("TRIFOCAL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")

SHOTS = ROOT / "outputs" / "tests"
BLUE = (0, 0, 255)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Running(known_bundle(tmp_path_factory.mktemp("bundle") / "known")) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Visit:
    """A tab on the page; `outside` lists requests to other places, `faults` what the console complained of."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.outside, self.faults = [], []
        self.page.on("request", lambda request: self._note(request.url, url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.goto(url)
        self.page.wait_for_selector("#heads fieldset, #keyform:not([hidden])")

    def _note(self, asked, url):
        if not asked.startswith((url, "data:", "blob:")):
            self.outside.append(asked)

    def give(self, *files):
        """Picks files of (name, bytes)."""
        self.page.set_input_files(
            "#files", [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
        )

    def pixel(self, x, y):
        return self.page.evaluate(f"[...canvas.getContext('2d').getImageData({x}, {y}, 1, 1).data].slice(0, 3)")

    def summary(self, part):
        # A function to wait for would be evaluated again and again, which the page's security policy forbids.
        self.page.locator("#summary").filter(has_text=part).wait_for(state="attached")
        return self.page.text_content("#summary")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


def slide(page, selector, value):
    page.eval_on_selector(
        selector, "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_a_picked_picture_is_answered_drawn_and_can_be_explored(service, browser):
    with Visit(browser, service.url, viewport={"width": 1200, "height": 800}) as visit:
        page = visit.page
        visit.give(("blue.png", picture(200, 200, BLUE)))
        text = visit.summary("colour: blue")
        assert "things: 1 box" in text
        assert "ground: cold 100.0 %" in text
        # The mask tints the blue picture; taking its class away gives the picture back.
        tinted = visit.pixel(150, 20)
        assert tinted != list(BLUE)
        page.uncheck("#class-ground-1")
        assert visit.pixel(150, 20) == list(BLUE)
        # The known box has the score 0.9: its edge is drawn from there on down.
        edge = visit.pixel(50, 130)
        assert edge != list(BLUE)
        slide(page, "#threshold", 0.95)
        assert "things: 0 boxes" in visit.summary("things: 0 boxes")
        assert visit.pixel(50, 130) == list(BLUE)
        slide(page, "#threshold", 0.01)
        visit.summary("things: 2 boxes")
        page.uncheck("#class-things-1")
        visit.summary("things: 1 box")
        # The label stands in the picture's corner, while it is switched on.
        assert visit.pixel(1, 198) != list(BLUE)
        page.uncheck("#head-colour")
        assert "colour" not in page.text_content("#summary")
        assert visit.pixel(1, 198) == list(BLUE)
        curl = page.text_content("#curl")
        assert "--data-binary '@blue.png'" in curl
        assert "heads=things,ground" in curl
        assert "round trip" in page.text_content("#timing")
        assert visit.outside == []
        assert visit.faults == []


def test_the_example_several_pictures_and_a_bad_one(service, browser):
    with Visit(browser, service.url, viewport={"width": 1200, "height": 800}) as visit:
        visit.page.click("#example")
        visit.summary("colour:")
        SHOTS.mkdir(parents=True, exist_ok=True)
        visit.page.screenshot(path=SHOTS / "page.png")
        visit.give(("red.png", picture(60, 60)), ("bad.png", b"no picture"))
        visit.page.wait_for_selector("#error:not([hidden])")
        assert "bad.png: Not a picture of a known format" in visit.page.text_content("#error")
        assert visit.page.locator("#strip button").all_text_contents() == ["example.jpg", "red.png"]
        assert "red" in visit.summary("colour: red")
        visit.page.click("text=example.jpg")
        assert visit.page.get_attribute("#strip button", "aria-pressed") == "true"
        # The refused picture's status is the browser's own console line; the page itself has no fault.
        assert all("415" in fault for fault in visit.faults)


def test_a_picture_that_the_browser_cannot_show_rightly_is_told_and_never_shown_turned(service, browser):
    lying = Image.new("RGB", (120, 60), "blue")
    lying.paste("red", (0, 0, 30, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # upright: 60 x 120, red above
    with Visit(browser, service.url) as visit:
        for suffix in ("tiff", "webp", "png"):
            file = io.BytesIO()
            lying.save(file, suffix.upper(), exif=exif)
            visit.give((f"lying.{suffix}", file.getvalue()))
            visit.page.wait_for_selector(f"text=lying.{suffix}")
            for head in ("colour", "things", "ground"):
                visit.page.uncheck(f"#head-{head}")
            red, _, blue = visit.pixel(60, 5)
            shown = "cannot show" not in visit.page.text_content("#summary")
            assert shown or suffix != "png"
            assert (red > 200) == shown
            assert blue < 50


def test_a_service_that_is_away_and_a_wrong_key_are_told(service, bundle, browser):
    with Visit(browser, service.url) as visit:
        visit.context.set_offline(True)
        visit.page.click("#example")
        visit.page.wait_for_selector("text=The service cannot be reached")
        visit.give(("red.png", picture()))
        visit.page.wait_for_selector("text=red.png: The service cannot be reached")
    with (
        Running(bundle, "--drain", "0", TRIFOCAL_API_KEYS="open-sesame") as guarded,
        Visit(browser, guarded.url) as visit,
    ):
        assert visit.page.is_hidden("#error")
        visit.page.fill("#key", "close-sesame")
        visit.page.press("#key", "Enter")
        visit.page.wait_for_selector("text=The API key is missing or wrong")


def test_by_keyboard_alone(service, browser):
    with Visit(browser, service.url) as visit:
        page = visit.page
        for _ in range(2):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "example"
        page.keyboard.press("Enter")
        visit.summary("colour:")
        reached = set()
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {"threshold", "strength", "head-colour", "class-things-0", "curl", "copy"} <= reached
        page.focus("#threshold")
        before = page.input_value("#threshold")
        page.keyboard.press("ArrowRight")
        assert float(page.input_value("#threshold")) == pytest.approx(float(before) + 0.01)


def test_on_a_phone_in_the_dark_nothing_sticks_out(service, browser):
    options = {"viewport": {"width": 360, "height": 700}, "color_scheme": "dark", "has_touch": True, "is_mobile": True}
    with Visit(browser, service.url, **options) as visit:
        visit.page.tap("#example")
        visit.summary("colour:")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = visit.page.evaluate("getComputedStyle(document.body).color")
        assert sum(map(int, ground[4:-1].split(","))) < 150 < sum(map(int, ink[4:-1].split(",")))
        SHOTS.mkdir(parents=True, exist_ok=True)
        visit.page.screenshot(path=SHOTS / "page_phone_dark.png", full_page=True)


def test_a_version_that_takes_over_meanwhile_shows_its_own_heads(service, browser, tmp_path):
    former = known_bundle(tmp_path / "former", version="0", heads=("things",))
    with Running(former, "--drain", "0") as old, Visit(browser, old.url) as visit:
        groups = visit.page.locator("#heads fieldset")
        visit.give(("blue.png", picture(200, 200, BLUE)))
        visit.summary("things: 1 box")
        assert groups.count() == 1
        slide(visit.page, "#threshold", 0.2)
        for path in ("**/model", "**/predict?*"):
            visit.context.route(
                path, lambda route: route.continue_(url=route.request.url.replace(old.url, service.url))
            )
        visit.give(("red.png", picture(200, 200)))
        visit.summary("colour: red")
        assert groups.count() == 3
        assert visit.page.text_content("#shown") == "0.20"
        visit.page.click("text=blue.png")
        assert visit.summary("things: 1 box") == "things: 1 box"
        assert groups.count() == 1
        assert visit.faults == []


def test_the_page_asks_for_a_key_where_one_is_needed(tmp_path, browser):
    bundle = known_bundle(tmp_path / "known")
    with (
        Running(bundle, "--drain", "0", TRIFOCAL_API_KEYS="open-sesame") as service,
        Visit(browser, service.url) as visit,
    ):
        visit.page.fill("#key", "open-sesame")
        visit.page.press("#key", "Enter")
        visit.page.wait_for_selector("#heads fieldset")
        visit.give(("red.png", picture()))
        visit.summary("colour: red")


def test_the_api_description_is_readable_without_the_internet(service, browser):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(service.url + "/docs")
    page.wait_for_selector("details")
    assert "POST /predict" in page.text_content("#paths")
    assert all(url.startswith((service.url, "data:")) for url in asked)
    context.close()


def test_every_file_of_the_page_is_served_and_calls_nobody():
    from serving.routes.page import FOLDER, KINDS

    assert {file.name for file in Path(FOLDER).iterdir()} == set(KINDS)
    for name in KINDS:
        if not name.endswith(".jpg"):
            text = (FOLDER / name).read_text()
            assert "http://" not in text
            assert "https://" not in text
