"""CLIP of transformers: its vision tower and its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ..errors import InputError, UnsupportedModelError
from .base import ClipAdapter
from .processors import count_tokens, describe, is_transformers_tokenizer, process, statistics
from .text import TextReadout
from .towers import AttentionLayer, Exposed, Linear, Projections, ViTTower
from .unmodified import has_no_foreign_hooks, is_linear, is_unmodified

MODELS = ("CLIPModel",)
TOWERS = ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection")

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class HuggingFaceLayer(AttentionLayer):
    """A `CLIPEncoderLayer` and its `CLIPAttention`."""

    block: Any
    attention: Any

    def __init__(self, block: Any) -> None:
        super().__init__(block, block.self_attn, block.self_attn.num_heads)

    def projections(self) -> Projections:
        """See `AttentionLayer`."""
        maps = (getattr(self.attention, name) for name in _PROJECTIONS)
        return Projections(*(Linear(m.weight, m.bias) for m in maps))

    @property
    def scale(self) -> float:
        """See `AttentionLayer`."""
        return float(self.attention.scale)

    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """See `AttentionLayer`."""
        tokens: Tensor = args[0] if args else kwargs["hidden_states"]
        return tokens

    residual = tokens

    def output(self, result: Any) -> Tensor:
        """See `AttentionLayer`."""
        output: Tensor = result[0]  # (output, weights or None)
        return output

    def replaced(self, result: Any, output: Tensor) -> Any:
        """See `AttentionLayer`."""
        return (output, *result[1:])

    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        """See `AttentionLayer`."""
        hidden = residual + attended
        out: Tensor = hidden + self.block.mlp(self.block.layer_norm2(hidden))
        return out

    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        """See `AttentionLayer`."""
        attention = self.attention
        return {
            "query": (attention.q_proj, True),
            "key": (attention.k_proj, True),
            "value": (attention.v_proj, True),
            "heads_output": (attention.out_proj, False),
        }


@dataclass(frozen=True, eq=False)
class HuggingFaceTower(ViTTower):
    """The vision transformer of a `CLIPModel`, with the model's projection where there is one."""

    module: Any
    projection: nn.Module | None

    @property
    def native(self) -> tuple[int, int]:
        """Height and width that it was made for."""
        side = int(self.module.embeddings.image_size)
        return side, side

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See `Tower`; positions are interpolated for other sizes than the native one."""
        patch = int(self.module.embeddings.patch_size)
        fits = height % patch == 0 and width % patch == 0 and min(height, width) >= patch
        if not fits and (height, width) != self.native:
            raise InputError(
                f"the tower cannot take images of {height} x {width} pixels: height and width must "
                f"be multiples of its patch size {patch}; resize or crop them, its native size is "
                f"{self.native[0]} x {self.native[1]}."
            )
        return height // patch, width // patch

    def embed(self, token: Tensor) -> Tensor:
        """See `ViTTower`; without a projection it ends after the norm."""
        normed: Tensor = self.module.post_layernorm(token)
        return normed if self.projection is None else self.projection(normed)

    @property
    def is_unmodified(self) -> bool:
        """See `Tower`."""
        from transformers.models.clip import modeling_clip as clip

        plain = getattr(clip, "CLIPVisionTransformer", clip.CLIPVisionModel)
        block: Any = self.layers[-1].block
        return (
            is_unmodified(self.module, (plain,))
            and is_unmodified(self.module.encoder, (clip.CLIPEncoder,))
            and is_unmodified(block, (clip.CLIPEncoderLayer,))
            and is_unmodified(block.self_attn, (clip.CLIPAttention,))
            and all(has_no_foreign_hooks(module) for module in block.modules())
        )

    @property
    def checkpointing(self) -> bool:
        """See `ViTTower`."""
        blocks = self.module.encoder.layers
        return any(block.gradient_checkpointing and block.training for block in blocks)

    def nondeterminism(self) -> str | None:
        """See `Tower`; attention dropout is a number here, not a module."""
        for layer in self.layers:
            attention: Any = layer.attention
            if attention.training and attention.dropout > 0:
                return f"attention dropout {attention.dropout}"
        return super().nondeterminism()


def tower_of(module: nn.Module) -> HuggingFaceTower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    from transformers.models.clip import modeling_clip

    inner: Any = module
    plain = getattr(modeling_clip, "CLIPVisionTransformer", modeling_clip.CLIPVisionModel)
    if not isinstance(module, (plain, *(getattr(modeling_clip, name) for name in TOWERS))):
        return None
    while not isinstance(getattr(inner, "encoder", None), modeling_clip.CLIPEncoder):
        inner = inner.vision_model
    for index, block in enumerate(inner.encoder.layers):
        check_attention(index, block.self_attn)
    return HuggingFaceTower(
        module=inner,
        layers=tuple(HuggingFaceLayer(block) for block in inner.encoder.layers),
        pooling="cls",
        projection=getattr(module, "visual_projection", None),
    )


def check_attention(index: int, attention: Any) -> None:
    """Refuse projections that are more than a linear map, whose weights would not tell it all.

    Raises:
        UnsupportedModelError: one that is wrapped (LoRA), quantised or hooked.
    """
    for name in _PROJECTIONS:
        linear = getattr(attention, name)
        if not is_linear(linear):
            raise UnsupportedModelError(
                f"layer {index} of the vision tower has a {type(linear).__name__} as {name}; "
                "expected torch.nn.Linear with floating-point weights. Merge adapters such as LoRA "
                "into the weights first, load the model without quantisation, and "
                "remove hooks from it, which may change what it computes."
            )


class HuggingFaceAdapter(ClipAdapter):
    """A `CLIPModel` of transformers."""

    model: Any
    tower: HuggingFaceTower

    @property
    def is_unmodified(self) -> bool:
        """See `ClipAdapter`."""
        own = type(self.model).__module__.startswith("transformers.models.")  # no subclass
        features_unmodified = has_no_foreign_hooks(self.model, "get_image_features")
        return own and features_unmodified and self.tower.is_unmodified

    @property
    def text_readout(self) -> TextReadout | None:
        """See `ClipAdapter`."""
        return TextReadout("end", causal=True, padding="longest")

    def image_features(self, images: Tensor) -> Tensor:
        """See `ClipAdapter`."""
        height, width = images.shape[-2:]
        self.grid(height, width)
        features = self.model.get_image_features(
            pixel_values=images,  # cast inside
            interpolate_pos_encoding=(height, width) != self.tower.native,
        )
        return embedding_of(features)

    def _text_features(self, tokens: Any) -> Tensor:
        if isinstance(tokens, Tensor):
            tokens = {"input_ids": tokens}
        # some tokenizers give token types as well, which CLIP does not take
        known = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
        return embedding_of(self.model.get_text_features(**known))

    def _process(self, images: list[Image.Image]) -> Tensor:
        return process(self._require_processor(), images)

    def _tokenize(self, texts: list[str]) -> Any:
        tokenizer = self._require_tokenizer()
        if is_transformers_tokenizer(tokenizer):
            return tokenizer(texts, padding=True, return_tensors="pt")
        return tokenizer(texts)

    def _count(self, text: str) -> int | None:
        return count_tokens(self._require_tokenizer(), text)

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        return statistics(self.processor)

    @property
    def context_length(self) -> int:
        """See `ClipAdapter`."""
        return int(self.model.config.text_config.max_position_embeddings)

    def _describe_preprocessing(self) -> object:
        return describe(self.processor)


def embedding_of(features: Any) -> Tensor:
    """The embeddings in what `get_image_features` or `get_text_features` returned."""
    # a tensor in transformers 4, an output object in 5
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def adapter_of(model: nn.Module, *, name: str, **parts: Any) -> HuggingFaceAdapter | None:
    """The adapter of a `CLIPModel`; None where the model is something else."""
    from transformers import CLIPModel

    if not isinstance(model, CLIPModel):
        return None
    tower = tower_of(model)
    return None if tower is None else HuggingFaceAdapter(model, tower, name=name, **parts)
