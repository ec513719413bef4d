"""Encoded images to patches as Qwen2-VL takes them, every limit checked on the header before a pixel is decoded.

Pillow's process-wide settings (MAX_IMAGE_PIXELS, LOAD_TRUNCATED_IMAGES, warning filters) are neither changed nor relied
on: an image is opened by its format's own class, so that `Limits.max_source_pixels` alone is the cap. One exception: in
WebP files and in single tiles of TIFF files Pillow itself refuses more than twice its MAX_IMAGE_PIXELS.
"""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImagePalette,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from lakerank.errors import CheckpointError
from lakerank.limits import Limits, Resize
from lakerank.model.checkpoint import read_optional
from lakerank.model.inputs import Patches, RejectedInput
from lakerank.model.preprocess.pixels import (
    BITS_PER_SAMPLE,
    DECODING,
    SAMPLE_FORMAT,
    WHOLE_PIXELS,
    Upright,
    tag,
    to_rgb,
    widened,
)
from lakerank.records import RejectReason

#: Larger images are named to people instead of shown.
SHOWN_LIMITS = Limits(max_source_pixels=40_000_000, max_source_bytes=64 * 2**20)

#: First bytes of a file, and the class of Pillow's that reads it.
_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    *((magic, TiffImagePlugin.TiffImageFile) for magic in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
)
_SUPPORTED = "PNG, JPEG, WebP, TIFF, GIF or BMP"

#: Qwen2-VL's own limit on the longer side over the shorter.
MAX_ASPECT_RATIO = 200

#: CLIP's mean and standard deviation of each channel, which Qwen2-VL keeps.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: A JPEG is decoded at reduced size only to this many times the size of its patches, or more, by who resizes it. On
#: rendered pages of text at 400 and 600 dots an inch its pixels then are within 1 of 255 levels of the full decoding on
#: average, and within 20 everywhere. What torch resizes may be an A4 or Letter page at 300, just under twice.
REDUCED_OVER_PATCHES: Mapping[Resize, float] = {"pillow": 2, "torch": 1.85}

_EXIF_ORIENTATION = 0x0112

#: Tags of TIFF files; bits of a page's kind that say that it is a smaller copy, or a mask.
_NEW_SUBFILE_TYPE, _COMPRESSION, _PLANES, _COLOUR_MAP = 254, 259, 284, 320
_COPY_OR_MASK = 1 | 4

#: Pages or frames of a file that are counted, or read, at most.
MOST_FRAMES = 4096

#: Where JPEG files list further images, and how the kinds begin that are pictures of their own.
_MP_ENTRIES, _MP_FRAME = 0xB002, "Multi-Frame"

#: Raw modes of Pillow that take a sample's other byte: what it says on 16-bit colours is the upper one.
_OTHER_BYTES = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}

#: Upper bytes of 16-bit colours that use 14 bits or fewer are all below.
_UPPER_OF_14_BITS = 64

#: What Pillow says of pixels that it does not read, in files that are not damaged.
_UNSUPPORTED_PIXELS = re.compile(r"unknown pixel mode|cannot handle \d|[Uu]nsupported|not yet supported")


@dataclass(frozen=True, slots=True)
class PatchShape:
    """How a checkpoint cuts images: patch side in pixels, patches joined a side, frames a patch, channel statistics."""

    side: int = 14
    merge: int = 2
    frames: int = 2
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def patch_shape(folder: Path, vision: Mapping[str, Any]) -> PatchShape:
    """How images are cut, by config.json's `vision_config` and preprocessor_config.json; Qwen2-VL's own where neither
    says. Raises CheckpointError: preprocessor_config.json is there but not JSON, or asks for other images.
    """
    file = folder / "preprocessor_config.json"
    stated = read_optional(file)
    names = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    side, merge, frames = (vision.get(name, default) for name, default in names.items())
    computed = {"patch_size": side, "merge_size": merge, "temporal_patch_size": frames, "resample": 3}
    computed |= {"do_resize": True, "do_rescale": True, "do_normalize": True}
    faults = [
        f"{name} is {stated[name]!r}, not {value}"
        for name, value in computed.items()
        if stated.get(name) not in (None, value)
    ]
    factor = stated.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        faults.append(f"rescale_factor is {factor!r:.40}, not 1/255")
    statistics = {
        name: stated.get(name, default) for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
    }
    for name, values in statistics.items():
        numbers = isinstance(values, list | tuple) and [value for value in values if type(value) in (int, float)]
        if not numbers or len(numbers) != 3 or not all(0 <= value < 256 for value in numbers):
            faults.append(f"{name} is {values!r:.80}, not three numbers")
    if faults:
        raise CheckpointError(f"{file}: {'; '.join(faults)}")
    mean, std = statistics.values()
    return PatchShape(side, merge, frames, tuple(map(float, mean)), tuple(map(float, std)))


def load_patches(data: bytes, limits: Limits, shape: PatchShape) -> Patches:
    """Decode, turn upright, put on white, resize and cut an encoded image. Raises RejectedInput: as `load_pixels`."""
    return cut(load_pixels(data, limits, shape), shape)


def load_pixels(data: bytes, limits: Limits, shape: PatchShape) -> np.ndarray:
    """What `load_patches` cuts: (height, width, 3) uint8, both sides multiples of a visual token's.

    Raises RejectedInput: the image is over a limit, of an unsupported format, damaged, or has values of which nobody
    can say how bright they are.
    """
    return next(load_frames(data, limits, shape))


def load_frames(data: bytes, limits: Limits, shape: PatchShape) -> Iterator[np.ndarray]:
    """A file's first image, or with `limits.frames` all its pages or frames in turn, each as of `load_pixels`.

    Raises RejectedInput: as `load_pixels`, also for the pixels of all that are read together.
    """
    image, total = open_header(data, limits), 0
    for page, part in _pages(image, data):
        total += page.size[0] * page.size[1]
        if total > limits.max_source_pixels:
            detail = f"{total} pixels with the frames before it, over {limits.max_source_pixels}"
            raise RejectedInput(RejectReason.IMAGE_TOO_LARGE, detail)
        check_size(*page.size, limits)
        yield _pixels(page, part, limits, shape)
        if limits.frames == "first":
            return


def source_frames(data: bytes, limits: Limits) -> Iterator[tuple[int, int, int]]:
    """Of each image that `load_frames` gives its stored width and height, and its Exif orientation."""
    for page, _ in _pages(open_header(data, limits), data):
        yield *page.size, page.getexif().get(_EXIF_ORIENTATION, 1)
        if limits.frames == "first":
            return


def _pages(image: ImageFile.ImageFile, data: bytes) -> Iterator[tuple[ImageFile.ImageFile, bytes]]:
    """An opened image at each of its pages or frames in turn, with the bytes that it is in."""
    yield image, data
    try:
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            for part in (data[start:] for start in _other_views(image)):
                yield JpegImagePlugin.JpegImageFile(io.BytesIO(part)), part
            return
        for number in range(1, MOST_FRAMES):
            image.seek(number)
            if not _is_copy(image):
                _correct_header(image)
                yield image, data
    except EOFError:
        return
    except Exception as error:
        raise RejectedInput(RejectReason.IMAGE_UNDECODABLE, f"{type(error).__name__}: {error}"[:200]) from error


def _pixels(image: ImageFile.ImageFile, data: bytes, limits: Limits, shape: PatchShape) -> np.ndarray:
    try:
        factor, source = shape.side * shape.merge, image.size
        scale = _decode_reduced(image, factor, limits)
        with DECODING.hold(_decoding_bytes(image, source, limits.resize)):
            upright = Upright.of(_decoded(image, data))
            width, height = upright.size if scale is None else source
            rows, columns = resized(height, width, factor, limits.min_pixels, limits.max_pixels)
            return upright.resized(columns, rows, (width / (scale or 1), height / (scale or 1)), limits.resize)
    except MemoryError as error:
        raise RejectedInput(RejectReason.OUT_OF_MEMORY, "while the image was decoded") from error
    except RejectedInput:
        raise
    except Exception as error:  # a damaged file makes decoders raise anything
        raise RejectedInput(RejectReason.IMAGE_UNDECODABLE, f"{type(error).__name__}: {error}"[:200]) from error


def _decoding_bytes(image: Image.Image, source: tuple[int, int], resize: Resize = "pillow") -> int:
    """Memory that an opened image takes while it is decoded: as Pillow keeps it, and what its decoder keeps besides."""
    pixel = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;") else 4)
    # Canvases and a frame's bytes, and of an animation the frame; a strip, or turned.
    pixel *= {"WEBP": 3 + getattr(image, "is_animated", False), "TIFF": 2}.get(image.format or "", 1)
    if image.size[0] * image.size[1] <= WHOLE_PIXELS:
        pixel += 4 * (image.mode != "RGB") + 6 * (resize == "torch")  # torch's copy, and the bytes that it is made of
    held = image.size[0] * image.size[1] * pixel
    if isinstance(image, JpegImagePlugin.JpegImageFile) and "progressive" in image.info:
        held += source[0] * source[1] * 2 * image.layers  # coefficients of all scans
    return held


def _decode_reduced(image: Image.Image, factor: int, limits: Limits) -> int | None:
    """Let a JPEG far larger than its patches be decoded at 1/2, 1/4 or 1/8 of its size: at 1 / what is returned.

    The decoder then averages blocks of pixels, as resizing would next.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        return None
    width, height = image.size
    rows, columns = resized(height, width, factor, limits.min_pixels, limits.max_pixels)
    over = REDUCED_OVER_PATCHES[limits.resize]
    if min(width / columns, height / rows) < 2 * over:
        return None
    image.draft(None, (int(columns * over), int(rows * over)))
    return round(width / image.size[0])


def _decoded(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """An opened image with its pixels. Pillow reads the upper bytes of 16-bit colours: where they say little, the
    lower ones too."""
    if isinstance(image, WebPImagePlugin.WebPImageFile) and not image.is_animated:
        return _still(image)
    raw_mode = _raw_mode(image)
    image.load()
    swapped = _OTHER_BYTES.get(raw_mode[-4:])
    if swapped is None or image.mode not in ("RGB", "RGBA"):
        return image
    if np.max([image.getchannel(colour).getextrema() for colour in "RGB"]) >= _UPPER_OF_14_BITS:
        return image
    if raw_mode.startswith("RGBa") or tag(image, _PLANES, 1) == 2:
        detail = "16-bit colours that use fewer bits, in planes or premultiplied; convert it to 8 bits"
        raise RejectedInput(RejectReason.IMAGE_UNSUPPORTED_FORMAT, detail)
    lower = type(image)(io.BytesIO(data))
    lower.seek(image.tell())
    other = "RGBA" if raw_mode.startswith("LA") else raw_mode[:-4] + swapped
    args = lower.tile[0].args
    changed = (other, *args[1:]) if isinstance(args, tuple) else other
    lower.tile = [tile._replace(args=changed) for tile in lower.tile]
    lower.load()
    if not raw_mode.startswith("LA"):
        return widened(image, lower)
    _, grey, _, alpha = lower.split()  # four bytes: both of grey, both of alpha
    return widened(image, Image.merge("RGBA", (grey, grey, grey, alpha)))


def _still(image: WebPImagePlugin.WebPImageFile) -> Image.Image:
    """A WebP of one frame: its decoder's two canvases are freed before the pixels are copied."""
    frame, image._decoder = image._decoder.get_next(), None
    if frame is None:
        raise ValueError("the frame cannot be decoded")
    still = Image.frombytes(image.mode, image.size, frame[0], "raw", image.rawmode)
    still.info = image.info
    return still


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How a file's pixels are laid out, as Pillow calls it; "" where its decoder alone knows."""
    args = image.tile[0].args if image.tile else None
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def open_header(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """Open an encoded image and check every limit; no pixel has been decoded when this returns.

    Raises RejectedInput: too many bytes or pixels, no pixels, too long and narrow, unsupported, or no readable header.
    """
    if len(data) > limits.max_source_bytes:
        raise RejectedInput(RejectReason.IMAGE_TOO_LARGE, f"{len(data)} bytes, over {limits.max_source_bytes}")
    reader = next((reader for magic, reader in _FORMATS if data.startswith(magic)), None)
    if reader is None or (data.startswith(b"RIFF") and data[8:12] != b"WEBP"):
        raise RejectedInput(RejectReason.IMAGE_UNSUPPORTED_FORMAT, f"not {_SUPPORTED}")
    try:
        image = reader(io.BytesIO(data))
        _correct_header(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedInput(RejectReason.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:
        raise RejectedInput(_header_fault(reader, data, error), f"{type(error).__name__}: {error}"[:200]) from error
    check_size(*image.size, limits)
    return image


def _correct_header(image: ImageFile.ImageFile) -> None:
    """Mend what Pillow takes a header to mean, or raise that it is unsupported."""
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "CMYK" and "adobe" not in image.info:
        image.tile = [tile._replace(args=("CMYK", "")) for tile in image.tile]  # inverted by Adobe's convention alone
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    bits = tag(image, BITS_PER_SAMPLE, 1)
    if bits == 8 and tag(image, SAMPLE_FORMAT, 1) == 2:
        raise ValueError("unsupported signed samples")
    if bits > 8 and tag(image, _PLANES, 1) == 2 and tag(image, _COMPRESSION, 1) == 1 and len(image.getbands()) > 1:
        raise ValueError("unsupported planes of 16 bits")
    if image.palette is not None and (colours := image.tag_v2[_COLOUR_MAP]) and max(colours) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))  # of 8 bits, which were meant to have 16


def count_frames(data: bytes) -> int:
    """Pages or frames of the file of an image that was read, up to MOST_FRAMES; thumbnails and smaller copies are none,
    and all that cannot be read is one."""
    reader = next(reader for magic, reader in _FORMATS if data.startswith(magic))
    if reader is WebPImagePlugin.WebPImageFile:
        return max(1, min(data.count(b"ANMF"), MOST_FRAMES))  # Pillow would take memory for two canvases
    frames = 1
    try:
        image = reader(io.BytesIO(data))
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            return 1 + len(_other_views(image))
        if not isinstance(image, TiffImagePlugin.TiffImageFile | GifImagePlugin.GifImageFile):
            return min(getattr(image, "n_frames", 1), MOST_FRAMES)
        for page in range(1, MOST_FRAMES):
            if isinstance(image, GifImagePlugin.GifImageFile):
                image._seek(page, False)  # without decoding
            else:
                image.seek(page)
            frames += not _is_copy(image)
    except EOFError:
        pass
    except Exception:
        return frames + 1
    return frames


def _is_copy(image: ImageFile.ImageFile) -> bool:
    return bool(tag(image, _NEW_SUBFILE_TYPE, 0) & _COPY_OR_MASK)


def _other_views(image: JpegImagePlugin.JpegImageFile) -> list[int]:
    """Where a JPEG file's further pictures begin; previews are none."""
    entries = ((image._getmp() or {}).get(_MP_ENTRIES) or ())[1:]
    views = [entry for entry in entries if entry["Attribute"]["MPType"].startswith(_MP_FRAME)]
    return [entry["DataOffset"] + image.info["mpoffset"] for entry in views]


def _header_fault(reader: type[ImageFile.ImageFile], data: bytes, error: Exception) -> RejectReason:
    """Pillow calls a header without pixels not its own; tell that from damage for the formats where it is at hand."""
    sides = {
        PngImagePlugin.PngImageFile: (data[16:20], data[20:24]),
        GifImagePlugin.GifImageFile: (data[6:8], data[8:10]),
        BmpImagePlugin.BmpImageFile: (data[18:22], data[22:26]),
    }.get(reader, ())
    if any(len(side) > 0 and not any(side) for side in sides):
        return RejectReason.IMAGE_ZERO_SIZE
    unsupported = _UNSUPPORTED_PIXELS.search(str(error))
    return RejectReason.IMAGE_UNSUPPORTED_FORMAT if unsupported else RejectReason.IMAGE_UNDECODABLE


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raises RejectedInput: an image of this size is over a limit."""
    if width < 1 or height < 1:
        raise RejectedInput(RejectReason.IMAGE_ZERO_SIZE, f"{width} × {height}")
    if width * height > limits.max_source_pixels:
        raise RejectedInput(RejectReason.IMAGE_TOO_LARGE, f"{width} × {height}, over {limits.max_source_pixels} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RejectedInput(RejectReason.IMAGE_ASPECT_RATIO, f"{width} × {height}, over {MAX_ASPECT_RATIO} to 1")


def resized(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width, multiples of `factor`, between the pixel limits, aspect kept as nearly as that allows.

    Source: Qwen2-VL's image processor.
    """
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def cut(pixels: np.ndarray, shape: PatchShape) -> Patches:
    """(height, width, 3) uint8 to patches; the merge² patches of a visual token follow one another."""
    rows, columns = pixels.shape[0] // shape.side, pixels.shape[1] // shape.side
    merge, side = shape.merge, shape.side
    squares = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    patches = squares.transpose(0, 3, 1, 4, 6, 2, 5)
    return Patches(np.ascontiguousarray(patches).reshape(rows * columns, 3, shape.side, shape.side), (rows, columns))


def joined(patches: Patches, shape: PatchShape) -> np.ndarray:
    """The pixels that `cut` made patches of."""
    rows, columns, merge, side = *patches.grid, shape.merge, shape.side
    squares = patches.pixels.reshape(rows // merge, columns // merge, merge, merge, 3, side, side)
    return squares.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * side, columns * side, 3)


def small_jpeg(data: bytes, side: int) -> bytes | None:
    """A JPEG of at most side² pixels, for people; None when the image is bad or over SHOWN_LIMITS."""
    buffer = io.BytesIO()
    try:
        small = _drawn(data, 2 * side, SHOWN_LIMITS)
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(buffer, format="JPEG", quality=85)
    except Exception:  # a damaged file makes decoders raise anything, and what is shown must not depend on it
        return None
    return buffer.getvalue()


def small_image(data: bytes, side: int, limits: Limits) -> bytes | None:
    """An image's means in side × side cells, as bytes of RGB; None when it is bad, over the limits or has frames."""
    try:
        if count_frames(data) > 1:
            return None
        return _drawn(data, 8 * side, limits).resize((side, side), Image.Resampling.BOX).tobytes()
    except Exception:  # a damaged file makes decoders raise anything; it is rejected where it is scored
        return None


def _drawn(data: bytes, side: int, limits: Limits) -> Image.Image:
    """An image as RGB; a JPEG at the least reduced size that has `side` pixels a side."""
    image = open_header(data, limits)
    source = image.size
    image.draft("RGB", (side, side))  # only JPEG can be decoded at a reduced size
    with DECODING.hold(_decoding_bytes(image, source)):
        return to_rgb(_decoded(image, data))
