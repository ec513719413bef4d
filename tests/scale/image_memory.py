"""Peak memory and time of decoding the largest image that is accepted, in each mode: `image_memory.py [MODE …]`.

Each is a process of its own; the image is flat, which changes no size but the file's.
"""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import time
import zlib

SIDE = 13377

#: PNG's bits a sample and kind of colour, by the name of the mode that Pillow reads.
PNGS = {"L": (8, 0), "I;16": (16, 0), "P": (8, 3), "RGB": (8, 2), "RGB of 16 bits": (16, 2), "RGBA": (8, 6)}
TIFFS = {"CMYK": (8, 4, 5, 1), "F": (32, 1, 1, 3), "I": (32, 1, 1, 2)}
LOADED = ("JPEG, progressive", "WebP", "RGB, turned")


def png(mode: str, exif: bytes = b"") -> bytes:
    """A flat PNG, made without its pixels."""
    bits, kind = PNGS[mode]
    row = b"\0" + b"\x20\x40" * (SIDE * {0: 1, 2: 3, 3: 1, 6: 4}[kind] * bits // 8 // 2 + 1)
    row = row[: 1 + SIDE * {0: 1, 2: 3, 3: 1, 6: 4}[kind] * bits // 8]
    packer = zlib.compressobj(1)
    body = b"".join([*(packer.compress(row) for _ in range(SIDE)), packer.flush()])

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    palette = chunk(b"PLTE", bytes(range(256)) * 3) + chunk(b"tRNS", bytes(range(256))) if kind == 3 else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, bits, kind, 0, 0, 0))
    head += chunk(b"eXIf", exif) if exif else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(mode: str) -> bytes:
    """A flat, deflated TIFF."""
    bits, samples, photometric, sample_format = TIFFS[mode]
    packer = zlib.compressobj(1)
    row = bytes(SIDE * samples * bits // 8)
    body = b"".join([*(packer.compress(row) for _ in range(SIDE)), packer.flush()])
    body += bytes(len(body) % 2)
    fields = [(256, SIDE), (257, SIDE), (258, bits), (259, 8), (262, photometric), (273, 8)]
    fields += [(277, samples), (278, SIDE), (279, len(body)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in fields)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(fields)) + entries + bytes(4)


def main() -> None:
    """Print a line a mode, or the figures of one."""
    if sys.argv[1:2] == ["--one"]:
        from lakerank.limits import Limits
        from lakerank.model.inputs import RejectedInput
        from lakerank.model.preprocess.images import PatchShape, load_pixels

        data = sys.stdin.buffer.read()
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            outcome = str(load_pixels(data, Limits(), PatchShape()).shape)
        except RejectedInput as rejected:
            outcome = str(rejected)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"{peak / 1024:8.0f} MiB {time.monotonic() - started:6.1f} s  {outcome}")
        return
    for mode in sys.argv[1:] or [*PNGS, *TIFFS, *LOADED]:
        data = encoded(mode)
        ran = subprocess.run([sys.executable, __file__, "--one"], input=data, capture_output=True, check=False)
        print(f"{mode:20}", ran.stdout.decode().strip() or ran.stderr.decode()[-300:], flush=True)


def encoded(mode: str) -> bytes:
    """The largest image of a mode."""
    if mode in PNGS:
        return png(mode)
    if mode in TIFFS:
        return tiff(mode)
    if mode == "RGB, turned":
        return png("RGB", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    how = "JPEG', progressive=True" if mode.startswith("JPEG") else "WEBP', lossless=True, method=0"
    image = f"Image.new('RGB', ({SIDE}, {SIDE}), 'teal')"
    code = f"import sys; from PIL import Image; {image}.save(sys.stdout.buffer, '{how})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout


if __name__ == "__main__":
    main()
