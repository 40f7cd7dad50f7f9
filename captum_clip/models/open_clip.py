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

# The keys are OpenCLIP's pool types of texts, and the classes of its poolers.
_ROWS: dict[str, TextRow] = {
    "argmax": "end",
    "eos": "end",
    "first": "first",
    "last": "last",
    "MeanPooler": "mean",
    "ClsPooler": "first",
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

    With such a pool (CoCa), CLS is among the keys, and all queries but the first are for captions.
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
    pooling_head = None
    unsupported = "no single pooled token"
    if pool is not None:
        unsupported = "an attentional pool"
        # With a mean, all queries of the pool would be read.
        pooling = "attention" if pooling == "cls" else None
        pooling_head = MultiheadPoolingHead(pool, pool.attn, pool.attn.num_heads)
    if pooling is None:
        raise UnsupportedModelError(
            f"the VisionTransformer has {unsupported} (pool_type={visual.pool_type!r}); supported "
            "are the CLS token (pool_type='tok'), the mean of the patches (pool_type='avg'), and "
            "the first query of an attentional pool (pool_type='tok')."
        )
    return OpenClipViT(
        module=visual,
        native=tuple(visual.image_size),
        patch=tuple(visual.patch_size),
        remade_by=FORCED_SIZE,
        stem=visual.conv1,
        layers=_open_clip_layers(visual.transformer),
        pooling=pooling,
        pooling_head=pooling_head,
        steps_before_mean=0 if visual.final_ln_after_pool else 1,
    )


def _open_clip_layers(transformer: Any) -> tuple[AttentionLayer, ...]:
    """The blocks of a transformer of OpenCLIP, for images or texts."""
    from open_clip.transformer import Attention

    layers = []
    for index, block in enumerate(transformer.resblocks):
        attention: Any = getattr(block, "attn", None)
        fits = isinstance(attention, (nn.MultiheadAttention, Attention))
        supported = f"a torch.nn.MultiheadAttention or OpenCLIP's Attention in layer {index}"
        expect(fits, supported, attention, error=UnsupportedModelError)
        layers.append(OpenClipLayer(block))
    return tuple(layers)


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
        patch=(32, 32),  # The strides of its convolutions and pools halve an image five times.
        remade_by="by name, with {image_size}",
        pooling="attention",
        prefix=1,
        pooling_head=FeaturePool(pool, pool, pool.num_heads),
        stages={f"layer{i}": getattr(visual, f"layer{i}") for i in (4, 3, 2, 1)},
    )


def resample_pool(visual: Any, side: int) -> None:
    """Change a `ModifiedResNet` into one for images of another side in pixels.

    The positions of its attention pool are resampled as OpenCLIP does with those of a ViT:
    bicubically, with antialiasing, and without changing the position of the mean token.
    """
    from timm.layers import resample_abs_pos_embed

    # A side that is no multiple of 32 is refused later.
    cells = max(1, side // 32)
    positions = visual.attnpool.positional_embedding.detach()[None]
    resampled = resample_abs_pos_embed(positions, [cells, cells], num_prefix_tokens=1)
    visual.attnpool.positional_embedding = nn.Parameter(resampled[0])
    visual.image_size = side
    visual.preprocess_cfg = {**visual.preprocess_cfg, "size": side}


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenClipTextTower(TextTower):
    """OpenCLIP's text transformer."""

    # The first CoCa masks as if CLS stood at the start, though it stands at the end.
    cls_first: bool = False

    @property
    def input_module(self) -> nn.Module:
        # A `CLIP` has no module for the whole text tower.
        return self.stem

    def seen(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        attended = super().seen(ids, mask)
        if attended is None or not self.suffix:
            return attended
        cls = attended.new_ones(len(ids), 1)
        if self.cls_first:
            return torch.cat([cls, attended], 1)
        return torch.cat([attended, cls], 1)


def _hf_text_tower(model: Any) -> TextTower | None:
    """The text tower of transformers in OpenCLIP's `HFTextEncoder`, which makes its own mask."""
    encoder = model.text
    pooler_class = type(encoder.pooler).__name__
    row = _ROWS.get(pooler_class, "first" if "Cls" in pooler_class else None)
    if row is None or not is_bert(encoder.transformer):
        return None
    head: tuple[str, ...] = ("proj",)
    # A `ClsPooler` reads the text model's pooler only if the text model was made with one.
    has_pooler = getattr(encoder.transformer, "pooler", None) is not None
    if has_pooler and getattr(encoder.pooler, "use_pooler_output", False):
        head = ("transformer.pooler.dense", "transformer.pooler.activation", "proj")
    layout = TextLayout(
        row,
        module="text",
        table="transformer.embeddings.word_embeddings",
        encoder="transformer.encoder",
        own_head=head,
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
    # A `CLIP` names its parts `text_...`, and a `TextTransformer` does not.
    pool_type: str = getattr(owner, "text_pool_type", getattr(owner, "pool_type", "argmax"))
    end: int | None = None
    if pool_type == "eos":
        end = getattr(owner, "text_eos_id", getattr(owner, "eos_id", None))
    # CoCa's text tower has a CLS token, which stands at the end.
    has_cls = getattr(owner, "cls_emb", None) is not None
    row = "last" if has_cls else _ROWS.get(pool_type)
    if row is None:
        return None
    masks_padding = has_cls or getattr(owner, "use_pad_mask", False)
    steps: list[Step] = [owner.ln_final]
    projection = owner.text_projection
    if isinstance(projection, nn.Parameter):
        steps.append(Linear(projection.transpose(0, 1), None))
    elif projection is not None:
        steps.append(projection)
    return OpenClipTextTower(
        # A `CLIP` has no module of its own for these.
        module=nn.ModuleList([owner.token_embedding, owner.transformer, owner.ln_final]),
        takes_mask=False,
        pad=owner.pad_id if masks_padding else None,
        cls_first=has_cls and not owner.correct_cls_mask,
        stem=owner.token_embedding,
        end=end,
        layers=layers_of(owner.transformer),
        row=row,
        # OpenAI's `CLIP`, which is causal, keeps its mask in the blocks.
        causal=getattr(owner, "attn_mask", True) is not None,
        steps=tuple(steps),
        suffix=int(has_cls),
        longest=int(owner.context_length),
        is_fixed=owner is model,  # A `CLIP` adds its whole table of positions.
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
        modules = self.tower.module.modules()
        first = next(module for module in modules if isinstance(module, nn.Conv2d))
        return first.weight.dtype

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
        # The tokenizer may cut a text before the model does. The length is 0 if a text model of
        # transformers has no table of positions (mt5), and the tokenizer may have none.
        lengths = []
        for owner in (self.model, self.tokenizer):
            length = getattr(owner, "context_length", None)
            if length:
                lengths.append(int(length))
        return min(lengths, default=None)

    @property
    def vocabulary_size(self) -> int | None:
        text = getattr(self.model, "text", self.model)
        # A text model of transformers keeps the number in its configuration.
        owner = getattr(text, "config", None) or text
        return getattr(owner, "vocab_size", None)


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
        if all(hasattr(block.attn, name) for name in SplitLayer.maps):
            layers.append(SplitLayer(block))
            continue
        fits = hasattr(block.attn, "in_proj_weight") and hasattr(block.attn, "out_proj")
        supported = "an attention with the parts of torch.nn.MultiheadAttention, as in OpenAI's"
        expect(fits, supported, block.attn, error=UnsupportedModelError)
        layers.append(OpenAILayer(block))
    return tuple(layers)


def _openai_tower(module: Any) -> Tower:
    """The tower of a vision module, or of the model around one."""
    visual: Any = getattr(module, "visual", module)
    if type(visual).__name__ == "ModifiedResNet":
        return modified_resnet(visual, visual.input_resolution)
    side = int(visual.input_resolution)
    return OpenClipViT(
        module=visual,
        native=(side, side),
        patch=tuple(visual.conv1.kernel_size),
        # The package makes models for no other size than that of their weights.
        remade_by="by name, with {image_size}",
        stem=visual.conv1,
        layers=_openai_layers(visual.transformer),
        pooling="cls",
    )


class OpenAIAdapter(OpenClipAdapter):
    """A `CLIP` of OpenAI's package, with ``clip.tokenize`` and the transform of ``clip.load``."""

    options: ClassVar = {}

    def _tokenize(self, texts: list[str]) -> Any:
        try:
            return super()._tokenize(texts)
        except RuntimeError as error:
            # `clip.tokenize` says that a text is too long.
            raise TargetError(f"{str(error).rstrip('.')}; shorten it.") from error

    def count_tokens(self, text: str) -> int | None:
        if "clip" not in str(getattr(self.tokenizer, "__module__", "")).lower():
            return super().count_tokens(text)
        # The end token is the largest, and nothing but padding follows it.
        return int(torch.as_tensor(self._tokenize([text]))[0].argmax()) + 1

    def _text_tower(self) -> TextTower | None:
        return text_tower_in(self.model, self.model, _openai_layers)


class _OpenAIFamily(Family):
    """OpenAI's classes, by their names and parts, since many repositories hold a copy of them."""

    __slots__ = ()

    def holds(self, module: nn.Module) -> bool:
        if type(module).__name__ not in (*self.models, *self.towers):
            return False
        library, *_ = type(module).__module__.split(".")
        # These libraries have classes of the same names.
        if library in ("open_clip", "timm", "transformers", "torchvision"):
            return False
        visual: Any = getattr(module, "visual", module)
        has_blocks = hasattr(visual, "attnpool") or hasattr(visual, "transformer")
        return has_blocks and hasattr(visual, "input_resolution")


_VITS = ("VisionTransformer", "VisualTransformer", "VisionTransformer_MaPLe")
OPENAI = _OpenAIFamily("clip", _openai_tower, OpenAIAdapter, ["CLIP"], [*_VITS, "ModifiedResNet"])
OPEN_CLIP = Family(
    "open_clip",
    _open_clip_tower,
    OpenClipAdapter,
    models=["CLIP", "CustomTextCLIP", "CoCa"],
    towers=["VisionTransformer", "ModifiedResNet", "TimmModel"],
)
