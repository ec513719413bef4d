"""The first stage of the pictogram lakes: BM25 over documents' English names, filled up with the query's category.

The index holds one English name a document, as a catalogue of pictures would. A query in another language finds
little there and a picture finds nothing: what is missing in a list is filled with documents of the query's category
in no particular order, as if somebody browsed it. Fillers have a rank after every hit, and no score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lakerank.errors import DependencyError
from lakerank.records import Candidate
from lakerank_pictograms.concepts import chosen
from lakerank_pictograms.items import Item

_GRAM = 3


class NameIndex:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) over the words of English names and the trigrams inside them."""

    def __init__(self, documents: Sequence[Item]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise DependencyError("bm25s is the first stage: pip install 'lakerank[pictograms]'") from error
        self.documents = documents
        self._bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._bm25.index([terms(document.concept.name) for document in documents], show_progress=False)

    def hits(self, query: Item, count: int) -> list[tuple[Item, float]]:
        """Up to `count` documents that share a term with a text query, best first, equal scores by id."""
        known = [term for term in terms(query.text or "") if term in self._bm25.vocab_dict]
        if not known:
            return []
        scores = [round(float(score), 6) for score in self._bm25.get_scores(known)]  # (D,)
        found = [pair for pair in zip(self.documents, scores, strict=True) if pair[1] > 0]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].item_id))[:count]


def terms(text: str) -> list[str]:
    """Words, and the trigrams of each padded word: "owl" → ["owl", "_ow", "owl", "wl_"] with marks apart."""
    words = re.findall(r"\w+", text.casefold())
    grams = [f"{padded[at : at + _GRAM]}*" for padded in map("_{}_".format, words) for at in range(len(padded) - 2)]
    return words + grams


def candidates(query: Item, index: NameIndex, hits: int, size: int) -> list[Candidate]:
    """`size` candidates: the index's best `hits`, then the query's category, then, if that runs out, anything.

    The query's own picture is never a candidate. Fewer come only where the index holds fewer documents.
    """
    found = [(document, score) for document, score in index.hits(query, hits) if document.item_id != query.item_id]
    taken = {document.item_id for document, _ in found} | {query.item_id}
    rest = [document for document in index.documents if document.item_id not in taken]
    same = [document.item_id for document in rest if document.concept.group == query.concept.group]
    others = [document.item_id for document in rest if document.concept.group != query.concept.group]
    fill = chosen(same, size, query.item_id) + chosen(others, size, query.item_id)
    lines: Iterable[tuple[str, float | None]] = [
        *((document.item_id, score) for document, score in found),
        *((item_id, None) for item_id in fill),
    ]
    return [
        Candidate(query.item_id, doc_id, score, rank)
        for rank, (doc_id, score) in enumerate(list(lines)[:size], start=1)
    ]
