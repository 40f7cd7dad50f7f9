"""The repair of the shortcut model: its scenes, and a short training of each arm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.experiments import experiment


@pytest.fixture
def repair(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with few scenes and steps."""
    module = experiment("repair")
    for name, number in {"STEPS": 2, "BATCH": 4, "SCENES": 8}.items():
        monkeypatch.setattr(module, name, number)
    return module


def test_another_tag_is_never_the_objects_own(repair: Any) -> None:
    """All twelve nouns come in turn; without a tag the image is another one."""
    drawn = {c: repair.Scenes(range(24), condition=c) for c in repair.CONDITIONS}
    labels = [scenes.labels for scenes in drawn.values()]
    assert all(each.equal(torch.arange(24) % 12) for each in labels)
    images = [scenes.images.flatten(1) for scenes in drawn.values()]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (images[first] != images[second]).any(1).all()
    assert all(scenes.masks.flatten(1).any(1).all() for scenes in drawn.values())


def test_each_arm_trains_the_vision_tower_alone(repair: Any) -> None:
    """Its penalty falls, and texts stay."""
    before = repair.load_clip(str(repair.MODEL)).model.state_dict()
    for arm, weight in repair.CHOSEN.items():
        clip, losses = repair.train(arm, 0, weight)
        assert len(losses) == repair.STEPS
        assert (losses[0][1] > 0) == (weight > 0)
        changed = {
            n.split("_")[0] for n, p in clip.model.state_dict().items() if p.ne(before[n]).any()
        }
        assert changed <= {"vision", "visual"}
        assert changed
    assert repair.interval([0.0, 0.5, 0.5, 0.5, 1.0]) == "0.50 [0.06, 0.94]"
