"""Saliency maps for CLIP as Captum attributions: why does this image fit this text?

::

    explain                  images and texts in, an Explanation out
    classify                 the most probable of some classes, as an Explanation
    Explanation              maps and scores; draws, saves and loads itself
    Comparison               the explanations of several models, in one figure
    load_clip                a name, a folder or a model -> an adapter for all that follows
    ClipSimilarity           a forward function: images -> cosine similarities to targets
    TextSimilarity           a forward function: token ids -> cosine similarities to images
    ClipPairSimilarity       a forward function: images, and texts or images -> cosines of pairs
    Target                   what to look for: directions in the embedding space

    DirectContribution       direct contributions: what each position adds to the score
    ConservativePropagation  gradient times input, gates detached: the same through all layers
    ClipGradCam              Grad-CAM on a convolutional tower
    LastGradAttention        last-layer gradient times every layer's attention (Mamooler)
    AllGradAttention         every layer's gradient times its attention (Chefer et al.)
    AttentionGradCam         Grad-CAM on the last attention of a vision transformer
    AttentionRollout         attention chained over all layers, whatever the target
    LayerAttention           the attention of one layer, or its gradient
    LeGrad                   gradient of the last layers' attention (Bousselham et al.)
    GradEclip                last-layer values weighted by their gradient (Zhao et al.)
    PatchSimilarity          similarity of each patch to the target; not the model's score
    CamFamily                the classes of pytorch-grad-cam
    DirectInteraction        what each pair of a word and a region adds to the score

    attr                     the methods, and how to register one
    targets                  texts, images, words and emotions as targets
    maps                     maps resized and normalised
    metrics                  what measures whether a map is right
    visualization            pictures of maps
    figures                  Mamooler's figures
    emotions                 probes from image features to the emotions of ArtEmis
    evaluation               methods compared on data; studies of folders
    search                   folders that were read once and answer every later text
    errors                   what this package raises
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import (
        attr,
        emotions,
        errors,
        evaluation,
        figures,
        maps,
        metrics,
        search,
        targets,
        visualization,
    )
    from .attr import (
        AllGradAttention,
        AttentionGradCam,
        AttentionRollout,
        CamFamily,
        ClipGradCam,
        ConservativePropagation,
        DirectContribution,
        DirectInteraction,
        GradEclip,
        LastGradAttention,
        LayerAttention,
        LeGrad,
        PatchSimilarity,
    )
    from .explaining.classify import classify
    from .explaining.explain import explain
    from .explaining.explanation import Comparison, Explanation
    from .models import load_clip
    from .similarity import ClipPairSimilarity, ClipSimilarity, TextSimilarity
    from .targets import Target

__all__ = [
    "AllGradAttention",
    "AttentionGradCam",
    "AttentionRollout",
    "CamFamily",
    "ClipGradCam",
    "ClipPairSimilarity",
    "ClipSimilarity",
    "Comparison",
    "ConservativePropagation",
    "DirectContribution",
    "DirectInteraction",
    "Explanation",
    "GradEclip",
    "LastGradAttention",
    "LayerAttention",
    "LeGrad",
    "PatchSimilarity",
    "Target",
    "TextSimilarity",
    "__version__",
    "attr",
    "classify",
    "emotions",
    "errors",
    "evaluation",
    "explain",
    "figures",
    "load_clip",
    "maps",
    "metrics",
    "search",
    "targets",
    "visualization",
]

_HOMES = {name: "attr" for name in __all__ if name[0].isupper()} | {
    "ClipPairSimilarity": "similarity",
    "ClipSimilarity": "similarity",
    "Comparison": "explaining.explanation",
    "Explanation": "explaining.explanation",
    "Target": "targets",
    "TextSimilarity": "similarity",
    "classify": "explaining.classify",
    "explain": "explaining.explain",
    "load_clip": "models",
}
"""Public name -> the module that it is imported from when it is first used."""

# Hidden from mypy, which would take any name for one that exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        path = f"{__name__}.{_HOMES.get(name, name)}"
        try:
            module = import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:  # something that the module needs
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        return globals().setdefault(name, getattr(module, name) if name in _HOMES else module)


def __dir__() -> list[str]:
    return sorted(__all__)
