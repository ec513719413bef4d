"""`make cases`: every case, a line for each: what is right came of it, or what came instead."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0:1] = [str(ROOT / "lib"), str(ROOT / "tests")]  # in place of this folder


def main() -> int:
    from cases.cases import CHECKS, result

    failures = 0
    for name in sys.argv[1:] or CHECKS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                line = f"right  {name}: {result(name, Path(folder))}"
            except Exception as error:
                failures += 1
                line = f"WRONG  {name}: {type(error).__name__}: {error!s:.300}"
        print(line.replace("\n", " "), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
