"""Take a picture of a report's first screens, for README: `python tests/browser/screenshot.py REPORT PNG [HEIGHT]`."""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1200, 1230
NAMES = ("chromium", "chromium-browser", "google-chrome")


def take(report: Path, output: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    """Write a PNG of the page's upper part; raises FileNotFoundError where the report is missing."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.goto(report.resolve(strict=True).as_uri())
        page.wait_for_load_state()
        page.screenshot(path=output)
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else HEIGHT)
