"""Does the model know what is asked? Its answers against chance, before any map is judged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import draw_order
from ..metrics import bootstrap_mean, shapley_effects
from .batch import Batch, ModelContext, View

MOST: Final = 200
"""Images of a data set that are looked at, drawn from all."""


class Check(NamedTuple):
    """An answer of the model next to chance; `low` and `high` are of the mean difference."""

    name: str
    mean: float  # where the image holds what the text names
    chance: float  # where it does not
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Gate:
    r"""What a model knows of a data set.

    *Recall*: an image with n texts of its own, of all C texts of the data set; the share of them
    among its n best by the cosine. Chance: how often a text is among the n best of the images that
    it is no text of. *Effect*: the mean over objects of :math:`|\phi|`, the Shapley effect of an
    object on a text, where the scene can be redrawn. Chance: that on the other texts. Both are
    zero on average where the embeddings of texts have nothing to do with what they name.

    The interval is :func:`captum_clip.metrics.bootstrap_mean` of value less chance, a row for each
    image and text, over images and again over texts; the lower of both lower ends must be above 0.

    Attributes:
        data: name of the data set.
        checks: those that the data allow; none where no text tells one image from another.
    """

    data: str
    checks: tuple[Check, ...]

    @property
    def knows(self) -> bool:
        """Whether no check is at chance."""
        return all(check.low > 0 for check in self.checks)

    def __str__(self) -> str:
        if not self.checks:
            return f"{self.data}: whether the model knows what is asked cannot be told."
        known = "the model knows what is asked"
        unknown = "this model does not know what is asked; do not interpret"
        checks = "; ".join(
            f"{c.name} {c.mean:.3g}, by chance {c.chance:.3g}, difference {c.mean - c.chance:+.3g} "
            f"[{c.low:+.3g}, {c.high:+.3g}] on {c.images} images"
            for c in self.checks
        )
        return f"{self.data}: {known if self.knows else unknown} ({checks})."


_Pair = tuple[int, str, float, float]  # image, text, value, chance


@torch.no_grad()
def measure_gate(context: ModelContext) -> Gate:
    """Ask a model what the images of a data set hold, and whose texts their objects move."""
    data, size, clip = context.data, context.config.batch_size, context.clip
    numbers = draw_order(data.names, context.config.seed)[:MOST]
    own, images, scenes = list[list[str]](), list[Tensor](), dict[int, Tensor]()
    for start in range(0, len(numbers), size):
        batch = Batch(context, numbers[start : start + size])
        images += [clip.encode_image(batch.pixels)] if batch.views else []
        for view in batch.views:
            if view.sample.subsets:
                scenes[len(own)] = clip.encode_image(clip.preprocess([*view.sample.subsets]))
            own.append(_texts_of(view, data.classes))
    texts = [*dict.fromkeys([*data.classes, *(text for of_image in own for text in of_image)])]
    if not any(own) or len(texts) < 2:
        return Gate(data.name, ())
    embeddings = context.encode(texts)
    holds = torch.tensor([[text in of_image for text in texts] for of_image in own])
    place = (torch.cat(images) @ embeddings.T).argsort(1, descending=True).argsort(1).cpu()
    effects = {
        image: shapley_effects(embeddings @ subsets.T).abs().mean(1).cpu()
        for image, subsets in scenes.items()
    }
    recalls, moves = list[_Pair](), list[_Pair]()
    for image, text in holds.nonzero().tolist():
        among, others = (place[:, text] < holds[image].sum()).double(), ~holds[:, text]
        if holds[image].all():  # there is no other text
            continue
        if others.any():
            recalls.append((image, texts[text], float(among[image]), float(among[others].mean())))
        if image in effects:
            effect, chance = effects[image], float(effects[image][~holds[image]].mean())
            moves.append((image, texts[text], float(effect[text]), chance))
    kinds = {f"recall among {len(texts)} texts": recalls, "|effect| on the texts": moves}
    checks = [_check(name, pairs, context) for name, pairs in kinds.items()]
    return Gate(data.name, tuple(check for check in checks if check.images > 1))


def _texts_of(view: View, classes: Sequence[str]) -> list[str]:
    """The texts that name what an image holds, classes by their texts."""
    sample, labels = view.sample, [region.label for region in view.regions]
    if not view.regions and sample.label is not None:
        labels = [sample.label]
    if sample.labels is not None:
        labels = [label for label in np.unique(sample.labels) if 0 <= label < len(classes)]
    texts = [classes[label] for label in labels if label is not None]
    texts += [region.text for region in view.regions if region.label is None]
    return [*dict.fromkeys([*texts, *([sample.fixated] if sample.fixated else [])])]


def _check(name: str, pairs: Iterable[_Pair], context: ModelContext) -> Check:
    images, texts, values, chances = zip(*pairs, strict=True) if pairs else ((),) * 4
    if len({*images}) < 2:
        return Check(name, *[np.nan] * 4, len({*images}))
    options = {"resamples": context.config.resamples, "seed": context.config.seed}
    gaps = np.subtract(values, chances)
    ends = [bootstrap_mean(gaps, groups, **options) for groups in (images, texts)]
    low, high = min(end.low for end in ends), max(end.high for end in ends)
    return Check(name, *map(float, (np.mean(values), np.mean(chances), low, high)), len({*images}))
