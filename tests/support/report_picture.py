"""docs/report-light.png and docs/report-dark.png: the report of a real run as a browser shows it. `make picture-report`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from headrace.pipeline.demo import emulated_bucket
from headrace.transforms.storage import open_store
from tests.support.browser import browser
from tests.support.report_runs import two_runs


def main(folder: Path) -> None:
    with emulated_bucket("digits") as address, tempfile.TemporaryDirectory() as work, browser() as chromium:
        os.environ["STORAGE_EMULATOR_HOST"] = address
        _, today = two_runs("gs://digits")
        store, page = open_store(today), Path(work, "report.html")
        page.write_bytes(store.read(store.stat(today)))
        chromium.open(page)
        for scheme in ("light", "dark"):
            chromium.media(scheme)
            chromium.screenshot(folder / f"report-{scheme}.png", height=1150)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
