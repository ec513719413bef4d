"""Inputs of public bug reports: a case's folder makes its input with `make.py`, and its check here says what is right.

A check returns what came of the case, in words, and fails where that is not right. Nothing starts Spark.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from click.testing import CliRunner
from PIL import Image

from lakerank.cli import main

ROOT = Path(__file__).parents[2]

#: By the folder's name, with _ for -.
Check = Callable[[Path, Path], str]


def job(*words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and last line of a job, in this process."""
    result = CliRunner().invoke(main, words, prog_name="lakerank")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def rerank(lake: Path) -> tuple[int, dict[str, Any]]:
    """A rerank job on the case's tables."""
    values = {f"lake.{name}": str(lake / name) for name in ("documents", "queries", "candidates")}
    values |= {"lake.qrels": "null", "lake.output": str(lake / "out"), "audit.max_reject_rate": "1"}
    overrides = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return job("rerank", "--config", str(ROOT / "conf" / "demo.yaml"), "--run-id", "r", *overrides)


def rows(lake: Path, part: str) -> dict[str, Any]:
    """Rows of `ranked` or `rejected` by document."""
    table = pq.read_table(lake / "out" / part / "run_id=r", partitioning=None)
    return {row["doc_id"]: row for row in table.to_pylist()}


def ingest(source: Path, output: Path, *words: str) -> tuple[int, dict[str, Any]]:
    return job("ingest", str(source), "--layout", "beir", "--output", str(output), *words)


def pairs(folder: Path) -> set[tuple[str, str]]:
    """Ids of candidates, without the name of their dataset."""
    table = pq.read_table(folder / "candidates").select(["query_id", "doc_id"])
    return {tuple(value.rpartition("/")[2] for value in row.values()) for row in table.to_pylist()}


def stops(status: int, last: dict[str, Any], words: str) -> str:
    assert status != 0, last
    assert re.search(words, last["message"]), last
    return f"exit {status}: {last['message'][:150]}"


def logits(lake: Path) -> dict[str, float]:
    assert rerank(lake)[0] == 0
    return {name: row["logit"] for name, row in rows(lake, "ranked").items()}


def checkpoint_with_one_answer_word(case: Path, work: Path) -> str:
    from lakerank.errors import CheckpointError
    from lakerank.model.spec import CheckpointSpec, identify

    try:
        identify(CheckpointSpec(str(case)))
    except CheckpointError as error:
        message = str(error).removeprefix(str(case))
    else:
        raise AssertionError("taken for a reranker that it is not")
    assert "its LogitScore reads 'Yes' and None" in message
    assert "name it in model.family" in message
    return message


def cmyk_jpeg_without_marker(case: Path, work: Path) -> str:
    scores = logits(case)
    assert max(scores.values()) - min(scores.values()) < 0.5, scores
    return f"red three times: {scores}"


def column_only_in_the_path(case: Path, work: Path) -> str:
    status, last = rerank(case)
    assert status == 0
    assert last["scored"] == 2, last
    return "values of query_id come from the path"


def content_columns_by_other_names(case: Path, work: Path) -> str:
    status, last = rerank(case)
    if status:
        return stops(status, last, "no column 'text'.* and no column 'image'")
    assert last["scored"] == last["candidates"], last
    return "taken, in other letters"


def decomposed_letters(case: Path, work: Path) -> str:
    status, last = ingest(case, work)
    assert status == 0, last
    assert {("fr", "fr"), ("vi", "vi")} <= pairs(work)
    return "each query has its document as a candidate"


def dotted_property_on_the_command_line(case: Path, work: Path) -> str:
    from lakerank.config import load_config

    config = load_config(ROOT / "conf" / "demo.yaml", ["spark.conf.spark.master=local[2]"])
    assert config.spark.conf["spark.master"] == "local[2]"
    return "spark.master is local[2]"


def features_that_are_no_numbers(case: Path, work: Path) -> str:
    assert rerank(case)[0] == 0
    config = case / "out" / "runs" / "r" / "config.yaml"
    words = ("--config", str(config), "--run-id", "current", "--format", "svmrank", "--to", str(work / "svm"))
    assert job("export", *words)[0] == 0
    text = "".join(file.read_text() for file in (work / "svm").rglob("*") if file.is_file() and file.suffix != ".json")
    assert "qid" in text
    assert not re.search(r":(nan|-?inf)", text, re.IGNORECASE), text
    return "left out"


def filled_form(case: Path, work: Path) -> str:
    assert job("ingest", str(case), "--pdf-content", "both", "--output", str(work))[0] == 0
    (image,) = [image for image in pq.read_table(work / "documents")["image"].to_pylist() if image]
    dark = int((np.asarray(Image.open(io.BytesIO(image)).convert("L")) < 128).sum())
    assert dark > 200
    return f"{dark} dark pixels"


def folder_name_with_underscore(case: Path, work: Path) -> str:
    status, last = rerank(case)
    assert (status, last["scored"]) == (0, 2), last
    return "both folders are read"


def folder_of_a_delta_table(case: Path, work: Path) -> str:
    return stops(*rerank(case), "Delta")


def grey_of_other_depths(case: Path, work: Path) -> str:
    scores = logits(case)
    rejected = rows(case, "rejected")
    marked = [name for name, row in rows(case, "ranked").items() if row["truncated"]]
    assert all(abs(scores[name] - scores["png"]) < 0.25 for name in scores.keys() - set(marked)), scores
    return f"{scores}, rejected {sorted(rejected)}, marked {marked}"


def hour_that_comes_twice(case: Path, work: Path) -> str:
    names = subprocess.run(
        [sys.executable, case / "make.py"],
        cwd=ROOT / "airflow_dags",
        env={"PYTHONPATH": "."},
        capture_output=True,
        check=True,
    )
    return names.stdout.decode().strip()


def image_header_dds(case: Path, work: Path) -> str:
    assert rerank(case)[0] == 0
    assert list(rows(case, "ranked")) == ["good"]
    assert rows(case, "rejected")["dds"]["reason"] == "image_unsupported_format"
    return "rejected as image_unsupported_format"


def judgements_of_four_columns(case: Path, work: Path) -> str:
    status, last = ingest(case, work)
    assert status == 0, last
    qrels = pq.read_table(work / "qrels").select(["query_id", "doc_id", "relevance"]).to_pylist()
    assert {tuple(row.values()) for row in qrels} == {("toy/1185868", "toy/16", 1), ("toy/597651", "toy/49", 1)}, qrels
    return "read as four columns"


def nothing_left_and_exit_0(case: Path, work: Path) -> str:
    return stops(*ingest(case, work), "qrels")


def one_image_in_many_rows(case: Path, work: Path) -> str:
    from lakerank.lake.storage import Storage
    from lakerank.lake.tables import read_table_file
    from lakerank.schemas import DOCUMENTS

    batches = read_table_file(Storage(), str(case / "documents" / "a.parquet"), DOCUMENTS)
    largest = max(sum(len(image) for image in batch.column("image").to_pylist()) for _, _, batch in batches)
    assert largest <= 2 * 64 * 2**20
    return f"batches of at most {largest / 2**20:.0f} MiB"


def query_among_its_own_documents(case: Path, work: Path) -> str:
    assert ingest(case, work)[0] == 0
    candidates = pairs(work)
    assert ("a2", "a1") in candidates
    assert ("a2", "a2") not in candidates
    return "no query is its own candidate"


def run_with_spaces_in_ids(case: Path, work: Path) -> str:
    assert ingest(case, work, "--run", str(case / "run.trec"))[0] == 0
    assert ("q2", "my doc 2") in pairs(work)
    return "split at tabs"


def second_page_of_a_tiff(case: Path, work: Path) -> str:
    assert rerank(case)[0] == 0
    assert rows(case, "ranked")["two"]["truncated"]
    return "truncated says that a page was left out"


def types_as_lakes_have_them(case: Path, work: Path) -> str:
    found = {}
    for name in ("integers", "capitals", "uuids", "structs", "decimals"):
        lake = work / name
        tables = {table: case / table for table in ("documents", "queries", "candidates")}
        tables |= {"candidates" if name == "decimals" else "documents": case / name}
        for table, folder in tables.items():
            shutil.copytree(folder, lake / table)
        status, last = rerank(lake)
        assert status == (3 if name == "structs" else 0), last
        scored = "rejected" if name == "structs" else "ranked"  # its image is none
        found[name] = [row["doc_id"] for row in rows(lake, scored).values() if row.get("reason") != "missing_document"]
    uuid = "00000000-0000-0000-0000-000000000005"
    expected = {"integers": [9007199254740993, 7], "capitals": ["d1"], "uuids": [uuid], "structs": ["d1"]}
    assert {name: sorted(map(str, ids)) for name, ids in found.items()} == {
        name: sorted(map(str, ids)) for name, ids in (expected | {"decimals": ["d1"]}).items()
    }, found
    return "all taken"


def uuid_as_sixteen_bytes(case: Path, work: Path) -> str:
    status, last = rerank(case)
    return "they match" if status == 0 and last["scored"] == 3 else stops(status, last, "doc_id.*(cast|UUID|string)")


CHECKS: dict[str, Check] = {
    name.replace("_", "-"): check
    for name, check in list(globals().items())
    if callable(check) and (Path(__file__).parent / name.replace("_", "-")).is_dir()
} | {"dotted-property-on-the-command-line": dotted_property_on_the_command_line}


def result(name: str, folder: Path) -> str:
    """Make a case's input in an empty folder, and check what comes of it."""
    source, case = Path(__file__).parent / name, folder / "case"
    if (source / "input").is_dir():
        shutil.copytree(source / "input", case)
    elif name == "hour-that-comes-twice":
        case = source
    elif source.is_dir():
        make = [sys.executable, str(source / "make.py"), str(case)]
        subprocess.run(make, check=True, capture_output=True)
    return CHECKS[name](case, folder / "output")
