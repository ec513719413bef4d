"""Pixels: one picture in every depth, sign, order of bytes and photometry reads the same, or is rejected; frames left
out are told; strips change no bit."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin

from lakerank.limits import IMAGE_FORMATS, Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess import pixels
from lakerank.model.preprocess.images import _FORMATS, PatchShape, count_frames, load_frames, load_pixels
from lakerank.model.preprocess.pixels import Memory, Upright
from lakerank.plan.index import _image_size
from lakerank.records import RejectReason

SHAPE = PatchShape()

#: A ramp over all levels with a square of its negative, 56 × 56: read without resizing.
RAMP = np.tile(np.linspace(0, 255, 56).astype(np.uint8), (56, 1))
RAMP[10:30, 10:30] = 255 - RAMP[10:30, 10:30]
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)


def tiff(
    values: np.ndarray, *, sample_format: int = 1, photometric: int | None = None, planes: int = 1, base: int = 0,
    following: int = 0, **tags: Any,
) -> bytes:  # fmt: skip
    """An uncompressed TIFF of (height, width) or (height, width, samples), in the values' own order of bytes; as a page
    of a longer one it begins at byte `base`, and the next page's directory is at `following`."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    samples = 1 if values.ndim == 2 else values.shape[2]
    photometric = (1 if samples < 3 else 2) if photometric is None else photometric
    raw = (values if planes == 1 else values.transpose(2, 0, 1)).tobytes()
    offsets = [
        base + 8 + place * len(raw) // (samples if planes == 2 else 1) for place in range(samples if planes == 2 else 1)
    ]
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("H", [values.shape[1]]), 257: ("H", [values.shape[0]]),
        258: ("H", [tags.pop("bits", 8 * values.itemsize)] * samples), 259: ("H", [1]), 262: ("H", [photometric]),
        273: ("I", offsets), 277: ("H", [samples]), 278: ("H", [values.shape[0]]),
        279: ("I", [len(raw) // len(offsets)] * len(offsets)), 284: ("H", [planes]),
        339: ("H", [sample_format] * samples), **{int(key[1:]): ("H", value) for key, value in tags.items()},
    }  # fmt: skip
    body, after = b"", base + 8 + len(raw) + 2 + 12 * len(entries) + 4
    directory = struct.pack(order + "H", len(entries))
    for number, (kind, value) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(value)}{kind}", *value)
        directory += struct.pack(order + "HHI", number, {"H": 3, "I": 4}[kind], len(value))
        if len(packed) > 4:
            directory += struct.pack(order + "I", after + len(body))
            body += packed
        else:
            directory += packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8 + len(raw)) + raw + directory + struct.pack(order + "I", following) + body


def png(values: np.ndarray, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a sample: (height, width) or (height, width, samples)."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    inner = b"".join(chunk(*part) for part in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + inner
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def wide(bits: int, values: np.ndarray = RAMP) -> np.ndarray:
    """Levels spread over `bits` bits, as cameras and scanners have them."""
    return np.rint(values * ((2**bits - 1) / 255)).astype(np.uint32)


def twelve_packed() -> bytes:
    """The ramp with 12 bits a sample, two in three bytes."""
    first, second = wide(12)[:, ::2], wide(12)[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    return tiff(packed.reshape(56, 84), bits=12, t256=[56])


ALPHA = np.full((56, 56), 2**16 - 1, np.uint32)
GREYS = {
    "8 bits": tiff(RAMP),
    **{f"{bits} bits in 16": tiff(wide(bits).astype("<u2")) for bits in (8, 10, 12, 14, 16)},
    **{f"{bits} bits in 16, big-endian": tiff(wide(bits).astype(">u2")) for bits in (12, 16)},
    **{f"{bits} bits in PNG": png(wide(bits), 0) for bits in (10, 12, 14, 16)},
    **{f"{bits} bits in PNG with alpha": png(np.stack([wide(bits), ALPHA], axis=2), 4) for bits in (12, 16)},
    "12 bits in PNG that says so": png(wide(12), 0, (b"sBIT", b"\x0c")),
    "12 bits in PNG, alpha too": png(np.stack([wide(12), ALPHA >> 4], axis=2), 4),
    "12 bits, packed": twelve_packed(),
    "12 bits in 16, maximum stated": tiff(wide(12).astype("<u2"), t281=[4095]),
    "12 bits in 16, compressed": saved(Image.fromarray(wide(12).astype("<u2")), "TIFF", compression="tiff_lzw"),
    "white is zero, 12 bits in 16": tiff(wide(12, 255 - RAMP).astype("<u2"), photometric=0),
    "white is zero, 16 bits": tiff(wide(16, 255 - RAMP).astype("<u2"), photometric=0),
    "white is zero, float": tiff(((255 - RAMP) / 255).astype("<f4"), sample_format=3, photometric=0),
    "signed, 12 bits in 16": tiff(wide(12).astype("<i2"), sample_format=2),
    "signed, 15 bits": tiff(wide(15).astype("<i2"), sample_format=2),
    "signed, 15 bits, big-endian": tiff(wide(15).astype(">i2"), sample_format=2),
    "signed, 16 bits in 32": tiff(wide(16).astype("<i4"), sample_format=2),
    "signed, 31 bits": tiff(wide(31).astype("<i4"), sample_format=2),
    "16 bits in 32": tiff(wide(16).astype("<u4")),
    "24 bits in 32": tiff(wide(24).astype("<u4")),
    "32 bits": tiff(wide(32).astype("<u4")),
    "float to 1": tiff((RAMP / 255).astype("<f4"), sample_format=3),
    "float to 1, big-endian": tiff((RAMP / 255).astype(">f4"), sample_format=3),
    "float to 1, overshot": tiff((RAMP / 255 * 1.002 - 0.001).astype("<f4"), sample_format=3),
    "float to 255": tiff(RAMP.astype("<f4"), sample_format=3),
    "float to 255, fractions": tiff((RAMP + 0.1).astype("<f4"), sample_format=3),
    "float to 4095": tiff(wide(12).astype("<f4"), sample_format=3),
    "float to 65535": tiff(wide(16).astype("<f4"), sample_format=3),
}  # fmt: skip


@pytest.mark.parametrize("name", GREYS)
def test_a_grey_picture_reads_the_same_in_every_depth(name: str) -> None:
    read = load_pixels(GREYS[name], Limits(), SHAPE)
    assert np.array_equal(read, np.repeat(RAMP[:, :, None], 3, axis=2))


COLOURED = {
    **{f"{bits} bits in TIFF": tiff(wide(bits, COLOURS).astype("<u2")) for bits in (8, 10, 12, 14, 16)},
    **{f"{bits} bits in TIFF, big-endian": tiff(wide(bits, COLOURS).astype(">u2")) for bits in (12, 16)},
    **{f"{bits} bits in PNG": png(wide(bits, COLOURS), 2) for bits in (12, 16)},
    **{
        f"{bits} bits in PNG with alpha": png(np.concatenate([wide(bits, COLOURS), ALPHA[..., None]], axis=2), 6)
        for bits in (12, 16)
    },
    "palette of 8 bits": tiff(
        np.tile(np.arange(56, dtype=np.uint8), (56, 1)),
        photometric=3,
        t320=[*range(256), *range(255, -1, -1), *[7] * 256],
    ),
}


@pytest.mark.parametrize("name", COLOURED)
def test_a_coloured_picture_reads_the_same_in_every_depth(name: str) -> None:
    expected = COLOURS
    if "palette" in name:
        index = np.tile(np.arange(56, dtype=np.uint8), (56, 1))
        expected = np.stack([index, 255 - index, np.full_like(index, 7)], axis=2)
    assert np.array_equal(load_pixels(COLOURED[name], Limits(), SHAPE), expected)


def test_each_page_of_16_bit_colours_is_read_by_its_own_values() -> None:
    pages = [np.ascontiguousarray(wide(12, colours).astype("<u2")) for colours in (COLOURS, COLOURS[:, ::-1])]
    base = len(tiff(pages[0]))
    both = tiff(pages[0], following=base + 8 + pages[1].nbytes) + tiff(pages[1], base=base)
    first, second = load_frames(both, Limits(frames="all"), SHAPE)
    assert np.array_equal(first, COLOURS)
    assert np.array_equal(second, COLOURS[:, ::-1])


def test_dark_pictures_of_16_bits_stay_dark() -> None:
    dark = RAMP // 20
    for data in (
        tiff(wide(16, dark).astype("<u2")),
        tiff(dark.astype("<u2") << 8),
        tiff(wide(12).astype("<u2"), t281=[65535]),
        tiff(np.zeros((56, 56), "<u2")),
        tiff(np.zeros((56, 56), "<f4"), sample_format=3),
        png(wide(16, COLOURS // 20), 2),
    ):
        assert load_pixels(data, Limits(), SHAPE).max() <= 15


@pytest.mark.parametrize(
    "data",
    [
        tiff(RAMP.astype("<i2") - 100, sample_format=2),
        tiff(RAMP.astype("<i4") - 100, sample_format=2),
        tiff(RAMP, sample_format=2),
        tiff(RAMP.astype("<u4") * 900),
        tiff((RAMP / 60).astype("<f4"), sample_format=3),
        tiff((RAMP / 255 - 0.5).astype("<f4"), sample_format=3),
        tiff((RAMP * 1e6).astype("<f4") + 0.5, sample_format=3),
        tiff(np.where(RAMP > 250, np.nan, RAMP / 255).astype("<f4"), sample_format=3),
        tiff(np.where(RAMP > 250, np.inf, RAMP / 255).astype("<f4"), sample_format=3),
        tiff((RAMP / 255).astype("<f2"), sample_format=3),
        tiff((RAMP / 255).astype("<f8"), sample_format=3),
        tiff(wide(16, COLOURS).astype("<u2"), planes=2),
        tiff(RAMP, photometric=32844),
        tiff(np.concatenate([wide(12, COLOURS), ALPHA[..., None]], axis=2).astype("<u2"), t338=[1]),
        saved(Image.fromarray(RAMP), "JPEG").replace(b"\x00\x0b\x08", b"\x00\x0b\x0c", 1),
    ],
)
def test_what_has_no_range_is_rejected(data: bytes) -> None:
    with pytest.raises(RejectedInput) as caught:
        load_pixels(data, Limits(), SHAPE)
    assert caught.value.reason == RejectReason.IMAGE_UNSUPPORTED_FORMAT
    assert "RAMP" not in caught.value.detail


def without_marker(jpeg: bytes) -> bytes:
    """A JPEG without its APP14 segment."""
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0] :]


@pytest.mark.parametrize("side", [56, 2000])
def test_inks_of_a_jpeg_are_inverted_by_adobes_marker_alone(side: int) -> None:
    inks = np.zeros((side, side, 4), np.uint8)
    inks[..., 1:3] = 255
    adobe = saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    plain = without_marker(saved(Image.fromarray(255 - inks, "CMYK"), "JPEG", quality=100))
    limits = Limits(max_pixels=56 * 56) if side > 56 else Limits()  # decoded at reduced size too
    for data in (adobe, plain, saved(Image.fromarray(inks, "CMYK"), "TIFF")):
        assert np.abs(load_pixels(data, limits, SHAPE).astype(int) - (255, 0, 0)).max() <= 2


def test_a_transparent_grey_of_16_bits_lies_on_white() -> None:
    data = png(np.full((56, 56), 0x1234), 0, (b"tRNS", b"\x12\x34"))
    assert load_pixels(data, Limits(), SHAPE).min() == 255


def test_premultiplied_grey_is_read() -> None:
    values = np.stack([RAMP, np.full_like(RAMP, 255)], axis=2)
    assert np.array_equal(load_pixels(tiff(values, t338=[1]), Limits(), SHAPE)[..., 0], RAMP)


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(0, 9),
    st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"]), st.integers(1, 900), st.booleans(),
)  # fmt: skip
def test_strips_change_no_bit(width: int, height: int, turn: int, mode: str, strip: int, whole: bool) -> None:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.open(io.BytesIO(saved(image, "TIFF" if mode == "CMYK" else "PNG", exif=exif)))
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    rgb = upright.convert("RGB")
    halfway = (
        rgb
        if whole or (image.mode == "RGB" and turn in (0, 1, 9))
        else rgb.resize((28, rgb.height), Image.Resampling.BICUBIC)
    )
    expected = np.asarray(halfway.resize((28, 56), Image.Resampling.BICUBIC))
    before = pixels.STRIP_PIXELS, pixels.WHOLE_PIXELS
    pixels.STRIP_PIXELS, pixels.WHOLE_PIXELS = strip, before[1] if whole else 0
    try:
        read = Upright.of(image)
        assert np.array_equal(np.asarray(read.to_rgb()), np.asarray(rgb))
        resized = read.resized(28, 56, (float(rgb.width), float(rgb.height)))
    finally:
        pixels.STRIP_PIXELS, pixels.WHOLE_PIXELS = before
    assert np.array_equal(resized, expected)


def pages(kind: str, *, second: dict[int, int] | None = None, count: int = 2) -> bytes:
    images = [Image.new("RGB", (56, 56), colour) for colour in ("red", "blue", "lime")[:count]]
    if kind == "TIFF" and second is not None:
        images[1].encoderinfo = {"tiffinfo": second}
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(images[0], kind, save_all=True, append_images=images[1:], **options)


def other_eye(data: bytes) -> bytes:
    """A JPEG file of two images whose second becomes the view of the other eye."""
    first, second = (
        struct.pack("<IIIHH", kind, entry["Size"], entry["DataOffset"], 0, 0)
        for kind, entry in zip((0x030000, 0), Image.open(io.BytesIO(data)).mpinfo[0xB002], strict=True)
    )
    assert data.count(first + second) == 1
    return data.replace(first + second, first + struct.pack("<I", 0x020002) + second[4:])


def smaller_copy() -> bytes:
    """A TIFF whose second page is a thumbnail of the first."""
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream, True) as writer:
        for kind, side in ((0, 56), (1, 8)):
            Image.new("RGB", (side, side), "red").save(writer, "TIFF", tiffinfo={254: kind})
            writer.newFrame()
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "MPO"])
def test_pages_and_frames_are_counted_and_read_in_order(kind: str) -> None:
    several, single = pages(kind), pages(kind, count=1)
    if kind == "MPO":
        assert count_frames(several) == 1, "a preview or a gain map, as telephones add"
        several = other_eye(several)
    assert (count_frames(several), count_frames(single)) == (2, 1)
    red, blue = load_frames(several, Limits(frames="all"), SHAPE)
    assert np.abs(red[28, 28].astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(blue[28, 28].astype(int) - (0, 0, 255)).max() <= 3
    (first,) = load_frames(several, Limits(), SHAPE)
    assert np.array_equal(first, red)


def test_thumbnails_are_no_pages() -> None:
    assert count_frames(smaller_copy()) == 1
    torn = pages("TIFF")[: len(pages("TIFF")) * 3 // 4]
    assert count_frames(torn) == 2, "a page that is not whole is a page"


def test_planning_opens_the_formats_that_are_read() -> None:
    assert {reader.format for _, reader in _FORMATS} == set(IMAGE_FORMATS)
    image = Image.new("RGB", (9, 7))
    assert {_image_size(saved(image, kind)) for kind in IMAGE_FORMATS} == {(9, 7, 1)}
    assert {_image_size(saved(image, kind)) for kind in ("PPM", "TGA", "ICO", "DDS")} == {None}


@pytest.mark.parametrize("size", [4, 100])
def test_memory_is_waited_for(size: int) -> None:
    memory, got = Memory(10), threading.Event()

    def work() -> None:
        with memory.hold(size):
            got.set()

    thread = threading.Thread(target=work, daemon=True)
    with memory.hold(7):
        thread.start()
        assert not got.wait(0.1)
    assert got.wait(10), "what needs more than there is gets all"
    thread.join(10)


def test_what_needs_more_than_a_process_has_is_decoded_alone_on_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import pathlib, sys; from lakerank.model.preprocess.pixels import Memory\n"
        "with Memory(10).hold(int(sys.argv[1])): pathlib.Path(sys.argv[2]).touch()"
    )

    def other(size: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, str(size), str(tmp_path / str(size))]
        return subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)})

    with Memory(10).hold(11):
        assert other(10).wait(60) == 0, "what a process has is its own"
        waiting = other(12)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
        assert not (tmp_path / "12").exists()
    assert waiting.wait(60) == 0
    assert (tmp_path / "12").exists()
