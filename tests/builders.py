"""Small random CLIP models of both libraries, with what makes images and tokens for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache, partial, wraps
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

IMAGE_SIZE = 32
PATCH_SIZE = 8


class Small(NamedTuple):
    """A model in eval mode with a processor and a tokenizer that fit it."""

    model: Any
    processor: Any
    tokenizer: Any

    def load(self, **options: Any) -> Any:
        """The adapter of the model with its parts."""
        from captum_clip.models.families import adapter_of

        parts = {"processor": self.processor, "tokenizer": self.tokenizer}
        return adapter_of(self.model, **{"name": type(self.model).__name__, **parts, **options})

    def images(self, batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
        """Random preprocessed images of the model's native size."""
        visual = getattr(self.model, "visual", None)
        config = None if visual is not None else self.model.config
        parts = (getattr(config, f"{part}_config", None) for part in ("vision", "image"))
        size = getattr(visual or next(filter(None, parts)), "image_size", IMAGE_SIZE)  # NaFlex
        height, width = size if isinstance(size, tuple) else (size, size)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 3, height, width, generator=generator).to(dtype)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and running statistic a value that a mistake would show in."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    norms = (nn.LayerNorm, nn.BatchNorm2d)
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if value.ndim == 0:  # the temperature
                continue
            if value.ndim >= 2:
                fan = value[0].numel() if value.ndim == 4 or "weight" in name else value.shape[0]
                value.copy_(1.5 * normal(value) * max(fan, 8) ** -0.5)
            elif name == "gamma" or (isinstance(module, norms) and name == "weight"):
                value.copy_(1 + 0.2 * normal(value))
            else:
                value.copy_(0.3 * normal(value))
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.2 * normal(module.running_mean))
            module.running_var.copy_(1 + 0.5 * normal(module.running_var).abs())
    return model.eval().requires_grad_(True)


def once(build: Callable[..., Small]) -> Callable[..., Small]:
    """Build a model once for the same arguments; a copy, which is the caller's, costs a tenth."""
    kept: dict[str, Small] = {}

    @wraps(build)
    def copied(*args: Any, **options: Any) -> Small:
        key = f"{args} {sorted(options.items())}"
        if key not in kept:
            kept[key] = build(*args, **options)
        model, processor, tokenizer = kept[key]
        return Small(copy.deepcopy(model), copy.deepcopy(processor), tokenizer)

    return copied


@lru_cache
def byte_tokenizer(context_length: int = 77) -> Any:
    """A transformers tokenizer that makes a token of each byte; pad 0, start 257, end 258."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = {"<pad>": 0, "<start>": 257, "<end>": 258}
    vocabulary = {**specials, **{byte: i for i, byte in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 257), ("<end>", 258)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context_length,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


def hf_processor(size: int = IMAGE_SIZE) -> Any:
    """An image processor of transformers for a small size."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )


@once
def hf_vit(seed: int = 0, **vision: Any) -> Small:
    """A transformers CLIP: 3 layers, 4 heads, width 32, 4 x 4 patches."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "vocab_size": 259,
            "max_position_embeddings": 77,
            "projection_dim": 24,
            "pad_token_id": 0,
            "bos_token_id": 257,
            "eos_token_id": 258,
        },
        vision_config={
            **shared,
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": 24,
            **vision,
        },
        projection_dim=24,
    )
    with torch.random.fork_rng():
        model = CLIPModel(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


@once
def siglip(seed: int = 1, **vision: Any) -> Small:
    """A SigLIP of transformers: 3 layers, 4 heads, width 24, 4 x 4 patches and a pooling head."""
    from transformers import SiglipConfig, SiglipModel

    shared = {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 4}
    text = {"num_hidden_layers": 2, "vocab_size": 259, "max_position_embeddings": 77}
    special = {"pad_token_id": 0, "bos_token_id": 257, "eos_token_id": 258}
    config = SiglipConfig(
        text_config={**shared, **text, **special, "projection_size": 24},
        vision_config={
            **shared,
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            **vision,
        },
    )
    with torch.random.fork_rng():
        model = SiglipModel(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


@once
def naflex(seed: int = 0) -> Small:
    """A SigLIP 2 NaFlex: 3 layers, 4 heads, width 24, at most 16 patches of 8 x 8."""
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    shared = {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 4}
    text = {"num_hidden_layers": 2, "vocab_size": 259, "max_position_embeddings": 77}
    special = {"pad_token_id": 0, "bos_token_id": 257, "eos_token_id": 258}
    config = Siglip2Config(
        text_config={**shared, **text, **special, "projection_size": 24},
        vision_config={
            **shared,
            "num_hidden_layers": 3,
            "patch_size": PATCH_SIZE,
            "num_patches": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        },
    )
    with torch.random.fork_rng():
        model = Siglip2Model(config)
    processor = Siglip2ImageProcessor(patch_size=PATCH_SIZE, max_num_patches=16)
    return Small(randomize(model, seed), processor, byte_tokenizer())


@once
def hf_layout(prefix: str, seed: int = 0, text: Mapping[str, Any] = MappingProxyType({})) -> Small:
    """A class of transformers with CLIP's vision tower, of the sizes of `hf_vit`."""
    import transformers

    shared = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "vocab_size": 259,
            "max_position_embeddings": 77,
            "projection_dim": 24,
            "pad_token_id": 0,
            "bos_token_id": 257,
            "eos_token_id": 258,
            **text,
        },
        vision_config={
            **shared,
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": 24,
            "hidden_act": "quick_gelu",
        },
        projection_dim=24,
    )
    with torch.random.fork_rng():
        model = getattr(transformers, f"{prefix}Model")(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}
_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 259,
    "max_position_embeddings": 77,
}

# 78 positions, of which the one before the first token's is that of padding
_ALTCLIP = {"project_dim": 32, "max_position_embeddings": 78}


@once
def blip(seed: int = 0) -> Small:
    """BLIP's retrieval head: CLS of a ViT of 3 layers, and of a BERT of 2."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    vision = {**_VISION, "hidden_act": "gelu"}
    text = {**_BERT, "encoder_hidden_size": 32, "bos_token_id": 257, "eos_token_id": 258}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=24)
    with torch.random.fork_rng():
        model = BlipForImageTextRetrieval(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


@once
def aimv2(seed: int = 0, **vision: Any) -> Small:
    """AIMv2: a ViT of 3 layers, read by a learned query, and a causal text tower."""
    from transformers import Aimv2Config, Aimv2Model

    text = {**_BERT, "eos_token_id": 258}
    config = Aimv2Config(
        text_config=text, vision_config={**_VISION, "use_head": True, **vision}, projection_dim=24
    )
    with torch.random.fork_rng():
        model = Aimv2Model(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


@once
def flava(seed: int = 0) -> Small:
    """FLAVA: first tokens of two ViTs of 3 and 2 layers."""
    from transformers import FlavaConfig, FlavaModel

    from docs.examples import flava_family  # noqa: F401  registers it

    config = FlavaConfig(
        image_config=_VISION,
        text_config=_BERT,
        multimodal_config={**_BERT, "num_hidden_layers": 1},
        image_codebook_config={},
        hidden_size=32,
        projection_dim=24,
        init_codebook=False,
    )
    with torch.random.fork_rng():
        model = FlavaModel(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


@once
def tipsv2(seed: int = 0) -> Small:
    """TIPSv2: CLS, a register, LayerScale and no projection; texts read as their mean."""
    from transformers import Tipsv2Config, Tipsv2Model

    vision = {**_VISION, "hidden_size": 24, "layerscale_value": 0.5}
    vision.pop("intermediate_size")
    config = Tipsv2Config(text_config={**_BERT, "hidden_size": 24}, vision_config=vision)
    with torch.random.fork_rng():
        model = Tipsv2Model(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


@once
def dual_encoder(seed: int = 0, kind: str = "Bert") -> Small:
    """A CLIP vision tower and a BERT."""
    import transformers
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    text = getattr(transformers, f"{kind}Config")(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=259,
        max_position_embeddings=77,
    )
    vision = hf_vit().model.config.vision_config
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    with torch.random.fork_rng():
        model = VisionTextDualEncoderModel(config)
    return Small(randomize(model, seed), hf_processor(), byte_tokenizer())


TEXT_CONFIG: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 32,
    "heads": 4,
    "layers": 2,
}
VIT_CONFIG: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "width": 32,
    "head_width": 8,
    "layers": 3,
    "mlp_ratio": 1.5,
}
RESNET_CONFIG: dict[str, Any] = {"image_size": 96, "layers": [1, 1, 1, 1], "width": 8}


@lru_cache
def open_clip_tokenizer() -> Any:
    """The tokenizer of OpenAI's CLIP."""
    from open_clip import get_tokenizer

    return get_tokenizer("ViT-B-32")


@once
def _open_clip(seed: int, vision: dict[str, Any], custom_text: bool = False) -> Small:
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.transform import PreprocessCfg, image_transform_v2

    kind = CustomTextCLIP if custom_text else CLIP
    with torch.random.fork_rng():
        model = kind(embed_dim=24, vision_cfg=dict(vision), text_cfg=dict(TEXT_CONFIG))
    processor = image_transform_v2(PreprocessCfg(size=vision["image_size"]), is_train=False)
    return Small(randomize(model, seed), processor, open_clip_tokenizer())


def open_clip_vit(seed: int = 0, **vision: Any) -> Small:
    """An OpenCLIP ViT with `torch.nn.MultiheadAttention` that pools its CLS token."""
    return _open_clip(seed, {**VIT_CONFIG, **vision})


def open_clip_vit_mean(seed: int = 0, **vision: Any) -> Small:
    """An OpenCLIP ViT that pools the mean of its patches."""
    return _open_clip(seed, {**VIT_CONFIG, "pool_type": "avg", **vision})


def open_clip_custom_vit(seed: int = 0, **vision: Any) -> Small:
    """An OpenCLIP ViT with its own `Attention`, a norm after it, and LayerScale."""
    blocks = {"scale_attn": True, "scale_fc": True, "ls_init_value": 0.5, "no_ln_pre": True}
    return _open_clip(seed, {**VIT_CONFIG, **blocks, **vision}, custom_text=True)


@once
def coca(seed: int = 0, *, correct_cls_mask: bool = False, **vision: Any) -> Small:
    """A CoCa, whose pool has five queries of another width than its keys."""
    from open_clip.coca_model import CoCa
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pool = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4}
    text = {**TEXT_CONFIG, "context_length": 76, "embed_cls": True, "output_tokens": True}
    decoder = {"width": 32, "heads": 4, "layers": 1, "context_length": 76, "vocab_size": 300}
    with torch.random.fork_rng():
        model = CoCa(24, decoder, text, {**VIT_CONFIG, **pool, "output_tokens": True, **vision})
    model.text.correct_cls_mask = correct_cls_mask
    processor = image_transform_v2(PreprocessCfg(size=IMAGE_SIZE), is_train=False)
    return Small(randomize(model, seed), processor, open_clip_tokenizer())


@once
def open_clip_bert(kind: str = "bert", pooler: str = "cls_last_hidden_state_pooler") -> Small:
    """An OpenCLIP model with a text model of transformers and a projection of two layers."""
    from open_clip import CustomTextCLIP
    from open_clip.hf_model import HFTextEncoder
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind,
        **sizes,
        num_hidden_layers=2,
        vocab_size=300,
        max_position_embeddings=80,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        model = CustomTextCLIP(24, VIT_CONFIG, {**TEXT_CONFIG, "vocab_size": 300})
        model.text = HFTextEncoder("", 24, config, pooler_type=pooler, proj_type="mlp")
    return Small(randomize(model, 0), None, hf_ids)


def hf_ids(texts: list[str]) -> torch.Tensor:
    """Token ids of bytes with 1 as padding, as a text model of transformers in OpenCLIP takes."""
    ids = torch.ones(len(texts), 24, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text) + 2] = torch.tensor([257, *(ord(c) for c in text), 258])
    return ids


def open_clip_norms(seed: int = 0) -> Small:
    """An OpenCLIP ViT with its own `Attention`, qk-norm and an inner norm."""
    return open_clip_custom_vit(seed, qk_norm=True, scale_attn_inner=True)


def open_clip_resnet(seed: int = 0, **vision: Any) -> Small:
    """An OpenCLIP ModifiedResNet: 256 channels, 4 heads, 3 x 3 positions."""
    return _open_clip(seed, {**RESNET_CONFIG, **vision})


def timm_small(seed: int, model: Any, size: int) -> Small:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    processor = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    return Small(randomize(model, seed), processor, open_clip_tokenizer())


@once
def timm_convnext(seed: int = 0, *, whole: bool = False, **vision: Any) -> Small:
    """An OpenCLIP model with a ConvNeXt of timm: 64 channels, 3 x 3 positions, an MLP on top.

    With one block a stage, where it is not `whole`, as only the library makes it by name.
    """
    from open_clip import CLIP

    config = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp", **vision}
    with torch.random.fork_rng():
        model = CLIP(24, {"image_size": 96, **config}, dict(TEXT_CONFIG))
    for stage in () if whole else getattr(model.visual.trunk, "stages", ()):
        stage.blocks = stage.blocks[:1]
    return timm_small(seed, model, 96)


@once
def timm_fastvit(seed: int = 0) -> Small:
    """An OpenCLIP model with a FastViT of timm, as MobileCLIP's: 128 channels, 3 x 3 positions."""
    from timm.models.fastvit import FastVit

    built = timm_convnext(timm_pool="avg", timm_proj=None)
    mixers = ("repmixer", "repmixer", "repmixer", "attention")
    with torch.random.fork_rng():
        trunk = FastVit(
            layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64), token_mixers=mixers, num_classes=24
        )
    built.model.visual.trunk = trunk
    return timm_small(seed, built.model, 96)


@once
def align(seed: int = 0, text_layers: int = 1) -> Small:
    """ALIGN of transformers: three blocks, 24 channels, 5 x 5 positions, a BERT of one layer."""
    from transformers import AlignConfig, AlignModel, EfficientNetImageProcessor

    from docs.examples import align_family  # noqa: F401  registers it

    text = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision = {
        "image_size": 37,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 5],
        "strides": [2, 2],
        "expand_ratios": [1, 2],
        "num_block_repeats": [1, 2],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 24,
    }
    config = AlignConfig(
        text_config={
            **text,
            "num_hidden_layers": text_layers,
            "vocab_size": 259,
            "max_position_embeddings": 77,
        },
        vision_config=vision,
        projection_dim=24,
    )
    with torch.random.fork_rng():
        model = AlignModel(config)
    size = {"height": 37, "width": 37}
    processor = EfficientNetImageProcessor(size=size, include_top=False)
    return Small(randomize(model, seed), processor, byte_tokenizer())


LAYOUTS = {
    "metaclip2": "MetaClip2",
    "altclip": "AltCLIP",
    "chinese_clip": "ChineseCLIP",
    "clipseg": "CLIPSeg",
    "owlvit": "OwlViT",
    "owlv2": "Owlv2",
}
BUILDERS: dict[str, Callable[..., Small]] = {
    "hf_vit": hf_vit,
    "siglip": siglip,
    "open_clip_vit": open_clip_vit,
    "open_clip_vit_mean": open_clip_vit_mean,
    "open_clip_custom_vit": open_clip_custom_vit,
    "open_clip_resnet": open_clip_resnet,
    "timm_convnext": timm_convnext,
    "timm_fastvit": timm_fastvit,
    "align": align,
    **{name: partial(hf_layout, prefix) for name, prefix in LAYOUTS.items()},
    "altclip": partial(hf_layout, "AltCLIP", text=_ALTCLIP),
    "dual_encoder": dual_encoder,
    "blip": blip,
    "aimv2": aimv2,
    "flava": flava,
    "tipsv2": tipsv2,
}
