"""The methods equal their equations on towers that are built or used in less common ways."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from captum_clip import attr, targets
from captum_clip.attr.registry import METHODS
from captum_clip.targets.similarity import ClipSimilarity
from tests import builders, oracles
from tests.attr import cases
from tests.attr.cases import Case

CASES = [
    Case("AttentionGradCam", {}),
    Case("AttentionGradCam", {"weights": "pooled"}),
    Case("AttentionRollout", {}),
    Case("AllGradAttention", {}),
    Case("LastGradAttention", {}),
    Case("LastGradAttention", {"heads": "averaged"}),
    Case("LayerAttention", {"index": 0, "of": "gradient"}),
    Case("LayerAttention", {"rows": "sum"}),
]


def sequence_first():
    """Old OpenCLIP code and checkpoints put the sequence before the batch."""
    small = builders.open_clip_vit()
    if not hasattr(small.model.visual.transformer, "batch_first"):
        pytest.skip("from version 4 on OpenCLIP has the batch first")
    small.model.visual.transformer.batch_first = False
    for block in small.model.visual.transformer.resblocks:
        block.attn.batch_first = False
    return small


def frozen():
    """Nothing requires a gradient."""
    small = builders.hf_vit()
    small.model.requires_grad_(False)
    return small


VARIANTS = {
    "frozen": frozen,
    "frozen OpenCLIP": lambda: builders.open_clip_custom_vit()._replace(
        model=builders.open_clip_custom_vit().model.requires_grad_(False)
    ),
    "sequence first": sequence_first,
    "norm after pooling": lambda: builders.open_clip_vit(final_ln_after_pool=True),
    "norm after mean pooling": lambda: builders.open_clip_vit_mean(final_ln_after_pool=True),
    "non-square": lambda: builders.open_clip_vit(image_size=(32, 48)),
    "non-square, mean pooling": lambda: builders.open_clip_vit_mean(image_size=(48, 32)),
    "one layer": lambda: builders.hf_vit(num_hidden_layers=1),
    "one layer, OpenCLIP": lambda: builders.open_clip_vit(layers=1),
    "one head": lambda: builders.open_clip_vit(head_width=32),
    "edge that fills no patch": lambda: builders.hf_vit(image_size=35),
    "eager attention": lambda: _with_eager_attention(builders.hf_vit()),
}


def _with_eager_attention(small):
    small.model.set_attn_implementation("eager")
    return small


@pytest.mark.parametrize("variant", VARIANTS)
def test_vit_methods_equal_their_equations(variant):
    """Every method, with a `ClipSimilarity` and with a callable."""
    small = VARIANTS[variant]()
    small.model.double()
    side = 35 if variant == "edge that fills no patch" else 0
    pixels = torch.randn(2, 3, side, side).double() if side else small.images(2, torch.float64)
    embeddings = cases.embeddings()
    seen = oracles.see(small.model, pixels)
    scores = oracles.cosines(seen.embedding, embeddings)
    similarity = ClipSimilarity(small.load(), targets.embedding(embeddings))

    def forward(images):
        features = cases.embed(small.model, images)
        return F.normalize(features, dim=-1) @ embeddings.T

    # transformers' eager attention takes its softmax in float32
    tolerance = 1e-5 if variant == "eager attention" else 1e-10
    torch.testing.assert_close(similarity(pixels), scores, rtol=0, atol=tolerance)
    for index, case in enumerate(CASES):
        wanted = oracles.maps(case.method, seen, scores, **case.options)
        both = case.kind(similarity), case.kind(forward, small.model)
        for method in both if index < 4 else both[:1]:
            found = method.attribute_targets(pixels, **case.options)
            cases.assert_maps_close(found, wanted, tolerance)


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel", "inner"])
@pytest.mark.parametrize("case", CASES[3:4], ids=str)
def test_vision_models_of_transformers_are_taken_as_layer(case, kind):
    """A callable around a vision model without its text half, with that model as `layer`."""
    import transformers

    small = cases.built("hf_vit", torch.float64)
    name = "CLIPVisionModelWithProjection" if kind == "inner" else kind
    with torch.random.fork_rng():
        vision = getattr(transformers, name)(small.model.config.vision_config).double().eval()
    _copy_weights(small.model, vision)
    embeddings, projection = cases.embeddings(), small.model.visual_projection.weight

    def forward(images):
        out = vision(pixel_values=images)
        embedding = out.pooler_output @ projection.T if kind == "CLIPVisionModel" else out[0]
        return F.normalize(embedding, dim=-1) @ embeddings.T

    layer = vision.vision_model if kind == "inner" else vision
    found = case.kind(forward, layer).attribute_targets(
        cases.images("hf_vit", torch.float64), **case.options
    )
    cases.assert_maps_close(found, cases.expected("hf_vit", case), 1e-10)


@pytest.mark.parametrize("name", ["direct", "last-grad", "patches"])
def test_a_tower_without_its_projection_gets_a_warning_where_that_changes_maps(name):
    clip, kind = cases.built("hf_vit", torch.float64).load(), METHODS[name]
    embeddings, images = cases.embeddings(), cases.images("hf_vit", torch.float64)

    def forward(images):
        features = clip.vision(images).pooler_output
        return F.normalize(clip.model.visual_projection(features), dim=-1) @ embeddings.T

    changed = pytest.warns(UserWarning, match="visual_projection after .*pass the whole model")
    with changed if kind.reads_projection else nullcontext():
        alone = kind(forward, clip.vision)
    whole, alone = (each.attribute_targets(images) for each in (kind(forward, clip.model), alone))
    differs = (whole - alone).abs().max() > 0.01 * whole.abs().max()
    assert differs == kind.reads_projection

    def product(images):
        features = clip.vision(images).pooler_output
        return F.normalize(features @ clip.model.visual_projection.weight.T, dim=-1) @ embeddings.T

    not_run = pytest.warns(UserWarning, match="visual_projection of .* did not run as a module")
    with not_run if kind.reads_projection else nullcontext():
        maps = kind(product, clip.model).attribute_targets(images)
    torch.testing.assert_close(maps, alone)


def _copy_weights(model, vision):
    """Copy by the ends of the names, since their beginnings differ between versions."""
    source = dict(model.vision_model.named_parameters())
    source["visual_projection.weight"] = model.visual_projection.weight
    with torch.no_grad():
        for name, parameter in vision.named_parameters():
            parameter.copy_(source[name.removeprefix("vision_model.")])


@pytest.mark.parametrize(("layers", "requires_grad"), [((1, 1, 1, 1), False), ((1, 2, 1, 2), True)])
def test_grad_cam_equals_its_equation(layers, requires_grad):
    """Stages of several blocks, with and without parameters that want a gradient."""
    small = builders.open_clip_resnet(layers=list(layers))
    small.model.double().requires_grad_(requires_grad)
    pixels, embeddings = small.images(2, torch.float64), cases.embeddings()
    seen = oracles.see_resnet(small.model, pixels)
    wanted = oracles.grad_cam(seen, oracles.cosines(seen.embedding, embeddings))
    similarity = ClipSimilarity(small.load(), targets.embedding(embeddings))

    def forward(images):
        return F.normalize(small.model.encode_image(images), dim=-1) @ embeddings.T

    for method in (attr.ClipGradCam(similarity), attr.ClipGradCam(forward, small.model.visual)):
        cases.assert_maps_close(method.attribute_targets(pixels), wanted, 1e-10)


@pytest.mark.parametrize("case", CASES[3:4], ids=str)
def test_further_inputs_and_arguments_reach_the_callable(case):
    """A tuple of inputs, for which one map comes back, and `additional_forward_args` after it."""
    model = cases.built("hf_vit", torch.float64).model

    def forward(images, rows, factor):
        return factor * F.normalize(cases.embed(model, images), dim=-1) @ rows[0].T

    method, pixels = case.kind(forward, model), cases.images("hf_vit", torch.float64)
    embeddings = cases.embeddings().expand(3, -1, -1)
    wanted = cases.expected("hf_vit", case, scale=2)
    (one,) = method.attribute((pixels, embeddings), 1, 2.0, **case.options)
    cases.assert_maps_close(one, wanted[:, 1:2], 1e-10)
    found = method.attribute_targets(pixels, None, (embeddings, 2.0), **case.options)
    cases.assert_maps_close(found, wanted, 1e-10)


@pytest.mark.parametrize("case", CASES[3:4], ids=str)
def test_callable_may_prepare_its_images(case):
    """A parameter of the callable's own before the tower, and images of the inference mode."""
    model, embeddings = cases.built("hf_vit", torch.float64).model, cases.embeddings()
    gain = torch.nn.Parameter(torch.full((3, 1, 1), 0.5, dtype=torch.float64))

    def forward(images):
        return F.normalize(cases.embed(model, images * gain), dim=-1) @ embeddings.T

    with torch.inference_mode():
        pixels = 2 * cases.images("hf_vit", torch.float64)
        found = case.kind(forward, model).attribute_targets(pixels, **case.options)
    cases.assert_maps_close(found, cases.expected("hf_vit", case), 1e-10)
    assert gain.grad is None
