"""What all methods have in common: Captum's contract around one pass, and the two verbs."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial, wraps
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from ..errors import CaptureError, InputError, UnsupportedModelError
from ..models.text import TextTower
from ..models.towers import Kind, ResNetTower, Tower, ViTTower
from ..recording import Recording
from ..similarity import TextSimilarity
from ._call import Call, Columns, many_columns, one_column, plain_similarity
from ._towers import check_layers, check_tower, resolve_tower

TensorOrTuple = TypeVar("TensorOrTuple", Tensor, tuple[Tensor, ...])


class Computed(NamedTuple):
    """What a method's formula gives.

    Attributes:
        record: what was recorded.
        values: maps of the K' targets, before `_on_grid` brings them on the grid.
        scores: (B, K').
        rest: (B, K') what an additive method's maps leave of the scores.
    """

    record: Recording
    values: Tensor
    scores: Tensor
    rest: Tensor | None = None


class ClipAttribution(LayerAttribution, ABC):  # type: ignore[misc]
    """Base of the methods: a final class adds its formula, `_compute`, and what is true of it.

    The keyword-only arguments of `_compute` are the method's options; both verbs take them.

    Args:
        forward_func: a :class:`captum_clip.ClipSimilarity`, a
            :class:`captum_clip.TextSimilarity`, whose maps are (B, K, T), or a callable
            images -> (B,) or (B, K) that runs the tower exactly once.
        layer: with a callable of your own, the model or its vision tower.

    Attributes:
        name: on the command line.
        towers: kinds of towers that it explains.
        signed: what speaks against the target is below zero in its maps. Where it is not, the map
            of ``-target`` is the negative map.
        needs_target: its maps depend on the target.
        additive: its maps and a rest add up to the score, and both verbs take ``return_rest``.
        costly: it takes many forward passes per map, so an evaluation gives it fewer images.
        published: options of the map that its paper draws, where Captum's default is another.
        leading: the option whose value follows its name without being named: ``cam:LayerCAM``.
        listed: whether it is offered beside the others, or only taken where it is named.
    """

    name: ClassVar[str]
    towers: ClassVar[tuple[Kind, ...]]
    signed: ClassVar[bool] = False
    needs_target: ClassVar[bool] = True
    costly: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    listed: ClassVar[bool] = True
    leading: ClassVar[str | None] = None
    published: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    _tower: Tower

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_compute" in vars(cls):
            for verb in ("attribute", "attribute_targets"):
                if verb not in vars(cls):
                    setattr(cls, verb, _with_options(cls, verb))

    def __init__(self, forward_func: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        name = type(self).__name__
        tower = resolve_tower(name, forward_func, layer)
        if tower.kind == "text" and "text" not in self.towers:
            raise UnsupportedModelError(
                f"{name} needs {self._needs}, and a text has words, not a grid; use "
                "DirectContribution, ConservativePropagation or LastGradAttention."
            )
        if tower.kind not in self.towers:
            raise UnsupportedModelError(
                f"{name} needs {self._needs}, and this tower is a {tower.kind}; {self._instead}."
            )
        # what Captum calls the layer
        part = tower.stage if isinstance(tower, ResNetTower) else tower.module
        super().__init__(forward_func, part)
        self._tower = tower

    _needs: ClassVar[str]  # of the tower, as its error says
    _instead: ClassVar[str]  # what to do with another tower

    @abstractmethod
    def _compute(self, call: Call) -> Computed:
        """The formula."""

    def _on_grid(self, record: Recording, values: Tensor) -> Tensor:
        """Maps (B, K', ..., h, w), of texts (B, K', ..., T), of values (K', B, ...) as computed."""
        values = values.transpose(0, 1)
        if not isinstance(self._tower, ViTTower):
            return values
        if isinstance(self._tower, TextTower):
            assert record.size is not None
            return values[..., : record.size[1]]  # without a class token at the end
        return record.on_grid(self._tower, values)

    @classmethod
    def is_signed(cls, **options: Any) -> bool:
        """`signed` with these options."""
        return cls.signed

    @classmethod
    def depends_on_target(cls, **options: Any) -> bool:
        """`needs_target` with these options."""
        return cls.needs_target

    @classmethod
    def is_costly(cls, **options: Any) -> bool:
        """`costly` with these options."""
        return cls.costly

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise InputError for options that only the class itself can tell, before any work."""

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Any = None,
        additional_forward_args: Any = None,
        **options: Any,
    ) -> Any:
        """Maps (B, 1, h, w) of one target per image, raw, on the tower's grid.

        With ``return_rest`` of an additive method (maps, rest (B, 1)), the rest being the part of
        the score that no position adds: maps.sum((-2, -1)) + rest = scores.

        Args:
            inputs: preprocessed images (B, 3, H, W), or what the forward function takes first.
            target: index of a score, or one index per image; None where there is only one score.
            additional_forward_args: further arguments of the forward function.
            **options: see the class.

        Raises:
            TargetError: the target is missing, out of range, or not one per image.
            InputError: images, or an option, that are none.
            CaptureError: the forward function does not run the tower exactly once.
        """
        return_rest = self.additive and options.pop("return_rest", False)
        if target is None and not self.depends_on_target(**options):
            target = 0
        select = partial(one_column, target)
        found = self._run(inputs, additional_forward_args, select, options)
        # a tuple for a tuple, as Captum's metrics expect
        maps = (found.values,) if isinstance(inputs, tuple) else found.values
        return (maps, found.rest) if return_rest else maps

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute_targets(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Columns = None,
        additional_forward_args: Any = None,
        *,
        return_scores: bool = False,
        **options: Any,
    ) -> Any:
        """Maps (B, K, h, w) of all or the listed targets from one forward pass.

        With `return_scores`, and ``return_rest`` of an additive method, (maps, scores (B, K), rest
        (B, K)); with one of them (maps, scores) or (maps, rest).

        Args:
            inputs: as in `attribute`.
            targets: indices of scores; None for all.
            additional_forward_args: further arguments of the forward function.
            return_scores: give the cosines (B, K) of the same pass too.
            **options: see the class.

        Raises:
            TargetError: no target, or one out of range.
            InputError: images, or an option, that are none.
            CaptureError: the forward function does not run the tower exactly once.
        """
        return_rest = self.additive and options.pop("return_rest", False)
        select = partial(many_columns, targets)
        found = self._run(inputs, additional_forward_args, select, options)
        parts = [found.values, *([found.scores] * return_scores), *([found.rest] * return_rest)]
        return tuple(parts) if len(parts) > 1 else found.values

    def _run(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        extra: Any,
        select: Callable[..., Tensor],
        options: dict[str, Any],
    ) -> Computed:
        """The formula's result, with the maps (B, K', h, w) as its values.

        Gradients are possible whatever the caller's mode, and none reaches the caller's tensors.
        """
        forward, name = self.forward_func, type(self).__name__
        check_tower(name, forward, self._tower)
        tensors = _tensors(forward, inputs)
        extra = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
        similarity = plain_similarity(forward)
        if similarity is not None:  # what cannot be selected is said before any work is done
            select = partial(select, names=similarity.target.names)
            select(len(tensors[0]) if tensors[0].ndim else 0, len(similarity.embeddings))
        with torch.inference_mode(False), torch.enable_grad():
            images = tuple(tensor.detach() for tensor in usable(tensors))
            extra = tuple(usable(e) if isinstance(e, Tensor) else e for e in extra)
            found = self._compute(Call(forward, images, extra, select), **options)
            maps = self._on_grid(found.record, found.values.detach())
            # ClipSimilarity has checked its images; of those that overflow the maps say so
            if similarity is None and not maps.isfinite().all():
                raise CaptureError(
                    f"{name}: the forward function or its gradient holds NaN or infinity; look for "
                    "a division by zero or an overflow in it."
                )
            return found._replace(values=maps.contiguous())


def _with_options(method: type[ClipAttribution], verb: str) -> Any:
    """A verb of the base whose signature has the options of a method's `_compute`.

    So help, completion and Captum see them, and another argument is a TypeError at the call.
    """
    inherited = getattr(super(method, method), verb)
    signature = inspect.signature(inherited)
    options = inspect.signature(method._compute).parameters.values()
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if method.additive:
        kind = inspect.Parameter.KEYWORD_ONLY
        fixed.append(inspect.Parameter("return_rest", kind, default=False, annotation="bool"))
    signature = signature.replace(
        parameters=[*fixed, *(p for p in options if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD))]
    )

    @wraps(inherited)
    def call(self: ClipAttribution, *args: Any, **kwargs: Any) -> Any:
        signature.bind(self, *args, **kwargs)
        return inherited(self, *args, **kwargs)

    call.__qualname__ = f"{method.__qualname__}.{verb}"
    call.__module__ = method.__module__
    call.__signature__ = signature  # type: ignore[attr-defined]
    return log_usage(part_of_slo=True)(call)  # NoiseTunnel calls its `__wrapped__`


class ViTAttribution(ClipAttribution):
    """Base of the methods for vision transformers; `_compute` gives maps on all tokens (K', B, s).

    Raises:
        UnsupportedModelError: the tower is no supported vision transformer.
        InputError: a callable without a layer.
    """

    towers: ClassVar[tuple[Kind, ...]] = ("vit",)
    _needs = "the attention of a vision transformer"
    _instead = "use ClipGradCam"
    _tower: ViTTower

    def _layers(self, start_layer: int) -> range:
        return check_layers(self._tower, start_layer)


class ResNetAttribution(ClipAttribution):
    """Base of the methods for convolutional towers; `_compute` gives maps (K', B, h, w).

    Raises:
        UnsupportedModelError: the tower is not convolutional.
        InputError: a callable without a layer.
    """

    towers = ("resnet",)
    _needs = "the last stage of a convolutional tower"
    _instead = "use LastGradAttention or AttentionGradCam, or pass a convolutional layer as `layer`"
    _tower: ResNetTower


def _tensors(forward: Callable[..., Tensor], inputs: Any) -> tuple[Tensor, ...]:
    wanted, maker = "images", "clip.preprocess(images)"
    if isinstance(forward, TextSimilarity):
        wanted, maker = "token ids", "ids, mask = clip.text_inputs(texts)"
    tensors: tuple[Tensor, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"attribute: expected a tensor of {wanted}, got {type(tensor).__name__}; {maker} "
                "makes one."
            )
    return tensors


def usable(inputs: TensorOrTuple) -> TensorOrTuple:
    """The inputs, copied where inference mode made them, since those can enter no graph."""
    if isinstance(inputs, tuple):
        return tuple(usable(tensor) for tensor in inputs)
    return inputs.clone() if inputs.is_inference() else inputs
