"""Documents of several images, and files of several pages or frames."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from lakerank.errors import ConfigError
from lakerank.fingerprint import content_hash
from lakerank.limits import Limits
from lakerank.model.api import RerankModel, load_reranker
from lakerank.model.preprocess.images import MOST_FRAMES, PatchShape, count_frames, load_frames, load_patches
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from oracles.reference import reference_logits

MakeImage = Callable[..., bytes]
SHAPE = PatchShape()
RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


@pytest.fixture(scope="module")
def reranker() -> RerankModel:
    model: RerankModel = load_reranker("embedded", device="cpu", dtype="float32")
    return model


@pytest.fixture(scope="module")
def several(make_image: MakeImage) -> list[Document]:
    pages = tuple(make_image(*size, seed=seed) for seed, size in enumerate(((84, 84), (140, 56), (56, 112))))
    return [
        Document("two", images=pages[:2]),
        Document("turned", images=pages[1::-1]),
        Document("three and text", text="a red square on a table", images=pages),
        Document("same twice", images=(pages[0], pages[0])),
        Document("one", image=pages[0]),
    ]


def saved(colours: list[tuple[int, int, int]], kind: str, side: int = 56) -> bytes:
    first, *others = (Image.new("RGB", (side, side), colour) for colour in colours)
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(stream, kind, save_all=True, append_images=others, **options)
    return stream.getvalue()


def score(model: RerankModel, document: Document, query: Query | None = None) -> ScoredPair | Reject:
    (result,) = model.score_groups([DocumentGroup(document, (query or Query("q", text="red square"),))])
    return result


def scored(model: RerankModel, document: Document, query: Query | None = None) -> ScoredPair:
    result = score(model, document, query)
    assert isinstance(result, ScoredPair), result
    return result


def test_several_images_score_as_the_published_loop(reranker: RerankModel, several: list[Document]) -> None:
    queries = [Query("text", text="red square"), Query("image", image=several[0].images[1])]
    pairs = [(query, document) for document in several for query in queries]
    expected = reference_logits(Path(reranker.path), pairs)
    assert len(set(np.round(expected, 3))) == len(pairs), "the pairs must differ, or equality says nothing"
    together = reranker.score(pairs)
    np.testing.assert_allclose(together, expected, atol=1e-4, rtol=0)
    alone = np.concatenate([reranker.score([pair]) for pair in pairs])
    assert together.tobytes() == alone.tobytes(), "the same bits in any batch"


@given(st.text() | st.none(), st.lists(st.binary(), max_size=3), st.lists(st.binary(), max_size=3))
def test_content_hashes_of_several_images(text: str | None, images: list[bytes], others: list[bytes]) -> None:
    same = Document(text=text, images=tuple(images)) == Document(text=text, images=tuple(others))
    assert (content_hash(text, *images) == content_hash(text, *others)) == (images == others) == same
    if len(images) == 1:
        assert content_hash(text, *images) == content_hash(text, images[0])
        assert Document(text=text, image=images[0]) == Document(text=text, images=tuple(images))


def test_image_is_the_first_of_images() -> None:
    with pytest.raises(ValueError, match="give one of the two"):
        Document(image=b"cover", images=(b"page 1", b"page 2"))
    assert Document(images=(b"1", b"2")).image == b"1"


def test_the_python_api_takes_several_images(reranker: RerankModel, several: list[Document]) -> None:
    document = several[2]
    given = [document, {"text": document.text, "images": [*document.images]}]
    first, second = reranker.score([("red square", item) for item in given])
    assert first == second != reranker.score([("red square", replace(document, images=(), image=document.image))])[0]
    with pytest.raises(TypeError, match="image and images; give one"):
        reranker.score([("red square", {"image": document.image, "images": [document.image]})])


def test_what_does_not_fit_is_left_out_from_the_end(make_image: MakeImage) -> None:
    model = load_reranker("embedded", device="cpu", limits=Limits(max_length=128, max_query_length=32))
    page = [make_image(140, 140, seed=seed) for seed in range(5)]  # 25 visual tokens and two markers each
    whole, cut = (scored(model, Document("d", images=tuple(page[:many]))) for many in (3, 5))
    assert (whole.document_images, whole.document_truncated) == (3, False)
    assert (cut.document_images, cut.document_truncated, cut.logit) == (3, True, whole.logit)
    text = scored(model, Document("d", text="a red square " * 40, images=tuple(page)))
    assert text.document_truncated
    assert text.document_images == 3
    assert text.document_tokens > whole.document_tokens, "the text has the room that is left"
    far = Document("d", images=(*page[:4], b"damaged"))
    assert scored(model, far) == replace(cut, document_images=3), "what is not read is not looked at"
    large = score(model, Document("d", images=(make_image(420, 420), page[0])))
    assert isinstance(large, Reject)
    assert large.reason is RejectReason.INPUT_TOO_LONG


def test_the_image_that_cannot_be_read_is_named(reranker: RerankModel, make_image: MakeImage) -> None:
    page = make_image(56, 56)
    torn = make_image(90, 90)[:-2000]
    for bad, reason in ((torn, RejectReason.IMAGE_UNDECODABLE), (b"", RejectReason.IMAGE_UNSUPPORTED_FORMAT)):
        result = score(reranker, Document("d", text="words", images=(page, page, bad)))
        assert isinstance(result, Reject)
        assert (result.reason, result.detail[:9]) == (reason, "image 3: ")
        alone = score(reranker, Document("d", images=(bad,)))
        assert isinstance(alone, Reject)
        assert not alone.detail.startswith("image ")


def test_all_frames_score_as_so_many_images(reranker: RerankModel) -> None:
    everything = load_reranker("embedded", device="cpu", dtype="float32", limits=Limits(frames="all"))
    data = saved([RED, BLUE, LIME], "TIFF", side=84)
    pages = tuple(saved([colour], "TIFF", side=84) for colour in (RED, BLUE, LIME))
    first, whole = scored(reranker, Document("d", images=(data,))), scored(everything, Document("d", images=(data,)))
    assert (first.document_images, first.document_frames_left_out, first.document_truncated) == (1, 2, True)
    assert (whole.document_images, whole.document_frames_left_out, whole.document_truncated) == (1, 0, False)
    assert whole.logit == scored(reranker, Document("d", images=pages)).logit != first.logit
    query = scored(reranker, Document("d", text="red"), Query("q", image=data))
    assert (query.query_frames_left_out, query.query_truncated, query.document_images) == (2, True, None)
    assert (query.document_frames_left_out, query.document_truncated) == (None, False)


def test_a_damaged_frame_is_named(make_image: MakeImage) -> None:
    everything = load_reranker("embedded", device="cpu", limits=Limits(frames="all"))
    data = saved([RED, BLUE, LIME], "TIFF")
    result = score(everything, Document("d", images=(make_image(56, 56), data[: len(data) * 2 // 3])))
    assert isinstance(result, Reject)
    assert result.reason is RejectReason.IMAGE_UNDECODABLE
    assert result.detail.startswith("image 2: frame ")


def test_many_frames_are_bounded() -> None:
    """Frames are decoded until they fit no more; the pixels of all of them count."""
    frames = [Image.new("P", (200, 200), number % 250) for number in range(2000)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    limits = Limits(frames="all", max_length=512, max_query_length=64)
    result = scored(load_reranker("embedded", device="cpu", limits=limits), Document("d", images=(stream.getvalue(),)))
    assert result.document_truncated
    assert result.document_frames_left_out is not None
    assert 1900 < result.document_frames_left_out < 2000
    small = replace(limits, max_source_pixels=100_000)
    too_much = score(load_reranker("embedded", device="cpu", limits=small), Document("d", images=(stream.getvalue(),)))
    assert isinstance(too_much, Reject)
    assert (too_much.reason, too_much.detail[:9]) == (RejectReason.IMAGE_TOO_LARGE, "frame 3: ")


def test_frames_are_counted_up_to_a_number() -> None:
    two, three = saved([RED, BLUE], "GIF"), saved([RED, BLUE, RED], "GIF")
    more = three[:-1] + three[len(two) - 1 : -1] * 100
    assert count_frames(more + b";") == 103
    assert count_frames(three[:-1] + three[len(two) - 1 : -1] * 10_000 + b";") == MOST_FRAMES
    assert count_frames(more[:-20]) == 103, "a torn frame is one"


def test_copies_of_a_page_are_not_read() -> None:
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream, True) as writer:
        for kind, colour in ((0, RED), (1, LIME), (0, BLUE)):
            Image.new("RGB", (56, 56), colour).save(writer, "TIFF", tiffinfo={254: kind})
            writer.newFrame()
    read = [tuple(frame[28, 28]) for frame in load_frames(stream.getvalue(), Limits(frames="all"), SHAPE)]
    assert read == [RED, BLUE]


def test_16_bit_pages_are_each_read_by_their_own_values() -> None:
    ramp = np.linspace(0, 4095, 56, dtype=np.uint16)[None].repeat(56, 0)
    pages = [Image.fromarray(values) for values in (ramp, np.ascontiguousarray(ramp[:, ::-1]))]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    first, second = load_frames(stream.getvalue(), Limits(frames="all"), SHAPE)
    assert np.array_equal(first, second[:, ::-1])
    assert first.max() >= 254


def test_frames_are_part_of_the_scorers_name_when_all_are_read(make_image: MakeImage) -> None:
    spec = CheckpointSpec("embedded")
    default, named = (identify(spec, limits).fingerprint for limits in (Limits(), Limits(frames="first")))
    assert default == named != identify(spec, Limits(frames="all")).fingerprint
    with pytest.raises(ConfigError, match="neither 'first' nor 'all'"):
        Limits(frames="last")  # type: ignore[arg-type]
    assert "frames" not in Limits().identity()
    assert load_patches(make_image(56, 56), Limits(frames="all"), SHAPE).grid == (4, 4)
