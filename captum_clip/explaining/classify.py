"""`classify`: an image and classes in, an :class:`Explanation` of the most probable ones out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import targets
from ..checks import as_list, check_flag, check_integer, check_texts, expect, limit_pixels
from ..errors import InputError, UnsupportedModelError, public
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..models.images import pixels_of
from ..models.library import unwrapped
from ..similarity import ClipSimilarity
from ..targets import Target
from . import photos
from .explain import explain
from .explanation import Explanation
from .hints import can_compare, find_class_hints
from .request import LOADING

_PROMPTS: Final = 256  # encoded at a time


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
    check_flag("hints", hints is None or hints)
    target = classes if isinstance(classes, Target) else of_classes(clip, classes, templates)
    top = min(3, len(target)) if top is None else top
    check_integer("top", top, most=len(target))
    with limit_pixels(options.get("max_pixels")):
        pixels = photos.preprocess(clip, pixels_of(image), whole=options.get("whole", False)).pixels
    expect(len(pixels) == 1, "one image", len(pixels), "classify each by itself")
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
    names = check_texts(classes)
    twice = [name for name, count in Counter(names).items() if count > 1]
    expect(not twice, "each class once", twice)
    prompts = 1 if templates is None else max(1, len(as_list(templates)))
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
