"""Each figure is made of the maps that the library itself computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import ClipSimilarity, LayerAttention, explain, figures, maps, targets
from captum_clip.emotions import CLASSES, EMOTIONS, EmotionProbe
from captum_clip.errors import InputError, TargetError, UnsupportedModelError
from captum_clip.evaluation import run_study
from captum_clip.figures import subjects
from captum_clip.models import ClipAdapter
from captum_clip.visualization import grid
from captum_clip.visualization.blend import blend
from captum_clip.visualization.style import HEAT, colormap
from tests import builders, folders
from tests.figure_parts import lines_of, pixels_of

BAD: Any = "nonsense"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_FINE", 32)


@pytest.fixture(scope="module")
def vit() -> ClipAdapter:
    return builders.hf_vit().load(name="small ViT")


@pytest.fixture(scope="module")
def resnet() -> ClipAdapter:
    return builders.open_clip_resnet().load(name="small ResNet")


def photo(seed: int = 0, height: int = 40, width: int = 60) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height))


def enlarged(raw: torch.Tensor, side: int) -> torch.Tensor:
    return maps.upsample(raw, (side, side), mode="bicubic", clamp=True)


# layers


@pytest.mark.parametrize("rows", ["cls", "sum"])
def test_layers_draws_what_layer_attention_gives(vit: ClipAdapter, rows: Any) -> None:
    figure = figures.layers(
        photo(), "a horse", references=[photo(1)], model=vit, rows=rows, cmap="mask"
    )
    images = vit.preprocess(photo())
    method = LayerAttention(ClipSimilarity(vit, targets.text(vit, "a horse")))
    picture = vit.denormalize(images)[0].movedim(0, -1).numpy()
    shown = pixels_of(figure)
    assert len(shown) == 3 * 4
    for place, of, index in ((1, "attention", 0), (3, "attention", 2), (6, "gradient", 1)):
        raw = method.attribute(images, target=0, index=index, of=of, rows=rows)
        assert isinstance(raw, torch.Tensor)
        share = maps.normalize(enlarged(raw, 32))[0, 0, ..., None].numpy()
        np.testing.assert_allclose(shown[place], picture * share, atol=1e-4)
    other = vit.denormalize(vit.preprocess(photo(1)))[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(shown[8], other, atol=1e-6)
    said = {"cls": "row CLS", "sum": "sum of all rows"}[rows]
    assert any(said in line for line in lines_of(figure))


def test_layers_of_a_resnet_there_are_none(resnet: ClipAdapter) -> None:
    with pytest.raises(UnsupportedModelError, match="small ResNet has a resnet tower"):
        figures.layers(photo(), "a horse", model=resnet)


def test_layers_of_a_tower_without_cls_are_named_so() -> None:
    clip = builders.open_clip_vit_mean().load()
    assert any(
        "mean of all rows" in line
        for line in lines_of(figures.layers(photo(), "a horse", model=clip))
    )


# compare


def test_compare_has_all_methods_that_fit_and_all_targets(
    vit: ClipAdapter, resnet: ClipAdapter
) -> None:
    figure = figures.compare(
        [photo(), photo(1)], ["a horse", "sky"], references=photo(2), models=[vit, resnet]
    )
    lines = lines_of(figure)
    names = (
        *("rollout", "attention-grad-cam", "all-grad", "last-grad", "direct", "conservative"),
        *("legrad", "grad-eclip", "patches"),
    )
    assert {f"small ViT ({name})" for name in names} | {"small ResNet (grad-cam)"} <= set(lines)
    assert len(pixels_of(figure)) == 2 * 3 * 12 + 2  # two references
    assert lines.count("sky") == 2
    assert lines.count("image 0") == 2


def test_compare_draws_the_maps_of_explain(vit: ClipAdapter) -> None:
    given = [photo(), photo(1)]
    found = explain(given, ["a horse", "sky"], model=vit, method="all-grad")
    methods = ["last-grad", "all-grad"]
    figure = figures.compare(given, ["a horse", "sky"], models=vit, methods=methods)
    rows = [(picture, target) for picture in range(2) for target in range(2)]
    for row, (place, target) in enumerate(rows):
        picture = found.images[place].movedim(0, -1).numpy()
        heatmap = found.heatmap("bicubic")["positive"][place, target].numpy()
        np.testing.assert_allclose(pixels_of(figure)[3 * row], picture, atol=1e-6)
        wanted = blend(picture, heatmap, colormap(HEAT), 0.9)
        np.testing.assert_allclose(pixels_of(figure)[3 * row + 2], wanted, atol=1e-3)
    assert f"cosine {found.scores[1, 1]:.3f}".replace("-", "\u2212") in lines_of(figure)


def test_a_shared_scale_is_that_of_a_column(vit: ClipAdapter) -> None:
    given = [photo(), photo(1)]
    found = explain(given, "a horse", model=vit, method="last-grad")
    large = enlarged(found.maps["positive"], 32)[:, 0]
    shares = maps.normalize(large.reshape(1, -1)).reshape(large.shape).numpy()
    figure = figures.compare(given, "a horse", models=vit, methods="last-grad", scale="shared")
    for place in (0, 1):
        picture = found.images[place].movedim(0, -1).numpy()
        wanted = blend(picture, shares[place], colormap(HEAT), 0.9)
        gap = np.abs(pixels_of(figure)[2 * place + 1] - wanted)
        assert gap.max() < 2 / 255  # a value between two colours may take either
        assert gap.mean() < 1e-5


def test_methods_of_one_name_keep_their_columns(vit: ClipAdapter) -> None:
    figure = figures.compare(photo(), "a horse", models=vit, methods=["last-grad", "last-grad"])
    assert {"last-grad", "last-grad (2)"} <= set(lines_of(figure))


# signs


def test_signs_has_a_row_a_model_and_target(vit: ClipAdapter, resnet: ClipAdapter) -> None:
    figure = figures.signs(photo(), ["a horse", "a dog"], references=photo(3), models=[vit, resnet])
    assert len(pixels_of(figure)) == 2 * 3 * 3 + 2
    lines = lines_of(figure)
    assert lines.count("small ViT (last-grad)") == 3  # one for each target
    assert lines.count("(grad-cam)") == 3  # in a line of its own


def test_the_signs_of_a_row_share_a_scale_unless_told_otherwise(vit: ClipAdapter) -> None:
    found = explain(photo(), "a horse", model=vit, method="last-grad", sign="both")
    both = found.heatmap("bicubic")
    shared = pixels_of(figures.signs(photo(), "a horse", models=vit, cmap="viridis"))
    each = pixels_of(figures.signs(photo(), "a horse", models=vit, cmap="viridis", scale="each"))
    picture = found.images[0].movedim(0, -1).numpy()
    for place, sign in ((1, "positive"), (2, "negative")):
        own = maps.normalize(enlarged(found.maps[sign], 32))
        for shown, heatmap in ((shared, both[sign]), (each, own)):
            wanted = blend(picture, heatmap[0, 0].numpy(), colormap("viridis"), 0.9)
            np.testing.assert_allclose(shown[place], wanted, atol=1e-3)


# emotions


def probe(size: int = 24) -> EmotionProbe:
    rows = np.random.default_rng(1).normal(size=(len(CLASSES), size))
    return EmotionProbe(rows, np.zeros(len(CLASSES)))


def test_emotions_has_a_row_a_model_and_a_column_an_emotion(
    vit: ClipAdapter, resnet: ClipAdapter
) -> None:
    figure = figures.emotions(photo(), [probe(), probe()], models=[vit, resnet])
    assert len(figure.axes) == 2 * 9
    lines = lines_of(figure)
    assert all(lines.count(name) == 2 for name in EMOTIONS)
    assert sum("peak 100%" in line for line in lines) >= 2


def test_some_emotions_can_be_chosen(vit: ClipAdapter) -> None:
    figure = figures.emotions(
        [photo(), photo(1)], probe(), names=["awe", "fear"], models=vit, scale="shared"
    )
    assert len(figure.axes) == 2 * 3


def test_emotions_need_a_probe_for_each_model(vit: ClipAdapter) -> None:
    with pytest.raises(InputError, match="a probe for each of the 2 models"):
        figures.emotions(photo(), probe(), models=[vit, vit])


def test_one_model_with_two_probes_shows_both(vit: ClipAdapter) -> None:
    other = EmotionProbe(-probe().weights, np.zeros(len(CLASSES)))
    shown = pixels_of(figures.emotions(photo(), [probe(), other], names="awe", models=[vit, vit]))
    assert not np.array_equal(shown[1], shown[3])


# words


def test_words_has_a_row_a_model_with_its_own_norms(vit: ClipAdapter, resnet: ClipAdapter) -> None:
    figure = figures.words(photo(), "a horse", models=[vit, resnet])
    lines = lines_of(figure)
    assert len(figure.axes) == 2 * 4
    for clip in (vit, resnet):
        for norm in targets.words(clip, "a horse").norms.tolist():
            assert f"norm {norm:.2f}" in lines
    assert any("dimmed by their norms" in line for line in lines)


def test_words_can_be_shown_in_full_and_picked(vit: ClipAdapter) -> None:
    plain = figures.words(photo(), "a horse and a dog", picked=["horse", "dog"], models=vit)
    full = figures.words(
        photo(), "a horse and a dog", picked=["horse", "dog"], models=vit, scale="each"
    )
    assert len(plain.axes) == len(full.axes) == 4
    strongest = [
        any(np.array_equal(one, other) for other in pixels_of(plain)) for one in pixels_of(full)
    ]
    assert strongest.count(False) == 1  # the weaker word


# average


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    images = folders.make_images(folder / "images", count=3)
    model = folders.make_vit(folder / "vit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_FINE", 32)
        run_study(folders.config_of(images, folder / "out", model))
    return folder / "out"


def test_average_draws_the_mean_maps_of_a_study(study: Path) -> None:
    figure = figures.average(study)
    [file] = (study / "mean_maps").iterdir()
    with np.load(file) as found:
        mean = enlarged(torch.from_numpy(found["stretched"]).float(), 224).numpy()
    share = (mean - mean.min()) / (mean.max() - mean.min())
    np.testing.assert_allclose(
        pixels_of(figure)[1], colormap(HEAT)(share[1])[..., :3], atol=2 / 255
    )
    lines = lines_of(figure)
    assert {"a horse", "a dog", "mean of min-max maps of 3 images"} <= set(lines)
    assert any("(last-grad)" in line for line in lines)


def test_average_takes_several_studies_and_some_targets(study: Path) -> None:
    figure = figures.average([study, study], names="a dog", cmap="jet")
    assert len(figure.axes) == 2


def test_average_says_what_is_no_study(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no study; 'captum-clip study statistics"):
        figures.average(tmp_path)
    with pytest.raises(TargetError, match="no target 'a cat'; its targets are a horse, a dog"):
        figures.average(study, names=["a cat"])
    with pytest.raises(InputError, match="at least one folder"):
        figures.average([])
    (tmp_path / "manifest.json").write_bytes((study / "manifest.json").read_bytes())
    with pytest.raises(InputError, match="not finished"):
        figures.average(tmp_path)
    (tmp_path / "statistics.csv").touch()
    with pytest.raises(InputError, match="no study that can be read"):
        figures.average(tmp_path)


# All of them


def test_models_that_see_images_of_other_shapes_stand_side_by_side(vit: ClipAdapter) -> None:
    wide = builders.open_clip_vit(image_size=(32, 64)).load(name="wide")
    figure = figures.words(photo(), "horse", models=[vit, wide])
    assert {shape.shape[:2] for shape in pixels_of(figure)} == {(32, 64)}
    assert (pixels_of(figure)[0][:, :16] == 1).all()  # the margin of the square image


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda clip: figures.signs([], "a", models=clip), "at least one image"),
        (lambda clip: figures.signs(photo(), models=clip), "neither"),
        (lambda clip: figures.signs(photo(), "a", models=[]), "at least one model"),
        (lambda clip: figures.signs(photo(), "a", models=clip, scale=BAD), "a scale of shared"),
        (lambda clip: figures.compare(photo(), "a", models=clip, methods="kam"), "expected one of"),
        (
            lambda clip: figures.words(photo(), "a", models=clip, methods="grad-cam"),
            "none of the methods grad-cam fits small ViT",
        ),
        (lambda clip: figures.layers(photo(), "a", model=clip, rows=BAD), "rows of cls, sum"),
    ],
)
def test_figures_say_what_is_wrong(vit: ClipAdapter, draw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(vit)


def test_maps_stretched_as_one_keep_their_order() -> None:
    first, second = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[2.0, 4.0]]])
    one, other = subjects.min_max([first, second], shared=True)
    torch.testing.assert_close(one, first / 4)
    torch.testing.assert_close(other, second / 4)
