"""A real browser without a window, as Debian's packages chromium and chromium-driver bring it."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

_CONTRAST = """
const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const rgba = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c.slice(0, 3);
    if (c[3] !== 0) throw new Error("half transparent: " + e.outerHTML.slice(0, 100));
  }
  return matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches ? [18, 18, 18] : [255, 255, 255];
};
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (own && e.checkVisibility() && !e.closest("script,style,noscript")) {
    found.push([ratio(rgba(getComputedStyle(e).color).slice(0, 3), behind(e)), e.textContent.trim().slice(0, 40)]);
  }
}
const root = getComputedStyle(document.documentElement);
const hex = (name) => root.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((h) => parseInt(h, 16));
found.push([ratio(hex("--soft"), hex("--page")), "text on the charts"]);
return found.sort((a, b) => a[0] - b[0]);
"""


class Browser:
    """What it asked the network for, and what it complained of, is kept from the last `open` on."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver: Any = driver

    def open(self, path: Path) -> None:
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(path.resolve().as_uri())

    def media(self, scheme: str, kind: str = "screen") -> None:
        """`scheme` is "light" or "dark", `kind` "screen" or "print"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})
        self.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def js(self, program: str) -> Any:
        return self.driver.execute_script(program)

    def contrasts(self) -> list[tuple[float, str]]:
        """Of each text that is seen with what is behind it, as WCAG 2.2 defines it; the lowest first."""
        return [(float(ratio), str(text)) for ratio, text in self.js(_CONTRAST)]

    def screenshot(self, path: Path, width: int = 1100, height: int | None = None) -> None:
        """Of the whole page, or its upper part; two device pixels for each of its own."""
        tall = height or int(self.js("return document.documentElement.scrollHeight"))
        metrics = {"width": width, "height": tall, "deviceScaleFactor": 2, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": False})
        path.write_bytes(base64.b64decode(shot["data"]))
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def pdf(self) -> bytes:
        printed = self.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
        return base64.b64decode(printed["data"])

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for, beside the page itself."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = (
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        )
        return [url for url in asked if not url.startswith("file://")]


@contextmanager
def browser() -> Iterator[Browser]:
    driver_path, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver_path is None or chromium is None:
        raise RuntimeError("There is no chromium: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument("--window-size=1100,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(driver_path))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
