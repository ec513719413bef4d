"""The lake contract: the columns of every table, in and out."""

from __future__ import annotations

import pyarrow as pa


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_QUERY_ID, _DOC_ID = _required("query_id", pa.string()), _required("doc_id", pa.string())
_CONTENT = [pa.field("text", pa.string()), pa.field("image", pa.binary())]

#: Documents as they are ingested.
INGESTED_DOCUMENTS = pa.schema([_DOC_ID, *_CONTENT, pa.field("content_hash", pa.string())])

#: `images` are encoded files, or addresses as strings, or structs of `bytes` and `path`; `image_uri` is an address.
DOCUMENTS = pa.schema(
    [*INGESTED_DOCUMENTS, pa.field("images", pa.list_(pa.binary())), pa.field("image_uri", pa.string())]
)

#: Where an ingested document comes from. `group_id` is the id of the whole that a page or chunk is of, `place` is where
#: in it (`page=7`, `chars=8000-12000`), `search_text` is the text of a page image, for search only: no model reads it.
DOCUMENT_METADATA = [
    pa.field("path", pa.string()),
    pa.field("page", pa.int32()),
    pa.field("title", pa.string()),
    pa.field("language", pa.string()),
    pa.field("size", pa.int64()),
    pa.field("modified", pa.timestamp("us", "UTC")),
    pa.field("group_id", pa.string()),
    pa.field("place", pa.string()),
    pa.field("search_text", pa.string()),
]

#: What ingestion keeps of a query beside its content.
QUERY_METADATA = [pa.field("language", pa.string())]

#: Further columns that the config may map, where a table has them. A `text_prefix` is what a query's text begins with
#: and is not searched for.
MORE_COLUMNS = {
    "documents": DOCUMENT_METADATA,
    "queries": [*QUERY_METADATA, pa.field("text_prefix", pa.string())],
    "candidates": [],
    "qrels": [],
}

#: Queries as they are ingested.
INGESTED_QUERIES = pa.schema([_QUERY_ID, *_CONTENT])

QUERIES = pa.schema([*INGESTED_QUERIES, pa.field("instruction", pa.string())])

CANDIDATES = pa.schema(
    [_QUERY_ID, _DOC_ID, pa.field("first_stage_score", pa.float64()), pa.field("first_stage_rank", pa.int32())]
)

QRELS = pa.schema([_QUERY_ID, _DOC_ID, _required("relevance", pa.int32())])

RANKED = pa.schema(
    [
        _QUERY_ID,
        _DOC_ID,
        _required("rank", pa.int32()),
        _required("logit", pa.float32()),
        _required("relevance", pa.float32()),
        _required("label", pa.int8()),
        pa.field("first_stage_rank", pa.int32()),
        _required("truncated", pa.bool_()),
    ]
)

#: A row of ranked/ in a run of several scorers: `scored_by` numbers the stages that scored the pair (in a cascade the
#: last of them gave `logit` and `relevance`), `reason` is the reject code of a stage that could not.
COMBINED = pa.schema(
    [
        *RANKED,
        _required("scored_by", pa.list_(_required("element", pa.int8()))),
        pa.field("reason", pa.string()),
    ]
)

#: The id of what a document is a part or a variant of, such as the manual that a page is of; null or "" for none.
GROUP_IDS = pa.schema([pa.field("group_id", pa.string())])

#: What a document is a part of: GROUP_IDS, and the cluster of its near duplicates; null where a run has none.
MEMBERSHIPS = pa.schema([*GROUP_IDS, pa.field("cluster", pa.string())])

REJECTED = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("doc_id", pa.string()),
        _required("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

#: One row a pair; `logit` is null exactly when `reason` is not. The last three say what was read of images: see
#: `records.ScoredPair`.
SCORES = pa.schema(
    [
        _QUERY_ID,
        _DOC_ID,
        _required("query_hash", pa.string()),
        _required("doc_hash", pa.string()),
        pa.field("logit", pa.float32()),
        pa.field("query_tokens", pa.int32()),
        pa.field("document_tokens", pa.int32()),
        pa.field("query_truncated", pa.bool_()),
        pa.field("document_truncated", pa.bool_()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("document_images", pa.int32()),
        pa.field("document_frames_left_out", pa.int32()),
        pa.field("query_frames_left_out", pa.int32()),
    ]
)

#: One row a part of a document that a score was explained by: a `span` of the stored text from `start` to `end`, or a
#: `box` in pixels of the stored image of a number. `weight`: a pair's sum to 1. `query_words`: which it answers.
#: `faithful`: the pair's explanation passed its own deletion test.
EXPLANATIONS = pa.schema(
    [
        *(_required(name, pa.string()) for name in ("query_id", "doc_id", "kind")),
        *(pa.field(name, pa.int32()) for name in ("start", "end", "image")),
        *(pa.field(name, pa.float32()) for name in ("x0", "y0", "x1", "y1")),
        _required("weight", pa.float32()),
        pa.field("query_words", pa.string()),
        *(_required("method", pa.string()), _required("faithful", pa.bool_())),
    ]
)

#: Golden pairs: pairs of the lake whose logits must not change.
GOLDEN = pa.schema([_QUERY_ID, _DOC_ID, _required("logit", pa.float32())])

#: Columns by which tables are joined: text inside, whatever type a table has them in.
IDS = ("query_id", "doc_id", "group_id", "duplicate_of")

#: The columns that may hold what is ranked; documents and queries have at least one of theirs.
CONTENT = ("text", "image", "images", "image_uri")

#: The first-stage rank of candidates that have none, after every real one.
NO_RANK = 2**31 - 1

#: The largest values of columns that cannot hold all of their type.
LARGEST = {"first_stage_rank": NO_RANK - 1}

#: Columns that an input table may lack; every other column of its schema is required.
OPTIONAL = frozenset(
    {
        *CONTENT,
        "content_hash",
        "first_stage_score",
        "first_stage_rank",
        "search_text",
        "instruction",
        "text_prefix",
        "frames",
        "group_id",
        "cluster",
        "hash",
        "shared",
        "state",
    }
)
