"""The picture of the page: an example scene, its texts, and the map of one word.

``docs/experiments/measured.py`` runs this; it needs the extra ``app``, Playwright and Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

COMMAND = [sys.executable, "-m", "captum_clip", "app", "--port", "0"]


def take(address: str, output: Path) -> None:
    """Choose a word of the last text of the first example, and keep what is seen."""
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 840})
        page.goto(address)
        words = page.locator(".words:visible")
        downloads = page.get_by_role("button", name="Download maps (NPZ)")
        expect(words).to_have_count(3)
        expect(downloads).to_be_enabled()
        words.last.get_by_label("shark").check()
        expect(words.last).to_contain_text("norm")
        expect(downloads).to_be_enabled()
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(500)  # until colours have faded
        page.screenshot(path=output)


def main() -> None:
    """Start the page, take the picture ``app.png`` and end it."""
    server = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        take(server.stdout.readline().split()[0], Path("app.png"))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
