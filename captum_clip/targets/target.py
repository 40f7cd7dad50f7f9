"""Targets: K directions in CLIP's embedding space, from texts, words, images and emotions."""

import re
import string
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import as_list, check_texts, excerpt, expect, expecting, is_integer, show
from ..errors import InputError, TargetError, public
from ..maps import check_shape, to_float32
from ..models import ClipAdapter, ImageLike, differing_parts

Origin = Literal["text", "image"]
Span = tuple[int, int]
_ZERO = 1e-6  # a direction this short, next to unit encodings, is rounding
_PUNCTUATION = string.punctuation + "“”‘’«»„¿¡…–—"


class Maker:
    """The model that made a target, which is neither kept alive nor written with the target."""

    def __init__(self, clip: ClipAdapter) -> None:
        self.name = clip.name
        self.adapter = weakref.ref(clip)
        self._model = weakref.ref(clip.model)

    def __reduce__(self) -> Any:
        # Another process has no such model, and its name there may be another.
        return type(None), ()

    def check(self, clip: ClipAdapter, source: Origin | None) -> None:
        """Raise TargetError unless a model has the same embeddings as the maker.

        Two objects are compared by embeddings of a few fixed texts, or of fixed images for a
        target of images. Where the maker is gone, its name must be the same.
        """
        maker = self.adapter()
        if maker is clip or self._model() is clip.model:
            return
        if source != "image" and clip.tokenizer is None:
            # A copy of a vision tower, made to be compared, often comes without a tokenizer. It
            # embeds no text of its own that could be compared.
            return
        if maker is None:
            differs = self.name != clip.name
        else:
            parts = {"texts": source != "image", "images": source == "image"}
            differs = bool(differing_parts(maker.identity(**parts), clip.identity(**parts)))
        if differs:
            raise TargetError(
                f"the target was made with {self.name}, whose embeddings are not those of "
                f"{clip.name}; make it with this model, or pass "
                "targets.embedding(target.embeddings) to use its numbers all the same."
            )


@dataclass(frozen=True, eq=False)
class Target:
    """K target directions.

    Attributes:
        embeddings: (K, D), L2-normalized after all arithmetic.
        norms: lengths (K,) before that; a word with a short difference hardly matters to its text.
        names: one name per embedding.
        source: "text" or "image" where all embeddings are of such; None elsewhere.
        maker: the model that made them; None where they were given as numbers.

    ``-t`` negates (negative saliency), ``a - b`` subtracts unit embeddings, ``t[i]`` picks some (an
    index, a slice, a list or a name), ``len(t)`` is K. There is no ``+``: several targets are
    joined by :func:`captum_clip.targets.concatenate`.
    """

    embeddings: Tensor
    norms: Tensor
    names: tuple[str, ...]
    source: Origin | None = None
    maker: Maker | None = field(default=None, repr=False)

    @public("Target")
    def __post_init__(self) -> None:
        # Made under inference_mode, tensors could never take part in a gradient; copies can.
        with torch.inference_mode(False):
            for name in ("embeddings", "norms"):
                tensor = getattr(self, name)
                if tensor.is_inference():
                    object.__setattr__(self, name, tensor.clone())

    @classmethod
    @public("Target")
    def of(
        cls,
        embeddings: Tensor,
        names: Sequence[str],
        source: Origin | None = None,
        maker: Maker | None = None,
    ) -> "Target":
        """A target of embeddings (K, D) of any length; kept detached, in at least float32.

        Raises:
            TargetError: not (K, D), not finite, one without direction, or not K names.
        """
        check_shape("embeddings", embeddings, "(K, D)", error=TargetError)
        named = f"{len(embeddings)} names of as many embeddings"
        expect(len(names) == len(embeddings), named, names, error=TargetError)
        is_float = embeddings.is_floating_point()
        zero = max(_ZERO, torch.finfo(embeddings.dtype).eps if is_float else 0)
        embeddings = to_float32(embeddings.detach())
        norms = embeddings.norm(dim=1)
        for name, norm in zip(names, norms.tolist(), strict=True):
            if not norm < float("inf"):
                raise TargetError(f"the embedding of {name!r} holds NaN or infinity.")
            if norm < zero:
                raise TargetError(
                    f"{name!r} has no direction (length {norm:.1e}): it changes nothing "
                    "for the model, so there is nothing to explain."
                )
        return cls(embeddings / norms[:, None], norms, tuple(names), source, maker)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> "Iterator[Target]":
        return (self[index] for index in range(len(self)))

    def __neg__(self) -> "Target":
        names = tuple(f"not {name}" for name in self.names)
        return replace(self, embeddings=-self.embeddings, names=names)

    def __sub__(self, other: "Target") -> "Target":
        advice, is_target = "targets.embedding makes one of numbers", isinstance(other, Target)
        expect(is_target, "another Target to subtract", other, advice, error=TargetError)
        fits = len(other) in (1, len(self)) or len(self) == 1
        expect(fits, f"1 or {len(self)} embeddings to subtract", len(other), error=TargetError)
        _check_sizes([self, other])
        differences = self.embeddings - other.embeddings.to(self.embeddings.device)
        left, right = (np.broadcast_to(t.names, len(differences)) for t in (self, other))
        names = [f"{a} - {b}" for a, b in zip(left, right, strict=True)]
        return Target.of(differences, names, *_common_origin([self, other]))

    def __add__(self, other: object) -> "Target":
        raise TargetError(
            "targets are not added up; targets.concatenate([a, b]) joins them, and "
            "targets.embedding(a.embeddings + b.embeddings) is their sum."
        )

    __array_ufunc__ = None  # NumPy would subtract each embedding on its own

    def __rsub__(self, other: Any) -> "Target":
        return self.__sub__(other)  # which refuses it

    @public("Target")
    def __getitem__(self, key: int | str | slice | Sequence[int] | Tensor) -> "Target":
        chosen = self._positions(key)
        if not chosen:
            raise TargetError(f"{show(key)} picks no embedding; the names are {list(self.names)}.")
        names = tuple(self.names[index] for index in chosen)
        embeddings, norms = self.embeddings[chosen], self.norms[chosen]
        return replace(self, embeddings=embeddings, norms=norms, names=names)

    def _positions(self, key: Any) -> list[int]:
        if isinstance(key, str):
            return [index for index, name in enumerate(self.names) if name == key]
        expected = "indices, a slice or a name"
        with expecting(expected, key, error=TargetError):  # letters, a tensor without values
            if isinstance(key, slice):
                return list(range(len(self)))[key]
            indices = np.atleast_1d(key.tolist() if isinstance(key, Tensor) else key).tolist()
        expect(all(map(is_integer, indices)), expected, key, error=TargetError)
        if any(not -len(self) <= index < len(self) for index in indices):
            raise IndexError(f"index {show(key)} is out of range for {len(self)} targets.")
        return [index % len(self) for index in indices]

    def to(self, device: torch.device | str) -> "Target":
        """Move the target to another device."""
        embeddings, norms = self.embeddings.to(device), self.norms.to(device)
        return replace(self, embeddings=embeddings, norms=norms)

    def __repr__(self) -> str:
        return f"Target({list(self.names)})"


def _common_origin(targets: Sequence[Target]) -> tuple[Origin | None, Maker | None]:
    """The source that all have, and the maker of those that have one."""
    sources = {target.source for target in targets}
    makers = [target.maker for target in targets if target.maker is not None]
    for maker in makers[1:]:
        made_by = maker.adapter()
        if made_by is not None:
            makers[0].check(made_by, targets[0].source)
        elif maker.name != makers[0].name:
            raise TargetError(
                f"the targets were made with {makers[0].name} and {maker.name}; take those of one "
                "model."
            )
    source = sources.pop() if len(sources) == 1 else None
    return source, makers[0] if makers else None


def _check_sizes(targets: Sequence[Target]) -> None:
    sizes = sorted({target.embeddings.shape[1] for target in targets})
    expect(len(sizes) <= 1, "targets of one model, of one size", sizes, error=TargetError)


@public("concatenate")
def concatenate(targets: Sequence[Target]) -> Target:
    """Several targets as one, their embeddings one after the other.

    Raises:
        TargetError: nothing was given, or the embeddings differ in length.
    """
    targets = list(targets)
    are_targets = targets and all(isinstance(target, Target) for target in targets)
    expect(are_targets, "one or more Targets", targets, error=TargetError)
    _check_sizes(targets)
    device = targets[0].embeddings.device
    return Target(
        torch.cat([target.embeddings.to(device) for target in targets]),
        torch.cat([target.norms.to(device) for target in targets]),
        tuple(name for target in targets for name in target.names),
        *_common_origin(targets),
    )


@public("targets.embedding")
def embedding(embeddings: Tensor | Any, names: Sequence[str] | None = None) -> Target:
    """Targets from embeddings (K, D) or one (D,), tensor or array, of any length.

    Args:
        embeddings: directions in the model's embedding space.
        names: one name per embedding; "embedding 0", "embedding 1", ... where none is given.

    Raises:
        TargetError: not numbers, wrong shape, not finite, or a row of zeros.

    Example:
        >>> import torch
        >>> from captum_clip import targets
        >>> targets.embedding(torch.eye(3)[:2], ["first", "second"]).norms
        tensor([1., 1.])
    """
    with expecting("numbers (K, D) or (D,)", embeddings, error=TargetError):
        tensor = torch.as_tensor(embeddings)
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    if names is None:
        names = [f"embedding {index}" for index in range(len(tensor) if tensor.ndim else 0)]
    return Target.of(tensor, as_list(names))


@public("targets.image")
def image(
    clip: ClipAdapter, images: ImageLike | Sequence[ImageLike], names: Sequence[str] | None = None
) -> Target:
    """One embedding per reference image, L2-normalized.

    Args:
        clip: the adapter.
        images: what :meth:`ClipAdapter.preprocess` takes.
        names: one name per image; file stems or "image 0", "image 1", ... where none is given.

    Raises:
        InputError: an image cannot be read.
        TargetError: not as many names as images.
    """
    with torch.no_grad():
        embeddings = clip.encode_image(clip.preprocess(images))
    if names is None:
        # the images of a batch have no names of their own
        sources = images if isinstance(images, (list, tuple)) else [images] * len(embeddings)
        names = [
            Path(source).stem if isinstance(source, (str, Path)) else f"image {index}"
            for index, source in enumerate(sources)
        ]
    return Target.of(embeddings, as_list(names), "image", Maker(clip))


@public("targets.text")
def text(
    clip: ClipAdapter,
    texts: str | Sequence[str],
    *,
    templates: str | Sequence[str] | None = None,
    allow_empty: bool = False,
) -> Target:
    r"""One L2-normalized embedding per text.

    With prompt templates it is the mean of the unit embeddings of the text in every template,
    normalized again (Radford et al. 2021, section 3.1.4):

    .. math:: t = \frac{m}{|m|}, \quad m = \frac{1}{P} \sum_p \frac{enc(p(text))}{|enc(p(text))|}

    Args:
        clip: the adapter.
        texts: one text or several.
        templates: one or several prompts with ``{}`` where the text goes, as "a photo of a {}.".
        allow_empty: take "" as a text; a prompt without content, useful as a baseline.

    Raises:
        TargetError: no text, an empty one, one that is too long, or a template without ``{}``.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> clip = load_clip("demo/vit")
        >>> targets.text(clip, ["horse", "dog"], templates=["a {}", "a photo of a {}"]).names
        ('horse', 'dog')
    """
    texts = _checked_texts(texts, allow_empty=allow_empty)
    for text in texts:
        if not allow_empty and clip.is_blank(text):
            raise TargetError(
                f"{show(text)} is the same as an empty text to {clip.name}: its "
                "tokenizer leaves nothing of it."
            )
    if templates is None:
        return Target.of(_encode(clip, texts), texts, "text", Maker(clip))
    templates = as_list(templates)
    fit = templates and all(isinstance(t, str) and t.count("{}") == 1 for t in templates)
    expect(fit, "templates with one {} for the text", templates, error=TargetError)
    prompts = [template.replace("{}", text) for text in texts for template in templates]
    embeddings = F.normalize(_encode(clip, prompts), dim=-1).view(len(texts), len(templates), -1)
    return Target.of(embeddings.mean(1), texts, "text", Maker(clip))


def _checked_texts(texts: str | Sequence[str], *, allow_empty: bool) -> list[str]:
    """The texts as a list, each a text with something in it."""
    listed = check_texts(texts)
    for text in listed:
        if not text.strip() and not allow_empty:
            raise TargetError(f"{text!r} is empty.")
    return listed


def _encode(clip: ClipAdapter, texts: list[str]) -> Tensor:
    """Unit text embeddings (N, D), without a graph."""
    with torch.no_grad():
        return clip.encode_text(texts)


@public("targets.words")
def words(clip: ClipAdapter, text: str, words: Sequence[str | Span] | None = None) -> Target:
    r"""One direction for each word or span w of the text t: what is lost when w is left out.

    .. math:: t_w \propto \widehat{enc}(t) - \widehat{enc}(t \setminus w)

    with both encodings L2-normalized first.

    The text is split at white space. Words are taken out by position, with the white space before
    them, and all else stays as it is. So a repeated word gives one target per occurrence.
    ``.norms`` holds the length of each difference: how much the word matters to the text at all.
    The embeddings themselves have unit length, so a word map differs from the report's, which keeps
    the length, by second order. Where nothing is left, the empty encoding is subtracted.

    Args:
        clip: the adapter.
        text: the whole text.
        words: which; each a word or span as it stands in the text ("horse", "red hair"; outer
            punctuation does not count) or (start, stop) positions of words; all words by default.

    Raises:
        TargetError: an empty text, a word that is not in it, or one whose removal changes nothing.

    Source: CLIP Explainability (Mamooler, EPFL), word-wise saliency.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> targets.words(load_clip("demo/vit"), "a horse and a dog.", ["horse", "dog"]).names
        ('horse', 'dog')
    """
    _checked_texts([text], allow_empty=False)
    every, pieces = text.split(), _pieces(text)
    spans = word_spans(every, words)
    # By position: `re.sub` would take the word as a pattern, and "a" would remove every a.
    without = ["".join(pieces[:start] + pieces[stop:]) for start, stop in spans]
    left = [t if start else t.lstrip() for t, (start, _) in zip(without, spans, strict=True)]
    encodings = _encode(clip, [text, *left])
    names = [_bare(" ".join(every[start:stop])) for start, stop in spans]
    return Target.of(encodings[:1] - encodings[1:], names, "text", Maker(clip))


@public("targets.word_tokens")
def word_tokens(clip: ClipAdapter, text: str) -> tuple[tuple[str, range], ...]:
    """The words of a text, split at white space, each with the positions of its tokens.

    A value for each token, as methods give them on a :class:`captum_clip.TextSimilarity`, is summed
    over them; start, end and padding belong to no word. Where white space has tokens of its own, as
    in RoBERTa, they belong to the word after it.

    Raises:
        TargetError: an empty text, or one that is too long.
        InputError: a tokenizer that does not cut texts at white space, or cannot count.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> targets.word_tokens(load_clip("demo/vit"), "a horse.")
        (('a', range(1, 2)), ('horse.', range(2, 3)))
    """
    _checked_texts([text], allow_empty=False)
    words = text.split()
    # of the text itself, since a byte-level tokenizer has tokens for its white space, too
    beginnings = ["", *accumulate(_pieces(text)[: len(words)])]
    whole, *rows = clip.text_inputs([text, *beginnings])[0].tolist()
    counts = [clip.count_tokens(beginning) for beginning in beginnings]
    start = next((i for i, (a, b) in enumerate(zip(whole, rows[0], strict=True)) if a != b), None)
    if start is None:
        raise TargetError(f"{text!r} has no tokens of its own.")
    counted = [count for count in counts if count is not None]
    stops = [start + count - counted[0] for count in counted]
    starts_alike = all(row[:stop] == whole[:stop] for row, stop in zip(rows, stops, strict=False))
    if len(counted) < len(counts) or stops != sorted(stops) or not starts_alike:
        raise InputError(
            f"the tokenizer does not split {text!r} at spaces, or does not count tokens; "
            "write the text with plain spaces, or sum the values over each word yourself."
        )
    spans = zip(words, stops, stops[1:], strict=False)
    return tuple((word, range(first, last)) for word, first, last in spans)


def _pieces(text: str) -> list[str]:
    """The words of ``text.split()``, each with the white space before it, and what is left."""
    return re.findall(r"\s*\S+|\s+$", text)


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION) or word


def word_spans(every: list[str], words: Sequence[str | Span] | None) -> list[Span]:
    """Where the words stand: (start, stop) of each, and of a repeated word each occurrence.

    Raises:
        TargetError: a word that is not in the text, as :func:`words` has it.
    """
    if words is None:
        return [(index, index + 1) for index in range(len(every))]
    spans: list[Span] = []
    bare = [_bare(word) for word in every]
    for word in as_list(words):
        if isinstance(word, str):
            pieces = [_bare(piece) for piece in word.split()]
            starts = range(len(every) + 1 - len(pieces) if pieces else 0)
            matches = [(i, i + len(pieces)) for i in starts if bare[i : i + len(pieces)] == pieces]
        else:
            ends = word if isinstance(word, (tuple, list)) and all(map(is_integer, word)) else ()
            matches = [s for s in combinations(range(len(every) + 1), 2) if s == tuple(ends)]
        if not matches:
            raise TargetError(
                f"{show(word)} is not in the text, whose words are "
                f"{excerpt(str(bare), 300)}; give some of these, or (start, stop) with "
                f"0 <= start < stop <= {len(every)}."
            )
        spans += matches
    if not spans:
        raise TargetError("words is empty; leave it out to take all words.")
    return spans


@public("targets.emotion")
def emotion(
    clip: ClipAdapter, probe: Any, names: str | Sequence[str] | None = None, *, center: bool = False
) -> Target:
    r"""One embedding per emotion: the weights of its output neuron in a linear probe.

    .. math:: t_e = W_e \quad \text{or, with center,} \quad t_e = W_e - \frac{1}{9} \sum_c W_c

    The mean is over all nine classes, whichever emotions are chosen. A softmax does not change when
    one vector is added to the weights of every class, a cosine target does. The weights of
    ``bench.emotions.fit_probe`` sum to zero, so there the two are the same; the published ones
    have cosines of .83 to .95 with their centered forms.

    Args:
        clip: the adapter.
        probe: a :class:`captum_clip.targets.EmotionProbe` of the same model, or whatever has its
            `classes`, `emotions`, `weights`, `model` and `identity`.
        names: which of :data:`captum_clip.demo.catalog.CLASSES`; the eight emotions by default,
            "something else" on request.
        center: subtract the mean of the nine.

    Raises:
        TargetError: no probe, an unknown name, or a probe of another model: its identity differs,
            or, where it has none, its number of dimensions.

    Source: CLIP Explainability (Mamooler, EPFL), emotions.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> from captum_clip.targets import EmotionProbe
        >>> probe = EmotionProbe.load("demo/vit")
        >>> targets.emotion(load_clip("demo/vit"), probe, ["awe", "fear"]).names
        ('awe', 'fear')
    """
    # not by its class: a probe of other classes and emotions may be one of your own
    advice = "EmotionProbe.load(file) reads one"
    with expecting("an EmotionProbe", probe, advice, error=TargetError):
        classes, weights, identity = probe.classes, probe.weights, probe.identity
        chosen = probe.emotions if names is None else tuple(as_list(names))
    unknown = [name for name in chosen if name not in classes]
    expected = f"names among {', '.join(classes)}"
    expect(chosen and not unknown, expected, unknown, error=TargetError)
    width, dimension = weights.shape[1], clip.embedding_dim
    if other := identity and differing_parts(identity, clip.identity(texts=False)):
        raise TargetError(
            f"the probe was fitted on features of {probe.model or 'a model'} "
            f"with other {' and '.join(other)} than {clip.name}; fit one on features of this model."
        )
    fits = identity or dimension in (None, width)
    expected = f"a probe of {dimension} dimensions, as {clip.name} has"
    expect(fits, expected, width, "take one of this model", error=TargetError)
    centered = weights - center * weights.mean(0)  # (C, D)
    rows = centered[[classes.index(name) for name in chosen]]
    return Target.of(torch.from_numpy(rows).float().to(clip.device), chosen)
