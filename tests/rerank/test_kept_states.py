"""Encoders' states of documents in the lake: known documents are not read again, and no score depends on it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checkpoints.encoders import WORDS
from checkpoints.kalm import write_kalm
from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.errors import ConfigError
from lakerank.lake.blobs import BlobRef
from lakerank.lake.clean import Retention, plan_cleaning
from lakerank.lake.states import STATES, UnitStates, state_files
from lakerank.lake.storage import Storage
from lakerank.records import DocumentState
from lakerank.rerank.run import STEPS, run
from lakerank.runner import LocalRunner

ROOT = Path(__file__).parents[2]
DOCUMENTS, QUERIES = 30, 6

Scores = dict[tuple[str, str], tuple[Any, ...]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kalm")
    write_kalm(folder)
    return folder


def texts(count: int, words: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, words))) for _ in range(count)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, of which two are alike and one has no content; candidates of all with half of the queries, and all."""
    folder = tmp_path_factory.mktemp("tables")
    documents = texts(DOCUMENTS, 60, 0)
    documents[7], documents[8] = documents[6], " "
    ids = [f"d{number:02}" for number in range(DOCUMENTS)]
    pq.write_table(pa.table({"doc_id": ids, "text": documents}), folder / "documents.parquet", row_group_size=8)
    asked = {"query_id": [f"q{number}" for number in range(QUERIES)], "text": texts(QUERIES, 8, 1)}
    pq.write_table(pa.table(asked), folder / "queries.parquet")
    for name, queries in (("half", QUERIES // 2), ("all", QUERIES)):
        pairs = [(f"q{query}", document) for query in range(queries) for document in ids]
        columns = {"query_id": [query for query, _ in pairs], "doc_id": [document for _, document in pairs]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


#: Runs a job in an output folder: its id, candidates, further settings, and steps. Returns its manifest.
Rerank = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def rerank(tables: Path, checkpoint: Path) -> Rerank:
    def rerank(output: Path, run_id: str, candidates: str, *more: str, steps: Sequence[str] = STEPS) -> dict[str, Any]:
        settings = [f"lake.{table}={tables / table}.parquet" for table in ("documents", "queries")]
        settings += [f"lake.candidates={tables / candidates}.parquet", "lake.qrels=null", f"lake.output={output}"]
        settings += [f"model.path={checkpoint}", "model.device=cpu", "scoring.keep_states=true"]
        settings += ["scoring.unit_tokens=300", "audit.max_reject_rate=null", "audit.max_score_drift=null", *more]
        storage = Storage()
        job = rerank_job(load_config(ROOT / "conf" / "demo.yaml", settings), run_id, storage)
        run(LocalRunner(2), storage, job, steps)
        manifest = output / "runs" / run_id / "manifest.json"
        return dict(json.loads(manifest.read_text())) if manifest.exists() else {}

    return rerank


@pytest.fixture(scope="module")
def expected(rerank: Rerank, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Scores of all pairs without kept states."""
    output = tmp_path_factory.mktemp("plain")
    assert rerank(output, "plain", "all", "scoring.keep_states=false")["scoring"]["documents_read"] >= DOCUMENTS - 2
    assert not (output / "states").exists()
    return ranked(output, "plain")


@pytest.fixture(scope="module")
def first_output(rerank: Rerank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of half of the queries."""
    output = tmp_path_factory.mktemp("first")
    rerank(output, "first", "half")
    return output


@pytest.fixture
def output(first_output: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(first_output, tmp_path / "out"))


def ranked(output: Path, run_id: str) -> Scores:
    rows = pq.read_table(output / "ranked" / f"run_id={run_id}").to_pylist()
    return {(row["query_id"], row["doc_id"]): (np.float32(row["logit"]).tobytes(), row["truncated"]) for row in rows}


def files(output: Path) -> list[Path]:
    return sorted((output / "states").rglob("*.parquet"))


def test_a_known_document_is_not_read_again(output: Path, rerank: Rerank, expected: Scores) -> None:
    first = json.loads((output / "runs" / "first" / "manifest.json").read_text())
    assert first["scoring"]["documents_read"] >= DOCUMENTS - 2
    rows = pa.concat_tables([pq.read_table(file) for file in files(output)]).to_pylist()
    assert len({row["doc_hash"] for row in rows}) == DOCUMENTS - 2
    second = rerank(output, "second", "all")
    assert second["counts"]["reused"] == (DOCUMENTS - 1) * QUERIES // 2 + QUERIES // 2, "and the document that is twice"
    assert second["scoring"]["documents_read"] == 0
    assert ranked(output, "second") == expected
    assert second["plan"]["cost"] < 0.6 * first["plan"]["cost"]
    assert second["plan"]["cost"] < 0.6 * second["plan"]["pairwise_cost"]
    assert second["metrics"]["tokens"]["computed"] < first["metrics"]["tokens"]["computed"]
    assert sum(pq.read_metadata(file).num_rows for file in files(output)) == len(rows)


def test_another_instruction_rescores_pairs_and_reads_no_document(output: Path, rerank: Rerank) -> None:
    other = rerank(output, "other", "half", "model.instruction=Find the same.")
    assert other["counts"]["reused"] == QUERIES // 2, "of the document that is twice"
    assert other["scoring"]["documents_read"] == 0
    assert ranked(output, "other") != ranked(output, "first")


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    "harm", ["damaged", "swapped", pytest.param("gone", marks=NIGHTLY), pytest.param("other dtype", marks=NIGHTLY)]
)
def test_a_state_that_cannot_be_used_means_that_its_document_is_read(
    output: Path, rerank: Rerank, expected: Scores, harm: str
) -> None:
    rerank(output, "second", "all", steps=("plan",))
    harmed = files(output)[0]
    table = pq.read_table(harmed)
    if harm == "gone":
        harmed.unlink()
    elif harm == "damaged":
        content = bytearray(harmed.read_bytes())
        content[len(content) // 3] ^= 255
        harmed.write_bytes(content)
    elif harm == "swapped":
        pq.write_table(table.take(pa.array(range(table.num_rows))[::-1]), harmed)
    else:
        dtype = pa.array(["bfloat16"] * table.num_rows)
        pq.write_table(table.set_column(table.schema.get_field_index("dtype"), "dtype", dtype), harmed)
    second = rerank(output, "second", "all")
    assert 0 < second["scoring"]["documents_read"] <= table.num_rows + 2
    assert ranked(output, "second") == expected
    assert harmed.exists() == (harm in ("swapped", "other dtype"))
    third = rerank(output, "third", "all", "model.instruction=Find the same.")
    assert third["scoring"]["documents_read"] == (table.num_rows if harm == "other dtype" else 0)


def test_cleaning_keeps_the_states_of_kept_runs_and_of_the_config(output: Path, rerank: Rerank) -> None:
    rerank(output, "second", "all", "scoring.keep_states=false")
    assert deletions(output, ["another"], keep_runs=2) == []
    assert deletions(output, [files(output)[0].parent.name.removeprefix("encoder=")], keep_runs=1) == []
    assert set(deletions(output, ["another"], keep_runs=1)) == {str(file) for file in files(output)}


def deletions(output: Path, names: list[str], keep_runs: int) -> list[str]:
    """The files of states that cleaning would delete, where so many runs are kept and these names are the config's."""
    later = time.time() + 10**6
    plan = plan_cleaning(Storage(), str(output), Retention(keep_runs), names, {}, later)
    return [deletion.file.uri for deletion in plan.deletions if "/states/" in deletion.file.uri]


def test_states_are_written_in_parts_after_a_look_at_the_documents(tmp_path: Path) -> None:
    looks: list[int] = []
    states = UnitStates(Storage(), str(tmp_path), "u", "float32", lambda: looks.append(len(list(tmp_path.iterdir()))))
    for number in range(40):
        states.write(least_bytes=1000)
        place = states.of(f"h{number % 30}", None)
        place.encoded, place.tokens = bytes([number]) * 100, number
    states.write(least_bytes=1)
    states.write(least_bytes=1)
    assert looks == [0, 1, 2, 3]
    written = sorted(tmp_path.glob("u-*.parquet"))
    assert len(written) == 4
    rows = [pq.read_table(file, schema=STATES).to_pylist() for file in written]
    assert [len(part) for part in rows] == [10, 10, 10, 10]
    reader = UnitStates(Storage(), str(tmp_path), "v", "float32", list)
    for file, part in zip(written, rows, strict=True):
        for number, row in enumerate(part):
            ref = BlobRef(str(file), 0, number)
            state = reader.of(row["doc_hash"], ref)
            assert state == DocumentState(row["encoded"], row["tokens"])
            assert reader.of("another", ref) == DocumentState()
    assert reader.reused == 40


def test_only_models_with_an_encoder_keep_states(tmp_path: Path, rerank: Rerank) -> None:
    with pytest.raises(ConfigError, match=r"scoring\.keep_states: no model of this config"):
        rerank(tmp_path, "r", "half", "model.path=embedded")
    assert state_files(Storage(), str(tmp_path), None) == []
