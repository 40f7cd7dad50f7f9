"""A map lies on the photo that was given, whatever its processor cut off or padded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision import transforms
from transformers import CLIPImageProcessor

from captum_clip import explain, load_clip, maps
from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.explaining.explanation import Explanation
from captum_clip.explaining.regions import lay_on_photos, normalized, preprocess
from captum_clip.models import ClipAdapter
from captum_clip.models.images import crop_of
from tests import builders
from tests.figure_parts import pixels_of
from tests.models.test_geometry import PROCESSORS
from tests.samples import picture, uniform


@pytest.fixture(scope="module")
def vit() -> ClipAdapter:
    adapter: ClipAdapter = builders.hf_vit().load()
    return adapter


# EfficientNet's divides by the deviation whatever it is told
READABLE = [name for name in PROCESSORS if "no resize" not in name and name != "efficientnet"]


def ramps(height: int, width: int) -> Image.Image:
    """Red says the row and green the column, from 0 to 255."""
    rows, columns = np.mgrid[:height, :width]
    values = [255 * (rows + 0.5) / height, 255 * (columns + 0.5) / width, 0 * rows]
    return Image.fromarray(np.stack(values, -1).round().astype(np.uint8))


def gray_part(image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where an image (H, W, 3) has no colors."""
    return np.asarray(np.ptp(image, axis=-1) < 1e-3)


# Geometry


@pytest.mark.parametrize("size", [(90, 64), (33, 57)])
def test_a_crop_gives_where_each_pixel_of_the_image_lies_in_the_photo(
    size: tuple[int, int],
) -> None:
    for name in READABLE:
        check_crop(PROCESSORS[name], size)


def check_crop(processor: Any, size: tuple[int, int]) -> None:
    """The middle pixel comes from where the crop says."""
    photo, crop = ramps(*size), crop_of(processor, size)
    if hasattr(processor, "transforms"):
        kept = [t for t in processor.transforms if type(t).__name__ != "Normalize"]
        pixels = transforms.Compose(kept)(photo).numpy()
    else:
        pixels = np.asarray(processor(images=[photo], do_normalize=False)["pixel_values"][0])
    if pixels.dtype == np.uint8:
        pixels = pixels / 255
    left, top, right, bottom = crop.box
    height, width = pixels.shape[-2:]
    row, column = height // 2, width // 2  # in the middle nothing is padded
    at = (top + (row + 0.5) * (bottom - top) / height) / size[0]
    assert pixels[0, row, column] == pytest.approx(at, abs=0.03)
    at = (left + (column + 0.5) * (right - left) / width) / size[1]
    assert pixels[1, row, column] == pytest.approx(at, abs=0.03)


def test_a_crop_of_the_middle_is_where_it_is() -> None:
    crop = crop_of(PROCESSORS["fast"], (40, 80))  # to 32 x 64, of which the middle 32
    boxes = [crop.box, crop.of_photo((32, 32)), crop.scaled((80, 160))]
    assert boxes == [(20, 0, 60, 40), (-16, 0, 48, 32), (40, 0, 120, 80)]
    assert [crop_of(PROCESSORS[n], (40, 80)).is_whole for n in ("fast", "siglip")] == [False, True]


def test_uncrop_is_upsample_on_the_box() -> None:
    raw = uniform(2, 3, 7, 5)
    modes: list[Any] = ["bilinear", "bicubic", "nearest"]
    for mode in modes:
        laid = maps.uncrop(raw, (10, 20, 60, 90), (100, 80), mode=mode, clamp=True)
        inner = maps.upsample(raw, (70, 50), mode=mode, clamp=True)
        torch.testing.assert_close(laid[..., 20:90, 10:60], inner)
        assert laid.sum() == pytest.approx(float(inner.sum()), rel=1e-5)
        beyond = maps.uncrop(raw, (-10, -20, 40, 50), (40, 30), mode=mode, clamp=True)
        torch.testing.assert_close(beyond, inner[..., 20:60, 10:40])
    assert maps.inside((3.6, 0, 3.9, 9), (9, 9))[1] == slice(3, 4)
    with pytest.raises(InputError, match="a box that overlaps an image"):
        maps.uncrop(raw, (50, 0, 60, 10), (40, 30))


def test_a_map_is_normalized_over_what_lies_in_the_photo() -> None:
    raw = torch.tensor([[[9.0, 9.0], [1.0, 3.0], [9.0, 9.0]]])
    heatmap = normalized({"positive": raw}, (6, 4), ("nearest", None), (0, 0, 4, 6), (0, 2, 4, 4))
    expected = torch.zeros(1, 6, 4)
    expected[0, 2:4, 2:] = 1
    assert torch.equal(heatmap["positive"], expected)
    assert raw.max() == 9


# Pictures


@pytest.mark.parametrize("size", [(200, 60), (1500, 2100)])
def test_a_map_lies_on_the_whole_photo(vit: ClipAdapter, size: tuple[int, int]) -> None:
    photo = ramps(*size)
    found = explain(photo, ["a horse", "a dog"], model=vit)
    plain, *drawn = pixels_of(found.plot(original=True))
    assert len(drawn) == 2
    assert max(plain.shape) == min(max(size), 1024)
    assert plain.shape[1] / plain.shape[0] == pytest.approx(size[1] / size[0], rel=0.02)
    rows, columns = maps.inside(found.crops[0].scaled(plain.shape[:2]), plain.shape[:2])
    seen = np.zeros(plain.shape[:2], dtype=bool)
    seen[rows, columns] = True
    inside = np.asarray(photo.resize(plain.shape[1::-1]), dtype=np.float32) / 255
    np.testing.assert_allclose(plain[seen], inside[seen], atol=1e-6)
    assert gray_part(plain)[~seen].all()
    assert pixels_of(found.plot(original=False))[0].shape == (32, 32, 3)


def test_a_heatmap_is_had_at_the_size_of_the_photos(vit: ClipAdapter) -> None:
    found = explain([ramps(400, 120), ramps(400, 120)], "a horse", model=vit)
    heatmap = found.heatmap("bicubic", original=True)["positive"]
    _, drawn = lay_on_photos(found.photos, found.crops, found.maps, ("bicubic", None))
    assert torch.equal(heatmap, torch.stack(drawn["positive"]))  # of photos that are small enough
    apart = explain([ramps(400, 120), ramps(40, 50)], "a horse", model=vit)
    with pytest.raises(InputError, match=r"differ in height and width.*explanation\[0\]"):
        apart.heatmap(original=True)
    assert apart[1].heatmap(original=True)["positive"].shape == (1, 1, 40, 50)


def test_a_photo_on_its_side_is_drawn_upright(vit: ClipAdapter, tmp_path: Path) -> None:
    upright, path = ramps(60, 40), tmp_path / "photo.png"
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(path, exif=exif)
    found, straight = (explain(p, "a horse", model=vit) for p in (path, upright))
    assert found.crops == straight.crops
    assert found.crops[0].size == (60, 40)
    drawn = [pixels_of(each.plot(original=True)) for each in (found, straight)]
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.filterwarnings("ignore:.*drops transparency")
@pytest.mark.parametrize("whole", [False, True])
def test_a_photo_is_drawn_with_the_colors_that_its_model_saw(
    vit: ClipAdapter, whole: bool, tmp_path: Path
) -> None:
    """Where the preprocessing drops transparency, as OpenCLIP's does, black for nothing."""
    path, photo = tmp_path / "photo.png", Image.new("RGBA", (64, 64), (200, 30, 40, 0))
    photo.paste((200, 30, 40, 128), (0, 0, 32, 64))
    photo.save(path)
    white = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40})
    looks = {
        white: [(227, 142, 147), (255, 255, 255)],
        image_transform(40, is_train=False): [(200, 30, 40), (0, 0, 0)],
    }
    for processor, colors in looks.items():
        clip = load_clip(vit.model, processor=processor)
        seen = preprocess(clip, path, whole=whole)
        drawn, _ = lay_on_photos(seen.photos, seen.crops, {}, ("nearest", None))
        for image in (drawn[0], clip.denormalize(seen.pixels)[0]):
            for half, color in zip(image.chunk(2, dim=-1), colors, strict=True):
                middle = (255 * half[:, 20, half.shape[-1] // 2]).tolist()
                assert middle == pytest.approx(color, abs=1.01)


def test_every_figure_takes_photos(vit: ClipAdapter) -> None:
    for options in ({"words": True}, {"side": "text"}, {"side": "both"}):
        given: dict[str, Any] = options
        found = explain(ramps(40, 80), "a horse", model=vit, **given)
        assert pixels_of(found.plot(original=True))[0].shape == (40, 80, 3)


# Whole


@pytest.mark.parametrize("size", [(40, 80), (80, 41)])
def test_a_whole_photo_is_padded_to_a_square(vit: ClipAdapter, size: tuple[int, int]) -> None:
    seen = preprocess(vit, ramps(*size), whole=True)
    [crop] = seen.crops
    left, top, right, bottom = crop.box
    assert right - left == pytest.approx(max(size), rel=0.02)
    assert bottom - top == pytest.approx(max(size), rel=0.03)
    assert left <= 0
    assert top <= 0
    assert right >= size[1]
    assert bottom >= size[0]
    mean = vit.denormalize(torch.zeros(1, 3, 1, 1))
    image = vit.denormalize(seen.pixels)
    free = torch.ones(32, 32, dtype=torch.bool)
    rows, columns = maps.inside(crop.of_photo((32, 32)), (32, 32))
    free[max(rows.start - 1, 0) : rows.stop + 1, max(columns.start - 1, 0) : columns.stop + 1] = 0
    torch.testing.assert_close(
        image[0][:, free], mean[0, :, 0].expand(-1, int(free.sum())), atol=0.03, rtol=0
    )


def test_the_map_of_the_padding_is_left_out(vit: ClipAdapter) -> None:
    found = explain(ramps(20, 80), "a horse", model=vit, whole=True)
    heatmap = found.heatmap()["positive"][0, 0]
    assert not heatmap[:12].any()
    assert not heatmap[20:].any()
    assert heatmap[12:20].max() == 1
    assert heatmap[12:20].min() == 0
    laid = pixels_of(found.plot(original=True))
    assert laid[0].shape == (20, 80, 3)
    assert not gray_part(laid[0]).all(axis=0).any()  # all of it was seen
    square = explain(ramps(40, 40), "a horse", model=vit)
    torch.testing.assert_close(
        explain(ramps(40, 40), "a horse", model=vit, whole=True).scores, square.scores
    )


# Files


def test_a_file_keeps_where_the_images_lie_in_their_photos(
    vit: ClipAdapter, tmp_path: Path
) -> None:
    photo = ramps(40, 80)
    found = explain([photo, photo], "a horse", model=vit)
    back = Explanation.load(found.save(tmp_path / "a.npz"))
    assert back.crops == found.crops
    assert back.photos == ()
    with pytest.raises(InputError, match=r"comes from a file.*plot\(original='photo.jpg'\)"):
        back.plot(original=True)
    with pytest.raises(
        InputError, match=r"\[\(40, 80\), \(40, 80\)\], but the photos .* \[\(40, 80\)\]"
    ):
        back.plot(original=photo)
    given = pixels_of(back.plot(original=[photo, photo]))
    for one, other in zip(given, pixels_of(found.plot(original=True)), strict=True):
        np.testing.assert_allclose(one, other)


# What cannot be


def test_tensors_have_no_photo(vit: ClipAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    found = explain(vit.preprocess(picture()), "a horse", model=vit)
    with pytest.raises(InputError, match="came as preprocessed tensors; explain files"):
        found.plot(original=True)
    with pytest.raises(InputError, match=r"^heatmap: .* preprocessed tensors"):
        found.heatmap(original=True)
    with pytest.raises(InputError, match="`whole=True` pads images before"):
        explain(vit.preprocess(picture()), "a horse", model=vit, whole=True)
    with pytest.raises(InputError, match="do not belong together"):
        replace(found, photos=(picture(), picture()))

    def unknown(*_: Any) -> Any:
        raise UnsupportedModelError("unknown")

    monkeypatch.setattr("captum_clip.explaining.regions.crop_of", unknown)
    found = explain(picture(), "a horse", model=vit)
    with pytest.raises(InputError, match=r"it is not known how the processor of .* crops them"):
        found.plot(original=True)


def test_both_signs_of_a_map_share_one_scale() -> None:
    raw = {"positive": torch.tensor([[[0.0, 4.0]]]), "negative": torch.tensor([[[1.0, 0.0]]])}
    found = normalized(raw, (1, 2), ("nearest", None), (0, 0, 2, 1))
    assert found["positive"].tolist() == [[[0, 1]]]
    assert found["negative"].tolist() == [[[0.25, 0]]]


def test_a_cell_is_drawn_where_its_pixels_are(vit: ClipAdapter) -> None:
    found = explain(ramps(40, 80), "a horse", model=vit)
    one = torch.zeros(1, 1, 4, 4)
    one[..., 0, 3] = 1
    _, heatmap = lay_on_photos(found.photos, found.crops, {"positive": one}, ("nearest", None))
    expected = torch.zeros(40, 80)
    expected[:10, 50:60] = 1  # the crop begins at column 20, a cell has 10 pixels
    assert torch.equal(heatmap["positive"][0][0], expected)


def test_photos_of_different_sizes_share_a_picture(vit: ClipAdapter) -> None:
    found = explain([ramps(40, 80), ramps(60, 40)], "a horse", model=vit, sign="both", batch_size=1)
    assert [crop.size for crop in found.crops] == [(40, 80), (60, 40)]
    drawn = pixels_of(found.plot(original=True))
    assert {image.shape for image in drawn} == {(60, 80, 3)}
    assert (drawn[0][:9] == 1).all()  # white beside a photo of another shape


def test_a_file_with_an_impossible_crop_is_refused(vit: ClipAdapter, tmp_path: Path) -> None:
    path = explain(ramps(40, 80), "a horse", model=vit).save(tmp_path / "a.npz")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    about = json.loads(str(arrays["about"]))
    boxes = [(20, 0, 20, 40), (90, 0, 99, 40), (0, 0, np.inf, 40)]
    for crop in (*(((40, 80), box) for box in boxes), ((0, 0), (0, 0, 0, 0)), (0,)):
        arrays["about"] = np.array(json.dumps({**about, "crops": [crop]}))
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=r"a\.npz: not a file of Explanation\.save"):
            Explanation.load(path)
