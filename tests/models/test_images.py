"""Images of any kind become the RGB images that a person would see."""

from __future__ import annotations

import contextlib
import io
import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import Compose, PILToTensor
from transformers import CLIPImageProcessor, SiglipImageProcessor

from captum_clip.checks import limit_pixels
from captum_clip.errors import InputError
from captum_clip.files import as_pil, check_size
from captum_clip.models.images import check_images, is_preprocessed, process

RED, GRAY = (200, 30, 40), (90, 90, 90)


def solid(mode, color, size=(6, 4)):
    return Image.new(mode, size, color)


def pixel(image):
    (picture,) = as_pil(image)
    assert picture.mode == "RGB"
    return picture.getpixel((0, 0))


def gradient():
    """An RGB image of 6 x 4 with every pixel another color."""
    values = np.arange(72, dtype=np.uint8).reshape(4, 6, 3) * 3
    return Image.fromarray(values)


COLORS_OF_MODES = [
    ("RGB", RED, RED),
    ("L", 90, GRAY),
    ("1", 1, (255, 255, 255)),
    ("LA", (90, 255), GRAY),
    ("La", (90, 255), GRAY),
    ("RGBA", (*RED, 255), RED),
    ("RGBa", (*RED, 255), RED),
    ("RGBA", (*RED, 0), (255, 255, 255)),
    ("LA", (0, 0), (255, 255, 255)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("I;16", 90 * 257, GRAY),
    ("I", 90 * 257, GRAY),
    ("I", 65535, (255, 255, 255)),
]


def test_pil_modes_become_rgb():
    for mode, color, expected in COLORS_OF_MODES:
        assert pixel(solid(mode, color)) == expected, mode


def test_palettes_become_rgb_with_their_transparency():
    picture = solid("RGB", RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(picture) == RED
    picture.info["transparency"] = picture.getpixel((0, 0))
    assert pixel(picture) == (255, 255, 255)


def test_images_are_neither_changed_nor_shared():
    original = gradient()
    (picture,) = as_pil(original)
    picture.putpixel((0, 0), (1, 2, 3))
    assert original.getpixel((0, 0)) == (0, 3, 6)


def test_exif_orientation_is_applied(tmp_path):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation in range(1, 9):
        stored = gradient().transpose(undo[orientation]) if orientation in undo else gradient()
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "turned.png"
        stored.save(path, exif=exif)
        (picture,) = as_pil(path)
        assert np.array_equal(np.asarray(picture), np.asarray(gradient())), orientation


def test_files_of_several_formats_are_read_and_closed(tmp_path):
    for suffix in (".png", ".bmp", ".tiff", ".webp", ".gif"):
        path = tmp_path / f"picture{suffix}"
        solid("RGB", RED).save(path, **({"lossless": True} if suffix == ".webp" else {}))
        assert pixel(str(path)) == RED
        assert pixel(path) == RED
        path.unlink()


def test_sixteen_bit_files_are_scaled(tmp_path):
    path = tmp_path / "gray.png"
    Image.fromarray(np.full((4, 6), 90 * 257, np.uint16)).save(path)
    assert pixel(path) == GRAY
    [kept] = as_pil(path, keep_mode=True)
    assert kept.mode == "L"


def of_mode(mode):
    """An image with noise in each channel, as its file is read; of "turned" EXIF says how."""
    numbers = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    image, options, exif = Image.fromarray(numbers), dict[str, Any](), Image.Exif()
    mode, _, kind = mode.partition(", ")
    if mode not in ("RGBA", "LA"):
        image = image.convert("RGB")
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    if kind == "transparent":
        options["transparency"] = (
            bytes(range(0, 240, 15)) if mode == "P" else image.getpixel((0, 0))
        )
    elif kind == "turned":
        exif[0x0112] = 6
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, "TIFF" if mode == "CMYK" else "PNG", **options)
    return Image.open(file)


MODES = [
    *("RGBA", "LA", "P, transparent", "RGB, transparent", "CMYK", "RGBA, turned"),
]


@pytest.mark.filterwarnings("ignore:.*drops transparency", "ignore:Palette images")
@pytest.mark.parametrize("mode", MODES)
def test_a_processor_gets_what_its_library_gives_it(mode):
    """Bit for bit; OpenCLIP resizes before it makes RGB, transformers puts the image on white."""
    image = of_mode(mode)
    upright, read = ImageOps.exif_transpose(image), as_pil(image, keep_mode=True)
    for processor in (CLIPImageProcessor(), SiglipImageProcessor()):
        expected = processor(images=upright, return_tensors="pt")["pixel_values"]
        assert torch.equal(process(processor, read), expected)
    processor = image_transform(64, is_train=False)
    assert torch.equal(process(processor, read)[0], processor(upright))


def test_dropped_transparency_is_told_once_for_each_processor():
    clear, solid_one = solid("RGBA", (*RED, 0)), solid("RGBA", (*RED, 255))
    for _ in range(2):
        processor = image_transform(8, is_train=False)
        process(processor, [solid_one])
        with pytest.warns(UserWarning, match=r"drops transparency.*alpha_composite") as told:
            process(processor, [clear, clear])
        assert len(told) == 1
        process(processor, [clear])
    process(CLIPImageProcessor(), [clear])  # puts it on white, and says nothing


def test_a_processor_that_makes_no_rgb_gets_it_on_white():
    for processor in (PILToTensor(), Compose([PILToTensor()])):
        made = process(processor, [solid("RGBA", (*RED, 0)), solid("P", 0), solid("CMYK", 0)])
        assert made.shape == (3, 3, 4, 6)
        assert made.amin((1, 2, 3)).tolist() == [255, 0, 255]


ARRAYS = {
    "(H, W)": np.full((4, 6), 90, np.uint8),
    "(H, W, 1)": np.full((4, 6, 1), 90, np.uint8),
    "(1, H, W)": np.full((1, 4, 6), 90, np.uint8),
    "(H, W, 2)": np.stack([np.full((4, 6), v, np.uint8) for v in (90, 255)], -1),
    "(H, W, 3)": np.full((4, 6, 3), 90, np.uint8),
    "(3, H, W)": np.full((3, 4, 6), 90, np.uint8),
    "(H, W, 4)": np.stack([np.full((4, 6), v, np.uint8) for v in (90, 90, 90, 255)], -1),
    "uint16": np.full((4, 6, 3), 90 * 257, np.uint16),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_tensors_become_rgb(name):
    array = ARRAYS[name]
    assert pixel(array) == GRAY
    assert as_pil(array)[0].size == (6, 4)
    assert pixel(torch.from_numpy(array)) == GRAY
    assert pixel([array]) == GRAY


def test_channels_keep_their_order():
    array = np.asarray(gradient())
    for given in (array, array.transpose(2, 0, 1), torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert np.array_equal(np.asarray(as_pil(given)[0]), array)


def test_bool_masks_become_black_and_white():
    assert pixel(np.ones((4, 6), bool)) == (255, 255, 255)
    assert pixel(torch.zeros(4, 6, dtype=torch.bool)) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(5, 4, 6, 3), (5, 3, 4, 6)])
def test_batches_become_several_images(shape):
    pictures = as_pil(np.zeros(shape, np.uint8))
    assert [picture.size for picture in pictures] == [(6, 4)] * 5


def test_lists_may_mix_kinds(tmp_path):
    path = tmp_path / "picture.png"
    solid("L", 90).save(path)
    pictures = as_pil([path, solid("L", 90), ARRAYS["(H, W)"], torch.from_numpy(ARRAYS["(H, W)"])])
    assert [picture.getpixel((0, 0)) for picture in pictures] == [GRAY] * 4


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, format=suffix[1:].replace("jpg", "jpeg"))
    path = tmp_path / f"half{suffix}"
    path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    with pytest.raises(InputError, match=rf"half\{suffix} cannot be read.*truncated"):
        as_pil(path)


@pytest.mark.parametrize("size", [(0, 4)])
def test_images_without_pixels_are_refused(size):
    with pytest.raises(InputError, match=f"has no pixels, {size[0]} x {size[1]}"):
        as_pil(Image.new("RGB", size))


@pytest.mark.parametrize("factor", [1, 3])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, factor):
    path = tmp_path / "bomb.png"
    Image.new("1", (64, 64 * factor)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)  # warns, and raises beyond twice
    most = {1: "4,095", 3: "8,190"}[factor]
    with pytest.raises(InputError, match=rf"bomb\.png unpacks to more than {most} pixels"):
        as_pil(path)
    as_pil(np.zeros((64, 64 * factor), np.uint8))  # takes no more memory than it does


def test_limits_of_pixels_hold_within_their_block_and_in_the_check_itself(tmp_path):
    image = tmp_path / "a.png"
    solid("L", 9, (40, 30)).save(image)
    with limit_pixels(1200), limit_pixels(None):
        as_pil(image)
        check_size(50, 50, "photo.jpg", 2500)
        with limit_pixels(1199), pytest.raises(InputError) as refused:
            as_pil(image)
    assert refused.match(r"a\.png unpacks to more than 1,199 pixels.* raise `max_pixels` if you")
    as_pil(image)
    check_size(9000, 9000, "photo.jpg")
    with pytest.raises(
        InputError, match=r"photo\.jpg unpacks to more than 89,478,485 pixels.* or PIL"
    ):
        check_size(9500, 9500, "photo.jpg")


LARGE = {
    "RGB": "png",
    "LA": "png",
    "P": "png",
    "I;16": "png",
    "CMYK": "tiff",
}


@pytest.mark.parametrize("mode", LARGE)
def test_large_files_come_as_means_of_their_pixels(tmp_path, monkeypatch, mode):
    """In every mode, also where a strip does not end with the image."""
    monkeypatch.setattr("captum_clip.files._STRIP", 32)
    random = np.random.default_rng(0)
    colors = Image.fromarray(random.integers(0, 256, (90, 75, 4), np.uint8), "RGBA")
    image = Image.fromarray(random.integers(0, 65536, (90, 75), np.uint16))
    if mode != "I;16":
        image = colors.convert("RGB").convert(mode) if mode in ("1", "CMYK") else colors
        image = image.convert("RGB").quantize(9) if mode == "P" else image.convert(mode)
    path = tmp_path / f"a.{LARGE[mode]}"
    options: dict[str, Any] = {"transparency": 3} if mode == "P" else {}
    image.save(path, **options)
    [whole], [exact], [half] = as_pil(path), as_pil(path, 90 * 75), as_pil(path, 90 * 75 - 1)
    assert exact.tobytes() == whole.tobytes()
    assert half.size == (38, 45)
    np.testing.assert_array_equal(half, whole.reduce(2))


def test_large_photos_are_not_unpacked_at_their_size(tmp_path, monkeypatch):
    """Of a JPEG the reader makes a quarter; the right way up."""
    upright, exif = gradient().resize((400, 300), Image.Resampling.BICUBIC), Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(tmp_path / "a.jpg", quality=95, exif=exif)
    loaded = []
    load = JpegImageFile.load

    def noted(file: JpegImageFile) -> Any:
        loaded.append(file.size)
        return load(file)

    monkeypatch.setattr(JpegImageFile, "load", noted)
    [image] = as_pil(tmp_path / "a.jpg", 100 * 75)
    assert image.size == (100, 75)
    assert {*loaded} == {(75, 100)}
    difference = np.asarray(image, int) - np.asarray(upright.reduce(4), int)
    assert np.abs(difference).mean() < 3


def test_float_arrays_are_refused_with_the_cure():
    with pytest.raises(InputError, match=r"array or tensor of float64 .*\(255 \* x\)"):
        as_pil(np.random.default_rng(0).random((4, 6, 3)))


def test_other_integers_are_refused():
    with pytest.raises(InputError, match=r"of int64 and shape \(4, 6\)"):
        as_pil(np.zeros((4, 6), np.int64))


@pytest.mark.parametrize("shape", [(7,), (5, 6, 7), (0, 4, 3)])
def test_shapes_without_sense_are_named(shape):
    with pytest.raises(InputError, match=rf"expected \(H, W\), .*, got ndarray \({shape[0]}, ?"):
        as_pil(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("images", [[], np.zeros((0, 4, 6, 3), np.uint8)])
def test_no_image_at_all_is_refused(images):
    with pytest.raises(InputError, match="no image at all"):
        as_pil(images)


@pytest.mark.parametrize("images", [3, None])
def test_other_things_are_refused_by_type(images):
    given = "None" if images is None else "3"
    with pytest.raises(InputError, match=f"expected a path, a PIL image.*got {given}"):
        as_pil(images)


def test_floating_tensors_count_as_preprocessed():
    tensor = torch.zeros(3, 4, 6)
    assert is_preprocessed(tensor)
    assert is_preprocessed([tensor, tensor.half()])
    assert not is_preprocessed(tensor.byte())
    assert not is_preprocessed([tensor.byte()])
    assert not is_preprocessed(np.zeros((3, 4, 6), np.float32))
    assert not is_preprocessed([])
    assert not is_preprocessed("picture.png")


def test_preprocessed_and_other_images_do_not_mix():
    with pytest.raises(InputError, match=r"in one list; .*two calls"):
        is_preprocessed([torch.zeros(3, 4, 6), gradient()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_check_images_accepts_finite_images(dtype):
    check_images(torch.zeros(2, 3, 4, 6, dtype=dtype))
    large = torch.full((2, 3, 4, 6), torch.finfo(dtype).max, dtype=dtype)
    check_images(large)  # the sum overflows, the values do not


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_check_images_finds_what_is_not_finite(dtype, value):
    images = torch.zeros(2, 3, 4, 6, dtype=dtype)
    images[1, 2, 3, 5] = value
    with pytest.raises(InputError, match=r"NaN or infinity"):
        check_images(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(3, 4, 6),
            r"\(B, 3, H, W\), got Tensor \(3, 4, 6\) .*; .* adds the batch dimension",
        ),
        (torch.zeros(2, 4, 4, 6), r"\(B, 3, H, W\), got Tensor \(2, 4, 4, 6\)"),
        (torch.zeros(0, 3, 4, 6), r"\(B, 3, H, W\), none of them empty, got Tensor \(0, 3, 4, 6\)"),
        (torch.zeros(1, 3, 4, 6, dtype=torch.uint8), r"floating-point .* got .* of torch\.uint8"),
        (np.zeros((1, 3, 4, 6)), "expected images as a tensor .* got ndarray"),
    ],
)
def test_check_images_names_what_is_wrong(images, message):
    with pytest.raises(InputError, match=message):
        check_images(images)


def test_half_transparent_pixels_are_half_white():
    assert pixel(solid("RGBA", (0, 0, 0, 128))) == (127, 127, 127)


def test_sixteen_bits_of_which_two_are_empty_get_a_warning():
    assert pixel(np.full((4, 6), 2**14, np.uint16)) == (64, 64, 64)
    for dark in (np.full((4, 6), 2**14 - 1, np.uint16), solid("I;16", 4095)):
        with pytest.warns(UserWarning, match="less than a quarter of its range, as 12-bit"):
            as_pil(dark)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no image file .*nothing\.png"):
        as_pil(tmp_path / "nothing.png")


def test_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path.name} is a folder"):
        as_pil(tmp_path)


def test_a_name_too_long_for_a_file_is_an_input_error():
    with pytest.raises(InputError, match="cannot be read"):
        as_pil("a horse and a dog " * 300)


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    with pytest.raises(InputError, match=r"notes\.png is not an image that Pillow can read"):
        as_pil(path)


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(InputError, match=r"empty\.png is not an image"):
        as_pil(path)


def test_broken_files_raise_nothing_else(tmp_path):
    generator = random.Random(0)
    buffers = {}
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        buffer = io.BytesIO()
        gradient().save(buffer, format=kind)
        buffers[kind] = buffer.getvalue()
    path = tmp_path / "broken"
    for kind, data in buffers.items():
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(generator.randint(1, 8)):
                broken[generator.randrange(len(broken))] = generator.randrange(256)
            path.write_bytes(bytes(broken[: generator.randint(len(broken) // 2, len(broken))]))
            with contextlib.suppress(InputError):
                assert as_pil(path), kind


def test_narrow_images_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    """Resized so that its shorter side is 224 pixels long, this one would take 36 GB."""
    path = tmp_path / "bomb.png"
    Image.new("1", (60000, 1)).save(path)
    assert path.stat().st_size < 1000
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was unpacked"))
    with pytest.raises(InputError, match=r"bomb\.png is too long and narrow, 60000 x 1; crop it"):
        as_pil(path)


@pytest.mark.parametrize("image", [solid("L", 9, (1, 201)), np.zeros((201, 1), np.uint8)])
def test_narrow_images_in_memory_are_refused(image):
    with pytest.raises(InputError, match="is too long and narrow, 1 x 201"):
        as_pil([image])
    assert as_pil(solid("L", 9, (1, 200)))


def test_a_named_pipe_is_refused_at_once(tmp_path):
    """Opened, it would wait for a writer for ever."""
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"pipe\.png is not a file but a pipe or a device"):
        as_pil(path)


def test_floating_images_are_refused():
    with pytest.raises(InputError, match=r"floating-point values, .* of unknown range"):
        as_pil(solid("F", 0.5))


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(InputError, match=r"outside 0 \.\.\. 65535"):
        as_pil(solid("I", 70000))


def test_check_images_finds_infinities_that_cancel():
    images = torch.zeros(1, 3, 4, 6)
    images[0, 0, 0, :2] = torch.tensor([float("inf"), -float("inf")])
    with pytest.raises(InputError, match="NaN or infinity"):
        check_images(images)
