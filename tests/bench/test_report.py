"""The page that can be cited: all figures, nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from captum_clip.bench.evaluator import Evaluation, evaluate
from captum_clip.bench.report import REPORT, render
from captum_clip.bench.run import EvaluationConfig
from tests.bench.cases import SMALL
from tests.bench.data.writing import save_bytes
from tests.bench.test_tables import metric, rows, summary

MANIFEST = {"model": {"name": "demo/vit"}, "config": {"seed": 0}, "data": [], "environments": []}


def page(given: Any, metrics: Any, **options: Any) -> str:
    found = summary(given, metrics, **options)
    about = {"model": "<demo> & co", "seed": 0}
    return render(REPORT, found, title="A <page>", about=about, curves={}, manifest=MANIFEST)


def test_page_has_every_cell_of_the_tables() -> None:
    """With the figure to sort by, the best in bold, baselines in a block of their own."""
    given = {
        "ours": {"pointing": rows(0.25, -0.75), "area": rows(1, 2)},
        "a <b> *c*": {"pointing": rows(0.5, 0.5)},
        "random": {"pointing": rows(0.0, 0.0), "area": rows(4, 4)},
    }
    text = page(given, [metric("pointing"), metric("area", "low")], baselines=["random"])
    cells = re.findall(r'<td data-value="([^"]*)">(.*?)</td>', text)
    assert [value for value, _ in cells] == ["-0.25", "1.5", "0.5", "nan", "0.0", "4.0"]
    assert cells[0][1].startswith('\N{MINUS SIGN}0.250 <span class="interval">[')
    assert cells[2][1].startswith("<strong>0.500</strong> ")
    assert cells[3][1] == "\N{EN DASH}"
    assert "<li>Where" in text.partition("What was measured")[0]
    assert "a &lt;b&gt; *c*</th>" in text
    assert text.count("<tbody>") == 2
    assert text.index("Baselines</th>") < text.index('data-value="random"')
    assert "<dd>&lt;demo&gt; &amp; co</dd>" in text
    assert "how pointing is measured" in text


def test_a_difference_has_the_sign_that_it_has() -> None:
    """A plus alone where more is measured; a lower figure may be the better one."""
    given = {"ours": {"area": rows(1.0, 2.0)}, "theirs": {"area": rows(4.0, 4.0)}}
    wanted: dict[Any, str] = {"low": "\N{MINUS SIGN}2.500", "high": "+2.500"}
    for better, difference in wanted.items():
        flipped = {name: given[other] for name, other in zip(given, reversed(given), strict=True)}
        text = page(
            given if better == "low" else flipped, [metric("area", better)], reference="theirs"
        )
        plain = re.sub(r"<[^>]*>", "", text)
        assert re.search(rf"ours, .*, {re.escape(difference)} .*against theirs", plain), plain


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, vit: str, masks: str, whole: dict[str, bytes]
) -> tuple[Evaluation, str]:
    """A small evaluation, compared with another method, and its page."""
    output = tmp_path_factory.mktemp("report") / "out"
    for name, data in whole.items():
        save_bytes(data, output / name)
    config = EvaluationConfig(vit, str(output), (masks,), reference="rollout", **SMALL)
    return evaluate(config), (output / "report.html").read_text()


def test_page_needs_nothing_from_elsewhere(made: tuple[Evaluation, str]) -> None:
    """No link, script, style, picture or font but its own."""
    _, text = made
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)', text))
    assert not re.search(r"https?://|@import|url\(|<link|<script [^>]*src", text)
    assert set(re.findall(r'href="(.)', text)) == {"#"}
    targets = set(re.findall(r'href="#([^"]*)', text))
    assert targets <= set(re.findall(r' id="([^"]*)', text))


@pytest.mark.slow
def test_page_sorts_and_is_accessible_in_a_browser(
    made: tuple[Evaluation, str], tmp_path: Path
) -> None:
    """By mouse and by keyboard, in both color schemes, on a narrow screen too."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the browser test needs Chromium: apt-get install chromium"
    (tmp_path / "report.html").write_text(made[1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for scheme, width in (("light", 1280), ("dark", 420)):
            opened = browser.new_page(
                color_scheme=scheme,
                viewport={"width": width, "height": 900},
            )
            errors: list[str] = []
            opened.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            opened.goto((tmp_path / "report.html").as_uri())
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            violations = Axe().run(opened).response["violations"]
            assert [rule["id"] for rule in violations] == []
            table = opened.locator("table").first
            head = table.get_by_role("button", name="energy")
            orders = []
            for press in (head.click, lambda head=head: head.press("Enter")):
                press()
                values = (
                    table.locator("tbody")
                    .first.locator("td:nth-child(4)")
                    .evaluate_all("cells => cells.map(cell => parseFloat(cell.dataset.value))")
                )
                orders.append(values)
            assert orders[0] == sorted(orders[0], reverse=True)
            assert orders[1] == sorted(orders[0])
            assert table.locator("th[aria-sort=ascending]").inner_text().startswith("energy")
            assert errors == []
        browser.close()
