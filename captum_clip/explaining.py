"""`explain`: images and texts in, an :class:`Explanation` out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import maps, photos, targets
from .attr.registry import MethodChoice, TextMap, check_method, method_on
from .checks import as_list, called, check_choice, check_integer
from .errors import InputError, TargetError
from .explanation import SIGNS, Explanation, Sign
from .hints import can_compare, find_hints
from .models import ClipAdapter, load_clip
from .models.adapter import ImageLike
from .models.images import pixels_of
from .similarity import ClipSimilarity
from .targets import Target

Side = Literal["image", "text", "both"]


@called("explain")
def explain(
    image: ImageLike | Sequence[ImageLike] | Mapping[str, Any],
    texts: str | Sequence[str] | Target,
    *,
    model: str | Path | nn.Module | ClipAdapter = "ViT-B/32",
    method: str | type[Any] | None = None,
    sign: Sign = "positive",
    words: bool | Sequence[str | tuple[int, int]] = False,
    side: Side = "image",
    whole: bool = False,
    hints: bool | None = None,
    batch_size: int | None = None,
    processor: Any = None,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    image_size: int | None = None,
    **options: Any,
) -> Explanation:
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
        model: a name that :func:`captum_clip.load_clip` knows, a model or an adapter.
        method: a class of :mod:`captum_clip.attr`, or a name of its `METHODS`, which may have
            options, as "last-grad:heads=averaged"; by default "direct", or "conservative" where a
            pooling head reads the image (SigLIP). "mamooler" is the method of the report for the
            tower: "last-grad", "grad-cam", or "conservative" for a pooling head.
        sign: "positive", "negative" or "both".
        words: explain one text word by word; True for all words, or those to take as in
            ``targets.words``. The first target is the whole text.
        side: "image" for where in the image, "text" for which words of the texts, "both". On the
            text side a method without a grid, by default "conservative", for one image.
        whole: pad each image to a square with the mean colour, so that the model sees all of it,
            where it otherwise sees what its processor leaves, as a rule the square in the middle.
            This is another input than the crop, with other scores and maps.
        hints: find maps to doubt (`Explanation.hints`): those of a text that fits the image no
            better than unrelated ones, and those that hardly change with the text; by default of
            one image. It costs a forward pass, the maps of eight more texts, and once a model 32
            short texts; False saves them. For texts, the image side and the positive sign.
        batch_size: images at a time, with a progress bar; all at once by default.
        processor: the model's image processor, where it has none yet; figures are drawn with its
            mean and deviation, also where the images are tensors.
        tokenizer: the model's tokenizer, where it has none yet.
        device: where a model loaded by name goes.
        image_size: of a model loaded by name, as of ``load_clip``: larger images, finer maps.
        **options: the method's own, such as ``depth="all"``, or of last-grad ``start_layer=6``.

    Raises:
        InputError: an image, an option or a method that is not one, a negative map of a method
            that the target does not change.
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
    _check_arguments(texts, sign, words, batch_size, side, hints)
    if method is not None:
        check_method(method, options)
    parts: dict[str, Any] = {"processor": processor, "tokenizer": tokenizer}
    clip = load_clip(model, **parts, device=device, image_size=image_size)
    choices = {}
    if side != "text":
        choices["image"] = MethodChoice.of(method_on(clip.tower, method), options)
    if side != "image":
        named = method_on(clip.text_tower, method or "conservative")
        choices["text"] = MethodChoice.of(named, {} if side == "both" and not method else options)
    if sign != "positive":
        for choice in choices.values():
            choice.check_negative()
    target = texts if isinstance(texts, Target) else targets.text(clip, texts)
    if words:
        picked = None if words is True else words or None
        target = targets.concatenate([target, targets.words(clip, target.names[0], picked)])
    wanted = SIGNS if sign == "both" else (sign,)
    embeddings = targets.concatenate(
        [target if which == "positive" else -target for which in wanted]
    )
    pieces = _pieces(pixels_of(image), batch_size)
    raw, scores, shown = [], [], []
    by_word: tuple[TextMap, ...] = ()
    doubts: list[tuple[str, ...]] = []
    for piece in tqdm(pieces, desc="explain", unit="batch", disable=len(pieces) == 1):
        seen = photos.preprocess(clip, piece, whole=whole)
        shown.append(seen._replace(pixels=clip.denormalize(seen.pixels).cpu()))
        if "text" in choices:
            by_word, cosines = choices["text"].text_maps(clip, seen.pixels, target.names, sign)
        if "image" in choices:
            attribution = choices["image"].method(ClipSimilarity(clip, embeddings))
            values, cosines = attribution.attribute_targets(
                seen.pixels, return_scores=True, **choices["image"].options
            )
            cosines = -cosines if sign == "negative" else cosines
            raw.append(maps.positive(values.cpu()))
            alone = len(pieces) == len(seen.pixels) == 1 and _have_hints(texts, side, sign)
            if hints or (hints is None and alone and can_compare(clip)):
                own = slice(1 if words else len(target))
                of_texts = target.names[own], raw[-1][:, own], cosines[:, own].cpu()
                doubts += find_hints(clip, choices["image"], seen.pixels, *of_texts)
        scores.append(cosines[:, : len(target)].cpu())
    chunks = _joined(raw).chunk(len(wanted), dim=1) if raw else ()  # none of the text side
    names = list(dict.fromkeys(choice.name for choice in choices.values()))
    return Explanation(
        maps={which: chunk.contiguous() for which, chunk in zip(wanted, chunks, strict=False)},
        scores=_joined(scores),
        names=target.names,
        norms=target.norms.cpu(),
        model=clip.name,
        method=", words ".join(names),
        images=_joined([seen.pixels for seen in shown]),
        words=bool(words),
        text_maps=by_word,
        hints=tuple(doubts),
        crops=tuple(crop for seen in shown for crop in seen.crops),
        photos=tuple(photo for seen in shown for photo in seen.photos),
    )


def _check_arguments(
    texts: Any, sign: Any, words: Any, batch_size: Any, side: Any, hints: Any
) -> None:
    check_choice("explain", side, get_args(Side), name="a side")
    if side != "image" and (isinstance(texts, Target) or words):
        given = "a Target" if isinstance(texts, Target) else f"words={words!r}"
        raise InputError(
            f"explain: side={side!r} explains whole texts word by word, got {given}; pass the "
            "texts, and leave `words` out."
        )
    check_choice("explain", sign, get_args(Sign), name="a sign")
    if hints and not _have_hints(texts, side, sign):
        raise InputError(
            "explain: hints=True compares positive maps of texts with those of unrelated texts; "
            "leave it out with a Target, side='text' or sign='negative'."
        )
    if batch_size is not None:
        check_integer("explain", "batch_size", batch_size)
    if words and (isinstance(texts, Target) or len(as_list(texts)) != 1):
        raise TargetError(f"explain: words need exactly one text, got {texts!r}.")


def _have_hints(texts: Any, side: Side, sign: Sign) -> bool:
    """Whether there are maps to be compared with those of unrelated texts."""
    return not (isinstance(texts, Target) or side == "text" or sign == "negative")


def _pieces(image: Any, batch_size: int | None) -> list[Any]:
    """The images as they were given, a batch at a time."""
    several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
    if batch_size is None or not several or len(image) <= batch_size:
        return [image]
    return [image[start : start + batch_size] for start in range(0, len(image), batch_size)]


def _joined(parts: list[Tensor]) -> Tensor:
    if len({part.shape[1:] for part in parts}) > 1:
        sizes = sorted({tuple(part.shape[-2:]) for part in parts})
        raise InputError(f"explain: the images differ in size between batches ({sizes}).")
    return torch.cat(parts)
