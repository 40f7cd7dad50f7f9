"""A model that is not the library's own any more gets the right map all the same, or an error."""

from __future__ import annotations

import copy
import pickle
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_clip import ClipSimilarity, attr, load_clip, targets
from captum_clip.errors import CaptureError, UnsupportedModelError
from captum_clip.recording.hooks import Hooks
from tests import builders
from tests.attr import cases

METHODS = [attr.LastGradAttention, attr.AttentionGradCam, attr.AllGradAttention]


def similarity_of(built: builders.Small, kind: type[ClipSimilarity] = ClipSimilarity) -> Any:
    rows = torch.randn(2, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return kind(load_clip(built.model), targets.embedding(rows))


def double(name: str) -> builders.Small:
    built = copy.deepcopy(builders.BUILDERS[name]())
    built.model.double()
    return built


def blocks_of(built: builders.Small) -> Any:
    return [layer.block for layer in load_clip(built.model).tower.layers]


def assert_as_callable(similarity: Any, method: Any, built: builders.Small) -> None:
    """Maps and scores are those of the same function as a user's own callable."""
    images = built.images(dtype=torch.float64)
    maps, scores = method(similarity).attribute_targets(images, return_scores=True)

    def own(pixels: Tensor) -> Tensor:
        return similarity(pixels)

    expected = method(own, built.model).attribute_targets(images)
    torch.testing.assert_close(scores, similarity(images).detach(), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(maps, expected, atol=1e-10, rtol=1e-8)


class Soft(ClipSimilarity):
    """A score of somebody's own."""

    def forward(self, images: Tensor) -> Tensor:
        return (20 * super().forward(images)).softmax(-1)


EACH = [("hf_vit", attr.LastGradAttention), ("open_clip_vit", attr.AllGradAttention)]


@pytest.mark.parametrize(("name", "method"), EACH)
def test_a_subclass_with_its_own_forward_is_explained_as_it_is(name: str, method: Any) -> None:
    built = double(name)
    assert_as_callable(similarity_of(built, Soft), method, built)


def test_a_subclass_over_a_resnet_is_explained_as_it_is() -> None:
    built = double("open_clip_resnet")
    assert_as_callable(similarity_of(built, Soft), attr.ClipGradCam, built)


def test_a_block_in_several_layers_is_refused() -> None:
    built = double("hf_vit")
    layers: Any = built.model.vision_model.encoder.layers
    layers[1] = layers[0]
    with pytest.raises(UnsupportedModelError, match="one block in several layers"):
        load_clip(built.model)


@pytest.mark.parametrize(
    ("name", "owner", "part"),
    [
        ("hf_vit", "", "visual_projection"),
        ("hf_vit", "vision_model.encoder.layers.0", "self_attn"),
        ("siglip", "vision_model", "head"),
        ("open_clip_resnet", "visual", "layer4"),
    ],
)
def test_a_part_that_was_exchanged_is_explained_as_it_is_now(
    name: str, owner: str, part: str
) -> None:
    """Its old weights would explain another score."""
    small = cases.BUILDERS[name]()
    target = targets.embedding(cases.embeddings().float())
    similarity = ClipSimilarity(small.load(), target)
    methods = [m for n, m in cases.OWN.items() if similarity.clip.kind in m.towers and n != "cam"]
    made = [method(similarity) for method in methods]
    module = small.model.get_submodule(owner)
    setattr(module, part, copy.deepcopy(getattr(module, part)))
    builders.randomize(getattr(module, part), seed=9)
    for kept, method in zip(made, methods, strict=True):
        found = kept.attribute_targets(small.images(), return_scores=True)
        expected = method(ClipSimilarity(small.load(), target)).attribute_targets(
            small.images(), return_scores=True
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["siglip", "hf_vit"])
def test_a_deep_copy_of_a_similarity_is_explained_with_its_own_weights(name: str) -> None:
    """As the sanity checks have it, which randomize a copy; it can be pickled too."""
    similarity = copy.deepcopy(cases.similarity(name))
    builders.randomize(similarity.clip.model, seed=9)
    method = pickle.loads(pickle.dumps(attr.AttentionGradCam(similarity)))
    images = cases.images(name)
    _, scores = method.attribute_targets(images, return_scores=True)
    torch.testing.assert_close(scores, similarity(images).detach(), atol=1e-5, rtol=1e-5)


def test_a_callable_may_change_its_images() -> None:
    """It gets a copy, and the caller's tensor stays as it is."""
    built = double("open_clip_vit_mean")
    similarity = similarity_of(built)
    images = built.images(dtype=torch.float64)
    before = images.clone()
    expected = attr.LastGradAttention(
        lambda pixels: similarity(pixels * 0.5), built.model
    ).attribute(images, target=0)
    runs = []

    def in_place(pixels: Tensor) -> Tensor:
        runs.append(1)
        return similarity(pixels.mul_(0.5))

    found = attr.LastGradAttention(in_place, built.model).attribute(images, target=0)
    torch.testing.assert_close(found, expected)
    assert torch.equal(images, before)
    assert len(runs) == 2  # the first call looks at the model


@pytest.mark.parametrize("method", [attr.DirectContribution, attr.LastGradAttention])
def test_a_fork_that_keeps_gradients_by_a_hook_on_a_tensor_is_explained(method: Any) -> None:
    """Without a graph such a hook is an error of torch, so the forward runs in one."""
    built = builders.hf_vit()
    wanted = method(similarity_of(built)).attribute_targets(built.images(2))
    calls = []

    def keep_gradient(module: nn.Module, args: Any) -> None:
        calls.append(args[0].register_hook(lambda gradient: None))

    for layer in blocks_of(built):
        layer.self_attn.v_proj.register_forward_pre_hook(keep_gradient)
    found = method(similarity_of(built)).attribute_targets(built.images(2))
    assert calls
    torch.testing.assert_close(found, wanted)


def test_an_error_of_the_forward_is_raised_as_it_is() -> None:
    """Also where it is torch's own, which another run does not mend."""
    built = builders.hf_vit()
    method = attr.LastGradAttention(similarity_of(built))
    images = built.images(2)
    method.attribute_targets(images)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of something")

    usual = built.model.visual_projection.forward
    built.model.visual_projection.forward = fail
    with pytest.raises(RuntimeError, match=r"^out of something$"):
        method.attribute_targets(images)
    built.model.visual_projection.forward = usual
    method.attribute_targets(images)


def test_an_unsupported_clip_is_no_layer_for_grad_cam() -> None:
    built = double("open_clip_vit")
    visual: Any = built.model.visual
    visual.pool_type = "none"
    with pytest.raises(UnsupportedModelError, match="no single pooled token"):
        attr.ClipGradCam(lambda pixels: pixels.sum((2, 3)), visual)


NOT_LINEAR = "is not linear in its tokens"


class Cubed(nn.Module):
    """An activation of somebody's own."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Cubes."""
        return tokens**3


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (Cubed(), NOT_LINEAR),
        (nn.GLU(), NOT_LINEAR),
        (nn.SiLU(inplace=True), r"silu in place.*inplace=False"),
    ],
)
def test_conservative_refuses_an_activation_that_it_cannot_hold(
    activation: nn.Module, message: str
) -> None:
    small = builders.hf_vit()
    mlp: Any = small.model.vision_model.encoder.layers[1].mlp
    mlp.activation_fn = activation
    if isinstance(activation, nn.GLU):
        mlp.fc1 = nn.Linear(32, 96)
    with pytest.raises(UnsupportedModelError, match=message):
        attr.ConservativePropagation(similarity_of(small)).attribute(small.images(), target=0)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Mish(), nn.SELU()])
def test_conservative_holds_every_activation_of_torch(activation: nn.Module) -> None:
    """Without constants the maps add up to the score, unless an activation is in the graph."""
    small = builders.hf_vit()
    for layer in small.model.vision_model.encoder.layers:
        layer.mlp.activation_fn = activation
    small.model.double()
    with torch.no_grad():
        for name, value in small.model.vision_model.named_parameters():
            if any(word in name for word in ("bias", "class_embedding", "position")):
                value.zero_()
    method = attr.ConservativePropagation(similarity_of(small))
    _, rest = method.attribute_targets(small.images(2, torch.float64), return_rest=True)
    assert rest.abs().max() < 1e-10


@pytest.mark.parametrize(
    ("name", "part", "methods"),
    [
        # the CAM family reads the block's input, not its attention
        (
            "hf_vit",
            "vision_model.encoder.layers.2.self_attn",
            [m for m in cases.OWN if m != "cam"],
        ),
        ("siglip", "vision_model.head.attention", ["rollout", "all-grad", "last-grad", "direct"]),
        ("open_clip_resnet", "visual.layer4", ["grad-cam", "direct"]),
    ],
)
def test_a_part_that_runs_without_its_hooks_is_named(
    name: str, part: str, methods: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in code that was compiled before; left out in silence it would be another's map."""
    small = cases.BUILDERS[name]()
    silent = small.model.get_submodule(part)
    for way in ("before", "after"):
        register = getattr(Hooks, way)

        def elsewhere(
            hooks: Any, module: Any, hook: Any, part: str = "", register: Any = register, **how: Any
        ) -> None:
            register(hooks, nn.Identity() if module is silent else module, hook, part, **how)

        monkeypatch.setattr(Hooks, way, elsewhere)
    for method in (attr.METHODS[each] for each in methods):
        similarity = similarity_of(small)
        if similarity.clip.kind in method.towers:
            made = method(similarity)
            with pytest.raises(CaptureError, match=r"ran without its hooks.*torch.compile"):
                made.attribute(small.images(), target=0)


# What stands around a model, or in the place of its parts


def test_a_model_that_accelerate_offloads_is_refused_in_a_sentence() -> None:
    """As `accelerate.cpu_offload` leaves a module: its weights on no device, and a hook of its."""
    small = double("hf_vit")
    part: Any = small.model.vision_model.encoder.layers[0].mlp.fc1
    part.to("meta")._hf_hook = object()
    with pytest.raises(UnsupportedModelError, match="accelerate's cpu_offload"):
        small.load()


@pytest.mark.parametrize("way", ["model", "tower"])
def test_a_sequential_is_a_layer_by_what_it_begins_with(way: str) -> None:
    """A model within it, or a tower with a head of one's own behind it."""
    small, rows = double("open_clip_vit"), cases.embeddings()
    pixels, model = small.images(dtype=torch.float64), small.model
    head = nn.Linear(24, len(rows), bias=False).double()
    head.weight.data.copy_(rows)

    def plain(images: Tensor) -> Tensor:
        return head(model.visual(images))

    own = nn.Sequential(model) if way == "model" else nn.Sequential(model.visual, head).eval()
    given = (plain, own) if way == "model" else (own, own)
    for method in METHODS:
        wanted = method(plain, model).attribute_targets(pixels)
        torch.testing.assert_close(method(*given).attribute_targets(pixels), wanted)


def scaled(out: Any, factor: float) -> Any:
    """A block's output, in a tuple or not, times a factor."""
    return (factor * out[0], *out[1:]) if isinstance(out, tuple) else factor * out


@pytest.mark.parametrize("where", ["block", "tower", "patched"])
@pytest.mark.parametrize(("name", "method"), EACH)
def test_a_hook_of_the_users_takes_part(name: str, method: Any, where: str) -> None:
    built = double(name)
    similarity = similarity_of(built)
    block = blocks_of(built)[-1]
    if where == "block":
        block.register_forward_hook(lambda module, args, out: scaled(out, 1.5))
    elif where == "tower":
        block.mlp.register_forward_hook(lambda module, args, out: out - 0.3)
    else:
        forward = block.forward
        block.forward = lambda *args, **kwargs: scaled(forward(*args, **kwargs), 2)
    before = [dict(module._forward_hooks) for module in built.model.modules()]
    assert_as_callable(similarity, method, built)
    assert [dict(module._forward_hooks) for module in built.model.modules()] == before


def test_prompts_before_the_patches_are_refused() -> None:
    built = double("hf_vit")
    embeddings = built.model.vision_model.embeddings
    embeddings.register_forward_hook(lambda *call: torch.cat([call[-1][:, 1:3], call[-1]], 1))
    message = r"the first block of the vision tower does not read the patches each at its own place"
    with pytest.raises(UnsupportedModelError, match=message):
        attr.LastGradAttention(similarity_of(built)).attribute_targets(built.images())


def quarter(module: nn.Module, args: Any, out: Any) -> Any:
    """A hook that takes most of an attention's output away."""
    return scaled(out, 0.25)


def _output_map(layer: Any) -> nn.Module:
    found: nn.Module = attrgetter(layer.maps[-1])(layer.attention)
    return found


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit", "siglip", "eva02"])
def test_conservative_passes_a_hook_that_scales_an_attention_or_a_norm(name: str) -> None:
    """As the parameters would; one that only looks changes nothing."""
    small = cases.BUILDERS[name]()
    method: Any = attr.ConservativePropagation(similarity_of(small))
    layer = method._tower.layers[0]
    norm = next(m for m in layer.block.modules() if isinstance(m, nn.LayerNorm))
    plain = method.attribute(small.images(), target=0)
    pairs: list[Any] = [(layer.attention, _output_map(layer)), (norm, norm)]
    for module, scaled_part in pairs:
        handle = module.register_forward_hook(lambda module, args, out: None)
        assert torch.equal(method.attribute(small.images(), target=0), plain)
        handle.remove()
        handle = module.register_forward_hook(quarter)
        found = method.attribute(small.images(), target=0)
        handle.remove()
        before = [parameter.detach().clone() for parameter in scaled_part.parameters()]
        with torch.no_grad():
            for parameter in scaled_part.parameters():
                parameter *= 0.25
        torch.testing.assert_close(found, method.attribute(small.images(), target=0))
        with torch.no_grad():
            for parameter, value in zip(scaled_part.parameters(), before, strict=True):
                parameter.copy_(value)
        assert not torch.allclose(found, plain)


class Wrapped(nn.Module):
    """A function that no module shows, as in somebody's adapter."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.inner = function, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x))


def test_conservative_passes_a_linear_map_of_ones_own() -> None:
    maps = []
    for activation, factor in ((Wrapped(lambda x: 3 * x), 1), (nn.Identity(), 3)):
        small = builders.hf_vit()
        mlp: Any = small.model.vision_model.encoder.layers[1].mlp
        mlp.activation_fn = activation
        mlp.fc2.weight.data *= factor
        method = attr.ConservativePropagation(similarity_of(small))
        maps.append(method.attribute(small.images(), target=0))
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit", "eva02"])
@pytest.mark.parametrize("where", ["attention", "block"])
def test_direct_refuses_a_layer_that_adds_something_else(name: str, where: str) -> None:
    """The values are computed from the parameters, so a hook's change would be missing."""
    small = cases.BUILDERS[name]()
    method: Any = attr.DirectContribution(similarity_of(small))
    layer = method._tower.layers[0]
    module = layer.block if where == "block" else layer.attention
    plain = method.attribute(small.images(), target=0)
    handle = module.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(method.attribute(small.images(), target=0), plain)
    handle.remove()
    module.register_forward_hook(quarter)
    with pytest.raises(UnsupportedModelError, match=r"layer [01] of the vision tower does"):
        method.attribute(small.images(), target=0)
    assert method.attribute(small.images(), target=0, start_layer=1).shape[1] == 1
