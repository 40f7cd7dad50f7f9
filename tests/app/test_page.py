"""The page in Chromium, as someone uses it, and what a client that is no browser can ask of it."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from captum_clip import Explanation, explain, load_clip
from captum_clip.apps.answers import EMBEDDED
from captum_clip.apps.page import find_port, label
from captum_clip.cli import main
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, spelled
from captum_clip.visualization.colors import score_note, short_number

if find_spec("playwright") is not None:  # without it the tests below fail, others do not
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

SLACK = 300_000  # milliseconds, after which it is not slow but stuck
IMAGE = draw_scene(0, objects=["horse", "dog"]).image
OTHER = draw_scene(3, objects=["bee", "dog"]).image


def test_sentences_call_arguments_by_the_labels_of_the_page() -> None:
    said = [label("sign", "positive"), label("method"), label("words", True), label("side")]
    assert said == ["“Show what”: supports it", "“Method”", "words=True", "side"]
    with spelled(label), pytest.raises(InputError, match="take “Show what”: supports it, or"):
        explain(IMAGE, "a horse", model="demo/vit", method="rollout", sign="negative")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes to stderr."""
    return tmp_path_factory.mktemp("terminal") / "stderr"


@pytest.fixture(scope="module")
def address(terminal: Path) -> Iterator[str]:
    """The command as a user starts it, on a free port."""
    for name in EMBEDDED:  # so that the page need not wait for the first import of their libraries
        load_clip(name)
    command = [sys.executable, "-m", "captum_clip", "app", "--port", "0", "--allow-host", "me.org"]
    with (
        terminal.open("w") as stderr,
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_spec("playwright") is None:
        pytest.fail("the browser tests need Playwright: pip install '.[dev,app]'")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("the browser tests need Chromium: apt-get install chromium")
    expect.set_options(timeout=SLACK)
    with sync_playwright() as playwright:
        # no-sandbox: Chromium refuses root, which CI is, with its sandbox on
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def opened(browser: Browser, address: str, width: int = 1280) -> tuple[Page, list[str]]:
    """A page in a session of its own, and all that it asks for on the network."""
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    page.set_default_timeout(SLACK)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda channel: requests.append(channel.url))
    page.goto(address)
    expect(cards(page)).to_have_count(3)  # the example at the start
    return page, requests


@pytest.fixture(scope="module")
def used(browser: Browser, address: str) -> tuple[Page, list[str]]:
    """A page that the tests share; each asks its own question."""
    return opened(browser, address)


@pytest.fixture
def page(used: tuple[Page, list[str]]) -> Page:
    used[0].get_by_role("tab", name="Texts").click()
    return used[0]


def cards(page: Page) -> Locator:
    """The words of each text under its cosine."""
    return page.locator(".words:visible")


def thumbnails(page: Page) -> Locator:
    """The pictures of the galleries of a tab."""
    return page.get_by_role("tabpanel").locator(".thumbnail-item:visible")


def sources(page: Page) -> list[str]:
    """Where the images of the cards lie on the server; a new one has another name."""
    images = page.locator("#cards img:visible").all()
    return [str(image.get_attribute("src")) for image in images]


def contents(page: Page) -> tuple[list[str], list[str]]:
    """Cosines, words and images of the cards; Gradio's clock runs in the cards too."""
    parts = cards(page).locator("[data-testid=block-info], label")
    return parts.all_inner_texts(), sources(page)


def message(page: Page, text: str) -> Locator:
    """What the page warns of; it goes after ten seconds, so one look must do."""
    return page.locator(".toast-body", has_text=text)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def file(data: bytes, name: str = "photo.png", kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def upload(page: Page, data: bytes, name: str = "photo.png") -> None:
    clear = page.locator("#images").get_by_label("Clear")
    if clear.count():
        clear.click()
    page.locator("#images input[type=file]").set_input_files([file(data, name)])
    # the server has it earlier than the page, which would ask without it
    images = page.locator("#images img")
    expect(images).to_have_attribute("src", re.compile(re.escape(name)))


def question(page: Page, *texts: str) -> None:
    upload(page, png(IMAGE), "holiday.png")
    page.locator("#texts textarea").fill("\n".join(texts))
    expect(page.locator(".stale")).to_have_count(1)
    page.locator("#texts textarea").press("Control+Enter")


def answered(page: Page, *texts: str, model: str = "demo/vit") -> Explanation:
    """The library's own answer, once the page shows its scores and has made its files."""
    found = explain(IMAGE, list(texts), model=model, words=len(texts) == 1)
    expect(page.locator(".stale")).to_have_count(0)
    expect(cards(page)).to_have_count(len(texts))
    for index in range(len(texts)):
        score = f"cosine {found.scores[0, index]:.3f}".replace("-", "\N{MINUS SIGN}")
        expect(cards(page).nth(index)).to_contain_text(score)
    expect(page.get_by_role("button", name="Download maps (NPZ)")).to_be_enabled()
    return found


@contextmanager
def files_made(page: Page) -> Iterator[None]:
    """Wait until the files are of what is done inside; they may still look ready from before."""
    page.get_by_role("button", name="Download maps (NPZ)").evaluate(
        """button => {
            const states = window.states = [];
            new MutationObserver(() => states.push(button.disabled)).observe(
                button, {attributes: true});
        }"""
    )
    yield
    page.wait_for_function("window.states.includes(true) && !window.states.at(-1)")


def choose(page: Page, control: str, option: str) -> None:
    page.locator(f"#{control} input").click()
    page.get_by_role("option", name=option).click()


@pytest.mark.slow
def test_a_clicked_word_is_shown_and_downloaded(page: Page, tmp_path: Path) -> None:
    question(page, "a horse", "a horse and a dog")
    answered(page, "a horse", "a horse and a dog")
    norm = explain(IMAGE, "a horse and a dog", model="demo/vit", words=True).norms[5]
    before = sources(page)[2]
    with files_made(page):
        cards(page).last.get_by_label("dog").check()
        expect(cards(page).last).to_contain_text(f"norm {norm:.2f}")
    expect(page.locator("#cards img:visible").nth(2)).not_to_have_attribute("src", before)
    for name in ("maps (NPZ)", "picture (PNG)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {name}").click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
    loaded = Explanation.load(tmp_path / "captum-clip-maps.npz")
    assert loaded.names == ("a horse", "'dog' in 'a horse and a dog'")
    with Image.open(tmp_path / "captum-clip-maps.png") as picture:
        assert picture.format == "PNG"
    cards(page).last.get_by_label("whole text").check()
    expect(cards(page).last).to_contain_text("cosine")


@pytest.mark.slow
def test_the_opacity_draws_the_same_maps_again(page: Page) -> None:
    question(page, "a dog")
    answered(page, "a dog")
    shown = page.locator("#cards img:visible").last
    before = sources(page)[-1]
    page.get_by_label("number input for Opacity").fill("0.2")
    page.get_by_label("number input for Opacity").blur()
    expect(shown).not_to_have_attribute("src", before)
    expect(cards(page)).to_contain_text("cosine")


@pytest.mark.slow
def test_larger_images_have_finer_maps(browser: Browser, address: str) -> None:
    """Of a ResNet, too."""
    page, _ = opened(browser, address)
    page.get_by_text("Larger images, for finer maps").click()
    page.locator("#size").get_by_label("448 pixels").check()
    page.locator("#sign").get_by_label("contradicts it").check()
    question(page, "a dog")
    score = explain(IMAGE, "a dog", model="demo/vit", image_size=448).scores.item()
    expect(cards(page)).to_have_count(1)
    expect(cards(page)).to_contain_text(f"cosine {score:.3f}")
    expect(page.get_by_role("button", name="Download maps (NPZ)")).to_be_enabled()
    choose(page, "model", "demo/resnet")
    page.locator("#show").click()
    score = explain(IMAGE, "a dog", model="demo/resnet", image_size=448).scores.item()
    expect(cards(page)).to_contain_text(f"{abs(score):.3f}")
    page.context.close()


@pytest.mark.slow
def test_maps_of_another_question_are_dim(browser: Browser, address: str) -> None:
    """Once the image, a text or the model has changed, until the new question is answered."""
    page, _ = opened(browser, address)
    shown = page.locator("#cards")
    for change in (
        lambda: upload(page, png(IMAGE)),
        lambda: page.locator("#texts textarea").fill("a dog"),
        lambda: choose(page, "model", "demo/resnet"),
    ):
        expect(shown).to_have_css("opacity", "1")
        change()
        expect(shown).to_have_css("opacity", "0.35")
        page.locator("#show").click()
    expect(shown).to_have_css("opacity", "1")
    page.locator("#texts textarea").fill("a unicorn")
    page.locator("#show").click()
    expect(message(page, "do not know 'unicorn'")).to_be_visible()
    expect(shown).to_have_css("opacity", "0.35")
    page.context.close()


@pytest.mark.slow
def test_both_signs_of_a_resnet(browser: Browser, address: str) -> None:
    """Choosing a model changes the methods that are offered."""
    page, _ = opened(browser, address)
    choose(page, "method", "last-grad")
    choose(page, "model", "demo/resnet")
    expect(page.locator("#method input")).to_have_value("direct")  # a ResNet has no last-grad
    page.locator("#sign").get_by_label("both").check()
    question(page, "a horse")
    answered(page, "a horse", model="demo/resnet")
    legend = page.locator(".block.legend:visible")
    expect(legend).to_have_text("contradicts it supports it")
    expect(legend.locator("span")).to_have_css("background-image", re.compile("^linear-gradient"))
    page.context.close()


BAD = {
    "holiday.png is not an image that Pillow can read": file(b"no image", "holiday.png"),
    "beach.png cannot be read": file(png(IMAGE)[:3000], "beach.png"),
    "notes.txt is not an image that Pillow can read": file(b"text", "notes.txt", "text/plain"),
    "clip.mp4 is not an image that Pillow can read": file(b"film", "clip.mp4", "video/mp4"),
}


def expect_sentences(page: Page, sentences: Collection[str]) -> None:
    """Each is there, and none names a folder of the server."""
    for sentence in sentences:
        expect(message(page, sentence).first).to_have_text(re.compile("^[^/]*$"))


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_said_when_it_is_added(page: Page, terminal: Path) -> None:
    """By the button, the images and maps stay; a good one beside it is taken."""
    question(page, "a horse")
    answered(page, "a horse")
    before, images = contents(page), page.locator("#images img")
    button = page.get_by_test_id("Add images-upload-button")
    button.set_input_files(list(BAD.values()))
    expect_sentences(page, BAD)
    expect(images).to_have_count(1)
    expect(page.locator(".stale")).to_have_count(0)
    button.set_input_files([*BAD.values(), file(png(OTHER), "other.png")])
    expect(images).to_have_count(2)
    expect(images.last).to_have_attribute("src", re.compile("other.png"))
    expect(page.locator(".stale")).to_have_count(1)
    assert contents(page) == before
    assert terminal.read_text() == ""


@pytest.mark.slow
def test_what_is_wrong_with_a_question_is_a_sentence_in_the_page(
    page: Page, terminal: Path
) -> None:
    """The maps stay, and the next question is answered."""
    question(page, "a horse")
    answered(page, "a horse")
    before = contents(page)
    question(page, "a unicorn")
    expect_sentences(page, ["the demo models do not know 'unicorn'"])
    assert contents(page) == before
    question(page, "a dog")
    answered(page, "a dog")
    assert terminal.read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440])
def test_several_images_are_the_rows_of_a_table(browser: Browser, address: str, width: int) -> None:
    """A column for each text; choosing an image fills its cards, its files and the other tabs."""
    page, _ = opened(browser, address, width)
    texts = ["a horse", "a bee and a dog"]
    page.locator("#images").get_by_label("Clear").click()
    page.locator("#images input[type=file]").set_input_files(
        [file(png(IMAGE), "first.png"), file(png(OTHER), "second.png")]
    )
    page.locator("#texts textarea").fill("\n".join(texts))
    page.locator("#texts textarea").press("Control+Enter")
    cells = page.locator("#table .thumbnail-item:visible")
    expect(cells).to_have_count(6)
    found = explain([IMAGE, OTHER], texts, model="demo/vit")
    written = [
        [name, *(f"{text}, {score_note(score)}" for text, score in zip(texts, row, strict=True))]
        for name, row in zip(("first.png", "second.png"), found.scores.tolist(), strict=True)
    ]
    expect(cells).to_have_text([said for row in written for said in row])
    boxes = [cell.bounding_box() or {} for cell in cells.all()]
    for index, box in enumerate(boxes):
        assert box["x"] == pytest.approx(boxes[index % 3]["x"])
        assert box["y"] == pytest.approx(boxes[index - index % 3]["y"])
    expect(page.locator("#cards")).to_contain_text("first.png as the model sees it")
    cells.last.click()
    expect(page.locator("#cards")).to_contain_text("second.png as the model sees it")
    for index, score in enumerate(found.scores[1].tolist()):
        expect(cards(page).nth(index)).to_contain_text(score_note(score))
    page.get_by_role("tab", name="Which words").click()
    values = explain(OTHER, "a horse", model="demo/vit", side="text").text_maps[0]
    horse = short_number(dict(values)["horse"])
    expect(page.locator(".values:visible")).to_contain_text(horse)
    page.get_by_role("tab", name="Texts").click()
    page.locator("#images").get_by_label("Delete image").last.click()
    page.locator("#show").click()
    expect(cells).to_have_count(0)
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390])
def test_a_word_has_both_signs_in_one_column(browser: Browser, address: str, width: int) -> None:
    """What supports is above what contradicts, however the words are wrapped."""
    page, _ = opened(browser, address, width)
    page.locator("#sign").get_by_label("both").check()
    question(page, "a horse and a dog")
    answered(page, "a horse and a dog")
    page.get_by_role("tab", name="Word by region").click()
    cells = thumbnails(page)
    expect(cells).to_have_count(7)  # the image, the text and five words
    for picture in cells.locator("img").all():
        expect(picture).to_have_js_property("complete", True)
        shape = picture.evaluate("e => [e.naturalWidth, e.naturalHeight, e.width, e.height]")
        assert shape[:2] == [224, 2 * 224 + 4]
        assert shape[3] / shape[2] == pytest.approx(shape[1] / shape[0], abs=0.02)  # none is cut
    page.context.close()


@pytest.mark.slow
def test_an_example_scene_comes_with_its_maps(page: Page) -> None:
    page.get_by_label("Example scene no.").fill("-3")
    page.get_by_role("button", name="Draw it").click()
    expect(message(page, "a seed")).to_be_visible()
    page.get_by_label("Example scene no.").fill("7")
    page.get_by_role("button", name="Draw it").click()
    scene = draw_scene(7, count=2)
    expect(page.locator("#texts textarea")).to_have_value("\n".join(scene.captions))
    score = explain(scene.image, scene.captions[0], model="demo/vit").scores.item()
    expect(cards(page).first).to_contain_text(f"cosine {score:.3f}")


FOCUSED = """() => {
    const element = document.activeElement;
    const label = element.type === 'radio' ? element.closest('label') : element;
    return [label.innerText || element.getAttribute('aria-label') || element.value || '',
        getComputedStyle(label).outlineStyle, element.tagName];
}"""


@pytest.mark.slow
def test_the_page_needs_no_mouse(page: Page) -> None:
    """Tab reaches all, each with a visible focus, and Space chooses a word."""
    expect(page.locator(".toast-body")).to_have_count(0)  # its button would be visited
    with files_made(page):
        question(page, "a dog")
        norm = answered(page, "a dog").norms[1]
    visited: list[str] = []
    while visited.count("Model") < 2:  # once round
        page.keyboard.press("Tab", delay=60)  # as slow as a person: what leaving a field does shows
        name, outline, tag = page.evaluate(FOCUSED)
        assert outline == "solid" or tag == "BODY", name
        visited.append(name)
        assert len(visited) < 60, visited
        if name == "a":
            with files_made(page):
                page.keyboard.press("Space")
                expect(cards(page)).to_contain_text(f"norm {norm:.2f}")
            assert page.evaluate(FOCUSED)[0] == "a"
    controls = {"Add images", "Example scene no.", "Model", "Method", "supports it", "Texts"}
    assert controls | {"Show the maps", "a", "Download maps (NPZ)"} <= set(visited)


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "width"), [("light", 390), ("dark", 1440)])
def test_axe_finds_nothing(browser: Browser, address: str, theme: str, width: int) -> None:
    """The accessibility checker, with two images and both signs, in all tabs.

    Nothing is wider than the window.
    """
    page, _ = opened(browser, f"{address}/?__theme={theme}", width)
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    page.locator("#sign").get_by_label("both").check()
    button = page.get_by_test_id("Add images-upload-button")
    scene = draw_scene(5, count=2).image  # of the example, whose texts fit it
    added = [file(png(scene), "scene.png"), file(png(OTHER), "a_file_with_a_long_name.png")]
    button.set_input_files(added)
    expect(page.locator("#images img")).to_have_count(2)
    page.locator("#show").click()
    expect(page.locator("#cards img:visible")).to_have_count(4)
    expect(page.get_by_role("button", name="Download maps (NPZ)")).to_be_enabled()
    reports = []
    lasts = {"Which words": 0, "Word by region": 3}
    for tab, last in {"Texts": 7, **lasts}.items():
        page.get_by_role("tab", name=tab).click()
        expect(thumbnails(page).nth(last)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Gradio's galleries have captions that repeat their descriptions
        rules = {"rules": {"image-redundant-alt": {"enabled": False}}}
        reports.append(Axe().run(page, options=rules))
    assert [found.generate_report() for found in reports if found.violations_count] == []
    page.context.close()


@pytest.mark.slow
def test_nobody_else_is_asked(used: tuple[Page, list[str]], page: Page, address: str) -> None:
    """Neither by what was clicked before, nor by a script that wants to."""
    requests = used[1]
    assert len(requests) > 10
    assert [u for u in requests if not u.startswith((f"{address}/", "data:", "blob:"))] == []
    fetch = "fetch(`http://127.0.0.1:${port}`, {mode: 'no-cors'})"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = page.evaluate(f"port => {fetch}.then(() => 'sent', error => error.name)", port)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody is there
            other.accept()
    assert answer == "TypeError"


@pytest.mark.slow
@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}])
@pytest.mark.parametrize("event", [("show", "click"), ("images", "upload")])
def test_no_client_reads_a_file_of_the_machine(
    address: str, terminal: Path, tmp_path: Path, meta: dict[str, Any], event: tuple[str, str]
) -> None:
    """A path that nobody uploaded is refused, with and without the mark of an upload."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "red").save(secret)
    config = json.load(urllib.request.urlopen(f"{address}/config"))
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    target = [ids[event[0]], event[1]]
    function = next(f for f in config["dependencies"] if f["inputs"] and target in f["targets"])
    images = [{"image": {"path": str(secret), **meta}, "caption": None}]
    asked = [0.9, "demo/vit", None, images, "a horse", "direct", "positive"]
    data = asked if event[0] == "show" else [images]
    session = f"{event[0]}{len(meta)}"
    body = json.dumps({"data": data, "fn_index": function["id"], "session_hash": session}).encode()
    kind = {"Content-Type": "application/json"}
    queue = f"{address}/gradio_api/queue"
    urllib.request.urlopen(urllib.request.Request(f"{queue}/join?", body, kind)).read()
    with urllib.request.urlopen(f"{queue}/data?session_hash={session}") as lines:
        answers = [json.loads(line[5:]) for line in lines if b'"msg":"process_' in line]
    assert [answer["success"] for answer in answers if "success" in answer] == [False]
    assert "/file=" not in json.dumps(answers[-1]["output"])
    for path in (secret, "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")


@pytest.mark.slow
def test_a_foreign_host_is_refused(address: str) -> None:
    """A name that somebody made to lead to this machine."""
    allowed = {"localhost:1": 200, "127.0.0.1": 200, "ME.org": 200, "evil.example:7860": 400}
    for host, status in allowed.items():
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        connection.request("GET", "/", headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"Origin": "{address}"}, 200),
        ({"Origin": "https://me.org", "Host": "me.org:443"}, 200),
        ({"Origin": "https://me.org", "X-Forwarded-Host": "me.org"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),  # a frame without an origin
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"Origin": "http://me.org", "Host": "me.org:7860"}, 403),
        ({"Origin": "{address}", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_an_upload_of_another_origin_is_refused(
    address: str, headers: dict[str, str], status: int
) -> None:
    """A form on a page of somebody else's would fill the disk."""
    head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    given = {"content-type": "multipart/form-data; boundary=x"}
    given |= {name: value.format(address=address) for name, value in headers.items()}
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("POST", "/gradio_api/upload", head + b"1\r\n--x--\r\n", given)
    assert connection.getresponse().status == status
    connection.close()


@pytest.mark.slow
def test_too_large_an_image_is_refused(address: str) -> None:
    head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(21 * 2**20) + b"\r\n--x--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, kind)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(request, timeout=60)


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", 70000, "--port 70000: expected a number from 0"),
        ("no.such.host.invalid", 0, "cannot listen on port 0 of no.such.host.invalid"),
    ],
)
def test_a_port_that_cannot_be_listened_on_is_a_sentence(host: str, port: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        find_port(host, port)


def test_a_port_in_use_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} of 127.0.0.1 .*in use.*--port 0"):
            find_port("127.0.0.1", port)
    assert find_port("127.0.0.1", port) == port


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nonsense"], "'nonsense' is neither a known name nor a folder"),
        (["--device", "abacus", "--port", "0"], "abacus"),
    ],
)
def test_the_command_ends_with_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["app", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    assert message in err
