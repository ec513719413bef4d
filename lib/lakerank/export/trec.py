"""TREC run and qrels, as trec_eval and ir_measures read them."""

from __future__ import annotations

import numpy as np

from lakerank.export.format import Format, Target
from lakerank.export.ids import escaped
from lakerank.export.lists import ExportList


def trec_run(target: Target) -> Format:
    """`query Q0 document rank score tag`. Ids are escaped; the score is the logit, lowered in ties.

    Readers sort by score and break ties by id their own way, so a logit that would not fall is written as the next
    smaller float32: the order is that of the ranks, whoever reads it.
    """
    tag = escaped(target.name or "lakerank")

    def encode(one: ExportList) -> bytes:
        query = escaped(one.key)
        lines, last = [], np.float32(np.inf)
        for row in one.rows:
            score = np.float32(row.logit)
            if score >= last:
                score = np.nextafter(last, np.float32(-np.inf))
            last = score
            lines.append(f"{query} Q0 {escaped(row.doc_id)} {row.rank} {score:.9g} {tag}\n")
        return "".join(lines).encode()

    return Format(".trec", ("doc_id", "rank", "logit"), encode)


def trec_qrels(_target: Target) -> Format:
    """`query 0 document label`, ids escaped."""

    def encode(one: ExportList) -> bytes:
        query = escaped(one.key)
        return "".join(f"{query} 0 {escaped(row.doc_id)} {row.label}\n" for row in one.rows).encode()

    return Format(".qrels", ("doc_id", "label"), encode)
