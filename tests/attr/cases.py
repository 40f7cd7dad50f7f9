"""What the tests of the methods run on: towers, forward functions, methods with their options."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import attr, targets
from captum_clip.targets.similarity import ClipSimilarity
from tests import builders, explicit, oracles, timm_builders

CLS_TOWERS = ["hf_vit", "open_clip_vit", "open_clip_custom_vit"]
VITS = [*CLS_TOWERS, "open_clip_vit_mean"]
AVERAGE_POOLED = ["timm_convnext", "timm_fastvit", "align"]
CONVOLUTIONAL = ["open_clip_resnet", *AVERAGE_POOLED]
TOWERS = [*VITS, *CONVOLUTIONAL]
# What the further families read: the library's own modules run in their oracle.
POOLINGS: dict[str, tuple[oracles.Row, int]] = {
    "siglip": ("attention", 0),
    "timm_siglip": ("attention", 0),
    "timm_gap": ("mean", 0),
    "timm_registers": ("cls", 3),
    "mobileclip": ("cls", 1),
    "vitamin": ("mean", 0),
    "eva01": ("cls", 1),
    "eva02": ("cls", 1),
    "eva02_e": ("cls", 1),
    "pe_core": ("attention", 1),
    "coca": ("attention", 1),
    "open_clip_norms": ("cls", 1),
    "blip": ("cls", 1),
    "aimv2": ("attention", 0),
    "flava": ("cls", 1),
    "tipsv2": ("cls", 2),
    "naflex": ("attention", 0),
}
BUILDERS = {
    **builders.BUILDERS,
    **timm_builders.BUILDERS,
    "naflex": builders.naflex,
    "coca": builders.coca,
    "open_clip_norms": builders.open_clip_norms,
}
# the bench registers further ones
OWN = {n: m for n, m in attr.METHODS.items() if m.__module__.startswith("captum_clip.attr.")}
METHODS: dict[str, Any] = {method.__name__: method for method in OWN.values()}
COUNT = 4  # K
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Case(NamedTuple):
    """A method with its options."""

    method: str
    options: dict[str, Any]

    @property
    def kind(self) -> Any:
        """The class."""
        return METHODS[self.method]

    def __str__(self) -> str:
        return ",".join([self.method, *(f"{k}={v}" for k, v in self.options.items())])


LAYER_VIEWS = [
    Case("LayerAttention", {"index": index, "of": of, "rows": rows})
    for index in (-1, 0)
    for of in ("attention", "gradient")
    for rows in ("cls", "sum")
]
VIT_CASES = [
    Case("AttentionGradCam", {}),
    Case("AttentionGradCam", {"weights": "pooled"}),
    *(Case("AttentionRollout", {"start_layer": start}) for start in (0, 2)),
    *(Case("AllGradAttention", {"start_layer": start}) for start in (0, 2)),
    *(
        Case("LastGradAttention", {"heads": heads, "start_layer": start})
        for heads in ("paired", "averaged")
        for start in (0, 2)
    ),
    *LAYER_VIEWS,
]


# One of each method: what is tried again in further ways.
KEY_CASES = [
    Case("AttentionGradCam", {}),
    Case("AttentionRollout", {"start_layer": 0}),
    Case("AllGradAttention", {"start_layer": 0}),
    Case("LastGradAttention", {"heads": "paired", "start_layer": 0}),
    Case("LayerAttention", {"index": 1, "of": "gradient", "rows": "cls"}),
]


def built(name: str, dtype: torch.dtype = torch.float32) -> builders.Small:
    """A small model, shared by all tests, which therefore leave it as it is."""
    return _built(name, dtype)[0]


def adapter(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The adapter of a shared model."""
    return _built(name, dtype)[1]


@lru_cache
def _built(name: str, dtype: torch.dtype) -> tuple[builders.Small, Any]:
    small = BUILDERS[name]()
    small.model.to(dtype)
    return small, small.load()


@lru_cache
def upset(name: str) -> builders.Small:
    """The same model once more, for tests that turn its flags and gradients upside down."""
    return BUILDERS[name]()


def embeddings(count: int = COUNT, width: int = 24) -> Tensor:
    """Unit embeddings (K, E), float64, each followed by its negative, since a ReLU spares one."""
    generator = torch.Generator().manual_seed(5)
    half = torch.randn((count + 1) // 2, width, generator=generator, dtype=torch.float64)
    return F.normalize(torch.stack([half, -half], 1).flatten(0, 1)[:count], dim=1)


def similarity(name: str, dtype: torch.dtype = torch.float32, count: int = COUNT) -> ClipSimilarity:
    """A `ClipSimilarity` of a shared model to K random embeddings."""
    return ClipSimilarity(adapter(name, dtype), targets.embedding(embeddings(count)))


def images(
    name: str, dtype: torch.dtype = torch.float32, batch: int = 3, wide: bool = False
) -> Tensor:
    """Images of a tower's size; with `wide` of another, non-square size."""
    native = built(name).images(batch, dtype)
    return torch.cat([native, native[..., :16].flip(-1)], -1) if wide else native


def embed(model: Any, pixels: Tensor) -> Tensor:
    """The library's own image embeddings, asked for as a user would."""
    if hasattr(model, "visual"):
        features: Any = model.encode_image(pixels, normalize=False)
        return features[0] if isinstance(features, tuple) else features
    if hasattr(model, "vision_proj"):  # BLIP
        hidden = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)[0]
        return model.vision_proj(hidden[:, 0])
    if type(model).__name__ == "Siglip2Model":  # takes patches
        grid = [side // 8 for side in pixels.shape[-2:]]
        patches = pixels.reshape(len(pixels), 3, grid[0], 8, grid[1], 8).permute(0, 2, 4, 3, 5, 1)
        patches = patches.reshape(len(pixels), grid[0] * grid[1], -1)
        mask, shapes = torch.ones(patches.shape[:2]), torch.tensor([grid] * len(pixels))
        return model.get_image_features(patches, mask, shapes).pooler_output
    if type(model).__name__ == "Tipsv2Model":  # interpolates where it has to
        return model.get_image_features(pixels).pooler_output
    features = model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)
    if hasattr(model, "image_model"):  # FLAVA projects all tokens
        features = getattr(features, "pooler_output", features)[:, 0]
    return features if isinstance(features, Tensor) else features.pooler_output


def own_callable(name: str, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """A user's forward function that knows nothing of captum_clip: scaled cosines (B, K)."""
    model, wanted = built(name, dtype).model, embeddings().to(dtype)

    def forward(pixels: Tensor) -> Tensor:
        return 20 * F.normalize(embed(model, pixels), dim=-1) @ wanted.T

    return forward


FORWARDS: dict[str, Callable[[str, torch.dtype], tuple[Any, Any]]] = {
    "similarity": lambda name, dtype: (similarity(name, dtype), None),
    "callable, layer=model": lambda name, dtype: (
        own_callable(name, dtype),
        built(name, dtype).model,
    ),
    "callable, layer=tower": lambda name, dtype: (
        own_callable(name, dtype),
        adapter(name, dtype).vision,
    ),
}


@lru_cache
def seen(name: str, batch: int = 3, wide: bool = False) -> Any:
    """What the oracle sees of the images in float64."""
    pixels = images(name, batch=batch, wide=wide).double()
    model = built(name, torch.float64).model
    if name in POOLINGS:
        row, prefix = POOLINGS[name]
        tower = adapter(name).tower
        return explicit.see(
            partial(embed, model),
            pixels,
            heads=[attention.heads for attention in tower.attentions],
            grid=tower.grid(*pixels.shape[-2:]),
            row=row,
            prefix=prefix,
        )
    see = oracles.see_average_pooled if name in AVERAGE_POOLED else oracles.see
    if name == "open_clip_resnet":
        see = oracles.see_resnet
    return see(model, pixels)


@cache
def _expected(name: str, scale: float, batch: int, wide: bool, method: str, options: Any) -> Tensor:
    view = seen(name, batch, wide)
    scores = scale * oracles.cosines(view.embedding, embeddings())
    if name in CONVOLUTIONAL:
        return oracles.grad_cam(view, scores)
    return oracles.maps(method, view, scores, **dict(options))


def expected(
    name: str, case: Case, *, scale: float = 1, batch: int = 3, wide: bool = False
) -> Tensor:
    """The oracle's maps (B, K, h, w) in float64, of scores that are `scale` times the cosines."""
    options = tuple(sorted(case.options.items()))
    return _expected(name, scale, batch, wide, case.method, options)


def assert_maps_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """No element of a map (B, K, h, w) is off by more than a fraction of the map's own size.

    In float64 the size is the map's range. In float32 it is the maximum, the larger one of a
    target's and its negative's: a ReLU may leave a small rest of a large sum, with its rounding.
    """
    assert found.shape == wanted.shape
    scale = wanted.amax((2, 3), keepdim=True) - wanted.amin((2, 3), keepdim=True)
    assert (scale > 0).any(), "maps of zeros say nothing"
    if tolerance == TOLERANCE[torch.float32]:
        scale = wanted.abs().amax((2, 3), keepdim=True)
        if wanted.shape[1] == COUNT:
            scale = scale.unflatten(1, (-1, 2)).amax(2).repeat_interleave(2, 1)
    scale = torch.where(scale > 0, scale, scale.max())  # a ReLU may leave nothing of one map
    error = ((found.double() - wanted).abs() / scale).max().item()
    assert error <= tolerance, f"off by {error:.1e} of the map's size"
