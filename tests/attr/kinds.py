"""The kinds of changes that `hooked.py` tries, each on every module, on every class or once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize

from captum_clip import ClipSimilarity
from tests.attr import changed_functions as functions
from tests.attr import changes
from tests.attr.changed_functions import halving, scaled
from tests.attr.changes import Place, half, same, unchanged


class Kind(NamedTuple):
    """A kind of change.

    Attributes:
        make: it makes the change.
        fits: whether a place can have it.
        scope: tried on every module, on the first module of every class, or on the model itself.
        forward: makes the user's own forward function, where it is no `ClipSimilarity`.
        kept: the method was made before the change.
        instead: changes that the oracle sees in the place of this one; any of them will do.
        of_gradient: no value changes, so what adds up may leave it out.
        mixes: tokens are mixed, so that after the last attention it has no one row to read.
        same_values: it computes the same each time, with a graph or without.
        tolerance: of maps and scores, relative.
    """

    make: Callable[[Place], object]
    fits: Callable[[Place], bool] = lambda place: True
    scope: str = "module"
    forward: Callable[[ClipSimilarity, Place], Callable[[Tensor], Tensor]] | None = None
    kept: bool = False
    instead: tuple[Callable[[Place], object], ...] = ()
    of_gradient: bool = False
    mixes: bool = False
    same_values: bool = True
    tolerance: float = 1e-5


def after(change: changes.Change, **more: Any) -> Kind:
    """A hook on what a module returns."""
    return Kind(changes.with_hook(change), **more)


def before(change: changes.Change, **more: Any) -> Kind:
    """A hook on what a module takes."""
    return Kind(changes.with_pre_hook(change), **more)


def of_class(wrap: Callable[[Any], Any], *more: Any, **options: Any) -> Kind:
    """A method of a class in a wrapper."""
    return Kind(changes.patched_class(wrap, *more), scope="class", **options)


def of_all(way: str, change: changes.Change | None, wrap: Callable[[Any], Any]) -> Kind:
    """A hook that runs in all modules."""
    make = changes.with_global_hook(way, change, wrap)
    return Kind(make, scope="model" if change is None else "class")


def attribute(name: str, value: Any) -> Kind:
    """A number of a module, or of an attention which does not have it."""

    def fits(place: Place) -> bool:
        return hasattr(place.module, name) or (name != "eps" and functions.attends(place))

    return Kind(lambda place: setattr(place.module, name, value), fits)


def mask(how: str, fits: Callable[[Place], bool] = functions.attends) -> Kind:
    """A mask that a pre-hook hands over."""
    return Kind(functions.with_mask(how), fits)


def function(name: str, around: Callable[[Any], Any] = halving) -> Kind:
    """A function of torch.nn.functional."""
    return Kind(functions.with_function(name, around), scope="model")


def mode(name: str, around: Callable[[Any], Any] = halving, **more: Any) -> Kind:
    """The same by a mode."""
    return Kind(functions.with_mode(name, around), scope="model", **more)


def library(make: Callable[[Place], object], *instead: Callable[[Place], object]) -> Kind:
    """An attention function of transformers."""
    return Kind(make, functions.of_transformers, scope="model", instead=instead)


def method(name: str, wrap: Callable[[Any], Any] | None) -> Kind:
    """A method that is not called forward."""
    return Kind(functions.patched_method(name, wrap), functions.has_method(name), scope="model")


def code(name: str, change: changes.Change = half) -> Kind:
    """A function of a library's file."""
    return Kind(functions.patched_code(name, change), functions.has_code(name), scope="model")


OLD: dict[str, Kind] = {
    "after, half": after(half),
    "after, nothing": after(changes.nothing),
    "after, masked": after(changes.masked),
    "after, squared": after(changes.squared),
    "before, half": before(half),
    "before, nothing": before(changes.nothing),
    "patched": Kind(changes.patched(half)),
    "patched class": Kind(changes.patched_class(same)),
    "knocked out": Kind(functions.knocked_out, functions.can_be_knocked_out),
}

ATTENTION = "scaled_dot_product_attention"
_hidden = torch.compiler.disable
_scaled = functions.with_function(ATTENTION, scaled)
NEW: dict[str, Kind] = {
    # code in a wrapper that hides where it was written
    "class, disabled": of_class(_hidden),
    "class, enable_grad": of_class(torch.enable_grad()),
    "class, autocast": of_class(torch.autocast("cpu", enabled=False)),
    "class, partialmethod": of_class(functools.partialmethod),
    "subclass, half": Kind(changes.subclass(half)),
    "subclass, same": Kind(changes.subclass(same)),
    "global hook": of_all("hook", half, same),
    "global hook, disabled": of_all("hook", half, _hidden),
    "global pre-hook, disabled": of_all("pre_hook", half, _hidden),
    "global hook, passive": of_all("hook", None, same),
    "global hook, passive, disabled": of_all("hook", None, _hidden),
    # numbers and masks
    "attribute scale": attribute("scale", 0.7),
    "attribute scaling": attribute("scaling", 0.7),
    "attribute num_heads": attribute("num_heads", 2),
    "attribute head_dim": attribute("head_dim", 16),
    "attribute is_causal": attribute("is_causal", True),
    "attribute rotate_half": attribute("rotate_half", True),
    "attribute eps": attribute("eps", 0.5),
    "mask of rows": mask("rows"),
    "mask of heads": mask("heads"),
    "mask, bool": mask("bool"),
    "mask, causal": mask("causal"),
    "mask as position_bias": mask("bias", lambda p: type(p.module).__name__ == "CLIPAttention"),
    "mask of block": mask("rows", functions.is_block),
    # functions that every layer calls
    "registered attention": library(functions.registered(_hidden)),
    "eager attention": library(functions.eager(None), unchanged),
    "eager attention, half": library(functions.eager(same), _scaled),
    "eager attention, half, disabled": library(functions.eager(_hidden), _scaled),
    "function, attention": function(ATTENTION, scaled),
    "function, attention's output": function(ATTENTION),
    "function, multi-head": function("multi_head_attention_forward"),
    "function, linear": function("linear"),
    "function, layer_norm": function("layer_norm"),
    "function, gelu": function("gelu"),
    "mode, attention": mode(ATTENTION, scaled, fits=functions.is_without_multihead),
    "mode, attention's output": mode(ATTENTION, fits=functions.is_without_multihead),
    "mode, linear": mode("linear"),
    "mode, layer_norm": mode("layer_norm"),
    # weights, and a method that was made before they changed
    "functional_call": Kind(
        unchanged,
        changes.has_weights,
        forward=changes.functional,
        instead=(changes.new_parameters,),
    ),
    "kept, assigned": Kind(changes.assigned, changes.has_weights, kept=True),
    "kept, parameters": Kind(changes.new_parameters, changes.has_weights, kept=True),
    "kept, exchanged": Kind(changes.exchanged, lambda place: bool(place.path), kept=True),
    "kept, after, half": after(half, kept=True),
    "lora": Kind(lambda place: place.put(changes.Lora(place.module)), changes.is_linear),
    "weight_norm": Kind(
        lambda place: parametrizations.weight_norm(place.module, changes.weight_of(place)),
        changes.has_matrix,
    ),
    "weight, half": Kind(
        lambda place: parametrize.register_parametrization(
            place.module, changes.weight_of(place), changes.Half()
        ),
        changes.has_matrix,
    ),
    "old weight_norm": Kind(changes.weight_norm(1), changes.has_matrix),
    "old weight_norm, half": Kind(changes.weight_norm(0.5), changes.has_matrix),
    **({"peft": Kind(changes.peft, changes.is_linear)} if find_spec("peft") else {}),
    # what changes nothing
    "passive hook": Kind(lambda p: p.module.register_forward_hook(lambda *_: None)),
    "passive hook, same": Kind(lambda p: p.module.register_forward_hook(lambda m, a, out: out)),
    "passive hook, storing": Kind(changes.storing),
    "passive pre-hook": Kind(lambda p: p.module.register_forward_pre_hook(lambda *_: None)),
    "passive forward": Kind(changes.passing),
}

# what a comparison of values of one forward may not see
HARD: dict[str, Kind] = {
    "second image": after(changes.second_image),
    "first token": after(changes.some_tokens(slice(0, 1))),
    "one token": after(changes.some_tokens(slice(5, 6))),
    "all but the first token": after(changes.some_tokens(slice(1, None))),
    "of many tokens": after(changes.where(lambda x: x.ndim == 3 and x.shape[1] > 1)),
    "of one token": after(changes.where(lambda x: x.ndim == 3 and x.shape[1] == 1)),
    "without a token axis": after(changes.where(lambda x: x.ndim == 2)),
    "tokens mixed": after(
        changes.of_tokens(lambda x: x + 0.5 * x.mean(1, keepdim=True)), mixes=True
    ),
    "tokens rolled": after(changes.of_tokens(lambda x: x.roll(1, 1)), mixes=True),
    "images mixed": after(lambda x: x - 0.5 * x.mean(0, keepdim=True)),
    "1 % more": after(changes.by(1.01)),
    "0.1 % more": after(changes.by(1.001)),
    "0.001 % more": after(changes.by(1.00001), tolerance=1e-3),
    "float32": after(lambda x: x.float().to(x.dtype), tolerance=1e-3),
    "in place": after(changes.in_place),
    "before, in place": before(changes.in_place),
    "its input": Kind(changes.its_input),
    "with a graph": after(
        changes.where(lambda x: torch.is_grad_enabled()),
        same_values=False,
        instead=(changes.with_hook(half), unchanged),
    ),
    "without a graph": after(
        changes.where(lambda x: not torch.is_grad_enabled()),
        same_values=False,
        instead=(changes.with_hook(half), unchanged),
    ),
    # gradients without a change of any value
    "gradient, half": after(changes.half_detached, of_gradient=True),
    "gradient, none": after(Tensor.detach, of_gradient=True),
    "gradient, by its hook": after(changes.half_gradient, of_gradient=True),
    "backward hook": Kind(changes.backward_hook, of_gradient=True),
    "class, no_grad": of_class(torch.no_grad(), same, of_gradient=True),
    "frozen": Kind(changes.frozen, scope="model"),
    "checkpointed": Kind(changes.checkpointed, instead=(unchanged,)),
    # elsewhere than in a forward
    "class, __call__": of_class(same, half, "__call__"),
    "class, __call__, disabled": of_class(_hidden, half, "__call__"),
    "subclass, weight": Kind(changes.weight_of_class, changes.has_matrix),
    "kept, weights in place": Kind(changes.weights_in_place, changes.has_weights, kept=True),
    "function while it runs": Kind(functions.scaled_while_it_runs, functions.attends),
    "callable: hook while it runs": Kind(
        unchanged,
        forward=changes.while_it_runs(changes.hook_for_now),
        instead=(changes.with_hook(half),),
    ),
    "callable: class while it runs": Kind(
        unchanged,
        scope="class",
        forward=changes.while_it_runs(changes.patched_class(same)),
        instead=(changes.patched_class(same),),
    ),
    "callable: function while it runs": Kind(
        unchanged,
        scope="model",
        forward=changes.while_it_runs(_scaled),
        instead=(_scaled,),
    ),
    "code, rotation": code("apply_rot_embed_cat"),
    "code, pool": code("global_pool_nlc", changes.turned),
    "code, text pool": code("text_global_pool"),
}
METHODS = ["_pool", "_global_pool", "_embeds", "attention", "pool", "forward_head"]
METHODS += ["forward_features", "_pos_embed", "encode_image", "get_image_features", "stem"]
for _name in METHODS:
    HARD[f"method {_name}"] = method(_name, same)
    HARD[f"method {_name}, disabled"] = method(_name, _hidden)
    HARD[f"method {_name}, object"] = method(_name, None)
for _name in ("after, half", "before, half", "after, squared", "patched class", "knocked out"):
    NEW[f"callable: {_name}"] = OLD[_name]._replace(forward=changes.own_callable)
for _name in ("class, disabled", "passive hook", "mask of rows", "function, attention"):
    NEW[f"callable: {_name}"] = NEW[_name]._replace(forward=changes.own_callable)
for _name in ("second image", "tokens mixed", "gradient, half", "class, __call__"):
    HARD[f"callable: {_name}"] = HARD[_name]._replace(forward=changes.own_callable)
KINDS = {**OLD, **NEW, **HARD}
