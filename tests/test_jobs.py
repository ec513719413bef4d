"""The rerank job on a clean lake and on one with every kind of bad row: here, under python and under spark-submit."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from click.testing import CliRunner
from PIL import Image

from lakerank.cli.rerank import rerank
from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.lake.storage import Storage
from lakerank.records import Document, Query
from lakerank.rerank.run import run
from lakerank.runner import Runner
from oracles.reference import reference_logits

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "conf" / "demo.yaml"


def png(width: int, height: int, seed: int = 0, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of any claimed size, without pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


DOCUMENTS: dict[str, tuple[bytes | None, bytes | None]] = {
    "text": (b"A red apple lies on the table.", None),
    "russian": ("Красное яблоко".encode(), None),
    "picture": (None, png(90, 60)),
    "grey": (None, png(64, 64, 1, "L")),
    "both": ("林檎".encode(), png(56, 84, 2)),
    "tiny": (None, png(3, 2, 3)),
}
QUERIES: dict[str, tuple[bytes | None, bytes | None]] = {
    "q-text": (b"apple", None),
    "q-arabic": ("تفاحة".encode(), None),
    "q-picture": (None, png(70, 70, 4)),
}
BAD_DOCUMENTS: dict[str, tuple[bytes | None, bytes | None, str]] = {
    "blank": (b" \t", None, "empty_document"),
    "nothing": (None, None, "empty_document"),
    "latin1": (b"caf\xe9", None, "text_undecodable"),
    "cut": (None, png(200, 200, 5)[:5000], "image_undecodable"),
    "huge": (None, png_header(30000, 20000), "image_too_large"),
    "flat": (None, png_header(0, 10), "image_zero_size"),
    "ribbon": (None, png(603, 3, 6), "image_aspect_ratio"),
    "ppm": (None, b"P6\n2 2\n255\n" + bytes(12), "image_unsupported_format"),
    "prose": (None, b"this is no image", "image_unsupported_format"),
}


@dataclass(frozen=True)
class Run:
    """What one run of the job left."""

    summary: dict[str, object]
    output: Path
    status: int = 0
    log: str = ""

    def table(self, name: str) -> list[dict[str, object]]:
        return pq.read_table(self.output / name / "run_id=r", partitioning=None).to_pylist()

    def ranked_bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.output / "ranked" / "run_id=r").iterdir()}


def write_lake(folder: Path, bad: bool) -> None:
    documents = [(name, *content) for name, content in DOCUMENTS.items()]
    queries = [(name, *content) for name, content in QUERIES.items()]
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    if bad:
        documents += [(name, text, image) for name, (text, image, _) in BAD_DOCUMENTS.items()]
        documents += [("twice", b"one", None), ("twice", b"two", None)]
        queries += [("void", b"", None), ("twice", b"one", None), ("twice", b"two", None), ("bad", b"\xff", None)]
        pairs += [("q-text", name) for name in [*BAD_DOCUMENTS, "twice", "nowhere"]]
        pairs += [(query, "text") for query in ("void", "twice", "bad", "nobody")]
    _write(folder / "documents.parquet", "doc_id", documents)
    _write(folder / "queries.parquet", "query_id", queries)
    pq.write_table(pa.table({"query_id": [q for q, _ in pairs], "doc_id": [d for _, d in pairs]}), folder / "c.parquet")


def _write(path: Path, id_column: str, rows: list[tuple[str, bytes | None, bytes | None]]) -> None:
    ids, texts, images = zip(*rows, strict=True)
    raw = pa.array(texts, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())  # as writers do that check nothing
    pq.write_table(
        pa.table({id_column: ids, "text": text, "image": pa.array(images, pa.binary())}), path, row_group_size=4
    )


def settings(lake: Path, output: Path, checkpoint: Path, *more: str) -> list[str]:
    values = {
        "lake.documents": lake / "documents.parquet",
        "lake.queries": lake / "queries.parquet",
        "lake.candidates": lake / "c.parquet",
        "lake.qrels": "null",
        "lake.output": output,
        "model.path": checkpoint,
        "spark.conf": "{spark.master: 'local[2]', spark.ui.enabled: false, spark.driver.memory: 1g}",
    }
    return [*(f"{key}={value}" for key, value in values.items()), *more]


def arguments(given: list[str], *options: str) -> list[str]:
    words = [word for setting in given for word in ("--set", setting)]
    return ["--config", str(DEMO), "--run-id", "r", *words, *options]


def run_here(runner: Runner, output: Path, given: list[str]) -> Run:
    """Run what the job runs, in this process."""
    return Run(run(runner, Storage(), rerank_job(load_config(DEMO, given), "r", Storage())), output)


def run_job(command: str, output: Path, given: list[str], *options: str) -> Run:
    """Run jobs/rerank.py in a process of its own."""
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    done = subprocess.run(
        [command, str(ROOT / "jobs" / "rerank.py"), *arguments(given, *options)],
        capture_output=True, text=True, env=environment, timeout=300, cwd=output.parent, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    assert lines, done.stderr
    return Run(json.loads(lines[-1]), output, done.returncode, done.stderr)


def refused(given: list[str], *options: str) -> tuple[int, dict[str, str]]:
    """Exit status and last line of a job that starts no Spark."""
    result = CliRunner().invoke(rerank, arguments(given, *options))
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("clean", "dirty")}
    for name, folder in folders.items():
        write_lake(folder, bad=name == "dirty")
    return folders


@pytest.fixture(scope="module")
def clean(runner, lakes, checkpoint) -> Run:
    output = lakes["clean"] / "out"
    return run_here(runner, output, settings(lakes["clean"], output, checkpoint))


@pytest.fixture(scope="module")
def submitted(lakes, checkpoint) -> Run:
    output = lakes["clean"] / "submitted"
    smaller = ("spark.partitions=8", "scoring.max_queries_per_group=1", "scoring.unit_tokens=50")
    submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
    return run_job(submit, output, settings(lakes["clean"], output, checkpoint, *smaller))


@pytest.fixture(scope="module")
def dirty(lakes, checkpoint) -> Run:
    output = lakes["dirty"] / "out"
    given = settings(lakes["dirty"], output, checkpoint, "spark.partitions=2", "spark.local_pairs=0")
    return run_job(sys.executable, output, given, "--log-format", "json")


def test_every_candidate_is_published(clean):
    assert clean.summary["published"] is True
    assert clean.summary["scored"] == len(clean.table("ranked")) == len(QUERIES) * len(DOCUMENTS)
    assert clean.table("rejected") == []
    assert 1 <= clean.summary["model_loads"] <= 2, "one model a worker process"


@pytest.mark.nightly
def test_spark_submit_writes_the_same_bytes_with_other_partitions_groups_and_units(clean, submitted):
    assert submitted.status == 0, submitted.log
    assert "SparkContext: Running Spark" in submitted.log, "whatever spark.local_pairs is"
    assert submitted.summary["units"] > clean.summary["units"]
    assert submitted.ranked_bytes() == clean.ranked_bytes()


#: Reranks and exports where there is no pyspark.
WITHOUT_SPARK = """
import sys
from click.testing import CliRunner
from lakerank.cli.export import export
from lakerank.cli.rerank import rerank
sys.modules["pyspark"] = None
both, mark = sys.argv[1:], sys.argv.index("--then") - 1
for command, words in ((rerank, both[:mark]), (export, both[mark + 1:])):
    result = CliRunner().invoke(command, words)
    print(result.stdout.splitlines()[-1])
    assert result.exit_code == 0, result.output
"""


def test_a_small_lake_needs_neither_spark_nor_java(clean, lakes, checkpoint, tmp_path):
    given = settings(lakes["clean"], tmp_path / "out", checkpoint)
    exported = [*arguments(given), "--format", "opensearch-documents", "--to", str(tmp_path / "export")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SPARK, *arguments(given), "--then", *exported],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
        env=os.environ | {"JAVA_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "lib")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Run({}, tmp_path / "out").ranked_bytes() == clean.ranked_bytes()
    assert json.loads(done.stdout.splitlines()[-1])["files"] > 0


def test_the_job_equals_the_published_loop(clean, checkpoint):
    rows = clean.table("ranked")

    def content(side: tuple[bytes | None, bytes | None]) -> dict[str, object]:
        return {"text": None if side[0] is None else side[0].decode(), "image": side[1]}

    pairs = [
        (
            Query(row["query_id"], **content(QUERIES[row["query_id"]])),
            Document(row["doc_id"], **content(DOCUMENTS[row["doc_id"]])),
        )
        for row in rows
    ]
    expected = reference_logits(str(checkpoint), pairs)
    np.testing.assert_allclose([row["logit"] for row in rows], expected, atol=1e-4)
    np.testing.assert_allclose([row["relevance"] for row in rows], 1 / (1 + np.exp(2.65 - expected)), atol=1e-4)


def test_each_bad_row_is_rejected_under_its_code(dirty):
    assert dirty.status == 0, dirty.log
    reasons = {(row["query_id"], row["doc_id"]): row["reason"] for row in dirty.table("rejected")}
    expected = {("q-text", name): reason for name, (_, _, reason) in BAD_DOCUMENTS.items()}
    expected |= {("q-text", "twice"): "duplicate_document_id", ("q-text", "nowhere"): "missing_document"}
    expected |= {("void", "text"): "empty_query", ("twice", "text"): "duplicate_query_id"}
    expected |= {("bad", "text"): "text_undecodable", ("nobody", "text"): "missing_query"}
    assert reasons == expected
    assert dirty.summary["candidates"] == dirty.summary["scored"] + dirty.summary["rejected"]


def test_bad_rows_leave_all_others_as_they_were(clean, dirty):
    assert dirty.table("ranked") == clean.table("ranked")


def test_neither_logs_nor_files_of_the_run_hold_document_text(dirty):
    kept = [path.read_bytes() for path in (dirty.output / "runs").rglob("*") if path.is_file()]
    for needle in (b"A red apple lies", "Красное".encode(), b"this is no image"):
        assert needle not in dirty.log.encode()
        assert not any(needle in content for content in kept)


def test_json_logs_say_run_stage_and_unit_on_the_driver_and_in_the_workers(dirty):
    lines = [json.loads(line) for line in dirty.log.splitlines() if line.startswith("{")]
    assert {line["run"] for line in lines} == {"r"}
    assert {"plan", "score", "audit"} <= {line.get("stage") for line in lines}
    units = {line["unit"] for line in lines if line["logger"] == "lakerank.rerank.score" and "unit" in line}
    assert len(units) == dirty.summary["units"], "the worker that scored a unit logs it"


def test_the_manifest_and_the_last_line_say_what_the_run_took(clean):
    metrics = json.loads((clean.output / "runs" / "r" / "manifest.json").read_text())["metrics"]
    assert clean.summary["metrics"] == metrics
    assert metrics["seconds"].keys() == {"plan", "score", "rank", "audit"}
    assert all(seconds > 0 for seconds in metrics["seconds"].values())
    assert metrics["tokens"]["pairwise"] > metrics["tokens"]["computed"] > 0
    assert metrics["model_loads"] == clean.summary["model_loads"]
    assert metrics["bytes"]["ranked"] == sum(len(data) for data in clean.ranked_bytes().values())


def test_publishing_anyway_needs_a_reason(lakes, checkpoint):
    given = settings(lakes["clean"], lakes["clean"] / "no", checkpoint)
    status, last = refused(given, "--publish-anyway", " ")
    assert status == 2
    assert "say why" in last["message"]


def test_wrong_config_is_refused_with_every_fault_and_status_2(lakes, checkpoint):
    wrong = ("ranking.depth=0", "scoring.nonsense=1")
    status, last = refused(settings(lakes["clean"], lakes["clean"] / "no", checkpoint, *wrong))
    assert status == 2
    assert "ranking.depth" in last["message"]
    assert "scoring.nonsense: no such setting" in last["message"]


def test_a_failed_audit_publishes_nothing(runner, lakes, checkpoint):
    """That its exit status is 3 is tested in tests/cli/test_job.py."""
    output = lakes["dirty"] / "audited"
    failed = run_here(runner, output, settings(lakes["dirty"], output, checkpoint, "audit.max_reject_rate=0.01"))
    assert failed.summary["published"] is False
    assert failed.summary["failed_audits"] == ["reject rate"]
    assert not (output / "current.json").exists()


def test_spark_settings_that_waste_models_are_refused(lakes, checkpoint):
    """In a process of its own: a session that is running here would have settings already."""
    wasteful = "spark.python.worker.reuse: false, spark.executor.resource.gpu.amount: 1, spark.task.resource.gpu.amount"
    conf = f"spark.conf={{spark.master: 'local[2]', {wasteful}: 0.5}}"
    output = lakes["clean"] / "no"
    refusal = run_job(sys.executable, output, settings(lakes["clean"], output, checkpoint, conf, "spark.local_pairs=0"))
    assert refusal.status == 1
    assert refusal.summary["error"] == "SparkSettingError"
    for words in (
        "spark.python.worker.reuse=false",
        "set it to true",
        "spark.task.resource.gpu.amount=0.5",
        "set it to 1",
    ):
        assert words in refusal.summary["message"]
