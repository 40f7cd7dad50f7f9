"""Every bad input to a method gets one clear error that names the value and the cure."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_clip import attr, targets
from captum_clip.errors import CaptureError, InputError, UnsupportedModelError
from captum_clip.targets.similarity import ClipSimilarity
from tests import builders
from tests.attr import cases

SOME = ["ClipGradCam", "LastGradAttention"]
VIT_ONLY = ["LastGradAttention", "ConservativePropagation"]
FITTING = [("LastGradAttention", "hf_vit"), ("ClipGradCam", "open_clip_resnet")]


def make(method, forward, layer=None):
    """A method by its name."""
    return cases.METHODS[method](forward, layer)


def small_similarity(small):
    """A `ClipSimilarity` of a model that is the test's own."""
    return ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))


# The tower


@pytest.mark.parametrize("method", VIT_ONLY)
def test_vit_methods_refuse_a_resnet(method):
    """A ResNet has no attention to show; the method that fits is named."""
    with pytest.raises(
        UnsupportedModelError,
        match=f"{method} needs a vision transformer.*, and this is a convolutional tower; take",
    ):
        make(method, cases.similarity("open_clip_resnet"))


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit_mean"])
def test_grad_cam_refuses_a_vit(name):
    """A ViT has no convolutional stage; the methods that fit are named."""
    with pytest.raises(
        UnsupportedModelError,
        match=r"needs a convolutional tower, and this is a vision transformer; take .* direct ",
    ):
        make("ClipGradCam", cases.similarity(name))
    with pytest.raises(UnsupportedModelError, match=r"this is a vision transformer"):
        make("ClipGradCam", cases.own_callable(name), cases.built(name).model)


@pytest.mark.parametrize("method", SOME)
def test_callable_without_a_layer_is_refused(method):
    """It cannot be known where to look."""
    with pytest.raises(InputError, match=f"{method}: .*forward function of your own.*as `layer`"):
        make(method, lambda images: images.sum((1, 2, 3)))


@pytest.mark.parametrize("method", SOME)
def test_what_cannot_be_called_is_refused(method):
    """The type that was given is named."""
    with pytest.raises(InputError, match=f"{method}: expected a forward function, got 3; pass a"):
        make(method, 3)


@pytest.mark.parametrize("method", SOME[1:])
def test_unknown_layer_is_refused_by_name(method):
    """The class of the module, and what is supported."""
    with pytest.raises(UnsupportedModelError, match=r"in a Linear; supported are .*transformers:"):
        make(method, lambda images: images, nn.Linear(2, 2))


def test_layer_of_another_model_is_refused():
    """The similarity and the layer must belong together."""
    other = builders.hf_vit(seed=1).model
    with pytest.raises(InputError, match=r"is not the tower of the ClipSimilarity; leave it out"):
        attr.LastGradAttention(cases.similarity("hf_vit"), other)


def test_grad_cam_of_another_layer_has_no_targets():
    """Captum's way knows one target at a time."""
    layer = cases.built("open_clip_resnet").model.visual.layer2
    method = attr.ClipGradCam(cases.similarity("open_clip_resnet"), layer)
    with pytest.raises(UnsupportedModelError, match=r"needs the last stage.*call attribute once"):
        method.attribute_targets(cases.images("open_clip_resnet"))


# Training mode


@pytest.mark.parametrize("method", ["AttentionRollout", "DirectContribution"])
@pytest.mark.parametrize(
    ("small", "reason"),
    [
        (lambda: builders.hf_vit(attention_dropout=0.1), "attention dropout 0.1"),
        (lambda: builders.open_clip_vit(patch_dropout=0.5), "patch dropout 0.5"),
    ],
)
def test_dropout_in_training_mode_is_refused(method, small, reason):
    """Two forwards would differ; the cure is named, and works."""
    small = small()
    similarity = small_similarity(small)
    small.model.train()
    message = f"{method}: the vision tower is in training mode with {reason}; call model.eval"
    with pytest.raises(InputError, match=message):
        make(method, similarity).attribute(small.images(), target=0)
    with pytest.raises(InputError, match=message):
        make(method, similarity).attribute_targets(small.images())
    assert small.model.training
    small.model.eval()
    assert make(method, similarity).attribute(small.images(), target=0).shape == (2, 1, 4, 4)


def test_batch_norm_in_training_mode_is_refused():
    """Running statistics would change; they do not."""
    small = builders.open_clip_resnet()
    similarity = small_similarity(small)
    small.model.visual.layer2.train()
    before = {key: value.clone() for key, value in small.model.state_dict().items()}
    with pytest.raises(InputError, match=r"in training mode with BatchNorm; call model.eval"):
        attr.ClipGradCam(similarity).attribute(small.images(), target=0)
    for key, value in small.model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("method", "name"),
    [("DirectContribution", "hf_vit"), ("LastGradAttention", "open_clip_vit_mean")],
)
def test_training_mode_without_dropout_runs(method, name):
    """transformers builds models in training mode; nothing there depends on it."""
    small = builders.BUILDERS[name]()
    similarity = small_similarity(small)
    wanted = make(method, similarity).attribute(small.images(), target=1)
    small.model.train()
    found = make(method, similarity).attribute(small.images(), target=1)
    torch.testing.assert_close(found, wanted)
    assert all(module.training for module in small.model.modules())


@pytest.mark.parametrize("method", ["AllGradAttention", "ConservativePropagation"])
def test_checkpointing_is_refused_where_blocks_would_run_again(method):
    """No hook would be left to see the second run."""
    for small in (builders.open_clip_vit(), builders.hf_vit()):
        if hasattr(small.model, "visual"):
            small.model.set_grad_checkpointing()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5
                small.model.gradient_checkpointing_enable()
            small.model.train()

        def forward(images, model=small.model):
            return cases.embed(model, images)

        with pytest.raises(UnsupportedModelError, match=r"turn gradient checkpointing off"):
            make(method, forward, small.model).attribute(small.images(), target=0)


# The callable


@pytest.fixture(params=FITTING, ids=str)
def setting(request):
    """A method, a model and its images."""
    method, name = request.param
    model = cases.built(name).model
    return (lambda forward: make(method, forward, model)), model, cases.images(name)


def under(mode, run):
    """What a function gives in a grad mode."""
    with mode():
        return run()


CALLABLES = {
    "did not run the vision tower": lambda embed, images: images.sum((2, 3)),
    "ran the vision tower twice.*exactly once": lambda embed, images: embed(images) + embed(images),
    r"under torch\.no_grad.*remove that": lambda embed, images: under(
        torch.no_grad, lambda: embed(images)
    ),
    r"inference_mode.*remove that": lambda embed, images: under(
        torch.inference_mode, lambda: embed(images)
    ),
    "No gradient leads.*detach": lambda embed, images: embed(images).detach(),
    "do not depend on what the tower computed": lambda embed, images: (
        embed(images).detach() * torch.ones(1, requires_grad=True)
    ),
    r"a score .* \(B,\) or \(B, K\), got Tensor \(3, 1, 24\)": lambda e, images: e(images)[:, None],
    r"got Tensor \(\)": lambda embed, images: embed(images).sum(),
    r"got \[Tensor": lambda embed, images: [embed(images)],
    r"scores of the 3 images .* got Tensor \(2, 24\)": lambda embed, images: embed(images)[:2],
    r"scores of the 6 images .* got Tensor \(3, 24\)": lambda embed, images: embed(
        images.repeat(2, 1, 1, 1)
    )[:3],
}


@pytest.mark.parametrize("message", CALLABLES)
def test_callable_that_cannot_be_explained_is_refused(setting, message):
    """With what it did; both methods refuse it, and the grad mode is as before."""
    method, model, images = setting
    explainer = method(lambda pixels: CALLABLES[message](partial(cases.embed, model), pixels))
    with pytest.raises(CaptureError, match=message):
        explainer.attribute(images, target=0)
    with pytest.raises(CaptureError, match=message):
        explainer.attribute_targets(images)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_exception_of_the_callable_comes_out(setting, error):
    """The very exception, even those that Python treats in its own way."""
    method, model, images = setting

    def forward(pixels):
        cases.embed(model, pixels)
        raise error

    with pytest.raises(type(error)) as caught:
        method(forward).attribute(images, target=0)
    assert caught.value is error


# Options


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "AttentionGradCam",
            {"weights": "mean"},
            "expected `weights` of elementwise, pooled, got 'mean'",
        ),
        (
            "LastGradAttention",
            {"heads": "all"},
            "expected `heads` of .*paired, averaged, got 'all'",
        ),
        ("LayerAttention", {"of": "value"}, "expected `of` of .*attention, gradient, got 'value'"),
        ("LayerAttention", {"rows": "mean"}, "expected `rows` of .*cls, sum, got 'mean'"),
        ("LayerAttention", {"index": 3}, r"0 ... 2, or .*, got 3\."),
        ("LayerAttention", {"index": True}, "index of a layer.*, got True"),
        *(
            (method, {"start_layer": 3}, "expected `start_layer` up to 2, got 3")
            for method in ("AttentionRollout", "LastGradAttention")
        ),
        *(
            ("LastGradAttention", {"start_layer": value}, "expected `start_layer` of 0 or more")
            for value in (-1, "0")
        ),
    ],
    ids=str,
)
def test_option_that_does_not_exist_is_refused(method, options, message):
    """The option, the value and the choices."""
    found = make(method, cases.similarity("hf_vit"))
    with pytest.raises(InputError, match=message):
        found.attribute(cases.images("hf_vit"), target=0, **options)
    with pytest.raises(InputError, match=message):
        found.attribute_targets(cases.images("hf_vit"), **options)


def test_a_pool_that_is_not_read_alone_cannot_be_detached():
    """Another layer, Captum's own way, a word that is no choice."""
    own, visual = cases.similarity("open_clip_resnet"), cases.built("open_clip_resnet").model.visual
    images = cases.images("open_clip_resnet")
    detached: dict[str, Any] = {"target": 0, "attention": "detached"}
    with pytest.raises(InputError, match="expected `attention` of free, detached, got 'fixed'"):
        attr.ClipGradCam(own).attribute(images, target=0, attention="fixed")
    with pytest.raises(InputError, match=r"attention='free' with another layer.* got 'detached'"):
        attr.ClipGradCam(own, visual.layer3).attribute(images, **detached)
    with pytest.raises(InputError, match=r"attention='free' with another layer.* got 'detached'"):
        attr.ClipGradCam(own).attribute(images, attr_dim_summation=False, **detached)


@pytest.mark.parametrize("flag", ["yes"])
def test_flags_are_true_or_false(flag):
    """What else Python would take for one gives other results than were asked for."""
    method = make("DirectContribution", cases.similarity("hf_vit"))
    images = cases.images("hf_vit")
    for name in ("return_scores", "return_rest"):
        with pytest.raises(InputError, match=f"attribute_targets: expected `{name}` of True or F"):
            method.attribute_targets(images, **{name: flag})
    with pytest.raises(InputError, match=r"attribute: expected `return_rest` of True or F"):
        method.attribute(images, target=0, return_rest=flag)


def test_options_are_keyword_only():
    """So that Captum's positional arguments keep their places."""
    method = attr.LastGradAttention(cases.similarity("hf_vit"))
    with pytest.raises(TypeError, match=r"positional arguments"):
        method.attribute(cases.images("hf_vit"), 0, None, "paired")


def test_a_part_that_is_checkpointed_is_a_sentence():
    """Relevance cannot go through an MLP whose forward runs again in the backward."""
    small = builders.hf_vit()
    mlp = small.model.vision_model.encoder.layers[0].mlp
    mlp.forward = partial(checkpoint, mlp.forward, use_reentrant=False)
    method = make("ConservativePropagation", small_similarity(small))
    with pytest.raises(UnsupportedModelError, match="the model cannot be computed"):
        method.attribute(small.images(), target=0)


def test_what_cannot_be_compiled_is_a_sentence():
    """The reason is the compiler's own; a map needs no compiler."""
    small = builders.hf_vit()

    def refuse(*_: Any) -> None:
        raise OSError("there is no compiler")

    small.model.vision_model = torch.compile(small.model.vision_model, backend=refuse)
    similarity = small_similarity(small)
    make("LastGradAttention", similarity).attribute(small.images(), target=0)
    with pytest.raises(UnsupportedModelError, match=r"cannot be .*there is no compiler.* 'eager'"):
        similarity.clip.encode_image(small.images())


def test_errors_of_a_callable_stay_its_own():
    """A sentence about the model would hide where they come from."""

    def forward(images):
        raise RuntimeError("the user's own")

    small = builders.hf_vit()
    with pytest.raises(RuntimeError, match=r"^the user's own$"):
        make("LastGradAttention", forward, small.model).attribute(small.images(), target=0)


def test_checkpointing_does_not_matter_where_no_block_runs_again():
    """A stopped forward has no backward through blocks."""
    small = builders.open_clip_vit()
    similarity = small_similarity(small)
    wanted = attr.LastGradAttention(similarity).attribute(small.images(), target=0)
    small.model.set_grad_checkpointing()
    found = attr.LastGradAttention(similarity).attribute(small.images(), target=0)
    torch.testing.assert_close(found, wanted)
