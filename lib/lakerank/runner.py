"""Where the tasks of a job run: in Spark's workers, or for a small lake one after the other in this process.

A job's logic is written once, as tasks over Arrow batches that a `Runner` distributes. Tasks hand rows to each other
packed: compressed Arrow batches by partition, which a shuffle moves unopened.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakerank.errors import OverdueError
from lakerank.logs import duration, own_context

T = TypeVar("T")

#: A task: what it yields for an item.
Work = Callable[[T], Iterator[pa.RecordBatch]]

#: A task that has a torch device: what it yields for an item and the device.
DeviceWork = Callable[[T, str], Iterator[pa.RecordBatch]]

#: An item may take so many times as long as the slowest before it.
DEADLINE_FACTOR = 10

#: The first may take a day at most: without a calibration a large model's forecast is of weeks.
MOST_FIRST_S = 86_400.0

#: A task over a partition: gets its number and its rows of every kind, in no particular order.
PartWork = Callable[[int, dict[int, pa.Table]], Iterator[pa.RecordBatch]]

#: Rows that tasks will yield, as their runner has them: to be used once, and by that runner alone.
Rows: TypeAlias = Any

#: A packed Arrow batch: the partition it goes to, the kind of its rows, and the rows, compressed.
BATCHES = pa.schema([("part", pa.int32()), ("kind", pa.int8()), ("batch", pa.binary())])

#: A count, by name and number (of a partition, range or cost; 0 for a total).
COUNTS = pa.schema([("what", pa.string()), ("number", pa.int64()), ("value", pa.int64())])

#: Counts that tasks yielded, added up.
Counts = Mapping[str, Mapping[int, int]]

_SIZE_BYTES = 8  # a compressed batch begins with its uncompressed size


@dataclass(frozen=True, slots=True)
class Deadline:
    """Seconds an item may take: ten times the slowest that has ended, `first_s` before any has, at least `least_s`.

    `first_s` counts up to a day. Items are looked at every `every_s` seconds.
    """

    least_s: float = math.inf
    first_s: float = 0.0
    every_s: float = 2.0


NO_DEADLINE = Deadline()


@dataclass
class RunningItems:
    """Items that run, since when, and the seconds of the slowest that has ended."""

    deadline: Deadline
    clock: Callable[[], float] = time.monotonic
    slowest_s: float = 0.0
    _since: dict[Any, float] = field(default_factory=dict)

    @property
    def limit_s(self) -> float:
        """Seconds that an item may take now."""
        learned_s = DEADLINE_FACTOR * self.slowest_s
        return max(self.deadline.least_s, learned_s or min(self.deadline.first_s, MOST_FIRST_S))

    def overdue(self, running: Collection[T]) -> list[T]:
        """Of the items that run now those that take too long. Others that ran have ended; these count as begun anew."""
        now = self.clock()
        for item in self._since.keys() - set(running):
            self.slowest_s = max(self.slowest_s, now - self._since.pop(item))
        late = [item for item in running if now - self._since.setdefault(item, now) > self.limit_s]
        self._since |= dict.fromkeys(late, now)
        return late


@dataclass(frozen=True, slots=True)
class Places:
    """The torch device that tasks run on, how many they may be where this process decides, and an item's deadline."""

    device: str
    most: int
    deadline: Deadline = NO_DEADLINE


class Runner(Protocol):
    """Distributes tasks. Nothing runs before its rows are collected, summed or exchanged."""

    @property
    def parallelism(self) -> int:
        """Tasks that can run at once."""
        ...

    def gives_gpus(self, device: str) -> bool:
        """Whether tasks on a torch device, which may be auto, would have a GPU."""
        ...

    def begin(self, job: str) -> None:
        """Put what follows under one heading, for people who watch it."""
        ...

    def describe(self, step: str) -> None:
        """Name what follows."""
        ...

    def scatter(self, items: Sequence[T], work: Work[T], schema: pa.Schema, tasks: int | None = None) -> Rows:
        """What `work` yields for each item; consecutive items share a task where there are fewer tasks.

        `work` and `items` cross to workers as they are: a sequence of an address crosses smaller than its items.
        """
        ...

    def exchange(
        self, rows: Sequence[Rows], parts: int, kinds: Mapping[int, pa.Schema], work: PartWork, schema: pa.Schema
    ) -> Rows:
        """Bring BATCHES together by partition and run `work` on each: one task each, none for an empty partition.

        Args:
            rows: of BATCHES.
            kinds: the schema of each kind of rows.
            schema: what `work` yields.
        """
        ...

    def collect(self, rows: Rows, schema: pa.Schema) -> pa.Table:
        """All rows, here: for small results."""
        ...

    def stream(self, rows: Rows) -> Iterator[Any]:
        """The rows, here, by the names of their columns: one after the other, those of a few tasks at a time."""
        ...

    def summed(self, counts: Rows) -> Counts:
        """COUNTS added up: a few thousand numbers, whatever the size of the lake."""
        ...

    def on_device(self, items: Sequence[T], work: DeviceWork[T], schema: pa.Schema, places: Places) -> pa.Table:
        """Collect what `work` yields for each item and the torch device that its task has.

        Tasks run where what they load is kept from task to task, at no more places than there are devices.

        Raises:
            OverdueError: an item was not done by its deadline; twice, where another process can be killed.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """Runs tasks in this process. Exchanged rows are in memory, packed: a few bytes a pair."""

    parallelism: int = field(default_factory=lambda: available_cores())

    def gives_gpus(self, device: str) -> bool:
        """Whether this machine has one for it."""
        return device.startswith("cuda") or (device == "auto" and visible_gpus() > 0)

    def begin(self, job: str) -> None:
        """Nobody watches: steps take seconds at most."""

    def describe(self, step: str) -> None:
        """As `begin`."""

    def scatter(
        self, items: Sequence[T], work: Work[T], schema: pa.Schema, tasks: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """One item after the other, when the batches are asked for."""
        return (batch for item in items for batch in work(item))

    def exchange(
        self, rows: Sequence[Rows], parts: int, kinds: Mapping[int, pa.Schema], work: PartWork, schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        """One partition after the other."""
        received: dict[int, list[pa.RecordBatch]] = {}
        for batch in chain.from_iterable(rows):
            for row, part in enumerate(batch.column("part").to_pylist()):
                received.setdefault(part, []).append(batch.slice(row, 1))
        for part in sorted(received):
            yield from work(part, unpack(received.pop(part), kinds))

    def collect(self, rows: Rows, schema: pa.Schema) -> pa.Table:
        """All of them."""
        return pa.Table.from_batches(rows, schema=schema)

    def stream(self, rows: Rows) -> Iterator[Any]:
        """One task's after the other's."""
        return (row for batch in rows for row in batch.to_pylist())

    def summed(self, counts: Rows) -> Counts:
        """All of them."""
        rows = self.collect(counts, COUNTS).group_by(["what", "number"]).aggregate([("value", "sum")])
        return counts_of(rows.rename_columns({"value_sum": "value"}))

    def on_device(self, items: Sequence[T], work: DeviceWork[T], schema: pa.Schema, places: Places) -> pa.Table:
        """In threads of this process, each with what it loads: one a GPU, or one a core where there is none."""
        devices = local_devices(places.device, self.parallelism)[: max(1, places.most)]
        waiting, lock = iter(items), threading.Lock()
        current: dict[int, T] = {}

        def take() -> T | None:
            with lock:
                return next(waiting, None)

        def run(name: str) -> list[pa.RecordBatch]:
            batches: list[pa.RecordBatch] = []
            with own_context():
                for item in iter(take, None):
                    current[threading.get_ident()] = item
                    batches += work(item, name)
            current.pop(threading.get_ident(), None)
            return batches

        pool, running = ThreadPoolExecutor(len(devices), "scoring"), RunningItems(places.deadline)
        tasks = [pool.submit(run, name) for name in devices[: len(items)]]
        try:
            while (state := wait(tasks, places.deadline.every_s, FIRST_EXCEPTION)).not_done:
                if any(task.exception() for task in state.done):
                    break
                for item in running.overdue([*current.values()]):
                    pool.shutdown(wait=False)  # its thread cannot be ended, but with the process
                    raise OverdueError(f"unit {item}: not done after {duration(running.limit_s)}")
            batches = [batch for task in as_completed(tasks) for batch in task.result()]
        except OverdueError:
            raise
        except BaseException:
            waiting = iter(())  # the other threads end with the item that they are at
            pool.shutdown()
            raise
        pool.shutdown()
        return pa.Table.from_batches(batches, schema=schema)


def gather(runner: Runner, items: Sequence[T], work: Work[T], schema: pa.Schema, tasks: int | None = None) -> pa.Table:
    """Run `work` on every item and collect what it yields: for small results, one row or so an item."""
    return runner.collect(runner.scatter(items, work, schema, tasks), schema) if items else schema.empty_table()


def pack(kind: int, parts: npt.NDArray[np.integer], rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows (N,) and the number of each one's partition (N,) as BATCHES: one Arrow batch a partition, in their order."""
    if not rows.num_rows:
        return
    if (parts[1:] < parts[:-1]).any():
        order = np.argsort(parts, kind="stable")
        parts, rows = parts[order], rows.take(pa.array(order))
    whole = rows.combine_chunks().to_batches()[0]
    edges = np.flatnonzero(np.diff(parts)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(parts)]])
    batches = [
        _compress(whole.slice(start, end - start).serialize())
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    numbers = np.asarray(parts)[starts].astype(np.int32)
    kinds = np.full(len(batches), kind, np.int8)
    arrays = [pa.array(numbers), pa.array(kinds), pa.array(batches, pa.binary())]
    yield pa.RecordBatch.from_arrays(arrays, schema=BATCHES)


def unpack(batches: Iterable[pa.RecordBatch], kinds: Mapping[int, pa.Schema]) -> dict[int, pa.Table]:
    """The rows of a partition's BATCHES, by kind."""
    received: dict[int, list[pa.RecordBatch]] = {kind: [] for kind in kinds}
    for rows in batches:
        for kind, batch in zip(rows.column("kind").to_pylist(), rows.column("batch"), strict=True):
            received[kind].append(pa.ipc.read_record_batch(_decompress(batch.as_buffer()), kinds[kind]))
    return {kind: pa.Table.from_batches(received.pop(kind), schema=kinds[kind]).combine_chunks() for kind in kinds}


def one_row(schema: pa.Schema, *values: object) -> pa.RecordBatch:
    """A batch of one row, as tasks report what they did."""
    return pa.RecordBatch.from_pydict({name: [v] for name, v in zip(schema.names, values, strict=True)}, schema)


def totals(values: Mapping[str, int], number: int = 0) -> pa.RecordBatch:
    """A value for each name, as rows of COUNTS."""
    columns = {"what": [*values], "number": [number] * len(values), "value": [*values.values()]}
    return pa.RecordBatch.from_pydict(columns, schema=COUNTS)


def histogram(what: str, numbers: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """How often each number occurs among some (N,), as rows of COUNTS."""
    distinct, amounts = np.unique(numbers, return_counts=True)
    return pa.RecordBatch.from_pydict({"what": [what] * len(distinct), "number": distinct, "value": amounts}, COUNTS)


def counts_of(rows: pa.Table) -> Counts:
    """COUNTS, one row a name and number, by both."""
    counts: dict[str, dict[int, int]] = {}
    for row in rows.to_pylist():
        counts.setdefault(row["what"], {})[row["number"]] = row["value"]
    return counts


def total_of(counts: Counts, what: str) -> int:
    """The total counted under a name."""
    return counts.get(what, {}).get(0, 0)


def local_devices(device: str, cores: int) -> list[str]:
    """Devices of this machine that tasks can have at once: its GPUs, or the CPU once a core."""
    gpus = visible_gpus() if device in ("auto", "cuda") else 0
    if gpus:
        return [device] if gpus == 1 else [f"cuda:{number}" for number in range(gpus)]
    on_cpu = device == "cpu" or (device == "auto" and sys.platform != "darwin")  # where `auto` may be Metal
    return [device] * (cores if on_cpu else 1)


def visible_gpus() -> int:
    """NVIDIA GPUs that this process may use, without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decompress(batch: pa.Buffer) -> pa.Buffer:
    size = int.from_bytes(batch.slice(0, _SIZE_BYTES).to_pybytes(), "little")
    return pa.decompress(batch.slice(_SIZE_BYTES), size, "zstd")


def _compress(message: pa.Buffer) -> bytes:
    return int(message.size).to_bytes(_SIZE_BYTES, "little") + bytes(pa.compress(message, "zstd", asbytes=True))
