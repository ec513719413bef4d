"""Train a cheaper reranker on a run's scores. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank_training.cli import distill

if __name__ == "__main__":
    distill()
