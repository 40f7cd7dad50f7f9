"""Without a network there is one clear error, soon and without noise."""

from __future__ import annotations

import logging
import ssl
import urllib.error

import huggingface_hub.constants
import pytest

from captum_clip.errors import InputError
from captum_clip.models import hub, load_clip
from tests import builders
from tests.models.checkpoints import save_transformers


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32", "hf-hub:some/one", "some/one"])
def test_without_a_network_the_cure_is_named(cache, capfd, name):
    root = logging.getLogger().handlers[:]
    message = rf"load_clip\('{name}'\): .* is not in the cache .*hub, and https.*demo/vit"
    with pytest.raises(InputError, match=message):
        load_clip(name)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == root
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_half_filled_cache_is_told_from_an_empty_one(cache):
    (cache("some/one") / "config.json").write_text("{")
    with pytest.raises(InputError, match="some/one cannot be loaded from the cache"):
        load_clip("some/one")


def test_the_hubs_own_switch_is_named(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be reached \(HF_HUB_OFFLINE is set\)"):
        load_clip("some/one")
    assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_what_the_hub_says_is_passed_on(monkeypatch, cache):
    monkeypatch.setattr(hub, "reachable", lambda: True)

    def missing(*_, **__):
        raise OSError("some/one is not a valid model identifier.\nMore lines.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", missing)
    with pytest.raises(InputError, match=r"from the hub: OSError, some/one .* identifier\. A name"):
        load_clip("some/one")


def test_reachable_asks_once_and_briefly(monkeypatch):
    asked = []
    answer: Exception = OSError()

    def urlopen(request, timeout):
        asked.append((request.full_url, request.method, timeout))
        raise answer

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    answers = {
        urllib.error.URLError(OSError("Name or service not known")): False,
        urllib.error.URLError(ssl.SSLError("certificate")): True,
        urllib.error.HTTPError("", 404, "", None, None): True,  # type: ignore[arg-type]
        TimeoutError(): False,
    }
    for raised, expected in answers.items():
        answer = raised
        assert hub.reachable() is expected
    assert asked == [(huggingface_hub.constants.ENDPOINT, "HEAD", 5.0)] * 4
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    assert len(asked) == 4


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


def test_a_part_that_is_loaded_with_its_model_leaves_the_rest_silent():
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign, assignment]
    root = logging.getLogger()
    remark = logging.LogRecord("root", logging.ERROR, "/lib/open_clip/factory.py", 1, "", (), None)
    root.addHandler(handler)
    try:
        with hub.quiet():
            with hub.quiet():
                root.handle(remark)
            root.handle(remark)
        assert not said
        root.handle(remark)
        assert said == [remark]
    finally:
        root.removeHandler(handler)
