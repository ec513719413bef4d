"""Rebuild the pictogram lakes: `python -m lakerank_pictograms --demo DIR --train DIR --lists DIR`."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lakerank.errors import LakerankError
from lakerank_pictograms.art import STYLES, distinct, pictures
from lakerank_pictograms.concepts import read_concepts, read_labels
from lakerank_pictograms.lakes import write_demo_lake, write_evaluation_lake, write_training_lake
from lakerank_pictograms.packages import PINNED, TEXTS, Packages
from lakerank_pictograms.search_lists import write_search_lists

_log = logging.getLogger("lakerank_pictograms")


def main() -> int:
    """Fetch the packages, write the requested lakes, and print the SHA-256 of every file."""
    parser = argparse.ArgumentParser(prog="python -m lakerank_pictograms", description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="write the bundled demo lake here")
    parser.add_argument("--train", type=Path, metavar="DIR", help="write the training lake here")
    parser.add_argument("--lists", type=Path, metavar="DIR", help="write the lakes of lists of texts here")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="keep the npm packages here (default: nowhere)")
    arguments = parser.parse_args()
    if arguments.demo is None and arguments.train is None and arguments.lists is None:
        parser.error("nothing to do: give --demo DIR, --train DIR, --lists DIR or several of them")
    _log_to_stderr()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _build(arguments.packages or Path(scratch), arguments)
    except LakerankError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)


def _build(package_folder: Path, wanted: argparse.Namespace) -> None:
    packages, draws = Packages(package_folder), wanted.train is not None or wanted.demo is not None
    packages.fetch(PINNED if draws else TEXTS)
    concepts = {concept.key: concept for concept in read_concepts(packages)}
    labels = read_labels(packages, list(concepts.values()))
    _log.info("%d concepts, %d labels", len(concepts), len(labels))
    if wanted.lists is not None:
        _report(wanted.lists, write_search_lists(wanted.lists, list(concepts.values()), labels))
    if not draws:
        return
    drawn = distinct(list(pictures(packages, list(STYLES), concepts)))
    _log.info("%d pictures", len(drawn))
    if wanted.train is not None:
        _report(wanted.train, write_training_lake(wanted.train, concepts, labels.values(), drawn))
        _report(wanted.train, write_evaluation_lake(wanted.train / "judging", concepts, labels, drawn))
    if wanted.demo is not None:
        _report(wanted.demo, write_demo_lake(wanted.demo, concepts, labels, drawn))


def _report(folder: Path, hashes: Mapping[str, str]) -> None:
    """Print what was written as `sha256sum` would."""
    for name, digest in hashes.items():
        sys.stdout.write(f"{digest}  {folder / name}\n")


if __name__ == "__main__":
    sys.exit(main())
