"""M-BEIR: texts, images and both on either side, with an instruction in front of each query.

Source: the card of the hub's `TIGER-Lab/M-BEIR`, and `src/data/mbeir_dataset.py`, `src/data/preprocessing/utils.py` and
`src/common/mbeir_retriever.py` in github.com/TIGER-AI-Lab/UniIR. A query is `{"qid", "query_txt", "query_img_path",
"query_modality"}`, a candidate `{"did", "txt", "img_path", "modality"}`, image paths relative to the folder, ids unique
over all datasets. Qrels are as trec_eval reads them, with the task's number behind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lakerank.ingest.judgements import qrels
from lakerank.ingest.lines import Record, read_each, record_id, record_text
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.ingest.source import Read, prefetched
from lakerank.ingest.tables import ContentRow
from lakerank_datasets.layouts.benchmark import (
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Layout,
    Part,
    Pool,
    Qrels,
    QueryColumns,
    every_id,
)
from lakerank_datasets.layouts.benchmark_folder import BenchmarkFolder

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


def _datasets(folder: BenchmarkFolder, split: str) -> list[tuple[str, int, Instructions]]:
    """Name, task and instructions of each dataset of the split."""
    pattern = re.compile(rf"mbeir_(?P<name>\w+)_task(?P<task>\d)_{re.escape(split)}\.jsonl")
    files = [match for name in folder.files(f"query/{split}") if (match := pattern.fullmatch(name))]
    instructions = _instructions(folder, folder.require(_INSTRUCTIONS)) if files else {}
    return [(match["name"], int(match["task"]), instructions) for match in files]


def _parts(folder: BenchmarkFolder, split: str, name: str, task: int, instructions: Instructions) -> list[Part]:
    """A dataset against its own pool (MS COCO has one a split), or the pool of all datasets where that is all."""
    dataset = f"{name}_task{task}"
    if task not in TASKS:
        raise folder.missing(f"task number {task} of {dataset} among {', '.join(map(str, TASKS))}")
    qrels = folder.require(f"qrels/{split}/mbeir_{dataset}_{split}_qrels.txt")
    query_modality, candidate_modality = TASKS[task]
    columns = QueryColumns("mbeir", dataset, task=f"{query_modality}→{candidate_modality}")
    path = f"query/{split}/mbeir_{dataset}_{split}.jsonl"
    queries = partial(_queries, folder, path, columns, candidate_modality, instructions)
    judgements = partial(_qrels, folder, qrels)
    local = [f"cand_pool/local/mbeir_{dataset}_{part}cand_pool.jsonl" for part in ("", f"{split}_")]
    corpus = folder.require(*local, f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl")
    is_union = corpus.startswith("cand_pool/global/")
    pool_name = "union" if is_union else dataset
    documents = partial(_documents, folder, corpus, DocumentColumns(pool_name))
    is_searchable = not is_union and query_modality != "image" and "text" in candidate_modality
    return [Part(dataset, Pool(pool_name, documents), columns, queries, judgements, is_searchable=is_searchable)]


def _qrels(folder: BenchmarkFolder, path: str) -> Qrels:
    """Judgements in TREC's four columns, the task's number cut off."""
    lines = read_each(path, folder.fields(path, None), lambda number, fields: [(number, without_task(fields, 4))])
    return qrels(path, lines)


def without_task(fields: list[str], count: int) -> list[str]:
    """The fields of a line of `count` and the task's number."""
    return fields[:count] if len(fields) == count + 1 and fields[count].isdigit() else fields


def _documents(
    folder: BenchmarkFolder, path: str, columns: DocumentColumns, is_included: DocumentFilter, images: bool
) -> ContentRows:
    def document(fields: Mapping[str, Any]) -> ContentRow:
        text = format_text(record_text(fields, "txt"))
        return ContentRow(record_id(fields, "did"), text or None, extra=columns)

    return _rows(folder, path, document, "img_path" if images else "", is_included)


def _rows(
    folder: BenchmarkFolder,
    path: str,
    make_row: Callable[[Mapping[str, Any]], ContentRow],
    image_field: str,
    is_included: DocumentFilter = every_id,
) -> ContentRows:
    """A row of each record, with its prefetched image where it has one; "" as the field: images are not read."""

    def is_read(fields: Mapping[str, Any]) -> bool:
        return "did" not in fields or is_included(str(fields["did"]))

    def fetches() -> Iterator[tuple[Record | SourceReject, int, Read | None]]:
        for record in folder.records(path):
            name = "" if isinstance(record, SourceReject) or not is_read(record[1]) else record[1].get(image_field)
            yield (record, _IMAGE_BYTES, partial(folder.image, str(name))) if name else (record, 0, None)

    def rows(_line: int, fetched: tuple[Mapping[str, Any], Any]) -> Iterator[ContentRow]:
        fields, image = fetched
        if not is_read(fields):
            return
        row = make_row(fields)
        if row.text is None and image is None and image_field:
            raise SourceError(SourceFault.FIELD_MISSING, f"neither text nor '{image_field}'")
        yield row if image is None else replace(row, image=image.result())

    fetched = (
        record if isinstance(record, SourceReject) else (record[0], (record[1], image))
        for record, image in prefetched(fetches())
    )
    return read_each(path, fetched, rows)


def _queries(
    folder: BenchmarkFolder, path: str, columns: QueryColumns, candidate_modality: str, instructions: Instructions
) -> ContentRows:
    """Queries with an instruction in front: `{instruction} {text}`, as the authors concatenate them."""

    def query(fields: Mapping[str, Any]) -> ContentRow:
        query_id = record_id(fields, "qid")
        query_modality = modality(record_text(fields, "query_modality") or "")
        instruction = _instruction(query_id, query_modality, candidate_modality, instructions)
        text = format_text(f"{instruction} {record_text(fields, 'query_txt') or ''}")
        return ContentRow(query_id, text or None, extra=columns._replace(text_prefix=instruction))

    return _rows(folder, path, query, "query_img_path")


def modality(name: str) -> str:
    """A modality as the tasks write it: the card says `text,image` where the files say `image,text`."""
    return ",".join(sorted(part.strip() for part in name.split(",")))


def _instruction(query_id: str, asks: str, wants: str, instructions: Instructions) -> str:
    """One of the dataset's instructions. The authors draw one at random; here the query's id draws, always the same."""
    choices = instructions.get((query_id.partition(":")[0], asks, wants))
    if not choices:
        raise SourceError(SourceFault.FIELD_INVALID, f"no instruction for {asks or 'no modality'} → {wants}")
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


LAYOUT = Layout(
    expects=(
        "query/SPLIT/mbeir_NAME_taskN_SPLIT.jsonl, qrels/SPLIT/mbeir_NAME_taskN_SPLIT_qrels.txt, "
        "cand_pool/local/mbeir_NAME_taskN_cand_pool.jsonl (or cand_pool/global/mbeir_union_SPLIT_cand_pool.jsonl), "
        "instructions/query_instructions.tsv and the unpacked mbeir_images/"
    ),
    split="test",
    datasets=_datasets,
    parts=_parts,
    recognises=lambda folder: {"query", "cand_pool"} <= set(folder.folders()),
)
