"""Export a run for a search index or a tool. Runs under python and spark-submit; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.export import export

if __name__ == "__main__":
    export()
