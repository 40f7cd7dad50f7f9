"""CLIP of OpenCLIP: its vision towers, its text towers and its adapter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..checks import expect
from ..errors import UnsupportedModelError
from . import timm
from .adapter import ClipAdapter, Family
from .attentions import AttentionLayer, tensor_in
from .huggingface import TextLayout, is_bert, text_tower_of
from .library import unwrapped
from .multihead import Multihead, MultiheadPoolingHead
from .steps import Linear, Step
from .text import Row, TextTower
from .towers import Pooling, ResNetTower, Tower, ViTTower

# the pool type of a ViT, and whether it has a pool; with a mean all its queries would be read
_POOLINGS: dict[tuple[str, bool], Pooling] = {
    ("tok", False): "cls",
    ("avg", False): "mean",
    ("tok", True): "attention",
}
# of texts, by OpenCLIP's pool types and classes
_ROWS: dict[str, Row] = {
    **{"argmax": "end", "eos": "end", "first": "first", "last": "last"},
    **{"MeanPooler": "mean", "ClsPooler": "first"},
}


class OpenClipLayer(Multihead, AttentionLayer):
    """A `ResidualAttentionBlock`.

    Up to OpenCLIP 3 its attention is a `torch.nn.MultiheadAttention`, from 4 on OpenCLIP's own.
    """

    branch_paths: tuple[str, ...] = ("ls_1",)
    mlp_paths: tuple[str, ...] = ("ln_2", "mlp", "ls_2")


class CustomLayer(OpenClipLayer):
    """A `CustomResidualAttentionBlock`, which has a norm after its attention."""

    branch_paths = ("ln_attn", "ls_1")


class OpenClipViT(ViTTower):
    """A `VisionTransformer`, whose embedding is its CLS token, a mean, or its pool's first query.

    With such a pool (CoCa) CLS is among the keys; all queries but the first are captions'.
    """

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        norm, projection = self.module.ln_post, self.module.proj
        return (norm,) if projection is None else (norm, Linear(projection.transpose(0, 1), None))


def _vit_of(visual: Any) -> OpenClipViT:
    pool: Any = getattr(visual, "attn_pool", None)
    pooling = _POOLINGS.get((visual.pool_type, pool is not None))
    if pooling is None:
        what = "no single pooled token" if pool is None else "an attentional pool"
        raise UnsupportedModelError(
            f"the VisionTransformer has {what} (pool_type={visual.pool_type!r}); supported are the "
            "CLS token (pool_type='tok'), the mean of the patches (pool_type='avg'), and the first "
            "query of an attentional pool (pool_type='tok')."
        )
    head = None if pool is None else MultiheadPoolingHead(pool, pool.attn, pool.attn.num_heads)
    return OpenClipViT(
        module=visual,
        native=tuple(visual.image_size),
        patch=tuple(visual.patch_size),
        remade_by=timm.FORCED_SIZE,
        stem=visual.conv1,
        layers=_layers_of(visual.transformer),
        pooling=pooling,
        pooling_head=head,
        steps_before_mean=0 if visual.final_ln_after_pool else 1,
    )


def _layers_of(transformer: Any) -> tuple[AttentionLayer, ...]:
    """The blocks of a transformer of OpenCLIP, of images or texts."""
    from open_clip.transformer import Attention, CustomResidualAttentionBlock

    layers: list[AttentionLayer] = []
    for index, block in enumerate(transformer.resblocks):
        attention: Any = getattr(block, "attn", None)
        fits = isinstance(attention, (nn.MultiheadAttention, Attention))
        supported = f"a torch.nn.MultiheadAttention or OpenCLIP's Attention in layer {index}"
        expect(fits, supported, attention, error=UnsupportedModelError)
        kind = CustomLayer if isinstance(block, CustomResidualAttentionBlock) else OpenClipLayer
        layers.append(kind(block, attention, attention.num_heads))
    return tuple(layers)


class FeaturePool(MultiheadPoolingHead):
    """The `AttentionPool2d` of a `ModifiedResNet`, whose query is the mean of the features."""

    maps = ("q_proj", "k_proj", "v_proj", "c_proj")

    @override
    def output(self, result: Any) -> Tensor:
        return tensor_in(result)[:, None]

    @property
    @override
    def positions(self) -> Tensor:
        return self.attention.positional_embedding  # type: ignore[no-any-return]


def modified_resnet(visual: Any, side: Any) -> ResNetTower:
    """The tower in a `ModifiedResNet`, with its attention pool, for images of a side."""
    pool = visual.attnpool
    return ResNetTower(
        module=visual,
        native=(int(side), int(side)),
        patch=(32, 32),
        remade_by="by name, with {image_size}",
        pooling="attention",
        prefix=1,
        pooling_head=FeaturePool(pool, pool, pool.num_heads),
        stages={f"layer{i}": getattr(visual, f"layer{i}") for i in (4, 3, 2, 1)},
    )


def resample_pool(visual: Any, side: int) -> None:
    """Make a `ModifiedResNet` one for images of another side in pixels.

    The positions of its attention pool are resampled as OpenCLIP does a ViT's: bicubically, with
    antialiasing, and the mean token's stays.
    """
    from timm.layers import resample_abs_pos_embed

    cells = max(1, side // 32)  # a side that is no multiple is refused later
    positions = visual.attnpool.positional_embedding.detach()[None]
    resampled = resample_abs_pos_embed(positions, [cells, cells], num_prefix_tokens=1)
    visual.attnpool.positional_embedding = nn.Parameter(resampled[0])
    visual.image_size = side
    visual.preprocess_cfg = {**visual.preprocess_cfg, "size": side}


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenClipTextTower(TextTower):
    """OpenCLIP's text transformer."""

    cls_first: bool = False  # in the mask of the first CoCa, though CLS stands at the end

    @property
    @override
    def input_module(self) -> nn.Module:
        return self.stem  # a `CLIP` calls no module for the whole of it

    @override
    def seen(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        attended = super().seen(ids, mask)
        if attended is None or not self.suffix:
            return attended
        cls = attended.new_ones(len(ids), 1)
        return torch.cat([cls, attended] if self.cls_first else [attended, cls], 1)


def _hf_text_tower(model: Any) -> TextTower | None:
    """That of a text model of transformers in OpenCLIP's `HFTextEncoder`, which makes its mask."""
    encoder = model.text
    kind, pooler = type(encoder.pooler).__name__, getattr(encoder.transformer, "pooler", None)
    row = _ROWS.get(kind, "first" if "Cls" in kind else None)
    if row is None or not is_bert(encoder.transformer):
        return None
    # a `ClsPooler` reads the pooler's output only where the text model was made with a pooler
    pools = pooler is not None and getattr(encoder.pooler, "use_pooler_output", False)
    pooler_paths = ("transformer.pooler.dense", "transformer.pooler.activation") * pools
    layout = TextLayout(
        row,
        module="text",
        table="transformer.embeddings.word_embeddings",
        encoder="transformer.encoder",
        own_head=(*pooler_paths, "proj"),
        head=(),
    )
    return text_tower_of(
        model,
        layout,
        takes_mask=False,
        pad=encoder.config.pad_token_id,
        longest=int(encoder.context_length),
        vocabulary=int(encoder.vocab_size),
    )


def _text_tower_of(model: Any) -> TextTower | None:
    """The text tower of a model of OpenCLIP; None if it is not supported."""
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

    owner = getattr(model, "text", model)  # a `CLIP` keeps the text tower's modules as its own
    if isinstance(owner, HFTextEncoder):
        return _hf_text_tower(model)
    is_plain = owner is model or isinstance(owner, TextTransformer)
    return text_tower_in(model, owner, _layers_of) if is_plain else None


def text_tower_in(
    model: Any, owner: Any, layers_of: Callable[[Any], tuple[AttentionLayer, ...]]
) -> TextTower | None:
    """The text transformer whose parts an owner has, as OpenAI's `CLIP`; None if unsupported."""
    pool: str = getattr(owner, "text_pool_type", getattr(owner, "pool_type", "argmax"))
    # a CLS of its own stands at the end
    suffix = int(getattr(owner, "cls_emb", None) is not None)
    row = "last" if suffix else _ROWS.get(pool)
    if row is None:
        return None
    projection = owner.text_projection
    if isinstance(projection, nn.Parameter):
        projection = Linear(projection.transpose(0, 1), None)
    end = getattr(owner, "text_eos_id", getattr(owner, "eos_id", None))
    return OpenClipTextTower(
        module=nn.ModuleList([owner.token_embedding, owner.transformer, owner.ln_final]),
        takes_mask=False,
        pad=owner.pad_id if suffix or getattr(owner, "use_pad_mask", False) else None,
        cls_first=bool(suffix) and not owner.correct_cls_mask,
        stem=owner.token_embedding,
        end=end if pool == "eos" else None,
        layers=layers_of(owner.transformer),
        row=row,
        causal=getattr(owner, "attn_mask", True) is not None,
        steps=(owner.ln_final,) if projection is None else (owner.ln_final, projection),
        suffix=suffix,
        longest=int(owner.context_length),
        is_fixed=owner is model,
        vocabulary=int(owner.vocab_size),
    )


def tower_of(module: Any) -> Tower:
    """The vision tower in a module of OpenCLIP; UnsupportedModelError where none is supported."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual: Any = unwrapped(getattr(module, "visual", module))
    if isinstance(visual, VisionTransformer):
        return _vit_of(visual)
    if isinstance(visual, ModifiedResNet):
        return modified_resnet(visual, visual.image_size)
    tower = timm.tower_of(visual) if isinstance(visual, TimmModel) else None
    if tower is None:
        network = type(getattr(visual, "trunk", visual)).__name__
        raise UnsupportedModelError(
            f"the visual tower of OpenCLIP's {type(module).__name__} is a {network}; supported are "
            "a VisionTransformer, a ModifiedResNet and, of timm, VisionTransformer and Eva, and "
            "ConvNeXt and FastVit with average pooling."
        )
    return tower


class OpenClipAdapter(ClipAdapter):
    """A `CLIP`, `CustomTextCLIP` or `CoCa` of OpenCLIP."""

    # CoCa would give unit embeddings by default
    options: ClassVar[Mapping[str, bool]] = {"normalize": False}

    @property
    @override
    def dtype(self) -> torch.dtype:
        # in OpenCLIP's mixed precision the first convolution tells
        modules = self.tower.module.modules()
        return next(m for m in modules if isinstance(m, nn.Conv2d)).weight.dtype

    @override
    def _text_tower(self) -> TextTower | None:
        return _text_tower_of(self.model)

    @override
    def image_features(self, images: Tensor) -> Tensor:
        return tensor_in(self.model.encode_image(images.to(self.dtype), **self.options))

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return tensor_in(self.model.encode_text(ids, **self.options))

    @override
    def _tokenize(self, texts: list[str]) -> Any:
        tokens = super()._tokenize(texts)
        return tokens if isinstance(tokens, Tensor) else tokens["input_ids"]

    @property
    @override
    def context_length(self) -> int | None:
        # the tokenizer may cut before the model does
        # 0 where a text model of transformers has no table of positions (mt5), or no tokenizer's
        lengths = (getattr(owner, "context_length", 0) for owner in (self.model, self.tokenizer))
        return min((int(length) for length in lengths if length), default=None)

    @property
    @override
    def vocabulary_size(self) -> int | None:
        # a text model of transformers keeps its own in its configuration
        text = getattr(self.model, "text", self.model)
        owner = getattr(text, "config", None) or text
        return getattr(owner, "vocab_size", None)


FAMILIES = (
    Family(
        library="open_clip",
        tower_of=tower_of,
        adapter=OpenClipAdapter,
        models=["CLIP", "CustomTextCLIP", "CoCa"],
        towers=["VisionTransformer", "ModifiedResNet", "TimmModel"],
    ),
)
