"""The command lines: arguments, logging, exit status and the last line of standard output. Heavy imports wait."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from lakerank.config import Config, load_config, read_yaml, resolve_config
from lakerank.errors import ConfigError, DependencyError, LakerankError

if TYPE_CHECKING:
    from lakerank.lake.storage import Storage

logger = logging.getLogger(__name__)

#: Exit statuses, as a scheduler reads them.
DONE, FAILED, WRONG_ARGUMENTS, NOT_PUBLISHED = 0, 1, 2, 3

EPILOG = (
    "Exit status: 0 done, 1 failed, 2 wrong arguments or config, 3 done but not published because an audit failed. "
    "Logs go to standard error; the last line of standard output is one JSON object."
)

config_option = click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Config file (YAML).",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one setting of the config; the value is read as YAML. May be given any number of times.",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Log more, libraries included.")


def run_job(work: Callable[[], dict[str, Any]], verbose: bool = False) -> None:
    """Run a job's work, print its summary as the last line of standard output, and exit with its status."""
    _start_logging(verbose)
    try:
        summary, status = work(), DONE
        if summary.get("published") is False and "failed_audits" in summary:
            status = NOT_PUBLISHED
    except ConfigError as error:
        summary, status = _failure(error), WRONG_ARGUMENTS
    except LakerankError as error:
        summary, status = _failure(error), FAILED
    except KeyboardInterrupt:
        summary, status = {"error": "interrupted", "message": "stopped from the keyboard"}, FAILED
    except Exception as error:  # the last line must be JSON whatever happens
        told = _from_worker(error)
        if told is None or verbose:
            traceback.print_exc(file=sys.stderr)
        summary, status = _failure(error) if told is None else _told(*told), FAILED
    sys.stdout.flush()
    click.echo(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    sys.exit(status)


def _failure(error: Exception) -> dict[str, Any]:
    return _told(type(error).__name__, str(error))


def _told(name: str, message: str) -> dict[str, Any]:
    click.echo(f"{name}: {message}", err=True)
    return {"error": name, "message": message}


def _from_worker(error: Exception) -> tuple[str, str] | None:
    """The LakerankError of a worker, which arrives wrapped in Spark's with tracebacks around it."""
    found = re.findall(r"^lakerank\.(?:[a-z_]+\.)+([A-Z]\w*): (.*)$", str(error), flags=re.MULTILINE)
    return found[-1] if found else None


def _start_logging(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("lakerank").setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        logging.getLogger().setLevel(logging.INFO)


def storage_of(config: Config) -> Storage:
    """The object storage that the config describes."""
    from lakerank.lake.storage import Storage, StorageOptions

    return Storage(StorageOptions(**config.lake.storage.model_dump()))


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option(
    "--run-id",
    required=True,
    help="Names the run. The same id goes on where an earlier attempt stopped; a published run is left as it is.",
)
@click.option(
    "--stage",
    "stages",
    default="plan,score,publish",
    show_default=True,
    metavar="STAGES",
    help="Which of plan, score and publish to run. plan says what the run will cost; only score needs a GPU.",
)
@verbose_option
def rerank(config_path: Path, overrides: Sequence[str], run_id: str, stages: str, verbose: bool) -> None:
    """Rerank the candidates of a lake: plan, score, rank, audit, publish.

    Reads documents, queries and candidates, scores every pair that has no score yet, and publishes ranked, labelled
    lists together with every pair that could not be scored and why.
    """

    def work() -> dict[str, Any]:
        from lakerank.lake.runs import check_run_id

        config = load_config(config_path, overrides)
        check_run_id(run_id)
        return _rerank(config, run_id, _parse_stages(stages))

    run_job(work, verbose)


def _parse_stages(stages: str) -> list[str]:
    known = ("plan", "score", "publish")
    wanted = [stage.strip() for stage in stages.split(",") if stage.strip()]
    unknown = [stage for stage in wanted if stage not in known]
    if unknown or not wanted:
        raise ConfigError([f"--stage {stages}: expected any of {', '.join(known)}, separated by commas"])
    return [stage for stage in known if stage in wanted]


def _rerank(config: Config, run_id: str, stages: Sequence[str]) -> dict[str, Any]:
    from lakerank.spark import session
    from lakerank.spark.job import rerank_job
    from lakerank.spark.rerank import already_published, run

    job = rerank_job(config, run_id)
    published = already_published(storage_of(config), job)
    if published is not None:
        return published
    logger.info("starting Spark")
    spark = session.start(config.spark.app_name, config.spark.conf, config.spark.partitions)
    try:
        return run(spark, storage_of(config), job, stages)
    finally:
        spark.stop()


@click.command(epilog=EPILOG)
@click.argument("request_file", metavar="REQUEST.json", type=click.File(encoding="utf-8"))
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Config file (YAML); its model and scoring sections are used. Without one: the bundled checkpoint.",
)
@set_option
@click.option("--allow-host", multiple=True, metavar="HOST", help="Fetch images from this host; no other is asked.")
@verbose_option
def score(
    request_file: IO[str], config_path: Path | None, overrides: Sequence[str], allow_host: Sequence[str], verbose: bool
) -> None:
    """Answer one rerank request in the hosted API's JSON, without Spark.

    The request holds model, query, documents (texts, or objects with text or image), top_n and return_documents; an
    image is base64, a data URI, or a URL of an allowed host. The last line of standard output is the response:
    results with index and relevance_score, best first, and usage.total_tokens. REQUEST.json may be - for standard
    input.
    """

    def work() -> dict[str, Any]:
        values = read_yaml(config_path) if config_path else {}
        # A request brings its own documents: no lake is needed.
        nowhere = dict.fromkeys(("documents", "queries", "candidates", "output"), "")
        defaults = {"lake": nowhere, "model": {"path": "embedded"}}
        config = resolve_config(defaults | values, overrides, source=str(config_path or "defaults"))
        return _answer(config, _parse_json(request_file), allow_host)

    run_job(work, verbose)


def _parse_json(file: IO[str]) -> dict[str, Any]:
    try:
        request = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file.name}: not JSON: {error}"]) from error
    if not isinstance(request, dict):
        raise ConfigError([f"{file.name}: expected a JSON object with query and documents"])
    return request


def _answer(config: Config, request: dict[str, Any], allowed_hosts: Sequence[str]) -> dict[str, Any]:
    from lakerank.model.prompt import Limits
    from lakerank.model.request import answer
    from lakerank.model.rerankers import load_reranker

    model, scoring = config.model, config.scoring
    reranker = load_reranker(
        model.path,
        revision=model.revision,
        adapter=model.adapter,
        dtype=model.dtype,
        device=model.device,
        limits=Limits(**scoring.limits()),
        host_threads=scoring.host_threads,
        device_threads=scoring.device_threads,
        reproducible=scoring.reproducible,
    )
    return answer(request, reranker, allowed_hosts=allowed_hosts)


@click.command(epilog=EPILOG)
@click.argument("source")
@click.option("--output", required=True, metavar="FOLDER", help="Folder for the tables: FOLDER/documents/ and so on.")
@click.option(
    "--as",
    "table",
    type=click.Choice(["documents", "queries", "candidates", "qrels"]),
    default="documents",
    show_default=True,
    help="The table to write. candidates and qrels are read from JSON Lines alone.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "folder", "jsonl", "pdf"]),
    default="auto",
    show_default=True,
    help="What to look at in a folder: everything (auto, folder), JSON Lines alone, or PDFs alone.",
)
@click.option(
    "--pdf-content",
    type=click.Choice(["image", "text", "both"]),
    default="image",
    show_default=True,
    help="What a PDF page becomes: an image of it, its text layer, or both.",
)
@click.option(
    "--page-pixels",
    type=click.IntRange(min=784),
    default=602_112,
    show_default=True,
    help="Pixels of a page image, width × height. The default is the most that the model looks at.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="FIELD",
    help="Carry this JSON field as a text column; may be given any number of times. Of queries, language, task and "
    "slice become slices of the report; a document's name is shown in it.",
)
@click.option(
    "--max-file-bytes",
    type=click.IntRange(min=1),
    default=2**28,
    show_default=True,
    help="A larger file, or longer line of JSON, is not read but listed as rejected.",
)
@click.option("--follow-links", is_flag=True, help="Follow symbolic links, even out of SOURCE.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Config file (YAML); only its lake.storage is used.",
)
@set_option
@verbose_option
def ingest(
    source: str,
    output: str,
    table: Any,
    kind: Any,
    pdf_content: Any,
    page_pixels: int,
    keep: tuple[str, ...],
    max_file_bytes: int,
    follow_links: bool,
    config_path: Path | None,
    overrides: Sequence[str],
    verbose: bool,
) -> None:
    """Make a lake table of SOURCE: a file or folder of texts, images, PDFs and JSON Lines at any URI.

    \b
    .txt .md                       a text in UTF-8
    .png .jpg .webp .tif .gif .bmp an image, its bytes untouched
    .pdf                           a row a page: name.pdf#page=1 and on
    .jsonl .ndjson (also .gz)      a row a line: doc_id (or id, _id), text, and image:
                                   base64, or a path relative to the JSON file

    Ids are paths relative to SOURCE, rows are in the order of paths: the same source gives the same bytes. An earlier
    table in FOLDER is replaced. Files, pages and lines that cannot be read do not stop the job: they are counted in
    the summary and listed with the reason in FOLDER/rejects/TABLE.jsonl.

    The summary has table, output, rows, texts, images, files, bytes, rejected, rejected_by_fault, rejects and seconds.
    """

    def work() -> dict[str, Any]:
        from lakerank.ingest.folder import ReadOptions
        from lakerank.ingest.ingestion import ingest as ingest_source
        from lakerank.lake.storage import Storage

        if overrides and config_path is None:
            raise ConfigError(["--set changes a config: give one with --config"])
        storage = storage_of(load_config(config_path, overrides)) if config_path else Storage()
        options = ReadOptions(kind, table, keep, pdf_content, page_pixels, max_file_bytes)
        return ingest_source(storage, source, output, options, follow_links, _progress(verbose)).summary()

    run_job(work, verbose)


def _progress(verbose: bool) -> Any:
    """A row counter on standard error, when that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(unit=" rows", disable=None, leave=False)
    return lambda rows: bar.update(rows - bar.n)


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option("--run-id", required=True, help="The published run to judge.")
@click.option(
    "--examples",
    type=click.IntRange(min=0, max=12),
    default=8,
    show_default=True,
    help="Queries printed with the tops of their lists before and after reranking.",
)
@verbose_option
def evaluate(config_path: Path, overrides: tuple[str, ...], run_id: str, examples: int, verbose: bool) -> None:
    """Judge a run by the lake's qrels: metrics, and a report to look at.

    Compares the reranked lists with the first stage's order and with chance, over all queries and by the columns
    `task`, `slice` and `language` of the queries table where it has them. Writes into the run's folder:

    \b
    report.html       one page that needs nothing else: figures, plots, examples with thumbnails
    evaluation.json   the figures

    and prints a few queries before and after, with nDCG@10 and Recall@10 by task. The last line of standard output is
    a JSON object: run_id, queries, chance, first_stage (null when the candidates have no order), reranked,
    report, evaluation, seconds.
    """

    def work() -> dict[str, Any]:
        config = load_config(config_path, overrides)
        lake = config.lake
        if lake.qrels is None:
            raise ConfigError(["lake.qrels is not set: a run is judged by relevance judgements"])
        try:
            from lakerank.evaluation.job import evaluate_run
            from lakerank.evaluation.terminal import terminal_table
        except ImportError as error:
            raise DependencyError(f"{error}: pip install 'lakerank[report]'") from error
        from lakerank.evaluation.run_tables import LakeTables
        from lakerank.lake.runs import RunPaths, check_run_id

        check_run_id(run_id)
        tables = LakeTables(lake.documents, lake.queries, lake.candidates, lake.qrels)
        done = evaluate_run(storage_of(config), tables, RunPaths(lake.output, run_id))
        click.echo(terminal_table(done.evaluation, done.examples[:examples]))
        click.echo(f"Report: {done.report}\n")
        return done.summary()

    run_job(work, verbose)


@click.command(epilog=EPILOG)
@config_option
@set_option
@verbose_option
def train(config_path: Path, overrides: Sequence[str], verbose: bool) -> None:
    """Train a reranker on lake tables: documents, queries and qrels.

    Leaves in the config's `output`: checkpoint/ (loadable by every job), state/ (from which the same command goes on
    after a kill), metrics.jsonl and config.yaml. The summary has steps, resumed_at, seconds and the last held-out
    figures.
    """

    def work() -> dict[str, Any]:
        from lakerank.training.config import load_train_config
        from lakerank.training.run import run_training

        config = load_train_config(config_path, overrides)
        outcome = run_training(config)
        return {**asdict(outcome), "output": config.output}

    run_job(work, verbose)
