"""When to doubt a map: its text fits no better than unrelated ones, or it is that of any text.

A map has a maximum whatever the model knows of the image, and some class is always the best. All
hints compare with texts that have nothing to do with it; their levels are calibrated on the scenes
of the embedded models, see `docs/appendix/measurements.md`.
"""

import re
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import maps, targets
from ..attr.registry import MethodChoice
from ..maps import pearson
from ..models import ClipAdapter
from ..targets import Target
from ..targets.similarity import ClipSimilarity

_NOUNS: Final = (
    *("tiger", "banana", "car", "phone", "guitar", "castle", "shoe", "umbrella"),
    *("owl", "turtle", "shark", "octopus", "butterfly", "spider", "burger", "pizza"),
    *("cake", "cheese", "lemon", "carrot", "mushroom", "pumpkin", "cactus", "bus"),
    *("bicycle", "train", "plane", "clock", "key", "drum", "chair", "duck"),
)
UNRELATED: Final = tuple(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in _NOUNS)
"""Everyday things, which the embedded models know too."""
SHARE: Final = 0.1
"""Where more of the unrelated texts fit an image better, a text does not fit it."""
CORRELATION: Final = 0.98
"""From here on a map is that of unrelated texts."""
OUTSTANDING: Final = 3
"""Standard deviations above other texts, from which on a class stands out."""
_MAPS: Final = 8  # unrelated texts whose maps are compared

# by model: a call with a model of the user's own makes an adapter each time
_encoded: WeakKeyDictionary[nn.Module, tuple[Any, Any, Target]] = WeakKeyDictionary()


def find_hints(
    clip: ClipAdapter,
    choice: MethodChoice,
    images: Tensor,
    texts: Sequence[str],
    raw: Tensor,
    scores: Tensor,
) -> list[tuple[str, ...]]:
    """Find out which positive maps should be doubted, in sentences for each image.

    There is a sentence for each text that fits it no better than unrelated texts, and a sentence
    about the maps of any text.

    It costs another forward pass for the scores and a run of the method for eight texts, and once
    per model the encoding of 32 short texts. The arguments are those of :func:`compare`.
    """
    hints = []
    for better, alike in zip(*compare(clip, choice, images, texts, raw, scores), strict=True):
        low = [index for index, share in enumerate(better) if share > SHARE]
        same = [index for index, value in enumerate(alike) if value > CORRELATION]
        sentences = [
            f"{better[i]:.0%} of unrelated texts fit better than {_quoted([texts[i]])}: its map "
            "may mean little."
            for i in low
        ]
        if same:
            what = "The map of {} is" if len(same) == 1 else "The maps of {} are"
            low_end = f"{alike[same].min():.2f}{' or more' * (len(same) > 1)}"
            what = what.format(_quoted([texts[i] for i in same]))
            sentences.append(f"{what} almost that of unrelated texts (correlation {low_end}).")
        hints.append(tuple(sentences))
    return hints


def can_compare(clip: ClipAdapter) -> bool:
    """Whether the tokenizer takes the unrelated texts, which a small one may refuse."""
    try:
        _unrelated(clip)
    except Exception:  # whatever somebody's tokenizer raises
        return False
    return True


def compare(
    clip: ClipAdapter,
    choice: MethodChoice,
    images: Tensor,
    texts: Sequence[str],
    raw: Tensor,
    scores: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compare texts and their maps with unrelated texts, which share no word with them.

    Args:
        clip: the model.
        choice: the method; the maps of a costly one are not compared.
        images: preprocessed, (B, 3, H, W).
        texts: K of them.
        raw: their maps (B, K, h, w), none below zero.
        scores: their cosines (B, K).

    Returns:
        The share (B, K) of the unrelated texts that fit the image better, and the correlation
        (B, K) of each map with the mean map of eight of them.
    """
    with torch.no_grad():
        better = share_of_better(clip, clip.encode_image(images), texts, scores)
    related, embeddings = _related(texts), _unrelated(clip)
    # the same eight for all texts, so that one pass of the method serves them
    chosen = (~related.any(0)).nonzero().flatten().tolist()[:_MAPS]
    correlations = torch.zeros(scores.shape)
    if chosen and not choice.costly:
        attribution = choice.method(ClipSimilarity(clip, embeddings[chosen]))
        others = attribution.attribute_targets(images, **choice.options).cpu()
        mean = maps.positive(others).mean(1, keepdim=True)
        correlations = pearson(raw.flatten(2), mean.flatten(2)).nan_to_num()  # 0 of a constant
    return better, correlations


def share_of_better(
    clip: ClipAdapter, images: Tensor, texts: Sequence[str], scores: Tensor
) -> Tensor:
    """The share (B, K) of unrelated texts that fit images, unit embeddings (B, E), better.

    Zero where the tokenizer takes none of the unrelated texts.
    """
    if not can_compare(clip):
        return torch.zeros(scores.shape)
    related, embeddings = _related(texts), _unrelated(clip).embeddings.float().cpu()
    better = ((images.float().cpu() @ embeddings.T)[:, None] > scores[:, :, None]) & ~related
    return better.sum(-1) / (~related).sum(-1).clamp(min=1)


def count_doubts(texts: Sequence[str], shares: Tensor) -> tuple[str, ...]:
    """A sentence for each text that hardly fits some images, by their shares of better (B, K)."""
    counts = zip(texts, (shares > SHARE).sum(0).tolist(), strict=True)
    return tuple(
        f"{_quoted([text])} fits {count} of these {len(shares)} images no better than unrelated "
        "texts: maps for it may mean little."
        for text, count in counts
        if count
    )


def _related(texts: Sequence[str]) -> Tensor:
    """Whether a text shares its word with an unrelated one, as which it may well fit, (K, N)."""
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    return torch.tensor([[noun in of_text for noun in _NOUNS] for of_text in words])


def find_class_hints(
    clip: ClipAdapter, images: Tensor, names: Sequence[str], scores: Tensor, templates: Any
) -> tuple[str, ...]:
    """Find out whether the best of some classes is just the best of wrong ones, in a sentence.

    Its cosine is compared with those of unrelated texts in the same templates, and with those of
    the other classes and these texts together: the others of a fine-grained list may fit as well.
    It costs one more forward pass, and once a model the encoding of the unrelated texts.

    Args:
        clip: the model.
        images: one preprocessed, (1, 3, H, W).
        names: of the C classes.
        scores: their cosines (C,).
        templates: their prompts.
    """
    words = set(re.findall(r"\w+", " ".join(names).lower()))
    kept = [index for index, noun in enumerate(_NOUNS) if noun not in words]
    texts = UNRELATED if all(re.match("an? ", name) for name in names) else _NOUNS
    embeddings = _unrelated(clip, texts, templates).embeddings
    with torch.no_grad():
        unrelated = (clip.encode_image(images).float() @ embeddings.T)[0, kept].cpu()
    best, scores = int(scores.argmax()), scores.cpu()
    others = torch.cat([scores[:best], scores[best + 1 :], unrelated])
    compared = [values for values in (unrelated, others) if len(values) > 1]
    above = max(float((scores[best] - values.mean()) / values.std()) for values in compared)
    usual = f"{OUTSTANDING} or more are usual for what an image shows"
    doubt = (
        f"None of the {len(names)} classes stands out, so the image may show something else: the "
        f"best is {above:.1f} standard deviations above other texts, {usual}."
    )
    return () if above >= OUTSTANDING else (doubt,)


def _quoted(texts: Sequence[str]) -> str:
    if len(texts) > 3:
        return f"{len(texts)} of the texts"
    quoted = [f"\N{LEFT DOUBLE QUOTATION MARK}{t}\N{RIGHT DOUBLE QUOTATION MARK}" for t in texts]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _unrelated(
    clip: ClipAdapter, texts: Sequence[str] = UNRELATED, templates: Any = None
) -> Target:
    """The target of unrelated texts, encoded again only where the model or they have changed."""
    # a weight that was changed in place keeps its address, and counts a version
    weights = [(p.data_ptr(), p._version) for p in clip.model.parameters()]
    state = weights, texts, templates
    tokenizer, encoded_state, target = _encoded.get(clip.model, (None, None, None))
    if target is None or tokenizer is not clip.tokenizer or encoded_state != state:
        target = targets.text(clip, texts, templates=templates)
        _encoded[clip.model] = (clip.tokenizer, state, target)
    return target
