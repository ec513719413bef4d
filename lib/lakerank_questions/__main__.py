"""Rebuild the text lake: `python -m lakerank_questions DIR`."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lakerank import schemas
from lakerank.errors import LakerankError
from lakerank_questions.manual import Section, fetch, read_pages, read_sections


def main() -> int:
    """Fetch the manual, write the lake's tables, and print the SHA-256 of each."""
    parser = argparse.ArgumentParser(prog="python -m lakerank_questions", description=__doc__)
    parser.add_argument("lake", type=Path, metavar="DIR", help="write documents, queries and qrels here")
    parser.add_argument("--package", type=Path, metavar="DIR", help="keep the Debian package here (default: nowhere)")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            pages = read_pages(fetch((arguments.package or Path(scratch)).absolute()))
    except LakerankError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_lake(arguments.lake, [section for name, page in pages.items() for section in read_sections(name, page)])
    return 0


def write_lake(folder: Path, sections: Iterable[Section]) -> None:
    """Each section is a document; each heading of the FAQ that asks is a query, which its section answers.

    A question that is asked on two pages is one query with two answers.
    """
    documents, answers = [], dict[str, list[str]]()
    for section in sections:
        page, _, _ = section.name.partition("#")
        documents.append({"doc_id": section.name, "text": section.text, "path": f"{page}.html"})
        if page.startswith("faq/") and section.heading.endswith("?"):
            answers.setdefault(section.heading, []).append(section.name)
    names = {question: f"q{number:03}" for number, question in enumerate(answers, 1)}
    queries = [{"query_id": names[question], "text": question} for question in answers]
    qrels = [
        {"query_id": names[question], "doc_id": document, "relevance": 1}
        for question, relevant in answers.items()
        for document in relevant
    ]
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: pa.Table.from_pylist(rows) for name, rows in (("documents", documents), ("queries", queries))}
    for name, table in (tables | {"qrels": pa.Table.from_pylist(qrels, schema=schemas.QRELS)}).items():
        file = folder / f"{name}.parquet"
        pq.write_table(table, file, compression="zstd", compression_level=19)
        sys.stdout.write(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}\n")


if __name__ == "__main__":
    sys.exit(main())
