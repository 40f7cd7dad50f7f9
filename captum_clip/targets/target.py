"""Targets: K directions in CLIP's embedding space, from texts, words, images and emotions."""

import re
import string
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
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
_ZERO = 1e-6  # A direction this short, next to unit encodings, is rounding.
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
            # A copy of a vision tower, made for a comparison, often comes without a tokenizer. It
            # embeds no text that could be compared.
            return
        if maker is None:
            differs = self.name != clip.name
        else:
            parts = {"texts": source != "image", "images": source == "image"}
            differing = differing_parts(maker.identity(**parts), clip.identity(**parts))
            differs = bool(differing)
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
        source: "text" or "image" if all embeddings are of texts, or all of images; else None.
        maker: the model that made them; None if they were given as numbers.

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
        """Make a target of embeddings (K, D) of any length, detached and in at least float32.

        Raises:
            TargetError: not (K, D), not finite, one without direction, or not K names.
        """
        check_shape("embeddings", embeddings, "(K, D)", error=TargetError)
        named = f"{len(embeddings)} names of as many embeddings"
        expect(len(names) == len(embeddings), named, names, error=TargetError)
        zero = _ZERO
        if embeddings.is_floating_point():
            zero = max(zero, torch.finfo(embeddings.dtype).eps)
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
        is_target = isinstance(other, Target)
        advice = "targets.embedding makes one of numbers"
        expect(is_target, "another Target to subtract", other, advice, error=TargetError)
        fits = len(other) in (1, len(self)) or len(self) == 1
        expect(fits, f"1 or {len(self)} embeddings to subtract", len(other), error=TargetError)
        _check_sizes([self, other])
        differences = self.embeddings - other.embeddings.to(self.embeddings.device)
        # The name of a single embedding is repeated, as the embedding is.
        minuends = self.names * (len(differences) // len(self))
        subtrahends = other.names * (len(differences) // len(other))
        names = [f"{a} - {b}" for a, b in zip(minuends, subtrahends, strict=True)]
        return Target.of(differences, names, *_common_origin([self, other]))

    def __add__(self, other: object) -> "Target":
        raise TargetError(
            "targets are not added up; targets.concatenate([a, b]) joins them, and "
            "targets.embedding(a.embeddings + b.embeddings) is their sum."
        )

    # Otherwise NumPy would subtract each embedding on its own, without this class.
    __array_ufunc__ = None

    def __rsub__(self, other: Any) -> "Target":
        # Python comes here only if the left side is no Target, which the subtraction refuses.
        return self.__sub__(other)

    @public("Target")
    def __getitem__(self, key: int | str | slice | Sequence[int] | Tensor) -> "Target":
        chosen = self._positions(key)
        if not chosen:
            raise TargetError(f"{show(key)} picks no embedding; the names are {list(self.names)}.")
        return replace(
            self,
            embeddings=self.embeddings[chosen],
            norms=self.norms[chosen],
            names=tuple(self.names[index] for index in chosen),
        )

    def _positions(self, key: Any) -> list[int]:
        if isinstance(key, str):
            return [index for index, name in enumerate(self.names) if name == key]
        expected = "indices, a slice or a name"
        # A slice of letters, a ragged list and a tensor without values raise errors of their own.
        with expecting(expected, key, error=TargetError):
            if isinstance(key, slice):
                return list(range(len(self)))[key]
            values = key.tolist() if isinstance(key, Tensor) else key
            indices = np.atleast_1d(values).tolist()
        expect(all(map(is_integer, indices)), expected, key, error=TargetError)
        if any(not -len(self) <= index < len(self) for index in indices):
            raise IndexError(f"index {show(key)} is out of range for {len(self)} targets.")
        return [index % len(self) for index in indices]

    def to(self, device: torch.device | str) -> "Target":
        """Move the target to another device."""
        return replace(self, embeddings=self.embeddings.to(device), norms=self.norms.to(device))

    def __repr__(self) -> str:
        return f"Target({list(self.names)})"


def _common_origin(targets: Sequence[Target]) -> tuple[Origin | None, Maker | None]:
    """The source that all targets share, and the maker of those that have one."""
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
    """Join several targets, their embeddings one after the other.

    Raises:
        TargetError: nothing was given, or the embeddings differ in length.
    """
    targets = list(targets)
    are_targets = targets and all(isinstance(target, Target) for target in targets)
    expect(are_targets, "one or more Targets", targets, error=TargetError)
    _check_sizes(targets)
    device = targets[0].embeddings.device
    names: list[str] = []
    for target in targets:
        names += target.names
    return Target(
        torch.cat([target.embeddings.to(device) for target in targets]),
        torch.cat([target.norms.to(device) for target in targets]),
        tuple(names),
        *_common_origin(targets),
    )


@public("targets.embedding")
def embedding(embeddings: Tensor | Any, names: Sequence[str] | None = None) -> Target:
    """Make targets of embeddings (K, D) or one (D,), tensor or array, of any length.

    Args:
        embeddings: directions in the model's embedding space.
        names: one name per embedding; by default "embedding 0", "embedding 1", ...

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
    if tensor.ndim == 1:
        tensor = tensor[None]
    if names is None:
        count = len(tensor) if tensor.ndim else 0
        names = [f"embedding {index}" for index in range(count)]
    return Target.of(tensor, as_list(names))


@public("targets.image")
def image(
    clip: ClipAdapter, images: ImageLike | Sequence[ImageLike], names: Sequence[str] | None = None
) -> Target:
    """Make one embedding per reference image, L2-normalized.

    Args:
        clip: the adapter.
        images: images as :meth:`ClipAdapter.preprocess` takes them.
        names: one name per image; by default file stems, or "image 0", "image 1", ...

    Raises:
        InputError: an image cannot be read.
        TargetError: not as many names as images.
    """
    with torch.no_grad():
        embeddings = clip.encode_image(clip.preprocess(images))
    if names is None:
        names = [f"image {index}" for index in range(len(embeddings))]
        sources = images if isinstance(images, (list, tuple)) else [images]
        for index, source in enumerate(sources):
            if isinstance(source, (str, Path)):
                names[index] = Path(source).stem
    return Target.of(embeddings, as_list(names), "image", Maker(clip))


@public("targets.text")
def text(
    clip: ClipAdapter,
    texts: str | Sequence[str],
    *,
    templates: str | Sequence[str] | None = None,
    allow_empty: bool = False,
) -> Target:
    r"""Make one L2-normalized embedding per text.

    With prompt templates it is the mean of the unit embeddings of the text in every template,
    normalized again (Radford et al. 2021, section 3.1.4):

    .. math:: t = \frac{m}{|m|}, \quad m = \frac{1}{P} \sum_p \frac{enc(p(text))}{|enc(p(text))|}

    Args:
        clip: the adapter.
        texts: one text or several.
        templates: one or several prompts with ``{}`` where the text goes, as "a photo of a {}.".
        allow_empty: accept "" as a text: a prompt without content, useful as a baseline.

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
    expected = "templates with one {} for the text"
    expect(templates, expected, templates, error=TargetError)
    for template in templates:
        fits = isinstance(template, str) and template.count("{}") == 1
        expect(fits, expected, templates, error=TargetError)
    prompts = []
    for text in texts:
        prompts += [template.replace("{}", text) for template in templates]
    embeddings = F.normalize(_encode(clip, prompts), dim=-1)
    by_template = embeddings.view(len(texts), len(templates), -1)  # (K, P, D)
    return Target.of(by_template.mean(1), texts, "text", Maker(clip))


def _checked_texts(texts: str | Sequence[str], *, allow_empty: bool) -> list[str]:
    """The texts as a list; TargetError for an empty one."""
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
    r"""Make one direction for each word or span w of the text t: what the text loses without it.

    .. math:: t_w \propto \widehat{enc}(t) - \widehat{enc}(t \setminus w)

    with both encodings L2-normalized first.

    The text is split at white space. A word is removed by its position, with the white space before
    it, and the rest stays as it is. So a repeated word gives one target per occurrence. ``.norms``
    holds the length of each difference: how much the word matters to the text at all. The
    embeddings themselves have unit length, so a word map differs from the report's, which keeps the
    length, by second order. Where nothing is left, the empty encoding is subtracted.

    Args:
        clip: the adapter.
        text: the whole text.
        words: the selected words; by default all. Each is a word or span as it stands in the text
            ("horse", "red hair"; outer punctuation does not count), or (start, stop) positions of
            words.

    Raises:
        TargetError: an empty text, a word that is not in it, or one whose removal changes nothing.

    Source: CLIP Explainability (Mamooler, EPFL), word-wise saliency.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> targets.words(load_clip("demo/vit"), "a horse and a dog.", ["horse", "dog"]).names
        ('horse', 'dog')
    """
    _checked_texts([text], allow_empty=False)
    all_words = text.split()
    pieces = _pieces(text)
    spans = word_spans(all_words, words)
    texts = [text]
    names = []
    for start, stop in spans:
        # Removed by position: `re.sub` would take the word as a pattern, and "a" would remove
        # every a.
        rest = "".join(pieces[:start] + pieces[stop:])
        texts.append(rest.lstrip() if start == 0 else rest)
        names.append(_bare(" ".join(all_words[start:stop])))
    encodings = _encode(clip, texts)
    return Target.of(encodings[:1] - encodings[1:], names, "text", Maker(clip))


@public("targets.word_tokens")
def word_tokens(clip: ClipAdapter, text: str) -> tuple[tuple[str, range], ...]:
    """Split a text at white space, and find the positions of each word's tokens.

    Sum the values of a word's tokens, as methods give them on a
    :class:`captum_clip.TextSimilarity`, for the value of the word. Start, end and padding belong to
    no word. Where white space has tokens of its own, as in RoBERTa, they belong to the word after
    it.

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
    # The text is cut after each word. Its own white space is kept, since a byte-level tokenizer has
    # tokens for that, too.
    beginnings = ["", *accumulate(_pieces(text)[: len(words)])]
    text_ids, *beginning_ids = clip.text_inputs([text, *beginnings])[0].tolist()
    counts = [clip.count_tokens(beginning) for beginning in beginnings]
    # The empty text is start, end and padding alone, so words begin where the two differ.
    pairs = zip(text_ids, beginning_ids[0], strict=True)
    differing = [position for position, (a, b) in enumerate(pairs) if a != b]
    if not differing:
        raise TargetError(f"{text!r} has no tokens of its own.")
    # Where a count is unknown, the lists differ in length, and an error follows.
    known_counts = [count for count in counts if count is not None]
    stops = [differing[0] + count - known_counts[0] for count in known_counts]
    are_prefixes = all(
        ids[:stop] == text_ids[:stop] for ids, stop in zip(beginning_ids, stops, strict=False)
    )
    if len(known_counts) < len(counts) or stops != sorted(stops) or not are_prefixes:
        raise InputError(
            f"the tokenizer does not split {text!r} at spaces, or does not count tokens; "
            "write the text with plain spaces, or sum the values over each word yourself."
        )
    positions = [range(first, last) for first, last in pairwise(stops)]
    return tuple(zip(words, positions, strict=True))


def _pieces(text: str) -> list[str]:
    """The words of ``text.split()``, each with the white space before it, then the rest."""
    return re.findall(r"\s*\S+|\s+$", text)


def _bare(word: str) -> str:
    """A word without the punctuation around it, unless it is nothing else."""
    return word.strip(_PUNCTUATION) or word


def word_spans(every: list[str], words: Sequence[str | Span] | None) -> list[Span]:
    """The (start, stop) of each selected word, and of a repeated word each occurrence.

    Raises:
        TargetError: a word that is not in the text, as for :func:`words`.
    """
    if words is None:
        return [(index, index + 1) for index in range(len(every))]
    spans: list[Span] = []
    bare = [_bare(word) for word in every]
    for word in as_list(words):
        matches = _occurrences(bare, word) if isinstance(word, str) else _valid_span(bare, word)
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


def _occurrences(bare: list[str], phrase: str) -> list[Span]:
    """The spans of a text's words that equal a word or several."""
    pieces = [_bare(piece) for piece in phrase.split()]
    if not pieces:
        return []
    spans = []
    for start in range(len(bare) + 1 - len(pieces)):
        stop = start + len(pieces)
        if bare[start:stop] == pieces:
            spans.append((start, stop))
    return spans


def _valid_span(bare: list[str], span: Any) -> list[Span]:
    """A span, if it is two positions of a text's words; otherwise none."""
    is_pair = isinstance(span, (tuple, list)) and len(span) == 2
    if not is_pair or not all(map(is_integer, span)):
        return []
    start, stop = span
    return [(start, stop)] if 0 <= start < stop <= len(bare) else []


@public("targets.emotion")
def emotion(
    clip: ClipAdapter, probe: Any, names: str | Sequence[str] | None = None, *, center: bool = False
) -> Target:
    r"""Make one embedding per emotion: the weights of its output neuron in a linear probe.

    .. math:: t_e = W_e \quad \text{or, with center,} \quad t_e = W_e - \frac{1}{9} \sum_c W_c

    The mean is over all nine classes, whichever emotions are chosen. A softmax does not change when
    one vector is added to the weights of every class, but a cosine target does. The weights of
    ``bench.emotions.fit_probe`` sum to zero, so for them the two are the same; the published
    weights have cosines of .83 to .95 with their centered forms.

    Args:
        clip: the adapter.
        probe: a :class:`captum_clip.targets.EmotionProbe` of the same model, or any object with
            its `classes`, `emotions`, `weights`, `model` and `identity`.
        names: some of :data:`captum_clip.demo.catalog.CLASSES`; the eight emotions by default,
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
    # The class of a probe is not checked, since a probe of other classes may be a user's own.
    advice = "EmotionProbe.load(file) reads one"
    with expecting("an EmotionProbe", probe, advice, error=TargetError):
        classes = probe.classes
        weights = probe.weights
        identity = probe.identity
        chosen = probe.emotions if names is None else tuple(as_list(names))
    unknown = [name for name in chosen if name not in classes]
    expected = f"names among {', '.join(classes)}"
    expect(chosen and not unknown, expected, unknown, error=TargetError)
    if identity:
        differing = differing_parts(identity, clip.identity(texts=False))
        if differing:
            raise TargetError(
                f"the probe was fitted on features of {probe.model or 'a model'} "
                f"with other {' and '.join(differing)} than {clip.name}; fit one on features of "
                "this model."
            )
    else:
        width = weights.shape[1]
        dimension = clip.embedding_dim
        fits = dimension in (None, width)
        expected = f"a probe of {dimension} dimensions, as {clip.name} has"
        expect(fits, expected, width, "take one of this model", error=TargetError)
    if center:
        weights = weights - weights.mean(0)  # (C, D)
    rows = weights[[classes.index(name) for name in chosen]]
    return Target.of(torch.from_numpy(rows).float().to(clip.device), chosen)
