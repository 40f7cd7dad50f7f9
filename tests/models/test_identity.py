"""Who a model is: the same wherever it computes the same, another with each change that counts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import load_clip
from captum_clip.models import differing_parts
from captum_clip.models.identity import BOUND, fixed_images, part_agrees, summary
from tests import builders
from tests.attr import cases
from tests.models.checkpoints import save_transformers

ALL = ["weights", "image embeddings", "text embeddings"]
IMAGES, TEXTS, BOTH = ALL[1:2], ALL[2:], ALL[1:]


def numbers(part: str) -> Any:
    return np.array(part.split(), dtype=float)


def distance(one: str, other: str) -> float:
    return float(np.sqrt(np.mean((numbers(one) - numbers(other)) ** 2)))


# The same


KINDS = ["hf_vit", "coca", "open_clip_resnet"]


@pytest.mark.parametrize("name", KINDS)
def test_every_model_has_one_and_is_left_as_it_was(name: str) -> None:
    """In training mode, too, where dropout is random and BatchNorm keeps its statistics."""
    built = cases.BUILDERS[name]()
    clip, model = built.load(), built.model
    identity = clip.identity()
    assert not differing_parts(
        identity, built._replace(model=copy.deepcopy(model)).load().identity()
    )
    model.train().requires_grad_(False)
    next(model.modules()).training = False  # modes are of each module
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5

    def state() -> list[Any]:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return [
            [(n, id(t), t._version, t.dtype, t.requires_grad, t.grad) for n, t in tensors],
            [module.training for module in model.modules()],
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
        ]

    before = state()
    assert clip.identity() == identity
    assert state() == before


def test_it_is_the_same_after_a_reload(tmp_path: Any) -> None:
    """In another process too: studies that are resumed there ask for that."""
    built = builders.hf_vit()
    save_transformers(built, tmp_path)
    identity = load_clip(tmp_path, device="cpu").identity()
    assert not differing_parts(identity, built.load().identity())
    assert json.loads(json.dumps(identity)) == identity


def keep(model: Any) -> None:
    pass


def watch(model: Any) -> None:
    seen: list[Tensor] = []
    model.visual_projection.register_forward_hook(lambda *call: seen.append(call[2]))


def attend_otherwise(model: Any) -> None:
    model.set_attn_implementation("eager")


def move(model: Any) -> None:
    model.config._name_or_path = "elsewhere"
    for parameter in model.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("change", [keep, watch, attend_otherwise, move])
def test_it_is_the_same_after(change: Callable[[Any], None]) -> None:
    built = builders.hf_vit()
    identity = built.load().identity()
    change(built.model)
    assert not differing_parts(identity, built.load().identity())


@pytest.mark.parametrize(
    ("name", "dtype"), [("demo/vit", torch.bfloat16), ("demo/resnet", torch.float16)]
)
def test_rounding_of_another_device_stays_below_the_bound(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision each device rounds in its own way; that of TF32 is below it as well."""
    whole = load_clip(name, device="cpu")
    own = nn.Conv2d._conv_forward

    def rounded(tensor: Tensor) -> Tensor:
        """To the ten bits of a TF32's mantissa."""
        return ((tensor.contiguous().view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)

    def convolve(conv: nn.Conv2d, images: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return own(conv, rounded(images), rounded(weight), bias)

    half = load_clip(name, device="cpu", dtype=dtype)
    upcast = load_clip(name, device="cpu", dtype=dtype)
    upcast.model.float()
    assert differing_parts(half.identity(), whole.identity())[0] == "weights"
    identities = [clip.identity() for clip in (whole, upcast)]
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", convolve)
    for clip, identity in zip((whole, half), identities, strict=True):
        for part in ("image_embeddings", "text_embeddings"):
            assert distance(clip.identity()[part], identity[part]) < BOUND / 2


def test_it_asks_gpus_for_float32_and_puts_their_setting_back() -> None:
    cudnn: Any = torch.backends.cudnn

    def setting() -> Any:  # of PyTorch 2.9 and later, of those before
        return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32

    built, before, within = builders.hf_vit(), setting(), set()
    built.model.visual_projection.register_forward_hook(lambda *call: within.add(setting()))
    built.load().identity()
    assert [*within] in (["ieee"], [False])
    assert setting() == before not in within


# Another


def weights(model: Any) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3


def exchange_weights(model: Any) -> None:
    """Which leaves the digest as it is."""
    [first, second, _] = model.vision_model.encoder.layers
    first.mlp, second.mlp = second.mlp, first.mlp


def scale(model: Any) -> None:
    model.vision_model.encoder.layers[0].self_attn.scale /= 2


def hooked(hook: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.vision_model.encoder.layers[1].mlp.fc1.register_forward_hook(hook)

    return change


def patched_forward(model: Any) -> None:
    mlp = model.vision_model.encoder.layers[0].mlp
    mlp.forward = lambda hidden: hidden


def attend_evenly(model: Any) -> None:
    from transformers import AttentionInterface

    def evenly(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return value.mean(2, keepdim=True).expand_as(query).transpose(1, 2), None

    AttentionInterface.register("evenly", evenly)
    model.set_attn_implementation("evenly")


def activation(model: Any) -> None:
    for layer in model.vision_model.encoder.layers:
        layer.mlp.activation_fn = nn.ReLU()


PAIRS: dict[str, tuple[Callable[[Any], None], Callable[[Any], None], list[str]]] = {
    "weights": (keep, weights, ALL[:1]),
    "weights exchanged": (keep, exchange_weights, IMAGES),
    "hidden_act": (keep, activation, IMAGES),
    "scale": (keep, scale, IMAGES),
    "hook": (keep, hooked(lambda module, args, output: output * 2), IMAGES),
    "patched forward": (keep, patched_forward, IMAGES),
    "attention": (keep, attend_evenly, BOTH),
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_another_after_a_change_of_the_model_alone(name: str) -> None:
    first, second, parts = PAIRS[name]
    found = []
    for change in (first, second):
        built = builders.hf_vit()
        change(built.model)
        found.append(built.load().identity())
    assert differing_parts(*found) == parts


def open_clip_changes() -> dict[str, tuple[Any, list[str]]]:
    from open_clip import CLIP

    base, vision = builders.open_clip_vit().model, builders.VIT_CONFIG
    quick = CLIP(24, vision, builders.TEXT_CONFIG, quick_gelu=True)
    quick.load_state_dict(base.state_dict())
    made = {name: copy.deepcopy(base) for name in ("pool_type", "mask", "text")}
    made["pool_type"].visual.pool_type = "avg"
    made["mask"].attn_mask = torch.zeros_like(base.attn_mask)  # causal no more, in no state dict
    made["text"].text_pool_type = "last"
    parts = {"quick": BOTH, "pool_type": IMAGES, "mask": TEXTS, "text": TEXTS}
    made["quick"] = quick.eval()
    return {name: (model, parts[name]) for name, model in made.items()}


def test_it_is_another_with_every_setting_of_open_clip() -> None:
    built = builders.open_clip_vit()
    made = open_clip_changes()
    identity = built.load().identity()
    for name, (model, parts) in made.items():
        other = built._replace(model=model).load().identity()
        assert differing_parts(identity, other) == parts, name


def process_alone(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1)
    return pixels.float() / 255


def test_it_is_another_with_every_processor() -> None:
    from transformers import CLIPImageProcessor

    built = builders.hf_vit()
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    squashed = {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    options: list[Any] = [
        *({}, {"image_mean": [0.5] * 3}, {"image_std": [0.25] * 3}, {"resample": 2}),
        *({"resample": 0}, {"size": {"shortest_edge": 40}}, squashed, {"do_normalize": False}),
    ]
    processors = [None, process_alone, *(CLIPImageProcessor(**{**sizes, **o}) for o in options)]
    found = [built.load(processor=processor).identity() for processor in processors]
    for place, identity in enumerate(found):
        for other in found[:place]:
            assert differing_parts(identity, other) == IMAGES


def test_it_is_the_same_with_other_code_for_the_same_processing() -> None:
    """As transformers 5 has that of torchvision in the place of Pillow's."""
    from transformers import CLIPImageProcessor

    pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    own = load_clip("demo/vit", device="cpu")
    assert isinstance(own.processor, CLIPImageProcessor)
    other = pil.CLIPImageProcessorPil.from_dict(own.processor.to_dict())
    clip = load_clip(own.model, processor=other, tokenizer=own.tokenizer)
    one, two = own.identity(), clip.identity()
    assert one["image_embeddings"] != two["image_embeddings"]
    assert not differing_parts(one, two)


def test_it_is_another_with_every_tokenizer_but_not_for_images() -> None:
    built = builders.hf_vit()

    def lower(texts: list[str]) -> Any:
        return built.tokenizer([text.lower() for text in texts], return_tensors="pt")

    def some(texts: list[str]) -> Any:
        if "CAT" in texts[0]:
            raise KeyError("CAT")
        return built.tokenizer(texts, return_tensors="pt")

    clips = [built.load(tokenizer=tokenizer) for tokenizer in (None, built.tokenizer, lower, some)]
    found = [clip.identity() for clip in clips]
    assert [len(numbers(identity["text_embeddings"])) for identity in found] == [0, 12, 12, 8]
    for place, identity in enumerate(found):
        for other in found[:place]:
            assert differing_parts(identity, other) == TEXTS
    images = clips[0].identity(texts=False)
    assert images.keys() == {"weights", "image_embeddings"}
    assert not any(differing_parts(images, identity) for identity in found)
    assert not any(differing_parts(identity, images) for identity in found)


# The bound


def test_the_bound_is_met_from_both_sides() -> None:
    """By a hook that moves every embedding a little less, or a little more, than 1e-3 a number."""
    built, factor = builders.hf_vit(), 0.0
    clip = built.load()
    identity = clip.identity()
    shift = torch.randn(24, generator=torch.Generator().manual_seed(0))
    built.model.visual_projection.register_forward_hook(
        lambda module, args, output: output + factor * shift
    )

    def moved() -> float:
        return distance(identity["image_embeddings"], clip.identity()["image_embeddings"])

    factor = 1e-2
    scale = factor / moved() * 1e-3
    for share, expected in ((0, []), (0.95, []), (1.05, IMAGES)):
        factor = share * scale
        assert moved() == pytest.approx(share * 1e-3, abs=3e-5)
        assert differing_parts(identity, clip.identity()) == expected


@pytest.mark.parametrize("width", [24, 512])
def test_numbers_are_as_far_apart_as_half_the_embeddings(width: int) -> None:
    """On average, whatever their length."""
    generator = torch.Generator().manual_seed(0)
    one, other = F.normalize(torch.randn(2, 200, 1, width, generator=generator), dim=-1)
    expected = (one - other).norm(dim=-1).square().mean().sqrt() / 2
    assert distance(summary(one), summary(other)) == pytest.approx(float(expected), rel=0.1)


def test_numbers_agree_within_the_bound_and_digests_to_the_letter() -> None:
    assert part_agrees("0.1 0.2", "0.1009 0.1991")
    assert not part_agrees("0.1 0.2", "0.1011 0.1989")
    assert part_agrees("0.1 0.2", "0.1013 0.2")  # in the mean
    assert not part_agrees("0.1 0.2", "0.1")
    assert not part_agrees("0.1", "")
    assert part_agrees("nan", "nan")
    assert not part_agrees("nan", "0")
    assert not part_agrees("ab12", "ab13")
    assert part_agrees("ab12", "ab12")


def test_fixed_inputs_are_always_the_same() -> None:
    """Else identities in files would be those of other models."""
    images = list(fixed_images())
    assert [image.shape for image in images] == [(96, 96, 3), (240, 320, 3), (400, 288, 3)]
    assert [int(np.sum(image, dtype=int)) for image in images] == [3734784, 28754688, 43492352]
    [first, _, _] = fixed_images((2, 2))
    assert first.flatten()[:2].tolist() == pytest.approx([1.764052, 0.400157])
    assert summary([torch.eye(1, 8)]) == "0.88203 -0.05161 0.74704 1.13488"


def test_a_failure_half_way_leaves_the_model_as_it_was() -> None:
    model = builders.hf_vit().model.half().train()
    before = [(id(weight), weight.dtype, weight.data_ptr()) for weight in model.parameters()]
    model.visual_projection.register_forward_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        builders.hf_vit()._replace(model=model).load().identity()
    after = [(id(weight), weight.dtype, weight.data_ptr()) for weight in model.parameters()]
    assert after == before
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
