"""The text towers of transformers: those of CLIP's layout, SigLIP's among them, and BERT's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, NamedTuple

from torch import nn
from typing_extensions import Self, override

from .huggingface_layers import HuggingFaceLayer, layers_of
from .steps import flattened
from .text import PostNormLayer, TextReadout, TextTower


class BertLayer(PostNormLayer, HuggingFaceLayer):
    """A `BertLayer` or one of its relatives, whose norms follow the sums."""

    attention_part = "attention"
    heads_part = "self.num_attention_heads"
    maps = ("self.query", "self.key", "self.value", "output.dense")
    mlp_parts = ("intermediate", "output.dense")

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        # the module around both adds its input and norms the sum
        self.inlet, self.outlet = self.attention.self, self.attention.output.dense

    @property
    @override
    def stream_norms(self) -> tuple[nn.Module, nn.Module]:
        return self.attention.output.LayerNorm, self.block.output.LayerNorm


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
        cls, model: Any, layout: TextLayout, readout: TextReadout, *, longest: int, vocabulary: int
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
