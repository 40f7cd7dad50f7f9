"""Samples as a model sees them, and the maps of a method for them, which tasks measure."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .. import maps, targets
from ..checks import expect
from ..errors import InputError, argument
from ..files import draw_order
from ..folders.bootstrap import bootstrap_mean
from ..folders.storage import Skipped
from ..metrics.faithfulness import shapley_effects
from ..models.adapter import ClipAdapter
from ..models.images import resize_masks
from ..models.loading import load_clip
from ..models.towers import ViTTower
from ..models.variants import permute_heads, randomize_parameters
from ..targets.similarity import ClipSimilarity
from .data.base import DataSet, NamedRegion, Sample
from .methods import WITHOUT_MAP, Method
from .run import Arrays, EvaluationConfig
from .table import Check, Gate, Metric, Queries

Remembered = TypeVar("Remembered")


class ModelContext:
    """A model with a data set and the settings; encodings and copies are made once and kept."""

    def __init__(self, clip: ClipAdapter, data: DataSet, config: EvaluationConfig) -> None:
        self.clip: Final = clip
        self.data: Final = data
        self.config: Final = config
        self._texts: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, D) of texts, or of the prompts that stand for them."""
        for text in texts:
            # Alone: a tower rounds otherwise in another batch, and which texts are new depends on
            # the units that this process has done before.
            if text not in self._texts:
                prompts = list(self.data.prompts.get(text, [text]))
                target = targets.text(self.clip, prompts, allow_empty=True)
                if len(target) > 1:
                    target = targets.embedding(target.embeddings.mean(0))
                self._texts[text] = target.embeddings[0]
        return torch.stack([self._texts[text] for text in texts])

    def forward(self, embeddings: Tensor) -> Callable[[Tensor], Tensor]:
        """Images -> their cosines with embeddings."""
        return ClipSimilarity(self.clip, targets.embedding(embeddings))

    @torch.no_grad()
    def scores(self, pixels: Tensor, embeddings: Tensor) -> Tensor:
        """Cosines (N, K) of images, a batch at a time."""
        forward = self.forward(embeddings)
        return torch.cat([*map(forward, torch.split(pixels, self.config.batch_size))])

    @cached_property
    def slow_numbers(self) -> frozenset[int]:
        """The samples that see what takes long, drawn from all."""
        # From all samples, so that the draw does not depend on where a chunk ends.
        return frozenset(draw_order(self.data.names, self.config.seed)[: self.config.slow_images])

    @cached_property
    def classes(self) -> Tensor:
        """Embeddings (C, D) of the data set's classes, two or more."""
        classes = list(self.data.classes)
        expected = f"two classes or more in {self.data.name} for zero-shot classification"
        expect(len(classes) > 1, expected, classes)
        return self.encode(classes)

    @cached_property
    def random_copy(self) -> ClipAdapter:
        """The model with random parameters in its whole vision tower."""
        return randomize_parameters(self.clip, seed=self.config.seed)

    @cached_property
    def renumbered_copy(self) -> ClipAdapter | None:
        """A ViT of the same function, with permuted heads in all layers but the last; or None."""
        tower = self.clip.tower
        if not isinstance(tower, ViTTower):
            return None
        generator = torch.Generator().manual_seed(self.config.seed)
        model = self.clip.model
        for layer, attention in enumerate(tower.layers[:-1]):
            order = torch.randperm(attention.heads, generator=generator).tolist()
            model = permute_heads(model, layer, order)
        return load_clip(model, processor=self.clip.processor, tokenizer=self.clip.tokenizer)


@dataclass(frozen=True, eq=False)
class View:
    """One sample as the model sees it."""

    number: int  # in its data set
    sample: Sample  # as it was read
    pixels: Tensor  # (3, H, W), preprocessed
    regions: tuple[NamedRegion, ...]  # of which the crop shows something, and something else
    masks: Tensor  # (n, H, W) bool, one a region
    # (n, H, W) bool, pixels that count for nothing where a region is asked for; None where all do
    voids: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def valid(self) -> Tensor:
        """(n, H, W) bool, pixels that count, one a region."""
        return torch.ones_like(self.masks) if self.voids is None else ~self.voids


def queries_of(views: Sequence[View], embeddings: Tensor, texts: Sequence[str]) -> Queries:
    """Each sample with a target: embeddings (N, D) and their texts."""
    return Queries(
        torch.stack([view.pixels for view in views]),
        embeddings,
        tuple(view.sample.name for view in views),
        tuple(texts),
        tuple(view.number for view in views),
    )


class Batch:
    """Several samples of a data set, read and preprocessed one after the other."""

    def __init__(self, context: ModelContext, numbers: Sequence[int]) -> None:
        self.context: Final = context
        self.views: Final[list[View]] = []  # of the samples that could be read
        self.skipped: Final[list[Skipped]] = []  # the other samples, and regions that were left out
        self._remembered: dict[str, Any] = {}
        for number in numbers:
            try:
                sample = context.data.read(number)
                view, left_out = _view(number, sample, context.clip)
            except InputError as error:
                self.skipped.append(Skipped.of(number, error))
                continue
            self.views.append(view)
            self.skipped.extend(Skipped(number, reason) for reason in (*sample.dropped, *left_out))

    @property
    def pixels(self) -> Tensor:
        """All images (S, 3, H, W)."""
        return torch.stack([view.pixels for view in self.views])

    def remember(self, name: str, compute: Callable[[], Remembered]) -> Remembered:
        """Return the result of `compute` from the first time that a method asked for it."""
        if name not in self._remembered:
            self._remembered[name] = compute()
        return cast(Remembered, self._remembered[name])

    @cached_property
    def predicted(self) -> Tensor:
        """The class (S,) that the model finds in each image."""
        return self.context.scores(self.pixels, self.context.classes).argmax(1)

    @cached_property
    def subset_scores(self) -> dict[int, Tensor]:
        """Cosines (n, 2^n) of regions' texts with every subset, NaN without an image, by sample."""
        scores = {}
        for view in self.views:
            if view.sample.subsets and len(view.regions) == len(view.sample.regions):
                texts = self.context.encode([region.text for region in view.regions])
                present = {i: image for i, image in enumerate(view.sample.subsets) if image}
                pixels = self.context.clip.preprocess([*present.values()])
                every = texts.new_full((len(texts), len(view.sample.subsets)), torch.nan)
                every[:, [*present]] = self.context.scores(pixels, texts).T
                scores[view.number] = every
        return scores


def _view(number: int, sample: Sample, clip: ClipAdapter) -> tuple[View, list[str]]:
    """A sample in the model's eyes, and the regions that its crop leaves nothing of."""
    [pixels] = clip.preprocess([sample.image])
    size, regions = (pixels.shape[-2], pixels.shape[-1]), sample.regions
    if not regions:
        return View(number, sample, pixels, (), torch.zeros(0, *size, dtype=torch.bool)), []
    # Void pixels go through the same crop as the masks, or they would lie on other pixels.
    planes = [region.mask for region in regions]
    of_regions = [region.void for region in regions]
    has_void = any(void is not None for void in (sample.void, *of_regions))
    if has_void:
        of_all = np.zeros_like(planes[0]) if sample.void is None else sample.void
        planes += [of_all if void is None else of_all | void for void in of_regions]
    resized = torch.from_numpy(resize_masks(clip.processor, np.stack(planes), size))
    resized = resized.to(pixels.device)
    masks, empty = resized[: len(regions)], resized[len(regions) :]
    view = View(number, sample, pixels, regions, masks, empty if has_void else None)
    pairs = zip(view.masks, view.valid, strict=True)
    shares = [float(mask[valid].float().mean()) for mask, valid in pairs]
    left_out = [
        f"the crop shows {'all' if share else 'nothing'} of {region.text!r}"
        for region, share in zip(regions, shares, strict=True)
        if not 0 < share < 1
    ]
    kept = [index for index, share in enumerate(shares) if 0 < share < 1]
    retrieved = sample.label is not None and sample.caption is not None  # whatever it shows
    if not kept and not retrieved:
        raise InputError(f"{sample.name}: {'; '.join(left_out)}")
    regions = tuple(regions[index] for index in kept)
    of_kept = None if view.voids is None else view.voids[kept]
    return replace(view, regions=regions, masks=view.masks[kept], voids=of_kept), left_out


@dataclass(frozen=True)
class Task:
    """Metrics that belong together.

    Attributes:
        metrics: title of a table -> its metrics, for the settings of an evaluation.
        measure: measures one method on one batch: :func:`captum_clip.bench.table.rows_of` it.
        truth: the kinds of truth that it can take; it fits each data set that has any of them.
        by_default: whether it is measured where no task is named.
        without_map: name of :data:`captum_clip.bench.methods.WITHOUT_MAP` -> what measures
            this predictor, which looks at no map, as `measure` does a method.
        rivals: methods that are measured beside those that are named, where the tower has them.
    """

    metrics: Callable[[EvaluationConfig], dict[str, list[Metric]]]
    measure: "Callable[[MethodOnBatch], Iterator[Arrays]]"
    truth: Collection[str]
    by_default: bool = True
    without_map: "Mapping[str, Measure]" = field(default_factory=dict)
    rivals: Sequence[str] = ()

    def rows(self, samples: "Batch", method: "MethodOnBatch") -> Iterator[Arrays]:
        """Measure a method, or a predictor without a map, on a batch."""
        if method.method.name not in WITHOUT_MAP:
            return self.measure(method)
        measure = self.without_map.get(method.method.name)
        return iter(()) if measure is None else measure(samples)


Measure = Callable[[Batch], Iterator[Arrays]]
"""Rows of what needs no map of a method."""


class MethodOnBatch:
    """One method on one batch; maps that several tasks need are made once."""

    def __init__(self, samples: Batch, method: Method) -> None:
        self.samples: Final = samples
        self.method: Final = method
        self.context: Final = samples.context
        self.clip: Final = samples.context.clip
        self.config: Final = samples.context.config
        self.skipped: Final[list[Skipped]] = []  # what has no finite map

    @cached_property
    def _regions(self) -> tuple[Queries, Tensor, Tensor, Tensor]:
        """Queries, masks, maps, and pixels that count, of every region with a finite map."""
        views = [view for view in self.samples.views for _ in view.regions]
        texts = [region.text for view in self.samples.views for region in view.regions]
        masks = torch.cat([view.masks for view in self.samples.views])
        valid = torch.cat([view.valid for view in self.samples.views])
        queries = self._none
        if views:
            queries = queries_of(views, _region_targets(self.samples, texts), texts)
        kept, raw = self.compute_finite(queries)
        return queries.select(kept), masks[kept], raw, valid[kept]

    @property
    def _none(self) -> Queries:
        return Queries(self.samples.pixels[:0], self.context.encode([""])[:0], (), (), ())

    @property
    def regions(self) -> Queries:
        """Every region with a finite map (N); why the others have none goes to `skipped`."""
        return self._regions[0]

    @property
    def masks(self) -> Tensor:
        """Masks (N, H, W) of `regions`, bool."""
        return self._regions[1]

    @property
    def raw(self) -> Tensor:
        """Maps (N, h, w) of `regions`, as the method gives them."""
        return self._regions[2]

    @property
    def valid(self) -> Tensor:
        """(N, H, W) bool, the pixels that count for each of `regions`."""
        return self._regions[3]

    @cached_property
    def positive(self) -> Tensor:
        """Positive evidence for the target: (N, h, w), not below zero."""
        return maps.positive(self.raw)

    @cached_property
    def negative(self) -> Tensor | None:
        """Negative evidence, (N, h, w), not below zero; None where the method has none."""
        return self.compute_negative(self.regions, self.raw)

    @cached_property
    def signed(self) -> Tensor:
        """Positive less negative evidence."""
        return self.positive if self.negative is None else self.positive - self.negative

    def compute_finite(
        self, queries: Queries, clip: ClipAdapter | None = None
    ) -> tuple[list[int], Tensor]:
        """Indices of the queries with a finite map, and these maps (n, h, w).

        Computed a batch at a time, of another model where one is given; why the others have none
        goes to `skipped`.
        """
        if not len(queries):
            return [], queries.embeddings[:, None]
        # A method may keep the activations of all its rows, so the batch bounds the memory.
        parts = queries.split(self.config.batch_size)
        raw = torch.cat([self.method.maps(clip or self.clip, chunk) for chunk in parts])
        kept = self._finite(raw, queries, queries.texts)
        return kept, raw[kept]

    def compute_negative(self, queries: Queries, raw: Tensor) -> Tensor | None:
        """The negative maps (N, h, w) that go with finite maps; None where the method has none.

        NaN where there is none; why goes to `skipped`.
        """
        size = self.config.batch_size
        pairs = zip(queries.split(size), torch.split(raw, size), strict=True)
        parts = [self.method.negative_maps(self.clip, *pair) for pair in pairs]
        if any(heatmap is None for heatmap in parts):  # of a method all have one, or none has
            return None
        negative = torch.cat([heatmap for heatmap in parts if heatmap is not None])
        self._finite(negative, queries, [f"not {text}" for text in queries.texts])
        return negative

    def _finite(self, raw: Tensor, queries: Queries, texts: Sequence[str]) -> list[int]:
        """Indices of the finite maps; why the others are not goes to `skipped`."""
        kept = finite_indices(raw)
        for index in sorted({*range(len(raw))} - {*kept}):
            reason = self.method.failure_reason(queries.names[index], texts[index])
            self.skipped.append(Skipped(queries.numbers[index], f"{self.method.name}: {reason}"))
        return kept

    @cached_property
    def first_queries(self) -> Queries:
        """Each sample with its first region, or with its class where it has no regions.

        With its caption where captions are retrieved. For what is measured once an image; samples
        with neither are left out.
        """
        classes, retrieval = self.context.data.classes, "retrieval" in self.context.data.truth
        views = [v for v in self.samples.views if v.regions or v.sample.label is not None]
        texts = [v.regions[0].text if v.regions else classes[v.sample.label or 0] for v in views]
        if retrieval:
            texts = [view.sample.caption or "" for view in views]
        return queries_of(views, self.context.encode(texts), texts) if views else self._none

    def options_of(self, queries: Queries) -> dict[str, Any]:
        """Options of metrics that draw: an image's draws are those of its own number."""
        # By the sample's own number: neither batches nor chunks may move a draw.
        seed = [self.config.seed + number for number in queries.numbers]
        return {"batch_size": self.config.batch_size, "seed": seed}

    def slow(self, queries: Queries) -> Queries:
        """Keep the images that are drawn for what takes long."""
        drawn = self.context.slow_numbers
        return queries.select([i for i, number in enumerate(queries.numbers) if number in drawn])


def finite_indices(raw: Tensor) -> list[int]:
    """Which of the maps (N, h, w) are finite."""
    indices: list[int] = torch.isfinite(raw).flatten(1).all(1).nonzero()[:, 0].tolist()
    return indices


def _region_targets(samples: Batch, texts: Sequence[str]) -> Tensor:
    """Unit rows (N, D) of all regions: of their texts, or of their reference images."""
    context = samples.context
    if context.config.against == "text":
        return context.encode(texts)
    references = [region.reference for view in samples.views for region in view.regions]
    images = [image for image in references if image is not None]
    expected = f"data with another image of each region for {argument('against', 'image')}"
    expect(len(images) == len(references), expected, context.data.name)
    size = context.config.batch_size
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    clip = context.clip
    return torch.cat([clip.encode_image(clip.preprocess(chunk)).detach() for chunk in parts])


MOST: Final = 200  # images of a data set that the gate looks at, drawn from all


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
