"""The blocks of transformers, of images and of texts, and the text towers that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

from torch import nn
from typing_extensions import Self, override

from ..errors import UnsupportedModelError
from .multihead import linear_maps
from .steps import Linear, Projections, flattened
from .text import PostNormLayer, TextPooling, TextTower
from .towers import AttentionLayer, Exposed
from .unmodified import nonlinear_parts


class HuggingFaceLayer(AttentionLayer):
    """A `CLIPEncoderLayer` and its `CLIPAttention`; others say what their parts are called."""

    block: Any
    attention: Any

    attention_part = "self_attn"
    heads_part = "num_heads"
    maps: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Query, key, value and output; or one for the first three, and the output."""
    mlp_parts: tuple[str, ...] = ("layer_norm2", "mlp")

    def __init__(self, block: Any) -> None:
        attention = attrgetter(self.attention_part)(block)
        super().__init__(block, attention, attrgetter(self.heads_part)(attention))

    @override
    def projections(self) -> Projections:
        *inputs, output = map(Linear.of, _parts(self.attention, self.maps))
        if len(inputs) == 1:
            inputs = linear_maps(inputs[0].weight.chunk(3), inputs[0].bias)
        return Projections._make((*inputs, output))

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        *inputs, output = _parts(self.attention, self.maps)
        names: tuple[Exposed, ...] = ("query", "key", "value") if len(inputs) == 3 else ()
        exposed = {name: (module, True) for name, module in zip(names, inputs, strict=False)}
        return {**exposed, "heads_output": (output, False)}


class BertLayer(PostNormLayer, HuggingFaceLayer):
    """A `BertLayer` or one of its relatives, whose norms follow the sums."""

    attention_part = "attention"
    heads_part = "self.num_attention_heads"
    maps = ("self.query", "self.key", "self.value", "output.dense")
    mlp_parts = ("intermediate", "output.dense")

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        # the module around both adds its input and norms the sum
        self.input_module, self.output_module = self.attention.self, self.attention.output.dense

    @property
    @override
    def stream_norms(self) -> tuple[nn.Module, nn.Module]:
        return self.attention.output.LayerNorm, self.block.output.LayerNorm


def _parts(owner: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(attrgetter(name)(owner) for name in names)


Layer = TypeVar("Layer", bound=HuggingFaceLayer)


def layers_of(kind: type[Layer], encoder: Any, tower: str = "vision tower") -> tuple[Layer, ...]:
    """The blocks of an encoder, each as a layer; their maps must be linear."""
    layers = tuple(map(kind, encoder.layers if hasattr(encoder, "layers") else encoder.layer))
    for index, layer in enumerate(layers):
        check_linear(f"layer {index} of the {tower}", layer.attention, kind.maps)
    return layers


def check_linear(where: str, owner: nn.Module, names: Sequence[str]) -> None:
    """Refuse maps that are more than linear: wrapped (LoRA), quantised or hooked."""
    for what in nonlinear_parts(owner, names):
        raise UnsupportedModelError(
            f"{where} has {what}; expected torch.nn.Linear with floating-point weights. Merge "
            "adapters such as LoRA into the weights first, load the model without quantisation, "
            "and remove hooks from it, which may change what it computes."
        )


class TextLayout(NamedTuple):
    """Where a model of transformers keeps the parts of its text tower; names may be paths."""

    module: str = "text_model"  # what token ids enter
    table: str = "embeddings.word_embeddings"  # of the token embeddings, in `module`
    encoder: str = "encoder"  # what has the layers, in `module`
    layer: type[HuggingFaceLayer] = BertLayer  # what they are
    own_head: tuple[str, ...] = ()  # what the token that is read goes through in `module`
    head: tuple[str, ...] = ("text_projection",)  # and after that, in the model


CLIP_TEXT: Final = TextLayout(
    table="embeddings.token_embedding",
    layer=HuggingFaceLayer,
    own_head=("final_layer_norm",),
)
SIGLIP_TEXT: Final = CLIP_TEXT._replace(own_head=("final_layer_norm", "head"), head=())
BERT_TEXT: Final = TextLayout()
POOLED_BERT_TEXT: Final = TextLayout(own_head=("pooler.dense", "pooler.activation"))
ALTCLIP_TEXT: Final = TextLayout(
    table="roberta.embeddings.word_embeddings",
    encoder="roberta.encoder",
    own_head=("pre_LN", "transformation"),
)

BERTS: Final = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
"""Models whose layers are `BertLayer`s, wherever they stand."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HuggingFaceTextTower(TextTower):
    """A text transformer of transformers."""

    model: Any
    module: Any
    layout: TextLayout

    @property
    @override
    def runners(self) -> tuple[nn.Module, ...]:
        paths = accumulate(self.layout.encoder.split("."), "{}.{}".format)
        return self.model, self.module, *(attrgetter(path)(self.module) for path in paths)

    @classmethod
    def of(
        cls, model: Any, layout: TextLayout, readout: TextPooling, *, longest: int, vocabulary: int
    ) -> Self:
        """The text tower of a model; errors as :func:`layers_of`."""
        module = attrgetter(layout.module)(model)
        while not hasattr(module, layout.encoder.partition(".")[0]):
            module = module.text_model
        name, end = type(model).__name__, getattr(module.config, "eos_token_id", None)
        # configurations made before the end token was written down say 2
        largest = name.startswith("Owl") or (name.startswith("CLIP") and end == 2)
        steps = [attrgetter(name)(module) for name in layout.own_head]
        steps += [attrgetter(name)(model) for name in layout.head]
        return cls(
            module=module,
            model=model,
            layout=layout,
            embedding_table=attrgetter(layout.table)(module),
            end=None if largest else end,
            layers=layers_of(layout.layer, attrgetter(layout.encoder)(module), "text tower"),
            readout=readout,
            pooling="mean" if readout.row == "mean" else "cls",
            steps=flattened(steps),
            longest=longest,
            vocabulary=vocabulary,
        )
