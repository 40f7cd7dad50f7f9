"""Models of OpenAI's own package: `clip/model.py`, installed or copied into another repository."""

from typing import Any, ClassVar, Final

import torch
from torch import nn
from typing_extensions import override

from ..checks import expect
from ..errors import TargetError, UnsupportedModelError
from .adapter import Family
from .open_clip import (
    OpenClipAdapter,
    OpenClipLayer,
    OpenClipViT,
    modified_resnet,
    text_tower_in,
)
from .text import TextTower
from .towers import Tower

_VITS: Final = ("VisionTransformer", "VisualTransformer", "VisionTransformer_MaPLe")
_OTHERS: Final = ("open_clip", "timm", "transformers", "torchvision")  # with classes of such names


class OpenAILayer(OpenClipLayer):
    """A `ResidualAttentionBlock`, with its sequence before the batch."""

    branch_paths = ()
    mlp_paths = ("ln_2", "mlp")
    batch_first_unless_told = False


class SplitLayer(OpenAILayer):
    """A block whose attention has a map each for queries, keys and values, as CLIP-LoRA's has."""

    # all by their weights, into which eval() merges LoRA's; what is not merged is refused
    maps = ("q_proj", "k_proj", "v_proj", "proj")


def _layers_of(transformer: Any) -> tuple[OpenAILayer, ...]:
    layers: list[OpenAILayer] = []
    for block in transformer.resblocks:
        attention = block.attn
        is_split = all(hasattr(attention, name) for name in SplitLayer.maps)
        fits = is_split or (hasattr(attention, "in_proj_weight") and hasattr(attention, "out_proj"))
        like = "an attention with the parts of torch.nn.MultiheadAttention, as in OpenAI's"
        expect(fits, like, attention, error=UnsupportedModelError)
        kind = SplitLayer if is_split else OpenAILayer
        layers.append(kind(block, attention, attention.num_heads))
    return tuple(layers)


def _tower_of(module: Any) -> Tower:
    """The vision tower in a model, or that tower."""
    visual: Any = getattr(module, "visual", module)
    if type(visual).__name__ == "ModifiedResNet":
        return modified_resnet(visual, visual.input_resolution)
    return OpenClipViT(
        module=visual,
        native=(int(visual.input_resolution),) * 2,
        patch=tuple(visual.conv1.kernel_size),
        # the package makes one for the size of its weights alone
        remade_by="by name, with {image_size}",
        stem=visual.conv1,
        layers=_layers_of(visual.transformer),
        pooling="cls",
    )


class OpenAIAdapter(OpenClipAdapter):
    """A `CLIP` of OpenAI's package, with ``clip.tokenize`` and what ``clip.load`` returns."""

    options: ClassVar = {}

    @override
    def _tokenize(self, texts: list[str]) -> Any:
        try:
            return super()._tokenize(texts)
        except RuntimeError as error:  # of `clip.tokenize`
            raise TargetError(f"{str(error).rstrip('.')}; shorten it.") from error

    @override
    def count_tokens(self, text: str) -> int | None:
        if "clip" not in str(getattr(self.tokenizer, "__module__", "")).lower():
            return super().count_tokens(text)
        # the end token is the largest, and nothing but padding follows it
        return int(torch.as_tensor(self._tokenize([text]))[0].argmax()) + 1

    @override
    def _text_tower(self) -> TextTower | None:
        return text_tower_in(self.model, self.model, _layers_of)


class _OpenAIFamily(Family):
    """Known by the names and the parts of its classes, since many repositories hold a copy."""

    __slots__ = ()

    @override
    def holds(self, module: nn.Module) -> bool:
        visual: Any = getattr(module, "visual", module)
        return (
            type(module).__name__ in (*self.models, *self.towers)
            and type(module).__module__.partition(".")[0] not in _OTHERS
            and hasattr(visual, "input_resolution")
            and (hasattr(visual, "attnpool") or hasattr(visual, "transformer"))
        )


FAMILIES = (
    _OpenAIFamily(
        library="clip",
        tower_of=_tower_of,
        adapter=OpenAIAdapter,
        models=["CLIP"],
        towers=[*_VITS, "ModifiedResNet"],
    ),
)
