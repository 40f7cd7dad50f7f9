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
from ..recording.observe import LeafAtInput as LeafAtInput
from ..recording.observe import Observer as Observer
from ..recording.observe import Outputs as Outputs
from ..recording.observe import Sums as Sums
from ..recording.observe import observe as observe
from ..recording.observe import record_features as record_features
from ..recording.passes import record_held as record_held
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
from ._call import pooled_tokens as pooled_tokens
from ._call import without_gradient as without_gradient
from .additive import AdditiveAttribution as AdditiveAttribution
from .additive import PooledRow as PooledRow
from .additive import pushed_rows as pushed_rows
from .additive import rows_of as rows_of
from .contributions import DirectContribution as DirectContribution
from .contributions import any_target as any_target
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
        forward: of the model, with two targets or more.
        images: preprocessed, (B, 3, H, W), two or more.
        wanted: maps (B, K, h, w) that the method's equation gives on plain tensors, its oracle.
        tolerance: how far a law may be off; 1e-3, or 5e-2 for a model in half precision.

    Returns:
        How far each law is off: "adds up" and "model" as they are, all others as a share of the
        largest value of the maps.

    Raises:
        CaptureError: laws that are broken, each with how far it is off.
        InputError: fewer than two images or targets.
        UnsupportedModelError: the method does not explain this model.
    """
    targets, half = forward.target, forward.clip.dtype in (torch.float16, torch.bfloat16)
    enough = len(images) > 1 and len(targets) > 1
    expect(enough, "two images and two targets, or more", [images, targets.embeddings])
    tolerance = (0.05 if half else 1e-3) if tolerance is None else tolerance
    before, explainer = _state_of(forward.clip.model), method(forward)
    maps: Tensor = explainer.attribute_targets(images)
    shape = f"{method.__name__} to give maps ({len(images)}, {len(targets)}, h, w)"
    fits = maps.ndim == 4 and maps.shape[:2] == (len(images), len(targets))
    expect(fits and not maps.requires_grad, f"{shape}, detached", maps, error=CaptureError)
    # positive parts may be zero everywhere
    largest = maps.abs().max().clamp(min=torch.finfo(maps.dtype).tiny)

    def off(values: Tensor, expected: Tensor) -> float:
        return float((values - expected).abs().max() / largest)

    def of_one(target: Any) -> Tensor:  # channels of an image are added up
        return explainer.attribute(images, target=target).detach().sum(1)  # type: ignore[no-any-return]

    columns, rows = range(len(targets)), torch.arange(len(images))
    picked = rows % len(targets)
    alone = [explainer.attribute_targets(image) for image in torch.split(images, 1)]
    laws = {
        "same twice": off(explainer.attribute_targets(images), maps),
        "image alone": off(torch.cat(alone), maps),
        "target alone": off(torch.stack([of_one(column) for column in columns], 1), maps),
        "target of each image": off(of_one(picked.tolist()), maps[rows, picked]),
    }
    declared = method.properties() if issubclass(method, ClipAttribution) else {}
    signed = declared.get("signed", getattr(method, "signed", False))
    if signed or not declared.get("needs_target", getattr(method, "needs_target", True)):
        negated = method(ClipSimilarity(forward.clip, -targets)).attribute_targets(images)
        laws["negated target"] = off(-negated if signed else negated, maps)
    if getattr(method, "additive", False):
        _, rest = explainer.attribute_targets(images, return_rest=True)
        with torch.no_grad():
            laws["adds up"] = float((maps.sum((-2, -1)) + rest - forward(images)).abs().max())
    if wanted is not None:
        expect(wanted.shape == maps.shape, f"`wanted` of shape {tuple(maps.shape)}", wanted)
        laws["oracle"] = off(wanted, maps)
    laws["model"] = float(_state_of(forward.clip.model) != before)
    broken = [f"{law} ({off:.1e})" for law, off in laws.items() if not off <= tolerance]
    if broken:
        raise CaptureError(
            f"{method.__name__} breaks laws of all methods by more than {tolerance:.0e}: "
            f"{', '.join(broken)}; docs/extending.md says what each asks."
        )
    return laws


def _state_of(model: nn.Module) -> list[Any]:
    """What no method may leave changed: hooks, modes, parameters and their gradients."""
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"
    modules = [(m.training, *(len(getattr(m, h)) for h in hooks)) for m in model.modules()]
    parameters = ((p.requires_grad, p.grad is None, p._version) for p in model.parameters())
    return [*modules, *parameters]
