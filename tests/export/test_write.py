"""Exports of runs with ids that try every format: what the files hold, what a second command does, what a delta is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import ir_measures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.errors import ExportError, RunConflictError
from lakerank.export.format import ExportList, PartLimits, Target
from lakerank.export.job import FORMATS, Export, finished
from lakerank.export.write import export_run
from lakerank.lake.publication import publish
from lakerank.lake.runs import RunPaths, write_manifest
from lakerank.lake.storage import Storage
from lakerank.schemas import CANDIDATES, QUERIES, RANKED
from lakerank.spark.runtime.runner import SparkRunner

from .conftest import IDS, make_list

QUERY_IDS = sorted([*IDS, "q-1", "q-2"])
#: What the lists of an export are by.
KEYS = ("lists", "documents", "groups")
#: Some documents are of a group, others of none.
GROUPS = {document: number % 3 for number, document in enumerate(IDS) if number % 5}
OLD = [make_list(query, IDS[:9], seed) for seed, query in enumerate(QUERY_IDS[:-2])]
#: One list less, two more, every third one changed.
NEW = [
    make_list(query, IDS[3:12] if seed % 3 == 0 else IDS[:9], seed) for seed, query in enumerate(QUERY_IDS) if seed != 4
]


def write_run(storage: Storage, output: str, run_id: str, lists: list[ExportList], files: int) -> None:
    """A published run of some lists, in so many files of ranked/ and an empty one."""
    paths = RunPaths(output, run_id)
    size = -(-len(lists) // files)
    written = []
    Path(paths.ranked).mkdir(parents=True)
    for number in range(files + 1):
        rows = [row for ranking in lists[number * size : (number + 1) * size] for row in ranking.rows]
        columns = {name: [getattr(row, name) for row in rows] for name in RANKED.names}
        name = f"part-{number:05d}.parquet"
        groups = pa.array([GROUPS.get(row.doc_id) for row in rows], pa.int64())
        table = pa.table(columns, schema=RANKED).append_column("group_id", groups)
        pq.write_table(table, Path(paths.ranked) / name, row_group_size=7)
        written.append({"file": name, "rows": len(rows)})
    moment = f"2026-01-0{1 if run_id == 'old' else 2}T00:00:00+00:00"
    manifest = {"published_at": moment, "scorer": "f00d", "ranked_files": written, "ranking": {"per_group": 9}}
    write_manifest(storage, paths, manifest)
    publish(storage, paths)


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    storage = Storage()
    write_run(storage, str(folder / "out"), "old", OLD, files=3)
    write_run(storage, str(folder / "out"), "new", NEW, files=4)
    queries = [
        {"query_id": query, "text": None if query == "q-1" else f'text of\n"{number}"'}
        for number, query in enumerate(QUERY_IDS)
    ]
    pq.write_table(pa.Table.from_pylist(queries, schema=QUERIES), folder / "queries.parquet")
    pairs = [(row.query_id, row.doc_id, row.rank) for ranking in NEW for row in ranking.rows if row.rank != 2]
    rows = [{"query_id": query, "doc_id": doc, "first_stage_score": 1 / rank} for query, doc, rank in pairs]
    pq.write_table(pa.Table.from_pylist(rows, schema=CANDIDATES), folder / "candidates.parquet")
    return folder


@pytest.fixture
def requested(lake: Path, tmp_path: Path) -> Export:
    return Export(
        output=str(lake / "out"),
        run_id="new",
        since=None,
        format="parquet",
        target=Target(),
        to=str(tmp_path / "export"),
        depth=None,
        limits=PartLimits(rows=20, size=2**20),
        pairs=None,
        queries=str(lake / "queries.parquet"),
        candidates=str(lake / "candidates.parquet"),
    )


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def part_bytes(export: Export, manifest: dict[str, object]) -> list[bytes]:
    return [(Path(export.to) / part["name"]).read_bytes() for part in manifest["parts"]]


def encoded(name: str, lists: list[ExportList]) -> list[bytes]:
    """Each list alone as a file of the format."""
    form = FORMATS[name](Target())
    return [form.finish([form.encode(ranking)]) for ranking in lists]


@pytest.mark.parametrize("name", ["trec-run", "trec-qrels", "opensearch-lists", "vespa-lists"])
def test_the_parts_are_the_runs_lists_in_order_and_none_is_split(runner, storage, requested, name):
    export = replace(requested, format=name)
    manifest = export_run(runner, storage, export)
    assert b"".join(part_bytes(export, manifest)) == b"".join(encoded(name, NEW))
    assert manifest["rows"] == sum(len(ranking.rows) for ranking in NEW)
    assert max(part["rows"] for part in manifest["parts"]) == 18, "two lists of nine rows, of at most twenty"
    assert manifest["lists"] == {"added": len(NEW), "changed": 0, "removed": 0, "unchanged": 0}
    for part, data in zip(manifest["parts"], part_bytes(export, manifest), strict=True):
        assert (part["bytes"], part["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_texts_numbers_and_first_stage_scores_come_with_the_lists(runner, storage, requested):
    numbered = [replace(ranking, number=number) for number, ranking in enumerate(NEW, start=1)]
    texts = [ranking.key if ranking.key == "q-1" else f'text of\n"{QUERY_IDS.index(ranking.key)}"' for ranking in NEW]
    with_text = [replace(ranking, query_text=text) for ranking, text in zip(numbered, texts, strict=True)]
    judged = replace(requested, format="ltr-judgements")
    assert b"".join(part_bytes(judged, export_run(runner, storage, judged))) == b"".join(
        encoded("ltr-judgements", with_text)
    )
    scores = [tuple(None if row.rank == 2 else 1 / row.rank for row in ranking.rows) for ranking in NEW]
    scored = [replace(ranking, first_stage_scores=each) for ranking, each in zip(numbered, scores, strict=True)]
    ranked = replace(requested, format="svmrank", to=requested.to + "2")
    assert b"".join(part_bytes(ranked, export_run(runner, storage, ranked))) == b"".join(encoded("svmrank", scored))


def test_each_part_of_a_csv_has_the_header(runner, storage, requested):
    export = replace(requested, format="csv")
    parts = part_bytes(export, export_run(runner, storage, export))
    header, *_ = encoded("csv", NEW)[0].splitlines(keepends=True)
    assert len(parts) > 1
    assert [part[: len(header)] for part in parts] == [header] * len(parts)
    whole = b"".join(part.removeprefix(header) for part in encoded("csv", NEW))
    assert b"".join(part.removeprefix(header) for part in parts) == whole


def test_depth_cuts_lists(runner, storage, requested):
    export = replace(requested, depth=2)
    export_run(runner, storage, export)
    table = pq.read_table(export.to)
    assert table.to_pylist() == [row for row in ranked_rows(NEW) if row["rank"] <= 2]


def ranked_rows(lists: list[ExportList]) -> list[dict[str, object]]:
    return [{name: getattr(row, name) for name in RANKED.names} for ranking in lists for row in ranking.rows]


def test_the_same_command_does_nothing_again_and_writes_the_same_bytes_elsewhere(runner, storage, requested):
    first = export_run(runner, storage, requested)
    before = contents(requested.to)
    assert finished(storage, requested) == first == export_run(runner, storage, requested)
    elsewhere = replace(requested, to=requested.to + "2")
    export_run(runner, storage, elsewhere)
    assert contents(elsewhere.to) == before == contents(requested.to)
    by_document = replace(requested, format="opensearch-documents", to=requested.to + "3")
    export_run(runner, storage, by_document)
    export_run(runner, storage, replace(by_document, to=requested.to + "4"))
    assert contents(requested.to + "3") == contents(requested.to + "4")


@pytest.mark.spark
@pytest.mark.parametrize(
    ("name", "since"),
    [("opensearch-lists", "old"), ("opensearch-documents", "old"), ("quepid-csv", None), ("svmrank", None)],
)
def test_spark_writes_the_same_bytes(spark, runner, storage, requested, name, since):
    here = replace(requested, format=name, since=since)
    there = replace(here, to=requested.to + "2")
    export_run(runner, storage, here)
    export_run(SparkRunner(spark), storage, there)
    assert contents(here.to) == contents(there.to)


def test_an_interrupted_export_resumes_with_the_same_result(runner, storage, requested):
    export_run(runner, storage, requested)
    before = contents(requested.to)
    (Path(requested.to) / "_manifest.json").unlink()
    corrupt = Path(requested.to) / min(name for name in before if name.startswith("part-"))
    corrupt.unlink()
    export_run(runner, storage, requested)
    assert contents(requested.to) == before


def test_a_folder_of_something_else_is_refused(runner, storage, requested):
    export_run(runner, storage, requested)
    before = contents(requested.to)
    for other in (replace(requested, format="csv"), replace(requested, depth=3), replace(requested, run_id="old")):
        with pytest.raises(RunConflictError, match="another export"):
            export_run(runner, storage, other)
    (Path(requested.to) / "_manifest.json").unlink()
    with pytest.raises(RunConflictError, match="no finished export"):
        export_run(runner, storage, replace(requested, depth=3))
    assert contents(requested.to).items() <= before.items()


@pytest.mark.parametrize("name", ["parquet", "svmrank", "opensearch-documents"])
def test_the_delta_of_a_run_against_itself_is_empty(runner, storage, requested, name):
    manifest = export_run(runner, storage, replace(requested, format=name, since="new"))
    assert manifest["parts"] == manifest["removed"] == []
    assert manifest["lists"]["unchanged"] > 0
    assert list(contents(requested.to)) == ["_manifest.json"]


def delta(runner, storage, requested: Export, name: str) -> tuple[Export, dict[str, object]]:
    export = replace(requested, format=name, since="old", target=Target("a:b" if name.startswith("vespa") else None))
    return export, export_run(runner, storage, export)


def removed_keys(export: Export, manifest: dict[str, object]) -> set[str]:
    paths = [Path(export.to) / file["name"] for file in manifest["removed"]]
    return {json.loads(line)["query_id"] for path in paths for line in path.read_text().split("\n")[:-1]}


def test_the_old_table_and_the_delta_make_the_new_one(runner, storage, requested):
    export, manifest = delta(runner, storage, requested, "parquet")
    changed = pq.read_table(export.to).to_pylist()
    replaced = {row["query_id"] for row in changed} | removed_keys(export, manifest)
    assert removed_keys(export, manifest) == {QUERY_IDS[4]}
    assert manifest["lists"]["added"] == 2
    assert 0 < manifest["lists"]["changed"] < manifest["lists"]["unchanged"]
    kept = [row for row in ranked_rows(OLD) if row["query_id"] not in replaced]
    assert sorted([*kept, *changed], key=lambda row: (row["query_id"], row["rank"])) == ranked_rows(NEW)


def test_the_old_trec_run_and_the_delta_make_the_new_one(runner, storage, requested, tmp_path):
    export, manifest = delta(runner, storage, requested, "trec-run")

    def run(data: bytes) -> list[object]:
        path = tmp_path / "run.trec"
        path.write_bytes(data)
        return list(ir_measures.read_trec_run(str(path)))

    changed = run(b"".join(part_bytes(export, manifest)))
    replaced = {unquote(line.query_id) for line in changed} | removed_keys(export, manifest)
    kept = [line for line in run(b"".join(encoded("trec-run", OLD))) if unquote(line.query_id) not in replaced]
    assert sorted([*kept, *changed]) == sorted(run(b"".join(encoded("trec-run", NEW))))


@pytest.mark.parametrize("name", [f"{index}-{by}" for index in ("opensearch", "vespa") for by in KEYS])
def test_an_index_of_the_old_run_fed_the_delta_is_that_of_the_new_one(runner, storage, requested, name):
    fed = []
    for run_id, since in (("old", None), ("new", "old"), ("new", None)):
        export = replace(requested, format=name, run_id=run_id, since=since, to=f"{requested.to}-{run_id}-{since}")
        fed.append(b"".join(part_bytes(export, export_run(runner, storage, export))))
    old, changed, new = fed
    assert len(changed) < len(new) or not name.endswith("lists"), "every document's lists have changed"
    assert fed_index(old + changed) == fed_index(new)


def test_a_group_gets_the_lists_of_its_best_document(runner, storage, requested):
    best: dict[str, dict[str, dict[str, object]]] = {}
    for row in ranked_rows(NEW):
        best.setdefault(str(GROUPS.get(row["doc_id"], row["doc_id"])), {}).setdefault(row["query_id"], row)
    assert {"0", "1", "2"} < best.keys()
    fed = []
    for name in ("opensearch-groups", "vespa-groups"):
        export = replace(requested, format=name, to=f"{requested.to}-{name}")
        fed.append([json.loads(line) for part in part_bytes(export, export_run(runner, storage, export)) for line in
                    part.split(b"\n")[:-1]])  # fmt: skip
    actions, cells = fed
    updates = {
        action["update"]["_id"]: body["doc"]["lakerank"] for action, body in zip(*[iter(actions)] * 2, strict=True)
    }
    assert updates.keys() == best.keys()
    for group, queries in updates.items():
        expected = [(query, row["doc_id"], row["rank"]) for query, row in sorted(best[group].items())]
        assert [(row["query_id"], row["doc_id"], row["rank"]) for row in queries] == expected
    fields = {line["update"].removeprefix("id:lakerank:ranking::"): line["fields"] for line in cells}
    assert fields.keys() == best.keys()
    for group, values in fields.items():
        assert values["lakerank_best"]["assign"] == {query: row["doc_id"] for query, row in best[group].items()}
        relevance = {query: pytest.approx(row["relevance"]) for query, row in best[group].items()}
        assert values["lakerank"]["assign"]["cells"] == relevance


def test_a_run_without_groups_has_none_to_export(storage, requested, tmp_path):
    output = str(tmp_path / "out")
    manifest = {"published_at": "2026-01-01", "scorer": "f00d", "ranked_files": [], "ranking": {"depth": None}}
    write_manifest(storage, RunPaths(output, "new"), manifest)
    with pytest.raises(ExportError, match=r"'new' was ranked without ranking\.per_group"):
        finished(storage, replace(requested, output=output, format="vespa-groups"))


def fed_index(feed: bytes) -> dict[str, object]:
    """What an index holds after a feed. A document of the index's own that nothing ranks is like one never fed."""
    state: dict[str, object] = {}
    lines = (json.loads(line) for line in feed.split(b"\n")[:-1])
    for line in lines:
        state.update(_operation(line, lines))
    return {key: value for key, value in state.items() if value}


def _operation(line: dict[str, object], lines: Iterator[dict[str, object]]) -> Iterator[tuple[str, object]]:
    if "fields" in line or "remove" in line:
        (kind,) = line.keys() & {"put", "update", "remove"}
        fields = line.get("fields")
        yield line[kind], fields["lakerank"]["assign"] if kind == "update" else fields
        return
    ((kind, where),) = line.items()
    body = None if kind == "delete" else next(lines)
    yield where["_id"], body["doc"]["lakerank"] if kind == "update" else body


def test_golden_pairs_are_a_sample_and_always_the_same(runner, storage, requested):
    export = replace(requested, format="golden-pairs", pairs=25)
    export_run(runner, storage, export)
    pairs = pq.read_table(export.to).to_pylist()
    assert len(pairs) == 25
    assert len({row["query_id"] for row in pairs}) > 5, "spread over the run"
    logits = {(row["query_id"], row["doc_id"]): row["logit"] for row in ranked_rows(NEW)}
    assert all(logits[row["query_id"], row["doc_id"]] == row["logit"] for row in pairs)
    again = replace(export, to=requested.to + "2")
    export_run(runner, storage, again)
    assert contents(again.to) == contents(export.to)


def test_a_run_that_is_not_published_cannot_be_exported(storage, requested):
    with pytest.raises(ExportError, match=r"manifest\.json: not there"):
        finished(storage, replace(requested, run_id="nobody"))


def test_an_id_that_the_format_cannot_carry_stops_the_job_and_publishes_nothing(runner, storage, requested, tmp_path):
    write_run(storage, str(tmp_path / "out"), "new", [make_list("é" * 300, ["d"], 0)], files=1)
    export = replace(requested, format="opensearch-lists", output=str(tmp_path / "out"))
    with pytest.raises(ExportError, match=r"id .* has 600 bytes"):
        export_run(runner, storage, export)
    assert not (Path(export.to) / "_manifest.json").exists()
