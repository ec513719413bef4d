"""Rerank a lake: plan, score, rank, audit, publish. Runs under python and spark-submit; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.rerank import rerank

if __name__ == "__main__":
    rerank()
