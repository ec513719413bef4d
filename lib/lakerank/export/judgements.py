"""Graded labels for learning to rank: Quepid, OpenSearch's and Elasticsearch's learning-to-rank plugins, SVMrank."""

from __future__ import annotations

import csv
import io

from lakerank.export.format import Format, Target, headed
from lakerank.export.ids import escaped
from lakerank.export.lists import ExportList, shortest
from lakerank.records import RankedDocument

#: What features 1, 2, … of an SVMrank file are. One that a row lacks is left out, which readers take as 0.
FEATURES = ("logit", "first_stage_score", "first_stage_rank", "truncated")


def quepid_csv(_target: Target) -> Format:
    """`query,docid,rating`, as Quepid imports ratings. The query is its text, or its id where it has none."""

    def encode(one: ExportList) -> bytes:
        sheet = io.StringIO()
        writer = csv.writer(sheet, lineterminator="\n")
        query = one.query_text or one.key
        writer.writerows((query, row.doc_id, row.label) for row in one.rows)
        return sheet.getvalue().encode()

    header = headed(b"query,docid,rating\n")
    return Format(".csv", ("doc_id", "label"), encode, finish=header, needs_query_text=True)


def ltr_judgements(_target: Target) -> Format:
    """`grade qid:N # document` below `# qid:N: query`, the judgement list of the learning-to-rank plugins' examples."""

    def encode(one: ExportList) -> bytes:
        text = " ".join((one.query_text or "").split()) or escaped(one.key)
        lines = [f"{row.label}\tqid:{one.number} #\t{escaped(row.doc_id)}\n" for row in one.rows]
        return f"# qid:{one.number}: {text}\n{''.join(lines)}".encode()

    return Format(".txt", ("doc_id", "label"), encode, numbered=True, needs_query_text=True)


def svmrank(_target: Target) -> Format:
    """`label qid:N 1:… 2:… # query document`, with FEATURES: SVMrank, LightGBM, XGBoost, RankLib and scikit-learn."""

    def encode(one: ExportList) -> bytes:
        query = escaped(one.key)
        scores = one.first_stage_scores or (None,) * len(one.rows)
        return "".join(
            f"{row.label} qid:{one.number} {_features(row, score)} # {query} {escaped(row.doc_id)}\n"
            for row, score in zip(one.rows, scores, strict=True)
        ).encode()

    columns = ("doc_id", "label", "logit", "first_stage_rank", "truncated")
    return Format(".svm", columns, encode, numbered=True, needs_first_stage_score=True)


def _features(row: RankedDocument, first_stage_score: float | None) -> str:
    values = (shortest(row.logit), first_stage_score, row.first_stage_rank, int(row.truncated))
    return " ".join(f"{number}:{value!r}" for number, value in enumerate(values, start=1) if value is not None)
