"""What people search in the documentation, asked of its own search, as Sphinx's page runs it.

``python -m pytest tests/docs_search.py`` after ``sphinx -E -b html docs docs/_build/html``; another
folder is named by the variable ``DOCS``. Not among the tests that are collected, since it needs the
built pages, all of one build: Sphinx forgets the index of pages that it does not write anew.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

BUILT = Path(os.environ.get("DOCS", Path(__file__).parents[1] / "docs/_build/html")).resolve()

QUESTIONS = {
    "fine-tuned CLIP": "fine_tuned",
    "prompt-tuned": "fine_tuned",
    "LoRA": "fine_tuned",
    "peft": "fine_tuned",
    "CoOp": "fine_tuned",
    "MaPLe": "fine_tuned",
    "Tip-Adapter": "fine_tuned",
    "OpenCLIP checkpoint": "fine_tuned",
    "state_dict": "fine_tuned",
    "SigLIP padding": "fine_tuned",
    "sigmoid": "fine_tuned",
    "BiomedCLIP": "fine_tuned",
    "remote sensing": "fine_tuned",
    "zero-shot pipeline": "fine_tuned",
    "output_attentions": "fine_tuned",
    "attention maps": "fine_tuned",
    "attention map": "fine_tuned",
    "finetuned": "fine_tuned",
    "attention weights": "fine_tuned",
    "heatmap": "start",
    "mask": "concepts",
    "segmentation mask": "concepts",
    "segmentation": "concepts",
    "bounding box": "concepts",
    "compare two captions": "concepts",
    "which word matters": "text",
    "batch": "performance",
    "speed": "performance",
    "GPU memory": "performance",
    "Grad-CAM": "methods",
    "higher resolution": "practice",
    "compare two images": "concepts",
    "out of memory": "performance",
    "cite": "citing",
    "error message": "messages",
    "offline": "start",
    "image search": "image_search",
    "image retrieval": "image_search",
    "vector database": "image_search",
    "attention heads": "heads",
    "TextSpan": "heads",
    "mean ablation": "heads",
    "compare models": "start",
}


@pytest.fixture(scope="module")
def search() -> Iterator[Page]:
    """The page of the search, with its index loaded."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{BUILT.as_uri()}/search.html?q=clip")
        page.wait_for_function("Search.hasIndex()", timeout=60_000)
        yield page


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_right_page_is_among_the_first_three(search: Page, question: str) -> None:
    """Of the entries that the page lists, the best first."""
    found = search.evaluate(
        "words => Search._performSearch(...Search._parseQuery(words))", question
    )
    pages = [result[0] for result in reversed(found)]
    assert QUESTIONS[question] in pages[:3], pages[:8]
