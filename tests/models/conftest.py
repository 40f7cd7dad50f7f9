"""Hub caches of a test's own."""

from __future__ import annotations

import huggingface_hub.constants
import pytest

from captum_clip.models import loading

COMMIT = "0" * 39 + "1"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)


@pytest.fixture
def cache(tmp_path, monkeypatch, offline):
    """Makes a repository in a hub cache of its own; nothing outside it is reached."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(folder), raising=False)

    def repository(name):
        root = folder / f"models--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        snapshot = root / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        return snapshot

    return repository
