"""An explanation as one HTML page: what it holds, and what it does in Chromium."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import Explanation, explain
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from captum_clip.visualization.colors import HEAT, blend, colormap

SCENE = draw_scene(0, objects=["horse", "dog"]).image
WIDE = Image.fromarray(draw_scene(3, objects=["horse", "dog"]).image).resize((900, 600))
TEXTS = ["a horse", "a dog", "a rocket"]
SENTENCE = "a horse and a dog"
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "texts": (WIDE, TEXTS, {"sign": "both", "method": "conservative"}),
    "words": (SCENE, SENTENCE, {"words": True}),
    "sides": (WIDE, [SENTENCE, "a rocket"], {"side": "both"}),
    "words alone": (SCENE, [SENTENCE, "a rocket"], {"side": "text"}),
    "pairs": (SCENE, SENTENCE, {"side": "pairs", "sign": "both"}),
    "images": (WIDE, None, {"side": "pairs", "reference": SCENE}),
    "several": ([SCENE, WIDE], TEXTS, {"whole": True}),
}


@pytest.fixture(scope="module")
def found() -> dict[str, Explanation]:
    return {
        kind: explain(image, texts, model="demo/vit", **options)
        for kind, (image, texts, options) in KINDS.items()
    }


@pytest.fixture(scope="module")
def folder(found: dict[str, Explanation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages")
    for kind, explanation in found.items():
        explanation.save(path / f"{kind}.html")
    return path


def data_of(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    data: dict[str, Any] = json.loads(text)
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_holds_the_maps_and_nothing_of_the_network(
    found: dict[str, Explanation], folder: Path, kind: str
) -> None:
    explanation, page = found[kind], (folder / f"{kind}.html").read_text("utf-8")
    assert len(page) < 300_000
    assert not re.findall(r"https?://|src=|href=|url\((?!#)|@import", page)
    data = data_of(page)
    assert data["names"] == list(explanation.names)
    for index, image in enumerate(data["images"]):
        norms = explanation.norms[:, None, None] if kind == "words" else 1  # what a word adds
        for sign, levels in image["maps"].items():
            wanted = explanation.maps[sign][index] * norms
            for (peak, cells), one in zip(levels, wanted, strict=True):
                read = torch.tensor(cells).view(data["grid"]) * peak / 999
                torch.testing.assert_close(read, one, rtol=0, atol=0.001 * peak)
        picture = Image.open(io.BytesIO(base64.b64decode(image["source"].partition(",")[2])))
        (height, width), box = explanation.crops[index].size, explanation.crops[index].box
        assert picture.size[0] * height / width == pytest.approx(picture.size[1], abs=1)
        np.testing.assert_allclose(
            np.array(image["box"]) * [width, height, width, height], box, atol=1e-6
        )


def test_notes_are_those_of_a_figure(found: dict[str, Explanation], folder: Path) -> None:
    of = {kind: data_of((folder / f"{kind}.html").read_text("utf-8")) for kind in KINDS}
    for kind in ("words", "pairs"):
        assert of[kind]["images"][0]["notes"] == [shown.note for shown in found[kind].shown()[0]]
        weights = [shown.weight for shown in found[kind].shown()[0]]
        assert of[kind]["images"][0]["weights"] == pytest.approx(weights)
    assert (
        of["texts"]["images"][0]["notes"][0] == f"cosine {float(found['texts'].scores[0, 0]):.3f}"
    )
    assert of["texts"]["images"][0]["hints"] == list(found["texts"].hints[0])
    assert of["sides"]["texts"][1] == [list(pair) for pair in found["sides"].text_maps[1]]


def test_a_contrast_names_its_two_texts(tmp_path: Path) -> None:
    """As its figure does; other pages say what supports, and what contradicts."""
    scene = draw_scene(0, objects=["horse", "dog"])
    cases: list[Any] = [("both", ["for a horse", "for a dog"]), ("negative", ["for a dog"])]
    for sign, wanted in cases:
        found = explain(scene.image, "a horse", against="a dog", sign=sign, model="demo/vit")
        page = found.save(tmp_path / "page.html").read_text("utf-8")
        assert re.findall(r'name="sign" value="\w+"[^>]*> (.+?) <', page) == wanted


def test_a_page_takes_the_look_of_a_figure(found: dict[str, Explanation], tmp_path: Path) -> None:
    seen = found["sides"].save(tmp_path / "a.html", original=False, interpolation="nearest")
    assert data_of(seen.read_text("utf-8"))["images"][0]["box"] == [0, 0, 1, 1]
    drawn = replace(found["sides"], photos=()).save(tmp_path / "a.html", original=WIDE)
    assert data_of(drawn.read_text("utf-8"))["images"][0]["box"] != [0, 0, 1, 1]
    assert found["words alone"].save(tmp_path / "words.html", cmap="viridis").exists()
    for look, message in (
        ({"alpha": 2}, "alpha"),
        ({"cmap": "jetset"}, "no color map 'jetset'"),
        ({"interpolation": "cubic"}, "a mode of bilinear"),
        ({"dpi": 300}, "b.html takes no `dpi`; leave it out"),
    ):
        with pytest.raises(InputError, match=f"^save: .*{message}"):
            found["texts"].save(tmp_path / "b.html", **look)
    assert not (tmp_path / "b.html").exists()


def test_a_notebook_shows_the_page_of_words_and_pairs(found: dict[str, Explanation]) -> None:
    assert found["texts"]._repr_html_() is None
    for kind in ("words", "pairs", "images"):
        frame = str(found[kind]._repr_html_())
        [page] = re.findall(r'<iframe srcdoc="([^"]*)"', frame)
        assert data_of(html.unescape(page))["names"] == list(found[kind].names)


# In a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the browser tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def opened(chromium: Any, file: Path, width: int = 1440, scheme: str = "light") -> Any:
    page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.errors, page.requests = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelector('#photo img').complete")
    return page


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark")])
def test_axe_finds_nothing(chromium: Any, folder: Path, kind: str, width: int, scheme: str) -> None:
    """Nothing is wider than the window, nothing is asked of a network, the scheme is kept."""
    from axe_playwright_python.sync_playwright import Axe

    page = opened(chromium, folder / f"{kind}.html", width, scheme)
    cells = page.locator("[role=option]")
    if cells.count():
        cells.nth(10).focus()  # tints, and an outline
    assert [rule["id"] for rule in Axe().run(page).response["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(13, 17, 23)"
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    assert page.errors == []
    page.close()


def said(page: Any) -> str:
    return plain(page.locator("[role=status]").inner_text())


def plain(text: str) -> str:
    """A text without the marks that keep a name from the right to the left by its number."""
    return re.sub("[\u2068\u2069]", "", text)


@pytest.mark.slow
def test_a_word_shows_its_map_and_a_region_its_words(
    chromium: Any, folder: Path, found: dict[str, Explanation]
) -> None:
    """By mouse: what is pointed at is gone with the mouse, what is clicked stays."""
    page, pairs = opened(chromium, folder / "pairs.html"), found["pairs"]
    chips, drawn = page.locator("label.chip"), "document.querySelector('canvas').toDataURL()"
    whole = page.evaluate(drawn)
    chips.nth(5).hover()
    dog = page.evaluate(drawn)
    assert dog != whole
    at = divmod(int(pairs.maps["positive"][0, 5].argmax()), 7)
    assert (
        said(page) == f"“dog”: {pairs.shown()[0][5].note}, strongest at row {at[0]}, column {at[1]}"
    )
    page.mouse.move(0, 0)
    assert page.evaluate(drawn) == whole
    chips.nth(5).click()
    page.mouse.move(0, 0)
    assert page.evaluate(drawn) == dog
    page.locator("[role=option]").nth(7 * at[0] + at[1]).hover()
    shares = (pairs.maps["positive"] - pairs.maps["negative"])[0, :, at[0], at[1]].tolist()
    written = [float(note.replace("−", "-")) for note in chips.locator("small").all_inner_texts()]
    assert written == pytest.approx(shares, rel=0.06, abs=1e-4)
    assert said(page).startswith(f"At row {at[0]}, column {at[1]}: dog +{shares[5]:.2g}")
    tints = chips.evaluate_all("chips => chips.map(c => c.style.getPropertyValue('--tint'))")
    assert [index for index, tint in enumerate(tints) if not tint.endswith("/ 0)")][-1] == 5
    page.get_by_label("contradicts it").check()
    assert page.evaluate(drawn) != dog
    assert page.locator("canvas").evaluate("canvas => canvas.style.filter") == 'url("#negative")'
    page.get_by_label("the image alone").check()
    assert page.locator("canvas").is_hidden()
    page.close()


@pytest.mark.slow
def test_the_page_needs_no_mouse(chromium: Any, folder: Path) -> None:
    """One stop of Tab for the signs, the regions and the words, with arrows inside of each."""
    page = opened(chromium, folder / "pairs.html", 390)
    focused = "document.activeElement.ariaLabel || document.activeElement.parentElement.innerText"
    keys = [("Tab", "supports it"), ("ArrowRight", "contradicts it"), ("Tab", "row 0, column 0")]
    keys += [("ArrowUp", "row 0, column 0"), ("ArrowDown", "row 1, column 0")]
    keys += [("ArrowRight", "row 1, column 1"), ("Tab", "whole text"), ("ArrowRight", "a")]
    keys += [("ArrowRight", "horse"), ("Shift+Tab", "row 1, column 1")]
    for key, wanted in keys:
        page.keyboard.press(key)
        assert page.evaluate(focused).partition("\n")[0].strip() == wanted
        expected = f"At {wanted}" if wanted.startswith("row") else f"“{wanted}”: "
        if wanted.startswith(("row", "a", "horse")):
            assert said(page).startswith(expected)
    alternative = plain(page.locator("#photo img").get_attribute("alt"))
    assert alternative.startswith("Map of “horse”: share")
    page.close()


@pytest.mark.slow
def test_cells_of_two_images_answer_each_other(
    chromium: Any, folder: Path, found: dict[str, Explanation]
) -> None:
    page, matched = opened(chromium, folder / "images.html"), found["images"]
    at = int(matched.maps["positive"][0, 31].argmax())
    page.locator("#other [role=option]").nth(30).hover()
    place = "row {}, column {}".format(*divmod(at, 7))
    assert said(page).startswith("row 4, column 2 of the other image: ")
    assert said(page).endswith(f"strongest at {place}")
    before = page.locator("#other canvas").evaluate("canvas => canvas.toDataURL()")
    page.locator("#photo [role=option]").nth(at).hover()
    assert page.locator("#other canvas").evaluate("canvas => canvas.toDataURL()") != before
    assert page.locator("#other img").get_attribute("alt") == f"What matches {place} of the image"
    page.locator("#other [role=option]").nth(30).focus()
    page.locator("#photo [role=option]").nth(at).hover()
    page.mouse.move(0, 0)  # the photo has no focus to come back to
    assert page.locator("#other img").get_attribute("alt") == "What matches the image"
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390])
@pytest.mark.parametrize("whole", [False, True])
def test_a_map_lies_on_a_photo_of_any_shape(
    chromium: Any, tmp_path: Path, width: int, whole: bool
) -> None:
    """In a high one, whose height is bounded, as well."""
    for size in ((300, 900), (900, 300)):
        found = explain(WIDE.resize(size), TEXTS, model="demo/vit", whole=whole, hints=False)
        page = opened(chromium, found.save(tmp_path / "a.html"), width)
        img, canvas = (page.locator(f"#photo {tag}").bounding_box() for tag in ("img", "canvas"))
        assert img["width"] / img["height"] == pytest.approx(size[0] / size[1], rel=0.02)
        assert max(img["width"], img["height"]) <= 577
        left, top, right, bottom = found.crops[0].scaled((1, 1))
        assert canvas["x"] - img["x"] == pytest.approx(left * img["width"], abs=1)
        assert canvas["y"] - img["y"] == pytest.approx(top * img["height"], abs=1)
        assert canvas["width"] == pytest.approx((right - left) * img["width"], abs=1)
        assert canvas["height"] == pytest.approx((bottom - top) * img["height"], abs=1)
        page.close()


@pytest.mark.slow
def test_another_image_is_chosen(chromium: Any, folder: Path) -> None:
    """Of a padded one, the cells of the padding are left out."""
    page = opened(chromium, folder / "several.html")
    assert page.locator("[role=option]").count() == 49
    page.locator("#image").select_option(index=1)
    assert page.locator("[role=option]").count() == 35
    assert "cosine" in said(page)
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bicubic", "nearest"])
def test_colors_are_those_of_a_figure(chromium: Any, tmp_path: Path, interpolation: Any) -> None:
    """Within the rounding of JPEG and of the browser, of which edges have most."""
    found = explain(SCENE, "a horse", model="demo/vit", hints=False)
    page = opened(chromium, found.save(tmp_path / "a.html", interpolation=interpolation))
    page.add_style_tag(
        content=".stage { position: fixed; top: 0; left: 0; width: 224px; border-radius: 0; }"
    )
    clip = {"x": 0, "y": 0, "width": 224, "height": 224}
    shown = Image.open(io.BytesIO(page.screenshot(clip=clip)))
    heatmap = found.heatmap(interpolation=interpolation)["positive"][0, 0].numpy()
    wanted = blend(found.images[0].movedim(0, -1).numpy(), heatmap, colormap(HEAT))
    off = np.abs(np.asarray(shown.convert("RGB")) / 255 - wanted)
    assert off.mean() < 0.015
    assert np.quantile(off, 0.99) < 0.08
    page.close()


def test_a_name_cannot_end_the_script(found: dict[str, Explanation], tmp_path: Path) -> None:
    names = ("</script><script>alert(1)</script>", "<!-- & \udc80", "a")
    page = replace(found["texts"], names=names).save(tmp_path / "a.html").read_text("utf-8")
    assert page.count("</script>") == 2
    assert data_of(page)["names"] == list(names)


def test_a_page_of_maps_that_are_no_numbers_is_refused(
    found: dict[str, Explanation], tmp_path: Path
) -> None:
    broken = {sign: values.log() for sign, values in found["texts"].maps.items()}
    with pytest.raises(InputError, match=r"^save: the maps .* hold NaN or infinity"):
        replace(found["texts"], maps=broken).save(tmp_path / "a.html")


@pytest.mark.slow
def test_a_map_of_zeros_has_no_strongest_place(
    chromium: Any, found: dict[str, Explanation], tmp_path: Path
) -> None:
    empty = {sign: torch.zeros_like(values) for sign, values in found["texts"].maps.items()}
    page = opened(chromium, replace(found["texts"], maps=empty).save(tmp_path / "a.html"))
    assert said(page) == f"“{TEXTS[0]}”: {data_of(page.content())['images'][0]['notes'][0]}"
    page.close()
