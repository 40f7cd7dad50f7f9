"""`explain` and `classify`: images and texts in, an :class:`Explanation` out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from math import inf
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import checks, maps, targets
from ..attr.additive import ConservativePropagation
from ..attr.contributions import DirectContribution, DirectInteraction
from ..attr.pairs import pair_maps
from ..attr.registry import MAMOOLER, MethodChoice, TextMap, option_names
from ..checks import suggestion
from ..errors import InputError, UnsupportedModelError, argument, public
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..models.images import pixels_of
from ..models.library import unwrapped
from ..models.loading import Pipeline
from ..targets import Target
from ..targets.similarity import ClipSimilarity
from ..visualization.overlays import numbered
from . import regions
from .explanation import Comparison, Explanation
from .hints import can_compare, find_class_hints, find_hints
from .request import LOADING, Request, Side, Sign, check_explain, default_sign, text_of_pairs

_PROMPTS: Final = 256  # encoded at a time


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
    request = Request(
        image=image,
        texts=texts,
        against=against,
        reference=reference,
        model=model,
        method=method,
        sign=sign,
        words=words,
        side=side,
        whole=whole,
        hints=hints,
        batch_size=batch_size,
        processor=processor,
        tokenizer=tokenizer,
        device=device,
        image_size=image_size,
        max_pixels=max_pixels,
        options=options,
    )
    with checks.limit_pixels(max_pixels):
        return answer(request)


def answer(request: Request) -> Any:
    """What :func:`explain` returns; the request is refused before a model is loaded."""
    request = replace(request, sign=default_sign(request.sign, request.against))
    check_explain(request, is_target=isinstance(request.texts, Target))
    check_choice_of(request)
    model = request.model
    several = isinstance(model, (list, tuple)) and len(model) > 0
    loading: dict[str, Any] = {name: getattr(request, name) for name in LOADING}
    # all of them before the first map, so that a misspelled name costs nothing
    clips = [load_clip(each, **loading) for each in (model if several else [model])]
    explained = _pairs if request.side == "pairs" else _sides
    if not several:
        return explained(clips[0], request)
    explanations = []
    for clip, name in zip(clips, numbered([clip.name for clip in clips]), strict=True):
        with checks.error_context(name):
            explanations.append(replace(explained(clip, request), model=name))
    return Comparison(explanations)


def check_choice_of(request: Request) -> None:
    """Refuse a method that is none, or that has no map of the sign."""
    if request.side == "pairs":
        _options_of_pairs(request)
    elif request.method is not None and (request.method != MAMOOLER or request.options):
        choice = MethodChoice.of(request.method, dict(request.options))
        if request.sign != "positive":
            choice.check_negative()
    elif request.method is None:
        _check_default_options(request.options)


def _check_default_options(options: Mapping[str, Any]) -> None:
    """Refuse an argument that neither `explain` nor one of the default methods has."""
    known: list[str] = []
    for method in (DirectContribution, ConservativePropagation):
        names, _ = option_names(method)
        known += names
    for option in options:
        if option not in known:
            arguments = [parameter.name for parameter in fields(Request)]
            raise InputError(
                f"there is no argument {option!r}{suggestion(option, arguments + known)}, "
                "and the default methods have no such option; with an option, name its method."
            )


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


class _Batches:
    """Some images at a time, as the model takes them; what it saw of each is kept."""

    def __init__(self, clip: ClipAdapter, request: Request) -> None:
        self.clip, self.request, self.seen = clip, request, list[regions.PreprocessedImages]()
        images, size = pixels_of(request.image), request.batch_size
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        self.pieces = [images]
        if several and size is not None and len(images) > size:
            # slices, since a tensor of preprocessed images has to stay one
            self.pieces = [images[at : at + size] for at in range(0, len(images), size)]

    def __iter__(self) -> Iterator[Tensor]:
        for piece in tqdm(self.pieces, desc="explain", unit="batch", disable=len(self.pieces) == 1):
            seen = regions.preprocess(self.clip, piece, whole=self.request.whole)
            self.seen.append(seen._replace(pixels=self.clip.denormalize(seen.pixels).cpu()))
            yield seen.pixels

    def explanation(self, raw: list[Tensor], scores: list[Tensor], **fields: Any) -> Explanation:
        """An explanation of all, by the maps of the signs, and the scores, of each batch."""
        signs = self.request.signs
        chunks = _join_batches(raw).chunk(len(signs), dim=1) if raw else ()  # none of the text side
        return Explanation(
            # a chunk is a view, which would keep the other sign in memory
            maps={sign: c.contiguous() for sign, c in zip(signs, chunks, strict=False)},
            scores=_join_batches(scores),
            model=self.clip.name,
            images=_join_batches([seen.pixels for seen in self.seen]),
            crops=tuple(crop for seen in self.seen for crop in seen.crops),
            photos=tuple(photo for seen in self.seen for photo in seen.photos),
            **fields,
        )


def _join_batches(batches: list[Tensor]) -> Tensor:
    if len({batch.shape[1:] for batch in batches}) > 1:
        sizes = sorted({tuple(batch.shape[-2:]) for batch in batches})
        raise InputError(f"the images differ in size between batches ({sizes}).")
    return torch.cat(batches)


def _sides(clip: ClipAdapter, request: Request) -> Explanation:
    """Where in the images, and which words of the texts."""
    side, method, options = request.side, request.method, dict(request.options)
    choices, batches = {}, _Batches(clip, request)
    if side != "text":
        choices["image"] = MethodChoice.of(method, options, clip.tower)
    if side != "image":
        of_text = {} if side == "both" and not method else options
        choices["text"] = MethodChoice.of(method or "conservative", of_text, clip.text_tower)
    for choice in choices.values():
        if request.sign != "positive":
            choice.check_negative()
    target = _directions(clip, request)
    # -t for negative evidence: both signs then come from one forward pass
    embeddings = targets.concatenate(
        [target if sign == "positive" else -target for sign in request.signs]
    )
    whole = slice(1 if request.words else len(target))  # without the words of the text
    has_texts = request.texts is not None and not isinstance(request.texts, Target)
    can_hint = has_texts and request.against is None and request.sign != "negative"
    raw, scores = [], []
    text_maps: tuple[TextMap, ...] = ()
    hints: list[tuple[str, ...]] = []
    for pixels in batches:
        if by_words := choices.get("text"):
            text_maps, cosines = by_words.text_maps(clip, pixels, target.names, str(request.sign))
        if by_image := choices.get("image"):
            values, cosines = by_image.method(ClipSimilarity(clip, embeddings)).attribute_targets(
                pixels, return_scores=True, **by_image.options
            )
            # of -t, and what is reported is the cosine of t itself
            cosines = -cosines if request.sign == "negative" else cosines
            # on the CPU at once, since the maps of a whole folder would fill a GPU
            raw.append(maps.positive(values.cpu()))
            is_alone = can_hint and len(batches.pieces) == 1 and len(pixels) == 1
            if request.hints or (request.hints is None and is_alone and can_compare(clip)):
                first, of_texts = raw[-1][:, whole], cosines[:, whole].cpu()
                hints += find_hints(clip, by_image, pixels, target.names[whole], first, of_texts)
        scores.append(cosines[:, : len(target)].cpu())
    return batches.explanation(
        raw,
        scores,
        names=target.names,
        norms=target.norms.cpu(),
        method=", words ".join(dict.fromkeys(choice.name for choice in choices.values())),
        words=bool(request.words),
        text_maps=text_maps,
        hints=tuple(hints),
        contrast=()
        if request.against is None
        else (*checks.as_list(request.texts), request.against),
    )


def _directions(clip: ClipAdapter, request: Request) -> Target:
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


def _pairs(clip: ClipAdapter, request: Request) -> Explanation:
    """Which word of a text, or which region of another image, answers which region."""
    reference, options = request.reference, _options_of_pairs(request)
    text, batches = text_of_pairs(request.texts), _Batches(clip, request)
    other: Any = None
    if text is None:
        other = regions.preprocess(clip, reference, whole=request.whole).pixels
        if len(other) != 1:
            raise InputError(f"expected one reference image, got {len(other)}.")
    results, raw = [], []
    for pixels in batches:
        results.append(pair_maps(clip, pixels, other if text is None else text, **options))
        shares = results[-1].maps
        signed = [shares if sign == "positive" else -shares for sign in request.signs]
        raw.append(maps.positive(torch.cat(signed, 1).cpu()))
    first = results[0]
    lost = [pairs.leave_one_out for pairs in results if pairs.leave_one_out is not None]
    listed = ",".join(f"{option}={value}" for option, value in options.items())
    name = Path(reference).stem if isinstance(reference, (str, Path)) else "reference"
    return batches.explanation(
        raw,
        [pairs.scores.cpu() for pairs in results],
        names=first.names if other is None else (name, *first.names[1:]),
        norms=first.norms,
        method=":".join(filter(None, ["direct interaction", listed])),
        words=other is None,
        leave_one_out=_join_batches(lost).cpu() if lost else None,
        reference=None if other is None else clip.denormalize(other)[0].cpu(),
        cells=first.cells,
    )


@public("classify")
def classify(
    image: ImageLike,
    classes: Sequence[str] | Target,
    *,
    model: str | Path | nn.Module | ClipAdapter = "ViT-B/32",
    templates: str | Sequence[str] | None = None,
    top: int | None = None,
    hints: bool | None = None,
    **options: Any,
) -> Explanation:
    r"""Which of some classes is it (zero-shot), and where does the model see the best of them?

    With the cosines :math:`y_c`, the model's own scale s (``logit_scale``) and bias b:

    .. math:: p_c = \frac{e^{s y_c}}{\sum_j e^{s y_j}}
        \quad \text{or, with a bias (SigLIP),} \quad p_c = \frac{1}{1 + e^{-(s y_c + b)}}

    The former are shares among the named classes and sum to one whatever the image shows, the
    latter are of each class by itself.

    Args:
        image: an image as :func:`captum_clip.explain` takes it.
        classes: their names, or a :class:`captum_clip.Target` of them, made once for many images.
        model: as in `explain`.
        templates: one or several prompts with ``{}`` for the name, as of
            :func:`captum_clip.targets.text`; by default the names alone. A Target has its own, in
            which its classes are compared with unrelated ones.
        top: the classes that are explained, by default three, or all where there are fewer.
        hints: say in `Explanation.hints` where the best class hardly fits better than unrelated
            texts and the other classes, as where the true one is not among them; by default
            wherever the tokenizer reads them. It costs a forward pass, and once per model 32 texts.
        **options: all others of `explain`, such as `processor`, `method`, `sign` or `whole`.

    Returns:
        An explanation of the best classes in their order, with `probabilities` (1, K).

    Raises:
        InputError: several images, one class where the probabilities are shares, a class twice, or
            a `top` above the number of classes.
        UnsupportedModelError: the model has no temperature.

    Example:
        >>> from captum_clip import classify
        >>> from captum_clip.demo.scenes import draw_scene
        >>> classes = ["horse", "dog", "car", "banana"]
        >>> scene = draw_scene(0, objects=["horse"])
        >>> found = classify(scene.image, classes, model="demo/vit", templates="a {}", top=2)
        >>> found.names[0], found.probabilities.shape
        ('horse', torch.Size([1, 2]))
    """
    loading = {name: options.pop(name) for name in LOADING if name in options}
    clip = load_clip(model, **loading)
    checks.check_flag("hints", hints is None or hints)
    target = classes if isinstance(classes, Target) else of_classes(clip, classes, templates)
    top = min(3, len(target)) if top is None else top
    checks.check_integer("top", top, most=len(target))
    with checks.limit_pixels(options.get("max_pixels")):
        pixels = regions.preprocess(
            clip, pixels_of(image), whole=options.get("whole", False)
        ).pixels
    checks.expect(len(pixels) == 1, "one image", len(pixels), "classify each by itself")
    # all classes, maybe thousands, of which only the best need a gradient
    with torch.no_grad():
        cosines = ClipSimilarity(clip, target)(pixels)
    probabilities, calibration = _calibrated(clip, cosines)
    best = cosines[0].topk(top).indices.tolist()
    explanation = explain(image, target[best], model=clip, **options)
    more: dict[str, Any] = {"probabilities": probabilities[:, best].cpu()}
    if hints or (hints is None and can_compare(clip)):
        more["hints"] = (find_class_hints(clip, pixels, target.names, cosines[0], templates),)
    return replace(explanation, calibration=calibration, **more)


def of_classes(
    clip: ClipAdapter, classes: Sequence[str], templates: str | Sequence[str] | None = None
) -> Target:
    """The embeddings of classes, a few at a time: there may be thousands in dozens of templates."""
    names = checks.check_texts(classes)
    twice = [name for name, count in Counter(names).items() if count > 1]
    checks.expect(not twice, "each class once", twice)
    prompts = 1 if templates is None else max(1, len(checks.as_list(templates)))
    count = max(1, _PROMPTS // prompts)
    pieces = [names[start : start + count] for start in range(0, len(names), count)]
    return targets.concatenate([targets.text(clip, p, templates=templates) for p in pieces])


@torch.no_grad()
def _calibrated(clip: ClipAdapter, cosines: Tensor) -> tuple[Tensor, str]:
    """The probabilities (1, C) that the model gives to cosines (1, C), and how, in words."""
    model: Any = unwrapped(clip.model)
    if getattr(model, "logit_scale", None) is not None:
        most = getattr(model, "max_log_logit_scale", None)  # of AIMv2, which clamps it
        scale = model.logit_scale.float().clamp(-inf if most is None else 0, most).exp()
    elif getattr(model, "temperature", None) is not None:  # ALIGN's, TIPSv2's
        scale = 1 / model.temperature.float()
    else:
        raise UnsupportedModelError(
            f"{clip.name} has no temperature (logit_scale) to turn cosines into probabilities; use "
            "explain for the cosines."
        )
    factor, classes = f"{scale.item():.3g} times the cosine", cosines.shape[1]
    if (bias := getattr(model, "logit_bias", None)) is not None:
        added = f"{'-' if bias < 0 else '+'} {abs(bias.item()):.3g}".replace("-", "\N{MINUS SIGN}")
        each = f"each class by itself: sigmoid of {factor} {added}"
        return (scale * cosines + bias).sigmoid(), each
    if classes == 1:
        raise InputError(
            f"probabilities of {clip.name} are shares of the classes, so a single class gets all; "
            "give several, or use explain for its cosine."
        )
    shares = f"shares among the {classes} named classes: softmax of {factor}"
    return (scale * cosines).softmax(-1), shares
