"""What is scored: documents of one kind, and queries enough that hardly a pair shares one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from tokenizers import Tokenizer

from lakerank.records import Document, DocumentGroup, Query
from lakerank_benchmark.texts import skewed_lengths, text_of

#: Queries of a workload: that many differ.
QUERIES = 400

#: Tokens of a text query: about 26 with those of the prompt and the score token.
QUERY_TOKENS = 17

#: Share of pairs that cannot be scored in the mixed list.
BAD_SHARE = 0.02

NAMES = ("pages", "texts-500", "skewed", "pictograms", "mixed")

#: Ids of documents that cannot be scored start so.
_BAD = "bad-"

#: So many encoded images, at most.
Images = Callable[[int], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Workload:
    """`take(n)`: n documents at most, the same each time; the queries for them; documents that cannot be scored."""

    name: str
    take: Callable[[int], tuple[Document, ...]]
    queries: tuple[Query, ...]
    bad: tuple[Document, ...] = ()

    def groups(self, documents: int, k: int, stamp: int) -> list[DocumentGroup]:
        """`documents` documents with `k` queries each, and bad ones for BAD_SHARE of the pairs, at least one.

        Another `stamp` gives other contents of the same size: what one run left in a cache is of no use to the next.
        """
        good = [
            DocumentGroup(_stamped_document(document, stamp), self._queries(place * k, k, stamp))
            for place, document in enumerate(self.take(documents))
        ]
        if not self.bad:
            return good
        wanted = max(1, round(BAD_SHARE * len(good) * k))
        portions = [min(k, wanted - first) for first in range(0, wanted, k)]
        spoilt = [
            DocumentGroup(
                replace(self.bad[place % len(self.bad)], doc_id=f"{_BAD}{place}"), self._queries(0, count, stamp)
            )
            for place, count in enumerate(portions)
        ]
        return [group for row in zip_longest(good, spoilt) for group in row if group is not None]

    def _queries(self, first: int, count: int, stamp: int) -> tuple[Query, ...]:
        chosen = (self.queries[(first + place) % len(self.queries)] for place in range(count))
        return tuple(replace(query, text=f"{stamp:04d} {query.text}") for query in chosen)


def build(name: str, tokenizer: Tokenizer, pages: Images, pictograms: Images) -> Workload:
    """One of NAMES; texts are made here.

    Raises:
        ValueError: there is no such workload.
    """
    queries = tuple(Query(f"q{n}", text_of(tokenizer, QUERY_TOKENS, seed=10_000 + n)) for n in range(QUERIES))
    takes: dict[str, Callable[[int], tuple[Document, ...]]] = {
        "pages": lambda count: _images("page", pages(count)),
        "texts-500": lambda count: _texts(tokenizer, [500] * count),
        "skewed": lambda count: _texts(tokenizer, skewed_lengths(count)),
        "pictograms": lambda count: _images("pictogram", pictograms(count)),
        "mixed": lambda count: _mixed(tokenizer, pages, pictograms, count),
    }
    if name not in takes:
        raise ValueError(f"workload {name!r}: choose {', '.join(NAMES)}")
    bad: tuple[Document, ...] = ()
    if name == "mixed":
        bad = (Document(image=pages(1)[0][:400]), Document(text="  "))
    return Workload(name, takes[name], queries, bad)


def pairs_of(groups: Sequence[DocumentGroup]) -> list[tuple[Query, Document]]:
    """Every pair of the groups, document by document."""
    return list(chain.from_iterable(((query, group.document) for query in group.queries) for group in groups))


def scorable(groups: Sequence[DocumentGroup]) -> list[DocumentGroup]:
    """The groups whose document can be scored."""
    return [group for group in groups if not group.document.doc_id.startswith(_BAD)]


def _mixed(tokenizer: Tokenizer, pages: Images, pictograms: Images, count: int) -> tuple[Document, ...]:
    """In turn a pictogram, a text of skewed length and a page."""
    each = -(-count // 3)
    kinds = (
        _images("pictogram", pictograms(each)),
        _texts(tokenizer, skewed_lengths(each)),
        _images("page", pages(each)),
    )
    return tuple(chain.from_iterable(zip(*kinds, strict=False)))[:count]


def _images(kind: str, images: Sequence[bytes]) -> tuple[Document, ...]:
    return tuple(Document(f"{kind}-{n}", image=image) for n, image in enumerate(images))


def _texts(tokenizer: Tokenizer, lengths: Sequence[int]) -> tuple[Document, ...]:
    return tuple(Document(f"text-{n}", text_of(tokenizer, length, seed=n)) for n, length in enumerate(lengths))


def _stamped_document(document: Document, stamp: int) -> Document:
    """The same document to every reader, for decoders stop at a file's end, and another by its content's hash."""
    image = None if document.image is None else document.image + f"stamp {stamp}".encode()
    text = None if document.text is None else f"{stamp:04d} {document.text}"
    return replace(document, image=image, text=text)
