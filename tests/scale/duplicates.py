"""Planted near duplicates: precision and recall of the clusters at the defaults; and seconds and memory for many texts.

python tests/scale/duplicates.py planted
python tests/scale/duplicates.py demo
python tests/scale/duplicates.py texts --count 1000000 --runner spark
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

from lakerank.cli.resolve import rerank_job
from lakerank.config import DuplicatesConfig, load_config
from lakerank.cost import Sizing
from lakerank.duplicates.clusters import Clusters
from lakerank.duplicates.sketch import Likeness
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments
from lakerank.rerank.plan.clusters import Clustering
from lakerank.rerank.plan.steps import table_index
from lakerank.rerank.run import run
from lakerank.runner import LocalRunner, Runner
from lakerank.schemas import DOCUMENTS

Row = dict[str, object]

DEMO_LAKE = Path(__file__).resolve().parents[2] / "lib/lakerank/ingest/demo_lake"


def clusters_of(runner: Runner, folder: Path, documents: Path) -> tuple[Clusters, list[str]]:
    """The clusters of a documents table, and the content of each of its rows."""
    storage, sizing = Storage(), Sizing(3136, 602112, 10000)
    files = fragments(storage, str(documents), DOCUMENTS)
    paths = RunPaths(str(folder), "planted")
    indexes = [table_index(runner, storage, paths, name, files, sizing) for name in ("documents", "sketches")]
    default = DuplicatesConfig()
    likeness = Likeness(default.text_similarity, default.image_difference)
    clustering = Clustering(storage, str(folder), *indexes, likeness)
    clusters = clustering.ensure(runner)
    tables = indexes[0].read(range(len(indexes[0].chunks)), ["number", "hash"])
    return clusters, pa.concat_tables(tables).sort_by("number")["hash"].to_pylist()


def write(path: Path, rows: list[Row]) -> None:
    schema = pa.schema([("doc_id", pa.string()), ("text", pa.string()), ("image", pa.binary())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=1000)


def words(generator: random.Random, count: int, letters: str = "abcdefghijklmnopqrstuvwxyz") -> list[str]:
    vocabulary = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(3000)]
    weights = [1 / (rank + 10) for rank in range(len(vocabulary))]
    return generator.choices(vocabulary, weights, k=count)


def page(lines: list[str], side: tuple[int, int] = (612, 792)) -> Image.Image:
    """A page of text, as PDF files give it."""
    image = Image.new("RGB", side, "white")
    draw, y = ImageDraw.Draw(image), 50
    for line in lines:
        draw.text((60, y), line, fill="black")
        y += 14
    return image


def photo(generator: np.random.Generator) -> Image.Image:
    coarse = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def encoded(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def recompressed(image: Image.Image) -> list[bytes]:
    smaller = image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)
    return [
        encoded(image, "PNG"),
        encoded(image, quality=90),
        encoded(image, quality=45),
        encoded(smaller, quality=80),
        encoded(smaller.resize((image.width, image.height)), "WEBP"),
    ]


def planted(seed: int = 1, of_kind: int = 40) -> list[list[Row]]:
    """Groups of documents: those of a group are near duplicates of one another, and of no others."""
    generator, pixels = random.Random(seed), np.random.default_rng(seed)
    groups: list[list[Row]] = []
    for number in range(of_kind):
        body = words(generator, 200)
        header = [" ".join(words(generator, 12)) for _ in range(3)]
        texts = [f"{line}\n\n{' '.join(body)}" for line in header]
        groups.append([{"text": text} for text in (*texts, texts[0].upper())])
        groups.append([{"text": " ".join(words(generator, 200))}])  # a translation: other words
        symbols = [chr(code) for code in range(0x4E00, 0x4E00 + 900)]
        spoken = "".join(generator.choices(symbols, k=300))
        groups.append([{"text": spoken}, {"text": "".join(generator.choices(symbols, k=12)) + spoken}])
        groups.append([{"text": "".join(generator.choices(symbols, k=300))}])
        groups.append([{"image": data} for data in recompressed(photo(pixels))])
        lines = [" ".join(words(generator, generator.randint(4, 12))) for _ in range(generator.randint(15, 45))]
        groups.append([{"image": data} for data in recompressed(page(lines))])
        other = [" ".join(words(generator, max(1, len(line.split()) + generator.randint(-2, 3)))) for line in lines]
        groups.append([{"image": encoded(page(other), quality=80)}])  # the page in another language
        both = photo(pixels)
        groups.append([{"text": " ".join(body), "image": data} for data in recompressed(both)[:2]])
        groups.append([{"text": f"caption {number}: {' '.join(words(generator, 30))}", "image": encoded(both)}])
    # Of 84 × 84 pixels, each in several drawings that are not duplicates.
    pictograms = pq.read_table(DEMO_LAKE / "documents.parquet", columns=["image"])["image"].drop_null().to_pylist()
    for data in pictograms[:: max(1, 300 // of_kind // 8)]:
        others = recompressed(opened(data))[1:]
        groups.append([{"image": image} for image in (data, *others)])
    groups += [[{"text": text}] for text in ("", "  ", "word", "word word", "other")]
    groups.append([{"image": b"\x89PNG\r\n\x1a\nnothing"}])
    return groups


def score(groups: list[list[Row]], found: list[str]) -> dict[str, float]:
    """Precision and recall over pairs of documents."""
    truth = [number for number, group in enumerate(groups) for _ in group]
    left, right = np.triu_indices(len(truth), 1)
    same = np.array(truth)[left] == np.array(truth)[right]
    ids = np.unique(found, return_inverse=True)[1]
    joined = ids[left] == ids[right]
    hits = int((same & joined).sum())
    return {"pairs": int(same.sum()), "precision": hits / int(joined.sum()), "recall": hits / int(same.sum())}


def many_texts(path: Path, count: int) -> None:
    """Texts of about 100 words; every tenth is an edited copy of the one before it."""
    generator = np.random.default_rng(1)
    vocabulary = np.array(words(random.Random(1), 20000), dtype=object)
    schema = pa.schema([("doc_id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, count, 20_000):
            size = min(20_000, count - first)
            chosen = vocabulary[(generator.pareto(0.8, (size, 100)) * 50).astype(int) % len(vocabulary)]
            chosen[9::10] = chosen[8::10][: len(chosen[9::10])]
            chosen[9::10, :6] = vocabulary[generator.integers(0, len(vocabulary), (len(chosen[9::10]), 6))]
            texts = [" ".join(row) for row in chosen]
            writer.write_table(pa.table({"doc_id": [f"d{first + at}" for at in range(size)], "text": texts}, schema))


def demo(folder: Path) -> dict[str, float]:
    """Seconds of this process for clustering the demo's documents, sketches included, and for scoring its pairs."""
    config = load_config(Path(__file__).parents[2] / "conf/demo.yaml", [f"lake.output={folder}/lake"])
    started = time.process_time()
    clusters, hashes = clusters_of(LocalRunner(2), folder, Path(config.lake.located().documents))
    clustered = time.process_time() - started
    storage = Storage()
    job = rerank_job(config, "demo", storage)
    run(LocalRunner(2), storage, job, ["plan"])
    started = time.process_time()
    run(LocalRunner(2), storage, job, ["score"])
    found = clusters.of(pa.chunked_array([hashes])).to_pylist()
    figures = {"documents": len(found), "repeated": len(found) - len(set(found))}
    return figures | {"clustering": clustered, "scoring": time.process_time() - started}


def spark_runner(memory: str) -> Runner:
    from lakerank.spark.runtime.runner import SparkRunner
    from lakerank.spark.runtime.session import start

    conf = {"spark.master": "local[2]", "spark.driver.memory": memory, "spark.ui.showConsoleProgress": False}
    return SparkRunner(start("duplicates", conf))


def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as home:
        folder = Path(home)
        documents = folder / "documents.parquet"
        if arguments.what == "planted":
            groups = planted()
            write(documents, [{"doc_id": f"d{at}", **row} for at, row in enumerate(row for g in groups for row in g)])
            started = time.monotonic()
            clusters, hashes = clusters_of(LocalRunner(2), folder, documents)
            found = clusters.of(pa.chunked_array([hashes])).to_pylist()
            print(json.dumps({**score(groups, found), "documents": len(found), "seconds": time.monotonic() - started}))
            return
        if arguments.what == "demo":
            print(json.dumps(demo(folder)))
            return
        many_texts(documents, arguments.count)
        from plan_scale import PeakMemory

        runner = spark_runner("2g") if arguments.runner == "spark" else LocalRunner(2)
        started, memory = time.monotonic(), PeakMemory()
        clusters, hashes = clusters_of(runner, folder, documents)
        seconds = time.monotonic() - started
        found = np.array(clusters.of(pa.chunked_array([hashes])).to_pylist(), object)
        planted_pairs = found[8::10][: len(found[9::10])] == found[9::10]
        figures = {"texts": len(found), "clusters_with_duplicates": len(found) - len(set(found)), "seconds": seconds}
        print(json.dumps(figures | {"recall": float(planted_pairs.mean()), "peak_mb": memory.stop() / 2**20}))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["planted", "demo", "texts"])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--runner", choices=["local", "spark"], default="local")
    parser.add_argument("--folder", default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main(parsed())
