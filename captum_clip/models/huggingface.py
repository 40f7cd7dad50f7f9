"""CLIP of transformers, and the classes that were made from it: layers, towers and adapter."""

import math
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple

from torch import Tensor, nn
from typing_extensions import Self, override

from .adapter import ClipAdapter, Family
from .attentions import AttentionLayer
from .library import unwrapped
from .steps import Step, flattened
from .text import PostNormLayer, Row, TextTower
from .towers import Tower, ViTTower


class HuggingFaceLayer(AttentionLayer):
    """A `CLIPEncoderLayer` and its `CLIPAttention`; others say what their parts are called."""

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
        # `BertAttention` around both adds its input and norms the sum
        self.input_module, self.output_module = self.attention.self, self.attention.output.dense

    @property
    @override
    def stream_norms(self) -> tuple[nn.Module, nn.Module]:
        return self.attention.output.LayerNorm, self.block.output.LayerNorm


def layers_of(kind: type[HuggingFaceLayer], encoder: Any) -> tuple[HuggingFaceLayer, ...]:
    """Every block of an encoder as a layer."""
    return tuple(map(kind, encoder.layers if hasattr(encoder, "layers") else encoder.layer))


class TextLayout(NamedTuple):
    """How a model of transformers pools its texts, and where it keeps the parts of its text tower.

    Names may be paths. The defaults are those of a BERT.
    """

    row: Row = "first"
    causal: bool = False
    # As in training, or else always to one length. With another padding it is another embedding
    # where the last position is pooled, or no mask is given: SigLIP's has a cosine of .59 then.
    pads_to_longest: bool = True
    module: str = "text_model"  # takes the token ids
    table: str = "embeddings.word_embeddings"  # of the token embeddings, in `module`
    encoder: str = "encoder"  # holds the layers, in `module`
    layer: type[HuggingFaceLayer] | None = BertLayer  # their kind; None: it cannot be explained
    own_head: tuple[str, ...] = ()  # what the pooled token goes through in `module`
    head: tuple[str, ...] = ("text_projection",)  # and after that, in the model


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

_BERTS = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
_ROBERTAS = ("altclip_text_model", "roberta", "xlm-roberta", "camembert")


def is_bert(module: Any) -> bool:
    """Whether a text model has `BertLayer`s, whose tokens all see each other."""
    return type(module).__name__ in _BERTS and not getattr(module.config, "is_decoder", False)


def text_tower_of(model: Any, layout: TextLayout, **parts: Any) -> TextTower | None:
    """The text tower of a model of transformers; None where it cannot be explained."""
    if layout.layer is None:
        return None
    module = attrgetter(layout.module)(model)
    while not hasattr(module, layout.encoder.partition(".")[0]):
        module = module.text_model
    name, end = type(model).__name__, getattr(module.config, "eos_token_id", None)
    end = getattr(module, "eos_token_id", end)  # as it was when the model was made
    # configurations made before the end token was written down say 2
    largest = name.startswith("Owl") or (name.startswith("CLIP") and end == 2)
    steps = [attrgetter(name)(module) for name in layout.own_head]
    steps += [attrgetter(name)(model) for name in layout.head]
    return TextTower(
        module=module,
        stem=attrgetter(layout.table)(module),
        end=None if largest else end,
        layers=layers_of(layout.layer, attrgetter(layout.encoder)(module)),
        row=layout.row,
        causal=layout.causal,
        pooling="mean" if layout.row == "mean" else "cls",
        steps=flattened(steps),
        **parts,
    )


class HuggingFaceTower(ViTTower):
    """The vision transformer of a `CLIPModel`, with the model's projection where there is one.

    Relatives say what their parts are called.
    """

    embedding_index = 1  # the pooled output
    layer_class: ClassVar[type[HuggingFaceLayer]] = HuggingFaceLayer
    final_norm: ClassVar[str | None] = "post_layernorm"
    patch_map: ClassVar[str] = "embeddings.patch_embedding"
    projection_path: ClassVar[str] = "visual_projection"
    # whether positions only change with the size where that is asked for
    asks_to_interpolate: ClassVar[bool] = True

    @classmethod
    def from_module(cls, module: Any) -> Self:
        """The tower in a module of its family."""
        vision = vision_of(module)
        config, patch = vision.config, int(vision.config.patch_size)
        count = getattr(config, "num_patches", None)  # of NaFlex
        side = int(config.image_size) if count is None else math.isqrt(count) * patch
        return cls(
            module=vision,
            native=(side, side),
            patch=(patch, patch),
            stem=attrgetter(cls.patch_map)(vision),
            layers=layers_of(cls.layer_class, vision.encoder),
            projection_module=getattr(module, cls.projection_path, None),
            **{"pooling": "cls", "resizable": True, **cls.fields(vision)},
        )

    @staticmethod
    def fields(vision: Any) -> dict[str, Any]:
        """The fields in which a relative differs: CLS is pooled, positions are interpolated."""
        return {}

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        # without a projection it ends after the norm
        norm = None if self.final_norm is None else getattr(self.module, self.final_norm)
        return tuple(step for step in (norm, self.projection_module) if step is not None)


class HuggingFaceAdapter(ClipAdapter):
    """A `CLIPModel` of transformers, or another with its parts."""

    tower: Any

    def __init__(
        self, model: nn.Module, tower: Tower, *, text: TextLayout = CLIP_TEXT, **parts: Any
    ) -> None:
        super().__init__(model, tower, **parts)
        self.text_layout, self.pads_to_longest = text, text.pads_to_longest

    @override
    def _text_tower(self) -> TextTower | None:
        sizes = {"longest": self.context_length, "vocabulary": self.vocabulary_size}
        return text_tower_of(self.model, self.text_layout, **sizes)

    @override
    def image_features(self, images: Tensor) -> Tensor:
        return embedding_of(self.model.get_image_features(**self._vision_inputs(images)))

    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        # not every class, in every version, casts pixels inside or knows of interpolation
        tower, size = self.tower, tuple(images.shape[-2:])
        resized = tower.asks_to_interpolate and size != tower.native
        options = {"interpolate_pos_encoding": True} if resized else {}
        return {"pixel_values": images.to(self.dtype), **options}

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return embedding_of(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    @property
    @override
    def context_length(self) -> int:
        config = self.model.config.text_config
        # positions of RoBERTa's relatives begin after that of the padding token
        taken = config.pad_token_id + 1 if config.model_type in _ROBERTAS else 0
        return int(config.max_position_embeddings) - taken

    @property
    @override
    def vocabulary_size(self) -> int:
        return int(self.model.config.text_config.vocab_size)


def vision_of(module: Any) -> Any:
    """The vision transformer in a model, or in what wraps it."""
    while not hasattr(module, "encoder"):
        module = module.image_model if hasattr(module, "image_model") else module.vision_model
    return unwrapped(module)


def embedding_of(features: Any) -> Tensor:
    """The embeddings in what `get_image_features` or `get_text_features` returned."""
    # a tensor in transformers 4, an output object in 5
    embeddings: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    # FLAVA projects every token, and its score reads the first
    return embeddings[:, 0] if embeddings.ndim == 3 else embeddings


_VISION_KINDS = ("VisionModel", "VisionModelWithProjection", "VisionTransformer", "ImageModel")


def transformers_family(
    name: str,
    prefix: str,
    adapter: type[HuggingFaceAdapter] = HuggingFaceAdapter,
    tower: Any = HuggingFaceTower,
    text: TextLayout = CLIP_TEXT,
    *,
    model: str = "Model",
) -> Family:
    """The family in a module of transformers, whose classes are called by a prefix and a kind."""
    return Family(
        library=f"transformers.models.{name}",
        tower_of=tower.from_module,
        adapter=partial(adapter, text=text),
        models=[prefix + model],
        towers=[prefix + kind for kind in _VISION_KINDS],
    )


FAMILIES = (
    transformers_family("clip", "CLIP"),
    transformers_family("metaclip_2", "MetaClip2"),
    transformers_family("altclip", "AltCLIP", text=ALTCLIP_TEXT),
    transformers_family("chinese_clip", "ChineseCLIP", text=TextLayout()),
    transformers_family("clipseg", "CLIPSeg"),
    transformers_family("owlvit", "OwlViT"),
    transformers_family("owlv2", "Owlv2"),
)
"""Families with CLIP's vision tower."""
