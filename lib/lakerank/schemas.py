"""The lake contract: the columns of every table, in and out."""

from __future__ import annotations

import pyarrow as pa

DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("content_hash", pa.string()),
    ]
)

QUERIES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("image", pa.binary()),
    ]
)

CANDIDATES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("first_stage_score", pa.float64()),
        pa.field("first_stage_rank", pa.int32()),
    ]
)

QRELS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("relevance", pa.int32(), nullable=False),
    ]
)

RANKED = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
        pa.field("relevance", pa.float32(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("first_stage_rank", pa.int32()),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)

#: A row of ranked/ in a run of several scorers: `scored_by` numbers the stages that scored the pair (in a cascade the
#: last of them gave `logit` and `relevance`), `reason` is the reject code of a stage that could not.
COMBINED = pa.schema(
    [
        *RANKED,
        pa.field("scored_by", pa.list_(pa.field("element", pa.int8(), nullable=False)), nullable=False),
        pa.field("reason", pa.string()),
    ]
)

REJECTED = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("doc_id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)

#: One row a pair; `logit` is null exactly when `reason` is not.
SCORES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("query_hash", pa.string(), nullable=False),
        pa.field("doc_hash", pa.string(), nullable=False),
        pa.field("logit", pa.float32()),
        pa.field("query_tokens", pa.int32()),
        pa.field("document_tokens", pa.int32()),
        pa.field("query_truncated", pa.bool_()),
        pa.field("document_truncated", pa.bool_()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

#: Golden pairs: pairs of the lake whose logits must not change.
GOLDEN = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
    ]
)

#: Columns that an input table may lack; every other column of its schema is required.
OPTIONAL = frozenset({"text", "image", "content_hash", "first_stage_score", "first_stage_rank"})
