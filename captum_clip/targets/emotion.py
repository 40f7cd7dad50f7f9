"""Targets from emotions: what makes this image amusing, sad or fearful to the model?"""

from collections.abc import Sequence
from typing import Any

import torch

from ..checks import as_list, expect, expecting
from ..errors import TargetError, public
from ..models import ClipAdapter, differing_parts
from .target import Target


@public("targets.emotion")
def emotion(
    clip: ClipAdapter,
    probe: Any,
    names: str | Sequence[str] | None = None,
    *,
    center: bool = False,
) -> Target:
    r"""One embedding per emotion: the weights of its output neuron in a linear probe.

    .. math:: t_e = W_e \quad \text{or, with center,} \quad t_e = W_e - \frac{1}{9} \sum_c W_c

    The mean is over all nine classes, whichever emotions are chosen. A softmax does not change when
    one vector is added to the weights of every class, a cosine target does. The weights of
    :func:`captum_clip.emotions.fit_probe` sum to zero, so there the two are the same; the published
    ones have cosines of .83 to .95 with their centered forms.

    Args:
        clip: the adapter.
        probe: a :class:`captum_clip.emotions.EmotionProbe` of the same model, or whatever has its
            `classes`, `emotions`, `weights`, `model` and `identity`.
        names: which of :data:`captum_clip.emotions.CLASSES`; the eight emotions by default,
            "something else" on request.
        center: subtract the mean of the nine.

    Raises:
        TargetError: no probe, an unknown name, or a probe of another model: its identity differs,
            or, where it has none, its number of dimensions.

    Source: CLIP Explainability (Mamooler, EPFL), emotions.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> from captum_clip.emotions import EmotionProbe
        >>> probe = EmotionProbe.load("demo/vit")
        >>> targets.emotion(load_clip("demo/vit"), probe, ["awe", "fear"]).names
        ('awe', 'fear')
    """
    # not by its class: the core knows nothing of the data sets that a probe is fitted on
    with expecting(
        "an EmotionProbe", probe, "EmotionProbe.load(file) reads one", error=TargetError
    ):
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
