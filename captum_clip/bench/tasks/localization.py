"""Does a map lie where it should? Against masks, the cells of mosaics and label images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

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

NEAR = 15  # pixels, of the paper of the pointing game
AREA = 0.2
_PARTS = ("target", "others", "background")
_LEAST_MASS = 1e-150  # maps may be as small as gradients


def _measure_localization(batch: MethodOnBatch) -> Iterator[Arrays]:
    is_whole = batch.valid.flatten(1).all(1).tolist() if len(batch.regions) else []
    whole = [index for index, is_one in enumerate(is_whole) if is_one]
    if whole:
        yield from _localize(batch, whole, None)
    # Each of the others leaves out pixels of its own, which no batch of one shape can.
    for index in sorted({*range(len(is_whole))} - {*whole}):
        yield from _localize(batch, [index], ~batch.valid[index])


LOCALIZATION: Final = Task(
    lambda config: listed("localization", near=NEAR, area=AREA), _measure_localization, ("masks",)
)
"""Positive maps against the masks of what they name."""


def _localize(
    batch: MethodOnBatch, indices: Sequence[int], void: Tensor | None
) -> Iterator[Arrays]:
    """Some regions, of one image where some of its pixels count for nothing."""
    queries = batch.regions.select(indices)
    heatmap, masks = batch.positive[indices], batch.masks[indices]
    highest, inside = heatmap, masks
    if void is not None:
        heatmap = maps.upsample(heatmap, queries.size)
        highest, inside = torch.where(void, heatmap.amin() - 1, heatmap), masks & ~void
        # what is left has no shape, which no metric but pointing asks for
        heatmap, masks = heatmap[:, None, ~void], masks[:, None, ~void]
    yield queries.rows_of("pointing", metrics.pointing_game(highest, inside))
    near = metrics.pointing_game(highest, inside, tolerance=NEAR)
    yield queries.rows_of(f"pointing_{NEAR}", near)
    share = masks.flatten(1).float().mean(1)
    yield queries.rows_of("energy", metrics.energy_inside(heatmap, masks), chance=share)
    yield queries.rows_of("coverage", metrics.coverage(heatmap, masks, area=AREA))
    yield queries.rows_of("average_precision", metrics.average_precision(heatmap, masks))
    if "points" in batch.context.data.truth:
        area = area_of_ranks(heatmap.flatten(1), masks.flatten(1))
        yield queries.rows_of("point_auc", area)
    at_half = metrics.segmentation_scores(heatmap, masks, threshold=0.5)
    for end, scores in (("", metrics.segmentation_scores(heatmap, masks)), ("_half", at_half)):
        hit, false_alarm, miss, rest = scores
        wrong = false_alarm + miss
        right = {"numerator": hit + rest, "denominator": hit + rest + wrong}
        yield queries.rows_of(f"pixel_accuracy{end}", right)
        both = {"object": hit, "object_union": hit + wrong}
        both |= {"background": rest, "background_union": rest + wrong}
        yield queries.rows_of(f"mean_iou{end}", both)
    yield queries.rows_of("legrad_pixel_accuracy", at_half.image_accuracy)
    yield queries.rows_of("legrad_mean_iou", at_half.image_iou)
    yield queries.rows_of("legrad_map", metrics.two_class_average_precision(heatmap, masks))


def _measure_signs(batch: MethodOnBatch) -> Iterator[Arrays]:
    """Images with one region only are left out."""
    queries = batch.regions
    if not len(queries):
        return
    views = {view.number: view for view in batch.samples.views}
    owners = [views[number] for number in queries.numbers]
    whole = torch.stack([view.masks.any(0) for view in owners])  # (N, H, W)
    valid = batch.valid
    parts = torch.stack([batch.masks, whole & ~batch.masks, ~whole], 1) & valid[:, None]
    kept = parts.flatten(2).any(2).all(1).nonzero()[:, 0].tolist()
    if not kept:
        return
    queries, positive = queries.select(kept), batch.positive[kept]
    parts, valid = parts[kept], valid[kept]
    yield from _shares_of_parts("positive", queries, positive, parts, valid)
    regions = parts[:, 0] | parts[:, 1]
    yield _share("target_among_regions", queries, positive, parts[:, 0], regions)
    negative = None if batch.negative is None else batch.negative[kept]
    finite = [] if negative is None else finite_indices(negative)
    if negative is None or not finite:
        return
    queries, parts, valid = queries.select(finite), parts[finite], valid[finite]
    positive, negative = positive[finite], negative[finite]
    yield from _shares_of_parts("negative", queries, negative, parts, valid)
    correlation = metrics.rank_correlation(positive, negative)
    yield queries.rows_of("sign_correlation", correlation, chance=0)
    first, second = (heatmap.flatten(1).double() for heatmap in (positive, negative))
    yield queries.rows_of("sign_cosine", F.cosine_similarity(first, second, eps=_LEAST_MASS))
    # Below all evidence, so that no maximum lies on a pixel that does not count.
    heatmap = torch.where(valid, maps.upsample(negative, queries.size), -1)
    hits = metrics.pointing_game(heatmap, parts[:, 1])
    yield queries.rows_of("negative_pointing_others", hits)


OBJECT_SIGNS: Final = Task(lambda config: listed("signs"), _measure_signs, ("objects",))
"""Mass of both signs in the target, in other regions and in the background."""


def _shares_of_parts(
    sign: str, queries: Queries, heatmap: Tensor, parts: Tensor, valid: Tensor
) -> Iterator[Arrays]:
    """The share of the mass of maps (N, h, w) in each of three parts (N, 3, H, W)."""
    for name, mask in zip(_PARTS, parts.unbind(1), strict=True):
        yield _share(f"{sign}_{name}", queries, heatmap, mask, valid)


def _share(metric: str, queries: Queries, heatmap: Tensor, masks: Tensor, valid: Tensor) -> Arrays:
    """The share of all known mass of maps (N, h, w); an empty map gets the share of pixels."""
    mass = maps.upsample(heatmap, queries.size) * valid
    share = (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))
    chance = masks.flatten(1).sum(1) / valid.flatten(1).sum(1)
    return queries.rows_of(metric, share, chance=chance)


_MOST_WORDS: Final = 4
_CONFIDENCE: Final = 0.5
_SCALE: Final = 100  # of cosines before the softmax, where CLIP's own training stops it


def _measure_words(batch: MethodOnBatch) -> Iterator[Arrays]:
    """Samples with a caption."""
    boxed = "phrases" in batch.context.data.truth
    captioned = [view for view in batch.samples.views if view.sample.caption and view.regions]
    views = [view for view in captioned if boxed or len(view.regions) <= _MOST_WORDS]
    if not views:
        return
    owners = [view for view in views for _ in view.regions]
    words = [region.text for view in views for region in view.regions]
    captions = [view.sample.caption or "" for view in owners]
    pairs = zip(captions, words, strict=True)
    # of a word that comes several times the first
    rows = [targets.words(batch.clip, caption, [word]).embeddings[:1] for caption, word in pairs]
    queries = queries_of(owners, torch.cat(rows), words)
    kept, raw = batch.compute_finite(queries)
    if not kept:
        return
    queries, masks = queries.select(kept), torch.cat([view.masks for view in views])[kept]
    cells = masks.flatten(1).double().mean(1)  # share of the image
    counts = {view.number: "boxes" if boxed else str(len(view.regions)) for view in views}
    positive, negative = maps.positive(raw), batch.compute_negative(queries, raw)
    signed = positive if negative is None else positive - negative
    finite = finite_indices(signed)
    if finite:
        game = metrics.word_mosaic_game(signed[finite], masks[finite])
        chance = cells if negative is None else torch.full_like(cells, 0.5)
        yield from _by_count("words", queries.select(finite), counts, game, chance[finite])
    energy = metrics.energy_inside(positive, masks)
    yield from _by_count("word_energy", queries, counts, energy, cells)
    hits = metrics.pointing_game(positive, masks)
    yield from _by_count("word_pointing", queries, counts, hits, cells)

    texts = tuple(captions[i] for i in kept)
    whole = replace(queries, embeddings=batch.context.encode(texts), texts=texts)
    finite, raw = batch.compute_finite(whole)
    if finite:
        share = metrics.energy_inside(maps.positive(raw), masks[finite])
        yield from _by_count("caption", queries.select(finite), counts, share, cells[finite])


CAPTION_WORDS: Final = Task(
    lambda config: {**listed("words"), **listed("phrases")}, _measure_words, ("captions", "phrases")
)
"""Signed maps of words, and next to them the maps of whole captions."""


def _by_count(
    name: str, queries: Queries, counts: Mapping[int, str], values: Tensor, chance: Tensor
) -> Iterator[Arrays]:
    """Rows of values (N,) by the number of cells that a sample's caption names, or of boxes."""
    named = [counts[number] for number in queries.numbers]
    for count in sorted(set(named)):
        kept = [i for i, cells in enumerate(named) if cells == count]
        yield queries.select(kept).rows_of(f"{name}_{count}", values[kept], chance=chance[kept])


def _measure_grid(batch: MethodOnBatch) -> Iterator[Arrays]:
    """Samples whose regions have classes."""
    cells = batch.samples.remember("known cells", lambda: _known_cells(batch.samples))
    if not cells:
        return
    labels = [view.regions[index].label or 0 for view, index in cells]
    texts = [batch.context.data.classes[label] for label in labels]
    queries = queries_of([v for v, _ in cells], batch.context.classes[labels], texts)
    kept, raw = batch.compute_finite(queries)
    if kept:
        masks = torch.stack([view.masks[index] for view, index in (cells[i] for i in kept)])
        share = metrics.energy_inside(maps.positive(raw), masks)
        chance = masks.flatten(1).double().mean(1)
        yield queries.select(kept).rows_of("grid_pg", share, chance=chance)


GRID_POINTING: Final = Task(
    lambda config: listed("grid", confidence=_CONFIDENCE, scale=_SCALE), _measure_grid, ("cells",)
)
"""GridPG: positive maps of classes in mosaics, of the cells that the model is sure of."""


def _known_cells(samples: Batch) -> list[tuple[View, int]]:
    """The regions that the model puts into their class when it is shown them alone.

    Each as its view and its index there.
    """
    cells, crops, labels = [], [], []
    for view in samples.views:
        for index, region in enumerate(view.regions):
            if region.label is not None:
                cells.append((view, index))
                crops.append(view.sample.image.crop(Image.fromarray(region.mask).getbbox()))
                labels.append(region.label)
    if not cells:
        return []
    context = samples.context
    scores = context.scores(context.clip.preprocess(crops), context.classes)
    confidence, predicted = (_SCALE * scores.double()).softmax(1).max(1)
    right = predicted == torch.tensor(labels, device=predicted.device)
    sure = right & (confidence >= _CONFIDENCE)
    return [cell for cell, is_sure in zip(cells, sure.tolist(), strict=True) if is_sure]


def _measure_segmentation(batch: MethodOnBatch) -> Iterator[Arrays]:
    """Samples with a label image."""
    data, levels = batch.context.data, dict[str, Threshold | None]({"": None})
    if data.background:
        levels = {"": "mean", "_half": 0.5}
    for view in batch.samples.views:
        heatmap = None if view.sample.labels is None else _maps_of_classes(batch, view)
        if heatmap is None:
            continue
        largest, best = heatmap.max(0)
        for end, level in levels.items():
            marked = largest > 0
            if level is not None:
                normalized = maps.normalize(largest)
                marked &= normalized > maps.threshold_level(normalized[None], level)
            decided = torch.where(marked, best, len(data.classes))
            yield from _class_rows(end, view, decided, data)


def _measure_best_class(samples: Batch) -> Iterator[Arrays]:
    """One class for all pixels: the one with the highest score, mean over the windows."""
    context = samples.context
    for view in samples.views:
        if view.sample.labels is not None:
            _, pixels = _windows_of(samples, view)
            best = context.scores(pixels, context.encode(context.data.classes)).mean(0).argmax()
            for end in ("", "_half")[: 1 + context.data.background]:
                decided = best.expand(view.sample.labels.shape)
                yield from _class_rows(end, view, decided, context.data)


def _class_rows(end: str, view: View, decided: Tensor, data: DataSet) -> Iterator[Arrays]:
    """Compare the class (H, W) of each pixel, of background the number of classes, with truth."""
    truth = torch.from_numpy(view.sample.labels).to(decided.device)
    count, names = len(data.classes), (*data.classes, *("background",) * data.background)
    cells = ((count + 1) * truth + decided)[truth >= 0]
    table = torch.bincount(cells, minlength=(count + 1) ** 2).view(count + 1, -1)
    right, either = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
    # of every class, so that all methods have the same rows and can be paired
    parts = {"class": torch.arange(len(names)), "intersection": right, "union": either}
    columns = {column: values[: len(names)] for column, values in parts.items()}
    yield rows_of(f"miou{end}", columns, [view.number] * len(names), names)
    share = {"numerator": right.sum()[None], "denominator": table.sum()[None]}
    yield rows_of(f"aacc{end}", share, [view.number], ["all classes"])


SEGMENTATION: Final = Task(
    lambda config: listed("segmentation"),
    _measure_segmentation,
    ("label images",),
    without_map={"best-class": _measure_best_class},
)
"""The maps of all classes against label images, as semantic segmentation is measured."""


def _maps_of_classes(batch: MethodOnBatch, view: View) -> Tensor | None:
    """Positive maps (K, H, W) of all classes on a photo; None where one of them is not finite."""
    clip, classes = batch.clip, tuple(batch.context.data.classes)
    size = view.sample.image.size[::-1]
    embeddings, count = batch.context.encode(classes), len(classes)
    names = (view.sample.name,) * count
    numbers = tuple(view.number * count + index for index in range(count))  # random maps differ
    if batch.method.of_photos:
        boxes: list[Box] = [(0, 0, size[1], size[0])]
        pixels = view.pixels.new_zeros(1, 1, 1, 1).expand(1, 3, *size)  # only their size is read
    else:
        boxes, pixels = _windows_of(batch.samples, view)
    heatmap, times = embeddings.new_zeros(count, *size), embeddings.new_zeros(size)
    for box, window in zip(boxes, pixels, strict=True):
        repeated = window.expand(count, -1, -1, -1)
        queries = Queries(repeated, embeddings, names, classes, numbers)
        parts = [queries] if batch.method.of_photos else queries.split(batch.config.batch_size)
        raw = torch.cat([batch.method.maps_of_image(clip, chunk) for chunk in parts])
        if len(finite := finite_indices(raw)) < count:
            lost = classes[min({*range(count)} - {*finite})]
            reason = batch.method.failure_reason(view.sample.name, lost)
            batch.skipped.append(Skipped(view.number, f"{batch.method.name}: {reason}"))
            return None
        heatmap += maps.uncrop(maps.positive(raw), box, size)
        times += maps.uncrop(torch.ones_like(raw[0]), box, size)
    return heatmap / times.clamp(min=1)


def _windows_of(samples: Batch, view: View) -> tuple[list[Box], Tensor]:
    key = f"windows of {view.number}"
    return samples.remember(key, lambda: _windows(view.sample.image, samples.context.clip))


def _windows(image: Image.Image, clip: ClipAdapter) -> tuple[list[Box], Tensor]:
    """Boxes that a model sees of overlapping squares over a photo, and pixels (n, 3, H, W)."""
    side, length = sorted(image.size)
    count = math.ceil(2 * (length - side) / side) + 1
    starts = np.linspace(0, length - side, count).round().astype(int).tolist()
    corners = [(start, 0) if image.width > side else (0, start) for start in starts]
    pixels = clip.preprocess([image.crop((x, y, x + side, y + side)) for x, y in corners])
    left, top, right, bottom = crop_of(clip.processor, (side, side)).box
    return [(x + left, y + top, x + right, y + bottom) for x, y in corners], pixels
