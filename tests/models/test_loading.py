"""Names lead to models, from folders and from a hub cache, without a network."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import captum_clip.demo
from captum_clip import explain
from captum_clip.errors import InputError, TargetError
from captum_clip.models import load_clip, loading
from tests import builders
from tests.models import test_openai as openai
from tests.models.checkpoints import assert_same, save_open_clip, save_transformers

TRANSFORMERS = [
    "hf_vit",
    "siglip",
    *builders.LAYOUTS,
    "dual_encoder",
    "align",
    "blip",
    "aimv2",
    "flava",
    "tipsv2",
]
OPEN_CLIP = {
    "open_clip_vit": builders.VIT_CONFIG,
    "timm_convnext": {
        "timm_model_name": "test_convnext",
        "timm_pool": "",
        "timm_proj": "mlp",
        "image_size": 96,
    },
}


def test_a_transformers_folder_loads(tmp_path, capfd, offline):
    built = builders.hf_vit()
    save_transformers(built, tmp_path)
    capfd.readouterr()
    clip = load_clip(str(tmp_path))
    assert_same(clip, built)
    assert clip.name == str(tmp_path)
    assert_same(load_clip(tmp_path), built)
    assert capfd.readouterr() == ("", "")


def test_a_name_of_the_report_loads_from_the_hubs_cache(cache, capfd):
    built = builders.hf_vit()
    save_transformers(built, cache("openai/clip-vit-base-patch32"))
    capfd.readouterr()
    clip = load_clip("ViT-B/32")
    assert clip.name == "ViT-B/32"
    assert_same(clip, built)
    assert_same(load_clip("openai/clip-vit-base-patch32"), built)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_family_of_transformers_loads_from_the_hubs_cache(cache, capfd, family):
    built = builders.BUILDERS[family]()
    save_transformers(built, cache("someone/small"))
    capfd.readouterr()
    clip = load_clip("someone/small")
    assert_same(clip, built)
    assert type(clip) is type(built.load())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("family", "whole", "inner"),
    [
        ("clipseg", "CLIPSegForImageSegmentation", "clip"),
        ("owlvit", "OwlViTForObjectDetection", "owlvit"),
        ("owlv2", "Owlv2ForObjectDetection", "owlv2"),
    ],
)
def test_a_checkpoint_that_holds_the_model_inside_another_loads(
    tmp_path, offline, family, whole, inner
):
    built = builders.BUILDERS[family]()
    config = built.model.config
    config.extract_layers = [0, 1, 2]  # CLIPSeg's decoder reads these
    model = getattr(transformers, whole)(config)
    setattr(model, inner, built.model)
    save_transformers(built._replace(model=model), tmp_path)
    assert_same(load_clip(tmp_path), built)


@pytest.mark.parametrize(("family", "vision"), OPEN_CLIP.items())
def test_every_family_of_open_clip_loads_from_the_hubs_cache(cache, capfd, family, vision):
    whole = {"whole": True} if family == "timm_convnext" else {}
    built = builders.BUILDERS[family](**whole)
    save_open_clip(built, cache("someone/small"), vision)
    capfd.readouterr()
    assert_same(load_clip("hf-hub:someone/small"), built)
    assert capfd.readouterr() == ("", "")


TIMM: dict[str, tuple[dict[str, Any], int]] = {
    "attention": ({"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}, 96),
    "cls": ({"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}, 24),
}


@pytest.mark.parametrize(("config", "length"), TIMM.values(), ids=TIMM)
def test_a_vision_transformer_of_timm_loads_from_the_hubs_cache(cache, capfd, config, length):
    vision = {**config, "image_size": 160}
    with torch.random.fork_rng():
        model = open_clip.CLIP(length, vision, dict(builders.TEXT_CONFIG))
    built = builders.timm_small(0, model, 160)
    save_open_clip(built, cache("someone/small"), vision, embed_dim=length)
    capfd.readouterr()
    clip = load_clip("hf-hub:someone/small")
    assert_same(clip, built)
    assert clip.kind == "vit"
    assert clip.embedding_dim == length
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_open_clip_name_on_the_hub_loads_from_its_cache(cache, capfd, weights):
    built = builders.open_clip_vit()
    save_open_clip(built, cache("someone/small"), builders.VIT_CONFIG, weights)
    capfd.readouterr()
    clip = load_clip("hf-hub:someone/small")
    assert_same(clip, built)
    assert clip.color((0.5, 1, 0)).flatten().tolist() == [0, 2, -2]
    assert capfd.readouterr() == ("", "")


def test_an_open_clip_folder_loads(tmp_path, capfd, offline):
    built = builders.open_clip_resnet()
    save_open_clip(built, tmp_path, builders.RESNET_CONFIG)
    capfd.readouterr()
    assert_same(load_clip(tmp_path), built)
    assert capfd.readouterr() == ("", "")


def test_a_model_loaded_under_inference_mode_can_be_explained(tmp_path, offline):
    save_open_clip(builders.open_clip_resnet(), tmp_path, builders.RESNET_CONFIG)
    with torch.inference_mode():
        clip = load_clip(tmp_path)
    assert not any(parameter.is_inference() for parameter in clip.model.parameters())


def test_half_precision_files_load_as_float32(tmp_path, offline):
    built = builders.hf_vit()
    built.model.half()
    save_transformers(built, tmp_path / "vit")
    built.model.float()
    assert load_clip(tmp_path / "vit").dtype == torch.float32
    assert_same(load_clip(tmp_path / "vit"), built)
    half = load_clip(tmp_path / "vit", dtype=torch.float16)
    assert {p.dtype for p in half.model.parameters()} == {torch.float16}
    resnet = builders.open_clip_resnet()
    resnet.model.half()
    save_open_clip(resnet, tmp_path / "resnet", builders.RESNET_CONFIG)
    resnet.model.float()
    assert_same(load_clip(tmp_path / "resnet"), resnet)


def test_device_none_is_cuda_where_there_is_one(tmp_path, monkeypatch, offline):
    save_transformers(builders.hf_vit(), tmp_path)
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def to(self, *, device, dtype):
        moved.append((device, dtype))
        return self

    monkeypatch.setattr(torch.nn.Module, "to", partialmethod(to))  # a plain function is noticed
    load_clip(tmp_path)
    load_clip(tmp_path, device="cpu", dtype=torch.float64)
    assert moved == [
        (torch.device("cuda"), torch.float32),
        (torch.device("cpu"), torch.float64),
    ]


def test_devices_and_types_that_cannot_be_had_are_named(tmp_path, monkeypatch):
    save_transformers(builders.hf_vit(), tmp_path, parts=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="cannot compute on `device='cuda'`"):
        load_clip(tmp_path, device="cuda")
    with pytest.raises(InputError, match="cannot compute on `device='gpu'`"):
        load_clip(tmp_path, device="gpu")
    with pytest.raises(InputError, match=r"floating-point dtype, got torch\.int8"):
        load_clip(tmp_path, dtype=torch.int8)


def test_a_missing_processor_file_matters_only_when_it_is_needed(tmp_path, offline):
    built = builders.hf_vit()
    save_transformers(built, tmp_path, parts=False)
    clip = load_clip(tmp_path)
    assert clip.encode_image(clip.preprocess(built.images())).shape == (2, 24)
    assert clip.identity() == built.load(processor=None, tokenizer=None).identity()
    with pytest.raises(InputError, match=r"no processor \(its processor could not be loaded: .*"):
        clip.preprocess(Image.new("RGB", (40, 40)))
    with pytest.raises(InputError, match=r"no tokenizer \(its tokenizer could not be loaded: .*"):
        clip.tokenize("a horse")


@pytest.mark.parametrize("content", [b"no weights", None])
def test_broken_weights_are_named(tmp_path, content):
    save_transformers(builders.hf_vit(), tmp_path, parts=False)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(InputError, match=rf"`model='{tmp_path}'`: .* cannot be loaded: "):
        load_clip(tmp_path)


@pytest.mark.parametrize("shape", [None, (3, 5)])
def test_weights_that_are_missing_or_of_another_shape_are_named(tmp_path, shape):
    """In OpenCLIP's folder in torch's own words, which name them below their first line."""
    built = builders.hf_vit()
    save_transformers(built, tmp_path / "hf")
    save_open_clip(builders.open_clip_vit(), tmp_path / "open_clip", builders.VIT_CONFIG)
    for file, name, message in (
        ("hf/model", "visual_projection.weight", "lacks, or has in another shape: 1"),
        ("open_clip/open_clip_model", "visual.proj", r"state_dict for CLIP: (size mis|Missing)"),
    ):
        path = tmp_path / f"{file}.safetensors"
        state = load_file(path)
        state |= {} if shape is None else {name: torch.zeros(shape)}
        state = {key: value for key, value in state.items() if shape or key != name}
        save_file(state, path, {"format": "pt"})
        with pytest.raises(InputError, match=rf"{message}.*{name}"):
            load_clip(path.parent)


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """The embedded models' names, with small random models behind them."""
    from captum_clip.demo.catalog import CONTEXT_LENGTH, VOCAB_SIZE

    folders = {name: tmp_path / name for name in captum_clip.demo.MODELS}
    save_transformers(builders.hf_vit(), folders["demo/vit"])
    text = {**builders.TEXT_CONFIG, "context_length": CONTEXT_LENGTH, "vocab_size": VOCAB_SIZE}
    with torch.random.fork_rng():
        model = open_clip.CLIP(24, builders.RESNET_CONFIG, text)
    built = builders.Small(builders.randomize(model, 0), None, None)
    folders["demo/resnet"].mkdir(parents=True)
    save_open_clip(built, folders["demo/resnet"], builders.RESNET_CONFIG, text_cfg=text)
    for name, folder in folders.items():
        monkeypatch.setitem(captum_clip.demo.MODELS, name, folder)
    return folders


@pytest.mark.parametrize(("name", "kind"), [("demo/vit", "vit"), ("demo/resnet", "resnet")])
def test_embedded_names_load_with_the_embedded_tokenizer(embedded, monkeypatch, name, kind):
    monkeypatch.setattr(loading, "_hub_answers", lambda: pytest.fail("asked the hub"))
    monkeypatch.setattr(loading, "check_files", lambda *_: pytest.fail("checked its own files"))
    clip = load_clip(name)
    assert clip.name == name
    assert clip.kind == kind
    assert type(clip.tokenizer).__name__ == "DemoTokenizer"
    assert clip.encode_text(["a horse", "a dog"]).shape == (2, 24)
    with pytest.raises(TargetError, match="do not know 'xylophone'"):
        clip.encode_text("a xylophone")
    if kind == "resnet":
        with pytest.raises(TargetError, match=r"has 17 tokens .* takes 16"):
            clip.encode_text("a " * 15)


def test_a_siglip_of_open_clip_loads_with_its_own_tokenizer_and_processor(cache, capfd):
    """Texts padded to the context, the last token read; images squashed, not cropped."""
    text = {
        **builders.TEXT_CONFIG,
        "context_length": 64,
        "vocab_size": 259,
        "hf_tokenizer_name": "someone/small",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    }
    vision = {**TIMM["attention"][0], "image_size": 160}
    with torch.random.fork_rng():
        model = open_clip.CustomTextCLIP(96, dict(vision), dict(text))
    snapshot = cache("someone/small")
    builders.byte_tokenizer(64).save_pretrained(snapshot)
    missing = snapshot.parents[1] / ".no_exist" / snapshot.name / "config.json"
    missing.parent.mkdir(parents=True)
    missing.touch()  # as the hub's client notes what a repository does not have
    built = builders.Small(builders.randomize(model, 0), None, None)
    options = {"embed_dim": 96, "text_cfg": text, "custom_text": True}
    save_open_clip(built, snapshot, vision, preprocess={"resize_mode": "squash"}, **options)
    capfd.readouterr()
    clip = load_clip("hf-hub:someone/small")
    assert clip.context_length == 64
    assert clip.tokenize("A horse!").shape == (1, 64)
    assert torch.equal(clip.tokenize("A horse!"), clip.tokenize("a horse"))  # canonicalized
    with torch.no_grad():
        features = built.model.encode_text(clip.tokenize("a horse"))
    torch.testing.assert_close(clip.encode_text("a horse").detach(), F.normalize(features, dim=-1))
    wide = Image.new("RGB", (90, 40), "red")
    wide.paste("blue", (0, 0, 10, 40))  # a center crop would cut it off
    assert clip.denormalize(clip.preprocess(wide))[0, 2, 80, 2] > 0.9
    with pytest.raises(TargetError, match=r"has 66 tokens .* takes 64"):
        clip.encode_text("a" * 64)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", [42, "openai/clip"])
@pytest.mark.parametrize("option", ["processor", "tokenizer"])
def test_what_is_no_processor_or_tokenizer_is_refused_at_once(option, part):
    for model in (builders.hf_vit().model, "no/such-model"):
        with pytest.raises(InputError, match=rf"expected an? .* as {option}, got "):
            load_clip(model, **{option: part})


def test_a_pipeline_is_its_model_with_processor_and_tokenizer():
    built = builders.hf_vit()
    parts = {"image_processor": built.processor, "tokenizer": built.tokenizer}
    made = transformers.pipeline("zero-shot-image-classification", model=built.model, **parts)
    clip, other = load_clip(made), Mock()
    assert (clip.model, clip.processor) == (made.model, made.image_processor)
    assert clip.tokenizer is made.tokenizer
    assert load_clip(made, processor=other).processor is other
    photo = Image.new("RGB", (40, 40), "red")
    found = explain(photo, "horse", model=made)
    torch.testing.assert_close(found.scores, explain(photo, "horse", model=built.load()).scores)
    with pytest.raises(InputError, match="device was given with a model object"):
        load_clip(made, device="cpu")


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_a_model_is_made_for_larger_images(tmp_path, library, offline):
    """Its maps have more cells, and its processor makes such images; positions are resampled."""
    if library == "transformers":
        built = builders.hf_vit()
        save_transformers(built, tmp_path)
    else:
        built = builders.open_clip_vit()
        save_open_clip(built, tmp_path, builders.VIT_CONFIG)
    parts: dict[str, Any] = {"tokenizer": built.tokenizer}
    plain, large = load_clip(tmp_path, **parts), load_clip(tmp_path, image_size=48, **parts)
    photo = Image.new("RGB", (70, 60), "red")
    assert large.preprocess(photo).shape[-2:] == (48, 48)
    found = explain(photo, "a", model=tmp_path, image_size=48, **parts)
    cells = found.maps["positive"].shape[-2:]
    assert cells == large.grid(48, 48) > plain.grid(*plain.preprocess(photo).shape[-2:])
    with pytest.raises(InputError, match=r"`image_size=50`: .* multiple of 8, .* such as 48 or 56"):
        load_clip(tmp_path, image_size=50)
    with pytest.raises(InputError, match="expected `image_size` up to 4096, got 8000000"):
        load_clip(tmp_path, image_size=8_000_000)
    makes = r"by name, with `image_size=48`"
    if library == "transformers":
        makes = rf"pass a processor that makes such images, or take one {makes}"
    for given in (plain, plain.model):
        with pytest.raises(InputError, match=rf"`image_size=48` was given with an? .*; .*{makes}"):
            load_clip(given, image_size=48)


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("library", ["transformers", "open_clip", "timm"])
def test_a_larger_images_map_lies_where_the_photo_is_marked(tmp_path, library, side, offline):
    """Pixels of one cell change, in the middle of a wide photo that is seen, and one of the map."""
    if library == "transformers":
        built = builders.hf_vit()
        save_transformers(built, tmp_path)
    elif library == "open_clip":
        built = builders.open_clip_vit()
        save_open_clip(built, tmp_path, builders.VIT_CONFIG)
    else:
        config, length = TIMM["cls"]
        vision = {**config, "image_size": 160}
        with torch.random.fork_rng():
            model = open_clip.CLIP(length, vision, dict(builders.TEXT_CONFIG))
        built = builders.timm_small(0, model, 160)
        save_open_clip(built, tmp_path, vision, embed_dim=length)
    clip = load_clip(tmp_path, image_size=side, tokenizer=built.tokenizer)
    rows, columns = clip.grid(side, side)
    assert rows == columns == side // clip.tower.patch[0]
    cell, row, column = side // rows, 1, columns - 2
    left, top = side // 4 + column * cell, row * cell
    plain = Image.new("RGB", (side * 3 // 2, side), "gray")
    marked = plain.copy()
    marked.paste("red", (left, top, left + cell, top + cell))
    tower: Any = clip.tower
    for layer in tower.layers[:-1]:  # no patch reads another
        for parameter in layer.output_map().parameters():
            parameter.detach().zero_()
    found = explain([plain, marked], "a", model=clip, method="patches", sign="both")
    signed = found.maps["positive"] - found.maps["negative"]
    change = (signed[1:] - signed[:1]).abs()
    assert (change > 1e-6).nonzero().tolist() == [[0, 0, row, column]]
    found = replace(found[1], maps={"positive": change})
    [region] = found.regions(0.5)
    assert region.mask.shape == (side, side * 3 // 2)
    assert region.peak is not None
    x, y = region.peak
    assert left <= x < left + cell
    assert top <= y < top + cell
    at = int(found.heatmap("nearest", original=True)["positive"].argmax())
    y, x = divmod(at, side * 3 // 2)
    assert left <= x < left + cell
    assert top <= y < top + cell


@pytest.mark.parametrize("side", [64, 96, 160])
def test_positions_of_a_resnets_pool_are_resampled(tmp_path, side, offline):
    """As OpenCLIP does those of a ViT; the mean token's, and all at the native size, stay."""
    built = builders.open_clip_resnet()
    save_open_clip(built, tmp_path, builders.RESNET_CONFIG)
    clip = load_clip(tmp_path, image_size=side, tokenizer=built.tokenizer)
    cells, key = side // 32, "visual.attnpool.positional_embedding"
    found, expected = clip.model.state_dict(), built.model.state_dict()
    if cells != 3:
        own = expected[key]
        square = own[1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
        square = F.interpolate(
            square, size=(cells, cells), mode="bicubic", align_corners=False, antialias=True
        )
        square = square.permute(0, 2, 3, 1).reshape(cells**2, -1)
        expected[key] = torch.cat([own[:1], square])
        states = {"visual.positional_embedding": own}
        shape = SimpleNamespace(visual=SimpleNamespace(grid_size=(cells, cells)))
        open_clip.model.resize_pos_embed(states, shape)
        torch.testing.assert_close(found[key], states["visual.positional_embedding"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if cells != 3 else 0)
    assert clip.model.visual.attnpool.positional_embedding.requires_grad
    photo = Image.new("RGB", (200, 180), "red")
    assert clip.preprocess(photo).shape[-2:] == (side, side)
    assert clip.model.visual.preprocess_cfg["size"] == side
    explained = explain(photo, "a", model=tmp_path, tokenizer=built.tokenizer, image_size=side)
    assert explained.maps["positive"].shape[-2:] == (cells, cells)


def test_a_resnet_is_made_for_multiples_of_its_strides_and_an_object_stays_as_it_is():
    """The embedded one; each refusal is one sentence."""
    clip = load_clip("demo/resnet", image_size=320)
    assert clip.grid(320, 320) == (10, 10)
    for size, near in ((100, "96 or 128"), (20, "32 or 64")):
        said = rf"={size}`: .* multiple of 32, .* as {near}, got {size}\.$"
        with pytest.raises(InputError, match=said):
            load_clip("demo/resnet", image_size=size)
    makes = r"make another one by name, with `image_size=448`\.$"
    for given in (clip, clip.model):
        with pytest.raises(InputError, match=makes):
            load_clip(given, image_size=448)
    with pytest.raises(InputError, match=r"or make a model for them by name, with `image_size="):
        clip.grid(224, 224)


def test_weights_that_a_model_does_not_have_are_passed_over(tmp_path, capfd):
    built = builders.hf_vit()
    state = dict(built.model.state_dict())
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # as OpenAI's have
    built.model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    built.processor.save_pretrained(tmp_path)
    built.tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    assert_same(load_clip(tmp_path), built)
    assert capfd.readouterr() == ("", "")


def test_given_parts_are_kept(tmp_path, offline):
    save_transformers(builders.hf_vit(), tmp_path)
    processor, tokenizer = Mock(), Mock()
    clip = load_clip(tmp_path, processor=processor, tokenizer=tokenizer)
    assert clip.processor is processor
    assert clip.tokenizer is tokenizer


def test_a_folder_without_weights_is_named(tmp_path, capfd):
    save_open_clip(builders.open_clip_vit(), tmp_path, builders.VIT_CONFIG)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot be loaded: RuntimeError, Required pretrained"):
        load_clip(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_swapped_parts_are_told_so():
    """By what each makes; a tokenizer in the processor's place may come alone."""
    built, open_clips = builders.hf_vit(), builders.open_clip_vit()
    both = transformers.CLIPProcessor(built.processor, built.tokenizer)
    for tokenizer in (built.tokenizer, open_clips.tokenizer, openai.tokenize):
        with pytest.raises(InputError, match=r"as processor, got .* swapped, pass it as `tokeniz"):
            load_clip(built.model, processor=tokenizer)
    for processor in (built.processor, open_clips.processor, both):
        with pytest.raises(InputError, match=r"as tokenizer, got .* swapped, pass it as `processo"):
            load_clip(built.model, tokenizer=processor)
    assert load_clip(built.model, processor=both).encode_text("a horse").shape == (1, 24)


def test_both_missing_parts_are_named_with_the_call():
    model = builders.hf_vit().model
    options = "processor=processor, tokenizer=tokenizer"
    needed = "has no processor and no tokenizer, which images and texts need; pass `processor` and"
    with pytest.raises(InputError) as raised:
        explain(Image.new("RGB", (40, 40)), "a horse", model=model)
    assert str(raised.value).startswith("explain: CLIPModel " + needed)
    assert f"explain(..., model=model, {options})" in str(raised.value)
    with pytest.raises(
        InputError, match=r"as in load_clip\(model, processor=processor, tokenizer="
    ):
        load_clip(model).encode_text("a horse")
