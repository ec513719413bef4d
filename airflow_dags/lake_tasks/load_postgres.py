"""CSV exports into a table of PostgreSQL, in one transaction: readers see the old run or the new one."""
# ruff: noqa: S608 - the table's name is checked, values are parameters

from __future__ import annotations

import re
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lake_tasks.load import ExportFiles, check_base

#: Of the columns of the export, in a table that is not there yet.
COLUMNS = {
    "query_id": "text NOT NULL",
    "doc_id": "text NOT NULL",
    "rank": "integer NOT NULL",
    "logit": "real NOT NULL",
    "relevance": "real NOT NULL",
    "label": "smallint NOT NULL",
    "first_stage_rank": "integer",
    "truncated": "boolean NOT NULL",
}

_NAMES = ", ".join(COLUMNS)
_TABLE = re.compile(r"([a-z_][a-z0-9_]{0,50}\.)?[a-z_][a-z0-9_]{0,50}")


def load_table(hook: Any, files: ExportFiles, table: str) -> dict[str, Any]:
    """Replace the table's rows by the export's, or the rows of the lists that changed; creates a missing table.

    TABLE_run names the run that the table has. The rows are replaced, not the table: rights, views and indexes stay.

    Args:
        hook: a PostgresHook.

    Raises:
        AirflowException: rows were lost on the way; nothing has changed.
        AirflowFailException: changes since a run that the table does not have.
    """
    if not _TABLE.fullmatch(table):
        raise AirflowFailException(f"table {table}: expected name or schema.name, of a-z, 0-9 and _")
    with hook.get_conn() as connection, connection.cursor() as cursor:
        _create_missing(cursor, table)
        cursor.execute(f"LOCK TABLE {table}_run IN EXCLUSIVE MODE")  # one load at a time; reading goes on
        cursor.execute(f"SELECT run_id FROM {table}_run")
        check_base(files, *(cursor.fetchone() or [None]), where=f"table {table}")
        rows = _copy(cursor, files, table)
        if rows != files.total("rows"):
            raise AirflowException(f"table {table}: {rows} rows of {files.total('rows')} arrived")
        _replace(cursor, files, table)
        cursor.execute(f"DELETE FROM {table}_run")
        cursor.execute(f"INSERT INTO {table}_run (run_id) VALUES (%s)", (files.run_id,))
    return {"table": table, "run_id": files.run_id, "since": files.since, "rows": rows}


def _create_missing(cursor: Any, table: str) -> None:
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    tables = {
        table: f"{columns}, PRIMARY KEY (query_id, rank)",
        f"{table}_run": "run_id text NOT NULL, loaded_at timestamptz NOT NULL DEFAULT now()",
    }
    for name, definition in tables.items():
        cursor.execute("SELECT to_regclass(%s)", (name,))
        if cursor.fetchone()[0] is None:
            cursor.execute(f"CREATE TABLE {name} ({definition})")


def _copy(cursor: Any, files: ExportFiles, table: str) -> int:
    """Copy the parts into the staging table; returns the number of rows."""
    cursor.execute(f"CREATE TEMPORARY TABLE staging (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DROP")
    rows = 0
    for part in files.parts():
        with cursor.copy(f"COPY staging ({_NAMES}) FROM STDIN WITH (FORMAT csv, HEADER true)") as copy:
            copy.write(part)
        rows += cursor.rowcount
    return rows


def _replace(cursor: Any, files: ExportFiles, table: str) -> None:
    if files.since is None:
        cursor.execute(f"DELETE FROM {table}")
    else:
        cursor.execute(f"DELETE FROM {table} WHERE query_id IN (SELECT query_id FROM staging)")
        for ids in files.removed():
            cursor.execute(f"DELETE FROM {table} WHERE query_id = ANY(%s)", (ids,))
    cursor.execute(f"INSERT INTO {table} ({_NAMES}) SELECT {_NAMES} FROM staging")
