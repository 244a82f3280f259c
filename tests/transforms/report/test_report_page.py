"""The page as a real browser shows it: light, dark and printed, without network, by keyboard, and read by the next run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser, browser
from tests.support.not_shown import not_shown
from tests.support.report_pages import KINDS, LONG, write_page
from tests.support.report_runs import BAD_ROWS, FILES, ROWS, two_runs

MEDIA = [("light", "screen"), ("dark", "screen"), ("light", "print"), ("dark", "print")]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    yesterday, today = two_runs(str(tmp_path_factory.mktemp("runs")))
    return Path(yesterday), Path(today)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        not_shown(f"how a browser shows the report: there is no {' and no '.join(missing)}")
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, reports: tuple[Path, Path]) -> Browser:
    chromium.media("light")
    chromium.open(reports[1])
    return chromium


def told(page: Browser, selector: str) -> list[str]:
    return page.js(f"return [...document.querySelectorAll({selector!r})].map((e) => e.textContent.trim())")


def test_the_first_question_is_answered_first(page: Browser) -> None:
    assert told(page, ".says") == ["Yes, but", f"{FILES * ROWS - len(BAD_ROWS):,}", "Nearly"]
    worked, many, alike = told(page, ".more")
    assert worked.startswith(
        "3 rows (0.02 %) could not be predicted and are in dead letters. The limit is 1 %, rounded up"
    )
    assert many.startswith("15,000 rows computed in")
    assert "shifted" in alike
    assert "As many rows." in alike
    assert told(page, "h3 .mark") == ["shifted", "shifted", "shifted", "steady"]
    text = page.js("return document.body.innerText")
    for name in ("part-00000.parquet", "part-00001.parquet"):
        assert name in text
    for word in ("Expected: 64 values", "Found: 63 values", "saved_model, signature serving_default", "tensorflow 2"):
        assert word in text


def test_the_first_of_two_runs_has_nothing_to_be_held_against(chromium: Browser, reports: tuple[Path, Path]) -> None:
    chromium.open(reports[0])
    assert told(chromium, ".says") == ["Yes", f"{FILES * ROWS:,}", "Nothing to compare"]
    assert told(chromium, "h3 .mark") == []


def test_everything_is_drawn_without_a_word_or_a_request(page: Browser) -> None:
    charts = page.js("return document.querySelectorAll('figure[data-chart]').length")
    assert page.js("return document.documentElement.dataset.drawn") == str(charts) == "7"
    assert page.js(_PAINTED) == [True] * 7
    for scheme, kind in MEDIA:
        page.media(scheme, kind)
    assert page.complaints() == []
    assert page.requests() == []


# Whether each canvas has the colours of its bars or areas on it.
_PAINTED = """
const root = getComputedStyle(document.documentElement);
return [...document.querySelectorAll("figure[data-chart]")].map((figure) => {
  const canvas = figure.querySelector("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i + 3] === 255) seen.add("#" + [0, 1, 2].map((k) => pixels[i + k].toString(16).padStart(2, "0")).join(""));
  }
  const of = figure.querySelector(".of-now") ? "--now" : "--predict";
  return seen.has(root.getPropertyValue(of).trim());
});
"""


@pytest.mark.parametrize(("scheme", "kind"), MEDIA)
def test_it_can_be_read_in_light_dark_and_print(page: Browser, scheme: str, kind: str, tmp_path: Path) -> None:
    page.media(scheme, kind)
    lowest, where = page.contrasts()[0]
    assert lowest >= 4.5, where
    dark = (scheme, kind) == ("dark", "screen")
    colour = page.js("return getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 24, 27)" if dark else "rgb(255, 255, 255)")
    assert page.js(_PAINTED) == [True] * 7
    page.screenshot(tmp_path / "page.png", height=900)
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_it_prints_from_the_dark(page: Browser, tmp_path: Path) -> None:
    page.media("dark")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
    assert page.js("return document.documentElement.hasAttribute('data-print')") is False
    assert page.js(_PAINTED) == [True] * 7


def test_the_keyboard_reaches_and_reads_every_chart(page: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> Any:
        for key in keys:
            page.driver.switch_to.active_element.send_keys(key)

    reached, tables = [], 0
    page.js("document.body.tabIndex = -1; document.body.focus()")
    for _ in range(14):
        press(Keys.TAB)
        what = page.js("return [document.activeElement.className, document.activeElement.tagName]")
        tables += what[1] == "SUMMARY"
        if what[0] != "chart":
            continue
        outlined = page.js("return getComputedStyle(document.activeElement).outlineStyle")
        press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        reached.append(page.js("return document.activeElement.parentElement.querySelector('output').textContent"))
        assert outlined != "none"
    assert len(reached) == tables == 7
    assert all(": " in text for text in reached), reached
    assert "previous run" in reached[0]
    assert reached[0].startswith("1: ")
    press(Keys.SPACE)
    assert page.js("return document.activeElement.parentElement.open") is True


def test_it_fits_a_telephone(page: Browser, tmp_path: Path) -> None:
    page.screenshot(tmp_path / "narrow.png", width=400, height=800)
    page.driver.set_window_size(500, 900)
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    page.driver.set_window_size(1100, 900)
    names = page.js("return [...document.querySelectorAll('canvas')].map((e) => e.getAttribute('aria-label'))")
    assert all(name and "%" in name for name in names[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_hard_pages_fit_every_width(chromium: Browser, tmp_path: Path, kind: str) -> None:
    chromium.media("light")
    chromium.open(write_page(kind, tmp_path))
    charts = chromium.js("return document.querySelectorAll('figure[data-chart]').length")
    assert chromium.js("return document.documentElement.dataset.drawn") == str(charts)
    for width in (390, 768, 1440):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.media("light")
        assert chromium.js("return document.documentElement.scrollWidth") == width
        wide = "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll,.chart')"
        assert chromium.js(f"{wide} && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)") == []
        tracks = "[...document.querySelectorAll('.track')]"
        assert chromium.js(f"return {tracks}.every((e) => e.getBoundingClientRect().right <= innerWidth)"), width
    chromium.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    for scheme, media in MEDIA if kind != "200 columns" else ():  # these hold nothing that the others lack, many times
        chromium.media(scheme, media)
        lowest, where = chromium.contrasts()[0]
        assert lowest >= 4.5, where
    chromium.media("light")
    assert chromium.complaints() == []
    text = chromium.js("return document.body.innerText")
    # Of Python and of JSON.
    for sign in ("{'", "['", '{"', "None", "True", "False", "undefined", "Infinity", "all 1 "):
        assert sign not in text
    assert not re.search(r"(?<!\d)1 (rows|shards|files|batches)\b", text)
    assert ("min\tmean\tmedian\tmax\tstd. dev." in text) or kind == "long names"
    if kind == "whole":
        chromium.js("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        assert "100.00 %" in chromium.js("return document.body.innerText")
    if kind == "bad rows":
        assert "1 row (1.639 %) could not be predicted and is in dead letters. The limit is 1 %, rounded up" in text
    if kind == "long names":
        assert LONG in text.replace("\n", "")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1, "100 %"),
        (0.5, "50 %"),
        (0.1, "10 %"),
        (0.125, "12.5 %"),
        (0, "0 %"),
        (0.0001234, "0.0123 %"),
        (1e-9, "0.0000001 %"),
    ],
)
def test_shares_in_percent(page: Browser, share: float, text: str) -> None:
    """As the page's own function writes them, which the report keeps to itself."""
    source = (Path(__file__).parents[3] / "transforms/report/page.js").read_text("utf-8")
    function = source.partition("const percent = ")[2].partition(";\n")[0]
    assert page.js(f"return ({function})({share!r})") == text
