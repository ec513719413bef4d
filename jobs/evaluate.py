"""Evaluate a run against the lake's qrels: metrics and a report. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank_evaluation.cli import evaluate

if __name__ == "__main__":
    evaluate()
