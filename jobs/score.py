"""Answer one rerank request in the hosted API's JSON, without Spark. Runs under python and spark-submit; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.score import score

if __name__ == "__main__":
    score()
