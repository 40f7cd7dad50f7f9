"""The forward function: images -> CLIP cosine similarities, all that Captum sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InputError, TargetError
from .models import ClipAdapter
from .models.images import check_images
from .targets.base import Target


class ClipSimilarity(nn.Module):
    r"""Images (B, 3, H, W) -> cosine similarities (B, K) to the K rows of a target.

    .. math:: y_k = \frac{e \cdot t_k}{|e|}, \quad e = \text{image embedding}, \; |t_k| = 1

    Differentiable in the images, so any Captum method takes it as its forward function. Captum's
    ``target`` picks the row. Half-precision towers give float32 similarities.

    Args:
        clip: an adapter from :func:`captum_clip.load_clip`; its model is used as it is.
        target: K rows of the model's embedding size.

    Raises:
        InputError: images of the wrong shape, type, size or device, or with NaN or infinity.
        TargetError: the target's rows do not have the model's embedding size.

    Example:
        >>> from captum_clip import ClipSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> forward(clip.preprocess(draw_scene(0).image)).shape
        torch.Size([1, 2])
    """

    bank: Tensor

    def __init__(self, clip: ClipAdapter, target: Target) -> None:
        super().__init__()
        if not isinstance(clip, ClipAdapter):
            raise InputError(
                f"ClipSimilarity: expected an adapter from load_clip(...), got "
                f"{type(clip).__name__}; pass ClipSimilarity(load_clip(model), target)."
            )
        if not isinstance(target, Target):
            raise TargetError(
                f"ClipSimilarity: expected a Target, got {type(target).__name__}; make one with "
                "captum_clip.targets, for example targets.text(clip, 'a horse')."
            )
        dimension = clip.embedding_dim
        if dimension is not None:
            _check_rows(target.bank, dimension, clip.name)
        self.clip = clip
        self.target = target
        self.model = clip.model
        # A buffer: Captum would tile a bank of five rows in `additional_forward_args` over a batch.
        # Outside of inference mode: what is made in it can never take part in a gradient.
        with torch.inference_mode(False):
            self.register_buffer("bank", target.bank.to(clip.device), persistent=False)
        self.training = clip.model.training  # a new module would say that it trains

    def forward(self, images: Tensor) -> Tensor:
        """Cosine similarities (B, K) of preprocessed images (B, 3, H, W)."""
        check_images(images, "ClipSimilarity")
        if images.device != self.clip.device:
            raise InputError(
                f"ClipSimilarity: the images are on {images.device}, the model on "
                f"{self.clip.device}; pass images.to(clip.device)."
            )
        self.clip.grid(images.shape[-2], images.shape[-1])
        return self.score(self.clip.image_features(images))

    def score(self, embedding: Tensor) -> Tensor:
        """Cosine similarities (..., K) of image embeddings (..., E) of any length."""
        _check_rows(self.bank, embedding.shape[-1], self.clip.name)
        dtype = torch.promote_types(embedding.dtype, torch.float32)
        return F.normalize(embedding.to(dtype), dim=-1) @ self.bank.to(dtype).T


def _check_rows(bank: Tensor, dimension: int, name: str) -> None:
    if bank.shape[1] != dimension:
        raise TargetError(
            f"ClipSimilarity: the target has rows of {bank.shape[1]} numbers, and {name} embeds in "
            f"{dimension}; make it with this model."
        )
