"""`explain` and `classify`: images and texts in, an :class:`Explanation` out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import checks, maps, targets
from ..attr.additive import ConservativePropagation
from ..attr.contributions import DirectContribution, DirectInteraction
from ..attr.pairs import pair_maps
from ..attr.registry import MAMOOLER, MethodChoice, TextMap, maps_and_scores, option_names
from ..checks import suggestion
from ..errors import InputError, UnsupportedModelError, argument, public
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..models.images import Crop, pixels_of
from ..models.library import unwrapped
from ..models.loading import Pipeline
from ..targets import Target
from ..targets.similarity import ClipSimilarity
from ..visualization.overlays import numbered
from . import regions
from .explanation import Comparison, Explanation
from .hints import can_compare, find_class_hints, find_hints
from .request import LOADING, Request, Side, Sign, check_explain, default_sign, text_of_pairs

_PROMPTS_AT_ONCE: Final = 256
"""The most texts that :func:`of_classes` encodes in one batch, which bounds its memory."""


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
    negative one :math:`m(-t)^+`. For Grad-CAM, whose map is linear in t, that is the ReLU of the
    negated map. Both come from one forward pass. The attention methods take their ReLU before they
    combine layers and heads, so their two maps may overlap.

    Args:
        image: one or several of the images that ``ClipAdapter.preprocess`` takes: path, PIL image,
            array, uint8 tensor, or preprocessed float tensors (B, 3, H, W), also in the dictionary
            that ``processor(images=)`` of transformers returns.
        texts: one or several, or a :class:`captum_clip.Target`.
        against: a text to contrast the one text with. The target is the difference of their unit
            embeddings, ``a - b``; its map shows what speaks for the first rather than the second.
        reference: instead of texts, an image to compare the images with. Several reference images
            are several targets, but a pair takes one.
        model: a name that :func:`captum_clip.load_clip` knows, a model, a pipeline or an adapter;
            a list of several for a :class:`captum_clip.Comparison`.
        method: a class of :mod:`captum_clip.attr`, or a name of its `METHODS`, which may have
            options, as "last-grad:heads=averaged"; by default "direct", or "conservative" where a
            pooling head reads the image (SigLIP). "mamooler" is the method of the report for the
            tower: "last-grad", "grad-cam", or "conservative" for a pooling head.
        sign: "positive", "negative" or "both"; by default "both" for a contrast, else "positive".
        words: explain one text word by word: True for all words, or a selection as in
            ``targets.words``. The first target is the whole text.
        side: "image" for where in the image, "text" for which words of the texts, "both". The text
            side takes one image and a method without a grid, by default "conservative". "pairs" is
            for which word of one text matches which region, or which region of a `reference`
            (:class:`captum_clip.DirectInteraction`, whose options it takes).
        whole: pad each image to a square with the mean color, so that the model sees all of it,
            not just the crop of its processor, which is usually the square in the middle. The
            reference of a pair is padded as well. Scores and maps differ from those of the crop.
        hints: find maps to doubt (`Explanation.hints`): those of a text that fits the image no
            better than unrelated texts, and those that hardly change with the text. By default they
            are found for a single image. They cost a forward pass, the maps of eight more texts,
            and once per model 32 short texts; False avoids that. They are for texts, the image side
            and the positive sign.
        batch_size: images at a time, with a progress bar; by default all at once.
        processor: the model's image processor, where it has none yet. Figures are drawn with its
            mean and deviation, even for preprocessed tensors.
        tokenizer: the model's tokenizer, where it has none yet.
        device: the device of a model that is loaded by name.
        image_size: for a model loaded by name, as in ``load_clip``: larger images, finer maps.
        max_pixels: pixels that an image file may have, by default ``PIL.Image.MAX_IMAGE_PIXELS``
            (89 million), since a small file may unpack to gigabytes. Pillow itself refuses twice
            its limit.
        **options: those of the method, such as ``depth="all"``, or ``start_layer=6`` of last-grad.

    Raises:
        InputError: not an image, an option or a method; a negative map of a method whose map does
            not depend on the target; a request that any of several models cannot answer.
        TargetError: a text that cannot be a target, or not exactly one where words are requested.
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
    """Answer a request as :func:`explain` does; a wrong one is refused before a model is loaded."""
    request = replace(request, sign=default_sign(request.sign, request.against))
    check_explain(request, is_target=isinstance(request.texts, Target))
    check_choice_of(request)
    model = request.model
    has_several_models = isinstance(model, (list, tuple)) and len(model) > 0
    models = model if has_several_models else [model]
    loading: dict[str, Any] = {name: getattr(request, name) for name in LOADING}
    # All models are loaded before the first map, so that a misspelled name costs no time.
    clips = [load_clip(model, **loading) for model in models]
    explain_by = _explain_pairs if request.side == "pairs" else _explain_sides
    if not has_several_models:
        return explain_by(clips[0], request)
    explanations = []
    for clip, name in zip(clips, numbered([clip.name for clip in clips]), strict=True):
        with checks.error_context(name):
            explanations.append(replace(explain_by(clip, request), model=name))
    return Comparison(explanations)


def check_choice_of(request: Request) -> None:
    """Refuse an unknown method, and a method without a map of the sign."""
    if request.side == "pairs":
        _options_of_pairs(request)
        return
    if request.method is None:
        _check_default_options(request.options)
        return
    # "mamooler" stands for another method on each tower, so it is checked when the tower is known.
    # With options it is refused here, since it takes none.
    if request.method != MAMOOLER or request.options:
        choice = MethodChoice.of(request.method, dict(request.options))
        if request.sign != "positive":
            choice.check_negative()


def _check_default_options(options: Mapping[str, Any]) -> None:
    """Refuse an argument that neither `explain` nor a default method has."""
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
    """The options of `DirectInteraction`, which is also meant by no method and by `direct`."""
    options = dict(request.options)
    pairs = argument("side", "pairs")
    if request.method not in (None, DirectInteraction):
        choice = MethodChoice.of(request.method, options)
        if choice.method is not DirectContribution:
            raise InputError(
                f"{pairs} uses direct contributions to both embeddings, got the method "
                f"{choice.name}; leave the method out."
            )
        options = choice.options
    known = ("baseline", "start_layer", "depth")
    for option in options:
        if option not in known:
            raise InputError(f"{pairs} has no option {option!r}; it has {', '.join(known)}.")
    return options


class _Batches:
    """The images of a request, some at a time as the model takes them; each is kept as seen.

    It is iterated once, and each batch is noted in `preprocessed` as the model takes it. After the
    last one, :meth:`explanation` joins them with the maps that were made of them.
    """

    def __init__(self, clip: ClipAdapter, request: Request) -> None:
        self.clip = clip
        self.request = request
        self.preprocessed: list[regions.PreprocessedImages] = []
        images = pixels_of(request.image)
        size = request.batch_size
        has_several_images = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        self.pieces = [images]
        if has_several_images and size is not None and len(images) > size:
            # Slices are taken, since a tensor of preprocessed images has to stay a tensor.
            self.pieces = [images[at : at + size] for at in range(0, len(images), size)]

    def __iter__(self) -> Iterator[Tensor]:
        is_single = len(self.pieces) == 1
        for piece in tqdm(self.pieces, desc="explain", unit="batch", disable=is_single):
            preprocessed = regions.preprocess(self.clip, piece, whole=self.request.whole)
            # Figures need the colors alone, which wait on the CPU until all batches are done.
            colors = self.clip.denormalize(preprocessed.pixels).cpu()
            self.preprocessed.append(preprocessed._replace(pixels=colors))
            yield preprocessed.pixels

    def explanation(self, raw: list[Tensor], scores: list[Tensor], **facts: Any) -> Explanation:
        """Join the batches.

        Args:
            raw: the maps of each batch, (B, S K, h, w): those of the first of S signs, then those
                of the second; no batch if only the text side was requested.
            scores: the cosines of each batch, (B, K).
            **facts: further fields of the explanation.
        """
        maps_by_sign = {}
        if raw:
            signs = self.request.signs
            chunks = _join_batches(raw).chunk(len(signs), dim=1)
            for sign, chunk in zip(signs, chunks, strict=True):
                # A chunk is a view, which would keep the other sign in memory.
                maps_by_sign[sign] = chunk.contiguous()
        crops: list[Crop] = []
        photos: list[ImageLike] = []
        for preprocessed in self.preprocessed:
            crops += preprocessed.crops
            photos += preprocessed.photos
        return Explanation(
            maps=maps_by_sign,
            scores=_join_batches(scores),
            model=self.clip.name,
            images=_join_batches([preprocessed.pixels for preprocessed in self.preprocessed]),
            crops=tuple(crops),
            photos=tuple(photos),
            **facts,
        )


def _join_batches(batches: list[Tensor]) -> Tensor:
    if len({batch.shape[1:] for batch in batches}) > 1:
        sizes = sorted({tuple(batch.shape[-2:]) for batch in batches})
        raise InputError(f"the images differ in size between batches ({sizes}).")
    return torch.cat(batches)


def _explain_sides(clip: ClipAdapter, request: Request) -> Explanation:
    """Explain where in the images, which words of the texts, or both."""
    batches = _Batches(clip, request)
    choices = _choose_methods(clip, request)
    target = _make_target(clip, request)
    # A negative map is that of -t, so both signs come from one forward pass.
    signed = [target if sign == "positive" else -target for sign in request.signs]
    signed_target = targets.concatenate(signed)
    # The words of a text come after it, and there are no hints about them.
    whole_texts = slice(1 if request.words else len(target))
    raw: list[Tensor] = []
    scores: list[Tensor] = []
    hints: list[tuple[str, ...]] = []
    text_maps: tuple[TextMap, ...] = ()
    for pixels in batches:
        # A request for both sides takes its cosines from the image side, which replaces these.
        if "text" in choices:
            text_maps, cosines = choices["text"].text_maps(
                clip, pixels, target.names, str(request.sign)
            )
        if "image" in choices:
            choice = choices["image"]
            forward = ClipSimilarity(clip, signed_target)
            attribution = choice.method(forward)
            values, cosines = maps_and_scores(attribution, forward, pixels, **choice.options)
            if request.sign == "negative":
                # The method explains -t alone, but the cosine of t is reported.
                cosines = -cosines
            # The maps move to the CPU at once, since those of a whole folder would fill a GPU.
            # Each sign's map is what is above zero in the map of its target, t or -t.
            raw.append(maps.positive(values.cpu()))
            is_alone = len(batches.pieces) == 1 and len(pixels) == 1
            if _should_hint(clip, request, is_alone=is_alone):
                names = target.names[whole_texts]
                # The first K maps are the positive ones, whether or not negative ones follow.
                positive = raw[-1][:, whole_texts]
                text_scores = cosines[:, whole_texts].cpu()
                hints += find_hints(clip, choice, pixels, names, positive, text_scores)
        # With both signs, the cosines of -t follow, and they say nothing new.
        scores.append(cosines[:, : len(target)].cpu())
    contrast: tuple[str, ...] = ()
    if request.against is not None:
        contrast = (*checks.as_list(request.texts), request.against)
    # Where both sides have the same method, it is named once.
    method_names = dict.fromkeys(choice.name for choice in choices.values())
    return batches.explanation(
        raw,
        scores,
        names=target.names,
        norms=target.norms.cpu(),
        method=", words ".join(method_names),
        words=bool(request.words),
        text_maps=text_maps,
        hints=tuple(hints),
        contrast=contrast,
    )


def _choose_methods(clip: ClipAdapter, request: Request) -> dict[str, MethodChoice]:
    """The methods of the requested sides, "image" before "text"."""
    method = request.method
    options = dict(request.options)
    choices = {}
    if request.side != "text":
        choices["image"] = MethodChoice.of(method, options, clip.tower)
    if request.side != "image":
        if request.side == "both" and not method:
            # The options belong to the default method of the image side.
            options = {}
        choices["text"] = MethodChoice.of(method or "conservative", options, clip.text_tower)
    if request.sign != "positive":
        for choice in choices.values():
            choice.check_negative()
    return choices


def _should_hint(clip: ClipAdapter, request: Request, *, is_alone: bool) -> bool:
    """Whether to look for hints; by default for a single image, and positive maps of texts."""
    if request.hints is not None:
        return bool(request.hints)
    if request.texts is None or isinstance(request.texts, Target):
        return False
    is_positive = request.against is None and request.sign != "negative"
    return is_alone and is_positive and can_compare(clip)


def _make_target(clip: ClipAdapter, request: Request) -> Target:
    """The target of a request; the words of a text follow it where they are requested."""
    if request.reference is not None:
        return targets.image(clip, request.reference)
    target = request.texts
    if not isinstance(target, Target):
        target = targets.text(clip, target)
    if request.against is not None:
        return target - targets.text(clip, request.against)
    if not request.words:
        return target
    selection = None if request.words is True else request.words
    return targets.concatenate([target, targets.words(clip, target.names[0], selection)])


def _explain_pairs(clip: ClipAdapter, request: Request) -> Explanation:
    """Explain which word of a text, or which region of another image, matches which region."""
    options = _options_of_pairs(request)
    text = text_of_pairs(request.texts)
    batches = _Batches(clip, request)
    # The images are compared with a text, or with the pixels (1, 3, H, W) of another image.
    other: Any = text
    if text is None:
        other = regions.preprocess(clip, request.reference, whole=request.whole).pixels
        checks.expect(len(other) == 1, "one reference image", len(other))
    results = []
    raw = []
    for pixels in batches:
        result = pair_maps(clip, pixels, other, **options)
        results.append(result)
        signed = [result.maps if sign == "positive" else -result.maps for sign in request.signs]
        raw.append(maps.positive(torch.cat(signed, 1).cpu()))
    # Names, norms and cells belong to the text or the reference, so all batches have the same.
    first = results[0]
    method = "direct interaction"
    if options:
        listed = ",".join(f"{option}={value}" for option, value in options.items())
        method = f"{method}:{listed}"
    facts: dict[str, Any] = {"names": first.names}
    if text is None:
        reference = request.reference
        is_file = isinstance(reference, (str, Path))
        name = Path(reference).stem if is_file else "reference"
        # The first target is the whole reference; the others are its cells.
        facts["names"] = (name, *first.names[1:])
        facts["reference"] = clip.denormalize(other)[0].cpu()
    losses = [result.leave_one_out for result in results if result.leave_one_out is not None]
    if losses:
        facts["leave_one_out"] = _join_batches(losses).cpu()
    return batches.explanation(
        raw,
        [result.scores.cpu() for result in results],
        norms=first.norms,
        method=method,
        words=text is not None,
        cells=first.cells,
        **facts,
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

    The softmax gives shares among the named classes, which sum to one whatever the image shows. The
    sigmoid judges each class by itself.

    Args:
        image: an image as :func:`captum_clip.explain` takes it.
        classes: their names, or a :class:`captum_clip.Target` of them, made once for many images.
        model: as in `explain`.
        templates: one or several prompts with ``{}`` for the name, as in
            :func:`captum_clip.targets.text`; by default the names alone. A Target already has its
            own; give them here too, for the unrelated texts that the hints compare with.
        top: the number of classes to explain; by default three, or all where there are fewer.
        hints: add a sentence to `Explanation.hints` if the best class hardly fits better than
            unrelated texts and the other classes, as where the true class is not among them. By
            default wherever the tokenizer reads these texts. It costs a forward pass, and once per
            model 32 texts.
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
    if hints is not None:
        checks.check_flag("hints", hints)
    target = classes if isinstance(classes, Target) else of_classes(clip, classes, templates)
    if top is None:
        top = min(3, len(target))
    checks.check_integer("top", top, most=len(target))
    whole = options.get("whole", False)
    with checks.limit_pixels(options.get("max_pixels")):
        pixels = regions.preprocess(clip, pixels_of(image), whole=whole).pixels
    checks.expect(len(pixels) == 1, "one image", len(pixels), "classify each by itself")
    # There may be thousands of classes, and only the best of them need a gradient.
    with torch.no_grad():
        cosines = ClipSimilarity(clip, target)(pixels)
    probabilities, calibration = _calibrated(clip, cosines)
    best = cosines[0].topk(top).indices.tolist()
    # For a Target, `explain` finds no hints; those about classes are another question.
    explanation = explain(image, target[best], model=clip, **options)
    hints_by_image: tuple[tuple[str, ...], ...] = ()
    if hints or (hints is None and can_compare(clip)):
        sentences = find_class_hints(clip, pixels, target.names, cosines[0], templates)
        hints_by_image = (sentences,)
    return replace(
        explanation,
        calibration=calibration,
        probabilities=probabilities[:, best].cpu(),
        hints=hints_by_image,
    )


def of_classes(
    clip: ClipAdapter, classes: Sequence[str], templates: str | Sequence[str] | None = None
) -> Target:
    """Encode classes, some at a time, since there may be thousands in dozens of templates."""
    names = checks.check_texts(classes)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    checks.expect(not repeated, "each class once", repeated)
    prompts = 1 if templates is None else max(1, len(checks.as_list(templates)))
    count = max(1, _PROMPTS_AT_ONCE // prompts)
    batches = []
    for start in range(0, len(names), count):
        batch = names[start : start + count]
        batches.append(targets.text(clip, batch, templates=templates))
    return targets.concatenate(batches)


@torch.no_grad()
def _calibrated(clip: ClipAdapter, cosines: Tensor) -> tuple[Tensor, str]:
    """The probabilities (1, C) that the model gives to cosines (1, C), and their formula."""
    model: Any = unwrapped(clip.model)
    if getattr(model, "logit_scale", None) is not None:
        log_scale = model.logit_scale.float()
        largest = getattr(model, "max_log_logit_scale", None)
        if largest is not None:  # AIMv2 clamps its scale.
            log_scale = log_scale.clamp(0, largest)
        scale = log_scale.exp()
    elif getattr(model, "temperature", None) is not None:  # ALIGN and TIPSv2 divide by it.
        scale = 1 / model.temperature.float()
    else:
        raise UnsupportedModelError(
            f"{clip.name} has no temperature (logit_scale) to turn cosines into probabilities; use "
            "explain for the cosines."
        )
    factor = f"{scale.item():.3g} times the cosine"
    classes = cosines.shape[1]
    bias = getattr(model, "logit_bias", None)
    if bias is not None:
        sign = "\N{MINUS SIGN}" if bias < 0 else "+"
        # A tiny bias is written with an exponent, whose minus sign is replaced too.
        amount = f"{abs(bias.item()):.3g}".replace("-", "\N{MINUS SIGN}")
        probabilities = (scale * cosines + bias).sigmoid()
        return probabilities, f"each class by itself: sigmoid of {factor} {sign} {amount}"
    if classes == 1:
        raise InputError(
            f"probabilities of {clip.name} are shares of the classes, so a single class gets all; "
            "give several, or use explain for its cosine."
        )
    probabilities = (scale * cosines).softmax(-1)
    return probabilities, f"shares among the {classes} named classes: softmax of {factor}"
