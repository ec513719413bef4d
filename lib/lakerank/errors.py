"""Every error that stops a job.

LakerankError
├── ConfigError          the config or the command line is wrong; all faults are listed at once (exit status 2)
├── SchemaError          a table lacks a column or has one of the wrong type
├── StorageError         a file could not be listed, read or written
│   ├── CommitConflict      others write to a table at the same time, again and again (lake/formats/output.py)
│   ├── ChangedFile      a table's file has changed since the run was planned (lake/blobs.py)
│   └── CorruptFile      a file is not what was written (lake/checksums.py)
│       └── CorruptScoreFile a unit file is incomplete or does not match its name (lake/scores.py)
├── CheckpointError      a model cannot be loaded from its files
├── SparkSettingError    Spark is configured so that the job would be wrong or wasteful
├── RunConflictError     a run with this id exists and has other inputs
├── GuaranteeError       a cascade cannot promise what its config asks for, and is to stop then
├── RunNotFoundError     no run with this id has ranked lists
├── TrainingError        training cannot start or has failed
├── EvaluationError      a run cannot be evaluated as requested
├── ExportError          a run cannot be exported in the requested format
├── IngestError          a table would be empty: nothing could be read, or no query has a candidate
├── InputError           a table has fewer rows than a run is to have
├── DependencyError      an optional library is not installed
├── OverdueError         a work unit took far longer than any other, and was ended
└── PairRejected         the Python API was given a pair that cannot be scored
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lakerank.records import RejectReason


class LakerankError(Exception):
    """Says what is wrong, where, and what to do."""


class ConfigError(LakerankError):
    """The config or the command line is wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class SchemaError(LakerankError):
    """A table lacks a column or has one of the wrong type."""


class StorageError(LakerankError):
    """A file could not be listed, read or written."""


class CheckpointError(LakerankError):
    """A model cannot be loaded from its files."""


class SparkSettingError(LakerankError):
    """Spark is configured so that the job would be wrong or wasteful."""


class RunConflictError(LakerankError):
    """A run with this id exists and has other inputs."""


class GuaranteeError(LakerankError):
    """A cascade cannot promise what its config asks for, and is to stop then."""


class RunNotFoundError(LakerankError):
    """No run with this id has ranked lists."""


class TrainingError(LakerankError):
    """Training cannot start or has failed."""


class EvaluationError(LakerankError):
    """A run cannot be evaluated as requested."""


class ExportError(LakerankError):
    """A run cannot be exported in the requested format."""


class IngestError(LakerankError):
    """A table would be empty: nothing of a source could be read, or no query has a candidate."""


class InputError(LakerankError):
    """A table has fewer rows than a run is to have."""


class DependencyError(LakerankError):
    """An optional library is not installed."""


@contextmanager
def requires(extra: str, what: str = "", where: str = "") -> Iterator[None]:
    """Of a block that imports what only an extra of lakerank installs: `what` needs which library, and `where`.

    Raises:
        DependencyError: instead of ImportError; it says what to install.
    """
    try:
        yield
    except ImportError as error:
        raise DependencyError(f"{what or error}: pip install 'lakerank[{extra}]'{where}") from error


class OverdueError(LakerankError):
    """A work unit or a task took far longer than any other, or than was to be expected, and was ended."""

    def __init__(self, what: str, tries: int = 1) -> None:
        super().__init__(
            f"{what}{' for the second time' if tries > 1 else ''}: ended; a worker stands still, a store does not "
            "answer, or, of a unit, scoring.unit_deadline_s is too little for this machine; run the same command "
            "again, finished units are kept"
        )


class PairRejected(LakerankError):
    """The Python API was given a pair that cannot be scored: there is no score to return.

    `place`: where the pair is among those given, for a message about inputs without ids.
    """

    def __init__(self, query_id: str, doc_id: str, reason: RejectReason, detail: str = "", place: str = "") -> None:
        pair = f"query {query_id!r}, document {doc_id!r}" if query_id or doc_id or not place else place
        super().__init__(f"{pair}: {reason.value}{': ' + detail if detail else ''}")
        self.query_id = query_id
        self.doc_id = doc_id
        self.reason = reason
        self.detail = detail
        self.place = place
