"""Each message is what the call below it says; docs/appendix/messages.md explains some of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from captum_clip import (
    AllGradAttention,
    ClipSimilarity,
    DirectContribution,
    errors,
    explain,
    load_clip,
    maps,
    metrics,
    targets,
    visualization,
)
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.demo import MODELS
from captum_clip.demo.scenes import draw_scene
from captum_clip.models.names import check_stated
from captum_clip.targets import EmotionProbe
from tests.test_docs import ROOT

HORSE = "a horse"


def listed() -> list[tuple[str, str]]:
    """The sentences of the page's table, each with the name of its error."""
    text = (ROOT / "docs" / "appendix" / "messages.md").read_text(encoding="utf-8")
    rows = [[cell.strip("` ") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [(row[0], row[1]) for row in rows if len(row) == 4 and row[1] in vars(errors)]


class World:
    """What the calls take: a model, an image and its similarity to two texts."""

    def __init__(self) -> None:
        self.scene = draw_scene(0, objects=["horse", "dog"])
        self.clip = load_clip("demo/vit")
        self.pixels = self.clip.preprocess(self.scene.image)
        self.masks = torch.stack([torch.from_numpy(thing.mask) for thing in self.scene.objects])
        self.similarity = ClipSimilarity(self.clip, targets.text(self.clip, [HORSE, "a dog"]))

    def explain(self, image: Any = None, texts: Any = HORSE, **options: Any) -> Any:
        """`explain` with what the call leaves out."""
        image = self.scene.image if image is None else image
        return explain(image, texts, **{"model": self.clip, **options})

    def attribute(self, forward: Any, method: Any = DirectContribution, **options: Any) -> Any:
        """A method on a forward function of the user's own."""
        return method(forward, layer=self.clip.model).attribute(self.pixels, **options)


@cache
def world() -> World:
    return World()


def evaluate_twice(world: World) -> None:
    """Two runs of different settings in one folder."""
    small: dict[str, Any] = {"data": "demo", "tasks": "localization", "methods": "uniform"}
    for images in (1, 2):
        evaluate(EvaluationConfig("demo/vit", "out", images=images, **small))


def spoiled(name: str, **files: dict[str, Any]) -> str:
    """A copy of an embedded model with other settings in the files of these names."""
    shutil.copytree(MODELS[name], "spoiled")
    for file, settings in files.items():
        path = Path("spoiled", f"{file}.json")
        about = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**about, **settings}))
    return "spoiled"


EVIL: dict[str, Any] = {
    "auto_map": {"AutoConfig": "a.B", "AutoTokenizer": ["a.B", "a.B"]},
    "tokenizer_class": "EvilTokenizer",
}
CALLS: dict[type[Exception], dict[str, Callable[[World], Any]]] = {
    errors.InputError: {
        "… cannot be loaded": lambda w: load_clip("captum-clip/no-such-model"),
        "… which is never followed; load the model yourself": lambda w: load_clip(
            spoiled("demo/vit", config={"_attn_implementation": "org/kernel"})
        ),
        "… comes with code of its own, which is never run": lambda w: load_clip(
            spoiled("demo/resnet", config={**EVIL, "model_type": "b"}, tokenizer_config=EVIL)
        ).encode_text(HORSE),
        "its configuration describes … numbers, and its weights have … bytes": lambda w: load_clip(
            spoiled("demo/vit", config={"projection_dim": 10**6})
        ),
        "no such embedded model": lambda w: load_clip("demo/vitt"),
        "which architecture? Write …": lambda w: load_clip(
            MODELS["demo/vit"] / "model.safetensors"
        ),
        "… that the file lacks, or has in another shape": lambda w: load_clip(
            f"demo/vit:{MODELS['demo/siglip'] / 'model.safetensors'}"
        ),
        "… is neither a known name nor a folder": lambda w: load_clip("./nowhere"),
        "… names the model … A model that a file names is loaded from a hub only": lambda w: (
            check_stated("./model", "photos.lance")
        ),
        "… has no processor": lambda w: load_clip(
            w.clip.model, tokenizer=w.clip.tokenizer
        ).preprocess("photo.jpg"),
        "… has no tokenizer, which is needed for": lambda w: targets.text(
            load_clip(w.clip.model, processor=w.clip.processor), HORSE
        ),
        "… has no processor and no tokenizer": lambda w: w.explain(model=w.clip.model),
        "… the two seem swapped": lambda w: load_clip(
            w.clip.model, processor=w.clip.tokenizer, tokenizer=w.clip.processor
        ),
        "… cannot compute on …": lambda w: load_clip("demo/vit", device="cuda:99"),
        "… expected a multiple of … the side of a patch": lambda w: load_clip(
            "demo/vit", image_size=100
        ),
        "there is no image file …": lambda w: w.explain("phto.jpg"),
        "… is a URL": lambda w: w.explain("https://example.org/photo.jpg"),
        "… is not an image that Pillow can read": lambda w: w.explain("broken.jpg"),
        "… unpacks to more than … pixels": lambda w: w.explain("photo.jpg", max_pixels=9),
        "… is a folder": lambda w: w.explain("."),
        "expected images of shape (B, 3, H, W)": lambda w: w.explain(torch.rand(224, 224, 3)),
        "the tower cannot take images of … pixels": lambda w: w.explain(w.pixels[..., :100, :100]),
        "the images … hold NaN or infinity": lambda w: w.explain(w.pixels / 0),
        "floating-point images count as preprocessed": lambda w: w.explain(255 * w.pixels),
        "expected either texts or `reference`": lambda w: w.explain(reference="photo.jpg"),
        "expected … with options as in": lambda w: w.explain(method="lastgrad"),
        "… has no option …": lambda w: w.explain(method="last-grad", layer=2),
        "… does not depend on the target": lambda w: w.explain(method="rollout", sign="both"),
        "with a forward function of your own, pass the model as `layer`": lambda w: (
            DirectContribution(lambda images: w.similarity(images))
        ),
        "cannot write … the name must end in": lambda w: w.explain().save("horse.bmp"),
        "cannot write … there is no folder": lambda w: w.explain().save("nowhere/horse.png"),
        "a map cannot be laid on the original photos": lambda w: w.explain(w.pixels).plot(
            original=True
        ),
        "expected images in [0, 1]": lambda w: visualization.overlay(
            w.pixels, maps.normalize(w.pixels[:, :1])
        ),
        "expected maps in [0, 1]": lambda w: visualization.overlay(
            w.clip.denormalize(w.pixels), w.pixels[:, :1]
        ),
        "expected … the masks … per map": lambda w: metrics.pointing_game(
            torch.rand(3, 7, 7), w.masks
        ),
        "… of the masks are empty": lambda w: metrics.pointing_game(
            torch.rand(2, 7, 7), w.masks & False
        ),
        "… holds another evaluation": evaluate_twice,
    },
    errors.TargetError: {
        "'' is empty": lambda w: w.explain(texts=""),
        "the text has … tokens": lambda w: w.explain(texts="horse " * 90),
        "`words` need exactly one text": lambda w: w.explain(texts=[HORSE, "a dog"], words=True),
        "… is not in the text": lambda w: w.explain(words=["cat"]),
        "the forward function returns … scores per image": lambda w: DirectContribution(
            w.similarity
        ).attribute(w.pixels),
        "target: … is out of range": lambda w: DirectContribution(w.similarity).attribute(
            w.pixels, target=5
        ),
        "the probe was fitted on features of …": lambda w: targets.emotion(
            w.clip, EmotionProbe.load("demo/resnet")
        ),
    },
    errors.UnsupportedModelError: {
        "… is not supported; …": lambda w: load_clip(torch.nn.Linear(2, 2)),
        "a ResNet is not supported; a classifier …": lambda w: load_clip(resnet18()),
        "… needs a … and this is a …": lambda w: w.explain(method="grad-cam"),
    },
    errors.CaptureError: {
        "The forward function did not run the vision tower": lambda w: w.attribute(
            lambda images: images.sum((1, 2, 3))
        ),
        "The forward function ran the vision tower twice": lambda w: w.attribute(
            lambda images: w.similarity(images) + w.similarity(images), target=0
        ),
        "No gradient leads from the scores back to the tower": lambda w: w.attribute(
            lambda images: w.similarity(images).detach(), AllGradAttention, target=0
        ),
    },
}


@pytest.mark.parametrize("error", CALLS)
def test_calls_raise_their_error_and_say_their_sentence(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence that has these words, whatever stands before and between them."""
    for number, (sentence, call) in enumerate(CALLS[error].items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        Image.fromarray(world().scene.image).save("photo.jpg")
        Path("broken.jpg").write_text("no image")
        words = ".*".join(re.escape(part.strip()) for part in sentence.split("…"))
        with pytest.raises(error) as raised:
            call(world())
        assert type(raised.value) is error, sentence
        assert re.search(words, str(raised.value), re.DOTALL), sentence


def test_every_sentence_of_the_page_is_raised_by_a_call() -> None:
    """With the error that the page names; the page has only what a message cannot say itself."""
    rows = listed()
    assert len(rows) >= 9
    for sentence, error in rows:
        assert sentence in CALLS[getattr(errors, error)], sentence
