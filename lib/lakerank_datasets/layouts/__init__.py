"""Layouts of published benchmarks, by name, and the detection of a folder's layout."""

from __future__ import annotations

from collections.abc import Mapping

from lakerank.credentials import redacted
from lakerank.errors import SchemaError, StorageError
from lakerank_datasets.layouts import mbeir, mkqa, passages, vidore, winoground
from lakerank_datasets.layouts.benchmark import Layout, Part
from lakerank_datasets.layouts.benchmark_folder import BenchmarkFolder

#: In the order of detection: the more specific before BEIR, whose files others use too.
LAYOUTS: Mapping[str, Layout] = {
    "winoground": winoground.LAYOUT,
    "mbeir": mbeir.LAYOUT,
    "miracl": passages.MIRACL,
    "mldr": passages.MLDR,
    "mkqa": mkqa.LAYOUT,
    "coir": passages.COIR,
    "vidore_v2": vidore.TABLES,
    "vidore_v3": vidore.TABLES,
    "vidore_v1": vidore.PAGES,
    "beir": passages.BEIR,
}


def read_benchmark(folder: BenchmarkFolder, layout: str, split: str | None) -> list[Part]:
    """The parts of the benchmark in a folder, its layout by name or `auto`. Reads listings and headers, not the data.

    Raises:
        StorageError: a file is not there, a table lacks a column, or the folder is not recognised.
    """
    names = (name for name, known in LAYOUTS.items() if _is_recognised(known, folder))
    name = next(names, None) if layout == "auto" else layout
    if name is None:
        known = "\n".join(f"  {name}: {expected.expects}" for name, expected in LAYOUTS.items())
        raise StorageError(f"{redacted(folder.uri)}: not recognised as a benchmark. What each layout expects:\n{known}")
    try:
        return _parts(LAYOUTS[name], folder, split or LAYOUTS[name].split)
    except StorageError as error:
        raise StorageError(
            f"{error}\nThe layout {name} is {LAYOUTS[name].expects}. Links out of the folder are not looked at unless "
            "--follow-links is given; see docs/benchmarks.md"
        ) from error


def _is_recognised(layout: Layout, folder: BenchmarkFolder) -> bool:
    return layout.recognises(folder) if layout.recognises else bool(layout.datasets(folder, layout.split))


def _parts(layout: Layout, folder: BenchmarkFolder, split: str) -> list[Part]:
    """The parts of every dataset; what several datasets lack is one StorageError."""
    datasets = layout.datasets(folder, split)
    if not datasets:
        raise folder.missing(f"dataset with the split {split}" if split else "dataset")
    parts: list[Part] = []
    faults = []
    for dataset in datasets:
        try:
            parts += layout.parts(folder, split, *dataset)
        except (StorageError, SchemaError) as error:
            faults.append(str(error))
    if faults:
        raise StorageError("\n".join(faults))
    return parts
