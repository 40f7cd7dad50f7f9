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
    "start": [
        "how do I get a heat map for a CLIP image",
        "saliency map of a caption",
        "install without internet",
        "heatmap",
        "offline",
        "compare models",
    ],
    "own_model": [
        "finetuned model LoRA",
        "load my open_clip checkpoint .pt",
        "peft adapter",
        "CoOp learned prompts",
        "BiomedCLIP medical images",
        "remote sensing RemoteCLIP",
        "SigLIP 2 support",
        "is BLIP supported",
        "LLaVA vision tower",
        "quantised model bitsandbytes",
        "torch.compile model",
        "fine-tuned CLIP",
        "prompt-tuned",
        "LoRA",
        "peft",
        "CoOp",
        "MaPLe",
        "Tip-Adapter",
        "OpenCLIP checkpoint",
        "state_dict",
        "SigLIP padding",
        "sigmoid",
        "BiomedCLIP",
        "remote sensing",
        "zero-shot pipeline",
        "output_attentions",
        "attention maps",
        "attention map",
        "finetuned",
        "attention weights",
        "half precision dtype",
        "DINOv2 prototypes",
    ],
    "methods": [
        "visualize attention map of CLIP ViT",
        "Grad-CAM for CLIP",
        "attention rollout",
        "which method should I use",
        "occlusion what if the object is removed",
        "Grad-CAM",
        "Grad-CAM on a vision transformer",
        "dense features per patch",
    ],
    "reading": [
        "negative attribution what lowers the score",
        "heat map looks wrong",
        "map is blurry low resolution 7x7",
        "finer heatmap larger image size",
        "image is cut off cropped",
        "what is a good cosine similarity",
        "background artifacts registers",
        "compare two captions",
        "higher resolution",
        "compare two images",
    ],
    "regions": [
        "segmentation mask from text",
        "bounding box prompt for SAM",
        "mask",
        "segmentation mask",
        "segmentation",
        "bounding box",
    ],
    "text": [
        "which word matters",
        "word importance in caption",
        "negation not a dog",
        "match words to image regions",
    ],
    "image_search": [
        "search photos by text",
        "vector database lancedb",
        "image search",
        "image retrieval",
        "vector database",
    ],
    "late_interaction": [
        "ColPali token heatmap",
        "late interaction MaxSim",
    ],
    "changes": [
        "compare checkpoints before and after fine-tuning",
        "why is a cat classified as a dog",
    ],
    "figures": [
        "figure for a paper",
        "transparent background slide",
    ],
    "heads": [
        "attention heads meaning",
        "attention heads",
        "TextSpan",
        "mean ablation",
    ],
    "training": [
        "train with attention supervision",
        "remove spurious correlation shortcut",
        "loss on the explanation",
    ],
    "captum": [
        "use with captum NoiseTunnel",
        "captum infidelity",
        "wrap my forward function",
    ],
    "app": [
        "gradio demo",
        "host on Hugging Face Space",
        "save interactive html",
        "opacity of the overlay transparency alpha",
    ],
    "data_sets": [
        "average map over a dataset",
        "emotions ArtEmis",
        "multi gpu ray",
        "video frames",
    ],
    "evaluation": [
        "pointing game benchmark",
        "deletion insertion metric",
        "evaluate on my own photographs",
    ],
    "right": [
        "can I trust the heatmap",
        "sanity check of saliency",
    ],
    "costs": [
        "how slow is it",
        "CUDA out of memory",
        "DataLoader batch processing",
        "batch",
        "speed",
        "GPU memory",
        "out of memory",
    ],
    "comparison": [
        "difference to pytorch-grad-cam",
        "alternatives LeGrad Grad-ECLIP",
    ],
    "appendix/messages": [
        "UnsupportedModelError",
        "error message what to do",
        "error message",
    ],
    "extending": [
        "add a new method",
    ],
    "contributing": [
        "run the tests",
    ],
    "appendix/citing": [
        "bibtex",
        "cite",
    ],
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


@pytest.mark.parametrize(
    ("page", "question"), [(page, each) for page in QUESTIONS for each in QUESTIONS[page]]
)
def test_the_right_page_is_among_the_first_three(search: Page, page: str, question: str) -> None:
    """Of the entries that the page lists, the best first."""
    found = search.evaluate(
        "words => Search._performSearch(...Search._parseQuery(words))", question
    )
    pages = list(dict.fromkeys(result[0] for result in reversed(found)))
    assert page in pages[:3], pages[:8]
    assert pages[0] != "beside/changelog"
