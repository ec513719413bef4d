"""What is scored: documents of one kind, made here, and queries enough that hardly a pair shares one."""

from __future__ import annotations

import functools
import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from statistics import NormalDist

import numpy as np
from tokenizers import Tokenizer

import lakerank
from lakerank.errors import ConfigError, requires
from lakerank.lake.storage import Storage
from lakerank.lake.tables import read_table_file
from lakerank.records import Document, DocumentGroup, Query
from lakerank.schemas import DOCUMENTS
from lakerank_benchmark.pages import WORDS, drawn_pages, jpeg, scanned_pages
from lakerank_benchmark.request import WORKLOADS

#: Queries of a workload, all different, and tokens of each: about 26 with those of the prompt and the score token.
QUERIES, QUERY_TOKENS = 400, 17

#: Share of pairs that cannot be scored in the mixed list.
BAD_SHARE = 0.02

#: Ids of documents that cannot be scored start so.
_BAD = "bad-"

#: Skewed lengths: the median and spread of log-normal token counts, and where they are cut.
MEDIAN, SIGMA, SHORTEST, LONGEST = 300, 1.1, 20, 4000

_BUNDLED_DOCUMENTS = Path(lakerank.__file__).parent / "ingest" / "demo_lake" / "documents.parquet"

#: Pixels of a page: the model's own cap, 768 visual tokens of 28 × 28.
PAGE_PIXELS = 602_112

#: So many encoded images, at most.
Images = Callable[[int], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Workload:
    """`take(n)`: n documents at most, the same each time; the queries for them; documents that cannot be scored."""

    name: str
    take: Callable[[int], tuple[Document, ...]]
    queries: tuple[Query, ...]
    bad: tuple[Document, ...] = ()

    def groups(self, documents: int, k: int, salt: int) -> list[DocumentGroup]:
        """`documents` documents with `k` queries each, and bad ones for BAD_SHARE of the pairs, at least one.

        Another `salt` gives other contents of the same size: what one run left in a cache is of no use to the next.
        """
        good = [
            DocumentGroup(_salted(document, salt), self._queries(place * k, k, salt))
            for place, document in enumerate(self.take(documents))
        ]
        if not self.bad:
            return good
        pairs = max(1, round(BAD_SHARE * len(good) * k))
        bad = [
            DocumentGroup(
                replace(self.bad[place % len(self.bad)], doc_id=f"{_BAD}{place}"),
                self._queries(0, min(k, pairs - first), salt),
            )
            for place, first in enumerate(range(0, pairs, k))
        ]
        return [group for row in zip_longest(good, bad) for group in row if group is not None]

    def _queries(self, first: int, count: int, salt: int) -> tuple[Query, ...]:
        queries = (self.queries[(first + place) % len(self.queries)] for place in range(count))
        return tuple(replace(query, text=f"{salt:04d} {query.text}") for query in queries)


def _salted(document: Document, salt: int) -> Document:
    """The same document to every reader, for decoders stop at a file's end, and another by its content's hash."""
    if document.image is not None:
        return replace(document, image=None, images=(document.image + f"stamp {salt}".encode(),))
    return replace(document, text=f"{salt:04d} {document.text}")


def build(name: str, tokenizer: Tokenizer, pages: Images, pictograms: Images) -> Workload:
    """One of WORKLOADS; texts are made here.

    Raises:
        ValueError: there is no such workload.
    """

    def texts(lengths: Sequence[int]) -> list[Document]:
        return [Document(f"text-{n}", text_of(tokenizer, length, seed=n)) for n, length in enumerate(lengths)]

    def images(kind: str, encoded: Sequence[bytes]) -> list[Document]:
        return [Document(f"{kind}-{n}", image=image) for n, image in enumerate(encoded)]

    def mixed(count: int) -> list[Document]:
        """In turn a pictogram, a text of skewed length and a page."""
        each = -(-count // 3)
        kinds = images("pictogram", pictograms(each)), texts(skewed_lengths(each)), images("page", pages(each))
        return list(chain.from_iterable(zip(*kinds, strict=False)))[:count]

    takes: dict[str, Callable[[int], list[Document]]] = {
        "pages": lambda count: images("page", pages(count)),
        "pages-150": lambda count: images("page", scanned_pages(count, "pages-150")),
        "pages-300": lambda count: images("page", scanned_pages(count, "pages-300")),
        "texts-500": lambda count: texts([500] * count),
        "skewed": lambda count: texts(skewed_lengths(count)),
        "pictograms": lambda count: images("pictogram", pictograms(count)),
        "mixed": mixed,
    }
    if name not in takes:
        raise ValueError(f"workload {name!r}: choose {', '.join(WORKLOADS)}")
    take = takes[name]
    queries = tuple(Query(f"q{n}", text_of(tokenizer, QUERY_TOKENS, seed=10_000 + n)) for n in range(QUERIES))
    bad = (Document(image=pages(1)[0][:400]), Document(text="  ")) if name == "mixed" else ()
    return Workload(name, lambda count: tuple(take(count)), queries, bad)


def pairs_of(groups: Sequence[DocumentGroup]) -> list[tuple[Query, Document]]:
    """Every pair of the groups, document by document."""
    return [(query, group.document) for group in groups for query in group.queries]


def scorable(groups: Sequence[DocumentGroup]) -> list[DocumentGroup]:
    """The groups whose document can be scored."""
    return [group for group in groups if not group.document.doc_id.startswith(_BAD)]


def evenly_spaced(groups: Sequence[DocumentGroup], pairs: int) -> list[DocumentGroup]:
    """Of all pairs of the groups so many, evenly spaced, in order."""
    total = sum(len(group.queries) for group in groups)
    places = {place * total // pairs for place in range(pairs)} if pairs < total else set(range(total))
    sample, first = [], 0
    for group in groups:
        queries = tuple(query for place, query in enumerate(group.queries, first) if place in places)
        first += len(group.queries)
        if queries:
            sample.append(DocumentGroup(group.document, queries))
    return sample


def text_of(tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """A text of `tokens` tokens of common words, as nearly as a cut between two tokens leaves it."""
    ranks = np.random.default_rng(seed).zipf(1.3, size=tokens * 2)
    text = " ".join(WORDS[int(rank - 1) % len(WORDS)] for rank in ranks)
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return text[: offsets[min(tokens, len(offsets)) - 1][1]]


def skewed_lengths(count: int, seed: int = 0) -> list[int]:
    """`count` log-normal token counts: one of each quantile, in random order, so that few say what many would."""
    normal = NormalDist()
    lengths = [MEDIAN * np.exp(SIGMA * normal.inv_cdf((place + 0.5) / count)) for place in range(count)]
    clipped = np.clip(np.round(lengths), SHORTEST, LONGEST).astype(int)
    return [int(length) for length in np.random.default_rng(seed).permutation(clipped)]


def page_images(pdfs: Sequence[Path], page_pixels: int) -> Images:
    """So many pages of the PDF files at the places named, or drawn ones without any; made once.

    Raises:
        ConfigError: there is no PDF file in one of the places.
    """
    files = pdf_files(pdfs)

    @functools.cache
    def pages(count: int) -> Sequence[bytes]:
        return list(pdf_pages(files, count, page_pixels) if files else drawn_pages(count))

    return pages


@functools.cache
def pictograms(count: int) -> Sequence[bytes]:
    """Images of the bundled lake."""
    batches = read_table_file(Storage(), str(_BUNDLED_DOCUMENTS), DOCUMENTS, ["image"])
    images = (image for *_, batch in batches for image in batch.column(0).to_pylist() if image is not None)
    return list(islice(images, count))


def pdf_files(places: Sequence[Path]) -> list[Path]:
    """PDF files named, and those under folders named, in order; `.pdf.gz` is how Debian ships them.

    Raises:
        ConfigError: there is none in one of the places.
    """
    files = []
    for place in places:
        here = sorted([*place.rglob("*.pdf"), *place.rglob("*.pdf.gz")]) if place.is_dir() else [place]
        if not here or not all(file.is_file() for file in here):
            raise ConfigError([f"--pdf {place}: no PDF file is there"])
        files += here
    return files


def pdf_pages(files: Sequence[Path], count: int, page_pixels: int = PAGE_PIXELS) -> Iterator[bytes]:
    """`count` pages at most, one of each file in turn, from the fifth page on (before it stand titles and contents).

    Raises:
        DependencyError: pypdfium2 is not installed.
        ConfigError: a file is not a PDF that can be read.
    """
    with requires("ingest", "--pdf needs pypdfium2"):
        import pypdfium2
    pages = 0
    for turn in range(count):
        for file in files:
            try:
                content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
                with closing(pypdfium2.PdfDocument(content)) as document:
                    number = min(4, len(document) - 1) + turn
                    if number >= len(document):
                        continue
                    page = document[number]
                    scale = math.sqrt(page_pixels / (page.get_width() * page.get_height())) * 0.998
                    yield jpeg(page.render(scale=scale).to_pil().convert("RGB"))
            except pypdfium2.PdfiumError as error:
                raise ConfigError([f"--pdf {file}: {error}"]) from error
            pages += 1
            if pages == count:
                return
