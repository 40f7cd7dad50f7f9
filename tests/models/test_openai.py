"""Models of OpenAI's own package, here a copy of its file in another repository."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torchvision import transforms

from captum_clip import ClipSimilarity, TextSimilarity, attr, explain, load_clip, targets
from captum_clip.errors import TargetError, UnsupportedModelError
from tests import explicit, oracles
from tests.attr import cases
from tests.builders import randomize
from tests.vendored.clip import model as published

VIT: dict[str, Any] = {"vision_layers": 3, "vision_width": 64, "vision_patch_size": 16}
RESNET: dict[str, Any] = {"vision_layers": (1, 1, 1, 1), "vision_width": 8}
LENGTH, WORDS = 12, 300


def model_of(kind: str, seed: int = 0) -> Any:
    vision = VIT if kind == "vit" else {**RESNET, "vision_patch_size": None}
    text = {"context_length": LENGTH, "vocab_size": WORDS, "transformer_width": 64}
    sizes = {"embed_dim": 32, "image_resolution": 64, "transformer_heads": 1}
    return randomize(published.CLIP(**vision, **text, **sizes, transformer_layers=2), seed)


def in_open_clip(own: nn.Module, kind: str) -> nn.Module:
    """The same weights in OpenCLIP."""
    import open_clip

    vision: dict[str, Any] = {"image_size": 64, "width": 64, "patch_size": 16, "layers": 3}
    if kind != "vit":
        vision = {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1]}
    text = {"context_length": LENGTH, "vocab_size": WORDS, "width": 64, "heads": 1, "layers": 2}
    vision_cfg: Any = {**vision, "head_width": 64}
    other: Any = open_clip.CLIP(32, vision_cfg, text, quick_gelu=True)
    other.load_state_dict(own.state_dict())
    return other.eval()


def tokenize(texts: list[str], context_length: int = LENGTH) -> Tensor:
    """As ``clip.tokenize``: the end token is the largest, and what is too long an error."""
    ids = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens = [298, *(1 + ord(letter) for letter in text), 299]
        if len(tokens) > context_length:
            raise RuntimeError(f"Input {text} is too long for context length {context_length}")
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


tokenize.__module__ = "tests.vendored.clip.clip"


def _convert_image_to_rgb(image: Any) -> Any:
    return image.convert("RGB")


PREPROCESS = transforms.Compose(
    [
        transforms.Resize(64, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(64),
        _convert_image_to_rgb,
        transforms.ToTensor(),
        transforms.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
    ]
)


def load(name: str, device: str = "cpu", jit: bool = False) -> tuple[Any, Any]:
    """What ``clip.load`` returns, of small random weights."""
    assert not jit
    return model_of("resnet" if name.startswith("RN") else "vit").to(device), PREPROCESS


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_maps_are_those_of_the_same_weights_in_open_clip(kind: str) -> None:
    """At true size so too, which ``python -m tests.models.true_sizes`` prints."""
    own = model_of(kind)
    clips = [load_clip(own), load_clip(in_open_clip(own, kind))]
    target = targets.embedding(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    ids = tokenize(["horse", "a dog"])
    rows: list[tuple[Any, dict[str, Any]]] = [(method, {}) for method in cases.OWN.values()]
    rows += [(attr.DirectContribution, {"depth": "token"})] * (kind == "vit")
    for method, options in rows:
        sides = {"text": (TextSimilarity, ids), clips[0].kind: (ClipSimilarity, images)}
        for similarity, inputs in (sides[side] for side in sides if side in method.towers):
            found, expected = (
                method(similarity(clip, target)).attribute_targets(
                    inputs, return_scores=True, **options
                )
                for clip in clips
            )
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(
                    one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max())
                )
    with torch.no_grad():
        torch.testing.assert_close(clips[0].image_features(images), own.encode_image(images))
        torch.testing.assert_close(clips[0].text_features(ids), own.encode_text(ids))


def test_the_packages_own_parts_serve() -> None:
    """Its tokenizer is a function, its preprocessing torchvision's."""
    clip = load_clip(model_of("vit"), processor=PREPROCESS, tokenizer=tokenize)
    photo = torch.randint(256, (90, 70, 3), dtype=torch.uint8)
    found = explain(photo, ["horse", "a dog"], model=clip)
    assert found.maps["positive"].shape == (1, 2, 4, 4)
    scale = 90 / 82  # resized to 82 x 64, of which rows 9 to 72 are shown
    assert found.crops[0].box == pytest.approx((0, 9 * scale, 70, 73 * scale))
    assert clip.count_tokens("a dog") == 7  # with start and end
    words = targets.word_tokens(clip, "a dog")
    assert words == (("a", range(1, 2)), ("dog", range(2, 6)))
    with pytest.raises(TargetError, match=r"Input .* too long for context length 12; sho"):
        targets.text(clip, "a text that is too long")


class SplitAttention(nn.Module):
    """An attention in the place of `nn.MultiheadAttention`, with LoRA added to its maps."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.num_heads, self.batch_first = whole.num_heads, False
        weights, biases = whole.in_proj_weight.chunk(3), whole.in_proj_bias.chunk(3)
        parts = [*zip(weights, biases, strict=True), (whole.out_proj.weight, whole.out_proj.bias)]
        for name, (weight, bias) in zip(("q_proj", "k_proj", "v_proj", "proj"), parts, strict=True):
            linear = nn.Linear(*weight.shape)
            linear.load_state_dict({"weight": weight, "bias": bias})
            setattr(self, name, linear)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        def heads(tokens: Tensor) -> Tensor:  # (s, B, D) -> (B, H, s, d)
            return tokens.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)

        maps: Any = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (heads(each(x)) for each, x in zip(maps, (query, key, value), strict=True))
        out = nn.functional.scaled_dot_product_attention(q, k, v, options.get("attn_mask"))
        mixed = out.permute(2, 0, 1, 3).flatten(-2).flatten(0, 1)
        return cast(Any, self.proj)(mixed).view_as(query), None


def split_attentions(clip: Any) -> Any:
    """Put such attentions into a model of OpenAI's package."""
    for block in (*clip.visual.transformer.resblocks, *clip.transformer.resblocks):
        block.attn = SplitAttention(block.attn)
    return clip.eval()


class Merged(nn.Linear):
    """A `LinearLoRA` of CLIP-LoRA after `eval()`, which is called with weights that have all."""

    def forward(self, input: Tensor, **options: Any) -> Tensor:
        return nn.Linear.forward(self, input, **options)


def test_attentions_with_split_maps_have_the_maps_of_the_whole_ones() -> None:
    """As those of CLIP-LoRA, on both sides and by every method."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    split = split_attentions(model_of("vit"))
    for block in (*split.visual.transformer.resblocks, *split.transformer.resblocks):
        for name in ("q_proj", "v_proj", "proj"):
            getattr(block.attn, name).__class__ = Merged
    clips = [load_clip(model_of("vit")), load_clip(split)]
    target = targets.embedding(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    sides = {
        "text": (TextSimilarity, tokenize(["horse", "a dog"])),
        "vit": (ClipSimilarity, images),
    }
    for method in cases.OWN.values():
        for similarity, inputs in (sides[side] for side in sides if side in method.towers):
            expected, found = (
                method(similarity(clip, target)).attribute_targets(inputs) for clip in clips
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_half_precision_as_the_package_loads_it() -> None:
    own = model_of("vit")
    published.convert_weights(own)
    clip = load_clip(own)
    target = targets.embedding(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    plain = ClipSimilarity(load_clip(model_of("vit")), target)
    rows: list[tuple[Any, dict[str, Any]]] = [(attr.DirectContribution, {"depth": "token"})]
    methods = (attr.DirectContribution, attr.LastGradAttention, attr.ConservativePropagation)
    for method, options in (*rows, *((method, {}) for method in methods)):
        found = method(ClipSimilarity(clip, target)).attribute_targets(images.half(), **options)
        expected = method(plain).attribute_targets(images, **options)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_copy_whose_code_differs_is_explained_as_it_computes_or_refused() -> None:
    """Its attention's output has twice the weight in the sum, which no method may overlook."""
    own = model_of("vit")

    class ResidualAttentionBlock(published.ResidualAttentionBlock):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 2 * self.attention(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    same = model_of("vit")
    for model, kind in ((own, ResidualAttentionBlock), (same, published.ResidualAttentionBlock)):
        model.visual.transformer.resblocks[1].__class__ = kind
    output: Any = same.visual.transformer.resblocks[1].attn.out_proj
    output.weight.data *= 2
    output.bias.data *= 2
    target = targets.embedding(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    refused = set()
    for method in (method for method in cases.OWN.values() if "vit" in method.towers):
        made = [method(ClipSimilarity(load_clip(model), target)) for model in (own, same)]
        try:
            found = made[0].attribute_targets(images)
        except UnsupportedModelError as error:
            assert "layer 1 of the vision tower does not return" in str(error)  # noqa: PT017
            refused.add(method.name)
            continue
        torch.testing.assert_close(found, made[1].attribute_targets(images), rtol=1e-4, atol=1e-6)
    assert refused == {"direct", "removal"}  # which is shared out by direct


def test_an_attention_of_a_class_of_its_own_is_explained() -> None:
    own = model_of("vit")
    maps = []
    for kind in (nn.MultiheadAttention, type("Own", (nn.MultiheadAttention,), {})):
        own.visual.transformer.resblocks[1].attn.__class__ = kind
        forward = ClipSimilarity(load_clip(own), targets.embedding(torch.eye(32)[:2]))
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        maps.append(attr.LastGradAttention(forward).attribute_targets(images))
    torch.testing.assert_close(*maps)


def test_an_attention_without_the_parts_is_refused() -> None:
    own = model_of("vit")
    own.visual.transformer.resblocks[1].attn = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"expected an attention .*, got Identity"):
        load_clip(own)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_what_torch_jit_made_is_refused() -> None:
    scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match=r"clip.load\(\.\.\., jit=False\)"):
        load_clip(scripted)


class PromptedBlock(published.ResidualAttentionBlock):
    """A block that takes and gives a list, and puts prompts in the place of the last tokens."""

    def forward(self, inputs: Any) -> Any:
        x, prompts = inputs
        if prompts is not None:
            own = prompts[:, None].expand(-1, x.shape[1], -1)
            x = torch.cat([x[: -len(prompts)], own])
        x = x + self.attention(self.ln_1(x))
        return [x + self.mlp(self.ln_2(x)), prompts]


class VisionTransformer_MaPLe(published.VisionTransformer):
    """A tower that takes its prompts as arguments, and has them after the patches."""

    VPT_shallow = True

    def forward(  # type: ignore[override]
        self, x: Tensor, prompts: Tensor, deeper: Tensor
    ) -> Tensor:
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        first = self.class_embedding + torch.zeros(len(x), 1, x.shape[-1])
        x = torch.cat([first, x], 1) + self.positional_embedding
        x = torch.cat([x, prompts.expand(len(x), -1, -1)], 1)
        x = self.transformer.resblocks([self.ln_pre(x).permute(1, 0, 2), deeper])[0]
        return self.ln_post(x[0]) @ self.proj


def test_prompts_after_the_patches_take_part_and_have_no_cells() -> None:
    model = model_of("vit")
    visual = model.visual
    visual.__class__ = VisionTransformer_MaPLe
    for block in visual.transformer.resblocks:
        block.__class__ = PromptedBlock
    generator = torch.Generator().manual_seed(5)
    prompts, deeper = torch.randn(2, 2, 64, generator=generator)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    rows = nn.functional.normalize(torch.randn(3, 32, generator=generator), dim=-1)

    def forward(pixels: Tensor) -> Tensor:
        return nn.functional.normalize(visual(pixels, prompts, deeper), dim=-1) @ rows.T

    seen = explicit.see(
        lambda pixels: visual(pixels, prompts, deeper),
        images,
        heads=[1, 1, 1],
        grid=(1, 18),  # the prompts too
        row="cls",
        prefix=1,
    )
    scores = oracles.cosines(seen.embedding, rows)
    for method in ("LastGradAttention", "AllGradAttention", "AttentionRollout", "AttentionGradCam"):
        kind: Any = getattr(attr, method)
        expected = oracles.maps(method, seen, scores)[..., :16].reshape(2, 3, 4, 4)
        found = kind(forward, visual).attribute_targets(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    for kind in (attr.DirectContribution, attr.ConservativePropagation):
        maps, rest = kind(forward, visual).attribute_targets(images, return_rest=True)
        torch.testing.assert_close(maps.sum((-2, -1)) + rest, forward(images).detach())
