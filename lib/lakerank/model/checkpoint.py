"""Checkpoints without their tensors: location, files, and what headers and JSON say.

torch is not imported here: planning a job, which needs the scorer's fingerprint, must not pay for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lakerank.errors import CheckpointError, LakerankError

EMBEDDED = Path(__file__).parent / "embedded"

#: Checkpoints with a name of their own, which `lakerank fetch NAME` puts into the cache folder.
MINILM_EN = "minilm-en"
FETCHED = (MINILM_EN,)

INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "model.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w./-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

#: Files up to this size are read whole; of larger ones, evenly spaced pieces, the first and the last bytes among them.
WHOLE_BYTES = 4 * 2**20
PIECES, PIECE_BYTES = 32, 64 * 2**10


def locate(path: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded where `path` is a hub id.

    Raises CheckpointError: nothing is there, a hub id comes without revision, or the download fails.
    """
    if path in FETCHED and not is_fetched(path):
        raise CheckpointError(
            f"{path}: not in {cached_folder(path)}; fetch it once on each machine: {fetch_command(path)}"
        )
    folder = EMBEDDED if path == "embedded" else cached_folder(path) if path in FETCHED else Path(path)
    if not folder.is_dir() and _HUB_ID.fullmatch(path):
        folder = _download(path, revision)
    if not folder.is_dir():
        names = ", ".join(("embedded", *FETCHED))
        raise CheckpointError(f"{path}: neither a folder nor a hub id such as jinaai/jina-reranker-m0, nor {names}")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: an adapter: name it under model.adapter, and its base under model.path")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; a checkpoint is a folder with it, weights and a tokenizer")
    return folder.resolve()


def cached_folder(name: str) -> Path:
    """A folder of the cache: below LAKERANK_CACHE, else ~/.cache/lakerank. `lakerank fetch` puts FETCHED there."""
    cache = os.path.expanduser(os.environ.get("LAKERANK_CACHE") or "~/.cache/lakerank")  # noqa: PTH111 - never raises
    return Path(cache) / name


def is_fetched(name: str) -> bool:
    """Whether a checkpoint of FETCHED is in the cache folder, which gets it whole or not at all."""
    return name in FETCHED and (cached_folder(name) / WEIGHTS_NAME).is_file()


def fetch_command(name: str) -> str:
    """The command that fetches a checkpoint of FETCHED, for messages."""
    return f"lakerank fetch {name}"


def locate_adapter(adapter: str | None, revision: str | None = None) -> str | None:
    """The folder of a LoRA adapter, downloaded where `adapter` is a hub id and no folder; None for none.

    Raises CheckpointError: a hub id comes without revision, or the download fails.
    """
    if adapter is None or Path(adapter).is_dir() or not _HUB_ID.fullmatch(adapter):
        return adapter
    return str(_download(adapter, revision, "adapter_revision"))


def _download(hub_id: str, revision: str | None, setting: str = "revision") -> Path:
    if revision is None:
        raise CheckpointError(f"{hub_id}: set model.{setting}, so that the weights cannot change between two runs")
    if not _REVISION.fullmatch(revision):
        raise CheckpointError(f"{hub_id}: model.{setting} is {revision!r}; put the checkpoint's commit there")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.logging import get_logger

    get_logger().handlers.clear()  # what it logs goes to the root's as well: each retry was a line twice
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises its own errors, the network's and the disk's
        raise CheckpointError(f"{hub_id} at {revision}: {type(error).__name__}: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not.

    Raises CheckpointError: there are none, or a shard is missing.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        present = f"only {few(pickles)}, which could run code when read" if pickles else "no weights"
        raise CheckpointError(f"{folder}: {present}; {WEIGHTS_NAME} or {INDEX_NAME} is needed")
    places = read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and "\0" not in name for name in places.values()):
        raise CheckpointError(f"{folder / INDEX_NAME}: weight_map does not name a file for each tensor")
    names = sorted(set(places.values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{folder}: shards are missing: {few(missing)}; copy the checkpoint again")
    return [folder / name for name in names]


def adapter_files(adapter: str) -> list[Path]:
    """The two files of a LoRA adapter. Raises CheckpointError: one is missing."""
    files = [Path(adapter) / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{adapter}: no {few(missing)}; an adapter is a folder as peft saves it, in safetensors")
    return files


def resolve_dtype(folder: Path, dtype: str) -> str:
    """`dtype`, or for auto the type that most of the stored weights have.

    Raises CheckpointError: `dtype` is none that weights are computed in, or a tensor is of another type.
    """
    if dtype not in ("auto", *_DTYPES.values()):
        raise CheckpointError(f"dtype {dtype!r}: choose auto, {', '.join(_DTYPES.values())}")
    counts = dict.fromkeys(_DTYPES, 0)
    for name, (shape, stored) in stored_tensors(folder).items():
        if stored == "I64":  # a buffer of positions, never a weight
            continue
        if stored not in counts:
            raise CheckpointError(f"{folder}: {name} is of type {stored}; only {', '.join(_DTYPES)} are supported")
        counts[stored] += math.prod(shape)
    return _DTYPES[max(counts, key=counts.__getitem__)] if dtype == "auto" else dtype


def stored_tensors(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and stored type of every tensor of a checkpoint.

    Raises CheckpointError: as `weight_files` and `read_header`, or a tensor is in two files.
    """
    tensors: dict[str, tuple[list[int], str]] = {}
    for file in weight_files(folder):
        header = read_header(file)
        if twice := sorted(tensors.keys() & header.keys()):
            raise CheckpointError(f"{file}: {few(twice)} is in another file, too; copy the checkpoint again")
        tensors |= header
    return tensors


def read_header(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and stored type of every tensor in a safetensors file.

    Raises CheckpointError: the file is not safetensors, or is truncated.
    """
    try:
        with safe_open(file, framework="numpy") as stored:  # no tensor is read
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}); copy it again") from error


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Whatever a library raises on a checkpoint's files as a CheckpointError of `source`, Rust's panics as well."""
    try:
        yield
    except LakerankError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(f"{source}: cannot be loaded ({type(error).__name__}: {error})") from error


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked: pyo3's class for that cannot be imported, and is no Exception."""
    return type(error).__name__ == "PanicException"


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError: it is missing or not one, or has a number that is none."""
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file}: expected an object, found {type(loaded).__name__}")
    return loaded


def read_optional(file: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. Raises CheckpointError: as `read_json`."""
    return read_json(file) if file.is_file() else {}


def _finite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError: a value is NaN or infinite, in Python's JSON alone (or 1e999)."""
    for name, value in pairs:
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{name} is {value}")
    return dict(pairs)


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Kinds and folders of the modules that sentence-transformers' modules.json lists; none without the file.

    Raises CheckpointError: it is not such a list.
    """
    file = folder / "modules.json"
    try:
        modules = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        return [(str(module["type"]), folder / str(module.get("path", ""))) for module in modules]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: not sentence-transformers' list of modules: {error!r}") from error


def module_files(folder: Path) -> list[Path]:
    """Settings and weights of sentence-transformers' modules in folders of their own, in order."""
    places = [place for _, place in read_modules(folder) if place != folder]
    return [file for place in places for name in ("config.json", WEIGHTS_NAME) if (file := place / name).is_file()]


def file_hash(file: Path) -> str:
    """Hash of a file's bytes, computed once for as long as its size and time of change stay."""
    status = file.stat()
    return _file_hash(str(file.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def quick_checksum(files: Iterable[Path]) -> str:
    """Checksum of names, sizes and sampled content of files, 32 hex digits, wherever their folder is.

    Two trainings of one architecture differ in every large tensor, so that samples tell them apart; damage to a few
    bytes in between goes unnoticed. Only full hashes, computed once by the driver, name a scorer.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}\n".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_BYTES:
                digest.update(stream.read())
                continue
            for piece in range(PIECES):
                stream.seek((size - PIECE_BYTES) * piece // (PIECES - 1))
                digest.update(stream.read(PIECE_BYTES))
    return digest.hexdigest()


def check_weights(expected: Mapping[str, Sequence[int]], stored: Mapping[str, Sequence[int]], source: str) -> None:
    """Compare the shapes of a checkpoint's tensors, by name, with those that its network has.

    Raises CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    faults = []
    if missing := sorted(expected.keys() - stored.keys()):
        faults.append(f"{len(missing)} missing: {few(missing)}")
    if unexpected := sorted(stored.keys() - expected.keys()):
        faults.append(f"{len(unexpected)} unexpected: {few(unexpected)}")
    shapes = {name: (tuple(stored[name]), tuple(expected[name])) for name in sorted(expected.keys() & stored.keys())}
    if other := [f"{name} {shape}, not {needed}" for name, (shape, needed) in shapes.items() if shape != needed]:
        faults.append(f"{len(other)} of another shape: {few(other)}")
    if faults:
        raise CheckpointError(
            f"{source}: the weights do not fit config.json ({'; '.join(faults)}); "
            "do all files come from one revision, and is it of this architecture and family (model.family)?"
        )


def few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
