"""`jobs/benchmark.py`: how fast scoring is here, against the published loop and others."""

from __future__ import annotations

import functools
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli.job import Job
from lakerank.errors import ConfigError, DependencyError
from lakerank_benchmark.request import CONTENDERS, ENCODERS, FAMILIES, WORKLOADS, Request

if TYPE_CHECKING:
    from lakerank_benchmark.workloads import Images

logger = logging.getLogger(__name__)


def _numbers(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1 or max(numbers) > 400:
        raise click.BadParameter(f"{value}: expected numbers from 1 to 400, separated by commas")
    return numbers


_option = functools.partial(click.option, show_default=True)
_several = functools.partial(_option, multiple=True)


@click.command(cls=Job, config=None)
@_option(
    "--shape", type=click.Choice(["bundled", "random-80m", "2b", "tiny", "small", "published"]), default="bundled",
    help="The bundled checkpoint, or random weights: 80 M parameters, the published 2B, or next to none; of a "
    "cross-encoder a small network or the published one.",
)  # fmt: skip
@_option(
    "--family", type=click.Choice(FAMILIES), default=FAMILIES[0],
    help="Whose layout random weights get; with --checkpoint its config.json says it.",
)  # fmt: skip
@_option("--max-length", type=click.IntRange(min=64), help="Tokens of a pair; by default as the family is published.")
@_option("--checkpoint", metavar="FOLDER", help="A checkpoint of your own, instead of --shape.")
@_several(
    "--workload", "workloads", type=click.Choice(WORKLOADS), default=WORKLOADS[:2],
    help="May be given several times. mixed has 2 % bad rows.",
)  # fmt: skip
@_several(
    "--contender", "contenders", type=click.Choice(CONTENDERS), default=CONTENDERS,
    help="Who runs; may be given several times. `lakerank` is the reproducible mode.",
)  # fmt: skip
@_option("--k", "ks", default="1,25", callback=_numbers, help="Queries a document.")
@_several(
    "--pdf", "pdfs", type=click.Path(exists=True, path_type=Path),
    help="PDF files, or folders of them, whose pages are the page images; without any, pages are drawn.",
)  # fmt: skip
@_option("--resize", type=click.Choice(["pillow", "torch"]), default="pillow", help="As scoring.resize, of ours.")
@_option("--page-pixels", type=click.IntRange(min=3136), default=602_112, help="Of a PDF's page.")
@_option("--threads", type=click.IntRange(min=1), help="Of torch, on a CPU; all cores by default.")
@_option("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
@_option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@_option("--repeats", type=click.IntRange(min=1), default=3, help="Interleaved rounds.")
@_option("--budget-s", type=click.FloatRange(min=0.1), default=60, help="Seconds of timed runs.")
@_option("--no-memory", is_flag=True, help="Do not measure peak memory, which loads every contender once more.")
@_option("--spark", is_flag=True, help="Also the whole job on Spark, against predict_batch_udf.")
@_option("--no-model", is_flag=True, help="Only what --spark adds.")
@_option(
    "--calibration", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write what `scoring.calibration` of a config names: the plan then forecasts device-hours.",
)  # fmt: skip
@_option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("out/benchmark"),
    help="Folder for benchmark.json, benchmark.png and random weights.",
)  # fmt: skip
def benchmark(**options: Any) -> dict[str, Any]:
    """Time scoring on this machine: same weights, same inputs, one process, interleaved runs, medians.

    Prints tables (pairs a second, ratio to the published loop, tokens, padding, operations a second beside those of
    matrix products, shares of wall time, predicted beside measured), and writes benchmark.json and benchmark.png. The
    last line of standard output is a JSON object: what ran, by workload, k and contender, and where the files are.
    """
    return _run(options)


def _run(options: dict[str, Any]) -> dict[str, Any]:
    if options["no_model"] and not options["spark"]:
        raise ConfigError(["--no-model leaves nothing to do without --spark"])
    import torch

    from lakerank.model.engine.device import choose_device
    from lakerank_benchmark.workloads import page_images

    output = options["output"]
    output.mkdir(parents=True, exist_ok=True)
    values = options | {
        "checkpoint": options["checkpoint"]
        or _checkpoint(options["shape"], options["family"], options["dtype"], output),
        "device": str(choose_device(options["device"])),
        "threads": options["threads"] or torch.get_num_threads(),
        "memory": not options["no_memory"],
    }
    request = Request(**{field.name: values[field.name] for field in fields(Request)})
    pages = page_images(options["pdfs"], options["page_pixels"])
    summary: dict[str, Any] = {"output": str(output)}
    if not options["no_model"]:
        summary |= _benchmark_model(request, pages, output, options["calibration"])
    if options["spark"]:
        from lakerank_benchmark.spark_job import benchmark_job

        summary["spark"] = benchmark_job(request, pages, output)
    return summary


def _benchmark_model(request: Request, pages: Images, output: Path, calibration: Path | None) -> dict[str, Any]:
    from lakerank_benchmark.benchmark import benchmark as measure
    from lakerank_benchmark.report import as_json, as_text, draw, summary
    from lakerank_benchmark.workloads import pictograms

    result = measure(request, pages, pictograms)
    click.echo(as_text(result))
    (output / "benchmark.json").write_text(as_json(result), encoding="utf-8")
    try:
        draw(result, output / "benchmark.png")
    except DependencyError as error:
        logger.warning("no plot: %s", error)
    if calibration is not None:
        calibration.write_text(result.calibration.to_json(), encoding="utf-8")
    return summary(result)


def _checkpoint(shape: str, family: str, dtype: str, output: Path) -> str:
    """Where the weights are; random ones are written."""
    if shape == "bundled":
        if family != FAMILIES[0]:
            raise ConfigError([f"--family {family}: the bundled checkpoint is another's; choose a --shape"])
        return "embedded"
    from lakerank_benchmark.checkpoints import ENCODER_SHAPES, SHAPES, random_checkpoint, random_encoder

    folder, shapes = output / "checkpoints", ENCODER_SHAPES.get(family, SHAPES)
    if shape not in shapes:
        names = (" or " if family in ENCODERS else ", ").join(shapes)
        raise ConfigError([f"--shape {shape}: not {family}'s; choose {names}"])
    if family in ENCODERS:
        return str(random_encoder(folder, family, shape, dtype))
    return str(random_checkpoint(folder, family, SHAPES[shape], dtype))
