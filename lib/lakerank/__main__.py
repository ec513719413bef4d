"""`python -m lakerank` is the console command."""

from __future__ import annotations

from lakerank.cli import main

if __name__ == "__main__":
    main(prog_name="lakerank")
