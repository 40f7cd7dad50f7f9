"""What your own method is built from and checked with: bases, passes, attention arithmetic, laws.

`docs/extending.md` has whole methods. A class gets a `Call`, makes a pass with a function that
takes it, and returns a `Computed`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import expect
from ..errors import CaptureError, public
from ..recording.observe import Embedding as Embedding
from ..recording.observe import Features as Features
from ..recording.observe import Kernels as Kernels
from ..recording.observe import LastFeatures as LastFeatures
from ..recording.observe import LeafAtInput as LeafAtInput
from ..recording.observe import Observer as Observer
from ..recording.observe import Outputs as Outputs
from ..recording.observe import Sums as Sums
from ..recording.observe import observe as observe
from ..recording.passes import HeldGates as HeldGates
from ..recording.reads import AttentionRead as AttentionRead
from ..targets.similarity import ClipSimilarity
from ._attention import all_gradients as all_gradients
from ._attention import contributions as contributions
from ._attention import heads_output as heads_output
from ._attention import last_gradient as last_gradient
from ._attention import merged as merged
from ._attention import resnet_gradient as resnet_gradient
from ._attention import weighted as weighted
from ._base import ClipAttribution as ClipAttribution
from ._base import ResNetAttribution as ResNetAttribution
from ._base import ViTAttribution as ViTAttribution
from ._call import Call as Call
from ._call import Computed as Computed
from ._call import Pass as Pass
from ._call import PooledEmbedding as PooledEmbedding
from ._call import embedded_scores as embedded_scores
from ._call import observed as observed
from ._call import pooled_embedding as pooled_embedding
from ._call import without_gradient as without_gradient
from .additive import AdditiveAttribution as AdditiveAttribution
from .contributions import DirectContribution as DirectContribution
from .registry import register as register


@public("check_method")
def check_method(
    method: type[Any],
    forward: ClipSimilarity,
    images: Tensor,
    *,
    wanted: Tensor | None = None,
    tolerance: float | None = None,
) -> dict[str, float]:
    """See that a method keeps the laws of all methods on a model, as its class declares them.

    Args:
        method: a class as :func:`captum_clip.attr.register` takes it.
        forward: the scores of the model, with two targets or more.
        images: preprocessed images (B, 3, H, W), two or more.
        wanted: maps (B, K, h, w) that the method's equation gives on plain tensors, its oracle.
        tolerance: how far a law may be off; 1e-3, or 5e-2 for a model in half precision.

    Returns:
        How far each law is off: "adds up" and "model" as they are, all others as a share of the
        largest value of the maps.

    Raises:
        CaptureError: laws are broken; the message has each with how far it is off.
        InputError: there are fewer than two images or targets.
        UnsupportedModelError: the method does not explain this model.

    Example:
        >>> import torch
        >>> from captum_clip import ClipSimilarity, LastGradAttention, load_clip, targets
        >>> from captum_clip.attr import check_method
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = torch.cat([clip.preprocess(draw_scene(seed).image) for seed in (0, 1)])
        >>> laws = check_method(LastGradAttention, forward, images)
        >>> list(laws)[-2:], max(laws.values()) < 1e-4
        (['not below zero', 'model'], True)
    """
    targets = forward.target
    are_enough = len(images) > 1 and len(targets) > 1
    expect(are_enough, "two images and two targets, or more", [images, targets.embeddings])
    if tolerance is None:
        is_half = forward.clip.dtype in (torch.float16, torch.bfloat16)
        tolerance = 5e-2 if is_half else 1e-3
    state_before = _state_of(forward.clip.model)
    explainer = method(forward)
    maps: Tensor = explainer.attribute_targets(images)
    expected = f"{method.__name__} to give maps ({len(images)}, {len(targets)}, h, w), detached"
    has_shape = maps.ndim == 4 and maps.shape[:2] == (len(images), len(targets))
    expect(has_shape and not maps.requires_grad, expected, maps, error=CaptureError)
    # A map of positive parts may be zero everywhere.
    largest = maps.abs().max().clamp(min=torch.finfo(maps.dtype).tiny)

    def off(values: Tensor, expected: Tensor) -> float:
        return float((values - expected).abs().max() / largest)

    def of_target(target: Any) -> Tensor:
        # Ours have a single channel, but Captum's methods on pixels keep those of an image.
        return explainer.attribute(images, target=target).detach().sum(1)  # type: ignore[no-any-return]

    laws: dict[str, float] = {}
    laws["same twice"] = off(explainer.attribute_targets(images), maps)
    one_by_one = [explainer.attribute_targets(image) for image in torch.split(images, 1)]
    laws["image alone"] = off(torch.cat(one_by_one), maps)
    by_target = [of_target(column) for column in range(len(targets))]
    laws["target alone"] = off(torch.stack(by_target, 1), maps)
    # Captum also takes one target per image, here another one for each neighbor.
    rows = torch.arange(len(images))
    columns = rows % len(targets)
    laws["target of each image"] = off(of_target(columns.tolist()), maps[rows, columns])
    flags = _flags_of(method)
    if flags["signed"] or not flags["needs_target"]:
        negated = method(ClipSimilarity(forward.clip, -targets)).attribute_targets(images)
        laws["negated target"] = off(-negated if flags["signed"] else negated, maps)
    if not flags["signed"]:
        # Values below zero would be cut off, since only a signed method means them as evidence.
        laws["not below zero"] = off(maps.clamp(min=0), maps)
    if getattr(method, "additive", False):
        _, rest = explainer.attribute_targets(images, return_rest=True)
        with torch.no_grad():
            error = maps.sum((-2, -1)) + rest - forward(images)
        laws["adds up"] = float(error.abs().max())
    if wanted is not None:
        expect(wanted.shape == maps.shape, f"`wanted` of shape {tuple(maps.shape)}", wanted)
        laws["oracle"] = off(wanted, maps)
    laws["model"] = float(_state_of(forward.clip.model) != state_before)
    # A law whose error is NaN is broken as well.
    broken = [f"{law} ({error:.1e})" for law, error in laws.items() if not error <= tolerance]
    if broken:
        raise CaptureError(
            f"{method.__name__} breaks laws of all methods by more than {tolerance:.0e}: "
            f"{', '.join(broken)}; docs/extending.md says what each asks."
        )
    return laws


def _flags_of(method: type[Any]) -> dict[str, bool]:
    """Whether a method declares its maps signed and dependent on the target, by default options."""
    flags = {
        "signed": getattr(method, "signed", False),
        "needs_target": getattr(method, "needs_target", True),
    }
    if issubclass(method, ClipAttribution):
        flags |= method.properties()
    return flags


def _state_of(model: nn.Module) -> list[Any]:
    """The state that no method may leave changed: hooks, modes, parameters and their gradients."""
    state: list[Any] = []
    for module in model.modules():
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks
        state.append((module.training, *map(len, hooks)))
    for parameter in model.parameters():
        has_gradient = parameter.grad is not None
        state.append((parameter.requires_grad, has_gradient, parameter._version))
    return state
