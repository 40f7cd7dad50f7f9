"""Is the model above chance on what is asked? It is measured before any map is judged."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import draw_order
from ..metrics import bootstrap_mean, shapley_effects
from .batch import Batch, ModelContext, View

MOST: Final = 200  # images of a data set that are looked at, drawn from all


class Check(NamedTuple):
    """A figure of the model next to chance; `low` and `high` are of their difference."""

    figure: float
    chance: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Gate:
    r"""How far a model is above chance on what is asked of a data set.

    That is all it says: a model that has a tenth of the nouns, or a tenth of the effect, passes.

    *Recall*: for an image with n texts of its own, the share of them among its n best of all texts
        of the data. By chance: how often they are among the n best of images that they do not name.
        *Effect*: the mean over objects of :math:`|\phi|`, the Shapley effect on such a text. By
        chance: on the other texts. Where embeddings of texts have nothing to do with their meaning,
        both differences are zero on average. They have the intervals of
        :func:`captum_clip.metrics.bootstrap_mean`, over images and over texts, of which the wider
        ends count; where the lower one is not above 0 the figure is at chance.

    Attributes:
        data: name of the data set.
        checks: those that the data allow; none where no text tells one image from another.
    """

    data: str
    checks: Mapping[str, Check]

    @property
    def is_above_chance(self) -> bool:
        """Whether no figure is at chance."""
        return all(check.low > 0 for check in self.checks.values())

    def __str__(self) -> str:
        if not self.checks:
            return f"{self.data}: whether the model is above chance cannot be told."
        verdict = "above chance on what is asked"
        if not self.is_above_chance:
            verdict = "this model is at chance on what is asked; do not interpret"
        checks = "; ".join(
            f"{name} {c.figure:.3g}, by chance {c.chance:.3g}, difference "
            f"{c.figure - c.chance:+.3g} [{c.low:+.3g}, {c.high:+.3g}] on {c.images} images"
            for name, c in self.checks.items()
        )
        return f"{self.data}: {verdict} ({checks})."


@torch.no_grad()
def measure_gate(context: ModelContext) -> Gate:
    """Ask a model what the images of a data set hold, and whose texts their objects move."""
    data, size, clip = context.data, context.config.batch_size, context.clip
    numbers = draw_order(data.names, context.config.seed)[:MOST]
    own, images, scenes = list[list[str]](), list[Tensor](), dict[int, Tensor]()
    for start in range(0, len(numbers), size):
        for view in (batch := Batch(context, numbers[start : start + size])).views:
            subsets = [image for image in view.sample.subsets if image]
            if subsets and len(subsets) == len(view.sample.subsets):
                scenes[len(own)] = clip.encode_image(clip.preprocess(subsets)).float()
            own.append(_texts_of(view, data.classes))
        images += [clip.encode_image(batch.pixels).float()] if batch.views else []
    texts = [*dict.fromkeys([*data.classes, *(text for of_image in own for text in of_image)])]
    if not any(own):
        return Gate(data.name, {})
    embeddings = context.encode(texts).float()
    holds = torch.tensor([[text in of_image for text in texts] for of_image in own])
    place = (torch.cat(images) @ embeddings.T).argsort(1, descending=True).argsort(1).cpu()
    moved = {n: shapley_effects(embeddings @ s.T).abs().mean(1).cpu() for n, s in scenes.items()}
    rows = defaultdict[str, list[tuple[int, str, Tensor, Tensor]]](list)
    for image, text in holds.nonzero().tolist():
        among, others = (place[:, text] < holds[image].sum()).double(), ~holds[:, text]
        here = image, texts[text]
        if others.any() and not holds[image].all():
            name = f"recall among {len(texts)} texts"
            rows[name].append((*here, among[image], among[others].mean()))
        if image in moved and not holds[image].all():
            effect = moved[image]
            rows["|effect| on them"].append((*here, effect[text], effect[~holds[image]].mean()))
    checks = {name: _check(pairs, context) for name, pairs in rows.items()}
    return Gate(data.name, {name: check for name, check in checks.items() if check.images > 1})


def _texts_of(view: View, classes: Sequence[str]) -> list[str]:
    """The texts that name what an image holds, classes by their texts; a caption that is one."""
    sample, regions = view.sample, view.regions
    if sample.labels is not None:
        return [classes[n] for n in np.unique(sample.labels) if 0 <= n < len(classes)]
    if sample.label is not None and (sample.caption is not None or not regions):
        return [classes[sample.label]]
    return [region.text if region.label is None else classes[region.label] for region in regions]


def _check(rows: Iterable[tuple[int, str, Tensor, Tensor]], context: ModelContext) -> Check:
    images, texts, figures, chances = (np.array(column) for column in zip(*rows, strict=True))
    options = {"resamples": context.config.resamples, "seed": context.config.seed}
    # Rows that share a text are no more independent than rows of one image.
    ends = [bootstrap_mean(figures - chances, groups, **options) for groups in (images, texts)]
    low, high = min(end.low for end in ends), max(end.high for end in ends)
    return Check(float(figures.mean()), float(chances.mean()), low, high, len({*images.tolist()}))
