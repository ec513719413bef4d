"""Find first-stage candidates: BM25, run files, or both, fused. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.candidates import candidates

if __name__ == "__main__":
    candidates()
