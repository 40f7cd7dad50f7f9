"""Changes of attentions, and of functions that many modules call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests import explicit
from tests.attr.changes import Change, Place, all_changed, changed, half, turned


def attends(place: Place) -> bool:
    """Whether it is an attention."""
    name = type(place.module).__name__
    return name.endswith(("Attention", "AttentionRope"))


def can_be_knocked_out(place: Place) -> bool:
    """Whether `knocked_out` knows how its mask is called."""
    names = ("MultiheadAttention", "CLIPAttention", "SiglipAttention", "Attention")
    return type(place.module).__name__ in names


def is_block(place: Place) -> bool:
    """Whether it is a block of a transformer."""
    return type(place.module).__name__.endswith(("EncoderLayer", "AttentionBlock", "EvaBlock"))


def knocked_out(place: Place) -> None:
    """No token may attend to the fourth one."""
    module = place.module
    multihead = isinstance(module, nn.MultiheadAttention)
    name = "attn_mask" if multihead or hasattr(module, "attn_drop") else "attention_mask"

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        tokens = tensors[min(1, len(tensors) - 1)]  # the keys
        first = getattr(module, "batch_first", True)
        size = tokens.shape[1 if first else 0]
        mask = tokens.new_zeros(len(tensors[0][0]) if first else len(tensors[0]), size)
        mask[:, 3] = -torch.inf
        return args, {**kwargs, name: mask if multihead else mask[None, None]}

    module.register_forward_pre_hook(before, with_kwargs=True)


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_mask(how: str) -> Callable[[Place], object]:
    """A mask that a pre-hook hands over by its name."""

    def make(place: Place) -> None:
        module: Any = place.module
        multihead = isinstance(module, nn.MultiheadAttention)
        open_clip = type(module).__name__ == "ResidualAttentionBlock"
        transformers = type(module).__module__.startswith("transformers.")
        name = "attention_mask" if transformers else "attn_mask"

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            rows = tensors[0].shape[1]
            size = tensors[1].shape[1] if multihead else rows
            if how == "heads":
                heads = module.num_heads
                mask = _noise(heads, rows, size)
                if multihead:
                    mask = mask.repeat(len(tensors[0]), 1, 1)
            elif how in ("bool", "causal"):
                mask = torch.ones(rows, size, dtype=torch.bool).tril()
                mask = mask ^ multihead
                if how == "causal" and not multihead:
                    return args, {**kwargs, "is_causal": True}
            else:
                mask = _noise(rows, size)
            if not (multihead or open_clip):
                mask = mask[None] if mask.ndim == 3 else mask[None, None]
            if how == "bias":
                return args, {**kwargs, "position_bias": mask}
            if len(args) > 1 and args[1] is None:
                return (args[0], mask, *args[2:]), kwargs
            return args, {**kwargs, name: mask, **({"is_causal": True} if how == "causal" else {})}

        module.register_forward_pre_hook(before, with_kwargs=True)

    return make


def scaled(attend: Callable[..., Any]) -> Callable[..., Any]:
    """A function of queries, keys and values that takes half of the queries."""
    return lambda query, *args, **options: attend(0.5 * query, *args, **options)


def halving(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns half of its result."""
    return lambda *args, **options: changed(function(*args, **options), half)


def with_function(name: str, around: Callable[[Any], Any]) -> Callable[[Place], object]:
    """A function of torch.nn.functional put another one around, which the oracle keeps."""

    def make(place: Place) -> None:
        place.stack.enter_context(explicit.without_fast_path())
        place.stack.enter_context(patch.object(F, name, around(getattr(F, name))))
        place.stack.enter_context(patch.dict(explicit.AROUND, {name: around}))

    return make


def scaled_while_it_runs(place: Place) -> None:
    """The function of torch, exchanged within one module."""
    place.stack.enter_context(explicit.without_fast_path())
    running: list[Any] = []

    def before(*_: Any) -> None:
        name = "scaled_dot_product_attention"
        running.append(patch.object(F, name, scaled(getattr(F, name))))
        running[-1].start()

    def after(*_: Any) -> None:
        if running:
            running.pop().stop()

    place.module.register_forward_pre_hook(before)
    place.module.register_forward_hook(after, always_call=True)
    place.stack.callback(after)


class _Mode(TorchFunctionMode):
    def __init__(self, function: Any, around: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function, self.around = function, around

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wrapped = self.around(func) if func is self.function else func
        return wrapped(*args, **(kwargs or {}))


def is_without_multihead(place: Place) -> bool:
    """Whether no function of torch runs the attention as a whole, in which no mode sees more."""
    vision = getattr(place.model, "visual", None) or place.model.vision_model
    return not any(isinstance(module, nn.MultiheadAttention) for module in vision.modules())


def with_mode(name: str, around: Callable[[Any], Any]) -> Callable[[Place], object]:
    """A mode in which a function of torch.nn.functional computes otherwise."""

    def make(place: Place) -> None:
        place.stack.enter_context(explicit.without_fast_path())
        place.stack.enter_context(_Mode(getattr(F, name), around))
        place.stack.enter_context(patch.dict(explicit.AROUND, {name: around}))

    return make


def of_transformers(place: Place) -> bool:
    """Whether it is a model of transformers."""
    return hasattr(place.model, "set_attn_implementation")


def _attention_of_transformers(place: Place, name: str) -> None:
    place.model.set_attn_implementation(name)
    place.stack.callback(place.model.set_attn_implementation, "sdpa")


def registered(wrap: Callable[[Any], Any]) -> Callable[[Place], object]:
    """An attention function that was registered with transformers."""

    def make(place: Place) -> None:
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        def mine(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
            return sdpa_attention_forward(module, 0.5 * query, *args, **options)

        place.stack.enter_context(patch.dict(AttentionInterface._global_mapping))
        AttentionInterface.register("mine", wrap(mine))
        _attention_of_transformers(place, "mine")

    return make


def eager(around: Callable[[Any], Any] | None) -> Callable[[Place], object]:
    """The eager attention of transformers, or another one in its place."""

    def make(place: Place) -> None:
        _attention_of_transformers(place, "eager")
        if around is not None:
            code, name = sys.modules[type(place.model).__module__], "eager_attention_forward"
            own = getattr(code, name)

            def mine(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
                return own(module, 0.5 * query, *args, **options)

            place.stack.enter_context(patch.object(code, name, around(mine)))

    return make


# Methods and functions of libraries


def patched_method(name: str, wrap: Callable[[Any], Any] | None) -> Callable[[Place], object]:
    """A method that is no forward, of the classes that have it; without `wrap` of the objects."""

    def make(place: Place) -> None:
        modules = [module for module in place.model.modules() if hasattr(type(module), name)]
        owners = modules if wrap is None else list({type(module) for module in modules})
        for owner in owners:
            method = getattr(owner, name)

            def new(*args: Any, method: Any = method, **kwargs: Any) -> Any:
                return all_changed(method(*args, **kwargs), turned)

            place.stack.enter_context(patch.object(owner, name, new if wrap is None else wrap(new)))

    return make


def patched_code(name: str, change: Change) -> Callable[[Place], object]:
    """A function of the files in which the model's classes are written."""

    def make(place: Place) -> None:
        files = {sys.modules[type(module).__module__] for module in place.model.modules()}
        for file in (file for file in files if hasattr(file, name)):
            function = getattr(file, name)

            def new(*args: Any, function: Any = function, **kwargs: Any) -> Any:
                return all_changed(function(*args, **kwargs), change)

            place.stack.enter_context(patch.object(file, name, new))

    return make


def has_method(name: str) -> Callable[[Place], bool]:
    """Whether a module of the model has a method of this name."""
    return lambda place: any(hasattr(type(module), name) for module in place.model.modules())


def has_code(name: str) -> Callable[[Place], bool]:
    """Whether a file with a class of the model has a function of this name."""
    return lambda place: any(
        hasattr(sys.modules[type(module).__module__], name) for module in place.model.modules()
    )
