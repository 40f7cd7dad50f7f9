"""Models of transformers: CLIP, and its relatives, which keep the same parts under other names."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from ..checks import expect
from ..errors import CaptureError, InputError, UnsupportedModelError
from .adapter import ClipAdapter, Family
from .attentions import (
    AttentionLayer,
    LatentPoolingHead,
    MultiheadPoolingHead,
    PooledToken,
    PostNormLayer,
    tensor_in,
    with_tensor,
)
from .images import as_it_takes, from_patches, image_processor, to_patches
from .library import unwrapped
from .steps import Residual, Step, flattened
from .towers import Entry, TextRow, TextTower, Tower, ViTTower


class HuggingFaceLayer(AttentionLayer):
    """A `CLIPEncoderLayer` and its `CLIPAttention`; subclasses override the names of the parts."""

    attention_path = "self_attn"
    heads_path = "num_heads"
    maps: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    mlp_paths: tuple[str, ...] = ("layer_norm2", "mlp")

    def __init__(self, block: Any) -> None:
        attention = attrgetter(self.attention_path)(block)
        super().__init__(block, attention, attrgetter(self.heads_path)(attention))


class BertLayer(PostNormLayer, HuggingFaceLayer):
    """A `BertLayer` or a relative of it, whose norms follow the sums."""

    attention_path = "attention"
    heads_path = "self.num_attention_heads"
    maps = ("self.query", "self.key", "self.value", "output.dense")
    mlp_paths = ("intermediate", "output.dense")

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        # The `BertAttention` around these two modules adds its input, and norms the sum.
        self.input_module = self.attention.self
        self.output_module = self.attention.output.dense

    @property
    def stream_norms(self) -> tuple[nn.Module, nn.Module]:
        return self.attention.output.LayerNorm, self.block.output.LayerNorm


def layers_of(layer_class: type[HuggingFaceLayer], encoder: Any) -> tuple[HuggingFaceLayer, ...]:
    """Every block of an encoder as a layer."""
    blocks = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    return tuple(map(layer_class, blocks))


class TextLayout(NamedTuple):
    """How a model of transformers pools its texts, and where it keeps the parts of its text tower.

    The strings are paths of modules. The defaults are those of a BERT.
    """

    row: TextRow = "first"
    causal: bool = False
    # The model was trained with texts padded to the longest, or all to one length. Other padding
    # changes the embedding if the last position is pooled, or if no mask is given. SigLIP's two
    # embeddings of one text then have a cosine of .59.
    pads_to_longest: bool = True
    module: str = "text_model"  # takes the token ids
    table: str = "embeddings.word_embeddings"  # the table of token embeddings in `module`
    encoder: str = "encoder"  # the module that holds the layers, in `module`
    layer: type[HuggingFaceLayer] | None = BertLayer  # None if the text tower is not supported
    own_head: tuple[str, ...] = ()  # modules in `module` that the pooled token goes through
    head: tuple[str, ...] = ("text_projection",)  # modules of the model that follow them
    bert_only: bool = False  # whether the model may hold another text model than a BERT


CLIP_TEXT: Final = TextLayout(
    "end",
    causal=True,
    table="embeddings.token_embedding",
    layer=HuggingFaceLayer,
    own_head=("final_layer_norm",),
)
ALTCLIP_TEXT: Final = TextLayout(
    table="roberta.embeddings.word_embeddings",
    encoder="roberta.encoder",
    own_head=("pre_LN", "transformation"),
)


def is_bert(module: Any) -> bool:
    """Whether a text model has `BertLayer`s, whose tokens all see each other."""
    berts = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
    return type(module).__name__ in berts and not getattr(module.config, "is_decoder", False)


def text_tower_of(model: Any, layout: TextLayout, **parts: Any) -> TextTower | None:
    """The text tower of a model of transformers; None if it is not supported."""
    if layout.layer is None:
        return None
    if layout.bert_only and not is_bert(model.text_model):
        return None
    module = attrgetter(layout.module)(model)
    # Some models keep their text transformer in a wrapper.
    while not hasattr(module, layout.encoder.partition(".")[0]):
        module = module.text_model
    # The module keeps the end token as it was when the model was made.
    end = getattr(module, "eos_token_id", getattr(module.config, "eos_token_id", None))
    class_name = type(model).__name__
    # Old configurations of CLIP have 2 for the end token, which is then the largest token.
    if class_name.startswith("Owl") or (class_name.startswith("CLIP") and end == 2):
        end = None
    encoder = attrgetter(layout.encoder)(module)
    steps = [attrgetter(path)(module) for path in layout.own_head]
    steps += [attrgetter(path)(model) for path in layout.head]
    return TextTower(
        module=module,
        stem=attrgetter(layout.table)(module),
        end=end,
        layers=layers_of(layout.layer, encoder),
        row=layout.row,
        causal=layout.causal,
        pooling="mean" if layout.row == "mean" else "cls",
        steps=flattened(steps),
        **parts,
    )


class HuggingFaceTower(ViTTower):
    """The vision transformer of a `CLIPModel`, with the model's projection if there is one.

    Its relatives override the names of their parts.
    """

    embedding_index = 1  # the pooled output
    layer_class: ClassVar[type[HuggingFaceLayer]] = HuggingFaceLayer
    final_norm: ClassVar[str | None] = "post_layernorm"
    patch_map: ClassVar[str] = "embeddings.patch_embedding"
    projection_path = "visual_projection"
    # The library interpolates positions only with an option in the call.
    asks_to_interpolate: ClassVar[bool] = True

    @classmethod
    def from_module(cls, module: Any) -> Self:
        """Find the tower in a module of its family."""
        vision = vision_of(module)
        config = vision.config
        patch = int(config.patch_size)
        patch_count = getattr(config, "num_patches", None)
        if patch_count is None:
            side = int(config.image_size)
        else:
            # NaFlex has no native size, but a native number of patches.
            row_count = math.isqrt(patch_count)
            side = row_count * patch
        fields = {"pooling": "cls", "resizable": True, **cls.fields(vision)}
        return cls(
            module=vision,
            native=(side, side),
            patch=(patch, patch),
            stem=attrgetter(cls.patch_map)(vision),
            layers=layers_of(cls.layer_class, vision.encoder),
            projection_module=getattr(module, cls.projection_path, None),
            **fields,
        )

    @staticmethod
    def fields(vision: Any) -> dict[str, Any]:
        """The fields in which a relative differs from CLIP, which pools CLS and can be resized."""
        return {}

    @property
    def head(self) -> tuple[Step, ...]:
        steps: list[Step] = []
        if self.final_norm is not None:
            steps.append(getattr(self.module, self.final_norm))
        if self.projection_module is not None:
            steps.append(self.projection_module)
        return tuple(steps)


class HuggingFaceAdapter(ClipAdapter):
    """A `CLIPModel` of transformers, or another with its parts."""

    tower: Any

    def __init__(
        self, model: nn.Module, tower: Tower, *, text: TextLayout = CLIP_TEXT, **parts: Any
    ) -> None:
        super().__init__(model, tower, **parts)
        self.text_layout = text
        self.pads_to_longest = text.pads_to_longest

    def _text_tower(self) -> TextTower | None:
        return text_tower_of(
            self.model,
            self.text_layout,
            longest=self.context_length,
            vocabulary=self.vocabulary_size,
        )

    def image_features(self, images: Tensor) -> Tensor:
        features = self.model.get_image_features(**self._vision_inputs(images))
        return embedding_of(features)

    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        # Some classes and versions do not cast pixels themselves.
        inputs: dict[str, Any] = {"pixel_values": images.to(self.dtype)}
        # Some do not know of interpolation, so the option is given only where it is needed.
        is_resized = tuple(images.shape[-2:]) != self.tower.native
        if is_resized and self.tower.asks_to_interpolate:
            inputs["interpolate_pos_encoding"] = True
        return inputs

    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        features = self.model.get_text_features(input_ids=ids, attention_mask=mask)
        return embedding_of(features)

    @property
    def context_length(self) -> int:
        config = self.model.config.text_config
        length = int(config.max_position_embeddings)
        # RoBERTa and its relatives have no text at the positions up to that of the padding token.
        if config.model_type in ("altclip_text_model", "roberta", "xlm-roberta", "camembert"):
            length -= config.pad_token_id + 1
        return length

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.config.text_config.vocab_size)


def vision_of(module: Any) -> Any:
    """The vision transformer inside a model or a wrapper of it."""
    while not hasattr(module, "encoder"):
        # FLAVA calls it an image model.
        module = module.image_model if hasattr(module, "image_model") else module.vision_model
    return unwrapped(module)


def embedding_of(features: Any) -> Tensor:
    """The embeddings in the result of `get_image_features` or `get_text_features`."""
    # transformers 4 returns a tensor, transformers 5 an output object.
    embeddings = features if isinstance(features, Tensor) else features.pooler_output
    if embeddings is None:
        raise UnsupportedModelError(
            "the model returns tokens and no embedding, as a SigLIP without its pooling head "
            "(vision_use_head=False) does; expected the whole model. Load it with its head, or "
            "give its vision tower as `layer` to a method, with a forward function of your own "
            "that pools the tokens."
        )
    # FLAVA projects every token, and its score reads the first.
    pooled: Tensor = embeddings[:, 0] if embeddings.ndim == 3 else embeddings
    return pooled


def transformers_family(
    name: str,
    prefix: str,
    adapter: type[HuggingFaceAdapter] = HuggingFaceAdapter,
    tower: Any = HuggingFaceTower,
    text: TextLayout = CLIP_TEXT,
    *,
    model: str = "Model",
) -> Family:
    """The family of the classes in a module of transformers whose names have a prefix in common."""
    suffixes = ("VisionModel", "VisionModelWithProjection", "VisionTransformer", "ImageModel")
    return Family(
        library=f"transformers.models.{name}",
        tower_of=tower.from_module,
        adapter=partial(adapter, text=text),
        models=[prefix + model],
        towers=[prefix + suffix for suffix in suffixes],
    )


# These families have CLIP's vision tower.
_CLIPS = (
    transformers_family("clip", "CLIP"),
    transformers_family("metaclip_2", "MetaClip2"),
    transformers_family("altclip", "AltCLIP", text=ALTCLIP_TEXT),
    transformers_family("chinese_clip", "ChineseCLIP", text=TextLayout()),
    transformers_family("clipseg", "CLIPSeg"),
    transformers_family("owlvit", "OwlViT"),
    transformers_family("owlv2", "Owlv2"),
)


class SiglipTower(HuggingFaceTower):
    """The vision transformer of a `SiglipModel`, whose pooling head reads patches alone.

    The head ends in the space of the texts. Without it (`vision_use_head=False`) the callable that
    uses the tower takes the mean of the patches.
    """

    projection_path = ""

    @staticmethod
    def fields(vision: Any) -> dict[str, Any]:
        # The library norms every patch before it pools them.
        fields = {"pooling": "mean", "prefix": 0, "steps_before_mean": 1}
        head = getattr(vision, "head", None)
        if head is None:
            return fields
        attention = head.attention
        pool = MultiheadPoolingHead(
            head, attention, attention.num_heads, norm=vision.post_layernorm
        )
        return {**fields, "pooling": "attention", "pooling_head": pool}

    def embedding(self, result: Any) -> Tensor:
        # Without a head the tower returns its patches, and None in place of a pooled output.
        if self.pooling_head is None:
            return tensor_in(result)
        return super().embedding(result)

    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        if self.pooling_head is None:
            return with_tensor(result, embedding)
        return super().with_embedding(result, embedding)

    @property
    def head(self) -> tuple[Step, ...]:
        if self.pooling_head is None:
            return (self.module.post_layernorm,)
        head = self.module.head
        return (Residual(flattened((head.layernorm, head.mlp))),)


class SiglipAdapter(HuggingFaceAdapter):
    """A `SiglipModel` of transformers."""

    def text_inputs(self, texts: str | Sequence[str]) -> tuple[Tensor, None]:
        ids, _ = super().text_inputs(texts)
        # SigLIP was trained without a mask, but the tokenizers of SigLIP 2 return one.
        return ids, None


class NaFlexTower(SiglipTower):
    """The vision transformer of a `Siglip2Model`."""

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
        return Entry((rows * self.patch[0], columns * self.patch[1]), len(shapes), PooledToken())


class NaFlexAdapter(SiglipAdapter):
    """A `Siglip2Model` of transformers."""

    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        patches = to_patches(images, self.tower.patch[0])
        size = self.tower.grid(images.shape[-2], images.shape[-1])
        return {
            "pixel_values": patches,
            "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.int32),
            "spatial_shapes": torch.tensor([size], device=images.device).expand(len(images), -1),
        }

    def _process(self, images: list[Image.Image]) -> Tensor:
        processor = image_processor(self._require("processor"))
        if "spatial_shapes" not in getattr(processor, "model_input_names", ()):
            return super()._process(images)
        processed = processor(images=as_it_takes(processor, images), return_tensors="pt")
        shapes = processed["spatial_shapes"]
        if (shapes != shapes[:1]).any():
            raise InputError(
                "a NaFlex model sees every image in its own shape, and these differ; "
                "preprocess and explain them one at a time, or crop them to one shape."
            )
        rows, columns = shapes[0].tolist()
        patches = processed["pixel_values"][:, : rows * columns]
        return from_patches(patches, rows, self.tower.patch[0]).float()


class Aimv2Layer(HuggingFaceLayer):
    """An `Aimv2EncoderLayer`: RMSNorm, attention, RMSNorm, a gated MLP."""

    attention_path = "attention"
    mlp_paths = ("rms_norm2", "ffn")


class Aimv2Tower(HuggingFaceTower):
    """An `Aimv2VisionModel`: patches only, read by the pooling head."""

    layer_class = Aimv2Layer
    final_norm = None
    patch_map = "embeddings.patch_embed"

    @staticmethod
    def fields(vision: Any) -> dict[str, Any]:
        return {
            "pooling": "attention",
            "pooling_head": LatentPoolingHead(vision.head, vision.rms_norm, "output_proj"),
            "prefix": 0,
            # AIMv2's "native" models compute positions for any size. Others have learned them for
            # one size.
            "resizable": bool(vision.config.is_native),
        }


class Aimv2Adapter(HuggingFaceAdapter):
    """An `Aimv2Model`."""

    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        # Without padding in the mask, the library makes no causal mask under SDPA, so a text would
        # be encoded differently alone than next to a longer one. Under a causal mask the padding
        # does not matter, since it follows the end token.
        length = ids.shape[1]
        dtype = self.model.text_projection.weight.dtype
        lowest = torch.finfo(dtype).min
        causal = torch.full((length, length), lowest, dtype=dtype, device=ids.device).triu(1)
        return super().text_features(ids, causal.expand(len(ids), 1, -1, -1))


class FirstTokenTower(HuggingFaceTower):
    """A vision transformer whose first token is read by the model around it."""

    def embedding(self, result: Any) -> Tensor:
        return tensor_in(result)[:, 0]

    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        others = tensor_in(result)[:, 1:]
        return with_tensor(result, torch.cat([embedding[:, None], others], 1))


class BlipLayer(HuggingFaceLayer):
    """A `BlipEncoderLayer`, whose attention has one map for queries, keys and values."""

    maps = ("qkv", "projection")


class BlipTower(FirstTokenTower):
    """A `BlipVisionModel`, with the retrieval head's projection if there is one.

    The head reads the first token, which is normed once, and not the pooled output, which is normed
    twice.
    """

    projection_path = "vision_proj"
    layer_class = BlipLayer


class BlipAdapter(HuggingFaceAdapter):
    """A `BlipForImageTextRetrieval`, with the cosine that ``use_itm_head=False`` gives."""

    def image_features(self, images: Tensor) -> Tensor:
        result = self.model.vision_model(**self._vision_inputs(images))
        return tensor_in(self.model.vision_proj(self.tower.embedding(result)))

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
    """The vision transformer of a `Tipsv2Model`, which has no projection.

    Its tokens are CLS, which is the embedding, a register that is a second CLS, and the patches.
    """

    projection_path = ""
    layer_class = Tipsv2Layer
    asks_to_interpolate = False
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"

    @staticmethod
    def fields(vision: Any) -> dict[str, Any]:
        return {"prefix": 1 + int(vision.config.num_register_tokens)}


class DualEncoderTower(HuggingFaceTower):
    """CLIP's vision tower in a `VisionTextDualEncoderModel`."""

    @classmethod
    def from_module(cls, module: Any) -> Self:
        vision = module.vision_model
        is_clip = any(family.holds(vision) for family in _CLIPS)
        supported = "a CLIPVisionModel in the VisionTextDualEncoderModel"
        expect(is_clip, supported, vision, error=UnsupportedModelError)
        return super().from_module(module)


# The last position is the pooled one, so other padding would give another embedding.
_SIGLIP_TEXT = CLIP_TEXT._replace(
    row="last", causal=False, pads_to_longest=False, own_head=("final_layer_norm", "head"), head=()
)
_BLIP_TEXT = TextLayout(layer=None)
_TIPSV2_TEXT = TextLayout("mean", pads_to_longest=False, layer=None)
_DUAL_TEXT = TextLayout(own_head=("pooler.dense", "pooler.activation"), bert_only=True)

HUGGING_FACE = (
    *_CLIPS,
    transformers_family("aimv2", "Aimv2", Aimv2Adapter, Aimv2Tower, CLIP_TEXT._replace(layer=None)),
    transformers_family(
        "blip", "Blip", BlipAdapter, BlipTower, _BLIP_TEXT, model="ForImageTextRetrieval"
    ),
    transformers_family("tipsv2", "Tipsv2", tower=Tipsv2Tower, text=_TIPSV2_TEXT),
    transformers_family(
        "vision_text_dual_encoder", "VisionTextDualEncoder", tower=DualEncoderTower, text=_DUAL_TEXT
    ),
    transformers_family("siglip", "Siglip", SiglipAdapter, SiglipTower, _SIGLIP_TEXT),
    transformers_family("siglip2", "Siglip2", NaFlexAdapter, NaFlexTower, _SIGLIP_TEXT),
)
