"""CLIP of OpenCLIP, and of OpenAI's own package: `clip/model.py`, installed or copied."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import expect
from ..errors import TargetError, UnsupportedModelError
from .adapter import ClipAdapter, Family
from .attentions import AttentionLayer, Multihead, MultiheadPoolingHead, tensor_in
from .huggingface import TextLayout, is_bert, text_tower_of
from .library import unwrapped
from .steps import Linear, Step
from .timm import FORCED_SIZE, timm_tower
from .towers import POOLINGS, ResNetTower, TextRow, TextTower, Tower, ViTTower

# The pooled tokens of texts, by OpenCLIP's pool types and the classes of its poolers.
_ROWS: dict[str, TextRow] = {
    **{"argmax": "end", "eos": "end", "first": "first", "last": "last"},
    **{"MeanPooler": "mean", "ClsPooler": "first"},
}


class OpenClipLayer(Multihead, AttentionLayer):
    """A `ResidualAttentionBlock`.

    Up to OpenCLIP 3 its attention is a `torch.nn.MultiheadAttention`, from 4 on OpenCLIP's own.
    """

    def __init__(self, block: Any) -> None:
        super().__init__(block, block.attn, block.attn.num_heads)
        # A `CustomResidualAttentionBlock` has a norm after its attention. OpenAI's block has no
        # LayerScale.
        self.branch_paths = tuple(name for name in ("ln_attn", "ls_1") if hasattr(block, name))
        self.mlp_paths = tuple(name for name in ("ln_2", "mlp", "ls_2") if hasattr(block, name))


class OpenClipViT(ViTTower):
    """A `VisionTransformer`, whose embedding is its CLS token, a mean, or its pool's first query.

    With such a pool (CoCa) CLS is among the keys; all queries but the first are captions'.
    """

    @property
    def head(self) -> tuple[Step, ...]:
        norm, projection = self.module.ln_post, self.module.proj
        if projection is None:
            return (norm,)
        return norm, Linear(projection.transpose(0, 1), None)


def _open_clip_vit(visual: Any) -> OpenClipViT:
    pool: Any = getattr(visual, "attn_pool", None)
    pooling = POOLINGS.get(visual.pool_type)
    if pool is not None:
        # With a mean, all queries of the pool would be read.
        pooling = "attention" if pooling == "cls" else None
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
        remade_by=FORCED_SIZE,
        stem=visual.conv1,
        layers=_open_clip_layers(visual.transformer),
        pooling=pooling,
        pooling_head=head,
        steps_before_mean=0 if visual.final_ln_after_pool else 1,
    )


def _open_clip_layers(transformer: Any) -> tuple[AttentionLayer, ...]:
    """The blocks of a transformer of OpenCLIP, of images or texts."""
    from open_clip.transformer import Attention

    for index, block in enumerate(transformer.resblocks):
        attention: Any = getattr(block, "attn", None)
        fits = isinstance(attention, (nn.MultiheadAttention, Attention))
        supported = f"a torch.nn.MultiheadAttention or OpenCLIP's Attention in layer {index}"
        expect(fits, supported, attention, error=UnsupportedModelError)
    return tuple(map(OpenClipLayer, transformer.resblocks))


class FeaturePool(MultiheadPoolingHead):
    """The `AttentionPool2d` of a `ModifiedResNet`, whose query is the mean of the features."""

    maps = ("q_proj", "k_proj", "v_proj", "c_proj")

    @property
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
    def input_module(self) -> nn.Module:
        return self.stem  # a `CLIP` calls no module for the whole of it

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
    # A `ClsPooler` reads the pooler's output only where the text model was made with a pooler.
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


def text_tower_in(
    model: Any, owner: Any, layers_of: Callable[[Any], tuple[AttentionLayer, ...]]
) -> TextTower | None:
    """The text transformer whose parts an owner has, as OpenAI's `CLIP`; None if unsupported."""
    pool: str = getattr(owner, "text_pool_type", getattr(owner, "pool_type", "argmax"))
    # A CLS token of the tower's own stands at the end.
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


def _open_clip_tower(module: Any) -> Tower:
    """The vision tower in a module of OpenCLIP; UnsupportedModelError where none is supported."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual: Any = unwrapped(getattr(module, "visual", module))
    if isinstance(visual, VisionTransformer):
        return _open_clip_vit(visual)
    if isinstance(visual, ModifiedResNet):
        return modified_resnet(visual, visual.image_size)
    tower = timm_tower(visual) if isinstance(visual, TimmModel) else None
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

    # CoCa would return unit embeddings by default.
    options: ClassVar[Mapping[str, bool]] = {"normalize": False}

    @property
    def dtype(self) -> torch.dtype:
        # In OpenCLIP's mixed precision, the first convolution has the type that images need.
        return next(m for m in self.tower.module.modules() if isinstance(m, nn.Conv2d)).weight.dtype

    def _text_tower(self) -> TextTower | None:
        from open_clip.hf_model import HFTextEncoder
        from open_clip.transformer import TextTransformer

        # A `CLIP` keeps the text tower's modules as its own.
        owner = getattr(self.model, "text", self.model)
        if isinstance(owner, HFTextEncoder):
            return _hf_text_tower(self.model)
        if owner is self.model or isinstance(owner, TextTransformer):
            return text_tower_in(self.model, owner, _open_clip_layers)
        return None

    def image_features(self, images: Tensor) -> Tensor:
        return tensor_in(self.model.encode_image(images.to(self.dtype), **self.options))

    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return tensor_in(self.model.encode_text(ids, **self.options))

    def _tokenize(self, texts: list[str]) -> Any:
        tokens = super()._tokenize(texts)
        return tokens if isinstance(tokens, Tensor) else tokens["input_ids"]

    @property
    def context_length(self) -> int | None:
        # The tokenizer may cut before the model does. The length is 0 where a text model of
        # transformers has no table of positions (mt5), or the tokenizer has no length.
        lengths = [getattr(owner, "context_length", 0) for owner in (self.model, self.tokenizer)]
        return min((int(length) for length in lengths if length), default=None)

    @property
    def vocabulary_size(self) -> int | None:
        # A text model of transformers keeps the number in its configuration.
        text = getattr(self.model, "text", self.model)
        return getattr(getattr(text, "config", None) or text, "vocab_size", None)


class OpenAILayer(OpenClipLayer):
    """A `ResidualAttentionBlock`, with its sequence before the batch."""

    default_batch_first = False


class SplitLayer(OpenAILayer):
    """A block whose attention has a map each for queries, keys and values, as CLIP-LoRA's has."""

    # All maps are read by their weights, into which eval() merges those of LoRA. Weights that are
    # not merged are refused.
    maps = ("q_proj", "k_proj", "v_proj", "proj")


def _openai_layers(transformer: Any) -> tuple[OpenAILayer, ...]:
    layers: list[OpenAILayer] = []
    for block in transformer.resblocks:
        is_split = all(hasattr(block.attn, name) for name in SplitLayer.maps)
        fits = is_split or all(hasattr(block.attn, n) for n in ("in_proj_weight", "out_proj"))
        like = "an attention with the parts of torch.nn.MultiheadAttention, as in OpenAI's"
        expect(fits, like, block.attn, error=UnsupportedModelError)
        layers.append((SplitLayer if is_split else OpenAILayer)(block))
    return tuple(layers)


def _openai_tower(module: Any) -> Tower:
    """The vision tower in a model, or that tower."""
    visual: Any = getattr(module, "visual", module)
    if type(visual).__name__ == "ModifiedResNet":
        return modified_resnet(visual, visual.input_resolution)
    return OpenClipViT(
        module=visual,
        native=(int(visual.input_resolution),) * 2,
        patch=tuple(visual.conv1.kernel_size),
        # The package makes a model for the size of its weights alone.
        remade_by="by name, with {image_size}",
        stem=visual.conv1,
        layers=_openai_layers(visual.transformer),
        pooling="cls",
    )


class OpenAIAdapter(OpenClipAdapter):
    """A `CLIP` of OpenAI's package, with ``clip.tokenize`` and what ``clip.load`` returns."""

    options: ClassVar = {}

    def _tokenize(self, texts: list[str]) -> Any:
        try:
            return super()._tokenize(texts)
        except RuntimeError as error:  # of `clip.tokenize`
            raise TargetError(f"{str(error).rstrip('.')}; shorten it.") from error

    def count_tokens(self, text: str) -> int | None:
        if "clip" not in str(getattr(self.tokenizer, "__module__", "")).lower():
            return super().count_tokens(text)
        # The end token is the largest, and nothing but padding follows it.
        return int(torch.as_tensor(self._tokenize([text]))[0].argmax()) + 1

    def _text_tower(self) -> TextTower | None:
        return text_tower_in(self.model, self.model, _openai_layers)


class _OpenAIFamily(Family):
    """Known by the names and the parts of its classes, since many repositories hold a copy."""

    __slots__ = ()

    def holds(self, module: nn.Module) -> bool:
        # These libraries have classes of the same names.
        others = ("open_clip", "timm", "transformers", "torchvision")
        visual: Any = getattr(module, "visual", module)
        return (
            type(module).__name__ in (*self.models, *self.towers)
            and type(module).__module__.partition(".")[0] not in others
            and hasattr(visual, "input_resolution")
            and (hasattr(visual, "attnpool") or hasattr(visual, "transformer"))
        )


_VITS = ("VisionTransformer", "VisualTransformer", "VisionTransformer_MaPLe")
OPENAI = _OpenAIFamily("clip", _openai_tower, OpenAIAdapter, ["CLIP"], [*_VITS, "ModifiedResNet"])
OPEN_CLIP = Family(
    "open_clip",
    _open_clip_tower,
    OpenClipAdapter,
    models=["CLIP", "CustomTextCLIP", "CoCa"],
    towers=["VisionTransformer", "ModifiedResNet", "TimmModel"],
)
