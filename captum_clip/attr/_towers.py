"""The tower that a method explains: found once, and looked at again before every call."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..checks import is_integer
from ..errors import InputError, UnsupportedModelError
from ..models import tower_of
from ..models.library import runs_library_code
from ..models.text import TextTower
from ..models.towers import ResNetTower, Tower, ViTTower
from ..similarity import ClipSimilarity, Similarity, TextSimilarity


def check_layers(tower: ViTTower, start_layer: int) -> range:
    """Layers from `start_layer` (0-based, inclusive) to the last, then the probe if any."""
    count = len(tower.attentions)
    if not is_integer(start_layer):
        raise InputError(f"start_layer: expected a layer's index, got {start_layer!r}.")
    if not 0 <= start_layer < count:
        raise InputError(
            f"start_layer: {start_layer} is out of range; the tower has layers 0 to {count - 1}."
        )
    return range(start_layer, count)


def resolve_tower(method: str, forward_func: Any, layer: nn.Module | None) -> Tower:
    """The tower of a `ClipSimilarity`, or of the module that was given as `layer`."""
    if not callable(forward_func):
        raise InputError(
            f"{method}: expected a forward function, got {type(forward_func).__name__}; pass a "
            "ClipSimilarity, or a callable images -> (B, K) with layer=model."
        )
    if isinstance(forward_func, TextSimilarity):
        if layer is not None:
            raise InputError(f"{method}: a TextSimilarity knows its tower; leave `layer` out.")
        return forward_func.tower
    own = forward_func.clip.tower if isinstance(forward_func, ClipSimilarity) else None
    given = None if layer is None else tower_of(layer)
    tower = own or given
    if tower is None:
        raise InputError(
            f"{method}: with a forward function of your own, pass the model or its vision tower "
            "as `layer`, so that it is known where to look."
        )
    if given is not None and tower.module is not given.module:
        raise InputError(
            f"{method}: `layer` is another model's tower than the ClipSimilarity's; leave it out."
        )
    return tower


def check_tower(method: str, forward_func: Any, tower: Tower) -> None:
    """A tower must be what it was, and answer the same each time."""
    if isinstance(tower, TextTower) and not tower.is_unmodified:
        raise UnsupportedModelError(
            f"{method}: the text tower is not its library's own code from the last block on; take "
            "hooks and patched methods away."
        )
    is_similarity = isinstance(forward_func, Similarity)
    if isinstance(forward_func, TextSimilarity):
        now: Tower = forward_func.clip.text_tower
    else:
        now = tower_of(forward_func.clip.model if is_similarity else tower.module)
    # of a callable's own model only the tower is known, not what projects its output
    before, after = (_parts(t, projection=is_similarity) for t in (tower, now))
    if [id(part) for part in before] != [id(part) for part in after]:
        raise InputError(
            f"{method}: the {_noun(tower)}, a layer of it or its projection was exchanged since it "
            "was loaded; call load_clip again, or make the method anew."
        )
    for index, attention in enumerate(tower.attentions if isinstance(tower, ViTTower) else ()):
        for module in (attention.input_module, attention.output_module):
            if not runs_library_code(module):
                raise UnsupportedModelError(
                    f"{method}: the {type(module).__name__} of layer {index} has a forward of its "
                    "own, so what it attends to is not known; use the library's own."
                )
    reason = tower.nondeterminism()
    if reason is not None:
        raise InputError(
            f"{method}: the {_noun(tower)} is in training mode with {reason}; call model.eval()."
        )


def _noun(tower: Tower) -> str:
    return "text tower" if isinstance(tower, TextTower) else "vision tower"


def _parts(tower: Tower, *, projection: bool) -> list[nn.Module | None]:
    """The modules that a tower keeps, and hooks would be set on."""
    parts: list[nn.Module | None]
    if isinstance(tower, TextTower):
        parts = [tower.embedding_table, *tower.head_modules]
    else:
        parts = [tower.module, *([tower.projection_module] if projection else [])]
    if isinstance(tower, ResNetTower):
        return [*parts, tower.stage]
    assert isinstance(tower, ViTTower)
    parts += [layer.block for layer in tower.layers]
    parts += () if tower.pooling_head is None else tower.pooling_head.modules
    return parts + [part for a in tower.attentions for part in (a.input_module, a.output_module)]
