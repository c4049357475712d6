"""Decoding of honest and broken files, and geometry that comes back to where it started."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.fused import augment
from pipeline.data.presets import PRESETS
from pipeline.errors import ImageError, ImageFormatError, ImageSizeError
from pipeline.imaging.decode import decode_bytes, image_size, read_image, turned
from pipeline.imaging.draw import zoom_factors
from pipeline.imaging.enlarge import nearest_runs
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.letterbox import place
from pipeline.imaging.masks import ColourMask, IndexMask, ShapeMask
from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes

DATA = Path(os.environ.get("TRIFOCAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([x * 4, y * 6, x + y], 2).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_every_allowed_format_decodes(kind):
    pixels, size = decode_bytes(encoded(picture(), kind), "x")
    assert size == (40, 60)
    assert np.abs(pixels.astype(int) - np.asarray(picture())).mean() < 12


@pytest.mark.parametrize(
    ("size", "factors"),
    [
        ((64, 64), (4, 4)),
        ((300, 200), (2, 2)),
        ((128, 256), (2, 2)),
        ((64, 900), (1, 1)),
        ((1, 40), (64, 19)),
        ((40, 1), (19, 64)),
    ],
)
def test_pictures_are_enlarged_to_be_seen_and_no_further(size, factors):
    assert zoom_factors(*size, 256) == factors


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_equal_pillows(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "JPEG", exif=exif, quality=95)
    from PIL import ImageOps

    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels, size = decode_bytes(data, "x")
    assert size == wanted.shape[:2]
    assert np.abs(pixels.astype(int) - wanted).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_and_foreign_bytes_are_errors(kind):
    data = encoded(picture(), kind)
    with pytest.raises(ImageError, match=r"cut\.img"):
        decode_bytes(data[: len(data) // 2], "cut.img")
    with pytest.raises(ImageError, match="allowed format"):
        decode_bytes(b"<html>not an image</html>", "page.jpg")
    with pytest.raises(ImageError, match="empty"):
        decode_bytes(b"", "none.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("missing", [1, 4, 12, 20, 40])
def test_a_file_cut_at_its_very_end_is_an_error_though_all_pixels_may_be_there(kind, missing):
    with pytest.raises(ImageError, match=r"cut\.img"):
        decode_bytes(encoded(picture(), kind)[:-missing], "cut.img")


@pytest.mark.skipif(sys.platform != "linux", reason="libtiff is found among the process's mapped files")
def test_a_broken_tiff_is_an_error_and_nothing_on_the_terminal():
    """In a process of its own: libtiff writes to the descriptor."""
    data = io.BytesIO()
    picture().save(data, "TIFF", compression="tiff_lzw")
    directory = struct.unpack("<I", data.getvalue()[4:8])[0]
    broken = data.getvalue()[:8] + b"\xff" * (directory - 8) + data.getvalue()[directory:]
    code = (
        "import sys\nfrom pipeline.errors import ImageError\nfrom pipeline.imaging.decode import decode_bytes\n"
        "try:\n    decode_bytes(sys.stdin.buffer.read(), 'broken.tif')\nexcept ImageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=broken, capture_output=True, check=True)
    assert done.stdout.startswith(b"broken.tif: cannot be decoded")
    assert done.stderr == b""


def test_sixteen_bits_are_scaled_and_alpha_lies_on_white():
    grey = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert abs(int(decode_bytes(encoded(grey, "PNG"), "x")[0].mean()) - 128) <= 1
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode_bytes(encoded(clear, "PNG"), "x")[0].min() == 255


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([[0, 0.5], [1, np.nan]], [[0, 127], [255, 0]]),
        ([[0, 2], [4, np.inf]], [[0, 127], [255, 255]]),
        ([[-3, -1], [-np.inf, -2]], [[0, 0], [0, 0]]),
        (np.asarray([[0, 100], [200, 50]], np.int32), [[0, 100], [200, 50]]),
        (np.asarray([[0, 32896], [65535, 257]], np.int32), [[0, 128], [255, 1]]),
        (np.asarray([[0, 1 << 30], [1 << 29, -5]], np.int32), [[0, 255], [127, 0]]),
    ],
)
def test_floats_and_long_integers_are_scaled_whatever_lies_among_them(values, wanted):
    dtype = values.dtype if isinstance(values, np.ndarray) else np.float32
    image = Image.fromarray(np.asarray(values, dtype))
    pixels, size = decode_bytes(encoded(image, "TIFF"), "x")
    assert size == (2, 2)
    assert pixels.tolist() == [[[value] * 3 for value in row] for row in wanted]


def float_file(values, orientation=1, order="<"):
    """A TIFF file of floats (H, W, C), its header before its pixels."""
    height, width, channels = values.shape
    count, pixels = 11, values.astype(f"{order}f4").tobytes()
    words = 8 + 2 + 12 * count + 4
    start = words + 2 * (2 * channels)
    shorts = [(256, width), (257, height), (258, words), (259, 1), (262, 2), (273, start), (274, orientation)]
    shorts += [(277, channels), (278, height), (279, len(pixels)), (339, words + 2 * channels)]
    data = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, count)
    for tag, value in shorts:
        if tag in {258, 339}:
            data += struct.pack(f"{order}HHII", tag, 3, channels, value)
        else:
            data += struct.pack(f"{order}HHII", tag, 4, 1, value)
    data += struct.pack(f"{order}I{2 * channels}H", 0, *[32] * channels, *[3] * channels)
    return data + pixels


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_in_several_channels_are_scaled_by_the_largest_and_turned(order, tmp_path):
    values = np.asarray([[[0, 1, 2], [4, np.nan, 0]], [[-1, 2, np.inf], [1, 1, 1]], [[4, 4, 4], [0, 0, 3]]], np.float32)
    wanted = [[[0, 63, 127], [255, 0, 0]], [[0, 127, 255], [63, 63, 63]], [[255, 255, 255], [0, 0, 191]]]
    pixels, size = decode_bytes(float_file(values, order=order), "x")
    assert pixels.tolist() == wanted
    assert size == (3, 2)
    path = tmp_path / "turned.tif"
    for orientation in range(1, 9):
        path.write_bytes(float_file(values, orientation, order))
        pixels, size = read_image(path)
        assert pixels.tolist() == turned(np.asarray(wanted), orientation).tolist()
        assert size == image_size(path) == pixels.shape[:2]
    clear = np.concatenate([np.full_like(values, 4), np.full((3, 2, 1), 0.5)], 2)
    clear[..., 1:3] = 0
    assert np.abs(decode_bytes(float_file(clear), "x")[0].astype(int) - [255, 128, 128]).max() <= 1


def test_floats_in_several_channels_are_refused_when_cut_or_too_large():
    data = float_file(np.ones((30, 20, 3), np.float32))
    for missing in (1, 100, 3600, len(data) - 100, len(data) - 9):
        with pytest.raises(ImageError, match=r"cut\.tif"):
            decode_bytes(data[:-missing], "cut.tif")
    with pytest.raises(ImageSizeError, match="20 x 30 is more than 500 pixels"):
        decode_bytes(data, "large.tif", max_pixels=500)


def test_half_transparent_pixels_are_mixed_with_white():
    half = Image.new("RGBA", (4, 4), (200, 0, 100, 128))
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        pixels = decode_bytes(encoded(half, kind, **options), "x")[0]
        assert np.abs(pixels.astype(int) - (227, 127, 177)).max() <= 1


def test_a_known_format_of_an_unreadable_kind_is_not_called_unknown():
    for data in (b"\x89PNG\r\n\x1a\n" + b"?" * 50, b"II*\0" + b"\xff" * 50, b"GIF89a" + b"\0" * 3):
        with pytest.raises(ImageError, match="broken header") as caught:
            decode_bytes(data, "x")
        assert not isinstance(caught.value, ImageFormatError)


def test_shrunk_decoding_keeps_enough_and_tells_the_full_size():
    pixels, size = decode_bytes(encoded(picture().resize((1200, 800)), "JPEG"), "x", at_least=300)
    assert size == (800, 1200)
    assert 300 <= max(pixels.shape) < 1200


@pytest.mark.skipif(not (DATA / "nasty").is_dir(), reason="the nasty files are not at hand")
def test_nasty_files_decode_or_are_told():
    for folder in ("not_images", "unsupported"):
        for path in (DATA / "nasty" / folder).iterdir():
            with pytest.raises(ImageError):
                read_image(path)
    for kind in ("Landscape", "Portrait"):
        upright = [read_image(DATA / "nasty" / "exif_rotated" / f"{kind}_{i}.jpg")[0].astype(int) for i in range(1, 9)]
        assert all(np.abs(other - upright[0]).mean() < 5 for other in upright)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(8, 900), st.integers(8, 900)), st.sampled_from([(320, 320), (64, 128)]), st.randoms())
def test_letterbox_there_and_back(source, target, random):
    frame = Letterbox.fit(source, target)
    x, y = (
        sorted(random.uniform(0, source[1]) for _ in range(2)),
        sorted(random.uniform(0, source[0]) for _ in range(2)),
    )
    box = np.asarray([[x[0], y[0], x[1], y[1]]], np.float32)
    assert np.abs(frame.to_source(frame.to_input(box)) - box).max() < 0.05
    assert frame.top >= 0
    assert frame.left >= 0
    assert max(frame.inner[0] / target[0], frame.inner[1] / target[1]) == 1


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_augmented_boxes_masks_and_pixels_move_together(preset):
    image = np.full((120, 160, 3), 20, np.uint8)
    mask = np.zeros((120, 160), np.uint8)
    image[40:80, 50:110] = 250
    mask[40:80, 50:110] = 1
    for seed in range(30):
        labels = {"objects": Boxes.of([[50, 40, 110, 80]], [0]), "surface": mask}
        view, moved = augment(image, labels, (96, 128), PRESETS["boxes"][preset], np.random.default_rng(seed))
        boxes, plane = moved["objects"], moved["surface"]
        assert view.shape == (96, 128, 3)
        ys, xs = np.nonzero(plane == 1)
        if len(boxes) == 0:
            continue
        hull = np.asarray([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        # A turned rectangle reaches further than the box that stands for most objects.
        assert np.abs(hull - boxes.xyxy[0]).max() < (3 if preset == "light" else 16)
        assert view[plane == 1].mean() > view[plane == 0].mean()


def test_masks_from_files_and_shapes(tmp_path):
    Image.fromarray(np.asarray([[0, 7], [9, 7]], np.uint8)).save(tmp_path / "i.png")
    assert IndexMask(tmp_path / "i.png", (0, 7)).read((2, 2)).tolist() == [[0, 1], [255, 1]]
    Image.fromarray(np.asarray([[[255, 0, 0], [0, 0, 9]]], np.uint8)).save(tmp_path / "c.png")
    assert ColourMask(tmp_path / "c.png", ((0, 0, 0), (255, 0, 0))).read((1, 2)).tolist() == [[1, 255]]
    rle = {"size": [2, 2], "counts": [1, 2, 1]}
    assert ShapeMask(((3, rle),)).read((2, 2)).tolist() == [[0, 3], [3, 0]]


@pytest.mark.parametrize("source", [(100, 100), (33, 50), (480, 640)])
def test_a_mask_there_and_back_is_not_shifted(source):
    rows, columns = np.mgrid[0 : source[0], 0 : source[1]]
    disc = (np.hypot(rows - source[0] / 2 + 0.5, columns - source[1] / 2 + 0.5) < min(source) / 3).astype(np.uint8)
    frame = Letterbox.fit(source, (96, 64))
    inside = place(disc, frame, IGNORE_INDEX, cv2.INTER_NEAREST_EXACT)
    for plane in (
        inside[frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]],
        nearest_runs(inside, frame).mask(),
    ):
        turned = plane != plane[::-1, ::-1]
        assert turned.mean() < 0.01  # the middle stays the middle


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_upright_size_is_that_of_the_pixels_in_every_format(ending, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{ending}"
    Image.new("RGB", (50, 30), (200, 10, 10)).save(path, exif=exif)
    wanted = (50, 30) if orientation >= 5 else (30, 50)
    pixels, size = read_image(path)
    assert pixels.shape[:2] == size == image_size(path) == wanted
