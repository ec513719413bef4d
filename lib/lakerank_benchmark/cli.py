"""`jobs/benchmark.py`: how fast scoring is here, against the published loop and others."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lakerank
from lakerank.cli.job import EPILOG, run_job, verbose_option
from lakerank.errors import ConfigError

if TYPE_CHECKING:
    from lakerank.config import Config
    from lakerank_benchmark.benchmark import Request, Result
    from lakerank_benchmark.spark_job import LakeFiles

logger = logging.getLogger(__name__)

_BUNDLED_DOCUMENTS = Path(lakerank.__file__).parent / "ingest" / "demo_lake" / "documents.parquet"

#: Units a core: in the end one core at most waits for a unit's time.
_UNITS = 20

#: Cost of a page with 25 queries, in `lakerank.cost`'s tokens, by which units are cut.
_PAGE_TOKENS = 3500
_WORKLOADS = ("pages", "texts-500", "skewed", "pictograms", "mixed")
_ENCODERS = ("bge-reranker", "jina-reranker-v2")
_FAMILIES = ("jina-reranker-m0", "monoqwen2-vl", "qwen3-vl-reranker", "qwen3-reranker", *_ENCODERS)
_CONTENDERS = ("lakerank", "lakerank fast", "published loop", "CrossEncoder")


def _numbers(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        found = (0,)
    if min(found) < 1 or max(found) > 400:
        raise click.BadParameter(f"{value}: expected numbers from 1 to 400, separated by commas")
    return found


@click.command(epilog=EPILOG)
@click.option(
    "--shape",
    type=click.Choice(["bundled", "random-80m", "2b", "tiny", "small", "published"]),
    default="bundled",
    show_default=True,
    help="The bundled checkpoint, or random weights: 80 M parameters, the published 2B, or next to none; of a "
    "cross-encoder a small network or the published one.",
)
@click.option(
    "--family",
    type=click.Choice(_FAMILIES),
    default=_FAMILIES[0],
    show_default=True,
    help="Whose layout random weights get; with --checkpoint its config.json says it.",
)
@click.option(
    "--max-length", type=click.IntRange(min=64), help="Tokens of a pair; by default as the family is published."
)
@click.option("--checkpoint", metavar="FOLDER", help="A checkpoint of your own, instead of --shape.")
@click.option(
    "--workload",
    "workloads",
    type=click.Choice(_WORKLOADS),
    multiple=True,
    default=("pages", "texts-500"),
    show_default=True,
    help="May be given several times. mixed has 2 % bad rows.",
)
@click.option(
    "--contender",
    "contenders",
    type=click.Choice(_CONTENDERS),
    multiple=True,
    default=_CONTENDERS,
    show_default=True,
    help="Who runs; may be given several times. `lakerank` is the reproducible mode.",
)
@click.option("--k", "ks", default="1,25", show_default=True, callback=_numbers, help="Queries a document.")
@click.option(
    "--pdf",
    "pdfs",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="PDF files, or folders of them, whose pages are the page images; without any, pages are drawn.",
)
@click.option(
    "--page-pixels", type=click.IntRange(min=3136), default=602_112, show_default=True, help="Of a PDF's page."
)
@click.option("--threads", type=click.IntRange(min=1), help="Of torch, on a CPU; all cores by default.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Interleaved rounds.")
@click.option(
    "--budget-s", type=click.FloatRange(min=0.1), default=60, show_default=True, help="Seconds of timed runs."
)
@click.option("--no-memory", is_flag=True, help="Do not measure peak memory, which loads every contender once more.")
@click.option("--spark", "with_spark", is_flag=True, help="Also the whole job on Spark, against predict_batch_udf.")
@click.option("--no-model", is_flag=True, help="Only what --spark adds.")
@click.option(
    "--calibration", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write what `scoring.calibration` of a config names: the plan then forecasts device-hours.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("out/benchmark"), show_default=True,
    help="Folder for benchmark.json, benchmark.png and random weights.",
)  # fmt: skip
@verbose_option
def benchmark(
    shape: str, family: str, max_length: int | None, checkpoint: str | None, workloads: tuple[str, ...],
    contenders: tuple[str, ...], ks: tuple[int, ...], pdfs: tuple[Path, ...], page_pixels: int, threads: int | None,
    device: str, dtype: str, repeats: int, budget_s: float, no_memory: bool, with_spark: bool, no_model: bool,
    calibration: Path | None, output: Path, verbose: bool,
) -> None:  # fmt: skip
    """Time scoring on this machine: same weights, same inputs, one process, interleaved runs, medians.

    Prints tables (pairs a second, ratio to the published loop, tokens, padding, operations a second beside those of
    matrix products, shares of wall time, predicted beside measured), and writes benchmark.json and benchmark.png. The
    last line of standard output is a JSON object: what ran, by workload, k and contender, and where the files are.
    """

    def work() -> dict[str, Any]:
        if no_model and not with_spark:
            raise ConfigError(["--no-model leaves nothing to do without --spark"])
        from lakerank_benchmark.benchmark import Request
        from lakerank_benchmark.machine import chosen_threads, device_name

        output.mkdir(parents=True, exist_ok=True)
        request = Request(
            _checkpoint(shape, family, checkpoint, dtype, output), dtype, device_name(device), chosen_threads(threads),
            workloads, ks, contenders, repeats, budget_s, not no_memory, max_length,
        )  # fmt: skip
        pages = _pages(pdfs, page_pixels)
        summary: dict[str, Any] = {"output": str(output)}
        if not no_model:
            summary |= _model(request, pages, output, calibration)
        if with_spark:
            summary["spark"] = _spark(request, pages, output)
        return summary

    run_job(work, verbose)


def _model(
    request: Request, pages: Callable[[int], Sequence[bytes]], output: Path, calibration: Path | None
) -> dict[str, Any]:
    from lakerank_benchmark.benchmark import benchmark as measure
    from lakerank_benchmark.report import as_json, as_text, summary

    result = measure(request, pages, _pictograms)
    click.echo(as_text(result))
    (output / "benchmark.json").write_text(as_json(result), encoding="utf-8")
    _plot(result, output / "benchmark.png")
    if calibration is not None:
        calibration.write_text(result.calibration.to_json(), encoding="utf-8")
    return summary(result)


def _spark(request: Request, pages: Callable[[int], Sequence[bytes]], output: Path) -> dict[str, Any]:
    """The whole job and the baseline on one local Spark of as many cores as threads, a thread a task."""
    from lakerank.cli.resolve import rerank_job
    from lakerank.lake.storage import Storage
    from lakerank.spark.runtime import session
    from lakerank_benchmark import spark_job as end_to_end
    from lakerank_benchmark.benchmark import end_to_end_inputs

    groups, some = end_to_end_inputs(request, pages)
    storage, folder = Storage(), output.resolve() / "spark"
    shutil.rmtree(folder, ignore_errors=True)
    lake = end_to_end.write_lake(storage, str(folder / "lake"), groups)
    config = _config(request, lake, folder / "out", len(groups))
    spark = session.start(config.spark.app_name, config.spark.conf)
    try:
        job, theirs = rerank_job(config, "benchmark", storage), None
        ours = end_to_end.time_job(spark, storage, job, folder / "profile")
        click.echo(end_to_end.as_text(ours))
        if some:
            part = end_to_end.write_lake(storage, str(folder / "part"), some)
            factory = end_to_end.PublishedFactory(request.checkpoint, request.dtype, request.device)
            theirs = end_to_end.time_published(spark, part, factory, str(folder / "scores"))
            click.echo(end_to_end.as_text(theirs))
    finally:
        spark.stop()
    found = end_to_end.compared(ours, theirs)
    click.echo(f"outside fetching, decoding and the model: {found['outside']:.1%} of the cores' time")
    (output / "benchmark-spark.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _config(request: Request, lake: LakeFiles, output: Path, documents: int) -> Config:
    """The demo's settings for these tables, in units of even size, several a core."""
    from lakerank.config import resolve_config

    values: dict[str, Any] = {
        "lake": {**asdict(lake), "output": str(output)},
        "model": {"path": request.checkpoint, "dtype": request.dtype, "device": request.device},
        "scoring": {"unit_tokens": max(1, documents // (_UNITS * request.threads)) * _PAGE_TOKENS},
        "audit": {"max_reject_rate": None, "max_unranked_queries": None, "max_score_drift": None},
        "spark": {
            "app_name": "lakerank-benchmark",
            "conf": {
                "spark.master": f"local[{request.threads}]",
                "spark.driver.memory": "2g",
                "spark.ui.enabled": False,
                "spark.ui.showConsoleProgress": False,
            },
        },
    }
    return resolve_config(values, source="benchmark")


def _plot(result: Result, file: Path) -> None:
    from lakerank.errors import DependencyError
    from lakerank_benchmark.plot import draw

    try:
        draw(result, file)
    except DependencyError as error:
        logger.warning("no plot: %s", error)


def _checkpoint(shape: str, family: str, checkpoint: str | None, dtype: str, output: Path) -> str:
    """Where the weights are; random ones are written."""
    if checkpoint is not None:
        return checkpoint
    if shape == "bundled":
        if family != _FAMILIES[0]:
            raise ConfigError([f"--family {family}: the bundled checkpoint is another's; choose a --shape"])
        return "embedded"
    from lakerank_benchmark.generative_shapes import random_generative_checkpoint
    from lakerank_benchmark.shapes import SHAPES, random_checkpoint

    folder = output / "checkpoints"
    if family in _ENCODERS:
        from lakerank_benchmark.encoder_shapes import KINDS, random_encoder_checkpoint

        if shape not in KINDS[family]:
            raise ConfigError([f"--shape {shape}: not {family}'s; choose {' or '.join(KINDS[family])}"])
        return str(random_encoder_checkpoint(folder, KINDS[family][shape], dtype))
    if shape not in SHAPES:
        raise ConfigError([f"--shape {shape}: not {family}'s; choose {', '.join(SHAPES)}"])
    if family == _FAMILIES[0]:
        return str(random_checkpoint(folder, SHAPES[shape], dtype))
    return str(random_generative_checkpoint(folder, family, SHAPES[shape], dtype))


def _pages(pdfs: Sequence[Path], page_pixels: int) -> Callable[[int], Sequence[bytes]]:
    """So many page images, made once."""
    from lakerank_benchmark.pages import drawn_pages, pdf_files, pdf_pages

    files = pdf_files(pdfs)

    @functools.cache
    def pages(count: int) -> Sequence[bytes]:
        return list(pdf_pages(files, count, page_pixels) if files else drawn_pages(count))

    return pages


@functools.cache
def _pictograms(count: int) -> Sequence[bytes]:
    """Images of the bundled lake."""
    from lakerank.lake.storage import Storage
    from lakerank.lake.tables import read_table_file
    from lakerank.schemas import DOCUMENTS

    batches = read_table_file(Storage(), str(_BUNDLED_DOCUMENTS), DOCUMENTS, ["image"])
    images = (image for *_, batch in batches for image in batch.column(0).to_pylist() if image is not None)
    return list(itertools.islice(images, count))
