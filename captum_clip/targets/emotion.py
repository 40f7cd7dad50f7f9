"""Targets from emotions: what makes this image amusing, sad or fearful to the model?"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..checks import as_list
from ..emotions import CLASSES, EMOTIONS, EmotionProbe
from ..errors import TargetError, public
from ..models import ClipAdapter, differing_parts
from .target import Target


@public("targets.emotion")
def emotion(
    clip: ClipAdapter,
    probe: EmotionProbe | str | Path,
    names: str | Sequence[str] | None = None,
    *,
    centre: bool = False,
) -> Target:
    r"""One embedding per emotion: the weights of its output neuron in a linear probe.

    .. math:: t_e = W_e \quad \text{or, with centre,} \quad t_e = W_e - \frac{1}{9} \sum_c W_c

    The mean is over all nine classes, whichever emotions are chosen. A softmax does not change when
    one vector is added to the weights of every class, a cosine target does. The weights of
    :func:`captum_clip.emotions.fit_probe` sum to zero, so there the two are the same; the published
    ones have cosines of .83 to .95 with their centred forms.

    Args:
        clip: the adapter.
        probe: fitted on features of the same model, or what ``EmotionProbe.load`` takes: a file
            that ``EmotionProbe.save`` wrote, the encodings that Mamooler published, or the name of
            an embedded model such as "demo/vit".
        names: which of :data:`captum_clip.emotions.CLASSES`; the eight emotions by default,
            "something else" on request.
        centre: subtract the mean of the nine.

    Raises:
        InputError: a file that cannot be read or is something else.
        TargetError: an unknown name, or a probe of another model: its identity differs, or,
            where it has none, its number of dimensions.

    Source: CLIP Explainability (Mamooler, EPFL), emotions.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> targets.emotion(load_clip("demo/vit"), "demo/vit", ["awe", "fear"]).names
        ('awe', 'fear')
    """
    if isinstance(probe, (str, Path)):
        probe = EmotionProbe.load(probe)
    if not isinstance(probe, EmotionProbe):
        raise TargetError(f"expected an EmotionProbe or a file of one, got {type(probe).__name__}.")
    chosen = EMOTIONS if names is None else tuple(as_list(names))
    unknown = [name for name in chosen if name not in CLASSES]
    if unknown or not chosen:
        raise TargetError(
            f"expected names among {', '.join(CLASSES)}; got "
            f"{', '.join(map(repr, unknown)) or 'none at all'}."
        )
    width, expected = probe.weights.shape[1], clip.embedding_dim
    if other := probe.identity and differing_parts(probe.identity, clip.identity(texts=False)):
        raise TargetError(
            f"the probe was fitted on features of {probe.model or 'a model'} "
            f"with other {' and '.join(other)} than {clip.name}; fit one on features of this model."
        )
    if not probe.identity and expected is not None and width != expected:
        raise TargetError(
            f"the probe has {width} dimensions, and {clip.name} embeds in "
            f"{expected}; take one of this model."
        )
    weights = torch.from_numpy(probe.weights)  # (9, D)
    if centre:
        weights = weights - weights.mean(0)
    embeddings = weights[[CLASSES.index(name) for name in chosen]]
    return Target.of(embeddings.float().to(clip.device), chosen)
