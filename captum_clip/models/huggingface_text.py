"""The text towers of transformers: those of CLIP's layout, SigLIP's among them, and BERT's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, NamedTuple

from torch import Tensor, nn
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
    """Where a model of transformers keeps the parts of its text tower; names may be paths.

    Attributes:
        module: what token ids enter.
        table: of the token embeddings, in `module`.
        encoder: what has the layers, in `module`.
        layer: what they are here.
        own_head: what the token that is read goes through in `module`.
        head: what it goes through after that, in the model.
    """

    module: str = "text_model"
    table: str = "embeddings.word_embeddings"
    encoder: str = "encoder"
    layer: type[HuggingFaceLayer] = BertLayer
    own_head: tuple[str, ...] = ()
    head: tuple[str, ...] = ("text_projection",)


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
    def embedding_table(self) -> nn.Module:
        table: nn.Module = attrgetter(self.layout.table)(self.module)
        return table

    @override
    def end_rows(self, ids: Tensor) -> Tensor:
        name, end = type(self.model).__name__, self.module.config.eos_token_id
        # configurations made before the end token was written down say 2
        if name.startswith("Owl") or (name.startswith("CLIP") and end == 2):
            return ids.int().argmax(-1)
        rows: Tensor = (ids == end).int().argmax(-1)
        return rows

    @property
    @override
    def runners(self) -> tuple[nn.Module, ...]:
        paths = accumulate(self.layout.encoder.split("."), "{}.{}".format)
        return self.model, self.module, *(attrgetter(path)(self.module) for path in paths)

    @classmethod
    def of(
        cls, model: Any, layout: TextLayout, readout: TextReadout, *, longest: int, vocabulary: int
    ) -> Self:
        """The text tower of a model.

        Raises:
            UnsupportedModelError: its attention is not made of plain linear maps.
        """
        module = attrgetter(layout.module)(model)
        while not hasattr(module, layout.encoder.partition(".")[0]):
            module = module.text_model
        steps = [attrgetter(name)(module) for name in layout.own_head]
        steps += [attrgetter(name)(model) for name in layout.head]
        return cls(
            module=module,
            model=model,
            layout=layout,
            layers=layers_of(layout.layer, attrgetter(layout.encoder)(module), "text tower"),
            readout=readout,
            pooling="mean" if readout.row == "mean" else "cls",
            steps=flattened(steps),
            longest=longest,
            vocabulary=vocabulary,
        )
