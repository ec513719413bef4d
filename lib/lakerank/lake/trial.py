"""Files read in a process of their own: one that kills its reader is named, and kills nothing else.

`python -m lakerank.lake.trial` is that process: its input says what to read, and it writes each file's name before it
reads it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lakerank.credentials import redacted
from lakerank.lake.storage import Storage

#: Seconds after which the rest of the files is given up: after a worker has died, and before a job that may run alone.
TRIAL_S, START_TRIAL_S = 120, 15

_BATCH_ROWS = 256


def deadly_file(
    storage: Storage, files: Sequence[str], columns: Sequence[str], seconds: float = TRIAL_S
) -> tuple[str, str] | None:
    """The first of some Parquet files whose reading kills a process, and by which signal; None when none does.

    Their footers are read, and the rows of `columns` where there are any. Arrow ends the process, instead of raising,
    where a footer contradicts itself. Gives up after some seconds: then it is not known either.
    """
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-m", "lakerank.lake.trial"]
    try:
        trial = subprocess.run(  # noqa: S603 - this package, by this interpreter
            command,
            input=pickle.dumps((storage, list(files), list(columns))),
            capture_output=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError:  # no process may be started here
        return None
    names = trial.stdout.decode(errors="replace").splitlines()
    # SIGKILL is what the system sends to who takes too much memory: not the file's doing.
    if trial.returncode >= 0 or trial.returncode == -signal.SIGKILL or not names:
        return None
    return names[-1], signal.Signals(-trial.returncode).name


def deadly_message(file: str, signal_name: str) -> str:
    """What to say of a file that kills its reader."""
    return (
        f"{redacted(file)}: damaged: its footer or pages kill the reader ({signal_name} inside the Parquet library); "
        "restore the file from a copy, or write it again"
    )


def _read(storage: Storage, file: str, columns: Sequence[str]) -> None:
    with storage.open_parquet(file) as parquet:
        metadata = parquet.metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in range(group.num_columns):
                group.column(column)
        for _ in parquet.iter_batches(_BATCH_ROWS, columns=list(columns)) if columns else ():  # those that it has
            pass


def main() -> None:
    """Read the files of standard input's order."""
    storage, files, columns = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that started this one
    for file in files:
        sys.stdout.write(f"{file}\n")
        sys.stdout.flush()
        with suppress(Exception):  # what raises kills nobody
            _read(storage, file, columns)


if __name__ == "__main__":
    main()
