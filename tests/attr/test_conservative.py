"""ConservativePropagation: nothing is lost on the way, and a plain forward gives the same map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from captum_clip import ClipSimilarity, ConservativePropagation, DirectContribution, targets
from captum_clip.models import steps
from tests import oracles
from tests.attr import cases
from tests.attr.cases import FORWARDS

# each way to pool, a norm after its branch, a gate, rotations, norms in float32
FAMILIES = ["hf_vit", "open_clip_vit_mean", "siglip", "coca", "eva01", "eva02", "aimv2"]
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


def explain(name: str, forward: str = "similarity", dtype: Any = torch.float64) -> Any:
    """Maps, scores and rest of a small model's images."""
    function, layer = FORWARDS[forward](name, dtype)
    method = ConservativePropagation(function, layer)
    return method.attribute_targets(cases.images(name, dtype), return_scores=True, return_rest=True)


def plain_maps(name: str) -> Tensor:
    """Gradient times input of a plain forward with every gate detached, (B, K, h, w)."""
    model, images = cases.built(name, torch.float64).model, cases.images(name).double()
    seen = oracles.see(model, images, detached=True)
    length = seen.embedding.norm(dim=-1, keepdim=True).detach()
    scores = seen.embedding @ cases.embeddings().T / length
    columns = [
        (torch.autograd.grad(y.sum(), seen.projected, retain_graph=True)[0] * seen.projected).sum(
            -1
        )
        for y in scores.T
    ]
    return torch.stack(columns, 1).unflatten(-1, seen.grid).detach()


def test_no_attention_is_kept_for_the_backward() -> None:
    """Its memory does not grow with the square of the tokens."""
    tokens: int = 17
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    method = ConservativePropagation(cases.similarity("hf_vit"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        method.attribute(cases.images("hf_vit"), target=0)
    assert any(tokens in shape for shape in kept)
    assert not any(shape[-2:] == (tokens, tokens) for shape in kept)


class Convolution(nn.Module):
    """An adapter beside an MLP: a convolution over the tokens, as LePE has one over values."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp, self.convolution = mlp, nn.Conv1d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.convolution(tokens.mT).mT
        return self.mlp(tokens) + nn.functional.gelu(mixed)


def with_mlp(change: Any) -> Any:
    """A method whose model has another MLP in its first layer."""
    small = cases.BUILDERS["hf_vit"]()
    layer = small.model.eval().vision_model.encoder.layers[0]
    layer.mlp = change(layer.mlp, layer.mlp.fc1.in_features)
    forward = ClipSimilarity(small.load(), targets.embedding(cases.embeddings()))
    return ConservativePropagation(forward)


@pytest.mark.parametrize("adapter", [Convolution])
def test_several_targets_are_explained_where_tokens_are_mixed_by_a_convolution(
    adapter: type[nn.Module],
) -> None:
    """What sees that the rest is linear leaves the graph to the other targets."""
    method, images = with_mlp(adapter), cases.images("hf_vit")
    maps, scores, rest = method.attribute_targets(images, return_scores=True, return_rest=True)
    torch.testing.assert_close(maps.sum((-2, -1)) + rest, scores)
    alone = [method.attribute(images, target=index)[:, 0] for index in range(maps.shape[1])]
    torch.testing.assert_close(maps, torch.stack(alone, 1))


def test_the_graph_of_an_mlp_gets_the_map_of_the_module() -> None:
    """Its functions are those of aten."""

    def module(_: nn.Module, width: int) -> nn.Sequential:
        torch.manual_seed(0)
        steps = nn.LayerNorm(width), nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width)
        return nn.Sequential(*steps).eval()

    def graph(mlp: nn.Module, width: int) -> nn.Module:
        tokens, sizes = torch.randn(3, 17, width), ({0: torch.export.Dim.AUTO},)
        return torch.export.export(module(mlp, width), (tokens,), dynamic_shapes=sizes).module()

    images = cases.images("hf_vit")
    wanted = with_mlp(module).attribute_targets(images)
    torch.testing.assert_close(with_mlp(graph).attribute_targets(images), wanted)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), QuickGELU()], ids=str)
def test_a_unit_at_zero_passes_on_what_one_next_to_zero_does(activation: nn.Module) -> None:
    """There its gate is 0 / 0, whose limit is the slope."""
    token = torch.tensor([[0.0, 1e-6, 1.0]])
    gates = steps.gate_of(activation, token, activation(token))[0].detach()
    torch.testing.assert_close(gates[:2], torch.full((2,), 0.5))
    every = steps.Direction.of(torch.ones(1, 1, 3), torch.ones(1, 1))
    pulled = steps.pull_back([activation], token.detach(), every)
    torch.testing.assert_close(pulled.rows[0, 0], gates)


@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
@pytest.mark.parametrize("name", cases.CLS_TOWERS[:2])
def test_conservative_equals_a_plain_forward_with_gates_detached(name: str, forward: str) -> None:
    """Gradient times input of the patches, written out on the library's own parameters."""
    wanted = plain_maps(name) * (1 if forward == "similarity" else 20)
    assert (wanted < 0).any()
    torch.testing.assert_close(explain(name, forward)[0], wanted, rtol=1e-8, atol=1e-12)
    method = DirectContribution(*FORWARDS[forward](name, torch.float64))
    through_all = method.attribute_targets(cases.images(name, torch.float64), depth="all")
    torch.testing.assert_close(through_all, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "forward", "dtype"),
    [
        *((name, "callable, layer=model", torch.float64) for name in FAMILIES),
        *((name, "similarity", torch.float32) for name in ("hf_vit", "siglip")),
    ],
    ids=str,
)
def test_scores_are_those_of_the_plain_forward(name: str, forward: str, dtype: torch.dtype) -> None:
    """Detaching gates changes no value, on every family; the negated target negates the map."""
    maps, scores, rest = explain(name, forward, dtype)
    function, _ = FORWARDS[forward](name, dtype)
    with torch.no_grad():
        wanted = function(cases.images(name, dtype))
    bound = EXACT[dtype] * wanted.abs().max().item()
    assert (scores - wanted).abs().max().item() <= bound
    assert (maps.sum((-2, -1)) + rest - wanted).abs().max().item() <= bound
    assert (maps[:, 0] + maps[:, 1]).abs().max().item() <= 10 * bound


@torch.no_grad()
def without_constants(model: nn.Module) -> nn.Module:
    """No bias, position, class token or register: then the patches alone make the score."""
    constants = ("bias", "class_embedding", "cls_token", "reg", "position", "pos_embed")
    for name, value in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if any(word in name for word in constants[1:]) or "bias" in last:
            value.zero_()
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_is_conserved_where_the_patches_are_all_there_is(name: str) -> None:
    """Without biases, positions and class tokens nothing is left over: maps add up to the score."""
    small = cases.BUILDERS[name]()
    small = small._replace(model=without_constants(small.model.double()))
    embeddings = cases.embeddings()
    method = ConservativePropagation(ClipSimilarity(small.load(), targets.embedding(embeddings)))
    maps, scores, rest = method.attribute_targets(
        small.images(3, torch.float64), return_scores=True, return_rest=True
    )
    assert scores.abs().max() > 0.05
    # the norms of AIMv2 compute in single precision whatever the model's
    bound = 1e-7 if name == "aimv2" else 1e-10
    assert rest.abs().max().item() < bound
    torch.testing.assert_close(maps.sum((-2, -1)), scores, rtol=10 * bound, atol=bound)
