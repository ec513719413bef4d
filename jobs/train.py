"""Train a reranker on lake tables. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank_training.cli import train

if __name__ == "__main__":
    train()
