"""Images: every limit is checked on the header, every mode decodes, and patches equal transformers' own."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFile, ImageFont
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lakerank.errors import ConfigError
from lakerank.limits import Limits, Resize
from lakerank.model.api import load_reranker
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import (
    CLIP_MEAN,
    CLIP_STD,
    PatchShape,
    _decode_reduced,
    load_patches,
    load_pixels,
    open_header,
    resized,
)
from lakerank.model.preprocess.pixels import to_rgb
from lakerank.model.registry import family_named
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, DocumentGroup, Query, RejectReason
from oracles.reference import normalised

MakeImage = Callable[..., bytes]
RESIZES: tuple[Resize, ...] = ("pillow", "torch")
SHAPE = PatchShape()


def reason(data: bytes, **limits: int) -> RejectReason:
    with pytest.raises(RejectedInput) as caught:
        load_patches(data, Limits(**limits), SHAPE)
    return caught.value.reason


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, with no pixels behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def flat(colour: Any, mode: str = "RGB", size: tuple[int, int] = (56, 56), **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, **({"format": "PNG"} | options))
    return stream.getvalue()


@pytest.mark.parametrize("size", [(100, 37), (30, 2000), (1300, 901), (5, 5), (84, 84), (1, 200)])
def test_patches_equal_transformers(make_image: MakeImage, size: tuple[int, int]) -> None:
    data = make_image(*size)
    patches = load_patches(data, Limits(), SHAPE)
    values = normalised(patches.pixels, CLIP_MEAN, CLIP_STD)
    values = np.repeat(values[:, :, None], 2, axis=2).reshape(len(values), -1)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 602112})
    expected = processor(Image.open(io.BytesIO(data)), return_tensors="np")
    assert patches.grid == tuple(expected["image_grid_thw"][0, 1:])
    np.testing.assert_array_equal(values, expected["pixel_values"])


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_resized_keeps_its_promises(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    rows, columns = resized(height, width, 28, 3136, 602112)
    assert rows % 28 == columns % 28 == 0
    assert rows * columns >= 3136
    assert rows * columns <= 602112 or min(rows, columns) == 28


@pytest.mark.parametrize(
    ("image_format", "modes"),
    [
        ("PNG", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
        ("JPEG", ["1", "L", "RGB", "CMYK", "YCbCr"]),
        ("WEBP", ["1", "L", "LA", "P", "RGB", "RGBA"]),
        ("TIFF", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]),
        ("GIF", ["1", "L", "LA", "P", "RGB", "RGBA"]),
        ("BMP", ["1", "L", "P", "RGB", "RGBA"]),
    ],
)
def test_modes_and_formats(image_format: str, modes: list[str]) -> None:
    for mode in modes:
        data = flat(0, mode, size=(60, 60), format=image_format)
        assert load_patches(data, Limits(), SHAPE).pixels.shape == (16, 3, 14, 14), mode


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (flat((255, 0, 0, 0), "RGBA"), (255, 255, 255)),
        (flat((0, 0, 0, 128), "RGBA"), (127, 127, 127)),
        (flat((40, 0), "LA"), (255, 255, 255)),
        (flat(40 * 256, "I;16"), (40, 40, 40)),
        (flat(1, "1"), (255, 255, 255)),
        (flat((0, 255, 255, 0), "CMYK", format="TIFF"), (255, 0, 0)),
        (flat((10, 20, 30)), (10, 20, 30)),
    ],
)
def test_colours(data: bytes, expected: tuple[int, int, int]) -> None:
    pixels = load_patches(data, Limits(), SHAPE).pixels
    assert {tuple(pixel) for pixel in pixels.transpose(0, 2, 3, 1).reshape(-1, 3).tolist()} == {expected}


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (56, 56), 3)
    image.putpalette([0, 0, 0] * 256)
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=3)
    assert load_patches(stream.getvalue(), Limits(), SHAPE).pixels.min() == 255


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = flat((9, 9, 9), size=(280, 56), format="JPEG", exif=exif.tobytes())
    assert load_patches(data, Limits(), SHAPE).grid == (20, 4)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (56, 56), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for image_format in ("GIF", "WEBP", "TIFF"):
        stream = io.BytesIO()
        options = {"lossless": True} if image_format == "WEBP" else {}
        frames[0].save(stream, image_format, save_all=True, append_images=frames[1:], **options)
        assert load_patches(stream.getvalue(), Limits(), SHAPE).pixels[0, :, 0, 0].tolist() == [255, 0, 0]


def test_limits_are_read_from_the_header() -> None:
    assert reason(png_of(20_000, 20_000)) == RejectReason.IMAGE_TOO_LARGE
    assert reason(png_of(0, 10)) == RejectReason.IMAGE_ZERO_SIZE
    assert reason(png_of(2010, 10)) == RejectReason.IMAGE_ASPECT_RATIO
    assert reason(png_of(10, 2010)) == RejectReason.IMAGE_ASPECT_RATIO
    assert reason(png_of(2000, 10)) == RejectReason.IMAGE_UNDECODABLE, "within every limit, but without pixels"
    assert reason(flat(0), max_source_bytes=50) == RejectReason.IMAGE_TOO_LARGE
    assert reason(flat(0), max_source_pixels=56 * 56 - 1) == RejectReason.IMAGE_TOO_LARGE


def test_pillows_process_wide_settings_stay_and_do_not_decide() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    beyond = 2 * before[0] + 1  # where Pillow's own check raises
    image = open_header(png_of(beyond // 1000 + 1, 1000 * 150), Limits(max_source_pixels=10**12))
    assert image.size[0] * image.size[1] > beyond
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%PDF-1.7", b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_unsupported(data: bytes) -> None:
    assert reason(data) == RejectReason.IMAGE_UNSUPPORTED_FORMAT


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated(make_image: MakeImage, image_format: str) -> None:
    whole = make_image(200, 150, image_format=image_format)
    assert reason(whole[: len(whole) // 2]) == RejectReason.IMAGE_UNDECODABLE
    assert reason(whole[:12]) == RejectReason.IMAGE_UNDECODABLE


@given(st.data())
def test_damaged_bytes_never_raise_anything_else(make_image: MakeImage, data: st.DataObject) -> None:
    image_format = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]))
    damaged = bytearray(make_image(20, 20, image_format=image_format))
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=6)
    ):
        damaged[place] = value
    with contextlib.suppress(RejectedInput):
        load_patches(bytes(damaged), Limits(max_source_pixels=10**6), SHAPE)


def drawn_page(dots_per_inch: int, **options: Any) -> bytes:
    """Lines of words on white with two shapes, A4, as JPEG."""
    width, height = int(8.27 * dots_per_inch), int(11.69 * dots_per_inch)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=dots_per_inch * 11 // 72)
    for number, top in enumerate(range(dots_per_inch, height - dots_per_inch, dots_per_inch * 14 // 72)):
        line = " ".join(chr(97 + (number * 7 + place * 3) % 26) * (place % 6 + 1) for place in range(18))
        draw.text((dots_per_inch, top), line, fill=(20, 20, 60), font=font)
    draw.ellipse((dots_per_inch * 4, dots_per_inch * 6, dots_per_inch * 6, dots_per_inch * 8), fill=(30, 160, 60))
    stream = io.BytesIO()
    page.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def decoded_fully(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    rows, columns = resized(image.height, image.width, 28, 3136, 602112)
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.parametrize(
    ("dots_per_inch", "resize", "most"), [(400, "pillow", 20), (600, "pillow", 20), (300, "torch", 25)]
)
def test_a_large_jpeg_decoded_at_reduced_size_is_nearly_the_same(dots_per_inch: int, resize: Resize, most: int) -> None:
    data = drawn_page(dots_per_inch)
    apart = np.abs(load_pixels(data, Limits(resize=resize), SHAPE).astype(int) - decoded_fully(data))
    assert 1 < apart.max() <= most, "of 255 levels; 0, or 1 of torch, would mean that it was decoded at full size"
    assert apart.mean() <= 1


@pytest.mark.parametrize(("width", "height"), [(2480, 3508), (2550, 3300), (3508, 2480)])
def test_torch_is_given_a4_and_letter_at_300_dots_an_inch_at_half_size(width: int, height: int) -> None:
    page = Image.new("L", (width, height), "white")
    page.paste(0, (width // 2, 0, width, height))
    stream = io.BytesIO()
    page.save(stream, "JPEG", quality=90)
    for resize, scale in (("pillow", None), ("torch", 2)):
        image = open_header(stream.getvalue(), Limits())
        assert _decode_reduced(image, 28, Limits(resize=resize)) == scale
        assert image.size == (width // (scale or 1), height // (scale or 1))


@pytest.mark.parametrize("dots_per_inch", [90, 150, 200, 401])
def test_torch_moves_few_values_of_a_page_by_a_level(dots_per_inch: int) -> None:
    data = drawn_page(dots_per_inch)  # at 401 both are given half of it, and its last column is half a pixel's
    apart = np.abs(np.subtract(*(load_pixels(data, Limits(resize=name), SHAPE).astype(int) for name in RESIZES)))
    assert apart.max() == 1, "none at all would mean that Pillow resized it"
    assert apart.mean() < 0.01


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["RGB", "L", "LA", "P", "CMYK"]), st.integers(0, 99))
def test_torch_resizes_any_image_as_pillow_does_rows_before_columns(
    width: int, height: int, mode: str, seed: int
) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, "TIFF")
    pixels = load_pixels(stream.getvalue(), Limits(resize="torch"), SHAPE)
    narrow = to_rgb(Image.open(stream)).resize((pixels.shape[1], height), Image.Resampling.BICUBIC)
    expected = narrow.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 2


def test_a_grey_image_is_resized_as_the_colours_that_it_stands_for(make_image: MakeImage) -> None:
    grey = Image.open(io.BytesIO(make_image(301, 203))).convert("L")
    rows, columns = resized(203, 301, 28, 3136, 602112)
    expected = np.asarray(grey.convert("RGB").resize((columns, rows), Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    grey.save(stream, "PNG")
    assert np.array_equal(load_pixels(stream.getvalue(), Limits(), SHAPE), expected)


def test_who_resizes_is_part_of_the_name_of_a_scorer_of_images() -> None:
    images = CheckpointSpec("embedded")
    default, named, other = (
        identify(images, limits).fingerprint for limits in (Limits(), Limits(resize="pillow"), Limits(resize="torch"))
    )
    assert default == named != other
    assert "resize" not in Limits().identity()
    kalm = family_named("kalm-reranker")  # reads texts alone
    assert kalm.limits({"encoder": {"text_config": {}}}, Limits(resize="torch"), None, "").resize == "pillow"
    with pytest.raises(ConfigError, match="resize is 'opencv', neither 'pillow' nor 'torch'"):
        Limits(resize="opencv")  # type: ignore[arg-type]


def test_other_images_are_decoded_at_full_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = drawn_page(400, exif=exif.tobytes())
    for data, expected in (
        (drawn_page(300), decoded_fully(drawn_page(300))),
        (turned, decoded_fully(drawn_page(400))[::-1, ::-1]),
    ):
        assert np.array_equal(load_pixels(data, Limits(), SHAPE).astype(int), expected)


def test_reduced_decoding_hardly_moves_a_score() -> None:
    data = drawn_page(400)
    stream = io.BytesIO()
    Image.fromarray(decoded_fully(data).astype(np.uint8)).save(stream, "PNG")
    queries = [Query("q", text="a green circle"), Query("r", text="a red house")]
    reranker = load_reranker("embedded", device="cpu", dtype="float32")
    reduced, full = (
        reranker.score([(query, Document("d", image=image)) for query in queries])
        for image in (data, stream.getvalue())
    )
    np.testing.assert_allclose(reduced, full, atol=0.05)


def test_a_page_that_is_left_out_marks_the_pair_as_truncated() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (56, 56)).save(stream, "TIFF", save_all=True, append_images=[Image.new("RGB", (56, 56), "red")])
    two, one = stream.getvalue(), flat(0)
    groups = [DocumentGroup(Document("d", image=document), (Query("q", image=two),)) for document in (one, two)]
    reranker = load_reranker("embedded", device="cpu", dtype="float32")
    marks = [(pair.query_truncated, pair.document_truncated) for pair in reranker.score_groups(groups)]
    assert marks == [(True, False), (True, True)]
