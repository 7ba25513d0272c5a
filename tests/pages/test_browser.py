"""The pages in a real browser, without a network: no errors, slider and keys move the slices, the theme changes, phones and paper.

Needs playwright and a Chromium of the system's packages (chromium-headless-shell is enough); skipped without them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cache import tiny_cache
from tests.pages.conftest import EVIL
from zeus_union.cache.page.render import write_page
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.report.ablation_page import write_ablation_page
from zeus_union.pipelines.report.run import report_run
from zeus_union.stage1_instruct.inspect_page import cache_page

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PAGES = ("run", "ablation", "cache")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    with playwright.sync_playwright() as driver:
        # Chromium refuses its sandbox to root, as which containers run.
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = driver.chromium.launch(executable_path=executable, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(run: Path, ablation: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    tiny_cache.build(folder / "tiny.h5")
    with Cache(folder / "tiny.h5") as cache:
        cache_html = write_page(folder / "cache.html", cache_page(cache))
    return {
        "run": report_run(run, None, None, 1, None)[1],
        "ablation": write_ablation_page(ablation),
        "cache": cache_html,
    }


class Opened:
    """A page that is open, with all that it complained of and asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, **context: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **context)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.until("document.querySelectorAll('.plot svg').length > 0")

    def until(self, expression: str) -> None:
        """Waits until JavaScript is true. Playwright's own waiting evaluates in the page, which its policy forbids."""
        for _ in range(400):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {expression}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)


@pytest.fixture(scope="module")
def all_opened(browser: Any, pages: dict[str, Path]) -> Iterator[dict[str, Opened]]:
    """Each page once: to open one takes a second or more, most of it plotly's."""
    opened = {name: Opened(browser, pages[name]) for name in PAGES}
    yield opened
    for page in opened.values():
        page.close()


@pytest.fixture(params=PAGES)
def opened(request: pytest.FixtureRequest, all_opened: dict[str, Opened]) -> Opened:
    return all_opened[request.param]


@pytest.fixture
def run_opened(all_opened: dict[str, Opened]) -> Opened:
    return all_opened["run"]


def test_a_page_complains_of_nothing_loads_nothing_and_runs_no_script_of_a_text(opened: Opened) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [opened.url]
    assert opened.evaluate("window.hacked") is None
    assert opened.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_a_page_can_be_read_aloud_and_used_with_the_keyboard(opened: Opened) -> None:
    assert opened.evaluate("document.documentElement.lang") == "en"
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    assert opened.evaluate("[...document.querySelectorAll('.image')].filter((image) => !image.alt).length") == 0
    unlabelled = "[...document.querySelectorAll('input, select, button')].filter((e) => !(e.labels || []).length && !e.innerText)"
    assert opened.evaluate(f"{unlabelled}.length") == 0
    targets = (
        "[...document.querySelectorAll('nav a')].map((a) => document.querySelector(a.getAttribute('href')) !== null)"
    )
    assert all(opened.evaluate(targets))
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"


def test_arrow_keys_and_slider_move_through_the_slices(run_opened: Opened) -> None:
    article = run_opened.locator(".subject").first
    output, slider = article.locator("output"), article.locator(".slider")
    picture = article.locator(".image").first
    article.focus()
    run_opened.keyboard.press("Home")
    assert output.inner_text() == "0 (1 of 3)"
    first = picture.get_attribute("src")
    run_opened.keyboard.press("ArrowRight")
    assert output.inner_text() == "2 (2 of 3)" and slider.input_value() == "1"
    assert picture.get_attribute("src") != first and "slice 2" in str(picture.get_attribute("alt"))
    run_opened.keyboard.press("End")
    run_opened.keyboard.press("ArrowRight")
    assert output.inner_text() == "4 (3 of 3)"
    slider.focus()
    run_opened.keyboard.press("ArrowLeft")
    assert output.inner_text() == "2 (2 of 3)"
    assert slider.get_attribute("aria-valuetext") == "slice 2 (2 of 3)"
    slider.fill("0")
    assert output.inner_text() == "0 (1 of 3)"
    assert run_opened.locator(".subject").nth(1).locator("output").inner_text() != "0 (1 of 3)"  # each has its own


def test_texts_stand_beside_their_slice_as_they_are(run_opened: Opened) -> None:
    article = run_opened.locator(".subject", has_text="ben")
    article.locator(".slider").fill("1")
    said = article.locator(".said")
    assert EVIL in said.inner_text() and "Slice 2." in said.inner_text()
    assert said.locator("mark").all_inner_texts() == ["A liver on the right.", "A spleen on the left."]
    assert said.locator("sup").all_inner_texts() == ["31 %", "2 %"]
    assert "cut at the limit" in said.inner_text()
    article.locator(".slider").fill("2")
    assert "Slice 4." in said.inner_text() and said.locator("mark").count() == 0


def test_labels_fade_and_lie_on_the_modality_that_is_chosen(run_opened: Opened) -> None:
    article = run_opened.locator(".subject").first
    labels, below = article.locator(".labels").last, article.locator("figure").nth(2).locator(".image")
    article.locator(".opacity").fill("25")
    assert labels.evaluate("(image) => getComputedStyle(image).opacity") == "0.25"
    article.locator(".under").select_option("1")
    assert below.get_attribute("src") == article.locator("figure").nth(1).locator(".image").get_attribute("src")


def test_the_theme_follows_the_system_and_the_button(run_opened: Opened) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot .xtitle')).fill"
    button = run_opened.locator("#theme")
    light, light_ink = run_opened.evaluate(ground), run_opened.evaluate(ink)
    run_opened.emulate_media(color_scheme="dark")
    run_opened.until(f"{ink} !== {light_ink!r}")
    assert button.get_attribute("aria-pressed") == "true" and run_opened.evaluate(ground) != light
    button.click()
    assert button.get_attribute("aria-pressed") == "false" and run_opened.evaluate(ground) == light
    run_opened.until(f"{ink} === {light_ink!r}")
    button.click()
    assert button.get_attribute("aria-pressed") == "true" and run_opened.evaluate(ground) != light
    assert run_opened.complaints == []


def test_paper_gets_white_pages_with_everything_unfolded(run_opened: Opened) -> None:
    run_opened.emulate_media(media="print", color_scheme="dark")
    run_opened.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert run_opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert run_opened.locator("details:not([open])").count() == 0
    assert not run_opened.locator(".slider").first.is_visible() and not run_opened.locator("#theme").is_visible()
    run_opened.evaluate("window.dispatchEvent(new Event('afterprint'))")
    run_opened.emulate_media(media="screen", color_scheme="light")
    assert run_opened.locator("details:not([open])").count() > 0 and run_opened.locator("#theme").is_visible()


def test_a_page_fits_a_phone(opened: Opened) -> None:
    opened.set_viewport_size({"width": 375, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 375
    assert opened.evaluate("document.querySelector('.frame').getBoundingClientRect().width") > 120
    opened.until("[...document.querySelectorAll('.plot svg')].every((svg) => svg.clientWidth < 375)")
    opened.set_viewport_size({"width": 1280, "height": 900})
