"""Samples as a model sees them, and a method's maps for them, which tasks measure."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar, cast

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
    """A model with a data set and the settings; it keeps embeddings and copies of the model."""

    def __init__(self, clip: ClipAdapter, data: DataSet, config: EvaluationConfig) -> None:
        self.clip: Final = clip
        self.data: Final = data
        self.config: Final = config
        self._texts: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, D) of texts, or of the prompts that stand for them."""
        for text in texts:
            if text not in self._texts:
                self._texts[text] = self._encode_alone(text)
        return torch.stack([self._texts[text] for text in texts])

    def _encode_alone(self, text: str) -> Tensor:
        # A tower rounds differently in batches of different sizes, and which texts are new depends
        # on the units that this process has done before. So each text is a batch of its own.
        prompts = list(self.data.prompts.get(text, [text]))
        target = targets.text(self.clip, prompts, allow_empty=True)
        if len(target) > 1:
            target = targets.embedding(target.embeddings.mean(0))
        return target.embeddings[0]

    def forward(self, embeddings: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function from images (N, 3, H, W) to their cosines (N, K) with embeddings."""
        return ClipSimilarity(self.clip, targets.embedding(embeddings))

    @torch.no_grad()
    def scores(self, pixels: Tensor, embeddings: Tensor) -> Tensor:
        """Compute the cosines (N, K) of images with embeddings, a batch at a time."""
        forward = self.forward(embeddings)
        chunks = torch.split(pixels, self.config.batch_size)
        return torch.cat([forward(chunk) for chunk in chunks])

    @cached_property
    def slow_numbers(self) -> frozenset[int]:
        """The numbers of the samples on which slow metrics are measured."""
        # They are drawn from all samples, so that the draw does not depend on where a chunk ends.
        order = draw_order(self.data.names, self.config.seed)
        return frozenset(order[: self.config.slow_images])

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
        """A ViT of the same function, with permuted heads in all layers but the last.

        None for another tower, which has no heads to permute.
        """
        tower = self.clip.tower
        if not isinstance(tower, ViTTower):
            return None
        generator = torch.Generator().manual_seed(self.config.seed)
        model = self.clip.model  # `permute_heads` returns a copy
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
    regions: tuple[NamedRegion, ...]  # those that cover a part of the crop, but not all of it
    masks: Tensor  # (n, H, W) bool, one for each region
    valid: Tensor  # (n, H, W) bool, the pixels that count for each region

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


def queries_of(views: Sequence[View], embeddings: Tensor, texts: Sequence[str]) -> Queries:
    """Pair each of N views with a target, given by its embedding (N, D) and its text."""
    return Queries(
        pixels=torch.stack([view.pixels for view in views]),
        embeddings=embeddings,
        names=tuple(view.sample.name for view in views),
        texts=tuple(texts),
        numbers=tuple(view.number for view in views),
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
            for reason in (*sample.dropped, *left_out):
                self.skipped.append(Skipped(number, reason))

    @property
    def pixels(self) -> Tensor:
        """All images (S, 3, H, W)."""
        return torch.stack([view.pixels for view in self.views])

    def remember(self, name: str, compute: Callable[[], Remembered]) -> Remembered:
        """Return the result of `compute`, which runs only once for each name."""
        if name not in self._remembered:
            self._remembered[name] = compute()
        return cast(Remembered, self._remembered[name])

    @cached_property
    def predicted(self) -> Tensor:
        """The class (S,) that the model predicts for each image."""
        return self.context.scores(self.pixels, self.context.classes).argmax(1)

    @cached_property
    def subset_scores(self) -> dict[int, Tensor]:
        """Number of a sample -> cosines (n, 2^n) of its regions' texts with every subset of them.

        NaN for a subset without an image. Samples that lack a region in the crop are left out.
        """
        scores = {}
        for view in self.views:
            sample = view.sample
            if not sample.subsets or len(view.regions) < len(sample.regions):
                continue
            images = {index: image for index, image in enumerate(sample.subsets) if image}
            pixels = self.context.clip.preprocess(list(images.values()))
            embeddings = self.context.encode([region.text for region in view.regions])
            cosines = embeddings.new_full((len(embeddings), len(sample.subsets)), torch.nan)
            cosines[:, list(images)] = self.context.scores(pixels, embeddings).T
            scores[view.number] = cosines
        return scores


def _view(number: int, sample: Sample, clip: ClipAdapter) -> tuple[View, list[str]]:
    """Preprocess a sample, and tell which regions cannot be used because of the crop."""
    [pixels] = clip.preprocess([sample.image])
    size = (pixels.shape[-2], pixels.shape[-1])
    if not sample.regions:
        empty = torch.zeros(0, *size, dtype=torch.bool)
        return View(number, sample, pixels, (), empty, empty), []

    masks = np.stack([region.mask for region in sample.regions])
    voids = np.zeros_like(masks)
    for index, region in enumerate(sample.regions):
        if sample.void is not None:
            voids[index] |= sample.void
        if region.void is not None:
            voids[index] |= region.void
    # Void pixels go through the same crop as the masks, or they would lie on other pixels.
    resized_masks = torch.from_numpy(resize_masks(clip.processor, masks, size))
    resized_voids = torch.from_numpy(resize_masks(clip.processor, voids, size))
    resized_masks = resized_masks.to(pixels.device)
    valid = ~resized_voids.to(pixels.device)

    kept: list[int] = []
    left_out: list[str] = []
    for index, region in enumerate(sample.regions):
        share = float(resized_masks[index][valid[index]].float().mean())
        if 0 < share < 1:
            kept.append(index)
        else:
            shown = "all" if share else "nothing"
            left_out.append(f"the crop shows {shown} of {region.text!r}")
    # Retrieval asks for the caption of an image, for which no region has to be visible.
    is_retrieved = sample.label is not None and sample.caption is not None
    if not kept and not is_retrieved:
        raise InputError(f"{sample.name}: {'; '.join(left_out)}")
    regions = tuple(sample.regions[index] for index in kept)
    return View(number, sample, pixels, regions, resized_masks[kept], valid[kept]), left_out


@dataclass(frozen=True)
class Task:
    """Metrics that belong together.

    Attributes:
        metrics: title of a table -> its metrics, for the settings of an evaluation.
        measure: measures one method on one batch, and yields blocks of rows as
            :func:`captum_clip.bench.table.rows_of` makes them.
        truth: the kinds of truth that it can take; it fits each data set that has any of them.
        by_default: whether it is measured where no task is named.
        without_map: name of :data:`captum_clip.bench.methods.WITHOUT_MAP` -> the function that
            measures this predictor, as `measure` does for a method.
        rivals: methods that are measured in addition to the named ones, if the tower has them.
    """

    metrics: Callable[[EvaluationConfig], dict[str, list[Metric]]]
    measure: "Callable[[MethodOnBatch], Iterator[Arrays]]"
    truth: Collection[str]
    by_default: bool = True
    without_map: "Mapping[str, Measure]" = field(default_factory=dict)
    rivals: Sequence[str] = ()

    def rows(self, samples: "Batch", on_batch: "MethodOnBatch") -> Iterator[Arrays]:
        """Measure a method, or a predictor without a map, on a batch."""
        name = on_batch.method.name
        if name not in WITHOUT_MAP:
            yield from self.measure(on_batch)
        elif name in self.without_map:
            yield from self.without_map[name](samples)


Measure = Callable[[Batch], Iterator[Arrays]]
"""Measures a predictor that needs no map, and yields blocks of rows."""


@dataclass(frozen=True, eq=False)
class _RegionMaps:
    """The N regions of a batch that have a finite map."""

    queries: Queries
    masks: Tensor  # (N, H, W) bool
    raw: Tensor  # (N, h, w), as the method returns them
    valid: Tensor  # (N, H, W) bool, the pixels that count


class MethodOnBatch:
    """One method on one batch; maps that several tasks need are computed once."""

    def __init__(self, samples: Batch, method: Method) -> None:
        self.samples: Final = samples
        self.method: Final = method
        self.context: Final = samples.context
        self.clip: Final = samples.context.clip
        self.config: Final = samples.context.config
        self.skipped: Final[list[Skipped]] = []  # the reasons for maps that are not finite

    @cached_property
    def _region_maps(self) -> _RegionMaps:
        views: list[View] = []
        regions: list[NamedRegion] = []
        for view in self.samples.views:
            for region in view.regions:
                views.append(view)
                regions.append(region)
        queries = self._no_queries
        if regions:
            embeddings = self._region_targets(regions)
            queries = queries_of(views, embeddings, [region.text for region in regions])
        kept, raw = self.compute_finite(queries)
        masks = torch.cat([view.masks for view in self.samples.views])
        valid = torch.cat([view.valid for view in self.samples.views])
        return _RegionMaps(queries.select(kept), masks[kept], raw, valid[kept])

    def _region_targets(self, regions: Sequence[NamedRegion]) -> Tensor:
        """Return the unit embeddings (N, D) of the regions' texts, or of their reference images."""
        if self.config.against == "text":
            return self.context.encode([region.text for region in regions])
        references = [region.reference for region in regions if region.reference is not None]
        expected = f"data with another image of each region for {argument('against', 'image')}"
        expect(len(references) == len(regions), expected, self.context.data.name)
        size = self.config.batch_size
        embeddings = []
        for start in range(0, len(references), size):
            pixels = self.clip.preprocess(references[start : start + size])
            embeddings.append(self.clip.encode_image(pixels).detach())
        return torch.cat(embeddings)

    @property
    def _no_queries(self) -> Queries:
        # The slices are empty, but have the shapes and devices of others.
        return Queries(self.samples.pixels[:0], self.context.encode([""])[:0], (), (), ())

    @property
    def regions(self) -> Queries:
        """Every region with a finite map (N); why the others have none goes to `skipped`."""
        return self._region_maps.queries

    @property
    def masks(self) -> Tensor:
        """Masks (N, H, W) of `regions`, bool."""
        return self._region_maps.masks

    @property
    def raw(self) -> Tensor:
        """Maps (N, h, w) of `regions`, as the method returns them."""
        return self._region_maps.raw

    @property
    def valid(self) -> Tensor:
        """(N, H, W) bool, the pixels that count for each of `regions`."""
        return self._region_maps.valid

    @cached_property
    def positive(self) -> Tensor:
        """Positive evidence for the target: (N, h, w), not below zero."""
        return maps.positive(self.raw)

    @cached_property
    def negative(self) -> Tensor | None:
        """Negative evidence, (N, h, w), not below zero; None if the method has none."""
        return self.compute_negative(self.regions, self.raw)

    @cached_property
    def signed(self) -> Tensor:
        """Positive minus negative evidence, (N, h, w)."""
        if self.negative is None:
            return self.positive
        return self.positive - self.negative

    def compute_finite(
        self, queries: Queries, clip: ClipAdapter | None = None
    ) -> tuple[list[int], Tensor]:
        """Compute the maps of queries, of another model if one is given.

        Returns:
            The indices of the n queries with a finite map, and these maps (n, h, w). Why the others
            have none goes to `skipped`.
        """
        if len(queries) == 0:
            # There are no maps, (0, h, w): any empty tensor of three dimensions says so.
            return [], queries.embeddings[:, None]
        # A method may keep the activations of all its rows, so the batch bounds the memory.
        chunks = queries.split(self.config.batch_size)
        model = clip or self.clip
        raw = torch.cat([self.method.maps(model, chunk) for chunk in chunks])
        kept = self._keep_finite(raw, queries, queries.texts)
        return kept, raw[kept]

    def compute_negative(self, queries: Queries, raw: Tensor) -> Tensor | None:
        """Compute the negative maps (N, h, w) that go with finite maps; None if there are none.

        A single map that is missing is NaN, and the reason goes to `skipped`.
        """
        query_chunks = queries.split(self.config.batch_size)
        raw_chunks = torch.split(raw, self.config.batch_size)
        negative_chunks = []
        for query_chunk, raw_chunk in zip(query_chunks, raw_chunks, strict=True):
            negative_chunk = self.method.negative_maps(self.clip, query_chunk, raw_chunk)
            if negative_chunk is None:
                return None
            negative_chunks.append(negative_chunk)
        negative = torch.cat(negative_chunks)
        self._keep_finite(negative, queries, [f"not {text}" for text in queries.texts])
        return negative

    def _keep_finite(self, raw: Tensor, queries: Queries, texts: Sequence[str]) -> list[int]:
        """Return the indices of the finite maps; why the others are not goes to `skipped`."""
        kept = finite_indices(raw)
        for index in range(len(raw)):
            if index not in kept:
                reason = self.method.failure_reason(queries.names[index], texts[index])
                message = f"{self.method.name}: {reason}"
                self.skipped.append(Skipped(queries.numbers[index], message))
        return kept

    @cached_property
    def first_queries(self) -> Queries:
        """One query for each sample, for metrics that are measured once an image.

        Its target is the caption where captions are retrieved, else the first region, else the
        class. Samples without regions and class are left out.
        """
        data = self.context.data
        views: list[View] = []
        texts: list[str] = []
        for view in self.samples.views:
            if view.regions:
                text = view.regions[0].text
            elif view.sample.label is not None:
                text = data.classes[view.sample.label]
            else:
                continue
            if "retrieval" in data.truth:
                text = view.sample.caption or ""
            views.append(view)
            texts.append(text)
        if not views:
            return self._no_queries
        return queries_of(views, self.context.encode(texts), texts)

    def options_of(self, queries: Queries) -> dict[str, Any]:
        """Return the options of metrics that draw."""
        # The seed is the sample's own, so that neither batches nor chunks move a draw.
        seeds = [self.config.seed + number for number in queries.numbers]
        return {"batch_size": self.config.batch_size, "seed": seeds}

    def slow(self, queries: Queries) -> Queries:
        """Keep the queries of the images on which slow metrics are measured."""
        kept = []
        for index, number in enumerate(queries.numbers):
            if number in self.context.slow_numbers:
                kept.append(index)
        return queries.select(kept)


def finite_indices(raw: Tensor) -> list[int]:
    """Return the indices of the maps (N, h, w) that are finite."""
    is_finite = torch.isfinite(raw).flatten(1).all(1)
    indices: list[int] = is_finite.nonzero()[:, 0].tolist()
    return indices


_MOST_IMAGES: Final = 200
"""The gate reads at most this many images, drawn from all."""


class _GateRow(NamedTuple):
    """A figure of one text of one image, next to the same figure by chance."""

    image: int
    text: str
    figure: float
    chance: float


@dataclass(frozen=True, eq=False)
class _GateImages:
    """The embeddings and texts of N images that the gate reads."""

    texts: list[list[str]]  # for each image the texts that name what it shows
    embeddings: list[Tensor]  # (n, D), a batch each
    subsets: dict[int, Tensor]  # index of an image -> embeddings (2^n, D) of its subsets

    @classmethod
    def read(cls, context: ModelContext) -> "_GateImages":
        """Encode the images of a data set, and their subsets where all of them are drawn."""
        clip = context.clip
        size = context.config.batch_size
        numbers = draw_order(context.data.names, context.config.seed)[:_MOST_IMAGES]
        texts: list[list[str]] = []
        embeddings: list[Tensor] = []
        subsets: dict[int, Tensor] = {}
        for start in range(0, len(numbers), size):
            batch = Batch(context, numbers[start : start + size])
            for view in batch.views:
                images = [image for image in view.sample.subsets if image]
                # Shapley effects need an image of every subset.
                if images and len(images) == len(view.sample.subsets):
                    pixels = clip.preprocess(images)
                    subsets[len(texts)] = clip.encode_image(pixels).float()
                texts.append(_texts_of(view, context.data.classes))
            if batch.views:
                embeddings.append(clip.encode_image(batch.pixels).float())
        return cls(texts, embeddings, subsets)


@torch.no_grad()
def measure_gate(context: ModelContext) -> Gate:
    """Compare with chance which texts a model finds for images, and which texts objects move."""
    images = _GateImages.read(context)
    if not any(images.texts):
        return Gate(context.data.name, {})
    all_texts = itertools.chain(context.data.classes, *images.texts)
    texts = list(dict.fromkeys(all_texts))
    embeddings = context.encode(texts).float()
    # The rank of each text among all texts for an image, 0 for the highest cosine.
    cosines = torch.cat(images.embeddings) @ embeddings.T
    ranks = cosines.argsort(1, descending=True).argsort(1).cpu()
    effects: dict[int, Tensor] = {}
    for image, subsets in images.subsets.items():
        effects_on_texts = shapley_effects(embeddings @ subsets.T)  # (K, n)
        effects[image] = effects_on_texts.abs().mean(1).cpu()
    is_named = _is_named(images.texts, texts)

    rows = defaultdict[str, list[_GateRow]](list)
    for image, column in is_named.nonzero().tolist():
        named = is_named[image]
        # An image that every text names has no other text to compare with.
        if named.all():
            continue
        # Recall is compared with that in images which the text does not name.
        others = ~is_named[:, column]
        if others.any():
            recalled = (ranks[:, column] < named.sum()).double()
            figure = float(recalled[image])
            chance = float(recalled[others].mean())
            row = _GateRow(image, texts[column], figure, chance)
            rows[f"recall among {len(texts)} texts"].append(row)
        # An effect is compared with that on texts which do not name the image.
        if image in effects:
            figure = float(effects[image][column])
            chance = float(effects[image][~named].mean())
            rows["|effect| on them"].append(_GateRow(image, texts[column], figure, chance))

    checks: dict[str, Check] = {}
    for name, figure_rows in rows.items():
        check = _check_of(figure_rows, context.config)
        # A single image has no interval.
        if check.images > 1:
            checks[name] = check
    return Gate(context.data.name, checks)


def _is_named(texts_of_images: Sequence[Sequence[str]], texts: Sequence[str]) -> Tensor:
    """Return which of K texts name each of N images: (N, K) bool."""
    columns = {text: column for column, text in enumerate(texts)}
    is_named = torch.zeros(len(texts_of_images), len(texts), dtype=torch.bool, device="cpu")
    for image, image_texts in enumerate(texts_of_images):
        for text in image_texts:
            is_named[image, columns[text]] = True
    return is_named


def _texts_of(view: View, classes: Sequence[str]) -> list[str]:
    """Return the texts that name what an image shows."""
    sample = view.sample
    if sample.labels is not None:
        numbers = np.unique(sample.labels)
        # The other numbers stand for the background, and for pixels that count for nothing.
        return [classes[number] for number in numbers if 0 <= number < len(classes)]
    is_retrieved = sample.caption is not None
    if sample.label is not None and (is_retrieved or not view.regions):
        return [classes[sample.label]]
    texts = []
    for region in view.regions:
        text = region.text if region.label is None else classes[region.label]
        texts.append(text)
    return texts


def _check_of(rows: Sequence[_GateRow], config: EvaluationConfig) -> Check:
    """Average the rows of a figure, with the wider ends of two intervals."""
    figures = np.array([row.figure for row in rows])
    chances = np.array([row.chance for row in rows])
    differences = figures - chances
    images = [row.image for row in rows]
    texts = [row.text for row in rows]
    options = {"resamples": config.resamples, "seed": config.seed}
    # Rows that share a text are no more independent than rows of one image.
    over_images = bootstrap_mean(differences, images, **options)
    over_texts = bootstrap_mean(differences, texts, **options)
    return Check(
        figure=float(figures.mean()),
        chance=float(chances.mean()),
        low=min(over_images.low, over_texts.low),
        high=max(over_images.high, over_texts.high),
        images=len(set(images)),
    )
