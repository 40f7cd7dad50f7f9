"""The page of an exported folder in Chromium, beside what Python says of the same folder.

``python -m pytest -s tests/exported_page.py`` after the documentation is built, whose `try/` is
opened as well; another folder is named by the variable ``DOCS``. Not among the tests that are
collected, since npm fetches the runtime, unless the variable ``RUNTIME`` names a node_modules.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from open_clip import get_tokenizer
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from tokenizers import Tokenizer

from captum_clip import explain
from captum_clip.apps import exported
from captum_clip.apps.export import CDN, INSTALL, RUNTIME, tokenizer_of
from captum_clip.apps.exported import FILES, SUMS
from captum_clip.cli import main
from captum_clip.demo.catalog import WORDS
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError

ROOT = Path(__file__).parents[1]
DOCS = Path(os.environ.get("DOCS", ROOT / "docs/_build/html")).resolve()
TEXTS = ["a horse and a dog", "a rocket", "A cat, on GRASS!"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of npm, as the message of the command says to get them."""
    if named := os.environ.get("RUNTIME"):
        return Path(named)
    path = tmp_path_factory.mktemp("npm")
    subprocess.run(f"{INSTALL} --no-audit --no-fund".split(), cwd=path, check=True, timeout=600)
    return path / "node_modules"


@pytest.fixture(scope="module")
def folders(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three embedded models."""
    path = tmp_path_factory.mktemp("exported")
    for name in ("vit", "resnet", "siglip"):
        command = ["export", f"demo/{name}", "-o", str(path / name), "--quiet"]
        assert main([*command, "--runtime", str(packages)]) == 0
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three scenes: as they are, wider than high, and larger and turned as a camera was held."""
    path = tmp_path_factory.mktemp("images")
    files = [path / name for name in ("square.png", "wide.png", "turned.jpg")]
    scenes = [
        Image.fromarray(draw_scene(seed, objects=["horse", "dog"]).image) for seed in (0, 3, 5)
    ]
    scenes[0].save(files[0])
    scenes[1].resize((311, 190)).save(files[1])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    scenes[2].resize((1000, 751)).save(files[2], exif=exif)
    return files


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def served(folder: Path) -> str:
    """The address of a folder, until the tests end."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="module")
def address(folders: Path) -> str:
    return served(folders)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *camera])


def opened(
    browser: Browser, address: str, width: int = 1440, scheme: Any = "light", routes: Any = ()
) -> Any:
    """The page once its first map is drawn, with what it asked for and what went wrong."""
    page: Any = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.errors, page.requests = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    for url, answer in routes:
        page.route(url, answer)
    page.goto(f"{address}/index.html")
    expect(page.locator("#runtime")).to_contain_text("ms", timeout=120_000)
    return page


def views(page: Page) -> list[dict[str, Any]]:
    """What the page knows of each text, then of each word of the first, once all is drawn."""
    page.evaluate("clip.ready")
    made: list[dict[str, Any]] = page.evaluate("clip.views")
    return made


@pytest.mark.parametrize("name", ["vit", "resnet", "siglip"])
def test_maps_scores_and_words_are_pythons_and_no_request_leaves(
    browser: Browser, address: str, folders: Path, images: list[Path], name: str
) -> None:
    page, clip = opened(browser, f"{address}/{name}"), exported.load(folders / name)
    page.locator("textarea").fill("\n".join(TEXTS))
    page.locator("#maps label").first.click()
    worst = {"map": 0.0, "score": 0.0, "word": 0.0}
    for path in images:
        page.locator("input[type=file]").set_input_files(path)
        made, wanted = views(page), clip.explain(path, TEXTS)
        raw = wanted.maps["positive"][0] - wanted.maps["negative"][0]
        for view, cells, score in zip(made, raw, wanted.scores[0], strict=False):
            off = np.abs(np.array(view["cells"]) - cells.flatten()).max()
            worst["map"] = max(worst["map"], float(off / np.abs(cells).max()))
            worst["score"] = max(worst["score"], abs(view["score"] - float(score)))
        if path.name == "square.png":  # whose resizing is nobody's own
            options: Any = {"words": True, "sign": "both", "method": "direct", "hints": False}
            own = explain(path, TEXTS[0], model=f"demo/{name}", **options)
            lost = (own.maps["positive"] - own.maps["negative"])[0, 1:] * own.norms[1:, None, None]
            assert [view["name"] for view in made[3:]] == TEXTS[0].split() == [*own.names[1:]]
            off = np.abs([v["cells"] for v in made[3:]] - lost.flatten(1).numpy()).max()
            worst["word"] = float(off)
    print(f"\n{name}: off by at most", {key: f"{value:.1g}" for key, value in worst.items()})
    assert worst["map"] <= 1e-3
    assert worst["score"] <= 1e-5
    assert worst["word"] <= 1e-3
    assert [u for u in page.requests if not u.startswith((address, "blob:"))] == []
    assert page.errors == []
    page.close()


def texts_of(words: list[str], seed: int) -> list[str]:
    """Five hundred texts of one to eight words, with and without space between them."""
    draw = random.Random(seed)
    ends = (" ", " ", " ", "", ", ", "! ")
    rows = (
        [draw.choice(words) + draw.choice(ends) for _ in range(draw.randint(1, 8))]
        for _ in range(500)
    )
    return ["".join(row) for row in rows]


STRANGE = [
    "Dog's", "Crème brûlée", "naïve", "e\u0301te\u0301", "🐴", "👩\u200d👩\u200d👧", "🇫🇷",
    "👍🏽", "☕\ufe0f", "鯨", "東京タワー", "日本語とEnglish", "한국어", "नमस्ते", "ไทย",
    "العربية", "שלום", "İstanbul", "straße", "ﬁne", "ΟΔΥΣΣΕΥΣ", "ΣΊΣΥΦΟΣ Ελληνικά", "ǅ",
    "Ⅷ", "½", "x²", "3.14", "2024年", "O'Clock!", "it's", "WE'LL", "I'd", "don't", "l’été",
    "“quoted”", "a_b", "--", "...", "<b>&amp;", "#tag", "@you", "C++", "\u00a0",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["CLIP", "demo"])
def test_tokens_are_pythons(browser: Browser, address: str, folders: Path, kind: str) -> None:
    """On emoji, accents, capitals and scripts of all kinds; both refuse the same texts."""
    clip: Any = SimpleNamespace(_require=lambda _: get_tokenizer("ViT-B-32"))
    text = {"CLIP": tokenizer_of(clip), "demo": (folders / "vit/tokenizer.json").read_text("utf-8")}
    words = [*WORDS, *map(str.title, WORDS), *map(str.upper, WORDS), *"🐴!(“鯨", "naïve"]
    texts = texts_of(STRANGE if kind == "CLIP" else words, seed=0)
    own, longest = Tokenizer.from_str(text[kind]), 10_000 if kind == "CLIP" else 16
    wanted: list[Any] = []
    for each in texts:
        try:
            ids = own.encode(each).ids
        except Exception:  # an unknown word
            ids = None
        wanted.append(ids if ids and len(ids) <= longest else None)
    about = json.loads((folders / "vit/manifest.json").read_text("utf-8"))
    about["tokens"] |= {"length": longest} | ({"card": {}} if kind == "CLIP" else {})
    answers = {"tokenizer.json": text[kind], "manifest.json": json.dumps(about)}
    page = browser.new_page()
    replace(page, folders / "vit", **answers)
    page.goto(f"{address}/vit/index.html")
    page.locator("#said").filter(has_text=re.compile(".")).wait_for(timeout=120_000)
    made = page.evaluate(
        "texts => texts.map(t => { try { return clip.tokenize(t); } catch { return null; } })",
        texts,
    )
    assert made == wanted
    assert len(set(texts)) > 450
    assert sum(ids is not None for ids in wanted) > 100
    page.close()


def test_a_tokenizer_that_reads_otherwise_is_refused(
    browser: Browser, address: str, folders: Path
) -> None:
    about = json.loads((folders / "vit/manifest.json").read_text("utf-8"))
    about["tokens"]["card"]["a horse"][1] += 1
    page = browser.new_page()
    replace(page, folders / "vit", **{"manifest.json": json.dumps(about)})
    page.goto(f"{address}/vit/index.html")
    said = page.locator("#said")
    expect(said).to_contain_text("does not read “a horse” like the model", timeout=120_000)
    page.close()


def replace(page: Page, folder: Path, **files: str) -> None:
    """Give a page other files, whose digests agree."""
    sums = (folder / SUMS).read_text("utf-8")
    for name, body in files.items():
        digest = sha256(body.encode()).hexdigest()
        sums = re.sub(rf"(?m)^.*  {re.escape(name)}$", f"{digest}  {name}", sums)
        page.route(f"**/{name}", functools.partial(answer, body=body))
    page.route(f"**/{SUMS}", functools.partial(answer, body=sums))


def answer(route: Route, body: str) -> None:
    """A file of another content."""
    route.fulfill(body=body, content_type="application/json")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_changed_is_named(
    browser: Browser, address: str, folders: Path, name: str
) -> None:
    page, content = browser.new_page(), bytearray((folders / "vit" / name).read_bytes())
    content[len(content) // 2] ^= 1
    page.route(f"**/{name}", lambda route: route.fulfill(body=bytes(content)))
    page.goto(f"{address}/vit/index.html")
    said = page.locator("#said")
    expect(said).to_contain_text(f"{name} is damaged, or was changed", timeout=120_000)
    page.close()


def test_images_have_the_limits_of_python(
    browser: Browser, address: str, folders: Path, tmp_path: Path
) -> None:
    """Each is refused in a sentence before it is unpacked; the next one is explained."""
    page, clip = opened(browser, f"{address}/vit"), exported.load(folders / "vit")
    said = page.locator("#said")
    for size, sentence in (
        ((20_000, 1), "too long and narrow, 20000 x 1; crop it so that one side is at most 200"),
        ((1, 201), "too long and narrow, 1 x 201"),
        ((9450, 9470), "more than 89,478,485 pixels, 9450 x 9470; make it smaller"),
    ):
        path = tmp_path / f"{size[0]}.png"
        Image.new("1", size).save(path)
        started = time.perf_counter()
        page.locator("input[type=file]").set_input_files(path)
        page.evaluate("clip.ready")
        assert time.perf_counter() - started < 10
        expect(said).to_contain_text(
            f"The image {'is' if 'long' in sentence else 'has'} {sentence}"
        )
        with pytest.raises(InputError, match=f"{size[0]} x {size[1]}|89,?478,?485"):
            clip.explain(path, "a horse")
    Image.new("RGB", (200, 1), "red").save(tmp_path / "small.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "small.png")
    scores = [view["score"] for view in views(page)[:1]]
    text = page.locator("textarea").input_value().split("\n")[0]
    assert abs(scores[0] - float(clip.explain(tmp_path / "small.png", text).scores[0, 0])) < 1e-5
    assert page.errors == []
    page.close()


def test_the_time_from_a_key_to_its_map_is_measured(browser: Browser, address: str) -> None:
    for name in ("vit", "resnet", "siglip"):
        page = opened(browser, f"{address}/{name}")
        area, times = page.locator("textarea"), []
        area.fill("")
        for key in "a horse and a red car on grass":
            area.press(key if key != " " else "Space")
            page.evaluate("clip.ready")
            said = page.locator("#runtime").inner_text()
            times.append(float(re.findall(r"key to map ([\d.]+) ms", said)[0]))
        print(f"\n{name}: {said}; of {len(times)} keys the median {median(times)} ms", max(times))
        assert max(times) < 5_000  # slower is stuck
        page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (800, "dark"), (390, "light")])
def test_axe_finds_nothing(browser: Browser, address: str, width: int, scheme: str) -> None:
    page = opened(browser, f"{address}/vit", width, scheme)
    page.locator("textarea").fill("a horse and a dog\na xylophone\na rocket")
    page.evaluate("clip.ready")
    for place in (page.locator("[role=option]").nth(24), page.locator("#maps input").first):
        place.focus()  # tints, and an outline
        page.keyboard.press("Space")
        page.evaluate("clip.ready")
        assert [rule["id"] for rule in Axe().run(page).response["violations"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_keys_reach_everything_and_what_is_drawn_follows(browser: Browser, address: str) -> None:
    page, reached = opened(browser, f"{address}/vit"), []
    drawn = "document.querySelector('canvas').toDataURL()"
    for _ in range(9):
        page.keyboard.press("Tab")
        script = "(e => e.id || e.name || e.role || e.type)(document.activeElement)"
        reached.append(page.evaluate(script))
    assert reached == ["file", "camera", *["button"] * 3, "sign", "option", "texts", "text"]
    said, maps = page.locator("#said"), {page.evaluate(drawn)}
    for name in ("a horse", "a rocket", "a", "rocket"):  # two texts, then the words of the second
        page.keyboard.press("ArrowRight")
        page.evaluate("clip.ready")
        assert re.match(f"“\u2068{name}\u2069”: ", said.inner_text())
        maps.add(page.evaluate(drawn))
    assert len(maps) == 5
    page.locator("[role=option]").first.focus()
    page.keyboard.press("ArrowDown")
    assert said.inner_text().startswith("At row 1, column 0: ")
    page.close()


def test_the_camera_is_a_film_of_maps(browser: Browser, address: str) -> None:
    page = opened(browser, f"{address}/vit")
    drawn = "document.querySelector('canvas').toDataURL()"
    first, button = page.evaluate(drawn), page.locator("#camera")
    button.click()
    expect(button).to_have_text("Stop the camera")
    seen = {first}
    while len(seen) < 5:  # Chromium's fake camera draws a moving disk
        page.wait_for_timeout(100)
        seen.add(page.evaluate(drawn))
        if len(seen) == 2:
            page.locator("[role=option]").nth(24).focus()
    expect(page.locator("[role=option]").nth(24)).to_be_focused()
    button.click()
    expect(button).to_have_text("Start the camera")
    last = views(page)
    page.wait_for_timeout(500)
    assert views(page) == last
    assert page.errors == []
    page.close()


def test_the_documentation_has_a_page_that_runs_from_the_cdn(
    browser: Browser, packages: Path
) -> None:
    """Which stands in for the CDN here, at the addresses of the versions that are named."""
    loaded = set()

    def packaged(route: Route) -> None:
        name = route.request.url.removeprefix(f"{CDN}/npm/")
        for package, version in RUNTIME.items():
            name = name.replace(f"{package}@{version}/", f"{package}/")
        loaded.add(name)
        route.fulfill(path=packages / name, headers={"Access-Control-Allow-Origin": "*"})

    address = served(DOCS)
    page = opened(browser, f"{address}/try", routes=[(f"{CDN}/**", packaged)])
    assert "knows drawn scenes only" in page.locator("header").inner_text()
    assert views(page)[0]["name"] == "a horse and a dog"
    assert {name.rpartition("/")[2] for name in loaded} == {
        "ort.wasm.min.mjs",
        "ort-wasm-simd-threaded.mjs",
        "ort-wasm-simd-threaded.wasm",
        "tokenizers.min.mjs",
    }
    away = {u for u in page.requests if not u.startswith((address, "blob:"))}
    assert {u.startswith(f"{CDN}/npm/") for u in away} == {True}
    assert page.errors == []
    page.close()
