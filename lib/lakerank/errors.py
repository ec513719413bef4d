"""Every error that stops a job.

LakerankError
├── ConfigError          the config or the command line is wrong; all faults are listed at once (exit status 2)
├── SchemaError          a table lacks a column or has one of the wrong type
├── StorageError         a file could not be listed, read or written
├── CheckpointError      a model cannot be loaded as it stands
├── SparkSettingError    Spark is configured so that the job would be wrong or wasteful
├── RunConflictError     a run of this id exists and was made from something else
├── TrainingError        training came to nothing
├── EvaluationError      a run cannot be judged as asked
├── ExportError          a run cannot be written in the format asked for
├── DependencyError      an optional library is not installed
└── PairRejected         the Python API was given a pair that cannot be scored
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """A model cannot be loaded as it stands."""


class SparkSettingError(LakerankError):
    """Spark is configured so that the job would be wrong or wasteful."""


class RunConflictError(LakerankError):
    """A run of this id exists and was made from something else."""


class TrainingError(LakerankError):
    """Training came to nothing."""


class EvaluationError(LakerankError):
    """A run cannot be judged as asked."""


class ExportError(LakerankError):
    """A run cannot be written in the format asked for."""


class DependencyError(LakerankError):
    """An optional library is not installed."""


class PairRejected(LakerankError):
    """The Python API was given a pair that cannot be scored: it raises rather than make up a score."""

    def __init__(self, query_id: str, doc_id: str, reason: RejectReason, detail: str = "") -> None:
        super().__init__(f"query {query_id!r}, document {doc_id!r}: {reason.value}{': ' + detail if detail else ''}")
        self.query_id = query_id
        self.doc_id = doc_id
        self.reason = reason
        self.detail = detail
