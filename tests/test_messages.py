"""docs/appendix/messages.md: each sentence is what the call below it says, and each is listed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
from captum_clip.apps import exported
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.demo import MODELS
from captum_clip.demo.scenes import draw_scene
from captum_clip.models.names import check_stated
from captum_clip.targets import EmotionProbe
from tests.test_docs import ROOT

HORSE = "a horse"


class Message(NamedTuple):
    """A row of the page."""

    sentence: str
    error: str


def messages() -> list[Message]:
    """The rows of the tables of sentences, in the page's order."""
    text = (ROOT / "docs" / "appendix" / "messages.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [
        Message(row[0], row[1].strip("`"))
        for row in rows
        if len(row) == 4 and row[1].strip("`") in vars(errors)
    ]


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
CALLS: list[Callable[[World], Any]] = [  # in the order of the page
    lambda w: load_clip("captum-clip/no-such-model"),
    lambda w: load_clip(spoiled("demo/vit", config={"_attn_implementation": "org/kernel"})),
    lambda w: load_clip(
        spoiled("demo/resnet", config={**EVIL, "model_type": "b"}, tokenizer_config=EVIL)
    ).encode_text(HORSE),
    lambda w: load_clip(spoiled("demo/vit", config={"projection_dim": 10**6})),
    lambda w: load_clip("demo/vitt"),
    lambda w: load_clip(MODELS["demo/vit"] / "model.safetensors"),
    lambda w: load_clip(f"demo/vit:{MODELS['demo/siglip'] / 'model.safetensors'}"),
    lambda w: load_clip("./nowhere"),
    lambda w: check_stated("./model", "photos.lance"),
    lambda w: load_clip(torch.nn.Linear(2, 2)),
    lambda w: load_clip(w.clip.model, tokenizer=w.clip.tokenizer).preprocess("photo.jpg"),
    lambda w: targets.text(load_clip(w.clip.model, processor=w.clip.processor), HORSE),
    lambda w: w.explain(model=w.clip.model),
    lambda w: load_clip(w.clip.model, processor=w.clip.tokenizer, tokenizer=w.clip.processor),
    lambda w: load_clip(resnet18()),
    lambda w: load_clip("demo/vit", device="cuda:99"),
    lambda w: load_clip("demo/vit", image_size=100),
    lambda w: w.explain("phto.jpg"),
    lambda w: w.explain("https://example.org/photo.jpg"),
    lambda w: w.explain("broken.jpg"),
    lambda w: w.explain("photo.jpg", max_pixels=9),
    lambda w: w.explain("."),
    lambda w: w.explain(torch.rand(224, 224, 3)),
    lambda w: w.explain(w.pixels[..., :100, :100]),
    lambda w: w.explain(w.pixels / 0),
    lambda w: w.explain(255 * w.pixels),
    lambda w: w.explain(texts=""),
    lambda w: w.explain(reference="photo.jpg"),
    lambda w: w.explain(texts="horse " * 90),
    lambda w: w.explain(texts=[HORSE, "a dog"], words=True),
    lambda w: w.explain(words=["cat"]),
    lambda w: DirectContribution(w.similarity).attribute(w.pixels),
    lambda w: DirectContribution(w.similarity).attribute(w.pixels, target=5),
    lambda w: targets.emotion(w.clip, EmotionProbe.load("demo/resnet")),
    lambda w: w.explain(method="lastgrad"),
    lambda w: w.explain(method="last-grad", layer=2),
    lambda w: w.explain(method="grad-cam"),
    lambda w: w.explain(method="rollout", sign="both"),
    lambda w: DirectContribution(lambda images: w.similarity(images)),
    lambda w: w.attribute(lambda images: images.sum((1, 2, 3))),
    lambda w: w.attribute(lambda images: w.similarity(images) + w.similarity(images), target=0),
    lambda w: w.attribute(lambda images: w.similarity(images).detach(), AllGradAttention, target=0),
    lambda w: w.explain().save("horse.bmp"),
    lambda w: w.explain().save("nowhere/horse.png"),
    lambda w: w.explain(w.pixels).plot(original=True),
    lambda w: visualization.overlay(w.pixels, maps.normalize(w.pixels[:, :1])),
    lambda w: visualization.overlay(w.clip.denormalize(w.pixels), w.pixels[:, :1]),
    lambda w: metrics.pointing_game(torch.rand(3, 7, 7), w.masks),
    lambda w: metrics.pointing_game(torch.rand(2, 7, 7), w.masks & False),
    lambda w: exported.load("."),
    evaluate_twice,
]


def test_every_sentence_of_the_page_has_its_call() -> None:
    """One each; where they are not in one order the next test says so."""
    assert len(messages()) == len(CALLS) >= 30


@pytest.mark.parametrize(
    ("message", "call"),
    [*zip(messages(), CALLS, strict=False)],
    ids=[message.sentence[:40] for message in messages()][: len(CALLS)],
)
def test_call_says_what_the_page_says(
    message: Message,
    call: Callable[[World], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its error, and a sentence that has these words, whatever stands before and between them."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(world().scene.image).save("photo.jpg")
    Path("broken.jpg").write_text("no image")
    words = ".*".join(re.escape(part.strip()) for part in message.sentence.split("…"))
    with pytest.raises(getattr(errors, message.error), match=f"(?s){words}") as raised:
        call(world())
    assert type(raised.value).__name__ == message.error
