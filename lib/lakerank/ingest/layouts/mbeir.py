"""M-BEIR: texts, images and both on either side, with an instruction in front of each query.

Source: the card of the hub's `TIGER-Lab/M-BEIR`, and `src/data/mbeir_dataset.py`, `src/data/preprocessing/utils.py` and
`src/common/mbeir_retriever.py` in github.com/TIGER-AI-Lab/UniIR. A dataset and a task's number name the files:
`query/SPLIT/mbeir_NAME_taskN_SPLIT.jsonl` of `{"qid", "query_txt", "query_img_path", "query_modality"}`,
`qrels/SPLIT/mbeir_NAME_taskN_SPLIT_qrels.txt` as trec_eval reads them with the task's number behind,
`cand_pool/local/mbeir_NAME_taskN[_SPLIT]_cand_pool.jsonl` and `cand_pool/global/mbeir_union_SPLIT_cand_pool.jsonl` of
`{"did", "txt", "img_path", "modality"}`, and `instructions/query_instructions.tsv`. Image paths are relative to the
folder. Ids are unique over all datasets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from lakerank.ingest.layouts.benchmark import (
    Benchmark,
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Part,
    Pool,
    Qrels,
    QueryColumns,
    call_all,
)
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder, without_rejects
from lakerank.ingest.lines import LineFault, read_each, record_id, record_text, trec_qrels
from lakerank.ingest.source import prefetched_files
from lakerank.ingest.tables import ContentRow, SourceFault, SourceReject

EXPECTS = (
    "query/SPLIT/mbeir_NAME_taskN_SPLIT.jsonl, qrels/SPLIT/mbeir_NAME_taskN_SPLIT_qrels.txt, "
    "cand_pool/local/mbeir_NAME_taskN_cand_pool.jsonl (or cand_pool/global/mbeir_union_SPLIT_cand_pool.jsonl), "
    "instructions/query_instructions.tsv and the unpacked mbeir_images/"
)

#: The eight tasks by their numbers (5 is not used): what the query holds → what the answer holds.
TASKS = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}

_INSTRUCTIONS = "instructions/query_instructions.tsv"

#: Assumed bytes of an image that is prefetched: all were scaled to 256 pixels a side.
_IMAGE_BYTES = 2**16

#: Instructions by dataset number, query modality and candidate modality.
Instructions = Mapping[tuple[str, str, str], list[str]]


def is_mbeir(folder: BenchmarkFolder) -> bool:
    """Whether queries and pools lie here."""
    return {"query", "cand_pool"} <= set(folder.folders())


def read_mbeir(folder: BenchmarkFolder, split: str | None) -> Benchmark:
    """Every dataset of the split (`test` by default), against its local pool, or the global one where that is all.

    Raises:
        StorageError: a file is not there.
    """
    split = split or "test"
    pattern = re.compile(rf"mbeir_(?P<name>\w+)_task(?P<task>\d)_{re.escape(split)}\.jsonl")
    files = [match for name in folder.files(f"query/{split}") if (match := pattern.fullmatch(name))]
    if not files:
        raise folder.missing(f"query/{split}/mbeir_NAME_taskN_{split}.jsonl")
    instructions = _instructions(folder, folder.require(_INSTRUCTIONS))
    parts = call_all(partial(_part, folder, match["name"], int(match["task"]), split, instructions) for match in files)
    return Benchmark("mbeir", tuple(parts))


def _part(folder: BenchmarkFolder, name: str, task: int, split: str, instructions: Instructions) -> Part:
    dataset = f"{name}_task{task}"
    if task not in TASKS:
        raise folder.missing(f"task number {task} of {dataset} among {', '.join(map(str, TASKS))}")
    qrels = folder.require(f"qrels/{split}/mbeir_{dataset}_{split}_qrels.txt")
    asks, wants = TASKS[task]
    columns = QueryColumns("mbeir", dataset, task=f"{asks}→{wants}")
    queries = partial(_queries, folder, f"query/{split}/mbeir_{dataset}_{split}.jsonl", columns, wants, instructions)
    judgements = partial(_judgements, folder, qrels)
    pool = _pool(folder, dataset, wants, split)
    return Part(dataset, pool, columns, queries, judgements, is_text=asks != "image")


def _judgements(folder: BenchmarkFolder, path: str) -> Qrels:
    return trec_qrels(path, folder.fields(path, None), "", "")


def _pool(folder: BenchmarkFolder, dataset: str, wants: str, split: str) -> Pool:
    """The dataset's own pool (MS COCO has one a split), else the pool of all datasets."""
    local = [f"cand_pool/local/mbeir_{dataset}_{part}cand_pool.jsonl" for part in ("", f"{split}_")]
    union = f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"
    path = folder.require(*local, union)
    is_union = path.startswith("cand_pool/global/")
    name = "union" if is_union else dataset
    documents = partial(_documents, folder, path, DocumentColumns(name))
    return Pool(name, documents, partial(_index, folder, path), is_searchable=not is_union and "text" in wants)


def _documents(
    folder: BenchmarkFolder, path: str, columns: DocumentColumns, is_included: DocumentFilter
) -> ContentRows:
    """Candidates with their images, which are prefetched."""

    def records() -> Iterator[tuple[int, Mapping[str, Any]] | SourceReject]:
        for record in folder.records(path):
            if isinstance(record, SourceReject) or "did" not in record[1] or is_included(str(record[1]["did"])):
                yield record

    yield from _rows(folder, path, records(), "img_path", partial(_document, columns))


def _document(columns: DocumentColumns, fields: Mapping[str, Any], image: bytes | None) -> ContentRow:
    text = format_text(record_text(fields, "txt"))
    return ContentRow(record_id(fields, ("did",)), text or None, image, tuple(columns))


def _rows(folder: BenchmarkFolder, path: str, records: Any, image_field: str, make_row: Any) -> ContentRows:
    def size(record: Any) -> int | None:
        return _IMAGE_BYTES if isinstance(record, tuple) and record[1].get(image_field) else None

    def read(record: Any) -> bytes:
        return folder.image(str(record[1][image_field]))

    def rows(_line: int, fetched: tuple[Mapping[str, Any], Any]) -> Iterator[ContentRow]:
        fields, image = fetched
        row: ContentRow = make_row(fields, None if image is None else image.result())
        if row.text is None and row.image is None:
            raise LineFault(SourceFault.FIELD_MISSING, f"neither text nor '{image_field}'")
        yield row

    fetched = (
        record if isinstance(record, SourceReject) else (record[0], (record[1], image))
        for record, image in prefetched_files(records, size, read)
    )
    return read_each(path, fetched, rows)


def _index(folder: BenchmarkFolder, path: str) -> Iterator[tuple[str, str]]:
    def text(_line: int, fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield record_id(fields, ("did",)), format_text(record_text(fields, "txt"))

    return without_rejects(read_each(path, folder.records(path), text))


def _queries(
    folder: BenchmarkFolder, path: str, columns: QueryColumns, wants: str, instructions: Instructions
) -> ContentRows:
    query = partial(_query, columns, wants, instructions)
    yield from _rows(folder, path, folder.records(path), "query_img_path", query)


def _query(
    columns: QueryColumns, wants: str, instructions: Instructions, fields: Mapping[str, Any], image: bytes | None
) -> ContentRow:
    """A query with its instruction in front: `{instruction} {text}`, as the authors concatenate them."""
    query_id = record_id(fields, ("qid",))
    instruction = _instruction(query_id, modality(record_text(fields, "query_modality") or ""), wants, instructions)
    text = format_text(f"{instruction} {record_text(fields, 'query_txt') or ''}")
    return ContentRow(query_id, text or None, image, tuple(columns._replace(instruction=instruction)))


def modality(name: str) -> str:
    """A modality as the tasks write it: the card says `text,image` where the files say `image,text`."""
    return ",".join(sorted(part.strip() for part in name.split(",")))


def _instruction(query_id: str, asks: str, wants: str, instructions: Instructions) -> str:
    """One of the dataset's instructions. The authors draw one at random; here the query's id draws, always the same."""
    choices = instructions.get((query_id.partition(":")[0], asks, wants))
    if not choices:
        raise LineFault(SourceFault.FIELD_INVALID, f"no instruction for {asks or 'no modality'} → {wants}")
    drawn = int.from_bytes(hashlib.blake2b(query_id.encode(), digest_size=8).digest()) % len(choices)
    return format_text(choices[drawn])


def _instructions(folder: BenchmarkFolder, path: str) -> Instructions:
    """The instructions file: query modality, candidate modality, dataset, its number, then up to four instructions."""
    instructions: dict[tuple[str, str, str], list[str]] = {}
    for line in folder.fields(path):
        if isinstance(line, tuple) and len(line[1]) > 4:
            asks, wants, _, dataset, *choices = (field.strip() for field in line[1])
            instructions[dataset, modality(asks), modality(wants)] = [choice for choice in choices if choice]
    return instructions


def format_text(text: str | None) -> str:
    """A text as the authors clean every one: no carriage returns or outer quotes, a capital first, a full stop last."""
    text = (text or "").replace("\r", "").strip().strip('"')
    if text:
        text = text[0].upper() + text[1:]
        text = text if text[-1] in ".?!" else f"{text}."
    return text
