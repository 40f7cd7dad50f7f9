"""Saliency maps for CLIP as Captum attributions: why does this image fit this text?

::

    explain                  images and texts in, an Explanation out
    classify                 the most probable of some classes, as an Explanation
    Explanation              maps and scores; draws, saves and loads itself
    Comparison               the explanations of several models, in one figure
    check                    which methods hold on your model, and what a map costs there
    ModelCheck               what a check found: a table, and a file to attach to an issue
    load_clip                a name, a folder or a model -> an adapter for all that follows
    ClipSimilarity           a forward function: images -> cosine similarities to targets
    TextSimilarity           a forward function: token ids -> cosine similarities to images
    ClipPairSimilarity       a forward function: images, and texts or images -> cosines of pairs
    Target                   what to look for: directions in the embedding space

    DirectContribution       direct contributions: what each position adds to the score
    ConservativePropagation  gradient times input, gates detached: the same through all layers
    ReaderRemoval            what is lost if the token that is read does not see a region
    ClipGradCam              Grad-CAM on a convolutional tower
    LastGradAttention        last-layer gradient times every layer's attention
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
    maps                     maps resized and normalized, and losses on them
    metrics                  what measures whether a map is right
    visualization            pictures of maps
    bench                    methods compared on data; studies of folders; the report's figures
    apps                     the page, search, heads, change, late interaction
    errors                   what this package raises
"""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__all__: list[str]


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` of a package from the imports in its stub.

    A module is imported when a name of it is first used. The library `lazy_loader` would do the
    same, but it refuses stubs that import from a parent package, as those of `bench` and
    `visualization` do.

    Args:
        package: the package's `__name__`.
        file: its `__file__`, beside which the stub has one name a line: ``from .x import y as y``.
    """
    stub = Path(file).with_suffix(".pyi").read_text("utf-8")
    imports = re.findall(r"^from (\.\S*) import (\w+)", stub, re.MULTILINE)
    module_of_name = {name: module for module, name in imports}

    def find(name: str) -> Any:
        # Python also asks here for submodules that are not public, such as `explaining`.
        module = module_of_name.get(name, ".")
        is_submodule = module == "."
        path = f".{name}" if is_submodule else module
        try:
            imported = import_module(path, package)
        except ModuleNotFoundError as error:
            # Another name is a package that the module needs and that is not installed.
            if error.name != f"{package}{path}":
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        value = imported if is_submodule else getattr(imported, name)
        # Python does not call `__getattr__` for a name that the package has.
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted(module_of_name)


__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()
