"""Equal contents under several ids: scored once, ranked and rejected under each."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.rerank.conftest import Lake

from lakerank.audit import Bounds
from lakerank.lake.runs import read_manifest
from lakerank.lake.storage import Storage
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.run import run

TEXTS = st.sampled_from(["same", "other", "long", "too much", "last"])
PAIRS = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1)


def write(lake, queries, documents, candidates):
    lake.write("queries", [{"query_id": f"q{n}", "text": text} for n, text in enumerate(queries)])
    lake.write("documents", [{"doc_id": f"d{n}", "text": text} for n, text in enumerate(documents)], row_group_rows=2)
    rows = [{"query_id": f"q{q}", "doc_id": f"d{d}", "first_stage_rank": 10 * q + d} for q, d in sorted(candidates)]
    lake.write("candidates", rows)


def outcome(lake, run_id):
    """Each pair with its logit or reason."""
    ranked = {(row["query_id"], row["doc_id"]): row["logit"] for row in lake.ranked(run_id)}
    rejected = {(row["query_id"], row["doc_id"]): row["reason"] for row in lake.rejected(run_id)}
    assert not ranked.keys() & rejected.keys()
    return ranked | rejected


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(st.lists(TEXTS, min_size=4, max_size=4), st.lists(TEXTS, min_size=8, max_size=8), PAIRS)
def test_each_pair_of_contents_is_scored_once_whatever_the_ids(
    tmp_path_factory, runner, queries, documents, candidates
):
    lake, storage = Lake(tmp_path_factory.mktemp("lake")), Storage()
    write(lake, queries, documents, candidates)
    changes = {"audit": AuditRules(replace(Bounds(), max_reject_rate=None, max_unranked_queries=None))}
    summary = run(runner, storage, lake.job("r1", **changes))
    contents = {(queries[q], documents[d]) for q, d in candidates}
    assert summary["new"] == len(contents)
    units = (lake.folder / "out/scores").rglob("*.parquet")
    assert sum(pq.read_metadata(unit).num_rows for unit in units) == len(contents)
    logits = lake.logits()
    expected = {(f"q{q}", f"d{d}"): logits.get((f"q{q}", f"d{d}"), "out_of_memory") for q, d in candidates}
    assert outcome(lake, "r1") == expected
    assert {(row["query_id"], row["doc_id"], row["first_stage_rank"]) for row in lake.ranked("r1")} == {
        (f"q{q}", f"d{d}", 10 * q + d) for q, d in candidates if documents[d] != "too much"
    }
    manifest = read_manifest(storage, str(lake.folder / "out"), "r1")
    assert manifest["counts"]["shared"] == len(candidates) - len(contents)
    # The next run finds the scores that are there, and scores again only what the machine could not do.
    again = run(runner, storage, lake.job("r2", **changes))
    assert again["new"] == len({pair for pair in contents if pair[1] == "too much"})
    assert outcome(lake, "r2") == expected
