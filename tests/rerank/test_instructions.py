"""Instructions of queries and of models: what is scored again, what is refused, and what becomes of bad ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank import load_reranker
from lakerank.cli import resolve
from lakerank.config import load_config, resolve_config
from lakerank.errors import ConfigError
from lakerank.records import Document, Query
from lakerank.rerank.run import run
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_pictograms.network import Shape

ROOT = Path(__file__).parents[2]
LAKE = ROOT / "lib" / "lakerank" / "ingest" / "demo_lake"
SHAPE = Shape(0, 32, 64, 2, 2, 1, 3, 32, 2)

#: Candidates of each query, and queries.
DEPTH, QUERIES = 7, 9

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("instructions"), "qwen3-vl-reranker", SHAPE, "float32")


@pytest.fixture
def candidates(tmp_path: Path) -> Counter[str]:
    """Some of the bundled lake's candidates, in candidates.parquet: how many a query, of different contents, has."""
    contents = {(row["text"], row["image"]): row["query_id"] for row in rows_of("queries")}
    rows = [row for row in rows_of("candidates") if row["query_id"] in contents.values()]
    chosen = [*dict.fromkeys(row["query_id"] for row in rows)][:: len(contents) // QUERIES][:QUERIES]
    kept = [row for query in chosen for row in [row for row in rows if row["query_id"] == query][:DEPTH]]
    pq.write_table(pa.Table.from_pylist(kept), tmp_path / "candidates.parquet")
    return Counter(row["query_id"] for row in kept)


def rows_of(table: str) -> list[dict[str, Any]]:
    return pq.read_table(LAKE / f"{table}.parquet").to_pylist()


def write_queries(folder: Path, instructions: Mapping[str, str | bytes | None], column: str = "instruction") -> None:
    """The bundled lake's queries, some with an instruction."""
    table = pq.read_table(LAKE / "queries.parquet")
    values = pa.array([instructions.get(query) for query in table["query_id"].to_pylist()], pa.binary())
    pq.write_table(table.append_column(column, values), folder / "queries.parquet")


@pytest.fixture
def reranked(runner, tmp_path: Path, candidates: Counter[str]) -> Run:
    def rerank(run_id: str, *settings: str) -> dict[str, Any]:
        tables = [f"lake.queries={tmp_path / 'queries.parquet'}", f"lake.candidates={tmp_path / 'candidates.parquet'}"]
        overrides = [*tables, f"lake.output={tmp_path / 'out'}", "audit.max_reject_rate=null", *settings]
        config = load_config(ROOT / "conf" / "demo.yaml", overrides)
        storage = resolve.storage(config.lake)
        return run(runner, storage, resolve.rerank_job(config, run_id, storage))

    return rerank


def logits(folder: Path, run_id: str) -> dict[tuple[str, str], float]:
    rows = pq.read_table(folder / "out" / "ranked" / f"run_id={run_id}").to_pylist()
    return {(row["query_id"], row["doc_id"]): row["logit"] for row in rows}


def test_a_changed_instruction_rescores_its_query_alone(reranked, checkpoint, candidates, tmp_path) -> None:
    model, queries = f"model.path={checkpoint}", [*candidates]
    three, every = dict.fromkeys(queries[:3], "Find what it shows."), candidates.total()
    of_three = sum(candidates[query] for query in three)
    runs = [
        ("none", {}, every),
        ("blank", {query: [b"", b" \n", "\u3000", None][at % 4] for at, query in enumerate(queries)}, 0),
        ("three", three, of_three),
        ("one", three | {queries[0]: "Find its name.", queries[1]: " Find what it shows.\n"}, candidates[queries[0]]),
        ("again", dict.fromkeys(queries[:2]) | {queries[2]: "Find what it shows."}, 0),
    ]
    for run_id, instructions, scored in runs:
        encoded = {query: text.encode() if isinstance(text, str) else text for query, text in instructions.items()}
        write_queries(tmp_path, encoded)
        summary = reranked(run_id, model)
        assert (summary["scored"], summary["reused"], summary["rejected"]) == (scored, every - scored, 0), run_id
    assert logits(tmp_path, "blank") == logits(tmp_path, "none")
    indexes = [file.name for file in (tmp_path / "out" / "index" / "queries").iterdir()]
    assert all(name.endswith("-instructions.parquet") for name in indexes), "older ones have none"

    reranker = load_reranker(checkpoint, dtype="float32", device="cpu")
    contents, documents = (
        {row["query_id"]: row for row in rows_of("queries")},
        {r["doc_id"]: r for r in rows_of("documents")},
    )
    for run_id, instructions in (("none", {}), ("three", three)):
        of_run = logits(tmp_path, run_id)
        pairs = [
            (
                Query(query, contents[query]["text"], contents[query]["image"], instructions.get(query)),
                Document(document, documents[document]["text"], documents[document]["image"]),
            )
            for query, document in of_run
        ]
        assert [*of_run.values()] == reranker.score(pairs).tolist(), run_id
    same = {pair for pair, logit in logits(tmp_path, "three").items() if logit == logits(tmp_path, "none")[pair]}
    assert {query for query, _ in same} == {*queries[3:]}


def test_another_instruction_of_the_model_is_another_scorer(reranked, checkpoint, candidates, tmp_path) -> None:
    write_queries(tmp_path, {next(iter(candidates)): b"Find its name."})
    summaries = [
        reranked(f"r{number}", f"model.path={checkpoint}", f"model.instruction={text}")
        for number, text in enumerate(["null", "''", "Find what it shows.", "Find its name."])
    ]
    assert [summary["pairs"] for summary in summaries] == [
        candidates.total(),
        0,
        candidates.total(),
        candidates.total(),
    ]
    assert len([*(tmp_path / "out" / "scores").iterdir()]) == 3
    scored = [logits(tmp_path, f"r{number}") for number in (0, 2, 3)]
    own = next(iter(candidates))
    assert [all(one[pair] == scored[0][pair] for pair in one if pair[0] == own) for one in scored] == [True] * 3
    others = [{pair: logit for pair, logit in one.items() if pair[0] != own} for one in scored]
    assert not {*others[0].items()} & {*others[1].items()}


@pytest.mark.parametrize(
    ("model", "others"),
    [
        ("[{path: embedded, ignore_instructions: true}, {path: embedded, max_length: 640, top: 2}]", ""),
        ("{text: {path: embedded, calibration: C}, image: {path: CHECKPOINT, calibration: C}}", " and CHECKPOINT"),
    ],
)
def test_a_model_without_instructions_refuses_those_of_queries(
    reranked, checkpoint, candidates, tmp_path, model, others
) -> None:
    """Whatever of a run's models it is, and however often the run is tried."""
    model, others = (text.replace("CHECKPOINT", str(checkpoint)) for text in (model, others))
    model = model.replace(": C", ": {scale: 1, bias: 0}")
    write_queries(tmp_path, dict.fromkeys([*candidates][:3], b"Find what it shows."))
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"model: 3 queries of .* instruction, and embedded{others} takes none"):
            reranked("r", f"model={model}")
        assert not (tmp_path / "out" / "scores").exists()
        assert not (tmp_path / "out" / "runs" / "r" / "config.yaml").exists()
    willing = model.replace("embedded,", "embedded, ignore_instructions: true,")
    willing = willing.replace("true, ignore_instructions: ", "")
    assert reranked("r", f"model={willing}")["candidates"] == candidates.total()


def test_ignored_instructions_change_no_score(reranked, candidates, tmp_path) -> None:
    first = next(iter(candidates))
    write_queries(tmp_path, {first: b"Find what it shows."})
    ignoring = "model.ignore_instructions=true"
    assert reranked("with", ignoring)["scored"] == candidates.total()
    write_queries(tmp_path, {})
    assert reranked("without")["scored"] == candidates[first], "the scorer is the same, and so are the other queries"
    assert logits(tmp_path, "with") == logits(tmp_path, "without")


def test_a_models_instruction_is_refused_where_it_has_no_place(storage, tmp_path) -> None:
    """Before anything is read: the queries are not even there."""
    config = resolve_config({}, ["model.instruction=Find what it shows.", f"lake.queries={tmp_path / 'none.parquet'}"])
    with pytest.raises(ConfigError, match=r"model\.instruction: .* is a jina-reranker-m0, which takes none"):
        resolve.rerank_job(config, "r", storage)


def test_bad_instructions_are_rejects(reranked, checkpoint, candidates, tmp_path) -> None:
    """One that is not UTF-8, one without end, and one id with two; under another name, in another case."""
    broken, endless, twice, *_ = candidates
    instructions = {broken: b"Find \xff", endless: b"find it " * 2000, twice: b"Find its name."}
    write_queries(tmp_path, instructions, column="Prompt")
    table = pq.read_table(tmp_path / "queries.parquet")
    other = [row | {"Prompt": b"Find it."} for row in table.to_pylist() if row["query_id"] == twice]
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(other, table.schema)]), tmp_path / "queries.parquet")
    summary = reranked("r", f"model.path={checkpoint}", "lake.columns.queries.instruction=prompt")
    assert summary["rejected_by_reason"] == {
        "duplicate_query_id": candidates[twice],
        "input_too_long": candidates[endless],
        "text_undecodable": candidates[broken],
    }
    assert summary["scored"] == candidates.total() - summary["rejected"]
    rejects = pq.read_table(tmp_path / "out" / "rejected" / "run_id=r").to_pylist()
    details = {row["reason"]: row["detail"] for row in rejects}
    assert details["text_undecodable"] == "query instruction is not UTF-8 at byte 5"
    assert details["input_too_long"] == "its instruction leaves 0 tokens to a query; raise max_query_length"
