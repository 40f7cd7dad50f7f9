"""Methods by name: each is the call that it says, sees what it may see, and changes nothing."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, Occlusion, Saliency
from torch import Tensor

from captum_clip import ClipSimilarity, LayerAttention, attr, maps, metrics, targets
from captum_clip.attr import registry
from captum_clip.bench.methods import BASELINES, method_of, methods_for, named_methods
from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.metrics import masked_changes
from tests.bench.cases import Listed, context, direct, measured, model, queries, two_regions

VIT, RESNET = "hf_vit", "open_clip_resnet"
OWN: list[tuple[str, str, Any, dict[str, Any]]] = [
    (VIT, "all-grad", attr.AllGradAttention, {}),
    (VIT, "attention-grad-cam", attr.AttentionGradCam, {}),
    (VIT, "attention-grad-cam:weights=pooled", attr.AttentionGradCam, {"weights": "pooled"}),
    (VIT, "rollout", attr.AttentionRollout, {}),
    (VIT, "last-grad", attr.LastGradAttention, {}),
    (VIT, "last-grad:heads=averaged", attr.LastGradAttention, {"heads": "averaged"}),
    (VIT, "layer:index=1,of=gradient,rows=sum", LayerAttention, {"index": 1, "of": "gradient"}),
    (VIT, "last-attention", LayerAttention, {"index": -1}),
    (VIT, "last-gradient", LayerAttention, {"index": -1, "of": "gradient"}),
    (RESNET, "grad-cam", attr.ClipGradCam, {"relu_attributions": True}),
    (RESNET, "grad-cam:sign=signed", attr.ClipGradCam, {}),
]


@pytest.mark.parametrize("tower", [VIT, RESNET])
def test_a_method_is_its_class(tower: str) -> None:
    """Two images with a text each at once, or one after the other through the class itself."""
    clip = model(tower)
    asked = queries(clip)
    for name, method, kind, options in OWN:
        if name == tower:
            own = {**options, "rows": "sum"} if method.startswith("layer:") else options
            found = method_of(method, clip).maps(clip, asked)
            for heatmap, pixels, row in zip(found, asked.pixels, asked.embeddings, strict=True):
                torch.testing.assert_close(heatmap, direct(clip, kind, pixels, row, **own))


def test_summed_attention_is_the_sum_over_layers() -> None:
    clip = model(VIT)
    asked = queries(clip)
    layers = LayerAttention(ClipSimilarity(clip, targets.text(clip, "a")))
    parts = [layers.attribute(asked.pixels, index=index)[:, 0] for index in range(3)]
    found = method_of("summed-attention", clip).maps(clip, asked)
    torch.testing.assert_close(found, torch.stack(parts).sum(0))


def test_integrated_gradients_are_captums() -> None:
    clip = model(VIT)
    asked = queries(clip)
    found = method_of("integrated-gradients", clip).maps(clip, asked)
    for heatmap, pixels, row in zip(found, asked.pixels, asked.embeddings, strict=True):
        expected = direct(clip, IntegratedGradients, pixels, row, n_steps=16)
        torch.testing.assert_close(heatmap, expected, atol=1e-5, rtol=1e-4)


def test_occlusion_is_captums_on_the_grid() -> None:
    """A cell of 8 x 8 pixels at a time; Captum repeats a loss in each of three channels."""
    clip = model(VIT)
    asked = queries(clip)
    found = method_of("occlusion", clip).maps(clip, asked)
    cell = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 8, 8)}
    for heatmap, pixels, row in zip(found, asked.pixels, asked.embeddings, strict=True):
        expected = direct(clip, Occlusion, pixels, row, **cell)
        torch.testing.assert_close(heatmap, expected / 3, atol=1e-5, rtol=1e-4)
    assert found[0, :8, :8].std() == 0


@pytest.mark.parametrize(
    ("fill", "windows", "centers"),
    [("mean", "", (0, 1, 2, 3)), ("ring", ",windows=9", (0, 2, 3))],
)
def test_a_cell_has_the_mean_loss_of_the_windows_that_hold_it(
    fill: str, windows: str, centers: tuple[int, ...]
) -> None:
    """Windows of 3 x 3 cells, cut at the rim; a ring of eight pixels around, no corner cut off."""
    clip = model(VIT)  # of 4 x 4 cells
    asked = queries(clip)
    found = method_of(f"occlusion:fill={fill},side=3{windows}", clip).maps(clip, asked)
    forward = ClipSimilarity(clip, targets.embedding(asked.embeddings))
    losses: dict[tuple[int, int], Tensor] = {}
    for row, column in itertools.product(centers, repeat=2):
        top, left, bottom, right = (
            min(32, max(0, 8 * n)) for n in (row - 1, column - 1, row + 2, column + 2)
        )
        hidden = asked.pixels.clone()
        for image, pixels in zip(hidden, asked.pixels, strict=True):
            near = [
                pixels[:, y, x]
                for y in range(max(0, top - 8), min(32, bottom + 8))
                for x in range(max(0, left - 8), min(32, right + 8))
                if not (top <= y < bottom and left <= x < right)
            ]
            mean = torch.stack(near).mean(0)[:, None, None]
            others = {"mean": torch.zeros(3, 1, 1), "ring": mean.expand(3, 32, 32)}
            others["blur"] = metrics.blur_fill(pixels[None])[0]
            filled = others[fill].expand(3, 32, 32)[:, top:bottom, left:right]
            image[:, top:bottom, left:right] = filled
        losses[row, column] = (forward(asked.pixels) - forward(hidden)).diagonal()
    for row, column in itertools.product(range(4), repeat=2):
        held = [loss for (y, x), loss in losses.items() if max(abs(y - row), abs(x - column)) <= 1]
        expected = torch.stack(held).mean(0)[:, None, None].expand(-1, 8, 8)
        cell = found[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        torch.testing.assert_close(cell, expected, atol=1e-6, rtol=1e-3)


def test_a_reference_method_gives_the_maps_and_scores_of_all_targets() -> None:
    """As any registered class does, in one call."""
    clip = model(VIT)
    asked = queries(clip)
    forward = ClipSimilarity(clip, targets.embedding(asked.embeddings))
    for name in ("occlusion", "integrated-gradients", "magnitude", "random-masks"):
        method = registry.MethodChoice.of(name).method(forward)
        found, scores = registry.maps_and_scores(method, forward, asked.pixels)
        assert found.shape[:2] == (2, 2)
        assert not found.requires_grad
        assert not scores.requires_grad
        torch.testing.assert_close(scores, forward(asked.pixels))
        for column in range(2):
            alone = method.attribute(asked.pixels, column).sum(1)
            torch.testing.assert_close(found[:, column], alone)


def test_random_masks_share_what_they_lose() -> None:
    """Of each pixel the mean loss of the masks that hide it."""
    clip = model(VIT)
    asked = queries(clip)
    found = method_of("random-masks", clip).maps(clip, asked)
    forward = ClipSimilarity(clip, targets.embedding(asked.embeddings))
    grid = clip.grid(*asked.size)
    for image in range(2):  # alone: a map does not depend on the images beside it
        pixels = asked.pixels[[image]]
        drawn = masked_changes(forward, pixels, [image], grid=grid, share=0.5, samples=128)
        for row, column in ((0, 0), (11, 30)):
            hides = drawn.masks[0, :, row, column]
            mean = drawn.changes[0][hides].mean().float()
            torch.testing.assert_close(found[image, row, column], mean)


@pytest.mark.parametrize("name", [VIT])
def test_magnitude_knows_no_text(name: str) -> None:
    """The map of any text is a product with the vectors whose lengths it draws."""
    clip = model(name)
    asked = queries(clip)
    found = method_of("magnitude", clip).maps(clip, asked)
    vectors = attr.DirectContribution(ClipSimilarity(clip, targets.embedding(asked.embeddings)))
    lengths = vectors.vectors(asked.pixels).square().sum(-1).sqrt()
    torch.testing.assert_close(found, lengths)
    other = replace(asked, embeddings=-asked.embeddings)
    torch.testing.assert_close(method_of("magnitude", clip).maps(clip, other), found)


@pytest.mark.parametrize("name", [VIT, RESNET])
def test_every_method_leaves_everything_as_it_was(name: str) -> None:
    """Images, gradients, flags and the global generator; and it gives the same once more."""
    clip = model(name)
    asked = queries(clip)
    pixels, rows, state = (
        asked.pixels.clone(),
        asked.embeddings.clone(),
        torch.random.get_rng_state(),
    )
    flags = [parameter.requires_grad for parameter in clip.model.parameters()]
    for method in methods_for(clip):
        first, again = (method_of(method, clip).maps(clip, asked) for _ in range(2))
        assert torch.equal(first, again), method
        assert first.shape[:1] == (2,), method
        assert not first.requires_grad, method
        assert torch.equal(torch.random.get_rng_state(), state), method
    assert torch.equal(asked.pixels, pixels)
    assert torch.equal(asked.embeddings, rows)
    assert not asked.pixels.requires_grad
    assert asked.pixels.grad is None
    assert [parameter.requires_grad for parameter in clip.model.parameters()] == flags
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_default_is_the_registered_methods_and_all_is_every_one() -> None:
    """Captum's costly ones only where they are asked for; a name is measured once."""
    clip = model(VIT)
    default, every = (named_methods(clip, names) for names in ((), ("rollout", "all")))
    assert default == (*registry.methods_for("vit"), "random", "uniform", "center", "empty-text")
    assert every[0] == "rollout"
    assert sorted(every) == sorted(methods_for(clip))


def test_methods_for_are_those_of_the_tower() -> None:
    vit, resnet = (set(methods_for(model(name))) for name in (VIT, RESNET))
    assert {"integrated-gradients", "occlusion", *BASELINES} <= vit
    assert vit - resnet >= {  # a method may be added
        *("all-grad", "attention-grad-cam", "attention-grad-cam:weights=pooled", "rollout"),
        *("last-grad", "last-grad:heads=averaged", "last-grad:sign=signed"),
        *("conservative", "legrad", "grad-eclip", "patches"),
        *("last-attention", "summed-attention", "last-gradient"),
    }
    assert resnet - vit >= {"grad-cam", "grad-cam:sign=signed"}


@pytest.mark.parametrize(
    ("name", "method"), [(VIT, "last-grad:heads=averaged"), (RESNET, "grad-cam")]
)
def test_a_published_map_has_no_sign_and_its_signed_version_another_name(
    name: str, method: str
) -> None:
    """The map less that of the negated target, for every task and for Captum's metrics."""
    clip = model(name)
    asked = queries(clip)
    published, signed = (method_of(m, clip) for m in (method, method + SIGNED[":" in method]))
    heatmap = published.maps(clip, asked)
    assert (heatmap >= 0).all()
    assert not published.signed
    assert signed.signed
    negative = published.negative_maps(clip, asked, heatmap)
    assert negative is not None
    torch.testing.assert_close(signed.maps(clip, asked), heatmap - negative)
    assert (signed.maps(clip, asked) < 0).any()
    attribute = published.attribute(clip, asked.embeddings)
    assert attribute is not None
    assert (attribute(asked.pixels, target=[0, 1]) >= 0).all()


SIGNED = (":sign=signed", ",sign=signed")


def test_the_negative_map_of_a_vit_is_that_of_the_negated_target() -> None:
    clip = model(VIT)
    asked = queries(clip)
    for method in ("all-grad", "last-grad", "last-grad:heads=averaged"):
        chosen = method_of(method, clip)
        found = chosen.negative_maps(clip, asked, chosen.maps(clip, asked))
        expected = chosen.maps(clip, replace(asked, embeddings=-asked.embeddings)).clamp(min=0)
        assert found is not None
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
        assert found.any()


@pytest.mark.parametrize("name", [VIT, RESNET])
def test_empty_text_ignores_the_target(name: str) -> None:
    """It is Mamooler's method for the empty text, which has one name on every tower."""
    clip = model(name)
    asked = queries(clip)
    method = method_of("empty-text", clip)
    found = method.maps(clip, asked)
    assert torch.equal(
        found, method.maps(clip, replace(asked, embeddings=asked.embeddings.flip(0)))
    )
    [report, *drawn] = named_methods(clip, ["mamooler"])
    assert drawn == ["random", "uniform", "center"]
    assert report == ("last-grad" if name == VIT else "grad-cam")
    own = method_of(report, clip)
    empty = clip.encode_text([""]).detach().expand_as(asked.embeddings)
    torch.testing.assert_close(found, own.maps(clip, replace(asked, embeddings=empty)))


def test_random_is_drawn_by_number_and_seed() -> None:
    clip = model(VIT)
    asked = queries(clip)
    found = method_of("random", clip, seed=1).maps(clip, asked)
    assert found.shape == (2, 4, 4)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, method_of("random", clip, seed=2).maps(clip, asked))
    assert -1 <= found.min() < 0 < found.max() <= 1


def test_center_is_highest_in_the_middle() -> None:
    clip = model(VIT)
    found = method_of("center", clip).maps(clip, queries(clip))[0]
    assert torch.equal(found, found.flip(0, 1))
    assert maps.normalize(found)[1:3, 1:3].min() == 1
    # standard deviations from the middle, of a quarter of each side
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5) * 4 for side in found.shape[-2:])
    log = -(rows[:, None].square() + columns.square()) / 2
    torch.testing.assert_close(found, log.exp())


def test_unknown_methods_and_options_are_refused() -> None:
    clip = model(VIT)
    for method, message in (
        ("gradcam", r"one of grad-cam, .*center.* got 'gradcam' \(did you mean grad-cam\?\)"),
        ("centre", r"\(did you mean center\?\)"),
        ("last-grad:head=paired", "last-grad has no option 'head'"),
        ("layer:index=x", "expected the option index as int, got 'x'"),
        ("layer:index", "cannot read 'index' in 'layer:index'; options look like"),
        ("rollout:sign=signed", "rollout:sign=signed does not depend on the target"),
        ("last-grad:sign=both", "last-grad has no option 'sign'"),
        ("magnitude:side=3", "magnitude has no option 'side'; it has none"),
        ("occlusion:fill=grey", "`fill` of mean, blur, ring, got 'grey'"),
        ("occlusion:side=2", "an odd `side`, in cells, got 2"),
        ("occlusion:windows=8", "a square number of `windows`, got 8"),
    ):
        with pytest.raises(InputError, match=message):
            method_of(method, clip).maps(clip, queries(clip))


def test_a_method_of_another_tower_is_refused() -> None:
    clip = model(RESNET)
    for method in ("last-grad", "summed-attention"):
        with pytest.raises(UnsupportedModelError, match="and this is a convolutional tower"):
            method_of(method, clip).maps(clip, queries(clip))


class PlainSaliency:
    """Captum's, in the form of a registered class."""

    name, towers, costly = "saliency", ("vit",), True

    def __init__(self, forward: ClipSimilarity) -> None:
        self.forward = forward

    def attribute(self, images: Tensor, target: Any = None) -> Any:
        leaf = images.detach().clone().requires_grad_()
        return Saliency(self.forward).attribute(leaf, target=target)

    def attribute_targets(self, images: Tensor) -> Tensor:
        columns = range(len(self.forward.target))
        return torch.stack([self.attribute(images, column).sum(1) for column in columns], 1)


def test_a_method_of_ones_own_is_measured_next_to_captums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any registered class is one, with what it says of itself."""
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    attr.register(PlainSaliency)
    clip = model(VIT)
    assert "saliency" in methods_for(clip)
    method, asked = method_of("saliency", clip), queries(clip)
    assert (method.costly, method.signed, method.baseline) == (True, False, False)
    whole = method.maps_of_image(clip, asked)
    torch.testing.assert_close(whole[:1], method.maps(clip, asked)[:1])
    got = measured("localization", context(clip, Listed(two_regions("a"))), "saliency")
    assert len(got["pointing"].values) == 2


def test_an_edited_method_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that was begun with the class before the edit is not continued."""
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))

    def identity(power: int) -> Any:
        file = tmp_path / f"edited_{power}.py"
        file.write_text(
            "from captum_clip.attr.extend import ViTAttribution, last_gradient\n"
            "class Own(ViTAttribution):\n"
            "    name = 'own'\n"
            "    def _compute(self, call):\n"
            "        last = last_gradient(self._tower, call)\n"
            f"        return last.run.computed(last.row.mean(2) ** {power})\n"
        )
        spec = spec_from_file_location("edited", file)
        assert spec is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "edited", module)
        assert spec.loader is not None
        spec.loader.exec_module(module)
        registry.METHODS["own"] = module.Own
        return method_of("own", model(VIT)).identity()

    assert identity(1) != identity(2)
    assert "source" not in method_of("rollout", model(VIT)).identity()
