"""docs/report-light.png and docs/report-dark.png: the report of a real run as a browser shows it. `make picture-report`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.browser import browser
from tests.report_runs import two_runs


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work, browser() as chromium:
        _, today = two_runs(Path(work))
        chromium.open(today)
        for scheme in ("light", "dark"):
            chromium.media(scheme)
            chromium.screenshot(folder / f"report-{scheme}.png", height=1150)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
