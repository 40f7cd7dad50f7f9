"""`explain`: images and texts in, an :class:`Explanation` out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import maps, targets
from ..attr.contributions import DirectContribution
from ..attr.interactions import DirectInteraction, pair_maps
from ..attr.registry import MethodChoice, TextMap, check_method, method_on
from ..checks import as_list, called, check_choice, check_flag, check_integer, show
from ..errors import InputError, TargetError
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..models.images import pixels_of
from ..similarity import ClipSimilarity
from ..targets import Target
from . import photos
from .explanation import SIGNS, Explanation, Sign
from .hints import can_compare, find_hints

Side = Literal["image", "text", "both", "pairs"]


@called("explain")
def explain(
    image: ImageLike | Sequence[ImageLike] | Mapping[str, Any],
    texts: str | Sequence[str] | Target | None = None,
    *,
    reference: ImageLike | Sequence[ImageLike] | None = None,
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
        reference: instead of texts, an image that the images are compared with; several are
            several targets, but of pairs there is one.
        model: a name that :func:`captum_clip.load_clip` knows, a model or an adapter.
        method: a class of :mod:`captum_clip.attr`, or a name of its `METHODS`, which may have
            options, as "last-grad:heads=averaged"; by default "direct", or "conservative" where a
            pooling head reads the image (SigLIP). "mamooler" is the method of the report for the
            tower: "last-grad", "grad-cam", or "conservative" for a pooling head.
        sign: "positive", "negative" or "both".
        words: explain one text word by word; True for all words, or those to take as in
            ``targets.words``. The first target is the whole text.
        side: "image" for where in the image, "text" for which words of the texts, "both". On the
            text side a method without a grid, by default "conservative", for one image. "pairs"
            for which word of one text answers which region, or which region of a `reference`
            (:class:`captum_clip.DirectInteraction`, whose options it takes).
        whole: pad each image to a square with the mean colour, so that the model sees all of it,
            where it otherwise sees what its processor leaves, as a rule the square in the middle;
            of pairs the reference as well.
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
    check_flag("explain", "whole", whole)
    if not isinstance(method, (str, type, NoneType)):
        raise InputError(f"explain: expected a method, by name or as a class, got {show(method)}.")
    _check_arguments(texts, reference, sign, words, batch_size, side, hints)
    other: Any = None
    if side == "pairs":
        other = None if texts is None else _one_text(texts)
        options = _pair_options(method, options)
    elif method is not None:
        check_method(method, options)
    parts: dict[str, Any] = {"processor": processor, "tokenizer": tokenizer}
    clip = load_clip(model, **parts, device=device, image_size=image_size)
    wanted = SIGNS if sign == "both" else (sign,)
    pieces = _pieces(pixels_of(image), batch_size)
    if side == "pairs":
        if reference is not None:
            other = photos.preprocess(clip, reference, whole=whole).pixels
            if len(other) != 1:
                raise InputError(f"explain: expected one reference image, got {len(other)}.")
        name = Path(reference).stem if isinstance(reference, (str, Path)) else "reference"
        return _explain_pairs(clip, pieces, other, name, wanted, whole, options)
    choices = {}
    if side != "text":
        choices["image"] = MethodChoice.of(method_on(clip.tower, method), options)
    if side != "image":
        named = method_on(clip.text_tower, method or "conservative")
        choices["text"] = MethodChoice.of(named, {} if side == "both" and not method else options)
    if sign != "positive":
        for choice in choices.values():
            choice.check_negative()
    if reference is not None:
        texts = targets.image(clip, reference)
    assert texts is not None
    target = texts if isinstance(texts, Target) else targets.text(clip, texts)
    if words:
        picked = None if words is True else words or None
        target = targets.concatenate([target, targets.words(clip, target.names[0], picked)])
    embeddings = targets.concatenate(
        [target if which == "positive" else -target for which in wanted]
    )
    raw, scores, shown = [], [], []
    by_word: tuple[TextMap, ...] = ()
    doubts: list[tuple[str, ...]] = []
    for piece in tqdm(pieces, desc="explain", unit="batch", disable=len(pieces) == 1):
        seen, drawn = _see(clip, piece, whole=whole)
        shown.append(drawn)
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
    names = list(dict.fromkeys(choice.name for choice in choices.values()))
    return Explanation(
        maps=_by_sign(wanted, raw),
        scores=_joined(scores),
        names=target.names,
        norms=target.norms.cpu(),
        model=clip.name,
        method=", words ".join(names),
        words=bool(words),
        text_maps=by_word,
        hints=tuple(doubts),
        **_of_images(shown),
    )


def _explain_pairs(
    clip: ClipAdapter,
    pieces: list[Any],
    other: str | Tensor,
    name: str,
    wanted: Sequence[str],
    whole: bool,
    options: dict[str, Any],
) -> Explanation:
    """Which word of a text, or which region of another image (1, 3, H, W), answers which region."""
    found, raw, shown = [], [], []
    for piece in tqdm(pieces, desc="explain", unit="batch", disable=len(pieces) == 1):
        seen, drawn = _see(clip, piece, whole=whole)
        shown.append(drawn)
        pairs = pair_maps(clip, seen.pixels, other, **options)
        found.append(pairs)
        signed = [pairs.maps if sign == "positive" else -pairs.maps for sign in wanted]
        raw.append(maps.positive(torch.cat(signed, 1).cpu()))
    first, lost = found[0], [pairs.lost.cpu() for pairs in found if pairs.lost is not None]
    listed = [f"{option}={value}" for option, value in options.items()]
    return Explanation(
        maps=_by_sign(wanted, raw),
        scores=_joined([pairs.scores.cpu() for pairs in found]),
        names=first.names if isinstance(other, str) else (name, *first.names[1:]),
        norms=first.norms,
        model=clip.name,
        method=":".join(["direct interaction", *([",".join(listed)] if listed else [])]),
        words=isinstance(other, str),
        lost=_joined(lost) if lost else None,
        reference=None if isinstance(other, str) else clip.denormalize(other)[0].cpu(),
        cells=first.cells,
        **_of_images(shown),
    )


def _see(clip: ClipAdapter, piece: Any, *, whole: bool) -> tuple[photos.Seen, photos.Seen]:
    """Images as the model takes them, and in colours."""
    seen = photos.preprocess(clip, piece, whole=whole)
    return seen, seen._replace(pixels=clip.denormalize(seen.pixels).cpu())


def _by_sign(wanted: Sequence[str], raw: list[Tensor]) -> dict[str, Tensor]:
    """The maps of each sign, of batches that hold them one after the other."""
    chunks = _joined(raw).chunk(len(wanted), dim=1) if raw else ()  # none of the text side
    return {which: chunk.contiguous() for which, chunk in zip(wanted, chunks, strict=False)}


def _of_images(shown: list[photos.Seen]) -> dict[str, Any]:
    """What an explanation keeps of the images in colours."""
    return {
        "images": _joined([seen.pixels for seen in shown]),
        "crops": tuple(crop for seen in shown for crop in seen.crops),
        "photos": tuple(photo for seen in shown for photo in seen.photos),
    }


def _one_text(texts: Any) -> str:
    listed = [texts] if isinstance(texts, bytes) or not isinstance(texts, Iterable) else texts
    listed = as_list(listed)
    if len(listed) != 1:
        raise TargetError(
            f"explain: side='pairs' takes one text apart, got {len(listed)}; explain each by "
            "itself."
        )
    if not isinstance(listed[0], str):
        raise TargetError(f"explain: expected a text, got {type(listed[0]).__name__}.")
    return listed[0]


def _pair_options(method: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `DirectInteraction`, which may come with the name of `direct`."""
    if method not in (None, DirectInteraction):
        choice = MethodChoice.of(method, options)
        if choice.method is not DirectContribution:
            raise InputError(
                "explain: side='pairs' is made of direct contributions to both embeddings, got "
                f"the method {choice.name}; leave it out."
            )
        options = choice.options
    known = ("baseline", "start_layer", "depth")
    for option in options:
        if option not in known:
            raise InputError(
                f"explain: side='pairs' has no option {option!r}; it has {', '.join(known)}."
            )
    return options


def _check_arguments(
    texts: Any, reference: Any, sign: Any, words: Any, batch_size: Any, side: Any, hints: Any
) -> None:
    # types first, since an array is neither true nor false
    if not isinstance(words, (bool, Sequence)):
        raise InputError(f"explain: expected words of True, False or a list, got {show(words)}.")
    if hints is not None:
        check_flag("explain", "hints", hints)
    check_choice("explain", side, get_args(Side), name="a side")
    if (texts is None) == (reference is None):
        given = "neither" if texts is None else "both"
        raise InputError(f"explain: expected texts or a reference image, got {given}.")
    if reference is not None and (side in ("text", "both") or words):
        raise InputError(
            "explain: a reference image has no words; take side='image' or side='pairs', and leave "
            "`words` out."
        )
    if side == "pairs" and words:
        raise InputError("explain: side='pairs' splits the text into words; leave `words` out.")
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
            "leave it out with a Target, a reference, side='text', side='pairs' or sign='negative'."
        )
    if batch_size is not None:
        check_integer("explain", "batch_size", batch_size)
    if words and (isinstance(texts, Target) or len(as_list(texts)) != 1):
        raise TargetError(f"explain: words need exactly one text, got {texts!r}.")


def _have_hints(texts: Any, side: Side, sign: Sign) -> bool:
    """Whether there are maps to be compared with those of unrelated texts."""
    no_texts = texts is None or isinstance(texts, Target)
    return not (no_texts or side in ("text", "pairs") or sign == "negative")


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
