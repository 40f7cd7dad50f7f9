"""`explain`: images and texts in, an `Explanation` with maps, scores and a picture out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import maps, photos, targets
from .attr.registry import MethodChoice, default_method
from .checks import as_list, check_integer
from .errors import InputError, TargetError
from .explained import FORMATS, SIGNS, Explanation, Sign, TextMap
from .hints import find_hints
from .models import ClipAdapter, load_clip
from .models.base import ImageLike
from .similarity import ClipSimilarity, TextSimilarity
from .targets import Target

__all__ = ["FORMATS", "Explanation", "Side", "Sign", "explain"]

Side = Literal["image", "text", "both"]


def explain(
    image: ImageLike | Sequence[ImageLike],
    texts: str | Sequence[str] | Target,
    *,
    model: str | Path | nn.Module | ClipAdapter = "ViT-B/32",
    method: str | type[Any] | None = None,
    sign: Sign = "positive",
    words: bool | Sequence[str | tuple[int, int]] = False,
    side: Side = "image",
    whole: bool = False,
    hints: bool = False,
    batch_size: int | None = None,
    processor: Any = None,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Explanation:
    r"""Why does the image fit the text, and which parts speak against it?

    With :math:`m(t)` for the method's map of target t, the positive map is :math:`m(t)^+` and the
    negative one :math:`m(-t)^+`; for Grad-CAM, whose map is linear in t, that is the ReLU of the
    negated map. Both come from one forward pass. For the attention methods, whose ReLU is taken
    before layers and heads are put together, the two maps may overlap.

    Args:
        image: one or several of what ``ClipAdapter.preprocess`` takes: path, PIL image, array,
            uint8 tensor, or preprocessed float tensors (B, 3, H, W).
        texts: one or several, or a :class:`captum_clip.Target`.
        model: a name that :func:`captum_clip.load_clip` knows, a model or an adapter.
        method: a class of :mod:`captum_clip.attr`, or a name of its `METHODS`, which may have
            options, as "last-grad:heads=averaged"; by default "direct", or "conservative" where a
            pooling head reads the image (SigLIP); Mamooler's are "last-grad" and "grad-cam".
        sign: "positive", "negative" or "both".
        words: explain one text word by word; True for all words, or those to take as in
            ``targets.words``. The first target is the whole text.
        side: "image" for where in the image, "text" for which words of the texts, "both". On the
            text side a method without a grid, by default "conservative", for one image.
        whole: pad each picture to a square with the mean colour, so that the model sees all of it,
            where it otherwise sees what its processor leaves, as a rule the square in the middle.
            This is another input than the crop, with other scores and maps.
        hints: say which maps should be doubted (`Explanation.hints`): those of a text that fits the
            image no better than unrelated ones, and those that hardly change with the text. It
            costs about two more forward passes; for texts, the image side and the positive sign.
        batch_size: images at a time, with a progress bar; all at once by default.
        processor: the model's image processor, where it has none yet; pictures are drawn with its
            mean and deviation, also where the images are tensors.
        tokenizer: the model's tokenizer, where it has none yet.
        device: where a model loaded by name goes.
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
    chosen = None if method is None else MethodChoice.of(method, options)
    clip = load_clip(model, processor=processor, tokenizer=tokenizer, device=device)
    choices = _choices(clip, chosen, options, side)
    if sign != "positive":
        for choice in choices.values():
            choice.check_negative()
    target = _target(clip, texts, words)
    wanted = SIGNS if sign == "both" else (sign,)
    embeddings = targets.concatenate(
        [target if which == "positive" else -target for which in wanted]
    )
    pieces = _pieces(image, batch_size)
    raw, scores, shown = [], [], []
    by_word: tuple[TextMap, ...] = ()
    said: list[tuple[str, ...]] = []
    for piece in tqdm(pieces, desc="explain", unit="batch", disable=len(pieces) == 1):
        seen = photos.preprocess(clip, piece, whole=whole)
        shown.append(seen._replace(pixels=clip.denormalize(seen.pixels).cpu()))
        if "text" in choices:
            by_word, cosines = _text_maps(clip, seen.pixels, target.names, choices["text"], sign)
        if "image" in choices:
            attribution = choices["image"].method(ClipSimilarity(clip, embeddings))
            values, cosines = attribution.attribute_targets(
                seen.pixels, return_scores=True, **choices["image"].options
            )
            cosines = -cosines if sign == "negative" else cosines
            raw.append(maps.positive(values.cpu()))
            if hints:
                count = 1 if words else len(target)
                of_texts = (raw[-1][:, :count], cosines[:, :count].cpu())
                own = target.names[:count]
                said += find_hints(clip, choices["image"], seen.pixels, own, *of_texts)
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
        hints=tuple(said),
        crops=tuple(crop for seen in shown for crop in seen.crops),
        photos=tuple(photo for seen in shown for photo in seen.photos),
    )


def _choices(
    clip: ClipAdapter, chosen: MethodChoice | None, options: dict[str, Any], side: Side
) -> dict[str, MethodChoice]:
    """The method of each side that is asked for."""
    choices = {}
    if side != "text":
        choices["image"] = chosen or MethodChoice.of(default_method(clip.tower), options)
    if side != "image":
        choices["text"] = chosen or MethodChoice.of(
            "conservative", options if side == "text" else {}
        )
    return choices


def _text_maps(
    clip: ClipAdapter, pixels: Tensor, texts: Sequence[str], choice: MethodChoice, sign: str
) -> tuple[tuple[TextMap, ...], Tensor]:
    """A map of each of K texts for one image (1, 3, H, W), and the cosines (1, K).

    A word's value is the sum over its tokens, below zero where it speaks against. With :math:`m(t)`
    for a method without signs it is :math:`m(t)` for the positive sign, :math:`-m(-t)` for the
    negative one, and :math:`m(t) - m(-t)` for both; a signed method gives both always.
    """
    if len(pixels) != 1:
        raise InputError(
            f"explain: words are explained for one image at a time, got {len(pixels)}."
        )
    target = targets.image(clip, pixels)
    forward = TextSimilarity(clip, targets.concatenate([target, -target]))
    spans = [targets.word_tokens(clip, text) for text in texts]
    ids, mask = clip.text_inputs(texts)
    values, scores = choice.method(forward).attribute_targets(
        ids, additional_forward_args=mask, return_scores=True, **choice.options
    )
    if values.ndim != 3:
        raise InputError(f"explain: {choice.name} gives several values per token; leave `per` out.")
    positive, negative = values.cpu().unbind(1)  # (K, T)
    if choice.signed or sign == "positive":
        signed = positive
    else:
        signed = -negative if sign == "negative" else positive - negative
    maps = tuple(
        tuple((word, float(row[span.start : span.stop].sum())) for word, span in words)
        for row, words in zip(signed, spans, strict=True)
    )
    return maps, torch.as_tensor(scores[:, :1].T.cpu())


def _check_arguments(
    texts: Any, sign: Any, words: Any, batch_size: Any, side: Any, hints: Any
) -> None:
    if side not in ("image", "text", "both"):
        raise InputError(f"explain: expected side image, text or both, got {side!r}.")
    if side != "image" and (isinstance(texts, Target) or words):
        given = "a Target" if isinstance(texts, Target) else f"words={words!r}"
        raise InputError(
            f"explain: side={side!r} explains whole texts word by word, got {given}; pass the "
            "texts, and leave `words` out."
        )
    if sign not in (*SIGNS, "both"):
        raise InputError(f"explain: expected sign positive, negative or both, got {sign!r}.")
    if hints and (isinstance(texts, Target) or side == "text" or sign == "negative"):
        raise InputError(
            "explain: hints=True compares positive maps of texts with those of unrelated texts; "
            "leave it out with a Target, side='text' or sign='negative'."
        )
    if batch_size is not None:
        check_integer("explain", "batch_size", batch_size)
    if words and (isinstance(texts, Target) or len(as_list(texts)) != 1):
        raise TargetError(f"explain: words need exactly one text, got {texts!r}.")


def _target(
    clip: ClipAdapter,
    texts: str | Sequence[str] | Target,
    words: bool | Sequence[str | tuple[int, int]],
) -> Target:
    if isinstance(texts, Target):
        return texts
    whole = targets.text(clip, texts)
    if not words:
        return whole
    picked = None if words is True else words
    return targets.concatenate([whole, targets.words(clip, whole.names[0], picked or None)])


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
