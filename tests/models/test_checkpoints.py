"""Weights in a file, adapters of peft and models of sentence-transformers load as they lie."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
import transformers
from open_clip import factory
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from captum_clip.demo import MODELS
from captum_clip.errors import InputError
from captum_clip.models import load_clip, loading, names
from captum_clip.models import weights as files
from captum_clip.models.names import resolve
from captum_clip.models.weights import architectures_of
from tests import builders, samples
from tests.models.checkpoints import assert_same, save_transformers
from tests.models.test_loading import TIMM

VIT = {"embed_dim": 24, "vision_cfg": builders.VIT_CONFIG, "text_cfg": builders.TEXT_CONFIG}


@pytest.fixture(autouse=True)
def architectures(tmp_path, monkeypatch, offline):
    """Small architectures, in an empty working directory with a folder `base` of transformers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "small", VIT)
    vision, length = TIMM["cls"]
    timm = {**VIT, "embed_dim": length, "vision_cfg": {**vision, "image_size": 160}}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "small-timm", timm)
    save_transformers(builders.hf_vit(), tmp_path / "base")


def weights(name: str = "hf_vit", prefix: str = "") -> dict[str, Any]:
    return {
        prefix + key: value for key, value in builders.BUILDERS[name]().model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("architecture", "builder", "content"),
    [
        ("base", "hf_vit", lambda state: state),
        ("base", "hf_vit", lambda state: {"model": {f"module.{k}": state[k] for k in state}}),
        ("small", "open_clip_vit", lambda state: {"epoch": 3, "state_dict": state}),
        (
            "small",
            "open_clip_vit",
            lambda state: {"state_dict": {f"net.model.{k}": state[k] for k in state}},
        ),
    ],
    ids=["raw", "parallel", "epoch", "lightning"],
)
def test_a_file_has_the_weights_of_its_architecture(architecture, builder, content):
    built = builders.BUILDERS[builder]()
    torch.save(content(built.model.state_dict()), "epoch_3.pt")
    clip = load_clip(f"{architecture}:epoch_3.pt", tokenizer=built.tokenizer)
    assert clip.name == f"{architecture}:epoch_3.pt"
    assert_same(clip, built)


def test_safetensors_of_half_precision_are_read_in_single():
    built = builders.hf_vit()
    built.model.half()
    save_file(built.model.state_dict(), "epoch_3.safetensors")
    clip = load_clip("base:epoch_3.safetensors")
    assert clip.dtype == torch.float32
    assert_same(clip, built._replace(model=built.model.float()))


def test_names_of_openai_lead_to_its_layout_in_open_clip_and_to_transformers():
    torch.save({}, "a.pt")
    expected = {
        "ViT-B/32": "ViT-B-32-quickgelu",
        "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
        "RN50": "RN50-quickgelu",
        "ViT-B-32": "ViT-B-32",
        "clip-vit-base-patch32": "openai/clip-vit-base-patch32",
        "some/one": "some/one",
    }
    assert {each: resolve(f"{each}:a.pt").where for each in expected} == expected
    assert {*expected.values()} - {*open_clip.list_models()} == {*[*expected.values()][-2:]}


def test_preprocessing_is_that_of_the_published_weights(monkeypatch):
    """SigLIP's differs from CLIP's, and an architecture of OpenCLIP does not say so."""
    small = {**factory._MODEL_CONFIGS["small-timm"], "text_cfg": builders.TEXT_CONFIG}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-16-SigLIP", small)
    torch.save(open_clip.create_model("small-timm").state_dict(), "a.pt")
    clip = load_clip("ViT-B-16-SigLIP:a.pt")
    assert clip.denormalize(torch.zeros(1, 3, 160, 160)).unique().tolist() == [0.5]
    assert (
        load_clip("small-timm:a.pt").denormalize(torch.zeros(1, 3, 160, 160)).unique().numel() == 3
    )


def test_positions_of_a_file_are_resampled():
    for architecture in ("small", "small-timm"):
        model = open_clip.create_model(architecture)
        torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, "a.pt")
        side = 2 * load_clip(f"{architecture}:a.pt").tower.native[0]
        clip = load_clip(f"{architecture}:a.pt", image_size=side)
        assert clip.tower.native == (side, side)
        assert clip.encode_image(clip.preprocess(Image.new("RGB", (50, 50)))).isfinite().all()


def test_weights_that_do_not_fit_are_named(tmp_path):
    """Five of them; what is left over in a tower changed it, elsewhere it is a head or a loss."""
    state, extra = weights(), torch.ones(2)
    image = {key: value for key, value in state.items() if key.startswith("vision")}
    wrong = {**state, "visual_projection.weight": torch.ones(3, 3)}
    lora = {**state, "vision_model.encoder.lora": extra}
    for content, said in (
        (
            image,
            r"shape: 39 \(logit_scale, text_model(\S+, ){3}\S+\); left over in it: 0; build the",
        ),
        (wrong, r"lacks, or has in another shape: 1 \(visual_projection\.weight\); left over in"),
        (lora, r"shape: 0; left over in it: 1 \(vision_model\.encoder\.lora\); build the model"),
        (
            weights("open_clip_vit", "module."),
            r"shape: 94 .*it: 74 \(module\..*; its shapes fit small\.",
        ),
        ({"epoch": 3}, r"shape: 94 \(.*left over in it: 0;"),
    ):
        torch.save(content, "a.pt")
        with pytest.raises(
            InputError, match=rf"`model='base:a\.pt'`: weights of a CLIPModel .*{said}"
        ):
            load_clip("base:a.pt")
    torch.save({**state, "head.weight": extra}, "a.pt")
    with pytest.warns(
        UserWarning, match=r"left over in it: 1 \(head\.weight\), which no tower reads"
    ):
        load_clip("base:a.pt")


def test_what_holds_more_than_weights_is_not_run(tmp_path):
    class Touch:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    said = r"is damaged or holds more .*torch\.save\(model"
    for file in ("a.pt", "a.safetensors"):
        torch.save({"state_dict": weights(), "code": Touch()}, file)
        for name in (f"base:{file}", file):
            with pytest.raises(InputError, match=f"{file} {said}"):
                load_clip(name)
    assert not (tmp_path / "touched").exists()


def test_a_file_alone_has_the_one_architecture_that_it_fits(tmp_path):
    torch.save(weights("open_clip_vit", "module."), "epoch_3.pt")
    expected = load_clip("small:epoch_3.pt")
    for name in ("epoch_3.pt", tmp_path / "epoch_3.pt"):
        with pytest.warns(
            UserWarning, match=r"epoch_3\.pt'`: its shapes fit small alone, so it is"
        ):
            clip = load_clip(name)
        assert clip.name == f"small:{name}"
        images = builders.open_clip_vit().images()
        torch.testing.assert_close(clip.encode_image(images), expected.encode_image(images))


def test_a_file_alone_is_asked_for_its_architecture(tmp_path, monkeypatch):
    torch.save(weights(), "epoch_3.pt")
    question = r"`model='epoch_3\.pt'`: which architecture\? Write 'ARCH:epoch_3\.pt'; "
    with pytest.raises(InputError, match=rf"{question}ARCH is one of OpenCLIP's, or the folder or"):
        load_clip("epoch_3.pt")
    monkeypatch.setattr(loading, "architectures_of", lambda _: ["ViT-B-32", "ViT-B-32-quickgelu"])
    with pytest.raises(InputError, match=rf"{question}its shapes fit ViT-B-32, ViT-B-32-quickgelu"):
        load_clip("epoch_3.pt")


def test_a_model_of_clip_that_is_saved_alone_is_preprocessed_like_openais(tmp_path):
    """A SigLIP is asked for its processor: the embedded one has another mean than Google's."""
    for name in ("vit", "siglip"):
        own = MODELS[f"demo/{name}"]
        shutil.copytree(own, tmp_path / name, ignore=lambda *_: ["preprocessor_config.json"])
    with pytest.warns(UserWarning, match=r"no preprocessor_config.json, so images become 224 x 22"):
        clip = load_clip(tmp_path / "vit")
    image = samples.picture()
    assert torch.equal(clip.preprocess(image), load_clip("demo/vit").preprocess(image))
    with pytest.raises(InputError, match="processor"):
        load_clip(tmp_path / "siglip").preprocess(image)


def test_architectures_are_those_whose_shapes_fit():
    """At true size, without memory: a depth, a patch or a size more is another architecture."""
    with torch.device("meta"):
        own = open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-336"))
        other = transformers.CLIPModel(transformers.CLIPConfig())
    assert architectures_of(own.state_dict()) == ["ViT-L-14-336", "ViT-L-14-336-quickgelu"]
    assert architectures_of(other.state_dict()) == ["clip-vit-base-patch32"]


class Tuner(nn.Module):
    """peft's `PeftModel` with what is called of it; its adapter doubles the projection."""

    __module__ = "peft.peft_model"
    missing: tuple[str, ...] = ()

    def __init__(self, model: Any, config: str) -> None:
        super().__init__()
        self.base_model: Any = nn.Module()
        self.base_model.model = model

    def load_adapter(self, folder: str, name: str) -> Any:
        self.base_model.model.visual_projection.weight.data *= 2
        return SimpleNamespace(
            missing_keys=self.missing, unexpected_keys=["lora.b"] * len(self.missing)
        )


@pytest.fixture
def adapter(monkeypatch):
    """A folder as peft's `save_pretrained` writes it, and what peft is called for."""
    Tuner.__name__ = Tuner.__qualname__ = "PeftModel"
    peft = SimpleNamespace(PeftModel=Tuner, PeftConfig=SimpleNamespace(from_pretrained=str))
    monkeypatch.setattr(names, "find_spec", lambda name: peft)
    own = files.with_adapter

    def with_adapter(model, folder):
        with monkeypatch.context() as patch:  # alone, since transformers asks for peft, too
            patch.setitem(sys.modules, "peft", peft)
            return own(model, folder)

    monkeypatch.setattr(loading, "with_adapter", with_adapter)

    def write(**settings):
        shutil.rmtree("lora", ignore_errors=True)
        shutil.copytree("base", "lora", ignore=lambda *_: ["config.json", "model.safetensors"])
        with open("lora/adapter_config.json", "w") as file:
            json.dump(settings, file)
        save_file({"lora.a": torch.zeros(1)}, "lora/adapter_model.safetensors")
        return "lora"

    return write


def test_an_adapter_of_peft_loads_on_the_base_that_it_names(adapter, monkeypatch):
    folder = adapter(base_model_name_or_path="base")
    doubled = builders.hf_vit()
    doubled.model.visual_projection.weight.data *= 2
    clip = load_clip(folder)
    assert clip.name == folder
    torch.testing.assert_close(
        clip.image_features(doubled.images()),
        doubled.model.get_image_features(doubled.images()).pooler_output,
    )
    assert_same(clip, doubled)
    monkeypatch.setattr(Tuner, "missing", ("lora.a",))
    with pytest.raises(
        InputError, match=r"in lora belongs to another base; .* 2 \(lora\.a, lora\.b\)"
    ):
        load_clip(folder)


def test_an_adapter_of_peft_loads_on_another_base(adapter):
    folder, doubled = adapter(base_model_name_or_path="/cluster/base"), builders.hf_vit()
    doubled.model.visual_projection.weight.data *= 2
    with pytest.raises(InputError, match=r"for /cluster/base, .* write 'BASE:lora'"):
        load_clip(folder)
    clip = load_clip(f"base:{folder}")
    assert clip.name == "base:lora"
    assert_same(clip, doubled)


def test_an_adapter_without_peft_or_base_is_told_so(adapter, monkeypatch):
    name = r"`model='lora'` is an adapter of peft for"
    for base, said in (
        (None, rf"{name} None, the base_model_name_or_path .*'None' is neither a known name"),
        ("lora", rf"{name} lora, .* expected a base that is not an adapter, got 'lora'"),
        ("../gone", rf"{name} \.\./gone, .* is neither a known name nor a folder"),
    ):
        with pytest.raises(InputError, match=said):
            load_clip(adapter(base_model_name_or_path=base))
    with pytest.raises(
        InputError, match=r"adapter_config\.json cannot be read \(KeyError, 'base_model"
    ):
        load_clip(adapter())
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=rf"{name} base, .* pip install peft, or save the model merged"
    ):
        load_clip(adapter(base_model_name_or_path="base"))


class SentenceTransformer(nn.Sequential):
    """With the module that sentence-transformers puts first for a CLIP."""

    __module__ = "sentence_transformers.SentenceTransformer"

    def __init__(self, built: builders.Small) -> None:
        first: Any = nn.Module()
        first.model = built.model
        first.processor = transformers.CLIPProcessor(built.processor, built.tokenizer)
        super().__init__(first)


def test_the_clip_in_sentence_transformers_is_taken(tmp_path):
    """Older releases save it in a folder of its own."""
    built = builders.hf_vit()
    clip = load_clip(SentenceTransformer(built))
    assert clip.model is built.model
    assert_same(clip, built)
    folder = tmp_path / "sentences"
    for path in ("", "0_CLIPModel"):
        save_transformers(built, folder / path)
        (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": path}]))
        assert_same(load_clip(folder), built)
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    with pytest.raises(InputError, match=r"modules\.json cannot be read \(IndexError"):
        load_clip(folder)
