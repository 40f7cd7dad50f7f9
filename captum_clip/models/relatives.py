"""Relatives of CLIP in transformers, which keep the same parts under other names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self, override

from ..checks import expect
from ..errors import CaptureError, InputError, UnsupportedModelError
from . import huggingface
from .attentions import PooledToken, PoolingHead, tensor_in, with_tensor
from .huggingface import (
    CLIP_TEXT,
    HuggingFaceAdapter,
    HuggingFaceLayer,
    HuggingFaceTower,
    TextLayout,
    is_bert,
    transformers_family,
)
from .images import image_processor
from .multihead import MultiheadPoolingHead
from .steps import Residual, Step, flattened
from .text import TextTower
from .towers import Entry


class SiglipTower(HuggingFaceTower):
    """The vision transformer of a `SiglipModel`: patches only, read by its pooling head.

    The head ends in the space of the texts. Without one (`vision_use_head=False`) the callable that
    uses the tower takes the patches' mean.
    """

    @staticmethod
    @override
    def fields(vision: Any) -> dict[str, Any]:
        head, norm = getattr(vision, "head", None), vision.post_layernorm
        fields = {"prefix": 0, "steps_before_mean": 1}  # the library norms every patch
        if head is None:
            return {"pooling": "mean", **fields}
        attention = head.attention
        pool = MultiheadPoolingHead(head, attention, attention.num_heads, norm=norm)
        return {"pooling": "attention", "pooling_head": pool, **fields}

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        if self.pooling_head is None:
            return (self.module.post_layernorm,)
        head = self.module.head
        return (Residual(flattened((head.layernorm, head.mlp))),)


class SiglipAdapter(HuggingFaceAdapter):
    """A `SiglipModel` of transformers."""

    @override
    def text_inputs(self, texts: str | Sequence[str]) -> tuple[Tensor, None]:
        # it was trained without a mask, which the tokenizers of SigLIP 2 give
        return super().text_inputs(texts)[0], None


class NaFlexTower(SiglipTower):
    """The vision transformer of a `Siglip2Model`."""

    @override
    def read_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        shapes = inputs["spatial_shapes"]
        rows, columns = shapes[0].tolist()
        if (shapes != shapes[:1]).any() or rows * columns != inputs["pixel_values"].shape[1]:
            raise CaptureError(
                "The forward function ran the vision tower on images with different grids or on "
                "padded patches; explain images of one grid at a time, without padding, as "
                "clip.image_features(images) of load_clip(model) does."
            )
        size = (rows * self.patch[0], columns * self.patch[1])
        return Entry(size, len(shapes), PooledToken())


class NaFlexAdapter(SiglipAdapter):
    """A `Siglip2Model` of transformers."""

    @override
    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        patches = _cut(images, self.tower.patch[0])
        size = self.tower.grid(images.shape[-2], images.shape[-1])
        grid = torch.tensor([size], device=images.device)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.int32),
            "spatial_shapes": grid.expand(len(images), -1),
        }

    @override
    def _process(self, images: list[Image.Image]) -> Tensor:
        processor = image_processor(self._require("processor"))
        if "spatial_shapes" not in getattr(processor, "model_input_names", ()):
            return super()._process(images)
        processed = processor(images=images, return_tensors="pt")
        shapes = processed["spatial_shapes"]
        if (shapes != shapes[:1]).any():
            raise InputError(
                "a NaFlex model sees every image in its own shape, and these differ; "
                "preprocess and explain them one at a time, or crop them to one shape."
            )
        rows, columns = shapes[0].tolist()
        patches = processed["pixel_values"][:, : rows * columns]
        return _joined(patches, rows, self.tower.patch[0]).float()


def _cut(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) as patches (B, h w, side side 3), as the library orders them."""
    batch, channels, height, width = images.shape
    pieces = images.reshape(batch, channels, height // side, side, width // side, side)
    return pieces.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def _joined(patches: Tensor, rows: int, side: int) -> Tensor:
    """The images of such patches."""
    batch, count, _ = patches.shape
    pieces = patches.reshape(batch, rows, count // rows, side, side, -1)
    return pieces.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * side, count // rows * side)


class Aimv2Layer(HuggingFaceLayer):
    """An `Aimv2EncoderLayer`: RMSNorm, attention, RMSNorm, a gated MLP."""

    attention_path = "attention"
    mlp_paths = ("rms_norm2", "ffn")


class Aimv2PoolingHead(PoolingHead):
    """An `Aimv2AttentionPoolingHead`."""

    maps = ("output_proj",)

    def __init__(self, norm: nn.Module, head: Any) -> None:
        super().__init__(head, head, head.num_heads, norm=norm)
        self.output_module = head.output_proj

    @override
    def output(self, result: Any) -> Tensor:
        return tensor_in(result)[:, None]


class Aimv2Tower(HuggingFaceTower):
    """An `Aimv2VisionModel`: patches only, read by the pooling head."""

    layer_class = Aimv2Layer
    final_norm = None
    patch_map = "embeddings.patch_embed"

    @staticmethod
    @override
    def fields(vision: Any) -> dict[str, Any]:
        pool = Aimv2PoolingHead(vision.rms_norm, vision.head)
        # else its positions are learned, and those of the native size
        fields = {"prefix": 0, "resizable": bool(vision.config.is_native)}
        return {"pooling": "attention", "pooling_head": pool, **fields}


class Aimv2Adapter(HuggingFaceAdapter):
    """An `Aimv2Model`."""

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        # Of a mask without padding, or none, the library makes no causal mask under SDPA, and a
        # text would be encoded otherwise alone than next to a longer one. Under a causal mask the
        # padding, which follows the end token, does not matter.
        length, dtype = ids.shape[1], self.model.text_projection.weight.dtype
        lowest = torch.finfo(dtype).min
        causal = torch.full((length, length), lowest, dtype=dtype, device=ids.device).triu(1)
        return super().text_features(ids, causal.expand(len(ids), 1, -1, -1))


class FirstTokenTower(HuggingFaceTower):
    """A vision transformer whose first token is read by the model around it."""

    @override
    def embedding(self, result: Any) -> Tensor:
        return tensor_in(result)[:, 0]

    @override
    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        return with_tensor(result, torch.cat([embedding[:, None], tensor_in(result)[:, 1:]], 1))


class BlipLayer(HuggingFaceLayer):
    """A `BlipEncoderLayer`, whose attention has one map for queries, keys and values."""

    maps = ("qkv", "projection")


class BlipTower(FirstTokenTower):
    """A `BlipVisionModel` with the retrieval head's projection where there is one.

    All tokens are normed once; the pooled output is normed twice, and the head leaves it.
    """

    projection_path = "vision_proj"
    layer_class = BlipLayer


class BlipAdapter(HuggingFaceAdapter):
    """A `BlipForImageTextRetrieval`, with the cosine that ``use_itm_head=False`` gives."""

    @override
    def image_features(self, images: Tensor) -> Tensor:
        result = self.model.vision_model(**self._vision_inputs(images))
        return tensor_in(self.model.vision_proj(self.tower.embedding(result)))

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.model.text_encoder(input_ids=ids, attention_mask=mask)[0]
        return tensor_in(self.model.text_proj(hidden[:, 0]))


class Tipsv2Layer(HuggingFaceLayer):
    """A `Tipsv2VisionLayer`, with LayerScale."""

    attention_path = "attention"
    heads_path = "num_attention_heads"
    maps = ("q_proj", "k_proj", "v_proj", "o_proj")
    branch_paths = ("layer_scale1",)
    mlp_paths = ("norm2", "mlp", "layer_scale2")


class Tipsv2Tower(HuggingFaceTower):
    """The vision transformer of a `Tipsv2Model`, without projection.

    Its tokens are CLS, which is the embedding, a register that is a second CLS, and the patches.
    """

    layer_class = Tipsv2Layer
    asks_to_interpolate = False
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"

    @staticmethod
    @override
    def fields(vision: Any) -> dict[str, Any]:
        return {"prefix": 1 + int(vision.config.num_register_tokens)}


class DualEncoderTower(HuggingFaceTower):
    """CLIP's vision tower in a `VisionTextDualEncoderModel`."""

    @classmethod
    @override
    def from_module(cls, module: Any) -> Self:
        vision = module.vision_model
        is_clip = any(family.holds(vision) for family in huggingface.FAMILIES)
        supported = "a CLIPVisionModel in the VisionTextDualEncoderModel"
        expect(is_clip, supported, vision, error=UnsupportedModelError)
        return super().from_module(module)


class DualEncoderAdapter(HuggingFaceAdapter):
    """A `VisionTextDualEncoderModel`: CLIP's vision tower next to any text model."""

    @override
    def _text_tower(self) -> TextTower | None:
        return super()._text_tower() if is_bert(self.model.text_model) else None


# the last position is the pooled one, so with other padding it is another embedding
_SIGLIP_TEXT = CLIP_TEXT._replace(
    row="last",
    causal=False,
    pads_to_longest=False,
    own_head=("final_layer_norm", "head"),
    head=(),
)
_BLIP_TEXT = TextLayout(layer=None)
_TIPSV2_TEXT = TextLayout("mean", pads_to_longest=False, layer=None)
_DUAL_TEXT = TextLayout(own_head=("pooler.dense", "pooler.activation"))

FAMILIES = (
    transformers_family("aimv2", "Aimv2", Aimv2Adapter, Aimv2Tower, CLIP_TEXT._replace(layer=None)),
    transformers_family(
        "blip", "Blip", BlipAdapter, BlipTower, _BLIP_TEXT, model="ForImageTextRetrieval"
    ),
    transformers_family("tipsv2", "Tipsv2", tower=Tipsv2Tower, text=_TIPSV2_TEXT),
    transformers_family(
        "vision_text_dual_encoder",
        "VisionTextDualEncoder",
        DualEncoderAdapter,
        DualEncoderTower,
        _DUAL_TEXT,
    ),
    transformers_family("siglip", "Siglip", SiglipAdapter, SiglipTower, _SIGLIP_TEXT),
    transformers_family("siglip2", "Siglip2", NaFlexAdapter, NaFlexTower, _SIGLIP_TEXT),
)
