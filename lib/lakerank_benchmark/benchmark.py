"""The benchmark of scoring alone: same weights, same inputs, one process, every cell interleaved."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import platform
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from lakerank.cost import Calibration
from lakerank.limits import Limits
from lakerank.model.checkpoint import locate
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import DocumentGroup
from lakerank_benchmark.calibration import cost_tokens, fetch_rate
from lakerank_benchmark.contenders import CannotRun, Contender, load
from lakerank_benchmark.figures import Absent, Drift, Figure, Prediction, drift, figures, predictions
from lakerank_benchmark.request import FAST, PUBLISHED, REPRODUCIBLE, Request
from lakerank_benchmark.rounds import BATCH, Cell, measure, size, warm_up
from lakerank_benchmark.workloads import Images, Workload, build, evenly_spaced, scorable

logger = logging.getLogger(__name__)

#: Documents, and queries each of them gets, of the lists that drift is looked for in.
_DRIFT_DOCUMENTS, _DRIFT_QUERIES = 20, 12

#: Documents of a whole job at most.
_JOB_DOCUMENTS = 2048

#: Sides of the square products that the ceiling is looked for among, by type of device, and seconds for each.
_SIDES = {"cpu": (768, 1536, 3072), "cuda": (4096, 8192)}
_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: resident before and after loading the weights, and at most while scoring; `device`: allocated on a GPU."""

    contender: str
    before: int
    loaded: int
    peak: int
    device: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that was measured. `ceiling` is in operations a second, the best of before and after."""

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
    identity = identify(CheckpointSpec(request.checkpoint, dtype=request.dtype))
    before = matmul_ceiling(request.device, request.dtype)
    logger.info("matrix products reach %.0f GFLOP/s in %s on %s", before / 1e9, request.dtype, request.device)
    contenders: dict[str, Contender] = {}
    absent = []
    for name in request.contenders:
        try:
            contenders[name] = load(name, request)
        except CannotRun as error:
            absent.append(Absent("any", 0, name, str(error)))
            logger.warning("%s: %s", name, error)
    tokenizer = read_tokenizer(Path(identity.folder) / "tokenizer.json")
    workloads = [build(name, tokenizer, pages, pictograms) for name in request.workloads]
    cells = _cells(request, contenders, workloads)
    ceiling = max(before, matmul_ceiling(request.device, request.dtype))
    results = [*(figure for cell in cells for figure in figures(cell, ceiling)), *absent]
    device = _device_name(request.device)
    tokens_per_second, bytes_per_second = _rates(cells, workloads)
    return Result(
        machine={
            "device": device,
            "cpu_threads": request.threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        request=request,
        parameters=identity.parameters,
        ceiling=ceiling,
        figures=results,
        predictions=predictions(results),
        memory=_memory(request, list(contenders), workloads[0]) if request.memory else (),
        drifts=_drifts(request, contenders, workloads[0]) if request.dtype != "float32" else (),
        calibration=Calibration(device, request.dtype, identity.parameters, tokens_per_second, bytes_per_second),
    )


def job_inputs(request: Request, pages: Images) -> tuple[list[DocumentGroup], list[DocumentGroup]]:
    """Page images with the largest k of the request for a whole job, and of their pairs those for the published loop.

    On the cores alone ours takes three quarters of the request's time and theirs a quarter, or ours all of it where the
    published loop is no contender: what a job costs once is a smaller part of a longer one.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    torch.set_num_threads(request.threads)
    workload = build("pages", read_tokenizer(locate(request.checkpoint) / "tokenizer.json"), pages, pages)
    k, compared = max(request.ks), PUBLISHED in request.contenders
    contenders = {name: load(name, request) for name in (REPRODUCIBLE, PUBLISHED)[: 1 + compared]}
    pace = warm_up(workload, contenders, count(1))
    seconds = request.budget_s * (3 / 4 if compared else 1)
    groups = workload.groups(size("pages", k, pace, seconds, most=_JOB_DOCUMENTS).documents, k, salt=0)
    pairs = size("pages", k, pace, request.budget_s / 4).published_pairs
    return groups, evenly_spaced(groups, pairs) if compared else []


def _cells(request: Request, contenders: Mapping[str, Contender], workloads: Sequence[Workload]) -> list[Cell]:
    salts = count(1)
    seconds = request.budget_s / (len(workloads) * len(request.ks) * request.repeats * len(contenders))
    cells = []
    for workload in workloads:
        pace = warm_up(workload, contenders, salts)
        for k in request.ks:
            sizes = size(workload.name, k, pace, seconds)
            cells.append(measure(workload, k, sizes, contenders, request.repeats, salts))
    return cells


def _rates(cells: Sequence[Cell], workloads: Sequence[Workload]) -> tuple[float, float]:
    """For the calibration, over all cells: cost tokens that we scored a second, and bytes fetched a second."""
    by_name = {workload.name: workload for workload in workloads}
    tokens, seconds, documents = 0, 0.0, []
    for cell in cells:
        groups = scorable(by_name[cell.workload].groups(cell.sizes.documents, cell.k, salt=0))
        documents += [group.document for group in groups]
        if runs := cell.runs.get(REPRODUCIBLE) or cell.runs.get(FAST):
            tokens += cost_tokens(groups, Limits())
            seconds += median(run.seconds for run in runs)
    return tokens / seconds, fetch_rate(documents)


def _drifts(request: Request, contenders: Mapping[str, Contender], workload: Workload) -> list[Drift]:
    """Lists of the workload's documents, scored by each of ours in the request's dtype and in float32."""
    queries = workload.queries[:_DRIFT_QUERIES]
    groups = [DocumentGroup(document, queries) for document in workload.take(_DRIFT_DOCUMENTS)]
    exact = load(REPRODUCIBLE, replace(request, dtype="float32")).run(groups).logits
    ours = [name for name in (REPRODUCIBLE, FAST) if name in contenders]
    return [drift(name, contenders[name].run(groups).logits, exact) for name in ours]


def _memory(request: Request, names: Sequence[str], workload: Workload) -> list[Memory]:
    """Each contender in a process of its own, with one document and a full batch of the workload's queries."""
    groups = scorable(workload.groups(1, 4 * BATCH, salt=0))
    results = []
    for name in names:
        sample = groups if name in (REPRODUCIBLE, FAST) else evenly_spaced(groups, BATCH)
        try:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                results.append(pool.submit(_peak_memory, name, request, sample).result())
        except CannotRun as error:
            logger.warning("%s: memory not measured: %s", name, error)
    return results


def _peak_memory(name: str, request: Request, groups: Sequence[DocumentGroup]) -> Memory:
    torch.set_num_threads(request.threads)
    before = _resident("VmRSS")
    contender = load(name, request)
    loaded = _resident("VmRSS")
    with contextlib.suppress(OSError):  # the peak starts anew, where Linux allows it: imports take more than a model
        Path("/proc/self/clear_refs").write_text("5")
    contender.run(groups)
    on_gpu = torch.device(request.device).type == "cuda"
    device = torch.cuda.max_memory_allocated(request.device) if on_gpu else None
    return Memory(name, before, loaded, _resident("VmHWM"), device)


def _resident(line: str) -> int:
    """This process's resident memory in bytes, now (VmRSS) or at most (VmHWM); without /proc at most, either way."""
    status = Path("/proc/self/status")
    if status.is_file() and (size := re.search(rf"^{line}:\s+(\d+) kB", status.read_text(), flags=re.MULTILINE)):
        return int(size[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@torch.inference_mode()
def matmul_ceiling(device: str, dtype: str) -> float:
    """The most operations a second that square matrix products reach on a device, two for each multiply-add."""
    place, best = torch.device(device), 0.0
    for side in _SIDES.get(place.type, _SIDES["cuda"]):
        left, right = (torch.randn(side, side, device=place).to(getattr(torch, dtype)) for _ in range(2))
        left @ right
        started = time.perf_counter()
        while time.perf_counter() - started < _SECONDS:
            _synchronise(place)
            before = time.perf_counter()
            left @ right
            _synchronise(place)
            best = max(best, 2.0 * side**3 / (time.perf_counter() - before))
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: str) -> str:
    place = torch.device(device)
    return str(torch.cuda.get_device_name(place)) if place.type == "cuda" else place.type
