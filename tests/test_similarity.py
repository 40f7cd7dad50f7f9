"""`ClipSimilarity` is the library's own cosine similarity, and an ordinary module."""

from __future__ import annotations

import copy

import pytest
import torch

from captum_clip import targets
from captum_clip.errors import InputError, TargetError
from captum_clip.targets.similarity import ClipSimilarity
from tests import builders, oracles
from tests.attr import cases
from tests.samples import normal

TOWERS = cases.TOWERS


@pytest.mark.parametrize("name", TOWERS)
def test_similarity_equals_the_librarys_cosine(name):
    """Texts and images encoded by the library, plainly divided by their lengths."""
    clip, images = cases.adapter(name), cases.images(name)
    texts = ["a horse", "a dog"]
    tokens = clip.tokenizer(texts)
    with torch.no_grad():
        if hasattr(clip.model, "visual"):
            rows = clip.model.encode_text(tokens)
        else:
            tokens = clip.tokenizer(texts, padding=True, return_tensors="pt")
            rows = clip.model.get_text_features(**tokens)
            rows = getattr(rows, "pooler_output", rows)
        wanted = oracles.cosines(cases.embed(clip.model, images), rows)
        found = ClipSimilarity(clip, targets.text(clip, texts))(images)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_similarity_equals_the_models_own_logits():
    """transformers' logits are the similarities times the temperature."""
    clip, images = cases.adapter("hf_vit"), cases.images("hf_vit")
    tokens = clip.tokenizer(["a horse", "a dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip.model(pixel_values=images, **tokens).logits_per_image
        found = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))(images)
    torch.testing.assert_close(found * clip.model.logit_scale.exp(), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_similarity_is_differentiable_in_the_images(name):
    """The gradient equals the difference quotient, in float64."""
    forward = cases.similarity(name, torch.float64)
    images = cases.images(name, torch.float64, batch=1)
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward(leaf)[0, 0], leaf)
    with torch.no_grad():
        step = 1e-6 * direction
        slope = (forward(images + step) - forward(images - step))[0, 0] / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "given"), [("hf_vit", torch.float16), ("open_clip_vit", torch.float64)], ids=str
)
def test_similarity_has_at_least_single_precision(name, dtype, given, result):
    """Images of any floating type are cast to the model's inside."""
    forward = cases.similarity(name, dtype)
    with torch.no_grad():
        found = forward(cases.images(name).to(given))
        wanted = cases.similarity(name, torch.float64)(cases.images(name).to(given).double())
    assert found.dtype == result
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 5e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=0)


def test_similarity_is_bounded_and_signed():
    """Cosines lie in [-1, 1], and a negated target has the negative one."""
    clip, images = cases.adapter("hf_vit"), cases.images("hf_vit")
    target = targets.text(clip, ["a horse", "a dog"])
    with torch.no_grad():
        scores = ClipSimilarity(clip, target)(images)
        negated = ClipSimilarity(clip, -target)(images)
    assert scores.abs().max() <= 1
    assert torch.equal(negated, -scores)


@pytest.mark.parametrize("embedding", ["a", torch.tensor(1.0)], ids=type)
def test_score_of_what_is_no_embedding_is_refused(embedding):
    """In one sentence, without a word of PyTorch's."""
    with pytest.raises(InputError, match=r"^expected embeddings"):
        cases.similarity("hf_vit").score(embedding)


def test_similarity_is_an_ordinary_module():
    """The model is a submodule, its embeddings a buffer that is not saved."""
    small = builders.hf_vit()
    forward = ClipSimilarity(small.load(), targets.embedding(cases.embeddings()))
    assert not forward.training
    assert {name.split(".")[0] for name, _ in forward.named_parameters()} == {"model"}
    assert "embeddings" in dict(forward.named_buffers())
    assert "embeddings" not in forward.state_dict()
    small.model.train()
    assert ClipSimilarity(small.load(), targets.embedding(cases.embeddings())).training
    assert all(parameter.requires_grad for parameter in small.model.parameters())


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_similarity_is_copied_whole(name):
    """A deep copy computes the same, with a model of its own, and explains that model."""
    from captum_clip import ClipGradCam, LastGradAttention

    forward, images = cases.similarity(name), cases.images(name)
    other = copy.deepcopy(forward)
    assert other.model is not forward.model
    assert other.clip.model is other.model
    assert other.clip.vision is not forward.clip.vision
    assert any(module is other.clip.vision for module in other.model.modules())
    with torch.no_grad():
        assert torch.equal(other(images), forward(images))
    method = ClipGradCam if name == "open_clip_resnet" else LastGradAttention
    wanted = method(forward).attribute(images, target=1)
    assert torch.equal(method(other).attribute(images, target=1), wanted)
    with torch.no_grad():
        for parameter in other.clip.vision.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(method(other).attribute(images, target=1), wanted)
    assert torch.equal(method(forward).attribute(images, target=1), wanted)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_target_of_another_model_is_refused(name):
    """The sizes are named when the class is made."""
    with pytest.raises(
        TargetError, match=r"a target of 24 numbers.*, got 12; make it with this model"
    ):
        ClipSimilarity(cases.adapter(name), targets.embedding(torch.eye(12)[:2]))


def test_wrong_arguments_are_refused():
    """A model is no adapter, a tensor no target."""
    clip = cases.adapter("hf_vit")
    with pytest.raises(InputError, match=r"an adapter from load_clip.*got CLIPModel; pass"):
        ClipSimilarity(clip.model, targets.embedding(cases.embeddings()))
    with pytest.raises(TargetError, match=r"a Target, got Tensor .*; make one.*targets\.text"):
        ClipSimilarity(clip, cases.embeddings())  # type: ignore[arg-type]


def test_similarity_made_in_inference_mode_has_gradients():
    """Its embeddings are an ordinary tensor."""
    with torch.inference_mode():
        clip = cases.adapter("hf_vit")
        forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
    images = cases.images("hf_vit").requires_grad_()
    (gradient,) = torch.autograd.grad(forward(images).sum(), images)
    assert gradient.abs().max() > 0


def test_similarity_of_wide_images_interpolates_positions():
    """transformers takes other sizes than the native one."""
    clip, images = cases.adapter("hf_vit"), cases.images("hf_vit", wide=True)
    with torch.no_grad():
        found = cases.similarity("hf_vit")(images)
        wanted = oracles.cosines(cases.embed(clip.model, images), cases.embeddings().float())
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_score_takes_embeddings_of_any_length():
    """What the tail of a tower gives need not be normalized."""
    forward = cases.similarity("hf_vit")
    embedding = normal(2, 5, 24, seed=0)
    scores = forward.score(embedding)
    assert scores.shape == (2, 5, 4)
    torch.testing.assert_close(forward.score(embedding * 7), scores)


def test_target_of_another_model_is_refused_where_only_a_forward_tells():
    """A changed model is asked for its length before a target is refused."""
    clip = builders.hf_vit().load()
    features = clip.image_features
    with pytest.raises(TargetError, match=r"a target of 24 numbers.*, got 12"):
        ClipSimilarity(clip, targets.embedding(torch.eye(12)[:2]))
    clip.image_features = lambda images: features(images)[:, :12]
    forward = ClipSimilarity(clip, targets.embedding(torch.eye(12)[:2]))
    assert forward(cases.images("hf_vit")).shape == (3, 2)


def test_images_on_another_device_are_refused():
    """Both devices are named."""
    small = builders.hf_vit()
    small.model.to("meta")
    forward = ClipSimilarity(small.load(), targets.embedding(cases.embeddings()))
    with pytest.raises(InputError, match=r"expected images on meta, got Tensor .*; pass images.to"):
        forward(cases.images("hf_vit"))
