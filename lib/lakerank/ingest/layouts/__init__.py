"""Layouts of published benchmarks, by name, and the detection of a folder's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lakerank.errors import StorageError
from lakerank.ingest.layouts import beir, coir, mbeir, miracl, mkqa, mldr, vidore, winoground
from lakerank.ingest.layouts.benchmark import Benchmark
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder
from lakerank.lake.uris import redacted


@dataclass(frozen=True, slots=True)
class Layout:
    """How a benchmark is published. `read` takes the folder and a split (None: the one that figures are given for)."""

    read: Callable[[BenchmarkFolder, str | None], Benchmark]
    recognises: Callable[[BenchmarkFolder], bool]
    expects: str


#: In the order of detection: the more specific before BEIR, whose files others use too.
LAYOUTS: Mapping[str, Layout] = {
    "winoground": Layout(winoground.read_winoground, winoground.is_winoground, winoground.EXPECTS),
    "mbeir": Layout(mbeir.read_mbeir, mbeir.is_mbeir, mbeir.EXPECTS),
    "miracl": Layout(miracl.read_miracl, miracl.is_miracl, miracl.EXPECTS),
    "mldr": Layout(mldr.read_mldr, mldr.is_mldr, mldr.EXPECTS),
    "mkqa": Layout(mkqa.read_mkqa, mkqa.is_mkqa, mkqa.EXPECTS),
    "coir": Layout(coir.read_coir, coir.is_coir, coir.EXPECTS),
    "vidore_v2": Layout(vidore.read_vidore_tables, vidore.is_vidore_tables, vidore.EXPECTS_TABLES),
    "vidore_v3": Layout(vidore.read_vidore_tables, vidore.is_vidore_tables, vidore.EXPECTS_TABLES),
    "vidore_v1": Layout(vidore.read_vidore, vidore.is_vidore, vidore.EXPECTS),
    "beir": Layout(beir.read_beir, beir.is_beir, beir.EXPECTS),
}

AUTO = "auto"


def read_benchmark(folder: BenchmarkFolder, layout: str, split: str | None) -> Benchmark:
    """The benchmark in a folder, its layout by name or `auto`. Reads listings and headers, not the data.

    Raises:
        StorageError: a file is not there, or the folder is not recognised.
        SchemaError: a table lacks a column.
    """
    if layout != AUTO:
        return _read(folder, layout, split)
    for name, candidate in LAYOUTS.items():
        if candidate.recognises(folder):
            return _read(folder, name, split)
    known = "\n".join(f"  {name}: {expected.expects}" for name, expected in LAYOUTS.items())
    raise StorageError(f"{redacted(folder.uri)}: not recognised as a benchmark. What each layout expects:\n{known}")


def _read(folder: BenchmarkFolder, name: str, split: str | None) -> Benchmark:
    try:
        return LAYOUTS[name].read(folder, split)
    except StorageError as error:
        raise StorageError(
            f"{error}\nThe layout {name} is {LAYOUTS[name].expects}. Links out of the folder are not looked at unless "
            "--follow-links is given; see docs/benchmarks.md"
        ) from error
