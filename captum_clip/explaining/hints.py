"""When to doubt a map: its text fits no better than unrelated ones, or any text has such a map.

A map has a maximum whatever the model knows of the image, and some class is always the best. All
hints compare with texts that have nothing to do with it. Their levels are calibrated on the scenes
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
from ..checks import excerpt
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
"""A text does not fit an image if a larger share of the unrelated texts fits it better."""
CORRELATION: Final = 0.98
"""A map above this correlation counts as that of unrelated texts."""
OUTSTANDING: Final = 3
"""A class stands out if it is at least so many standard deviations above other texts."""
_QUOTED_LENGTH: Final = 80
"""The most letters that a sentence quotes of a text."""
_COMPARED_MAPS: Final = 8
"""The number of unrelated texts whose maps are compared."""

# Model -> its tokenizer, what the encoding depended on, and the target. The key is the model, since
# a call with a user's own model makes an adapter each time.
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

    There is one sentence for each text that fits an image no better than unrelated texts, and one
    about all maps that hardly differ from those of unrelated texts.

    It costs another forward pass for the scores and a run of the method for eight texts, and once
    per model the encoding of 32 short texts. The arguments are those of :func:`compare`.
    """
    all_shares, all_correlations = compare(clip, choice, images, texts, raw, scores)
    hints = []
    for shares, correlations in zip(all_shares, all_correlations, strict=True):
        sentences = []
        for text, share in zip(texts, shares, strict=True):
            if share > SHARE:
                sentences.append(
                    f"{share:.0%} of unrelated texts fit better than {_quoted([text])}: its map "
                    "may mean little."
                )
        is_same = correlations > CORRELATION
        same_texts = [text for text, same in zip(texts, is_same, strict=True) if same]
        if same_texts:
            maps_are = "The map of {} is" if len(same_texts) == 1 else "The maps of {} are"
            or_more = "" if len(same_texts) == 1 else " or more"
            sentences.append(
                f"{maps_are.format(_quoted(same_texts))} almost that of unrelated texts "
                f"(correlation {correlations[is_same].min():.2f}{or_more})."
            )
        hints.append(tuple(sentences))
    return hints


def can_compare(clip: ClipAdapter) -> bool:
    """Whether the tokenizer takes the unrelated texts, which a small one may refuse."""
    try:
        _unrelated(clip)
    except Exception:  # A user's tokenizer may raise anything.
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
        shares = share_of_better(clip, clip.encode_image(images), texts, scores)
    embeddings = _unrelated(clip)
    # All texts are compared with the same unrelated ones, so that the method runs once.
    is_unrelated_to_all = ~_related(texts).any(0)
    unrelated = is_unrelated_to_all.nonzero().flatten().tolist()
    chosen = unrelated[:_COMPARED_MAPS]
    correlations = torch.zeros(scores.shape)
    if chosen and not choice.costly:
        attribution = choice.method(ClipSimilarity(clip, embeddings[chosen]))
        others = attribution.attribute_targets(images, **choice.options).cpu()
        mean = maps.positive(others).mean(1, keepdim=True)  # (B, 1, h, w)
        # A constant map has no correlation, and counts as unlike.
        correlations = pearson(raw.flatten(2), mean.flatten(2)).nan_to_num()
    return shares, correlations


def share_of_better(
    clip: ClipAdapter, images: Tensor, texts: Sequence[str], scores: Tensor
) -> Tensor:
    """The share (B, K) of unrelated texts that fit images, unit embeddings (B, E), better.

    Zero where the tokenizer takes none of the unrelated texts.
    """
    if not can_compare(clip):
        return torch.zeros(scores.shape)
    embeddings = _unrelated(clip).embeddings.float().cpu()
    cosines = images.float().cpu() @ embeddings.T  # (B, N)
    is_unrelated = ~_related(texts)  # (K, N)
    is_better = cosines[:, None] > scores[:, :, None]  # (B, K, N)
    return (is_better & is_unrelated).sum(-1) / is_unrelated.sum(-1).clamp(min=1)


def count_doubts(texts: Sequence[str], shares: Tensor) -> tuple[str, ...]:
    """A sentence for each text that hardly fits some images, by their shares of better (B, K)."""
    sentences = []
    for text, count in zip(texts, (shares > SHARE).sum(0).tolist(), strict=True):
        if count:
            sentences.append(
                f"{_quoted([text])} fits {count} of these {len(shares)} images no better than "
                "unrelated texts: its scores and maps may mean little."
            )
    return tuple(sentences)


def _related(texts: Sequence[str]) -> Tensor:
    """Whether a text shares its word with an unrelated one, and may well fit as that, (K, N)."""
    rows = []
    for text in texts:
        words = set(re.findall(r"\w+", text.lower()))
        rows.append([noun in words for noun in _NOUNS])
    return torch.tensor(rows)


def find_class_hints(
    clip: ClipAdapter, images: Tensor, names: Sequence[str], scores: Tensor, templates: Any
) -> tuple[str, ...]:
    """Find out whether the best of some classes is just the best of wrong ones, in a sentence.

    Its cosine is compared with those of unrelated texts in the same templates. Then it is compared
    with those of the other classes and these texts together: all classes of a fine-grained list may
    fit well. It costs one more forward pass, and once per model the encoding of the unrelated
    texts.

    Args:
        clip: the model.
        images: one preprocessed, (1, 3, H, W).
        names: of the C classes.
        scores: their cosines (C,).
        templates: their prompts.
    """
    words = set(re.findall(r"\w+", " ".join(names).lower()))
    kept = [index for index, noun in enumerate(_NOUNS) if noun not in words]
    # Unrelated texts have an article where all names of classes have one.
    have_articles = all(re.match("an? ", name) for name in names)
    texts = UNRELATED if have_articles else _NOUNS
    embeddings = _unrelated(clip, texts, templates).embeddings
    with torch.no_grad():
        cosines = clip.encode_image(images).float() @ embeddings.T
    unrelated = cosines[0, kept].cpu()
    scores = scores.cpu()
    best = int(scores.argmax())
    others = torch.cat([scores[:best], scores[best + 1 :], unrelated])
    # One comparison is enough for a class to stand out, so the larger distance counts.
    distances = []
    for values in (unrelated, others):
        if len(values) > 1:  # A single value has no deviation.
            distances.append(float((scores[best] - values.mean()) / values.std()))
    distance = max(distances)
    if distance >= OUTSTANDING:
        return ()
    return (
        f"None of the {len(names)} classes stands out, so the image may show something else: the "
        f"best is {distance:.1f} standard deviations above other texts, {OUTSTANDING} or more are "
        "usual for what an image shows.",
    )


def _quoted(texts: Sequence[str]) -> str:
    if len(texts) > 3:
        return f"{len(texts)} of the texts"
    short = [excerpt(text, _QUOTED_LENGTH) for text in texts]
    quoted = [f"\N{LEFT DOUBLE QUOTATION MARK}{t}\N{RIGHT DOUBLE QUOTATION MARK}" for t in short]
    if len(quoted) == 1:
        return quoted[0]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _unrelated(
    clip: ClipAdapter, texts: Sequence[str] = UNRELATED, templates: Any = None
) -> Target:
    """The target of unrelated texts, encoded again only if the model or the texts have changed."""
    # A weight that was changed in place keeps its address, and counts a version.
    weights = [(p.data_ptr(), p._version) for p in clip.model.parameters()]
    state = (weights, texts, templates)
    tokenizer, encoded_state, target = _encoded.get(clip.model, (None, None, None))
    if target is None or tokenizer is not clip.tokenizer or encoded_state != state:
        target = targets.text(clip, texts, templates=templates)
        _encoded[clip.model] = (clip.tokenizer, state, target)
    return target
