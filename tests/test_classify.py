"""`classify` gives the probabilities of the model's own library, and the maps of the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import classify, explain, load_clip, targets
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import CaptumClipError, InputError, TargetError
from captum_clip.explaining import explain as module
from captum_clip.explaining.explanation import Explanation
from captum_clip.explaining.hints import OUTSTANDING, UNRELATED
from captum_clip.models import ClipAdapter
from tests import builders
from tests.samples import picture

CLASSES = ["a horse", "a dog", "sky", "grass", "a cat"]
TEMPLATES = ["a photo of {}.", "{}, drawn"]


def hugging_face(clip: ClipAdapter, images: Tensor) -> Tensor:
    """The logits of transformers."""
    ids, mask = clip.text_inputs(CLASSES)
    masked = {} if mask is None else {"attention_mask": mask}
    with torch.no_grad():
        found: Tensor = clip.model(input_ids=ids, pixel_values=images, **masked).logits_per_image
    return found


def open_clip(clip: ClipAdapter, images: Tensor) -> Tensor:
    """OpenCLIP's logits, as its README writes them."""
    model = clip.model
    with torch.no_grad():
        image = model.encode_image(images, normalize=True)
        text = model.encode_text(clip.tokenizer(CLASSES), normalize=True)
        logits: Tensor = model.logit_scale.exp() * image @ text.T
    return logits if model.logit_bias is None else logits + model.logit_bias


def open_siglip() -> ClipAdapter:
    """OpenCLIP's model with a bias, as its SigLIPs have."""
    clip: ClipAdapter = builders.open_clip_vit(seed=5).load()
    model: Any = clip.model
    model.logit_bias = torch.nn.Parameter(torch.tensor(-2.5))
    return clip


def having(clip: ClipAdapter, **values: float) -> ClipAdapter:
    """A model with a parameter that a mistake would show in."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(clip.model, name).fill_(value)
    return clip


MODELS: dict[
    str, tuple[Callable[[], ClipAdapter], Callable[[ClipAdapter, Tensor], Tensor], bool]
] = {
    "transformers CLIP": (lambda: builders.hf_vit().load(), hugging_face, False),
    "SigLIP": (lambda: builders.siglip().load(), hugging_face, True),
    "ALIGN": (lambda: having(builders.align().load(), temperature=0.3), hugging_face, False),
    "AIMv2": (lambda: having(builders.aimv2().load(), logit_scale=9), hugging_face, False),
    "OpenCLIP": (lambda: builders.open_clip_vit().load(), open_clip, False),
    "OpenCLIP's SigLIP": (open_siglip, open_clip, True),
}


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    adapter: ClipAdapter = builders.hf_vit().load()
    return adapter


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_the_librarys_own(name: str) -> None:
    make, logits_of, by_itself = MODELS[name]
    clip = make()
    images = clip.preprocess(picture(3))
    logits = logits_of(clip, images)
    own = logits.sigmoid() if by_itself else logits.softmax(-1)
    order = logits[0].argsort(descending=True)
    every = len(CLASSES)
    found = classify(picture(3), CLASSES, model=clip, top=every, method=cheap(clip))
    assert found.names == tuple(CLASSES[index] for index in order)
    torch.testing.assert_close(found.probabilities, own[:, order], atol=1e-5, rtol=1e-4)
    assert by_itself is found.calibration.startswith("each class by itself: sigmoid of ")
    shares = f"shares among the {every} named classes: softmax of "
    assert by_itself is not found.calibration.startswith(shares)


def cheap(clip: ClipAdapter) -> str:
    return "patches" if clip.kind == "vit" else "grad-cam"


def test_the_best_are_explained_as_by_themselves(clip: ClipAdapter) -> None:
    found = classify(picture(), CLASSES, model=clip, sign="both")
    every = classify(picture(), CLASSES, model=clip, top=5)
    assert found.names == every.names[:3]
    assert found.probabilities is not None
    assert every.probabilities is not None
    torch.testing.assert_close(found.probabilities, every.probabilities[:, :3])
    torch.testing.assert_close(every.probabilities.sum(), torch.tensor(1.0))
    same = explain(picture(), list(found.names), model=clip, sign="both")
    torch.testing.assert_close(found.maps, same.maps)
    torch.testing.assert_close(found.scores, same.scores)


def test_templates_are_the_mean_of_unit_embeddings(
    clip: ClipAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PROMPTS_AT_ONCE", 4)  # two classes at a time
    found = classify(picture(), CLASSES, model=clip, templates=TEMPLATES, top=5)
    prompts = [[template.replace("{}", name) for template in TEMPLATES] for name in CLASSES]
    means = torch.stack([clip.encode_text(texts).detach().mean(0) for texts in prompts])
    image = clip.encode_image(clip.preprocess(picture())).detach()
    scale = clip.model.logit_scale.detach().exp()
    own = (scale * image @ F.normalize(means, dim=-1).T).softmax(-1).sort(descending=True)
    torch.testing.assert_close(found.probabilities, own.values)
    assert found.names == tuple(CLASSES[index] for index in own.indices[0])
    target = targets.text(clip, CLASSES, templates=TEMPLATES)
    again = classify(picture(), target, model=clip, top=5)
    torch.testing.assert_close(again.probabilities, found.probabilities)


@pytest.mark.parametrize("sign", ["positive", "both"])
def test_titles_have_the_probabilities_and_the_caption_what_they_are(
    clip: ClipAdapter, sign: Any
) -> None:
    found = classify(picture(), CLASSES[:2], model=clip, sign=sign)
    assert found.probabilities is not None
    figure = found.plot()
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    for name, share in zip(found.names, found.probabilities[0].tolist(), strict=True):
        assert f"{name}: {share:.1%} among the named" in [
            " ".join(line.split()) for line in written
        ]
    assert "among the 2 named classes" in figure.legends[0].get_title().get_text().replace(
        "\n", " "
    )


def test_a_file_and_a_part_keep_the_probabilities(clip: ClipAdapter, tmp_path: Path) -> None:
    found = classify(picture(), CLASSES, model=clip)
    again = Explanation.load(found.save(tmp_path / "found.npz"))
    assert found.probabilities is not None
    torch.testing.assert_close(again.probabilities, found.probabilities)
    assert again.calibration == found.calibration
    torch.testing.assert_close(found[found.names[1]].probabilities, found.probabilities[:, 1:2])
    page = found.save(tmp_path / "found.html").read_text()
    assert f"{found.names[0]}: {found.probabilities[0, 0]:.1%}" in page


@pytest.mark.parametrize("templates", [None, ["a photo of {}", "{}"]])
def test_a_list_without_the_true_class_is_doubted(templates: Any) -> None:
    """By standard deviations above unrelated texts, and above these and the other classes."""
    clip = load_clip("demo/vit")
    images = clip.preprocess(draw_scene(0, objects=["rabbit"]).image)
    for classes, is_true in ((["an elephant", "a car"], False), (["a rabbit", "a tiger"], True)):
        best, *others = targets.text(clip, classes, templates=templates).embeddings
        unrelated = [text for text in UNRELATED if text not in classes]
        rest = targets.text(clip, unrelated, templates=templates).embeddings
        image = clip.encode_image(images)[0].detach()
        z = []
        for cosines in (rest @ image, torch.cat([torch.stack(others), rest]) @ image):
            z.append((best @ image - cosines.mean()) / cosines.std())
        assert bool(max(z) >= OUTSTANDING) is is_true
        found = classify(images, classes, model=clip, templates=templates, top=1)
        assert found.probabilities is not None
        assert found.probabilities[0, 0] > 0.99
        sentence = f"the best is {max(z):.1f} standard deviations above other texts, 3 or more"
        assert [sentence in hint for hint in found.hints[0]] == [True] * (not is_true)
        target = targets.text(clip, classes, templates=templates)
        again = classify(images, target, model=clip, templates=templates, top=1)
        assert again.hints == found.hints
    assert classify(images, [*classes[:1], "a car"], model=clip, hints=False).hints == ()


@pytest.mark.parametrize(
    ("classes", "options", "error", "said"),
    [
        (["a dog"], {}, InputError, "are shares of the classes, so a single class"),
        ("classes.txt", {}, InputError, "are shares of the classes, so a single class"),
        ([], {}, TargetError, "expected a text or several"),
        (["a dog", " "], {}, TargetError, "' ' is empty"),
        (["sky", "a dog", "sky"], {}, InputError, r"expected each class once, got \['sky'\]"),
        (CLASSES, {"top": 6}, InputError, "expected top up to 5, got 6"),
        (CLASSES, {"top": 0}, InputError, "expected top of 1 or more, got 0"),
        (CLASSES, {"templates": "a photo"}, TargetError, "expected templates with one {}"),
        (CLASSES, {"hints": 1}, InputError, "expected hints of True or False, got 1"),
        (CLASSES, {"templates": []}, TargetError, "expected templates with one {}"),
        (CLASSES, {"image": [picture(), picture()]}, InputError, "expected one image, got 2"),
        (CLASSES, {"words": True}, TargetError, "`words` need exactly one text"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    clip: ClipAdapter,
    classes: Any,
    options: dict[str, Any],
    error: type[CaptumClipError],
    said: str,
) -> None:
    with pytest.raises(error, match=said) as raised:
        classify(classes=classes, model=clip, **{"image": picture(), **options})
    assert raised.value.function == "classify"
