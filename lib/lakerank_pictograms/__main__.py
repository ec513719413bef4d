"""Rebuild the pictogram lakes: `python -m lakerank_pictograms --demo DIR --train DIR`."""

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
from lakerank_pictograms.packages import Packages

_log = logging.getLogger("lakerank_pictograms")


def main() -> int:
    """Fetch the packages, write the requested lakes, and print the SHA-256 of every file."""
    parser = argparse.ArgumentParser(prog="python -m lakerank_pictograms", description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="write the bundled demo lake here")
    parser.add_argument("--train", type=Path, metavar="DIR", help="write the training lake here")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="keep the npm packages here (default: nowhere)")
    arguments = parser.parse_args()
    if arguments.demo is None and arguments.train is None:
        parser.error("nothing to do: give --demo DIR, --train DIR or both")
    _log_to_stderr()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _build(arguments.packages or Path(scratch), arguments.demo, arguments.train)
    except LakerankError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)


def _build(package_folder: Path, demo: Path | None, train: Path | None) -> None:
    packages = Packages(package_folder)
    packages.fetch()
    concepts = {concept.key: concept for concept in read_concepts(packages)}
    labels = read_labels(packages, list(concepts.values()))
    _log.info("%d concepts, %d labels", len(concepts), len(labels))
    drawn = distinct(list(pictures(packages, list(STYLES), concepts)))
    _log.info("%d pictures", len(drawn))
    if train is not None:
        _report(train, write_training_lake(train, concepts, labels.values(), drawn))
        _report(train, write_evaluation_lake(train / "judging", concepts, labels, drawn))
    if demo is not None:
        _report(demo, write_demo_lake(demo, concepts, labels, drawn))


def _report(folder: Path, hashes: Mapping[str, str]) -> None:
    """Print what was written as `sha256sum` would."""
    for name, digest in hashes.items():
        sys.stdout.write(f"{digest}  {folder / name}\n")


if __name__ == "__main__":
    sys.exit(main())
