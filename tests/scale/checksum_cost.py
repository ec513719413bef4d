"""What checksums cost a plan: processor seconds with and without, in turn: `checksum_cost.py [PAIRS] [REPEATS]`."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parents[2] / "lib"), str(Path(__file__).parent)]

import zipf_lake  # noqa: E402

from lakerank.lake import checksums, tables  # noqa: E402
from lakerank.lake.storage import Storage, StorageOptions  # noqa: E402
from lakerank.rerank.run import run  # noqa: E402
from lakerank.runner import LocalRunner  # noqa: E402

SEALED, READ_SEAL = tables.sealed, checksums._read_seal


def seconds(folder: Path, checked: bool) -> float:
    """Processor time of a plan."""
    tables.sealed = SEALED if checked else lambda content: content
    checksums._read_seal = READ_SEAL if checked else lambda uri, tail: None
    job, started = zipf_lake.zipf_job(folder, "r"), time.process_time()
    run(LocalRunner(2), Storage(StorageOptions(verify_checksums=checked)), job, ["plan"])
    spent = time.process_time() - started
    shutil.rmtree(job.paths.output)
    return spent


def main() -> None:
    """Print the seconds of each repeat, and the ratio."""
    pairs, repeats = (int(word) for word in (*sys.argv[1:], *("1_000_000", "7")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        zipf_lake.write_lake(Path(folder), pairs)
        seconds(Path(folder), True)
        both = [(seconds(Path(folder), False), seconds(Path(folder), True)) for _ in range(repeats)]
    for without, checked in both:
        print(f"{without:.2f} s without, {checked:.2f} s with checksums")
    print(f"ratio: {median(checked / without for without, checked in both):.3f}")


if __name__ == "__main__":
    main()
