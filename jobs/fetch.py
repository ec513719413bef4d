"""Fetch a reranker of English texts, to score with; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank_training.cli import fetch

if __name__ == "__main__":
    fetch()
