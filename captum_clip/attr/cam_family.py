"""CamFamily: Grad-CAM++, LayerCAM, Score-CAM and the others of pytorch-grad-cam."""

from __future__ import annotations

import inspect
from operator import itemgetter
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError
from ..maps import to_float32
from ..models.towers import ResNetTower, ViTTower
from ..recording import record_features
from ._base import ClipAttribution
from ._call import Call, Computed

_WHOLE_NETWORK = ("FullGrad", "ShapleyCAM")  # they differentiate more than one layer
_WITHOUT_TARGET = ("EigenCAM", "KPCA_CAM", "FEM")
_MANY_FORWARDS = ("ScoreCAM", "AblationCAM")  # one a channel
_NOT_ON_TOKENS = {
    "AblationCAM": "it puts a value far below all others in a channel's place, which presumes "
    "features that are never negative",
    "HiResCAM": "gradient times feature summed over channels is zero where a layer norm follows",
}
_OURS = ("self", "model", "target_layers", "reshape_transform", "ablation_layer")


@final
class CamFamily(ClipAttribution):
    """A class of pytorch-grad-cam on the last features: ``cam:GradCAMPlusPlus``, ``cam:LayerCAM``.

    Its own formula runs on the features (B, C, h, w) of a convolutional tower's last stage, or of a
    vision transformer on the patches that enter the last block (with a pooling head or a mean of
    patches, that leave it), laid out on their grid. The map is what that formula gives, negative
    values set to zero as there, but neither resized nor scaled. The model is never handed to the
    library, which would set it to eval mode, hook it and fill its parameters' gradients.

    The map is non-negative; the negative map is the map of ``-target``. Score-CAM and Ablation-CAM
    take a forward for each channel, the others one forward, and a backward per target.

    Options, keyword-only:

    - ``variant``: the class, "GradCAM" if none is named.
    - ``eigen_smooth``: the first principal component of the weighted features, where it has that.
    - whatever else its constructor takes: ``cam:AblationCAM:ratio_channels_to_ablate=0.5``.

    Raises:
        InputError: pytorch-grad-cam is not installed (``pip install grad-cam``), or has
            no such class or option.
        UnsupportedModelError: Ablation-CAM or HiResCAM on a vision transformer, where they mean
            nothing.

    Source: github.com/jacobgil/pytorch-grad-cam, which names the paper of each class.
    """

    name = "cam"
    towers = ("vit", "resnet")
    listed = False  # a family, of which one is named
    leading = "variant"
    _tower: ViTTower | ResNetTower

    @classmethod
    @override
    def properties(cls, *, variant: str = "GradCAM", **options: Any) -> dict[str, bool]:
        return {"needs_target": variant not in _WITHOUT_TARGET, "costly": variant in _MANY_FORWARDS}

    @classmethod
    @override
    def check_options(cls, *, variant: str = "GradCAM", **options: Any) -> None:
        parameters = inspect.signature(_class_of(variant).__init__).parameters
        known = ["eigen_smooth", *(name for name in parameters if name not in _OURS)]
        for option in options:
            if option not in known:
                raise InputError(
                    f"cam:{variant} has no option {option!r}; it has {', '.join(known)}."
                )

    @override
    def _compute(self, call: Call, *, variant: str = "GradCAM", **options: Any) -> Computed:
        tower = self._tower
        if isinstance(tower, ViTTower) and variant in _NOT_ON_TOKENS:
            raise UnsupportedModelError(
                f"cam:{variant} is meaningless on a vision transformer: {_NOT_ON_TOKENS[variant]}; "
                "take LayerCAM or GradCAM."
            )
        smooth = {"eigen_smooth": bool(options.pop("eigen_smooth", False))}
        run = call.run(record_features(tower))
        leaf = run.record.features
        network = _Network(call, tower, leaf.device)
        cam = _class_of(variant)(model=network, target_layers=[network.features], **options)
        cam.activations_and_grads.release()  # the gradients are taken here
        features, images = to_float32(leaf.detach()).cpu().numpy(), call.images[0]
        maps = []
        for columns, (gradient,) in zip(run.columns, run.gradients(leaf), strict=True):
            targets = [itemgetter(int(column)) for column in columns]
            slope = to_float32(gradient).cpu().numpy()
            found = cam.get_cam_image(images, network.features, targets, features, slope, **smooth)
            maps.append(torch.from_numpy(found).clamp(min=0).to(leaf.device))
        return run.computed(torch.stack(maps).to(to_float32(leaf).dtype))

    @override
    def _on_grid(self, record: Any, values: Tensor) -> Tensor:
        return values.transpose(0, 1)


class _Network(nn.Module):
    """The model as the library sees it: the forward function, and the layer to look at."""

    def __init__(self, call: Call, tower: ViTTower | ResNetTower, device: torch.device) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.anchor = nn.Parameter(torch.zeros((), device=device))  # where the library finds it
        self._call, self._tower = (call,), tower  # no submodule, so no flag of it is touched

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Scores, with the features sent through the layer."""
        call = self._call[0]
        with record_features(self._tower, through=lambda features: self.features(features)):
            scores: Tensor = call.forward(images, *call.extra)
        return scores[:, None] if scores.ndim == 1 else scores


def _class_of(variant: str) -> Any:
    try:
        import pytorch_grad_cam as library
        from pytorch_grad_cam.base_cam import BaseCAM
    except ImportError as error:
        raise InputError("cam needs pytorch-grad-cam: pip install grad-cam.") from error
    refused = (*_WHOLE_NETWORK, "RandomCAM", "BaseCAM")  # RandomCAM draws from a global generator
    known = [
        name
        for name, kind in vars(library).items()
        if isinstance(kind, type) and issubclass(kind, BaseCAM) and name not in refused
    ]
    if variant not in known:
        raise InputError(f"cam: expected one of {', '.join(sorted(known))}, got {variant!r}.")
    return getattr(library, variant)
