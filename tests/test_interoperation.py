"""Other people's tools with our methods in their place, and their figures next to ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import quantus
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchmetrics.functional import classification, regression

from captum_clip import attr, maps, metrics, targets
from captum_clip.targets.similarity import ClipSimilarity
from tests import builders
from tests.attr import cases
from tests.samples import uniform

TARGETS = [2, 0, 1]
METHODS = [
    ("hf_vit", attr.LastGradAttention),
    ("open_clip_vit", attr.AllGradAttention),
    ("open_clip_resnet", attr.ClipGradCam),
]


def explain(
    model: Any, inputs: Any, targets: Any, *, method: Any, seen: list[Any], **_: Any
) -> Any:
    """What Quantus calls: arrays in, maps of the images' size out as an array."""
    pixels = torch.as_tensor(inputs)
    found = method(model).attribute(pixels, target=torch.as_tensor(targets))
    seen.append(maps.upsample(found, (pixels.shape[-2], pixels.shape[-1])))
    return seen[-1].numpy()


def asked(metric: Any, forward: Any, images: torch.Tensor, **options: Any) -> np.ndarray:
    """The figures of a metric of Quantus."""
    return np.array(
        metric(
            model=forward,
            x_batch=images.numpy(),
            y_batch=np.array(TARGETS),
            softmax=False,
            device="cpu",
            **options,
        )
    )


QUIET: dict[str, Any] = {"normalise": False, "abs": False, "disable_warnings": True}


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_pixel_flipping_of_quantus_is_our_deletion(name):
    """The same curve, where no two pixels have the same value.

    Quantus flips channels one by one, so that only every third of its steps has whole pixels.
    """
    forward, images = cases.similarity(name), cases.images(name)
    pixels = images.shape[-2] * images.shape[-1]
    heatmap = torch.stack([uniform(1, *images.shape[-2:], seed=seed) for seed in range(3)])
    flipping = quantus.PixelFlipping(features_in_step=pixels // 4, perturb_baseline=0.0, **QUIET)
    wanted = asked(flipping, forward, images, a_batch=heatmap.numpy())[:, 2::3]
    found = metrics.perturbation_test(
        forward,
        images,
        heatmap,
        TARGETS,
        fill=metrics.mean_fill(images),
        fractions=[0.25, 0.5, 0.75, 1],
    )
    assert wanted.shape == (3, 4)
    np.testing.assert_allclose(found.score.most_first.numpy(), wanted, atol=2e-6)


def test_pointing_game_of_quantus_is_ours():
    """Hit by hit, where one pixel is the highest."""
    images, heatmap = torch.zeros(200, 3, 16, 16), uniform(200, 1, 16, 16, seed=1)
    masks = uniform(200, 1, 16, 16, seed=2) > 0.6
    wanted = quantus.PointingGame(**QUIET)(
        model=nn.Flatten(),
        x_batch=images.numpy(),
        y_batch=np.zeros(200, dtype=int),
        a_batch=heatmap.numpy(),
        s_batch=masks.numpy(),
    )
    found = metrics.pointing_game(heatmap, masks)[:, 0]
    assert found.tolist() == [float(hit) for hit in wanted]
    assert 0.2 < found.mean() < 0.6


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_quantus_calls_our_methods_through_its_explain_func(name, method):
    """It gets the maps that `attribute` gives, and its figure is the one of those maps."""
    forward, images = cases.similarity(name), cases.images(name)
    seen: list[torch.Tensor] = []
    masks = uniform(3, 1, *images.shape[-2:], seed=3) > 0.5
    hits = asked(
        quantus.PointingGame(**QUIET),
        forward,
        images,
        s_batch=masks.numpy(),
        explain_func=partial(explain, method=method, seen=seen),
    )
    raw = method(forward).attribute(images, target=TARGETS)
    wanted = maps.upsample(raw, (images.shape[-2], images.shape[-1]))
    torch.testing.assert_close(seen[0], wanted)
    highest = wanted == wanted.amax((-2, -1), keepdim=True)
    assert hits.tolist() == (highest & masks).flatten(1).any(1).tolist()
    curve = asked(
        quantus.PixelFlipping(features_in_step=wanted[0].numel(), perturb_baseline=0.0, **QUIET),
        forward,
        images,
        explain_func=partial(explain, method=method, seen=seen),
    )
    with torch.no_grad():
        emptied = forward(torch.zeros_like(images))[torch.arange(3), TARGETS]
    np.testing.assert_allclose(curve[:, -1], emptied.numpy(), atol=2e-6)


def test_segmentation_of_torchmetrics_is_ours():
    """IoU and accuracy over the set, precision of each image."""
    heatmap, masks = uniform(6, 20, 24, seed=4).round(decimals=1), uniform(6, 20, 24, seed=5) > 0.6
    found = metrics.segmentation_scores(heatmap, masks, threshold=0.35)
    marked = maps.normalize(heatmap) > 0.35
    iou = classification.multiclass_jaccard_index(marked.int(), masks.int(), num_classes=2)
    assert found.mean_iou == pytest.approx(iou.item())
    accuracy = classification.binary_accuracy(marked.int(), masks.int())
    assert found.pixel_accuracy == pytest.approx(accuracy.item())
    precision = [
        classification.binary_average_precision(one, mask.int())
        for one, mask in zip(heatmap, masks, strict=True)
    ]
    torch.testing.assert_close(metrics.average_precision(heatmap, masks), torch.stack(precision))


def test_rank_correlations_of_torchmetrics_are_ours():
    one, other = uniform(2, 9, 9, seed=6).round(decimals=1), uniform(2, 9, 9, seed=7)
    columns = one.flatten(1).T, other.flatten(1).T
    ranked = regression.spearman_corrcoef(*columns)
    torch.testing.assert_close(metrics.rank_correlation(one, other), ranked)


@pytest.fixture
def resnet():
    """A ResNet of its own, since pytorch-grad-cam leaves gradients on it, with a target."""
    small = builders.open_clip_resnet()
    forward = ClipSimilarity(small.load(), targets.embedding(cases.embeddings()))
    return forward, small.model.visual.layer4, small.images(3)


class Convolutions(nn.Module):
    """Two inputs, one convolution and a sum: small enough to be explained by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 2, bias=False)
        self.relu = nn.ReLU()
        weight = torch.tensor([[[1.0, 0], [0, 0]], [[0, 0], [0, -1.0]]])[:, None]
        self.convolution.weight = nn.Parameter(weight)  # upper left, minus lower right

    def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        total = first if second is None else first + second
        features = self.convolution(total)
        sums = torch.stack([features.sum((1, 2, 3)), 3 * features[:, 1].sum((1, 2))], 1)
        return sums + self.relu(features).sum((1, 2, 3))[:, None] * torch.tensor([0.0, 1.0])


SQUARE = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
UPPER_LEFT = torch.tensor([[1.0, 2.0], [4.0, 5.0]])
LOWER_RIGHT = torch.tensor([[5.0, 6.0], [8.0, 9.0]])


MAP = UPPER_LEFT - LOWER_RIGHT


@pytest.mark.parametrize(
    ("layer", "inputs", "options", "wanted"),
    [
        # every position has the gradient 1, so each channel has the weight 1
        ("convolution", SQUARE, {"target": 0}, MAP[None, None]),
        # channel 1 has 3, and channel 0 the ReLU's 1 where it is above zero
        ("convolution", SQUARE, {"target": 1}, (UPPER_LEFT - 3 * LOWER_RIGHT)[None, None]),
        ("convolution", (SQUARE, 2 * SQUARE), {"target": 0}, 3 * MAP[None, None]),
        (
            "convolution",
            SQUARE,
            {"target": 0, "additional_forward_args": 2 * SQUARE},
            3 * MAP[None, None],
        ),
        (
            "convolution",
            SQUARE,
            {"target": 0, "relu_attributions": True},
            torch.zeros(1, 1, 2, 2),
        ),
        ("convolution", -SQUARE, {"target": 0, "relu_attributions": True}, -MAP[None, None]),
        # what enters the ReLU: 1 for each position of channel 0, nothing through channel 1
        (
            "relu",
            SQUARE,
            {"target": 1, "attribute_to_layer_input": True},
            (UPPER_LEFT - 3 * LOWER_RIGHT)[None, None],
        ),
        ("relu", SQUARE, {"target": 1}, UPPER_LEFT[None, None]),
        (
            "convolution",
            SQUARE,
            {"target": 1, "attr_dim_summation": False},
            torch.stack([UPPER_LEFT, -3 * LOWER_RIGHT])[None],
        ),
    ],
)
def test_grad_cam_is_worked_by_hand(layer, inputs, options, wanted):
    """Of a convolution and of a ReLU, with every option of Captum's."""
    net = Convolutions()
    found = attr.ClipGradCam(net, getattr(net, layer)).attribute(inputs, **options)
    torch.testing.assert_close(found, wanted)


def test_pytorch_grad_cam_draws_our_positive_map(resnet):
    """Its picture is the positive part of ours, resized and stretched to [0, 1]."""
    forward, stage, images = resnet
    ours = attr.ClipGradCam(forward).attribute(images, target=TARGETS)
    with GradCAM(model=forward, target_layers=[stage]) as theirs:
        wanted = theirs(input_tensor=images, targets=[ClassifierOutputTarget(t) for t in TARGETS])
    size = (images.shape[-2], images.shape[-1])
    found = maps.normalize(maps.upsample(maps.positive(ours), size))[:, 0]
    assert found.amax((1, 2)).tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_grad_cam_leaves_network_and_inputs_as_they_are(batch):
    """No gradient, no hook, no flag; each image alone is what it is in a batch."""
    net, inputs = Convolutions(), torch.cat([SQUARE * i for i in range(1, batch + 1)])
    method = attr.ClipGradCam(net, net.convolution)
    found = method.attribute(inputs, target=[0, 1, 0, 1][:batch])
    for i in range(batch):
        alone = method.attribute(inputs[i : i + 1], target=i % 2)
        torch.testing.assert_close(alone[0], found[i])
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not inputs.requires_grad
