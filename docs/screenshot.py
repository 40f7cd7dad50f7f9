"""Pictures of what a browser shows: the page with the map of a word, and a saved HTML file.

``docs/experiments/measured.py`` runs this; it needs the extra ``app``, Playwright and Chromium.
Without arguments it takes the page; with a file and a word, the file with that word pointed at.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

COMMAND = [sys.executable, "-m", "captum_clip", "app", "--port", "0"]


@contextmanager
def opened(address: str, width: int, height: int) -> Iterator[Page]:
    """Chromium at an address."""
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(address)
        yield page


def take_file(file: Path, word: str) -> None:
    """Point at a word of a saved explanation, and keep what is seen as ``html.png``."""
    with opened(file.resolve().as_uri(), 1000, 640) as page:
        page.locator(".chip", has_text=word).last.hover()
        page.wait_for_timeout(500)
        page.screenshot(path="html.png")


def take(address: str, output: Path) -> None:
    """Choose a word of the last text of the first example, and keep what is seen."""
    with opened(address, 1280, 840) as page:
        words = page.locator(".words:visible")
        downloads = page.get_by_role("button", name="Download maps (NPZ)")
        expect(words).to_have_count(3)
        expect(downloads).to_be_enabled()
        words.last.get_by_label("shark").check()
        expect(words.last).to_contain_text("norm")
        expect(downloads).to_be_enabled()
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(500)  # until colors have faded
        page.screenshot(path=output)


def main() -> None:
    """Take the file that is named, or start the page, take ``app.png`` and end it."""
    if len(sys.argv) > 1:
        take_file(Path(sys.argv[1]), sys.argv[2])
        return
    server = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        take(server.stdout.readline().split()[0], Path("app.png"))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
