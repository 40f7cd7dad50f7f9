"""Targets from emotions: what makes this image amusing, sad or fearful to the model?"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt
import torch

from ..checks import as_list, expect
from ..errors import TargetError, public
from ..models import ClipAdapter, differing_parts
from .target import Target


@runtime_checkable
class Probe(Protocol):
    """A linear probe of image features, as :class:`captum_clip.emotions.EmotionProbe` is one.

    Its emotions are those of its classes that are explained by default.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes."""

    @property
    def emotions(self) -> tuple[str, ...]:
        """The classes that are explained by default."""

    @property
    def weights(self) -> npt.NDArray[Any]:
        """(C, D), a row for each class."""

    @property
    def model(self) -> str:
        """The name of the CLIP that it was fitted on, "" where that is not known."""

    @property
    def identity(self) -> dict[str, str]:
        """The ``clip.identity()`` of that CLIP, or empty."""


@public("targets.emotion")
def emotion(
    clip: ClipAdapter,
    probe: Probe,
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
        probe: fitted on features of the same model; ``EmotionProbe.load`` reads one.
        names: which of :data:`captum_clip.emotions.CLASSES`; the eight emotions by default,
            "something else" on request.
        centre: subtract the mean of the nine.

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
    reads = "EmotionProbe.load(file) reads one"
    expect(isinstance(probe, Probe), "an EmotionProbe", probe, reads, error=TargetError)
    chosen = probe.emotions if names is None else tuple(as_list(names))
    unknown = [name for name in chosen if name not in probe.classes]
    known = f"names among {', '.join(probe.classes)}"
    expect(chosen and not unknown, known, unknown, error=TargetError)
    width, expected = probe.weights.shape[1], clip.embedding_dim
    if other := probe.identity and differing_parts(probe.identity, clip.identity(texts=False)):
        raise TargetError(
            f"the probe was fitted on features of {probe.model or 'a model'} "
            f"with other {' and '.join(other)} than {clip.name}; fit one on features of this model."
        )
    fits = probe.identity or expected in (None, width)
    wanted = f"a probe of {expected} dimensions, as {clip.name} has"
    expect(fits, wanted, width, "take one of this model", error=TargetError)
    weights = probe.weights - centre * probe.weights.mean(0)  # (C, D)
    rows = weights[[probe.classes.index(name) for name in chosen]]
    return Target.of(torch.from_numpy(rows).float().to(clip.device), chosen)
