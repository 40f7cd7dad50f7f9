"""Modified copies of models, for checks that need the same function in another form."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checks import expect, is_integer
from ..errors import UnsupportedModelError, public
from .adapter import ClipAdapter
from .families import adapter_of, tower_of
from .steps import Step, step_parameters
from .towers import ResNetTower, Tower, ViTTower

_Copied = TypeVar("_Copied", bound=nn.Module)
ModelOrClip = TypeVar("ModelOrClip", nn.Module, ClipAdapter)


@torch.no_grad()
@public("permute_heads")
def permute_heads(model: _Copied, layer: int, permutation: Sequence[int]) -> _Copied:
    """A copy of the model that computes the same function with the heads of one layer permuted.

    Head h of the copy is head ``permutation[h]`` of the original: the rows of the query, key and
    value maps move, and the columns of the output map with them.

    Args:
        model: a CLIP model or its vision tower; it is left as it is.
        layer: layer of the vision tower, negative from the end.
        permutation: the numbers 0 ... heads - 1 in another order.

    Returns:
        A deep copy with that layer changed.

    Raises:
        UnsupportedModelError: the vision tower is no ViT.
        InputError: there is no such layer, or `permutation` is none of its heads.
    """
    changed = copy.deepcopy(model)
    tower = tower_of(changed)
    if not isinstance(tower, ViTTower):
        raise UnsupportedModelError(
            f"the vision tower is a {type(tower.module).__name__}, which has no "
            "layers with heads; pass a model with a ViT."
        )
    count = len(tower.layers)
    exists = is_integer(layer, least=-count) and layer < count
    expect(exists, f"a layer of 0 ... {count - 1}, or -{count} ... -1 from the end", layer)
    attention = tower.layers[layer]
    order = list(permutation)
    is_complete = sorted(order) == list(range(attention.heads))
    expect(is_complete, f"a permutation of 0 ... {attention.heads - 1}", order)
    # The maps are views of the parameters, so copies into them change the model.
    by_row: list[Tensor] = []
    for linear in attention.input_maps():
        by_row += linear.parameters()
    if attention.inner_norm is not None:
        by_row += attention.inner_norm.parameters()
    for parameter in by_row:
        heads = parameter.reshape(attention.heads, -1, *parameter.shape[1:])
        parameter.copy_(heads[order].flatten(0, 1))
    output_map: Any = attention.output_map()
    weight = output_map.weight
    columns = weight.reshape(len(weight), attention.heads, -1)
    weight.copy_(columns[:, order].flatten(1))
    return changed


def randomization_stages(model: nn.Module | ClipAdapter) -> tuple[str, ...]:
    """The stages of the vision tower from the top, in the order of :func:`randomize_parameters`.

    A ViT has "head" (norm, pool and projection after its last block), "layer 11" ... "layer 0" and
    "embedding". A convolutional tower has "head", its stages from the last, and "stem".

    Raises:
        UnsupportedModelError: there is no vision tower known in it.

    Example:
        >>> from captum_clip import load_clip
        >>> from captum_clip.models.variants import randomization_stages
        >>> randomization_stages(load_clip("demo/resnet"))
        ('head', 'layer4', 'layer3', 'layer2', 'layer1', 'stem')
    """
    return tuple(_stages(model.model if isinstance(model, ClipAdapter) else model))


@torch.inference_mode(False)
@torch.no_grad()
@public("randomize_parameters")
def randomize_parameters(
    model: ModelOrClip, *, seed: int, stages: int | None = None
) -> ModelOrClip:
    """A copy of the model with random parameters in its vision tower (Adebayo et al. 2018).

    Cascading randomization goes from the output down: ``stages=1`` is the head alone,
    ``stages=2`` the head and the last layer, and so on. With one seed a stage gets the same
    parameters however many are randomized. Each tensor is drawn anew from a normal distribution
    with the mean and the standard deviation of its trained values, so that activations stay in
    range. Tensors of one value stay, as do running statistics of batch norms, and the text tower
    and with it all targets.

    Args:
        model: a CLIP model, its vision tower, or an adapter of :func:`captum_clip.load_clip`; it is
            left as it is.
        seed: seed of the parameters.
        stages: how many to randomize from the top, as :func:`randomization_stages` names them; None
            for all.

    Returns:
        A deep copy of the model, or an adapter of such a copy with the same processor and
        tokenizer.

    Raises:
        UnsupportedModelError: there is no vision tower known in it.
        InputError: there are not that many stages.

    Source: Adebayo et al. 2018, *Sanity Checks for Saliency Maps* (arXiv:1810.03292).
    """
    changed: Any = copy.deepcopy(model.model if isinstance(model, ClipAdapter) else model)
    by_stage = _stages(changed)
    count = len(by_stage) if stages is None else stages
    exist = is_integer(count, least=1) and count <= len(by_stage)
    names = f"from the top they are {', '.join(by_stage)}"
    expect(exist, f"stages from 1 to {len(by_stage)}, or None for all", stages, names)
    # Drawn on the CPU and from the top down, the numbers depend on neither device nor `stages`.
    generator = torch.Generator().manual_seed(seed)
    for parameters in list(by_stage.values())[:count]:
        for parameter in parameters:
            # A single value has no standard deviation.
            if parameter.numel() > 1:
                values = parameter.float()
                drawn = torch.randn(parameter.shape, generator=generator).to(values.device)
                parameter.copy_(drawn * values.std() + values.mean())
    if isinstance(model, ClipAdapter):
        changed = adapter_of(
            changed, name=model.name, processor=model.processor, tokenizer=model.tokenizer
        )
    result: ModelOrClip = changed
    return result


def _stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each stage of the vision tower, from the top."""
    tower = tower_of(model)
    # A projection after the tower belongs to the model around it, so the model is searched.
    in_head = _head_parameters(tower)
    stages = {"head": [parameter for parameter in model.parameters() if parameter in in_head]}
    if isinstance(tower, ViTTower):
        bottom = "embedding"
        for index in reversed(range(len(tower.layers))):
            stages[f"layer {index}"] = list(tower.layers[index].block.parameters())
    else:
        assert isinstance(tower, ResNetTower)
        bottom = "stem"
        for name, module in tower.stages.items():
            stages[name] = list(module.parameters())
    above = {parameter for parameters in stages.values() for parameter in parameters}
    # A part without parameters, such as a head, is no stage.
    stages = {name: parameters for name, parameters in stages.items() if parameters}
    stages[bottom] = [
        parameter for parameter in tower.module.parameters() if parameter not in above
    ]
    return stages


def _head_parameters(tower: Tower) -> set[Tensor]:
    """The parameters of the tower's pooling head and of the steps after it."""
    steps: list[Step] = list(tower.head)
    if tower.pooling_head is not None:
        steps.append(tower.pooling_head.head)
        if tower.pooling_head.norm is not None:
            steps.append(tower.pooling_head.norm)
    parameters: set[Tensor] = set()
    for step in steps:
        parameters.update(step_parameters(step))
    return parameters
