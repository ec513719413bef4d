"""Say which parts of documents carried the scores of a run. Runs under python and spark-submit; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.explain import explain

if __name__ == "__main__":
    explain()
