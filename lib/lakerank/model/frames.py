"""Tables of pandas, polars and Arrow: columns out of them and into them, by the library that made them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lakerank.model.preprocess.content import is_missing

_TABLES = {"pandas": ("DataFrame",), "polars": ("DataFrame",), "pyarrow": ("Table", "RecordBatch")}


def is_frame(value: object) -> bool:
    """Whether a value is a table of pandas, polars or Arrow."""
    return type(value).__name__ in _TABLES.get(_library(value), ())


def _library(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def records(frame: Any, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows as mappings of the columns that there are, each under its name in `columns`; nulls are None.

    Raises TypeError: the table has no column for a text or an image.
    """
    names = frame.column_names if _library(frame) == "pyarrow" else [*frame.columns]
    present = {column: name for column, name in columns.items() if column in names}
    if not {"text", "image", "images"}.intersection(present.values()):
        needed = " nor ".join(column for column, name in columns.items() if name in ("text", "image"))
        raise TypeError(f"the table has neither a column {needed} (found: {', '.join(map(str, names))})")
    convert = {"pandas": "tolist", "polars": "to_list", "pyarrow": "to_pylist"}[_library(frame)]
    values = [getattr(frame[column], convert)() for column in present]
    return [
        {name: None if is_missing(value) else value for name, value in zip(present.values(), row, strict=True)}
        for row in zip(*values, strict=True)
    ]


def with_results(frame: Any, logits: np.ndarray, relevances: np.ndarray, reasons: Sequence[str | None]) -> Any:
    """The table with columns logit and relevance (float32, null where there is no score) and reason."""
    library = _library(frame)
    if library == "pandas":
        reason = np.array([*reasons, None], dtype=object)[:-1]
        return frame.assign(logit=logits, relevance=relevances, reason=reason)
    module = sys.modules[library]
    columns: dict[str, tuple[Any, str]] = {
        "logit": (logits, "float32"),
        "relevance": (relevances, "float32"),
        "reason": (reasons, "string"),
    }
    if library == "polars":
        types = {"float32": module.Float32, "string": module.String}
        nullable = {name: (_nullable(values), types[kind]) for name, (values, kind) in columns.items()}
        return frame.with_columns(module.Series(name, values, kind) for name, (values, kind) in nullable.items())
    for name, (values, kind) in columns.items():
        frame = frame.drop_columns([name]) if name in frame.column_names else frame
        frame = frame.append_column(name, module.array(_nullable(values), getattr(module, kind)()))
    return frame


def _nullable(values: np.ndarray | Sequence[str | None]) -> list[Any]:
    return [
        None if is_missing(value) else value for value in (values.tolist() if hasattr(values, "tolist") else values)
    ]


def take(frame: Any, rows: Sequence[int]) -> Any:
    """The table's rows of these numbers, in their order."""
    if _library(frame) == "pandas":
        return frame.iloc[[*rows]]
    return frame[[*rows]] if _library(frame) == "polars" else frame.take([*rows])
