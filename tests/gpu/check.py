"""One run on a GPU: what it reaches, which kernels run, whether bits hold, how far from float32, where time goes.

python tests/gpu/check.py --out FOLDER [--device cuda] [--shape 2b] [--seconds 420] [--phases machine,engine]

Runs the code of the clone that it lies in, whatever is installed, and needs neither pydantic, tenacity nor pyspark.
What is known is written to gpu_check.json in the folder after each phase, so that a run that is cut off leaves what it
has. A phase that failed has the key `failed`. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import faulthandler
import inspect
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
_ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(_ROOT / "lib"), str(_ROOT / "tests")]  # not this folder, whose kernels.py hides a library

import numpy as np  # noqa: E402
import PIL  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn.attention.varlen import varlen_attn  # noqa: E402

from gpu.kernels import attention, elementwise, products  # noqa: E402
from gpu.record import SIZES, Check, Findings  # noqa: E402
from gpu.scoring import engine, memory  # noqa: E402
from lakerank.limits import Limits  # noqa: E402
from lakerank.model.api import load_reranker  # noqa: E402
from lakerank.model.engine.device import choose_device  # noqa: E402
from lakerank.model.preprocess.images import PatchShape, load_patches  # noqa: E402
from lakerank.records import Document, DocumentGroup, Query, ScoredPair  # noqa: E402
from lakerank_benchmark.pages import drawn_pages  # noqa: E402

#: Seconds after the last phase's end by which a run that hangs in a kernel is ended, too.
_GRACE_S = 45

#: Sides of pages by dots an inch.
_PAGES = {150: (1240, 1754), 200: (1654, 2339), 300: (2480, 3508)}


def machine(check: Check, found: Findings) -> None:
    """Versions, the device, and what its products and copies reach."""
    found |= {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "arguments": sys.argv[1:],
        "cores": len(os.sched_getaffinity(0)),
        "varlen_attn": [*inspect.signature(varlen_attn).parameters],
    }
    if check.cuda:
        properties = torch.cuda.get_device_properties(check.device)
        found |= {
            "device": properties.name,
            "capability": [properties.major, properties.minor],
            "multiprocessors": properties.multi_processor_count,
            "GiB": properties.total_memory / 2**30,
            "free GiB": torch.cuda.mem_get_info(check.device)[0] / 2**30,
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    side = check.sizes.ceiling
    for name, dtype in (("TFLOP/s of products", torch.bfloat16), ("TFLOP/s in float32", torch.float32)):
        left, right = (check.randn(side, side, dtype=dtype) for _ in range(2))
        found[name] = 2 * side**3 / check.seconds(lambda left=left, right=right: left @ right) / 1e12
    block = torch.empty(check.sizes.copied, dtype=torch.uint8, device=check.device)
    found["TB/s of copies on the device"] = 2 * len(block) / check.seconds(block.clone) / 1e12
    if check.cuda:
        pinned = torch.empty(check.sizes.copied // 4, dtype=torch.uint8, pin_memory=True)
        found["GB/s to the device"] = len(pinned) / check.seconds(lambda: pinned.to(check.device)) / 1e9


def bundled(check: Check, found: Findings) -> None:
    """The bundled checkpoint's logits on the device, by dtype, beside those of float32 on this machine's processor."""
    queries = tuple(Query(f"q{number}", text=f"what is said of number {number}") for number in range(6))
    pages, texts, dtypes = (2, 4, ("float32", "bfloat16", "float16")) if check.cuda else (1, 1, ("float32",))
    documents = [Document(f"page {number}", image=page) for number, page in enumerate(drawn_pages(pages))]
    documents += [Document(f"text {n}", text="a fox and a dog meet " * (5 + 60 * n)) for n in range(texts)]

    def logits(**options: Any) -> np.ndarray:
        reranker = load_reranker("embedded", **options)
        results = [*reranker.score_groups(DocumentGroup(document, queries) for document in documents)]
        return np.array([result.logit for result in results if isinstance(result, ScoredPair)])

    exact = logits(device="cpu", dtype="float32")
    found["pairs"], found["spread of logits"] = len(exact), float(exact.std())
    for dtype in dtypes:
        for mode in ("reproducible", "fast")[: 1 + check.cuda]:
            apart = np.abs(logits(device=str(check.device), dtype=dtype, reproducible=mode == "reproducible") - exact)
            found[f"{dtype}, {mode}"] = {"largest": float(apart.max()), "median": float(np.median(apart))}


def host(check: Check, found: Findings) -> None:
    """Pages a second that threads decode, resize and cut, by dots an inch, `scoring.resize` and threads."""
    cores = len(os.sched_getaffinity(0))
    counts = [count for count in (1, 2, 4, 8, 14) if count <= cores]
    for dots, size in _PAGES.items() if check.shape_name == "2b" else [(150, _PAGES[150])]:
        (page,) = drawn_pages(1, size=size)
        for resize in ("pillow", "torch"):
            for count in counts:
                if check.left_s < 2:
                    found["left out"] = f"from {dots} dots an inch on: no time was left"
                    return
                found[f"{dots} dots an inch, {resize}, {count} threads"] = _pages_a_second(page, resize, count)


def _pages_a_second(page: bytes, resize: Any, threads: int) -> float:
    limits, shape = Limits(resize=resize), PatchShape()
    load_patches(page, limits, shape)
    pages = 6 * threads
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda _: load_patches(page, limits, shape), range(pages)):
            pass
        return pages / (time.perf_counter() - started)


#: Phases in their order, and the seconds of 420 that each may take; what it leaves is shared by those after it.
PHASES: Mapping[str, tuple[Callable[[Check, Findings], None], float]] = {
    "machine": (machine, 20),
    "products": (products, 45),
    "elementwise": (elementwise, 15),
    "attention": (attention, 40),
    "engine": (engine, 160),
    "bundled": (bundled, 60),
    "host": (host, 40),
    "memory": (memory, 40),
}
_SECONDS = sum(seconds for _, seconds in PHASES.values())


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Within: Python's own code is interrupted by TimeoutError when time is over."""

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_phase(name: str, check: Check, seconds: float) -> None:
    """Run a phase for so many seconds at most; its error becomes a part of what was found out."""
    found = check.found[name] = {}
    started = time.monotonic()
    check.until = started + 0.9 * seconds  # what looks at the clock ends before it is ended
    try:
        with _ended_after(seconds):
            PHASES[name][0](check, found)
    except Exception as error:  # whatever it is, the other phases are worth having
        found["failed"] = f"{type(error).__name__}: {error}"[:1000]
        traceback.print_exc(limit=8)
    if check.cuda:
        torch.cuda.empty_cache()
    found["seconds"] = time.monotonic() - started
    print(f"{name}: {'failed' if 'failed' in found else 'done'} in {found['seconds']:.1f} s", flush=True)


def write(folder: Path, found: Mapping[str, Findings]) -> None:
    """Replace gpu_check.json, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".gpu_check.json"
    scratch.write_text(json.dumps(found, indent=1), encoding="utf-8")
    scratch.replace(folder / "gpu_check.json")


def main() -> None:
    """Run the phases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of gpu_check.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=[*SIZES], default="2b", help="2b: jina-reranker-m0's own; tiny: for a try")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="for all phases together")
    parser.add_argument("--phases", default=",".join(PHASES), help="which of them, separated by commas")
    options = parser.parse_args()
    phases = options.phases.split(",")
    if unknown := [name for name in phases if name not in PHASES]:
        parser.error(f"--phases: {', '.join(unknown)}: choose of {', '.join(PHASES)}")
    ends = time.monotonic() + options.seconds
    faulthandler.dump_traceback_later(options.seconds + _GRACE_S, exit=True)
    check = Check(choose_device(options.device), options.shape, ends, {})
    later = {name: seconds for name, (_, seconds) in PHASES.items() if name in phases}
    while later:
        share = (ends - time.monotonic()) / sum(later.values())
        name = next(iter(later))
        run_phase(name, check, later.pop(name) * share)
        write(options.out, check.found)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
