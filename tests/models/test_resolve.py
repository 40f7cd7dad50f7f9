"""Names and folders lead where they should, or a message explains why not."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest

from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import available, load_clip, loading
from captum_clip.models.names import check_stated, resolve
from tests import builders
from tests.models.checkpoints import save_open_clip


def test_an_open_clip_folder_with_a_foreign_config_loads(tmp_path):
    built = builders.open_clip_vit()
    save_open_clip(built, tmp_path, builders.VIT_CONFIG)
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')
    assert resolve(str(tmp_path)).library == "open_clip"


def test_a_slip_in_a_published_name_is_noticed_and_hub_names_keep_their_way():
    for typed, meant in {"ViT-B/23": "ViT-B/32", "vit-l/41": "ViT-L/14"}.items():
        with pytest.raises(InputError, match=rf"{typed}' is neither .* \(did you mean {meant}\?\)"):
            resolve(typed)
    for name in ("openai/clip-vit-base-patch23", "vit-base/one", "ViT-B-32/one"):
        assert resolve(name).where == name


def test_names_are_resolved_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("ViT-B/32").where == "openai/clip-vit-base-patch32"
    assert resolve("some/one").library == "transformers"
    for name in ("ViT-B/32", "hf-hub:some/one", "RN50/yfcc15m", "some/one"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"model_type": "clip"}')
    assert not resolve("ViT-B/32").local  # Mamooler's names come first
    for name in ("hf-hub:some/one", "RN50/yfcc15m", "some/one"):
        assert resolve(name).local  # then folders


def test_a_name_in_a_file_leads_to_no_file_of_this_machine(tmp_path, monkeypatch):
    """Neither to one that exists nor to one that might; to a hub it does, and to what is here."""
    monkeypatch.chdir(tmp_path)
    names = ("demo/vit", "ViT-B/32", "vit-b/32", "RN50", "hf-hub:some/one", "RN50/cc12m", "some/1")
    assert [check_stated(name, "f") for name in names] == [*names]
    save_open_clip(builders.open_clip_vit(), tmp_path / "model", builders.VIT_CONFIG)
    (tmp_path / "peft").mkdir()
    base = f'{{"base_model_name_or_path": "{tmp_path / "model"}"}}'
    (tmp_path / "peft" / "adapter_config.json").write_text(base)
    taken = ("some/1", "some/two", "hf-hub:some/1", "RN50/cc12m", "openai/clip-vit-base-patch32")
    for name in taken:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / ("none" if name == "some/two" else "model"))
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    files = (f"ViT-B-32:{weights}", str(weights), f"local-dir:{tmp_path}/model", "RN50:../a.pt")
    steps = ("../x", "some/..", "hf-hub:../x", "./model", "~/model", "~root", "a/b/c", "C:\\a")
    refused = (*taken, "ViT-B/32", *files, *steps, str(tmp_path / "peft"), "model", "", "x" * 9999)
    for name in refused:
        with pytest.raises(InputError, match=r"^f names the model .*\. A model that a file na"):
            check_stated(name, "f")
    assert check_stated("demo/vit", "f")  # whatever lies here
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "vit").symlink_to(tmp_path / "model")
    assert not resolve(check_stated("demo/vit", "f")).where.startswith(str(tmp_path))


BLIP_2 = '{"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]}'


def test_a_folder_with_another_kind_of_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        UnsupportedModelError, match=r"of type 'bert'; supported are transformers: CLIPModel, .*hf-"
    ):
        load_clip(tmp_path)


def test_another_kind_of_model_on_the_hub_is_named_with_what_would_run_instead(cache):
    (cache("some/one") / "config.json").write_text(BLIP_2)
    message = r"`model='some/one'`.* type 'blip-2'; it scores .*use a CLIP or SigLIP"
    with pytest.raises(UnsupportedModelError, match=message):
        load_clip("some/one")


def test_the_page_of_models_lists_names_that_lead_to_their_library():
    table = Path(__file__).parents[2] / "docs" / "appendix" / "tables" / "families.csv"
    rows = re.findall(r"`([^`,]*/[^`,]*)`\"?,\"?(timm |OpenCLIP )?`", table.read_text("utf-8"))
    assert len(rows) > 20
    for name, is_open_clip in rows:
        source = resolve(name)
        assert (source.library == "open_clip") == bool(is_open_clip)
        if source.tag is not None:
            assert (source.where, source.tag) in open_clip.list_pretrained()


def test_available_lists_the_embedded_models_and_the_reports():
    rows = available()
    embedded = ["demo/vit", "demo/resnet", "demo/siglip"]
    assert [row.name for row in rows if row.checkpoint == "embedded"] == embedded
    assert len(rows) == 12
    assert {row.kind for row in rows if row.name.startswith(("ViT", "demo/vit"))} == {"vit"}
    assert {row.kind for row in rows if row.name.startswith(("RN", "demo/res"))} == {"resnet"}
    assert "ResNet50x4" in next(row for row in rows if row.name == "RN50x4").aliases


def test_a_path_is_a_folder_or_nothing(tmp_path):
    with pytest.raises(InputError, match="there is no folder some/one"):
        load_clip(Path("some/one"))


@pytest.mark.parametrize("name", ["nothing", "./nothing", "a/b/c"])
def test_a_name_that_leads_nowhere_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr(loading, "_hub_answers", lambda: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match=rf"'{name}' is neither a known name nor a folder\. A nam"):
        load_clip(name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"neither config\.json .* nor open_clip_config\.json"):
        load_clip(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_clip(tmp_path)


def test_an_embedded_model_that_is_none_is_named():
    with pytest.raises(InputError, match=r"demo/foo.*there are demo/vit, demo/resnet"):
        resolve("demo/foo")
