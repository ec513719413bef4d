"""How fast this machine scores, against the published loop and others; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # oracles/ has the published loop
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank_benchmark.cli import benchmark

if __name__ == "__main__":
    benchmark()
