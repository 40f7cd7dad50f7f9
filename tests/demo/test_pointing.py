"""The pointing command: the same figures as counted by hand, the methods of each tower."""

from __future__ import annotations

import numpy as np
import pytest

from captum_clip import explain, load_clip, maps
from captum_clip.demo import pointing
from captum_clip.demo.captions import article
from captum_clip.demo.evaluate import draw_scenes


@pytest.mark.parametrize(
    ("name", "method"), [("demo/vit", "all-grad"), ("demo/resnet", "grad-cam")]
)
def test_pointing_is_the_share_of_maxima_on_the_named_object(name: str, method: str) -> None:
    """Counted anew: the largest pixel of each map that `explain` draws."""
    scenes = draw_scenes("test", number=4, counts=[2, 3])
    clip = load_clip(name)
    hits, energies = [], []
    for scene in scenes:
        texts = [article(thing.noun) for thing in scene.objects]
        heat = explain(scene.image, texts, model=clip, method=method).heat()["positive"][0].numpy()
        raw = explain(scene.image, texts, model=clip, method=method).maps["positive"][0]
        large = maps.upsample(raw.double(), (224, 224)).numpy()
        for one, mass, thing in zip(heat, large, scene.objects, strict=True):
            highest = one >= one.max() - 1e-6
            hits.append((highest & thing.mask).sum() / highest.sum())
            energies.append((mass * thing.mask).sum() / mass.sum())
    found = pointing.measure(clip, scenes, method)
    assert found.pointing.mean == pytest.approx(np.mean(hits), abs=1e-6)
    assert found.energy.mean == pytest.approx(np.mean(energies), abs=1e-6)


def test_table_has_every_method_of_the_tower(capsys: pytest.CaptureFixture[str]) -> None:
    """One row a method, Markdown, chance beside."""
    pointing.main(["--model", "demo/resnet", "--scenes", "2"])
    printed = capsys.readouterr().out
    assert "5 objects" in printed
    assert "chance 0." in printed
    assert printed.count("| grad-cam |") == 1
    assert "last-grad" not in printed
    assert len(pointing.methods_for(load_clip("demo/vit"))) == 6


def test_interval_is_over_scenes() -> None:
    """Two objects of one scene are one draw: with a single scene nothing varies."""
    scenes = draw_scenes("test", number=1, counts=[3])
    found = pointing.measure(load_clip("demo/resnet"), scenes, "grad-cam").pointing
    assert found.low == found.mean == found.high
