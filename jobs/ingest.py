"""Files, JSON Lines, PDFs and published benchmarks in, lake tables out. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.ingest import ingest

if __name__ == "__main__":
    ingest()
