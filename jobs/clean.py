"""List or delete what no kept run of a lake needs; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from lakerank.cli.runs import clean

if __name__ == "__main__":
    clean()
