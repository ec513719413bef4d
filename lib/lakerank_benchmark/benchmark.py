"""The benchmark of scoring alone: same weights, same inputs, one process, every cell interleaved."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from lakerank.cost import Calibration
from lakerank.limits import Limits
from lakerank.model.calibration import cost_tokens, fetch_rate
from lakerank.model.checkpoint import locate
from lakerank.model.identity import identify
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.records import DocumentGroup
from lakerank_benchmark.arithmetic import matmul_ceiling
from lakerank_benchmark.contenders import FAST, PUBLISHED, REPRODUCIBLE, load
from lakerank_benchmark.drift import Drift, drift
from lakerank_benchmark.figures import Absent, Figure, Prediction, figures, predictions
from lakerank_benchmark.memory import Memory, peak_memory
from lakerank_benchmark.rounds import BATCH, Cell, Stamps, every_so_often, measure, size, warm_up
from lakerank_benchmark.runs import CannotRun, Contender
from lakerank_benchmark.workloads import Images, Workload, build, scorable

logger = logging.getLogger(__name__)

#: Documents, and queries each of them gets, of the lists that drift is looked for in.
_DRIFT_DOCUMENTS, _DRIFT_QUERIES = 20, 12

#: Documents of a whole job at most.
_JOB_DOCUMENTS = 2048


@dataclass(frozen=True, slots=True)
class Request:
    """What to time. `budget_s` is for timed runs; loading, warming up, memory and drift come on top.

    `max_length`: tokens of a pair, instead of those that the checkpoint's family is published with.
    """

    checkpoint: str
    dtype: str
    device: str
    threads: int
    workloads: tuple[str, ...]
    ks: tuple[int, ...]
    contenders: tuple[str, ...]
    repeats: int
    budget_s: float
    memory: bool = True
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that was found. `ceiling` is in operations a second, the best of before and after."""

    machine: Mapping[str, Any]
    request: Request
    parameters: int
    ceiling: float
    figures: Sequence[Figure | Absent]
    predictions: Sequence[Prediction]
    memory: Sequence[Memory]
    drifts: Sequence[Drift]
    calibration: Calibration


def benchmark(request: Request, pages: Images, pictograms: Images) -> Result:
    """Time every contender on every workload at every k.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ValueError: a workload is unknown.
    """
    torch.set_num_threads(request.threads)
    identity = identify(request.checkpoint, dtype=request.dtype)
    before = matmul_ceiling(request.device, request.dtype)
    logger.info("matrix products reach %.0f GFLOP/s in %s on %s", before / 1e9, request.dtype, request.device)
    contenders, absent = _contenders(request)
    tokenizer = read_tokenizer(Path(identity.folder) / "tokenizer.json")
    cells, workloads = _cells(request, contenders, tokenizer, pages, pictograms)
    ceiling = max(before, matmul_ceiling(request.device, request.dtype))
    found = [figure for cell in cells for figure in figures(cell, ceiling)]
    found += [Absent("any", 0, name, why) for name, why in absent.items()]
    return Result(
        _machine(request),
        request,
        identity.parameters,
        ceiling,
        found,
        predictions(found),
        _memory(request, list(contenders), workloads[0]) if request.memory else (),
        _drifts(request, contenders, workloads) if request.dtype != "float32" else (),
        _calibration(request, identity.parameters, cells, workloads),
    )


def end_to_end_inputs(request: Request, pages: Images) -> tuple[list[DocumentGroup], list[DocumentGroup]]:
    """Page images with the largest k of the request for a whole job, and of their pairs those for the published loop.

    On the cores alone ours takes three quarters of the request's time and theirs a quarter, or ours all of it where the
    published loop is no contender: what a job costs once is a smaller part of a longer one.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    torch.set_num_threads(request.threads)
    workload = build("pages", read_tokenizer(locate(request.checkpoint) / "tokenizer.json"), pages, pages)
    k = max(request.ks)
    names = [name for name in (REPRODUCIBLE, PUBLISHED) if name in (REPRODUCIBLE, *request.contenders)]
    loaded = {name: load(name, request.checkpoint, request.dtype, request.device, 2) for name in names}
    pace = warm_up(workload, loaded, Stamps())
    ours = request.budget_s * (3 / 4 if PUBLISHED in loaded else 1)
    groups = workload.groups(size("pages", k, pace, ours, most=_JOB_DOCUMENTS).documents, k, stamp=0)
    if PUBLISHED not in loaded:
        return groups, []
    return groups, every_so_often(groups, size("pages", k, pace, request.budget_s / 4).published_pairs)


def _contenders(request: Request) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can load the weights, and why the others cannot."""
    loaded: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for name in request.contenders:
        try:
            loaded[name] = load(name, request.checkpoint, request.dtype, request.device, 2, request.max_length)
        except CannotRun as error:
            absent[name] = str(error)
            logger.warning("%s: %s", name, error)
    return loaded, absent


def _cells(
    request: Request, contenders: Mapping[str, Contender], tokenizer: Tokenizer, pages: Images, pictograms: Images
) -> tuple[list[Cell], list[Workload]]:
    stamps = Stamps()
    runs = len(request.workloads) * len(request.ks) * request.repeats * len(contenders)
    cells, workloads = [], []
    for name in request.workloads:
        workload = build(name, tokenizer, pages, pictograms)
        workloads.append(workload)
        pace = warm_up(workload, contenders, stamps)
        for k in request.ks:
            sizes = size(name, k, pace, request.budget_s / runs)
            cells.append(measure(workload, k, sizes, contenders, request.repeats, stamps))
    return cells, workloads


def _memory(request: Request, names: Sequence[str], workload: Workload) -> list[Memory]:
    """Each contender alone with one document and a full batch of queries, as heavy as the workload's first."""
    groups = scorable(workload.groups(1, 4 * BATCH, stamp=0))
    found = []
    for name in names:
        given = every_so_often(groups, BATCH) if name not in (REPRODUCIBLE, FAST) else groups
        try:
            found.append(
                peak_memory(
                    name, request.checkpoint, request.dtype, request.device, request.threads, given, request.max_length
                )
            )
        except CannotRun as error:
            logger.warning("%s: memory not measured: %s", name, error)
    return found


def _drifts(request: Request, contenders: Mapping[str, Contender], workloads: Sequence[Workload]) -> list[Drift]:
    """Lists of the first workload's documents, scored by each of ours in the request's dtype and in float32."""
    workload = workloads[0]
    queries = workload.queries[:_DRIFT_QUERIES]
    groups = [DocumentGroup(document, queries) for document in workload.take(_DRIFT_DOCUMENTS)]
    exact = load(REPRODUCIBLE, request.checkpoint, "float32", request.device, 2, request.max_length).run(groups).logits
    ours = [name for name in (REPRODUCIBLE, FAST) if name in contenders]
    return [drift(name, contenders[name].run(groups).logits, exact) for name in ours]


def _calibration(
    request: Request, parameters: int, cells: Sequence[Cell], workloads: Sequence[Workload]
) -> Calibration:
    """Over all cells: the cost of what we scored, and the seconds it took us."""
    by_name = {workload.name: workload for workload in workloads}
    tokens, seconds = 0, 0.0
    documents = []
    for cell in cells:
        ours = cell.runs.get(REPRODUCIBLE) or cell.runs.get(FAST) or ()
        groups = scorable(by_name[cell.workload].groups(cell.sizes.documents, cell.k, stamp=0))
        tokens += len(ours) and cost_tokens(groups, Limits())
        seconds += median(run.seconds for run in ours) if ours else 0.0
        documents += [group.document for group in groups]
    return Calibration(_device_name(request.device), request.dtype, parameters, tokens / seconds, fetch_rate(documents))


def _machine(request: Request) -> dict[str, Any]:
    return {
        "device": _device_name(request.device),
        "cpu_threads": request.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _device_name(device: str) -> str:
    where = torch.device(device)
    if where.type == "cuda":
        return str(torch.cuda.get_device_name(where))
    return "cpu" if where.type == "cpu" else where.type
