"""Images by address: what may be read, what is read, and what is said of what cannot be."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from running import running

from lakerank.ingest.readers.pdf import read_pdf
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.lake.images.files import FETCHES, ImageFiles, UnreadableImage, read_ahead
from lakerank.lake.storage import Storage, join
from lakerank.records import RejectReason

MOST = 100_000
SECRET = "c2lnbmVkLWJ5LW1l"


def png(colour: str = "red", side: int = 56) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def pdf(*colours: str) -> bytes:
    stream = io.BytesIO()
    first, *others = (Image.new("RGB", (90, 120), colour) for colour in colours)
    first.save(stream, "PDF", save_all=True, append_images=others)
    return stream.getvalue()


def allowed(storage: Storage, *roots: str, hosts: tuple[str, ...] = ()) -> ImageFiles:
    return ImageFiles(Storage(storage.options, image_roots=roots, image_hosts=hosts), MOST)


def fault(files: ImageFiles, address: str) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as result:
        files.read(address)
    assert SECRET not in result.value.detail
    return result.value


def unreachable(files: ImageFiles, address: str) -> str:
    result = fault(files, address)
    assert result.reason is RejectReason.IMAGE_UNREACHABLE
    return result.detail


def test_images_of_a_store_are_read(store: tuple[Storage, str]) -> None:
    storage, folder = store
    for name, content in (("pages/1.png", png()), ("pages/m.pdf", pdf("red", "blue")), ("big.png", b"x" * (MOST + 1))):
        storage.create(join(folder, name), content)
    files = allowed(storage, folder)
    assert files.read(join(folder, "pages/1.png")) == files.read("pages/1.png") == png()
    assert files.images([b"1", join(folder, "pages/1.png")]) == (b"1", png())
    (first, second) = (page.image for page in read_pdf("m.pdf", pdf("red", "blue"), ReadOptions()))
    assert files.read(join(folder, "pages/m.pdf#page=2")) == second != first, "as it is ingested"
    assert "no page 3" in unreachable(files, join(folder, "pages/m.pdf#page=3"))
    assert fault(files, join(folder, "pages/1.png#page=1")).reason is RejectReason.IMAGE_UNDECODABLE
    assert "check the name" in unreachable(files, join(folder, "missing.png"))
    assert f"over {MOST} bytes" in unreachable(files, join(folder, "big.png"))
    with pytest.raises(UnreadableImage, match="image 2: "):
        files.images([b"1", join(folder, "missing.png")])


def test_no_path_leaves_its_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root and more"
    (root / "below").mkdir(parents=True)
    outside.mkdir()
    (root / "a#1.png").write_bytes(png())
    for name in ("secret.png", "secret.pdf"):
        (outside / name).write_bytes(png())
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    (root / "within").symlink_to(root / "below")
    (root / "below" / "b.png").write_bytes(png("blue"))
    os.mkfifo(root / "pipe")
    files = allowed(Storage(), str(root))
    for address in ("a#1.png", f"{root}/a#1.png", f"file://{root}/a#1.png", f"{root}/below/../a#1.png"):
        assert files.read(address) == png()
    assert files.read("within/b.png") == png("blue")
    for address in (
        "../root and more/secret.png", f"{outside}/secret.png", f"{root}/../root and more/secret.png", "link.png",
        "linked/secret.png", f"file:{outside}/secret.png", f"{root}/linked/secret.pdf#page=1", "~/secret.png",
        "/etc/passwd", "/proc/self/environ", "", ".", "/", "..",
    ):  # fmt: skip
        detail = unreachable(files, address)
        assert "below none of lake.image_roots" in detail or ("not a file" in detail and address in ("", "."))
    assert "not a file" in unreachable(files, "pipe")
    assert "not a file" in unreachable(files, "below")
    unreachable(files, "a\0b.png")
    unreachable(files, "a" * 5000)
    assert "below none" in unreachable(allowed(Storage()), f"{root}/a#1.png"), "without roots no path is read"
    assert "simplecache::" in unreachable(files, "simplecache::file:///etc/passwd"), "a file of this name"


@given(st.text(max_size=30))
def test_any_address_ends_as_a_reject(address: str) -> None:
    fault(ImageFiles(Storage(image_roots=("/nowhere/at/all",)), MOST), f"/nowhere/at/all/{address}")
    fault(ImageFiles(Storage(image_roots=("memory://pages",)), MOST), f"memory://pages/../{address}")


def test_stores_of_other_kinds_need_a_root() -> None:
    storage = Storage()
    storage.create("memory://pages/1.png", png())
    assert allowed(storage, "memory://pages").read("memory://pages/1.png") == png()
    assert allowed(storage, "memory://pages").read("1.png") == png()
    for roots, address in (
        ((), "memory://pages/1.png"), (("memory://other",), "memory://pages/1.png"),
        (("memory://pag",), "memory://pages/1.png"), (("memory://pages/2",), "memory://pages/2/../1.png"),
        ((), "ftp://host/1.png"), ((), "simplecache::memory://pages/1.png"),
    ):  # fmt: skip
        assert "below none of lake.image_roots" in unreachable(allowed(storage, *roots), address)


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.example/1.png")
            self.end_headers()
            return
        self.send_response(200 if self.path.startswith("/1.png") else 404)
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def web() -> Iterator[str]:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), _Pages)) as http:
        yield f"http://127.0.0.1:{http.server_address[1]}"


def test_urls_are_fetched_from_allowed_hosts_alone(web: str) -> None:
    files = allowed(Storage(), hosts=("127.0.0.1",))
    assert files.read(f"{web}/1.png?X-Amz-Signature={SECRET}") == png()
    assert "is not allowed" in unreachable(allowed(Storage(), web), f"{web}/1.png?sig={SECRET}"), "a root is no host"
    assert "404" in unreachable(files, f"{web}/2.png?X-Amz-Signature={SECRET}")
    assert "is not allowed" in unreachable(files, f"{web}/moved")


def test_fetching_keeps_the_order_and_is_bounded() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01 * (number % 3))
        with lock:
            running -= 1
        return number * 2

    pulled: list[int] = []
    numbers = (pulled.append(number) or number for number in range(40))
    for count, (number, result) in enumerate(read_ahead(numbers, lambda number: number > 5, slow)):
        assert (number, result) == (count, count * 2)
        assert len(pulled) <= count + FETCHES + 2
        assert count > 5 or len(pulled) == count + 1, "what needs no fetching is not pulled ahead"
    assert count == 39
    assert 2 <= most <= FETCHES
