"""Models of OpenAI's own package: `clip/model.py`, installed or copied into another repository."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import TargetError, UnsupportedModelError
from .adapter import Family
from .library import add_module
from .open_clip import (
    OpenClipAdapter,
    OpenClipLayer,
    OpenClipResNet,
    OpenClipTextTower,
    OpenClipViT,
)
from .steps import Linear
from .text import TextPooling, TextTower
from .towers import Tower

_OTHERS: Final = ("open_clip", "timm", "transformers", "torchvision")  # with classes of such names
# of what is run after the last block or stage and in every block, as published: digests of the code
# in the openai-clip and clip-anytorch packages and in the repository
_CODE: Final = {
    "LayerNorm.forward": ("d385bb76c11d",),
    "QuickGELU.forward": ("2fd457f8ec07",),
    "ResidualAttentionBlock.attention": ("a42312add558", "c11455ab3e4f"),
    "ResidualAttentionBlock.forward": ("043536034a11",),
    "Transformer.forward": ("dec7c7c789bc",),
    "VisionTransformer.forward": ("e39f05416fb2",),
    "AttentionPool2d.forward": ("ee1744d545db", "eebe4ea47607"),
    "ModifiedResNet.forward": ("fbab45d56584", "abda1cfd2797"),
    "CLIP.encode_image": ("f68bbe5a29c6",),
    "CLIP.encode_text": ("8dc97bed326c", "ef289df8b28b"),
}


class OpenAILayer(OpenClipLayer):
    """A `ResidualAttentionBlock`, with its sequence before the batch."""

    residual_argument = (0, "x")
    branch_parts = ()
    mlp_parts = ("ln_2", "mlp")


class OpenAIViT(OpenClipViT):
    """A `VisionTransformer`, which the package makes for the size of its weights alone."""

    @override
    def larger(self, side: int) -> str:
        return f"load_clip(NAME, image_size={side})"


def _layers_of(transformer: Any) -> tuple[OpenAILayer, ...]:
    for block in transformer.resblocks:
        if type(block.attn) is not nn.MultiheadAttention:
            raise UnsupportedModelError(
                f"the attention of a block is a {_place(type(block.attn))}; supported is "
                "torch.nn.MultiheadAttention, as in OpenAI's clip/model.py. Load its weights with "
                "the package clip or with OpenCLIP."
            )
    return tuple(OpenAILayer(b, b.attn, b.attn.num_heads) for b in transformer.resblocks)


def _tower_of(module: Any) -> Tower:
    """The vision tower in a model, or that tower; UnsupportedModelError where its code differs."""
    visual: Any = getattr(module, "visual", module)
    known = {**_kinds(module), **_kinds(visual)}
    for difference in _differences(tuple(known)):
        raise UnsupportedModelError(
            f"{difference} is not the code of OpenAI's clip/model.py, so it is not known what it "
            "computes; load the weights with the package clip or with OpenCLIP."
        )
    for kind in known:
        add_module(kind.__module__)
    native = (int(visual.input_resolution),) * 2
    if type(visual).__name__ == "ModifiedResNet":
        stages = {f"layer{i}": getattr(visual, f"layer{i}") for i in (4, 3, 2, 1)}
        return OpenClipResNet(
            module=visual,
            native=native,
            patch=(32, 32),
            stages=stages,
            head_modules=[visual.attnpool],
        )
    return OpenAIViT(
        module=visual,
        native=native,
        patch=tuple(visual.conv1.kernel_size),
        patches=visual.conv1,
        layers=_layers_of(visual.transformer),
        pooling="cls",
        runners=[visual.transformer],
    )


def _kinds(module: nn.Module) -> dict[type, None]:
    """The classes of a model that are not PyTorch's, in its order."""
    kinds = (type(part) for part in module.modules())
    return {kind: None for kind in kinds if not kind.__module__.startswith("torch.")}


@cache
def _differences(kinds: tuple[type, ...]) -> list[str]:
    return [*_differing(kinds)]


def _differing(kinds: tuple[type, ...]) -> Iterator[str]:
    """The methods whose code is not that of the published file, by name."""
    for name, digests in _CODE.items():
        owner, _, method = name.partition(".")
        for kind in (kind for kind in kinds if kind.__name__ == owner):
            function = getattr(kind, method, None)
            if function is None or _digest(function) not in digests:
                yield f"{_place(kind)}.{method}"


def _digest(function: Any) -> str:
    """Of a function's code, without annotations, comments and docstrings, and however it is set."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # there is no source
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


class OpenAIAdapter(OpenClipAdapter):
    """A `CLIP` of OpenAI's package, with ``clip.tokenize`` and what ``clip.load`` returns."""

    @override
    def image_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(images)  # which casts them
        return features

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        features: Tensor = self.model.encode_text(ids)
        return features

    @override
    def _tokenize(self, texts: list[str]) -> Any:
        try:
            return super()._tokenize(texts)
        except RuntimeError as error:  # of `clip.tokenize`
            raise TargetError(f"tokenize: {str(error).rstrip('.')}; shorten it.") from error

    @override
    def count_tokens(self, text: str) -> int | None:
        if "clip" not in str(getattr(self.tokenizer, "__module__", "")).lower():
            return super().count_tokens(text)
        # the end token is the largest, and nothing but padding follows it
        return int(torch.as_tensor(self._tokenize([text]))[0].argmax()) + 1

    @override
    def _text_tower(self) -> TextTower:
        model: Any = self.model
        return OpenClipTextTower(
            module=nn.ModuleList([model.token_embedding, model.transformer, model.ln_final]),
            runners=(model, model.transformer),
            takes_mask=False,
            patches=model.token_embedding,
            end=None,  # the largest
            layers=_layers_of(model.transformer),
            text_pooling=TextPooling("end", causal=True, padding="max_length"),
            steps=(model.ln_final, Linear(model.text_projection.T, None)),
            longest=int(model.context_length),
            is_fixed=True,
            vocabulary=int(model.vocab_size),
        )


class _OpenAIFamily(Family):
    """Known by the names and the parts of its classes, since many repositories hold a copy."""

    __slots__ = ()

    @override
    def holds(self, module: nn.Module, names: Collection[str] | None = None) -> bool:
        names = (*self.models, *self.towers) if names is None else names
        visual: Any = getattr(module, "visual", module)
        return (
            type(module).__name__ in names
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
        towers=["VisionTransformer", "ModifiedResNet"],
        packages=["torch.nn"],  # a module counts as a library once its code was compared
    ),
)
