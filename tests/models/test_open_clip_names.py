"""OpenCLIP's built-in names."""

from __future__ import annotations

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_clip.errors import InputError
from captum_clip.models import load_clip, loading
from captum_clip.models.names import resolve
from tests import builders


def small_open_clip(record):
    """Stands in for `open_clip.create_model`: a small ResNet."""

    def create_model(where, pretrained=None, force_quick_gelu=False, **kwargs):
        record.append((where, pretrained, force_quick_gelu))
        with torch.random.fork_rng():
            model = open_clip.CLIP(
                embed_dim=24,
                vision_cfg=builders.RESNET_CONFIG,
                text_cfg=builders.TEXT_CONFIG,
            )
        open_clip.factory.set_model_preprocess_cfg(
            model, vars(open_clip.transform.PreprocessCfg(size=96))
        )
        return model

    return create_model


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("RN50", ("RN50-quickgelu", "openai", False)),
        ("ResNet101", ("RN101-quickgelu", "openai", False)),
        ("RN50x4", ("RN50x4-quickgelu", "openai", False)),
        ("ResNet50x16", ("RN50x16-quickgelu", "openai", False)),
        ("RN50x64", ("RN50x64-quickgelu", "openai", False)),
        ("RN50/openai", ("RN50", "openai", True)),
        ("RN50/yfcc15m", ("RN50", "yfcc15m", True)),
        ("ViT-B-32/laion2b_s34b_b79k", ("ViT-B-32", "laion2b_s34b_b79k", False)),
    ],
)
def test_what_open_clip_is_asked_for(monkeypatch, offline, name, asked):
    record: list[tuple[str, str, bool]] = []
    monkeypatch.setattr(open_clip, "create_model", small_open_clip(record))
    clip = load_clip(name)
    assert record == [asked]
    assert clip.kind == "resnet"
    assert clip.encode_text("a horse").shape == (1, 24)
    assert clip.preprocess(Image.new("RGB", (99, 97))).shape == (1, 3, 96, 96)


def test_every_pair_runs_with_the_activation_that_its_weights_were_trained_with():
    switched_on, left = [], []
    for architecture, tag in open_clip.list_pretrained():
        weights = open_clip.get_pretrained_cfg(architecture, tag)
        source = resolve(f"{architecture}/{tag}")
        assert (source.where, source.tag) == (architecture, tag)
        configured = open_clip.get_model_config(source.where).get("quick_gelu", False)
        if source.quick_gelu:
            switched_on.append((architecture, tag))
        if (source.quick_gelu or configured) != weights.get("quick_gelu", False):
            left.append((architecture, tag))
    assert left == [("roberta-ViT-B-32", "laion2b_s12b_b32k")]
    assert sum(tag == "openai" for _, tag in switched_on) == 9
    assert {("ViT-B-16", "dfn2b"), ("ViT-H-14", "dfn5b"), ("RN50", "yfcc15m")} <= {*switched_on}


def small_config(monkeypatch, name):
    """An architecture's config with fewer and narrower layers; its images are as large."""
    config = open_clip.get_model_config(name)
    config["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 16}
    config["text_cfg"] |= {"layers": 2, "width": 64, "heads": 1}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


def test_switching_quick_gelu_on_gives_the_architecture_that_has_it(monkeypatch, offline):
    """The library's own `create_model`, without the weights of `RN50/yfcc15m`."""
    small_config(monkeypatch, "RN50")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: "weights")
    monkeypatch.setattr("open_clip.factory.load_checkpoint", lambda *_, **__: None)
    model = load_clip("RN50/yfcc15m").model
    activations = [m for name, m in model.named_modules() if name.endswith("gelu")]
    assert {type(activation).__name__ for activation in activations} == {"QuickGELU"}
    assert len(activations) == 2


def test_an_rn50_checkpoint_loads(tmp_path, monkeypatch):
    """Random weights in half precision, by name; only the download is replaced."""
    small_config(monkeypatch, "RN50-quickgelu")
    model = open_clip.CLIP(**open_clip.get_model_config("RN50-quickgelu"))
    path = tmp_path / "rn50.safetensors"
    state = {key: value.clone() for key, value in model.half().state_dict().items()}
    save_file(state, path)
    monkeypatch.setattr(loading, "_hub_answers", lambda: True)
    asked = []

    def download(cfg, **_):
        asked.append(cfg["hf_hub"])
        return str(path)

    monkeypatch.setattr("open_clip.factory.download_pretrained", download)
    clip = load_clip("RN50")
    assert asked == ["timm/resnet50_clip.openai/"]
    assert clip.kind == "resnet"
    assert clip.grid(224, 224) == (7, 7)
    assert clip.dtype == torch.float32
    assert not clip.model.training
    loaded = clip.model.state_dict()["visual.conv1.weight"]
    assert torch.equal(loaded, state["visual.conv1.weight"].float())
    assert clip.preprocess(Image.new("RGB", (300, 250))).shape == (1, 3, 224, 224)


def test_an_architecture_without_a_tag_names_its_tags():
    with pytest.raises(InputError, match=r"as in 'RN101-quickgelu/TAG': openai, yfcc15m"):
        load_clip("RN101-quickgelu")
