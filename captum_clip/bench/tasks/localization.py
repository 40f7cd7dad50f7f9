"""Does a map lie where it should? Against masks, the cells of mosaics and label images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ... import maps, metrics, targets
from ...folders.storage import Skipped
from ...maps import Box, Threshold
from ...metrics.map_statistics import area_of_ranks
from ...models.adapter import ClipAdapter
from ...models.images import crop_of
from ..batch import Batch, MethodOnBatch, Task, View, finite_indices, queries_of
from ..data import DataSet
from ..run import Arrays
from ..table import Queries, listed, rows_of

NEAR = 15  # pixels, as in the paper of the pointing game
AREA = 0.2
_LEAST_MASS = 1e-150  # Maps may be as small as gradients.


def _measure_localization(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    if not len(on_batch.regions):
        return
    without_void: list[int] = []
    with_void: list[int] = []
    for index, is_valid in enumerate(on_batch.valid.flatten(1).all(1).tolist()):
        if is_valid:
            without_void.append(index)
        else:
            with_void.append(index)
    if without_void:
        yield from _localize(on_batch, without_void, None)
    # Each of the others leaves out different pixels, so their rest has no common shape.
    for index in with_void:
        yield from _localize(on_batch, [index], ~on_batch.valid[index])


LOCALIZATION: Final = Task(
    lambda config: listed("localization", near=NEAR, area=AREA), _measure_localization, ("masks",)
)
"""Positive maps against the masks of what they name."""


def _localize(
    on_batch: MethodOnBatch, indices: Sequence[int], void: Tensor | None
) -> Iterator[Arrays]:
    """Compare the positive maps of some regions with their masks.

    Only a single region may have void pixels (H, W), which count for nothing.
    """
    queries = on_batch.regions.select(indices)
    heatmap = on_batch.positive[indices]
    masks = on_batch.masks[indices]
    if void is None:
        yield from _pointing_rows(queries, heatmap, masks)
    else:
        heatmap = maps.upsample(heatmap, queries.size)
        # Below all other values, so that the maximum does not lie on a void pixel.
        without_void = torch.where(void, heatmap.amin() - 1, heatmap)
        yield from _pointing_rows(queries, without_void, masks & ~void)
        # The other pixels stand in one row; no metric but pointing needs their places.
        heatmap = heatmap[:, None, ~void]
        masks = masks[:, None, ~void]
    object_share = masks.flatten(1).float().mean(1)
    energy = metrics.energy_inside(heatmap, masks)
    yield queries.rows_of("energy", energy, chance=object_share)
    yield queries.rows_of("coverage", metrics.coverage(heatmap, masks, area=AREA))
    yield queries.rows_of("average_precision", metrics.average_precision(heatmap, masks))
    if "points" in on_batch.context.data.truth:
        area = area_of_ranks(heatmap.flatten(1), masks.flatten(1))
        yield queries.rows_of("point_auc", area)
    at_mean = metrics.segmentation_scores(heatmap, masks)
    yield from _segmentation_rows("", queries, at_mean)
    at_half = metrics.segmentation_scores(heatmap, masks, threshold=0.5)
    yield from _segmentation_rows("_half", queries, at_half)
    yield queries.rows_of("legrad_pixel_accuracy", at_half.image_accuracy)
    yield queries.rows_of("legrad_mean_iou", at_half.image_iou)
    both_classes = metrics.two_class_average_precision(heatmap, masks)
    yield queries.rows_of("legrad_map", both_classes)


def _pointing_rows(queries: Queries, heatmap: Tensor, masks: Tensor) -> Iterator[Arrays]:
    yield queries.rows_of("pointing", metrics.pointing_game(heatmap, masks))
    near = metrics.pointing_game(heatmap, masks, tolerance=NEAR)
    yield queries.rows_of(f"pointing_{NEAR}", near)


def _segmentation_rows(
    end: str, queries: Queries, scores: metrics.SegmentationScores
) -> Iterator[Arrays]:
    """Yield the counts of pixels from which the figures of the whole set are computed."""
    wrong = scores.false_positive + scores.false_negative
    right = scores.true_positive + scores.true_negative
    accuracy = {"numerator": right, "denominator": right + wrong}
    yield queries.rows_of(f"pixel_accuracy{end}", accuracy)
    intersections_and_unions = {
        "object": scores.true_positive,
        "object_union": scores.true_positive + wrong,
        "background": scores.true_negative,
        "background_union": scores.true_negative + wrong,
    }
    yield queries.rows_of(f"mean_iou{end}", intersections_and_unions)


_PARTS = ("target", "others", "background")


@dataclass(frozen=True, eq=False)
class _Parts:
    """N regions of images that have other regions and a background, too."""

    queries: Queries
    masks: Tensor  # (N, 3, H, W) bool, in the order of _PARTS
    valid: Tensor  # (N, H, W) bool, the pixels that count

    def select(self, indices: Sequence[int]) -> "_Parts":
        """Select some regions, in the given order."""
        return _Parts(self.queries.select(indices), self.masks[indices], self.valid[indices])


def _measure_signs(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    """Leave out images with a single region."""
    if not len(on_batch.regions):
        return
    every = _parts_of(on_batch)
    kept = every.masks.flatten(2).any(2).all(1).nonzero()[:, 0].tolist()
    if not kept:
        return
    parts = every.select(kept)
    positive = on_batch.positive[kept]
    yield from _share_rows("positive", parts, positive)
    target = parts.masks[:, 0]
    regions = target | parts.masks[:, 1]
    yield _share_row("target_among_regions", parts.queries, positive, target, regions)
    if on_batch.negative is None:
        return
    negative = on_batch.negative[kept]
    finite = finite_indices(negative)
    if finite:
        yield from _negative_rows(parts.select(finite), positive[finite], negative[finite])


OBJECT_SIGNS: Final = Task(lambda config: listed("signs"), _measure_signs, ("objects",))
"""Mass of both signs in the target, in other regions and in the background."""


def _parts_of(on_batch: MethodOnBatch) -> _Parts:
    """Split each region's image into the region, the other regions and the background."""
    view_of = {view.number: view for view in on_batch.samples.views}
    of_any_region = [view_of[number].masks.any(0) for number in on_batch.regions.numbers]
    any_region = torch.stack(of_any_region)  # (N, H, W)
    masks = torch.stack([on_batch.masks, any_region & ~on_batch.masks, ~any_region], 1)
    return _Parts(on_batch.regions, masks & on_batch.valid[:, None], on_batch.valid)


def _negative_rows(parts: _Parts, positive: Tensor, negative: Tensor) -> Iterator[Arrays]:
    """Say where the negative maps (N, h, w) lie, and how far they resemble the positive ones."""
    queries = parts.queries
    yield from _share_rows("negative", parts, negative)
    correlation = metrics.rank_correlation(positive, negative)
    yield queries.rows_of("sign_correlation", correlation, chance=0)
    cosine = F.cosine_similarity(
        positive.flatten(1).double(), negative.flatten(1).double(), eps=_LEAST_MASS
    )
    yield queries.rows_of("sign_cosine", cosine)
    # Below all evidence, so that the maximum does not lie on a pixel that does not count.
    heatmap = torch.where(parts.valid, maps.upsample(negative, queries.size), -1)
    hits = metrics.pointing_game(heatmap, parts.masks[:, 1])
    yield queries.rows_of("negative_pointing_others", hits)


def _share_rows(sign: str, parts: _Parts, heatmap: Tensor) -> Iterator[Arrays]:
    """Yield the shares of the mass of maps (N, h, w) in each of the three parts."""
    for name, masks in zip(_PARTS, parts.masks.unbind(1), strict=True):
        yield _share_row(f"{sign}_{name}", parts.queries, heatmap, masks, parts.valid)


def _share_row(
    metric: str, queries: Queries, heatmap: Tensor, masks: Tensor, valid: Tensor
) -> Arrays:
    """Compute which share of the mass on valid pixels lies in masks (N, H, W).

    A map without mass gets the share of pixels.
    """
    mass = maps.upsample(heatmap, queries.size) * valid
    share = (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))
    chance = masks.flatten(1).sum(1) / valid.flatten(1).sum(1)
    return queries.rows_of(metric, share, chance=chance)


_MOST_WORDS: Final = 4
_CONFIDENCE: Final = 0.5
_SCALE: Final = 100  # of cosines before the softmax, where CLIP's own training stops it


def _measure_words(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    """Leave out samples without a caption or without a region."""
    has_boxes = "phrases" in on_batch.context.data.truth
    views = []
    for view in on_batch.samples.views:
        is_captioned = bool(view.sample.caption and view.regions)
        if is_captioned and (has_boxes or len(view.regions) <= _MOST_WORDS):
            views.append(view)
    if not views:
        return
    view_of_word: list[View] = []
    words: list[str] = []
    embeddings: list[Tensor] = []
    for view in views:
        for region in view.regions:
            view_of_word.append(view)
            words.append(region.text)
            target = targets.words(on_batch.clip, view.sample.caption or "", [region.text])
            # A word may occur several times in its caption; the first one counts.
            embeddings.append(target.embeddings[:1])
    queries = queries_of(view_of_word, torch.cat(embeddings), words)
    kept, raw = on_batch.compute_finite(queries)
    if not kept:
        return
    queries = queries.select(kept)
    masks = torch.cat([view.masks for view in views])[kept]
    groups = {view.number: "boxes" if has_boxes else str(len(view.regions)) for view in views}
    yield from _word_rows(on_batch, queries, raw, masks, groups)

    captions = tuple(view_of_word[index].sample.caption or "" for index in kept)
    whole = replace(queries, embeddings=on_batch.context.encode(captions), texts=captions)
    finite, raw = on_batch.compute_finite(whole)
    if finite:
        share = metrics.energy_inside(maps.positive(raw), masks[finite])
        chance = _image_share(masks[finite])
        yield from _group_rows("caption", queries.select(finite), groups, share, chance)


CAPTION_WORDS: Final = Task(
    lambda config: {**listed("words"), **listed("phrases")}, _measure_words, ("captions", "phrases")
)
"""Signed maps of words, and next to them the maps of whole captions."""


def _word_rows(
    on_batch: MethodOnBatch, queries: Queries, raw: Tensor, masks: Tensor, groups: Mapping[int, str]
) -> Iterator[Arrays]:
    """Compare finite maps (N, h, w) of words with the masks (N, H, W) of what they name."""
    positive = maps.positive(raw)
    negative = on_batch.compute_negative(queries, raw)
    share = _image_share(masks)
    signed = positive
    mosaic_chance = share
    if negative is not None:
        signed = positive - negative
        mosaic_chance = torch.full_like(share, 0.5)
    finite = finite_indices(signed)
    if finite:
        game = metrics.word_mosaic_game(signed[finite], masks[finite])
        of_finite = queries.select(finite)
        yield from _group_rows("words", of_finite, groups, game, mosaic_chance[finite])
    energy = metrics.energy_inside(positive, masks)
    yield from _group_rows("word_energy", queries, groups, energy, share)
    hits = metrics.pointing_game(positive, masks)
    yield from _group_rows("word_pointing", queries, groups, hits, share)


def _image_share(masks: Tensor) -> Tensor:
    """Return the share (N,) of the image that each mask (N, H, W) covers."""
    return masks.flatten(1).double().mean(1)


def _group_rows(
    name: str, queries: Queries, groups: Mapping[int, str], values: Tensor, chance: Tensor
) -> Iterator[Arrays]:
    """Yield rows of values (N,) for each group of samples.

    Groups are told apart by the number of words that the caption names, or called "boxes".
    """
    group_of_row = [groups[number] for number in queries.numbers]
    for group in sorted(set(group_of_row)):
        rows = [row for row, row_group in enumerate(group_of_row) if row_group == group]
        of_group = queries.select(rows)
        yield of_group.rows_of(f"{name}_{group}", values[rows], chance=chance[rows])


class _Cell(NamedTuple):
    """A region of a mosaic that has a class."""

    view: View
    mask: Tensor  # (H, W) bool
    label: int


def _measure_grid(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    """Leave out samples whose regions have no classes."""
    cells = on_batch.samples.remember("known cells", lambda: _known_cells(on_batch.samples))
    if not cells:
        return
    labels = [cell.label for cell in cells]
    queries = queries_of(
        [cell.view for cell in cells],
        on_batch.context.classes[labels],
        [on_batch.context.data.classes[label] for label in labels],
    )
    kept, raw = on_batch.compute_finite(queries)
    if kept:
        masks = torch.stack([cells[index].mask for index in kept])
        share = metrics.energy_inside(maps.positive(raw), masks)
        of_finite = queries.select(kept)
        yield of_finite.rows_of("grid_pg", share, chance=_image_share(masks))


GRID_POINTING: Final = Task(
    lambda config: listed("grid", confidence=_CONFIDENCE, scale=_SCALE), _measure_grid, ("cells",)
)
"""GridPG: positive maps of classes in mosaics, of the cells that the model is sure of."""


def _known_cells(samples: Batch) -> list[_Cell]:
    """Find the cells whose class the model recognizes with confidence if shown the cell alone."""
    cells: list[_Cell] = []
    crops: list[Image.Image] = []
    for view in samples.views:
        for region, mask in zip(view.regions, view.masks, strict=True):
            if region.label is not None:
                cells.append(_Cell(view, mask, region.label))
                box = Image.fromarray(region.mask).getbbox()
                crops.append(view.sample.image.crop(box))
    if not cells:
        return []
    context = samples.context
    cosines = context.scores(context.clip.preprocess(crops), context.classes)
    confidence, predicted = (_SCALE * cosines.double()).softmax(1).max(1)
    labels = torch.tensor([cell.label for cell in cells], device=predicted.device)
    is_known = (predicted == labels) & (confidence >= _CONFIDENCE)
    return [cells[index] for index in is_known.nonzero()[:, 0].tolist()]


def _background_levels(data: DataSet) -> dict[str, Threshold | None]:
    """Return the end of a metric's name -> the level below which a pixel is background."""
    if data.background:
        return {"": "mean", "_half": 0.5}
    return {"": None}


def _measure_segmentation(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    """Leave out samples without a label image."""
    data = on_batch.context.data
    for view in on_batch.samples.views:
        if view.sample.labels is None:
            continue
        heatmap = _maps_of_classes(on_batch, view)
        if heatmap is None:
            continue
        largest, best = heatmap.max(0)
        for end, level in _background_levels(data).items():
            is_object = largest > 0
            if level is not None:
                normalized = maps.normalize(largest)
                is_object &= normalized > maps.threshold_level(normalized[None], level)
            decided = torch.where(is_object, best, len(data.classes))
            yield from _class_rows(end, view, decided, data)


def _measure_best_class(samples: Batch) -> Iterator[Arrays]:
    """Give all pixels the class with the highest score, which is averaged over the windows."""
    context = samples.context
    for view in samples.views:
        if view.sample.labels is not None:
            _, pixels = _windows_of(samples, view)
            scores = context.scores(pixels, context.encode(context.data.classes)).mean(0)
            decided = scores.argmax().expand(view.sample.labels.shape)
            for end in _background_levels(context.data):
                yield from _class_rows(end, view, decided, context.data)


def _class_rows(end: str, view: View, decided: Tensor, data: DataSet) -> Iterator[Arrays]:
    """Compare the decided class (H, W) of each pixel with the truth.

    The number of classes stands for the background.
    """
    truth = torch.from_numpy(view.sample.labels).to(decided.device)
    count = len(data.classes)
    names = list(data.classes)
    if data.background:
        names.append("background")
    is_known = truth >= 0
    cells = ((count + 1) * truth + decided)[is_known]
    # The rows of the table are the true classes, its columns the decided ones.
    confusion = torch.bincount(cells, minlength=(count + 1) ** 2).view(count + 1, -1)
    right = confusion.diagonal()
    # Classes that do not occur have rows too, so that methods have the same rows and can be paired.
    columns = {
        "class": torch.arange(len(names)),
        "intersection": right[: len(names)],
        "union": (confusion.sum(0) + confusion.sum(1) - right)[: len(names)],
    }
    yield rows_of(f"miou{end}", columns, [view.number] * len(names), names)
    accuracy = {"numerator": right.sum()[None], "denominator": confusion.sum()[None]}
    yield rows_of(f"aacc{end}", accuracy, [view.number], ["all classes"])


SEGMENTATION: Final = Task(
    lambda config: listed("segmentation"),
    _measure_segmentation,
    ("label images",),
    without_map={"best-class": _measure_best_class},
)
"""The maps of all classes against label images, as semantic segmentation is measured."""


def _maps_of_classes(on_batch: MethodOnBatch, view: View) -> Tensor | None:
    """Compute the positive maps (K, H, W) of all classes on a photo, averaged over its windows.

    Returns:
        None if any of them is not finite.
    """
    classes = tuple(on_batch.context.data.classes)
    count = len(classes)
    embeddings = on_batch.context.encode(classes)
    width, height = view.sample.image.size
    if on_batch.method.of_photos:
        boxes: list[Box] = [(0, 0, width, height)]
        # Such a method reads the size of the pixels alone, so they take no memory.
        pixels = view.pixels.new_zeros(1, 1, 1, 1).expand(1, 3, height, width)
    else:
        boxes, pixels = _windows_of(on_batch.samples, view)
    heatmap = embeddings.new_zeros(count, height, width)
    window_count = embeddings.new_zeros(height, width)
    for box, window in zip(boxes, pixels, strict=True):
        queries = Queries(
            pixels=window.expand(count, -1, -1, -1),
            embeddings=embeddings,
            names=(view.sample.name,) * count,
            texts=classes,
            # Random maps are drawn from these numbers, and differ between classes.
            numbers=tuple(range(view.number * count, (view.number + 1) * count)),
        )
        raw = _maps_in_window(on_batch, queries)
        missing = sorted(set(range(count)) - set(finite_indices(raw)))
        if missing:
            reason = on_batch.method.failure_reason(view.sample.name, classes[missing[0]])
            on_batch.skipped.append(Skipped(view.number, f"{on_batch.method.name}: {reason}"))
            return None
        heatmap += maps.uncrop(maps.positive(raw), box, (height, width))
        window_count += maps.uncrop(torch.ones_like(raw[0]), box, (height, width))
    return heatmap / window_count.clamp(min=1)


def _maps_in_window(on_batch: MethodOnBatch, queries: Queries) -> Tensor:
    """Compute the raw maps (K, h, w) of queries for one image."""
    chunks = [queries]
    if not on_batch.method.of_photos:
        chunks = queries.split(on_batch.config.batch_size)
    return torch.cat([on_batch.method.maps_of_image(on_batch.clip, chunk) for chunk in chunks])


def _windows_of(samples: Batch, view: View) -> tuple[list[Box], Tensor]:
    key = f"windows of {view.number}"
    return samples.remember(key, lambda: _windows(view.sample.image, samples.context.clip))


def _windows(image: Image.Image, clip: ClipAdapter) -> tuple[list[Box], Tensor]:
    """Cut a photo into overlapping squares; return what the model sees of each.

    Returns:
        The boxes that it sees, in pixels of the photo, and the preprocessed pixels (n, 3, H, W).
    """
    side, length = sorted(image.size)
    count = math.ceil(2 * (length - side) / side) + 1
    starts = np.linspace(0, length - side, count).round().astype(int).tolist()
    if image.width > side:
        corners = [(start, 0) for start in starts]
    else:
        corners = [(0, start) for start in starts]
    squares = [image.crop((x, y, x + side, y + side)) for x, y in corners]
    left, top, right, bottom = crop_of(clip.processor, (side, side)).box
    boxes: list[Box] = [(x + left, y + top, x + right, y + bottom) for x, y in corners]
    return boxes, clip.preprocess(squares)
