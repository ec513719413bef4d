"""How fast this machine scores, against the published loop and others; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.benchmark import benchmark

if __name__ == "__main__":
    benchmark()
