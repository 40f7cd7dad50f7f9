"""Without a network there is one clear error, soon and without noise."""

from __future__ import annotations

import logging

import huggingface_hub.constants
import pytest

from captum_clip.errors import InputError
from captum_clip.models import load_clip, loading
from tests import builders
from tests.models.checkpoints import save_transformers


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32", "hf-hub:some/one", "some/one"])
def test_without_a_network_the_cure_is_named(cache, capfd, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    root = logging.getLogger().handlers[:]
    message = (
        rf"load_clip: `model='{name}'`: .* cannot be loaded: .*https.* cannot be reached.*demo/vit"
    )
    with pytest.raises(InputError, match=message):
        load_clip(name)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == root
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_what_the_hub_answers_is_passed_on(monkeypatch, cache):
    monkeypatch.setattr(loading, "_hub_answers", lambda: True)

    def missing(*_, **__):
        raise OSError("some/one is not a valid model identifier.\nMore lines.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", missing)
    with pytest.raises(InputError, match=r"loaded: OSError, some/one .* identifier\. A name"):
        load_clip("some/one")


def test_the_hub_is_asked_once_and_briefly(monkeypatch):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert not loading._hub_answers()
    assert asked == [(huggingface_hub.constants.ENDPOINT, 5)]


def test_loading_leaves_the_libraries_settings_as_they_were(tmp_path, offline):
    from transformers.utils import logging as transformers_logging

    save_transformers(builders.hf_vit(), tmp_path)
    root = logging.getLogger()

    def settings():
        bars = transformers_logging.is_progress_bar_enabled()
        return root.handlers[:], root.filters[:], transformers_logging.get_verbosity(), bars

    before = settings()
    load_clip(tmp_path)
    assert settings() == before
