"""What the methods for vision transformers have in common: Captum's contract around one pass."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from ..errors import InputError, UnsupportedModelError
from ..models import tower_of
from ..models.towers import Tower, ViTTower
from ..recording import Recording
from ..similarity import ClipSimilarity
from ._passes import Call, Select, plain_similarity
from ._selection import Columns, many_columns, one_column

TensorOrTuple = TypeVar("TensorOrTuple", Tensor, tuple[Tensor, ...])
Compute = Callable[[Call], tuple[Recording, Tensor, Tensor]]


def resolve_tower(method: str, forward_func: Any, layer: nn.Module | None) -> Tower:
    """The tower of a `ClipSimilarity`, or of the module that was given as `layer`.

    Raises:
        InputError: a plain callable without a layer, or something that cannot be called.
        UnsupportedModelError: the layer is no supported vision tower.
    """
    if not callable(forward_func):
        raise InputError(
            f"{method}: expected a forward function, got {type(forward_func).__name__}; pass a "
            "ClipSimilarity, or a callable images -> (B, K) with layer=model."
        )
    if layer is None:
        if isinstance(forward_func, ClipSimilarity):
            return forward_func.clip.tower
        raise InputError(
            f"{method}: with a forward function of your own, pass the model or its vision tower "
            "as `layer`, so that it is known where to look."
        )
    tower = tower_of(layer)
    if isinstance(forward_func, ClipSimilarity):
        own = forward_func.clip.tower
        if own.module is not tower.module:
            raise InputError(
                f"{method}: `layer` is another model's tower than the ClipSimilarity's; leave it "
                "out."
            )
        return own
    return tower


def check_tower(method: str, tower: Tower) -> None:
    """A tower must be what it was, and answer the same each time.

    Raises:
        InputError: BatchNorm or active dropout in training mode, or layers that were exchanged.
        UnsupportedModelError: a part was exchanged for one that is not supported.
    """
    now = tower_of(tower.module)
    if isinstance(tower, ViTTower) and isinstance(now, ViTTower):
        same = [layer.block for layer in now.layers] == [layer.block for layer in tower.layers]
        if not same:
            raise InputError(
                f"{method}: the vision tower's layers were exchanged since it was loaded; call "
                "load_clip again, or make the method anew."
            )
    reason = tower.unsteady()
    if reason is not None:
        raise InputError(
            f"{method}: the vision tower is in training mode with {reason}; call model.eval()."
        )


@contextmanager
def explaining(
    forward_func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: Any,
    select: Select,
) -> Iterator[Call]:
    """The call to explain, with gradients possible whatever the caller's mode.

    The inputs are detached, so the caller's tensors stay as they are.

    Raises:
        InputError: the inputs are no tensors.
        TargetError: the targets do not fit a `ClipSimilarity`; said before any work is done.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    for tensor in given:
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"attribute: expected a tensor of images, got {type(tensor).__name__}; "
                "clip.preprocess(images) makes one."
            )
    extra = additional_forward_args
    extra = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
    similarity = plain_similarity(forward_func)
    if similarity is not None:
        select(len(given[0]) if given[0].ndim else 0, len(similarity.bank))
    with torch.inference_mode(False), torch.enable_grad():
        images = tuple(t.detach() for t in usable(given))
        extra = tuple(usable(e) if isinstance(e, Tensor) else e for e in extra)
        yield Call(forward_func, images, extra, select)


def usable(inputs: TensorOrTuple) -> TensorOrTuple:
    """The inputs, copied where inference mode made them, since those can enter no graph."""
    if isinstance(inputs, tuple):
        return tuple(usable(tensor) for tensor in inputs)
    return inputs.clone() if inputs.is_inference() else inputs


def score_names(forward_func: Callable[..., Tensor]) -> tuple[str, ...]:
    """Names of the scores, where the forward function has them."""
    similarity = plain_similarity(forward_func)
    return () if similarity is None else similarity.target.names


def as_given(inputs: TensorOrTuple, maps: Tensor) -> TensorOrTuple:
    """A tuple for a tuple, a tensor for a tensor, as Captum's metrics expect."""
    return (maps,) if isinstance(inputs, tuple) else maps


class ViTAttribution(LayerAttribution, ABC):  # type: ignore[misc]
    """Base of the methods for CLIP vision transformers; a final class adds the two verbs.

    Args:
        forward_func: a :class:`captum_clip.ClipSimilarity`, or a callable
            images -> (B,) or (B, K) that runs the tower exactly once.
        layer: with a callable of your own, the model or its vision tower: `CLIPModel`,
            `CLIPVisionModel(WithProjection)`, OpenCLIP's `CLIP`, `CustomTextCLIP` or
            `VisionTransformer`.

    Raises:
        UnsupportedModelError: the tower is no supported vision transformer.
        InputError: a callable without a layer.
    """

    def __init__(self, forward_func: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        name = type(self).__name__
        tower = resolve_tower(name, forward_func, layer)
        if not isinstance(tower, ViTTower):
            raise UnsupportedModelError(
                f"{name} needs the attention of a vision transformer, and this tower is a "
                f"{tower.kind}; use ClipGradCam."
            )
        super().__init__(forward_func, tower.module)
        self._tower = tower

    def _attribute(
        self,
        inputs: TensorOrTuple,
        target: Any,
        extra: Any,
        compute: Compute,
        *,
        needs_target: bool = True,
    ) -> TensorOrTuple:
        target = 0 if target is None and not needs_target else target
        select = partial(one_column, target, names=score_names(self.forward_func))
        maps, _ = self._run(inputs, extra, select, compute)
        return as_given(inputs, maps)

    def _attribute_targets(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Columns,
        extra: Any,
        return_scores: bool,
        compute: Compute,
    ) -> Tensor | tuple[Tensor, Tensor]:
        select = partial(many_columns, targets, names=score_names(self.forward_func))
        maps, scores = self._run(inputs, extra, select, compute)
        return (maps, scores) if return_scores else maps

    def _run(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        extra: Any,
        select: Select,
        compute: Compute,
    ) -> tuple[Tensor, Tensor]:
        check_tower(type(self).__name__, self._tower)
        with explaining(self.forward_func, inputs, extra, select) as call:
            record, tokens, scores = compute(call)  # tokens (K', B, s)
            assert record.size is not None
            grid = self._tower.grid(*record.size)
            patches = tokens[..., 1:].detach().transpose(0, 1)
            return patches.reshape(*patches.shape[:2], *grid).contiguous(), scores

    def _layers(self, start_layer: int) -> range:
        """Layers from `start_layer` (0-based, inclusive) to the last.

        Raises:
            InputError: there is no such layer.
        """
        count = len(self._tower.layers)
        if isinstance(start_layer, bool) or not isinstance(start_layer, int):
            raise InputError(f"start_layer: expected a layer's index, got {start_layer!r}.")
        if not 0 <= start_layer < count:
            raise InputError(
                f"start_layer: {start_layer} is out of range; the tower has layers 0 to "
                f"{count - 1}."
            )
        return range(start_layer, count)


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """One of the named choices.

    Raises:
        InputError: another value.
    """
    if value not in choices:
        raise InputError(f"{option}: expected one of {', '.join(choices)}, got {value!r}.")
