"""Fuzz lakerank for some time: counts of results, rejects and errors of each target; anything else is a fault.

`make fuzz ARGS="--seconds 600"`, or `--target images --seed 1234` for one input again. A target runs in a process of
its own, so that one that dies or hangs is known by its seed; faults are kept in `out/fuzz/faults.txt`.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
sys.path[0:1] = [str(ROOT / "lib"), str(ROOT / "tests")]  # in place of this folder

FAULTS = ROOT / "out" / "fuzz" / "faults.txt"

#: Of fuzz/targets.py, which takes seconds to import.
TARGETS = ("images", "checkpoint", "requests", "ids", "parquet")

#: Seconds that an input may take.
PATIENCE_S = 60


def fuzz(target: str, seeds: range, seconds: float, folder: Path, notes: Path) -> None:
    """Give a target the inputs of seeds, in this process; each is noted before it starts, and what came of it after."""
    import torch

    from fuzz import targets

    torch.set_num_threads(1)
    logging.disable()
    end = time.monotonic() + seconds
    with notes.open("a") as stream:
        for seed in seeds:
            if time.monotonic() > end:
                return
            stream.write(f"{seed}\t")
            stream.flush()
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
            try:
                what = targets.outcome(getattr(targets, target), Random(f"{target}:{seed}"), folder)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                traceback.print_exc()
                what = f"fault: {type(error).__name__}: {error!s:.200}".replace("\n", " ")
            faulthandler.cancel_dump_traceback_later()
            stream.write(f"{what}\n")
            stream.flush()


def fuzz_apart(target: str, first: int, seconds: float) -> tuple[Counter[str], list[str]]:
    """Fuzz a target in processes of its own; counts, and a line for each fault."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        while (left := end - time.monotonic()) > 0:
            notes.write_text("")
            command = [
                sys.executable,
                str(Path(__file__).parent),
                "--target",
                target,
                "--seed",
                str(first),
                "--seconds",
                str(left),
            ]
            environment = os.environ | {"LAKERANK_FUZZ": folder, "OMP_NUM_THREADS": "1"}
            child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            lines = [line.split("\t") for line in notes.read_text().splitlines()]
            for seed, what in lines:
                if what.startswith("fault") or not what:
                    faults.append(f"{target} {seed} {what or f'ended with status {child.returncode}'}")
                counts["faults" if what.startswith("fault") or not what else what] += 1
            if not lines:
                faults.append(f"{target}: no input was tried: {child.stderr[-2000:]}")
                return counts, faults
            first = int(lines[-1][0]) + 1
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--target", action="append", choices=TARGETS, help="one of them; may be repeated")
    parser.add_argument("--seed", type=int, help="of the first input; alone with --target: that input, in this process")
    options = parser.parse_args()
    if folder := os.environ.get("LAKERANK_FUZZ"):
        fuzz(options.target[0], range(options.seed, sys.maxsize), options.seconds, Path(folder), Path(folder) / "notes")
        return 0
    if options.seed is not None and options.target:
        from fuzz import targets

        with tempfile.TemporaryDirectory() as work:
            name = options.target[0]
            print(targets.outcome(getattr(targets, name), Random(f"{name}:{options.seed}"), Path(work)))
        return 0
    first = options.seed if options.seed is not None else secrets.randbelow(10**9)
    faults: list[str] = []
    for target in options.target or TARGETS:
        counts, more = fuzz_apart(target, first, options.seconds)
        faults += more
        print(json.dumps({"target": target, "seed": first, "inputs": counts.total(), **counts}), flush=True)
    if faults:
        FAULTS.parent.mkdir(parents=True, exist_ok=True)
        with FAULTS.open("a") as stream:
            stream.writelines(f"{fault}\n" for fault in faults)
        print(*faults[:20], f"{len(faults)} faults; kept in {FAULTS.relative_to(ROOT)}", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
