"""A forward function of one's own takes the short way where the tower is the library's, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor

from captum_clip import attr, load_clip
from captum_clip.attr import _attention
from captum_clip.attr._call import ReadsMoreError
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import CaptureError
from tests.attr import cases

CASES = [
    ("hf_vit", "last-grad"),
    ("open_clip_vit", "attention-grad-cam"),
    ("open_clip_resnet", "grad-cam"),
    ("timm_convnext", "grad-cam"),
]


def explain(name: str, method: str, forward: Any = None, **options: Any) -> Tensor:
    """All maps for a callable that scales cosines."""
    model = cases.built(name, torch.float64).model
    own = forward or cases.own_callable(name, torch.float64)
    maps: Tensor = attr.METHODS[method](own, model).attribute_targets(
        cases.images(name, torch.float64), **options
    )
    return maps


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_short_way_equals_the_general_one(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = explain(name, method)
    asked = []

    def changed(*_: Any) -> Any:
        asked.append(1)
        raise ReadsMoreError("as if a hook changed the pool")

    way = "_shift_gradient" if "resnet" in cases.adapter(name).kind else "_through_one_token"
    monkeypatch.setattr(_attention, way, changed)
    torch.testing.assert_close(short, explain(name, method), rtol=1e-9, atol=1e-12)
    assert asked  # the general way was taken


def test_scores_of_more_than_cls_take_the_general_way() -> None:
    """A callable that reads patches as well runs once more, with whole matrices."""
    model = cases.built("hf_vit", torch.float64).model
    calls = []

    def forward(images: Tensor) -> Tensor:
        calls.append(1)
        hidden = model.vision_model(images).last_hidden_state
        return hidden[:, 0, :3] + hidden[:, 1:, :3].mean(1)

    maps = explain("hf_vit", "last-grad", forward)
    assert len(calls) > 1
    assert (maps > 0).any()


@pytest.mark.parametrize(
    ("name", "method"), [("hf_vit", "last-grad"), ("open_clip_resnet", "grad-cam")]
)
def test_a_foreign_hook_takes_the_general_way(name: str, method: str) -> None:
    """What a hook makes of the last block or stage is not known."""
    wanted = explain(name, method)
    tower = cases.adapter(name, torch.float64).tower
    module = tower.layers[-1].block if name == "hf_vit" else tower.stage
    handle = module.register_forward_hook(lambda module, args, result: None)
    try:
        torch.testing.assert_close(explain(name, method), wanted, rtol=1e-9, atol=1e-12)
    finally:
        handle.remove()


def reading_more(model: Any, what: str) -> Any:
    """A forward function whose score reads hidden states as well as the embedding."""
    embeddings = cases.embeddings()

    def forward(images: Tensor) -> Tensor:
        result = model.vision_model(images, output_hidden_states=what == "an early layer")
        project = getattr(model, "visual_projection", torch.nn.Identity())
        cosines = (
            torch.nn.functional.normalize(project(result.pooler_output), dim=-1) @ embeddings.T
        )
        if what == "projected patches":
            return cosines + (project(result.last_hidden_state[:, 1:]) @ embeddings.T).amax(1)
        states = result.hidden_states[1] if what == "an early layer" else result.last_hidden_state
        return cosines + states.square().flatten(1).mean(1)[:, None]

    return forward


@pytest.mark.parametrize("what", ["hidden states", "projected patches", "an early layer"])
@pytest.mark.parametrize("method", ["direct", "conservative"])
def test_a_score_that_reads_more_than_the_embedding_is_not_taken_apart(
    method: str, what: str
) -> None:
    """The part that is read from elsewhere would be missing in the map."""
    # not the shared model: transformers leaves hooks on one that was asked for hidden states
    model = cases.BUILDERS["hf_vit"]().model.double()
    attribution = attr.METHODS[method](reading_more(model, what), model)
    with pytest.raises(CaptureError, match=r"(more than|beside) the embedding.*all-grad"):
        attribution.attribute_targets(cases.images("hf_vit", torch.float64))


def test_grad_cam_of_a_score_that_reads_the_features_too_takes_the_general_way() -> None:
    """Its gradient does not lead through the pool alone."""
    model = cases.built("align", torch.float64).model
    forward = reading_more(model, "hidden states")
    expected = LayerGradCam(forward, model.vision_model.encoder.blocks[-1]).attribute(
        cases.images("align", torch.float64), target=1
    )
    found = explain("align", "grad-cam", forward)[:, 1:2]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    assert torch.equal(explain("align", "grad-cam", forward, attention="detached")[:, 1:2], found)


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0), torch.tensor([[1.0], [2.0], [3.0]])])
def test_further_arguments_are_of_all_images_or_of_each(scale: Any) -> None:
    """A temperature may be a tensor without an axis."""
    forward, images = cases.similarity("hf_vit"), cases.images("hf_vit")
    method = attr.DirectContribution(lambda x, by: by * forward(x), cases.built("hf_vit").model)
    maps = method.attribute_targets(images, additional_forward_args=scale)
    plain = attr.DirectContribution(forward).attribute_targets(images)
    wanted = torch.as_tensor(scale).reshape(-1, 1, 1, 1) * plain
    torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-6)


def test_scores_may_be_in_half_precision() -> None:
    """Whose range is smaller than that of the tower's own numbers."""
    forward, images = cases.similarity("hf_vit"), cases.images("hf_vit")
    model = cases.built("hf_vit").model
    maps = attr.DirectContribution(lambda x: forward(x).half(), model).attribute_targets(images)
    plain = attr.DirectContribution(forward).attribute_targets(images)
    torch.testing.assert_close(maps, plain, rtol=0.02, atol=0.002 * float(plain.abs().max()))


@pytest.mark.parametrize("method", ["direct", "last-grad"])
def test_scores_without_a_graph_are_told_so(method: str) -> None:
    """And not that they read something else than the embedding."""
    forward, model = cases.similarity("hf_vit"), cases.built("hf_vit").model
    explainer = attr.METHODS[method](lambda x: forward(x).detach(), model)
    with pytest.raises(CaptureError, match=r"must not use torch\.no_grad\(\)"):
        explainer.attribute_targets(cases.images("hf_vit"))


@pytest.mark.parametrize("reads", ["cls", "patches"])
def test_rollout_of_a_score_that_reads_the_mean_of_the_patches_starts_from_their_rows(
    reads: str,
) -> None:
    """Nobody reads CLS there, so its map would be that of a token that does not matter."""
    model, images = (
        cases.built("hf_vit", torch.float64).model,
        cases.images("hf_vit", torch.float64),
    )

    def forward(images: Tensor) -> Tensor:
        hidden = model.vision_model(images).last_hidden_state
        return hidden[:, 0, :3] if reads == "cls" else hidden[:, 1:, :3].mean(1)

    weights = model.vision_model.config._attn_implementation
    model.vision_model.set_attn_implementation("eager")
    try:
        layers = model.vision_model(images, output_attentions=True).attentions
    finally:
        model.vision_model.set_attn_implementation(weights)
    row = torch.zeros(len(images), 1, layers[0].shape[-1], dtype=torch.float64)
    if reads == "cls":
        row[..., 0] = 1
    else:
        row[..., 1:] = 1 / (row.shape[-1] - 1)
    for attention in reversed(layers):
        mean = attention.mean(1) + torch.eye(row.shape[-1])
        row = row @ (mean / mean.sum(-1, keepdim=True))
    maps = explain("hf_vit", "rollout", forward)
    assert maps.shape[1] == 3
    torch.testing.assert_close(maps.flatten(2), row[..., 1:].expand(-1, 3, -1))


def test_rollout_needs_no_graph_of_a_forward_function() -> None:
    """Where none leads to the tower, the token that the tower pools is taken."""
    forward = cases.own_callable("hf_vit", torch.float64)
    plain = explain("hf_vit", "rollout", forward)
    for own in (torch.no_grad()(forward), lambda x: forward(x).detach()):
        torch.testing.assert_close(explain("hf_vit", "rollout", own), plain)


def test_scores_of_one_image_that_would_be_sorted_among_others_are_refused() -> None:
    """One image alone is looked at beside its mirror image, which has another score."""
    clip = load_clip("demo/vit")
    direction = clip.encode_text("a horse")
    image = clip.preprocess(draw_scene(0, objects=["horse"]).image)

    def cosines(images: Tensor) -> Tensor:
        return clip.encode_image(images) @ direction.mT

    with torch.no_grad():
        own, mirrored = cosines(torch.cat([image, image.flip(-1)]))
    swaps = bool(own < mirrored)

    def ranked(images: Tensor) -> Tensor:
        return cosines(images).sort(dim=0, descending=swaps, stable=True).values

    with pytest.raises(CaptureError, match="The scores of an image depend on other images"):
        attr.LastGradAttention(ranked, clip.vision).attribute(image, target=0)
