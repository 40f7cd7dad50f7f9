"""Changes that users make to a model: each is made at a place of it, and undone completely."""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from captum_clip import ClipSimilarity

Change = Callable[[Tensor], Tensor]


class Place(NamedTuple):
    """A module of a model, with what undoes a change of anything but the model's modules."""

    model: Any
    path: str
    stack: ExitStack

    @property
    def module(self) -> Any:
        """What stands there now."""
        return self.model.get_submodule(self.path)

    def put(self, module: nn.Module) -> None:
        """Put another module there."""
        owner, _, name = self.path.rpartition(".")
        setattr(self.model.get_submodule(owner), name, module)


@contextmanager
def placed(model: nn.Module, path: str) -> Iterator[Place]:
    """A place, after which every module has its class, attributes, parameters and hooks again."""
    needed = {p: p.requires_grad for p in model.parameters()}
    before = [(m, m.__class__, dict(vars(m)), _contents(m)) for m in model.modules()]
    try:
        with ExitStack() as stack:
            yield Place(model, path, stack)
    finally:
        for module, kind, attributes, contents in before:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for held, content in contents:  # handles of hooks know these very dicts
                held.clear()
                held.update(content)
        for parameter, flag in needed.items():
            parameter.requires_grad_(flag)


def _contents(module: nn.Module) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    return [(held, dict(held)) for held in vars(module).values() if isinstance(held, dict)]


# Changes of tensors


def changed(given: Any, change: Change) -> Any:
    """The first floating tensor of what a module takes or returns, changed."""
    if isinstance(given, Tensor):
        return change(given) if given.is_floating_point() else given
    if isinstance(given, tuple) and given and isinstance(given[0], Tensor):
        return (changed(given[0], change), *given[1:])
    if isinstance(given, dict) and given:  # an output of transformers, or keyword arguments
        name = next((n for n, v in given.items() if isinstance(v, Tensor)), None)
        if name is not None:
            new = {**given, name: changed(given[name], change)}
            return new if type(given) is dict else type(given)(**new)
    return given


def half(tensor: Tensor) -> Tensor:
    """Half of it."""
    return 0.5 * tensor


def nothing(tensor: Tensor) -> Tensor:
    """Zeros."""
    return 0 * tensor


def masked(tensor: Tensor) -> Tensor:
    """Half of its last axis taken away, in place."""
    tensor[..., : tensor.shape[-1] // 2] = 0
    return tensor


def squared(tensor: Tensor) -> Tensor:
    """Something that is not linear."""
    return tensor + 0.1 * tensor.square()


def turned(tensor: Tensor) -> Tensor:
    """Its last axis the other way round, which keeps every length."""
    return tensor.flip(-1)


def same(tensor: Tensor) -> Tensor:
    """The very tensor."""
    return tensor


def all_changed(given: Any, change: Change) -> Any:
    """All that a method returns, changed."""
    if isinstance(given, tuple):
        return tuple(all_changed(each, change) for each in given)
    if isinstance(given, dict):
        return type(given)(**{name: all_changed(each, change) for name, each in given.items()})
    return changed(given, change)


def by(factor: float) -> Change:
    """A little more or less of it."""
    return lambda tensor: factor * tensor


def in_place(tensor: Tensor) -> Tensor:
    """Half of it, in its own place."""
    return tensor.mul_(0.5)


def second_image(tensor: Tensor) -> Tensor:
    """Half of what belongs to the second image."""
    if len(tensor) < 2:
        return tensor
    return torch.cat([tensor[:1], 0.5 * tensor[1:2], tensor[2:]])


def some_tokens(chosen: slice) -> Change:
    """Half of the tokens (B, s, D) that are chosen."""

    def change(tensor: Tensor) -> Tensor:
        if tensor.ndim != 3:
            return tensor
        factors = torch.ones_like(tensor[:1, :, :1])
        factors[:, chosen] = 0.5
        return factors * tensor

    return change


def where(condition: Callable[[Tensor], bool]) -> Change:
    """Half of it under a condition."""
    return lambda tensor: 0.5 * tensor if condition(tensor) else tensor


def of_tokens(change: Change) -> Change:
    """A change of tokens (B, s, D) alone."""
    return lambda tensor: change(tensor) if tensor.ndim == 3 else tensor


def half_detached(tensor: Tensor) -> Tensor:
    """Its value, and half of its gradient."""
    return 0.5 * tensor + 0.5 * tensor.detach()


def half_gradient(tensor: Tensor) -> Tensor:
    """The very tensor, with a hook on its gradient."""
    if tensor.requires_grad:
        tensor.register_hook(lambda gradient: 0.5 * gradient)
    return tensor


# Changes of modules


def unchanged(place: Place) -> None:
    """No change."""


def with_hook(change: Change) -> Callable[[Place], object]:
    """A forward hook."""
    return lambda place: place.module.register_forward_hook(
        lambda m, args, out: changed(out, change)
    )


def with_pre_hook(change: Change) -> Callable[[Place], object]:
    """A hook on what a module takes."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return (changed(args, change), kwargs) if args else (args, changed(kwargs, change))

    return lambda place: place.module.register_forward_pre_hook(before, with_kwargs=True)


def patched(change: Change) -> Callable[[Place], object]:
    """A forward of the object's own."""

    def make(place: Place) -> None:
        forward = place.module.forward
        place.module.forward = lambda *args, **kwargs: changed(forward(*args, **kwargs), change)

    return make


def patched_class(
    wrap: Callable[[Any], Any], change: Change = half, name: str = "forward"
) -> Callable[[Place], object]:
    """A method of the class, changed by a function that `wrap` hides."""

    def make(place: Place) -> None:
        method = getattr(type(place.module), name)

        def new(self: Any, *args: Any, **kwargs: Any) -> Any:
            return changed(method(self, *args, **kwargs), change)

        place.stack.enter_context(patch.object(type(place.module), name, wrap(new)))

    return make


def its_input(place: Place) -> None:
    """A module that is passed by."""

    def skip(_: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        given = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        return changed(out, lambda tensor: given if given.shape == tensor.shape else tensor)

    place.module.register_forward_hook(skip, with_kwargs=True)


def backward_hook(place: Place) -> None:
    """A hook that changes gradients."""
    place.module.register_full_backward_hook(
        lambda m, given, _: tuple(None if g is None else 0.5 * g for g in given)
    )


def checkpointed(place: Place) -> None:
    """A forward that runs again in the backward."""
    forward = place.module.forward
    place.module.forward = functools.partial(checkpoint, forward, use_reentrant=False)


def subclass(change: Change) -> Callable[[Place], object]:
    """A class of its own with another forward."""

    def make(place: Place) -> None:
        kind = type(place.module)

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return changed(kind.forward(self, *args, **kwargs), change)

        place.module.__class__ = type(f"My{kind.__name__}", (kind,), {"forward": forward})

    return make


def with_global_hook(
    way: str, change: Change | None, wrap: Callable[[Any], Any]
) -> Callable[[Place], Any]:
    """A hook that runs in every module, and changes those of one class, or none."""

    def make(place: Place) -> None:
        kind = type(place.module)

        def hook(module: nn.Module, args: Any, *out: Any) -> Any:
            if change is None or type(module) is not kind:
                return None
            return changed(out[0] if out else args, change)

        handle = getattr(torch_module, f"register_module_forward_{way}")(wrap(hook))
        place.stack.callback(handle.remove)

    return make


# Changes of weights


def halved(module: nn.Module) -> dict[str, nn.Parameter]:
    """Half of a module's own parameters."""
    own = module.named_parameters(recurse=False)
    return {name: nn.Parameter(0.5 * p.detach(), p.requires_grad) for name, p in own}


def new_parameters(place: Place) -> None:
    """Half of the weights, as new parameters."""
    for name, value in halved(place.module).items():
        setattr(place.module, name, value)


def assigned(place: Place) -> None:
    """Half of the weights, from a state that takes the parameters' place."""
    mine = {f"{place.path}.{name}": p.detach() for name, p in halved(place.module).items()}
    place.model.load_state_dict({**place.model.state_dict(), **mine}, assign=True)
    place.model.requires_grad_(True)


def weights_in_place(place: Place) -> None:
    """Half of the weights, in the same tensors."""
    for parameter in place.module._parameters.values():
        if parameter is not None:
            place.stack.callback(parameter.data.copy_, parameter.detach().clone())
            parameter.data.mul_(0.5)


def frozen(place: Place) -> None:
    """Parameters that need no gradient."""
    place.model.requires_grad_(False)


def weight_of_class(place: Place) -> None:
    """A property of a subclass, which hides the parameter."""
    kind, name = type(place.module), weight_of(place)
    own = property(lambda self: 0.5 * self._parameters[name])
    place.module.__class__ = type(f"My{kind.__name__}", (kind,), {name: own})


def exchanged(place: Place) -> None:
    """Another module with half of the weights."""
    new = copy.deepcopy(place.module)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter *= 0.5
    place.put(new)


def has_weights(place: Place) -> bool:
    """Whether a module has parameters of its own."""
    return bool(place.path and place.module._parameters and halved(place.module))


def is_linear(place: Place) -> bool:
    """Whether it is a linear map."""
    return type(place.module) is nn.Linear


def weight_of(place: Place) -> str:
    """The name of its weight."""
    return "weight" if hasattr(place.module, "weight") else "in_proj_weight"


def has_matrix(place: Place) -> bool:
    """Whether it has a matrix as its weight."""
    weight = place.module._parameters.get(weight_of(place))
    return weight is not None and weight.ndim > 1


class Half(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Half of the weight."""
        return 0.5 * weight


def weight_norm(factor: float) -> Callable[[Place], object]:
    """The old one, which computes the weight before every forward."""

    def make(place: Place) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.nn.utils.weight_norm(place.module, weight_of(place))
        length = getattr(place.module, f"{weight_of(place)}_g")
        setattr(place.module, f"{weight_of(place)}_g", nn.Parameter(factor * length.detach()))

    return make


class Lora(nn.Module):
    """A linear map with two small ones beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a = nn.Linear(base.in_features, 2, bias=False).to(base.weight)
            self.b = nn.Linear(2, base.out_features, bias=False).to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + B A x."""
        out: Tensor = self.base(x) + self.b(self.a(x))
        return out


def peft(place: Place) -> None:
    """LoRA of peft, not merged."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=re.escape(place.path), init_lora_weights=False)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        inject_adapter_in_model(config, place.model)
    place.model.requires_grad_(True)
    place.module.to(torch.float64)


def functional(similarity: ClipSimilarity, place: Place) -> Callable[[Tensor], Tensor]:
    """A forward with other weights, which the model has while it runs alone."""
    weights: dict[str, Tensor] = {}
    for name, value in halved(place.module).items():
        weights[f"model.{place.path}.{name}"] = value
    return lambda pixels: torch.func.functional_call(similarity, weights, (pixels,))


def own_callable(similarity: ClipSimilarity, _: Place) -> Callable[[Tensor], Tensor]:
    """A forward of which nothing is known."""
    return lambda pixels: similarity(pixels)


def while_it_runs(change: Callable[[Place], object]) -> Any:
    """A forward that changes the model and puts it back, as a user's context would."""

    def make(similarity: ClipSimilarity, place: Place) -> Callable[[Tensor], Tensor]:
        def forward(pixels: Tensor) -> Tensor:
            with ExitStack() as stack:
                change(place._replace(stack=stack))
                scores: Tensor = similarity(pixels)
                return scores

        return forward

    return make


def hook_for_now(place: Place) -> None:
    """A hook that the stack takes away."""
    handle = place.module.register_forward_hook(lambda m, args, out: changed(out, half))
    place.stack.callback(handle.remove)


# Code that changes nothing


def storing(place: Place) -> None:
    """A hook that keeps what it sees."""
    kept: list[Any] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return tensor

    def store(_: nn.Module, args: Any, out: Any) -> None:
        changed(out, keep)

    place.module.register_forward_hook(store)


def passing(place: Place) -> None:
    """A forward of the object's own that calls the class's."""
    kind = type(place.module)
    module = place.module
    module.forward = lambda *args, **kwargs: kind.forward(module, *args, **kwargs)
