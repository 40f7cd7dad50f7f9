"""What a cell of a notebook shows, and images as PyTorch's users have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Dataset, TensorDataset

from captum_clip import (
    ClipSimilarity,
    DirectContribution,
    classify,
    explain,
    load_clip,
    targets,
)
from captum_clip.apps.heads import head_vectors
from captum_clip.demo.scenes import draw_scene

clip = load_clip("demo/vit")


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def shown(shell: InteractiveShell, value: Any) -> dict[str, Any]:
    """What a cell that ends with a value shows, by its kind."""
    formatter: Any = shell.display_formatter
    with capture_output() as captured:
        data, _ = formatter.format(value)
    for output in captured.outputs:
        data |= output.data
    return {kind: content for kind, content in data.items() if kind != "text/plain"}


@pytest.mark.parametrize("inline", [False, True])
def test_figures_and_explanations_show_themselves(shell: InteractiveShell, inline: bool) -> None:
    """Also where matplotlib's inline backend draws every figure as a large PNG."""
    if inline:
        formatter: Any = shell.display_formatter
        formatter.formatters["image/png"].for_type(Figure, lambda figure: b"a large one")
    scenes = [draw_scene(seed).image for seed in range(20)]
    found = explain(scenes, ["a horse", "a dog"], model=clip)
    for value in (found, found.plot()):
        [(kind, content)] = shown(shell, value).items()
        assert kind == "image/jpeg"
        assert len(content) < 2_000_000  # in base64, which a notebook keeps
    assert isinstance(found.plot(), Figure)
    several = explain(scenes[0], "a horse", model=[clip, clip])
    assert [*shown(shell, several)] == ["image/jpeg"]
    words = explain(scenes[0], "a horse and a dog", words=True, model=clip)
    assert [*shown(shell, words)] == ["text/html"]


class Scenes(Dataset[Any]):
    """A map-style dataset of images with labels, whose iteration ends with no IndexError."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return draw_scene(index, objects=["horse"]).image, 7


def test_datasets_and_loaders_are_taken_for_their_images(tmp_path: Path) -> None:
    """Preprocessed or not, with labels or without."""
    images = [draw_scene(seed, objects=["horse"]).image for seed in range(3)]
    expected = explain(images, "a horse", model=clip)
    pixels = clip.preprocess(images)
    labels = torch.arange(3)
    loaders: list[Any] = [
        Scenes(),
        TensorDataset(pixels, labels),
        DataLoader(TensorDataset(pixels, labels), batch_size=2),
        DataLoader([*pixels], batch_size=2),  # type: ignore[arg-type]
    ]
    for loader in loaders:
        found = explain(loader, "a horse", model=clip, batch_size=1)
        torch.testing.assert_close(found.maps, expected.maps, atol=1e-5, rtol=1e-4)
        assert len(targets.image(clip, loader)) == 3
        assert len(head_vectors(clip, loader).heads) == 3
    one: Any = DataLoader(TensorDataset(pixels[:1]))
    assert classify(one, ["a horse", "a car"], model=clip, top=1).names == ("a horse",)


def test_methods_say_what_they_explain() -> None:
    forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
    shown = "ClipSimilarity(demo/vit, ('a horse', 'a dog'))"
    assert repr(DirectContribution(forward)) == f"DirectContribution({shown})"

    def scores(images: Any) -> Any:
        return forward(images)

    own = repr(DirectContribution(scores, layer=clip.model))
    assert own.startswith("DirectContribution(test_methods_say_what_they_explain")
