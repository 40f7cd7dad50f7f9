"""`explain`: images and texts in, an :class:`Explanation` out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import maps, targets
from ..attr.contributions import DirectContribution
from ..attr.interactions import DirectInteraction, pair_maps
from ..attr.registry import MAMOOLER, MethodChoice, TextMap
from ..checks import as_list, check_flag, check_integer, error_context, expect, limit_pixels, show
from ..errors import InputError, TargetError, argument, public
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..models.images import pixels_of
from ..models.loading import Pipeline
from ..similarity import ClipSimilarity
from ..targets import Target
from ..visualization.overlays import numbered
from . import photos
from .explanation import Comparison, Explanation
from .hints import can_compare, find_hints
from .request import LOADING, Request, Side, Sign, check_request, default_sign


@public("explain")
def explain(
    image: ImageLike | Sequence[ImageLike] | Mapping[str, Any],
    texts: str | Sequence[str] | Target | None = None,
    *,
    against: str | None = None,
    reference: ImageLike | Sequence[ImageLike] | None = None,
    model: str | Path | nn.Module | ClipAdapter | Pipeline | Sequence[Any] = "ViT-B/32",
    method: str | type[Any] | None = None,
    sign: Sign | None = None,
    words: bool | Sequence[str | tuple[int, int]] = False,
    side: Side = "image",
    whole: bool = False,
    hints: bool | None = None,
    batch_size: int | None = None,
    processor: Any = None,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    image_size: int | None = None,
    max_pixels: int | None = None,
    **options: Any,
) -> Explanation | Any:  # of several models a Comparison
    r"""Why does the image fit the text, and which parts contradict it?

    With :math:`m(t)` for the method's map of target t, the positive map is :math:`m(t)^+` and the
    negative one :math:`m(-t)^+`; for Grad-CAM, whose map is linear in t, that is the ReLU of the
    negated map. Both come from one forward pass. For the attention methods, whose ReLU is taken
    before layers and heads are put together, the two maps may overlap.

    Args:
        image: one or several of what ``ClipAdapter.preprocess`` takes: path, PIL image, array,
            uint8 tensor, or preprocessed float tensors (B, 3, H, W), also as ``processor(images=)``
            of transformers returns them.
        texts: one or several, or a :class:`captum_clip.Target`.
        against: a text to contrast the one text with: the target is the difference of their unit
            embeddings, ``a - b``, whose map is what speaks for the one rather than the other.
        reference: instead of texts, an image that the images are compared with; several are
            several targets, but a pair takes one.
        model: a name that :func:`captum_clip.load_clip` knows, a model, a pipeline or an adapter;
            a list of several for a :class:`captum_clip.Comparison`.
        method: a class of :mod:`captum_clip.attr`, or a name of its `METHODS`, which may have
            options, as "last-grad:heads=averaged"; by default "direct", or "conservative" where a
            pooling head reads the image (SigLIP). "mamooler" is the method of the report for the
            tower: "last-grad", "grad-cam", or "conservative" for a pooling head.
        sign: "positive", "negative" or "both"; by default "both" for a contrast, else "positive".
        words: explain one text word by word; True for all words, or those to take as in
            ``targets.words``. The first target is the whole text.
        side: "image" for where in the image, "text" for which words of the texts, "both". On the
            text side a method without a grid, by default "conservative", for one image. "pairs"
            for which word of one text answers which region, or which region of a `reference`
            (:class:`captum_clip.DirectInteraction`, whose options it takes).
        whole: pad each image to a square with the mean color, so that the model sees all of it,
            not just the crop that its processor leaves, as a rule the square in the middle. The
            reference of a pair is padded as well. Scores and maps differ from those of the crop.
        hints: find maps to doubt (`Explanation.hints`): those of a text that fits the image no
            better than unrelated ones, and those that hardly change with the text; by default
            for one image. It costs a forward pass, the maps of eight more texts, and once per model
            32 short texts; False saves them. For texts, the image side and the positive sign.
        batch_size: images at a time, with a progress bar; all at once by default.
        processor: the model's image processor, where it has none yet; figures are drawn with its
            mean and deviation, also where the images are tensors.
        tokenizer: the model's tokenizer, where it has none yet.
        device: where a model loaded by name goes.
        image_size: for a model loaded by name, as in ``load_clip``: larger images, finer maps.
        max_pixels: pixels that an image file may have, by default ``PIL.Image.MAX_IMAGE_PIXELS``
            (89 million), since a small file may unpack to gigabytes. Pillow itself refuses twice
            its limit.
        **options: the method's own, such as ``depth="all"``, or of last-grad ``start_layer=6``.

    Raises:
        InputError: not an image, an option or a method; a negative map of a method that the target
            does not change; whatever any of several models cannot do.
        TargetError: a text that cannot be a target, or not exactly one where words are asked for.
        UnsupportedModelError: the method does not fit the model.

    Example:
        >>> from captum_clip import explain
        >>> from captum_clip.demo.scenes import draw_scene
        >>> scene = draw_scene(0, objects=["horse", "dog"])
        >>> explanation = explain(scene.image, ["a horse", "a dog"], model="demo/vit")
        >>> explanation.maps["positive"].shape, explanation.method
        (torch.Size([1, 2, 7, 7]), 'direct')
        >>> figure = explanation.plot()
    """
    asked = (image, texts, against, reference, model, method, sign, words, side, whole, hints)
    loading = (processor, tokenizer, device, image_size)
    with limit_pixels(max_pixels):
        return answer(Request(*asked, batch_size, *loading, max_pixels, options))


def answer(request: Request) -> Any:
    """What :func:`explain` returns; the request is refused before a model is loaded."""
    request = replace(request, sign=default_sign(request.sign, request.against))
    check(request)
    model, make = request.model, _pairs if request.side == "pairs" else _sides
    several = isinstance(model, (list, tuple)) and len(model) > 0
    loading: dict[str, Any] = {name: getattr(request, name) for name in LOADING}
    # all of them before the first map, so that a misspelled name costs nothing
    clips = [load_clip(each, **loading) for each in (model if several else [model])]
    if not several:
        return make(clips[0], request, _batches(clips[0], request))
    explanations = []
    for clip, name in zip(clips, numbered([clip.name for clip in clips]), strict=True):
        with error_context(name):
            explanation = make(clip, request, _batches(clip, request))
            explanations.append(replace(explanation, model=name))
    return Comparison(explanations)


def check(request: Request) -> None:
    """Refuse what no model could answer."""
    texts, side, words = request.texts, request.side, request.words
    _check_types(request)
    # `is None` throughout, since a reference may be an array
    is_target, has_reference = isinstance(texts, Target), request.reference is not None
    if (texts is None) is not has_reference:
        both = "both" if has_reference else "neither"
        raise InputError(f"expected either texts or {argument('reference')}, got {both}.")
    check_request(request, is_target=is_target)
    single = "words" if words else "against" if request.against is not None else None
    if single and (is_target or len(as_list(texts)) != 1):
        need = {"words": "need", "against": "needs"}[single]
        raise TargetError(f"{argument(single)} {need} exactly one text, got {texts!r}.")
    if side == "pairs":
        _text_of_pairs(texts)
        _options_of_pairs(request)
    elif request.method is not None and (request.method != MAMOOLER or request.options):
        _check_sign(request, MethodChoice.of(request.method, dict(request.options)))


def _check_types(request: Request) -> None:
    """Before any truth, since an array is neither true nor false."""
    method, words, against = request.method, request.words, request.against
    check_flag("whole", request.whole)
    if not isinstance(method, (str, type, NoneType)):
        raise InputError(f"expected a method, by name or as a class, got {show(method)}.")
    if not isinstance(words, (bool, Sequence)):
        raise InputError(f"expected words of True, False or a list, got {show(words)}.")
    if request.hints is not None:
        check_flag("hints", request.hints)
    single = against is None or isinstance(against, str)
    expect(single, f"one text as {argument('against')}", against, error=TargetError)
    for name in ("batch_size", "max_pixels"):
        if (count := getattr(request, name)) is not None:
            check_integer(name, count)


def _check_sign(request: Request, choice: MethodChoice) -> None:
    """Raise InputError where a negative map is asked for that the method does not have."""
    if request.sign != "positive":
        choice.check_negative()


def _text_of_pairs(texts: Any) -> str | None:
    """The one text of a pair; None where a reference takes its place."""
    if texts is None:
        return None
    listed = as_list(texts) if isinstance(texts, Iterable) else [texts]
    if len(listed) != 1 or not isinstance(listed[0], str):
        pairs = argument("side", "pairs")
        raise TargetError(
            f"{pairs} takes one text apart, got {show(texts)}; explain each by itself."
        )
    return listed[0]


def _options_of_pairs(request: Request) -> dict[str, Any]:
    """The options of `DirectInteraction`, which may come with the name of `direct`."""
    options, own = dict(request.options), ("baseline", "start_layer", "depth")
    pairs = argument("side", "pairs")
    if request.method not in (None, DirectInteraction):
        choice = MethodChoice.of(request.method, options)
        if choice.method is not DirectContribution:
            raise InputError(
                f"{pairs} uses direct contributions to both embeddings, got the method "
                f"{choice.name}; leave the method out."
            )
        options = choice.options
    for option in options:
        if option not in own:
            raise InputError(f"{pairs} has no option {option!r}; it has {', '.join(own)}.")
    return options


class _Batch(NamedTuple):
    """Some images as the model takes them, the same in colors, and whether they are all."""

    seen: photos.PreprocessedImages
    colored: photos.PreprocessedImages
    is_only: bool


def _batches(clip: ClipAdapter, request: Request) -> Iterator[_Batch]:
    images = pixels_of(request.image)
    several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
    size = request.batch_size
    pieces = [images]
    if several and size is not None and len(images) > size:
        # slices, since a tensor of preprocessed images has to stay one
        pieces = [images[at : at + size] for at in range(0, len(images), size)]
    for piece in tqdm(pieces, desc="explain", unit="batch", disable=len(pieces) == 1):
        seen = photos.preprocess(clip, piece, whole=request.whole)
        colored = seen._replace(pixels=clip.denormalize(seen.pixels).cpu())
        yield _Batch(seen, colored, len(pieces) == 1)


def _sides(clip: ClipAdapter, request: Request, batches: Iterator[_Batch]) -> Explanation:
    """Where in the images, and which words of the texts."""
    choices = _choices(clip, request)
    target = _target(clip, request)
    # -t for negative evidence: both signs then come from one forward pass
    embeddings = targets.concatenate(
        [target if sign == "positive" else -target for sign in request.signs]
    )
    asked_for = slice(1 if request.words else len(target))  # without the words of the text
    raw, scores, colored = [], [], []
    text_maps: tuple[TextMap, ...] = ()
    hints: list[tuple[str, ...]] = []
    for batch in batches:
        pixels = batch.seen.pixels
        colored.append(batch.colored)
        if choice := choices.get("text"):
            text_maps, cosines = choice.text_maps(clip, pixels, target.names, str(request.sign))
        if choice := choices.get("image"):
            values, cosines = choice.method(ClipSimilarity(clip, embeddings)).attribute_targets(
                pixels, return_scores=True, **choice.options
            )
            # of -t, and what is reported is the cosine of t itself
            cosines = -cosines if request.sign == "negative" else cosines
            # on the CPU at once, since the maps of a whole folder would fill a GPU
            raw.append(maps.positive(values.cpu()))
            alone = _has_hints(request) and batch.is_only and len(pixels) == 1
            if request.hints or (request.hints is None and alone and can_compare(clip)):
                first, of_texts = raw[-1][:, asked_for], cosines[:, asked_for].cpu()
                hints += find_hints(clip, choice, pixels, target.names[asked_for], first, of_texts)
        scores.append(cosines[:, : len(target)].cpu())
    names = dict.fromkeys(choice.name for choice in choices.values())
    return Explanation(
        maps=_by_sign(request, raw),
        scores=_joined(scores),
        names=target.names,
        norms=target.norms.cpu(),
        model=clip.name,
        method=", words ".join(names),
        words=bool(request.words),
        text_maps=text_maps,
        hints=tuple(hints),
        contrast=() if request.against is None else (*as_list(request.texts), request.against),
        **_of_images(colored),
    )


def _has_hints(request: Request) -> bool:
    """Whether there can be hints: for texts, on the image side, of positive maps."""
    plain = request.texts is not None and not isinstance(request.texts, Target)
    of_images = request.against is None and request.side in ("image", "both")
    return plain and of_images and request.sign != "negative"


def _choices(clip: ClipAdapter, request: Request) -> dict[str, MethodChoice]:
    """The method of each side that is asked for."""
    side, method, options = request.side, request.method, dict(request.options)
    choices = {}
    if side != "text":
        choices["image"] = MethodChoice.of(method, options, clip.tower)
    if side != "image":
        of_text = {} if side == "both" and not method else options
        choices["text"] = MethodChoice.of(method or "conservative", of_text, clip.text_tower)
    for choice in choices.values():
        _check_sign(request, choice)
    return choices


def _target(clip: ClipAdapter, request: Request) -> Target:
    """What is looked for, and after it the words of a text where they are asked for."""
    if request.reference is not None:
        return targets.image(clip, request.reference)
    texts = request.texts
    target = texts if isinstance(texts, Target) else targets.text(clip, texts)
    if request.against is not None:
        return target - targets.text(clip, request.against)
    if not request.words:
        return target
    chosen = None if request.words is True else request.words
    return targets.concatenate([target, targets.words(clip, target.names[0], chosen)])


def _pairs(clip: ClipAdapter, request: Request, batches: Iterator[_Batch]) -> Explanation:
    """Which word of a text, or which region of another image, answers which region."""
    reference, text = request.reference, _text_of_pairs(request.texts)
    options = _options_of_pairs(request)
    other: str | Tensor
    if text is None:
        other = photos.preprocess(clip, reference, whole=request.whole).pixels
        if len(other) != 1:
            raise InputError(f"expected one reference image, got {len(other)}.")
    else:
        other = text
    results, raw, colored = [], [], []
    for batch in batches:
        results.append(pair_maps(clip, batch.seen.pixels, other, **options))
        colored.append(batch.colored)
        shares = results[-1].maps
        signed = [shares if sign == "positive" else -shares for sign in request.signs]
        raw.append(maps.positive(torch.cat(signed, 1).cpu()))
    first = results[0]
    lost = [pairs.leave_one_out for pairs in results if pairs.leave_one_out is not None]
    listed = ",".join(f"{option}={value}" for option, value in options.items())
    name = Path(reference).stem if isinstance(reference, (str, Path)) else "reference"
    return Explanation(
        maps=_by_sign(request, raw),
        scores=_joined([pairs.scores.cpu() for pairs in results]),
        names=first.names if text is not None else (name, *first.names[1:]),
        norms=first.norms,
        model=clip.name,
        method=":".join(filter(None, ["direct interaction", listed])),
        words=text is not None,
        leave_one_out=_joined(lost).cpu() if lost else None,
        reference=clip.denormalize(other)[0].cpu() if isinstance(other, Tensor) else None,
        cells=first.cells,
        **_of_images(colored),
    )


def _by_sign(request: Request, raw: list[Tensor]) -> dict[str, Tensor]:
    """The maps of each sign, of batches that hold them one after the other."""
    signs = request.signs
    chunks = _joined(raw).chunk(len(signs), dim=1) if raw else ()  # none of the text side
    # a chunk is a view, which would keep the other sign in memory
    return {sign: chunk.contiguous() for sign, chunk in zip(signs, chunks, strict=False)}


def _of_images(colored: list[photos.PreprocessedImages]) -> dict[str, Any]:
    """What an explanation keeps of the images."""
    return {
        "images": _joined([seen.pixels for seen in colored]),
        "crops": tuple(crop for seen in colored for crop in seen.crops),
        "photos": tuple(photo for seen in colored for photo in seen.photos),
    }


def _joined(batches: list[Tensor]) -> Tensor:
    if len({batch.shape[1:] for batch in batches}) > 1:
        sizes = sorted({tuple(batch.shape[-2:]) for batch in batches})
        raise InputError(f"the images differ in size between batches ({sizes}).")
    return torch.cat(batches)
