"""Every method equals its equation, written plainly with every attention in the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_clip import attr
from tests import oracles
from tests.attr import cases
from tests.attr.cases import CLS_TOWERS, FORWARDS, KEY_CASES, TOLERANCE, VIT_CASES, VITS, Case

GRAD_CAM = Case("ClipGradCam", {})
SCALES = {name: 1 if name == "similarity" else 20 for name in FORWARDS}


@pytest.mark.parametrize("name", cases.TOWERS)
def test_oracle_forward_equals_the_librarys_embedding(name):
    """The plain forward computes the library's own image embedding."""
    model = cases.built(name, torch.float64).model
    pixels = cases.images(name).double()
    with torch.no_grad():
        expected = cases.embed(model, pixels)
    torch.testing.assert_close(cases.seen(name).embedding, expected, rtol=1e-11, atol=1e-11)


def test_oracle_forward_equals_the_librarys_embedding_of_wide_images():
    """The plain forward interpolates positions as transformers does."""
    model = cases.built("hf_vit", torch.float64).model
    with torch.no_grad():
        expected = cases.embed(model, cases.images("hf_vit", wide=True).double())
    embedding = cases.seen("hf_vit", wide=True).embedding
    torch.testing.assert_close(embedding, expected, rtol=1e-11, atol=1e-11)


READING = ["hf_vit", "open_clip_vit_mean"]  # CLS, or the mean of the patches
CHECKED = [
    *((case, "hf_vit", "similarity", torch.float64) for case in VIT_CASES),
    *((case, "open_clip_vit_mean", "similarity", torch.float64) for case in KEY_CASES),
    *((KEY_CASES[3], name, "similarity", torch.float64) for name in CLS_TOWERS[1:]),
    *((case, "hf_vit", "callable, layer=model", torch.float64) for case in KEY_CASES),
    *((KEY_CASES[3], name, "callable, layer=tower", torch.float64) for name in READING),
    *((case, "hf_vit", "similarity", torch.float32) for case in KEY_CASES),
]


@pytest.mark.parametrize(("case", "name", "forward", "dtype"), CHECKED, ids=str)
def test_vit_method_equals_its_equation(case, name, forward, dtype):
    """All targets of a batch, on both libraries, with every way to name the tower."""
    function, layer = FORWARDS[forward](name, dtype)
    found = case.kind(function, layer).attribute_targets(cases.images(name, dtype), **case.options)
    assert found.dtype == dtype
    wanted = cases.expected(name, case, scale=SCALES[forward])
    cases.assert_maps_close(found, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("forward", ["similarity"])
@pytest.mark.parametrize("case", KEY_CASES, ids=str)
def test_vit_method_equals_its_equation_on_wide_images(case, forward):
    """Non-square images of another size than the native one."""
    function, layer = FORWARDS[forward]("hf_vit", torch.float64)
    pixels = cases.images("hf_vit", torch.float64, wide=True)
    found = case.kind(function, layer).attribute_targets(pixels, **case.options)
    assert found.shape == (3, 4, 4, 6)
    wanted = cases.expected("hf_vit", case, scale=SCALES[forward], wide=True)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    ("name", "forward", "dtype"),
    [
        *(("open_clip_resnet", forward, torch.float64) for forward in FORWARDS),
        *((name, "similarity", torch.float64) for name in cases.AVERAGE_POOLED),
        ("open_clip_resnet", "similarity", torch.float32),
    ],
    ids=str,
)
def test_grad_cam_equals_its_equation(name, forward, dtype):
    """The signed Grad-CAM of the last stage, and its ReLU."""
    function, layer = FORWARDS[forward](name, dtype)
    method, pixels = attr.ClipGradCam(function, layer), cases.images(name, dtype)
    wanted = cases.expected(name, GRAD_CAM, scale=SCALES[forward])
    assert (wanted < 0).any()
    found = method.attribute_targets(pixels)
    assert found.dtype == dtype
    cases.assert_maps_close(found, wanted, TOLERANCE[dtype])
    one = method.attribute(pixels, target=[2, 0, 1])
    each = wanted[torch.arange(3), [2, 0, 1]][:, None]
    cases.assert_maps_close(one, each, TOLERANCE[dtype])
    relu = method.attribute(pixels, target=[2, 0, 1], relu_attributions=True)
    assert torch.equal(relu, one.clamp(min=0))
    assert torch.equal(method.attribute_targets(pixels, relu_attributions=True), found.clamp(min=0))


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("open_clip_resnet", "callable, layer=model"),
        ("timm_convnext", "similarity"),
    ],
)
def test_grad_cam_with_a_detached_pool_equals_its_equation(name, forward):
    """OpenCLIP's pool has w_c = (W_V^T W_C^T grad_e y)_c / hw; an average detaches nothing."""
    function, layer = FORWARDS[forward](name, torch.float64)
    method, pixels = attr.ClipGradCam(function, layer), cases.images(name, torch.float64)
    found = method.attribute_targets(pixels, attention="detached")
    free = method.attribute_targets(pixels)
    visual: Any = getattr(cases.built(name, torch.float64).model, "visual", None)
    if not hasattr(visual, "attnpool"):
        assert torch.equal(found, free)
        return
    seen = []
    with torch.no_grad(), visual.layer4.register_forward_hook(lambda _, __, out: seen.append(out)):
        embedding = visual(pixels)
    embedding.requires_grad_()
    scores = F.normalize(embedding, dim=-1) @ cases.embeddings().T * SCALES[forward]
    columns = []
    for y in scores.T:
        (gradient,) = torch.autograd.grad(y.sum(), embedding, retain_graph=True)
        pool = visual.attnpool
        weights = gradient @ pool.c_proj.weight @ pool.v_proj.weight  # (B, C)
        columns.append((weights[:, :, None, None] * seen[0]).sum(1) / seen[0][0, 0].numel())
    cases.assert_maps_close(found, torch.stack(columns, 1).detach(), TOLERANCE[torch.float64])
    assert (found - free).abs().max() > 1e-3 * free.abs().max()
    one = method.attribute(pixels, target=1, attention="detached", relu_attributions=True)
    torch.testing.assert_close(one[:, 0], found[:, 1].clamp(min=0), rtol=1e-12, atol=1e-12)


def patches_too(name, weight):
    """A forward function that also reads the patch tokens, `weight` times, and its oracle."""
    small = cases.built(name, torch.float64)
    width = 32
    direction = torch.linspace(-1, 1, width, dtype=torch.float64)

    def add(embedding, patches):
        score = F.normalize(embedding, dim=-1) @ cases.embeddings().T
        return score + weight * (patches.tanh() @ direction).sum(1, keepdim=True)

    def forward(pixels):
        if name == "hf_vit":
            vision = small.model.vision_model(pixel_values=pixels)
            return add(small.model.visual_projection(vision.pooler_output), vision[0][:, 1:])
        return add(*small.model.visual(pixels))

    seen = cases.seen(name)
    return forward, add(seen.embedding, seen.patches)


@pytest.fixture
def patches_returned():
    """OpenCLIP's towers return their patches next to the embedding while the test runs."""
    towers = [cases.built(name, torch.float64).model.visual for name in VITS if name != "hf_vit"]
    for tower in towers:
        tower.output_tokens = True
    yield
    for tower in towers:
        tower.output_tokens = False


GRADIENT_CASES = [case for case in KEY_CASES if case.method != "AttentionRollout"]


@pytest.mark.usefixtures("patches_returned")
@pytest.mark.parametrize(
    ("case", "name"),
    [
        *((case, "hf_vit") for case in KEY_CASES),
        (KEY_CASES[3], "open_clip_vit"),
    ],
    ids=str,
)
def test_general_form_equals_the_fast_form(case, name):
    """A gradient outside row CLS, too small to matter, takes the other way to the same map."""
    pixels = cases.images(name, torch.float64)
    forward, _ = patches_too(name, 2.0**-60)
    layer = cases.adapter(name, torch.float64).vision
    general = case.kind(forward, layer).attribute_targets(pixels, **case.options)
    fast = case.kind(cases.similarity(name, torch.float64))
    cases.assert_maps_close(
        general, fast.attribute_targets(pixels, **case.options), TOLERANCE[torch.float64]
    )


@pytest.mark.usefixtures("patches_returned")
@pytest.mark.parametrize(
    ("case", "name"),
    [*((case, "hf_vit") for case in GRADIENT_CASES), (KEY_CASES[3], "open_clip_vit")],
    ids=str,
)
def test_callable_that_reads_cls_and_patches_equals_the_equation(case, name):
    """Where the score reads CLS and patches, the general form is read at row CLS."""
    forward, scores = patches_too(name, 0.05)
    layer = cases.adapter(name, torch.float64).vision
    pixels = cases.images(name, torch.float64)
    found = case.kind(forward, layer).attribute_targets(pixels, **case.options)
    wanted = oracles.maps(case.method, cases.seen(name), scores, **case.options)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])
    if case.options.get("start_layer") == 0:  # the other rows do take part
        assert (found - cases.expected(name, case)).abs().max() > 1e-3 * found.max()


PATCH_CASES = [case for case in GRADIENT_CASES if case.method != "LayerAttention"]


@pytest.mark.usefixtures("patches_returned")
@pytest.mark.parametrize(
    ("case", "name"),
    [*((case, "hf_vit") for case in PATCH_CASES), (KEY_CASES[3], "open_clip_vit")],
    ids=str,
)
def test_callable_that_pools_patches_reads_their_mean_row(case, name):
    """Where row CLS has no gradient, the mean of the patches' rows is read."""
    small = cases.built(name, torch.float64)
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(2)).double()

    def pool(patches):
        return F.normalize(patches.mean(1), dim=-1) @ directions.T

    def forward(pixels):
        if name == "hf_vit":
            return pool(small.model.vision_model(pixel_values=pixels)[0][:, 1:])
        return pool(small.model.visual(pixels)[1])

    layer = cases.adapter(name, torch.float64).vision
    pixels = cases.images(name, torch.float64)
    found = case.kind(forward, layer).attribute_targets(pixels, **case.options)
    seen = cases.seen(name)
    wanted = oracles.maps(case.method, seen, pool(seen.patches), "mean", **case.options)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("case", PATCH_CASES, ids=str)
def test_row_is_chosen_image_by_image(case):
    """In one batch, an image scored by its CLS token and one scored by its patches."""
    model = cases.built("hf_vit", torch.float64).model
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2)).double()

    def pool(tokens):
        return torch.stack([tokens[0, 0], tokens[1, 1:].mean(0), tokens[2, 0]]).tanh() @ direction

    def forward(pixels):
        return pool(model.vision_model(pixel_values=pixels)[0])

    seen, pixels = cases.seen("hf_vit"), cases.images("hf_vit", torch.float64)
    found = case.kind(forward, model).attribute(pixels, **case.options)
    scores = pool(seen.hidden)[:, None]
    cls, mean = (
        oracles.maps(case.method, seen, scores, row, **case.options) for row in ("cls", "mean")
    )
    wanted = torch.cat([cls[:1], mean[1:2], cls[2:]])
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("case", KEY_CASES[3:4], ids=str)
def test_callable_of_one_score_needs_no_target(case):
    """A forward function that returns (B,) is explained without a target."""
    model, embeddings = cases.built("hf_vit", torch.float64).model, cases.embeddings()

    def forward(pixels):
        return F.normalize(cases.embed(model, pixels), dim=-1) @ embeddings[1]

    found = case.kind(forward, model).attribute(
        cases.images("hf_vit", torch.float64), **case.options
    )
    wanted = cases.expected("hf_vit", case)[:, 1:2]
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])
