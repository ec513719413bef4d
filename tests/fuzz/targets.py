"""What is fuzzed. A target makes an input of a seed, gives it to lakerank, and says what came of it.

It is a result, a reject or an error of lakerank's own in one piece; whatever else is raised is a fault, as are a result
that is no number, and a candidate that is neither ranked nor rejected.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from fuzz.images import mutated, outcomes, seeds
from fuzz.mutations import changed, damaged
from lakerank import load_reranker
from lakerank.cli.rerank import rerank_lake
from lakerank.cli.score import parse_request
from lakerank.config import resolve_config
from lakerank.errors import LakerankError, PairRejected
from lakerank.model.checkpoint import EMBEDDED, read_header, read_json
from lakerank.model.inputs import RejectedInput
from lakerank.model.request import answer, parse
from lakerank.records import Document, Query
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_pictograms.network import Shape

RESULT, REJECT, ERROR = "results", "rejects", "errors"

#: A target: the seed's generator and a folder to work in, which it gets empty or as the last input left it.
Target = Callable[[Random, Path], str]

_SHAPE = Shape(read_json(EMBEDDED / "config.json")["vocab_size"], 64, 128, 3, 4, 2, 2, 64, 2)
_PAIR = (Query("q", text="red apple"), Document("d", text="A red apple lies on the table."))


def outcome(target: Target, random: Random, folder: Path) -> str:
    """What came of an input. Raises what no user should see."""
    try:
        return target(random, folder)
    except (RejectedInput, PairRejected):
        return REJECT
    except LakerankError as error:
        if not str(error).strip():
            raise AssertionError(f"{type(error).__name__} without a message") from error
        return ERROR


def images(random: Random, folder: Path) -> str:
    """Encoded images, damaged: patches or a reject."""
    return next(outcomes(random.randrange(2**32))) + "s"


@cache
def checkpoints(folder: Path) -> tuple[Path, ...]:
    """A random checkpoint of several families."""
    from checkpoints.encoders import write_bert, write_bge

    families = ("jina-reranker-m0", "qwen3-reranker", "qwen3-vl-reranker", "monoqwen2-vl")
    decoders = [random_checkpoint(folder, family, _SHAPE, "float32") for family in families]
    for name, write in (("bert", write_bert), ("bge", write_bge)):
        (folder / name).mkdir(exist_ok=True)
        write(folder / name, 128)
    return (*decoders, folder / "bert", folder / "bge")


_CHECKPOINT_FILES = (
    ("config.json",) * 6 + ("tokenizer.json",) * 3 + ("preprocessor_config.json", "tokenizer_config.json")
)


def checkpoint(random: Random, folder: Path) -> str:
    """Checkpoints and adapters of which a file is damaged: a score, or a CheckpointError."""
    base = random.choice(checkpoints(folder))
    copy, adapter = folder / "checkpoint", folder / "adapter"
    for path in (copy, adapter):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(base, copy, copy_function=os.link)
    kind = random.randrange(10)
    if kind == 0:
        _damage_weights(random, copy)
    elif kind == 1:
        index = {"weight_map": dict.fromkeys(read_header(copy / "model.safetensors"), "a.safetensors")}
        (copy / "model.safetensors").rename(copy / "a.safetensors")
        (copy / "model.safetensors.index.json").write_text(json.dumps(changed(random, index)))
    elif kind == 2:
        _damaged_adapter(random, adapter)
    else:
        _damage_json(random, copy / random.choice(_CHECKPOINT_FILES))
    score = load_reranker(str(copy), adapter=str(adapter) if kind == 2 else None, device="cpu", dtype="float32").score
    query, document = _PAIR if "mono" not in base.name else (_PAIR[0], Document("d", image=_page()))
    (logit,) = score([(query, document)])
    assert np.isfinite(logit), logit
    return RESULT


@cache
def _page() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (56, 56), "white").save(stream, "PNG")
    return stream.getvalue()


def _damage_json(random: Random, file: Path) -> None:
    """Change a JSON file's values, or its bytes; a hard link is replaced, not written through."""
    content = file.read_bytes() if file.is_file() else b"{}"
    file.unlink(missing_ok=True)
    if random.random() < 0.1:
        file.write_bytes(damaged(random, content))
    else:
        file.write_text(json.dumps(changed(random, json.loads(content))), "utf-8")


def _damage_weights(random: Random, folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    if random.random() < 0.5:
        header = json.dumps(changed(random, json.loads(header))).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    else:
        file.write_bytes(damaged(random, content[: 8 + size]) + data)


def _damaged_adapter(random: Random, folder: Path) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"x": 2}, "alpha_pattern": {"q_proj": 1}}
    module = f"base_model.model.model.layers.0.{random.choice(('self_attn.q_proj', 'mlp.up_proj', 'none'))}.lora_"
    shapes = {"A": (2, 64), "B": (random.choice((64, 128)), 2)}
    tensors = {f"{module}{side}.weight": torch.rand(shape) for side, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(changed(random, config)))


@cache
def _reranker(folder: Path) -> Any:
    return load_reranker(str(checkpoints(folder)[0]), device="cpu", dtype="float32")


def requests(random: Random, folder: Path) -> str:
    """Requests of the hosted API: a response, a PairRejected, or a ConfigError."""
    image = base64.b64encode(mutated(random.choice(seeds()), random)).decode()
    documents: list[Any] = [
        "A red apple",
        {"text": "table"},
        {"image": image},
        {"image": f"data:image/png;base64,{image}"},
    ]
    request = {"model": "m", "query": random.choice(("red apple", {"image": image}, {"text": "x"})), "top_n": 2}
    request |= {"documents": random.sample(documents, 2), "return_documents": True}
    content = json.dumps(changed(random, request))
    if random.random() < 0.3:
        content = damaged(random, content.encode()).decode("utf-8", "surrogateescape")
    parsed = parse(parse_request(io.StringIO(content), "request"), "m")
    response = answer(parsed, _reranker(folder), "m", 0.0)
    json.dumps(response, allow_nan=False)
    return RESULT


_IDS: tuple[Any, ...] = (
    "d1",
    "",
    " ",
    "a" * 300,
    "a/b",
    "../x",
    "é",
    "e\u0301",
    "\0",
    "\n",
    "\u2028",
    "😀",
    "1",
    "01",
    "a=b",
)
_TEXTS = (None, "", " ", "A red apple", "苹果", "\0", "a" * 5000)


def _tables(random: Random, ids: tuple[Any, ...]) -> dict[str, pa.Table]:
    documents, queries = ([random.choice(ids) for _ in range(4)] for _ in range(2))
    content = {
        "text": pa.array([random.choice(_TEXTS) for _ in range(4)], pa.string()),
        "image": pa.array(
            [damaged(random, _page(), 1) if random.random() < 0.2 else None for _ in range(4)], pa.binary()
        ),
    }
    pairs = [(random.choice([*queries, *ids[:2]]), random.choice([*documents, *ids[:2]])) for _ in range(8)]
    return {
        "documents": pa.table({"doc_id": documents, **content}),
        "queries": pa.table({"query_id": queries, "text": ["red apple", "table", None, "x"]}),
        "candidates": pa.table({"query_id": [pair[0] for pair in pairs], "doc_id": [pair[1] for pair in pairs]}),
    }


def _rerank(folder: Path, lake: Path) -> dict[str, Any]:
    """Rerank a lake in this process."""
    tables = {name: str(lake / f"{name}.parquet") for name in ("documents", "queries", "candidates")}
    values = {
        "lake": {**tables, "output": str(lake / "out")},
        "model": {"path": str(checkpoints(folder)[0]), "device": "cpu", "dtype": "float32"},
        "audit": {"max_reject_rate": 1, "max_unranked_queries": 1, "allow_empty": True},
        "spark": {"local_pairs": 1000, "conf": {"spark.master": "local[1]"}},
    }
    return rerank_lake(resolve_config(values, [], source="fuzz"), "r")


def _written(random: Random, folder: Path, tables: dict[str, pa.Table]) -> Path:
    lake = folder / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    lake.mkdir()
    for name, table in tables.items():
        pq.write_table(table, lake / f"{name}.parquet", compression=random.choice(("zstd", "snappy", "none")))
    return lake


def ids(random: Random, folder: Path) -> str:
    """Lakes of strange ids: each candidate is ranked or rejected, once, under the bytes that it came with."""
    tables = _tables(random, tuple(random.sample(_IDS, 5)))
    kind = random.choice((None, pa.large_string(), pa.binary(), pa.int64(), pa.dictionary(pa.int32(), pa.string())))
    name = random.choice(list(tables))
    if kind is not None:
        column = tables[name].column(0)
        cast = pa.array(range(len(column)), kind) if kind == pa.int64() else column.cast(kind)
        tables[name] = tables[name].set_column(0, tables[name].schema.names[0], cast)
    if random.random() < 0.2:  # bytes that are not UTF-8, as strings
        table = tables[name]
        column = pa.array([b"\xff\xfe" + bytes([row]) for row in range(len(table))], pa.binary()).view(pa.string())
        tables[name] = table.set_column(0, table.schema.names[0], column)
    lake = _written(random, folder, tables)
    summary = _rerank(folder, lake)
    expected = {tuple(row.values()) for row in tables["candidates"].select(["query_id", "doc_id"]).to_pylist()}
    parts = [pq.read_table(lake / "out" / part / "run_id=r", partitioning=None) for part in ("ranked", "rejected")]
    rows = [  # of the tables' type in ranked/
        (_text(row["query_id"]), _text(row["doc_id"]))
        for part in parts
        for row in part.select(["query_id", "doc_id"]).to_pylist()
    ]
    assert Counter(rows) == Counter({tuple(map(_text, pair)) for pair in expected}), (sorted(map(str, rows)), expected)
    return RESULT if summary["scored"] else REJECT


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else str(value) if isinstance(value, int) else value


def parquet(random: Random, folder: Path) -> str:
    """Lakes of which a table is damaged: a run, or an error that names the file."""
    lake = _written(random, folder, _tables(random, ("d1", "d2", "d3", "d4")))
    file = lake / f"{random.choice(('documents', 'queries', 'candidates'))}.parquet"
    content = file.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if random.random() < 0.6:
        file.write_bytes(content[:footer] + damaged(random, content[footer:]))
    else:
        file.write_bytes(damaged(random, content))
    try:
        summary = _rerank(folder, lake)
    except LakerankError as error:
        if file.name not in str(error):
            raise AssertionError(f"{error} does not name {file.name}") from error
        return ERROR
    return RESULT if summary["scored"] else REJECT
