"""What explanations are worth where the truth is known: deletion beside random, and pointing at one of four.

python tests/scale/explain_truth.py choose --ranked R      methods beside each other, on half of the queries
python tests/scale/explain_truth.py report --ranked R      what `lakerank explain` does, on the other half, by slice
python tests/scale/explain_truth.py report --model minilm-en      on the questions of Python's manual

Pointing: four pictograms in one image, or four texts in one, of which the query asks for one; the heaviest quarter is
the right one by chance once in four. Words: the query asks for two of four pictograms, one after the other; the word
named with a part of either is one that asks for it. Deletion: the first three documents of a run's lists (--ranked:
ranked/run_id=…), or what is judged relevant.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

from lakerank.explain.explainer import Case, Explainer
from lakerank.explain.parts import Floats
from lakerank.limits import Limits
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.records import Document, DocumentGroup, Query, ScoredPair

LIB = Path(__file__).resolve().parents[2] / "lib"
LAKES = {"embedded": LIB / "lakerank/ingest/demo_lake", "minilm-en": LIB / "lakerank_questions/lake"}
SHARES = (0.2, 0.4, 0.6, 0.8)

#: Compositions, and pairs, that methods are chosen on.
_FEW = 120

Row = dict[str, Any]


class Lake:
    """The documents, queries and judgements that a model is measured with."""

    def __init__(self, folder: Path) -> None:
        tables = {
            name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("documents", "queries", "qrels")
        }
        self.documents = {row["doc_id"]: row for row in tables["documents"]}
        self.queries = {row["query_id"]: row for row in tables["queries"]}
        self.relevant: dict[str, list[str]] = defaultdict(list)
        for row in tables["qrels"]:
            if int(row["relevance"]) > 0:
                self.relevant[row["query_id"]].append(row["doc_id"])

    def query(self, query_id: str) -> Query:
        row = self.queries[query_id]
        return Query(query_id, row["text"], row.get("image"))

    def document(self, doc_id: str) -> Document:
        row = self.documents[doc_id]
        return Document(doc_id, row["text"], row.get("image"))

    def of_kind(self, kind: str) -> list[str]:
        return [name for name, row in self.documents.items() if bool(row.get("image")) == (kind == "image")]

    def topic(self, doc_id: str) -> str:
        return str(self.documents[doc_id].get("concept", doc_id))

    def slice(self, query_id: str) -> str:
        row = self.queries[query_id]
        if "slice" not in row:  # of Python's manual: the page that answers
            return Path(self.documents[self.relevant[query_id][0]]["path"]).stem
        return f"{row['task'].partition('→')[0]}: {row['slice']}"


def is_held_out(query_id: str) -> bool:
    return crc32(query_id.encode()) % 2 == 1


def compositions(lake: Lake, kind: str, held_out: bool, each: int) -> Iterator[tuple[str, Document, int, list[int]]]:
    """Query, four documents in one, which of them is its own, and for texts where the four end.

    The document is named by the script of its own text.
    """
    generator = random.Random(1)
    pool = lake.of_kind(kind)
    for query_id in [name for name in lake.queries if is_held_out(name) == held_out] * each:
        own = [name for name in lake.relevant[query_id] if name in pool]
        if not own:
            continue
        chosen = generator.choice(own)
        others = {
            lake.topic(name): name for name in generator.sample(pool, 12) if lake.topic(name) != lake.topic(chosen)
        }
        place = generator.randrange(4)
        names = [*list(others.values())[:3]]
        names.insert(place, chosen)
        document, ends = composed(lake, names, kind)
        yield query_id, replace(document, doc_id=lake.documents[chosen].get("script") or ""), place, ends


def composed_queries(lake: Lake) -> Iterator[tuple[str, Query, Document, dict[int, str]]]:
    """Slice, a query for two of four pictograms in one image, these, and which two, by their queries' texts."""
    generator = random.Random(2)
    pool = lake.of_kind("image")
    able = [n for n, row in lake.queries.items() if row["text"] and is_held_out(n)]
    able = [name for name in able if any(own in pool for own in lake.relevant[name])]
    for first in able * 5:
        language, topic = (lake.queries[first].get(name) for name in ("language", "concept"))
        alike = [n for n in able if lake.queries[n].get("language") == language and lake.queries[n]["concept"] != topic]
        if not alike:
            continue
        asked = [first, generator.choice(alike)]
        names = [generator.choice([own for own in lake.relevant[name] if own in pool]) for name in asked]
        topics = {lake.queries[name]["concept"] for name in asked}
        names += [name for name in generator.sample(pool, 12) if lake.topic(name) not in topics][:2]
        order = generator.sample(range(4), 4)
        texts = [lake.queries[name]["text"] for name in asked]
        document, _ = composed(lake, [names[number] for number in order], "image")
        places = {order.index(0): texts[0], order.index(1): texts[1]}
        yield lake.slice(first), Query("both", " ".join(texts)), document, places


def composed(lake: Lake, names: Sequence[str], kind: str) -> tuple[Document, list[int]]:
    if kind == "text":
        texts = [lake.documents[name]["text"][:380] for name in names]
        return Document("four", "\n".join(texts)), np.cumsum([len(text) + 1 for text in texts]).tolist()
    image, buffer = Image.new("RGB", (168, 168), "white"), io.BytesIO()
    for number, name in enumerate(names):
        picture = Image.open(io.BytesIO(lake.documents[name]["image"])).convert("RGBA")
        image.paste(picture, (number % 2 * 84, number // 2 * 84), picture)
    image.save(buffer, "PNG")
    return Document("four", image=buffer.getvalue()), []


def quarter(part: Any, ends: Sequence[int]) -> int:
    """Which of the four a part is in."""
    if part.kind == "box":
        return int(part.x0 >= 84) + 2 * int(part.y0 >= 84)
    return min(3, int(np.searchsorted(ends, (part.start + part.end) / 2)))


def logits_of(reranker: Any, groups: Sequence[DocumentGroup]) -> dict[tuple[str, str], float]:
    return {(r.query_id, r.doc_id): r.logit for r in reranker.score_groups(groups) if isinstance(r, ScoredPair)}


def heaviest(case: Any, weights: Floats, ends: Sequence[int]) -> int:
    sums = np.zeros(4)
    np.add.at(sums, [quarter(part, ends) for part in case.parts.parts], weights)
    return int(sums.argmax())


def interval(values: Sequence[float]) -> str:
    draws = np.random.default_rng(0).choice(np.array(values), (2000, len(values))).mean(axis=1)
    return f"{np.mean(values):.2f} ({np.quantile(draws, 0.025):.2f} to {np.quantile(draws, 0.975):.2f})"


def top_pairs(lake: Lake, ranked: Path, held_out: bool) -> list[Row]:
    rows = pq.read_table(ranked).to_pylist()
    return [row for row in rows if row["rank"] <= 3 and is_held_out(row["query_id"]) == held_out]


def groups_of(lake: Lake, rows: Sequence[Row]) -> list[DocumentGroup]:
    queries: dict[str, list[Query]] = defaultdict(list)
    for row in rows:
        queries[row["doc_id"]].append(lake.query(row["query_id"]))
    return [DocumentGroup(lake.document(name), tuple(of_document)) for name, of_document in queries.items()]


def report(lake: Lake, explainer: Explainer, reranker: Any, ranked: Path | None) -> None:
    for kind, each in (("image", 2), ("text", 8)):
        hits: dict[str, list[float]] = defaultdict(list)
        for query_id, document, place, ends in compositions(lake, kind, True, each if ranked else 1):
            group = [DocumentGroup(document, (lake.query(query_id),))]
            for result in explainer.explain(group, logits_of(reranker, group)):
                hit = float(heaviest(result, result.weights, ends) == place)
                for name in {"all", lake.slice(query_id), document.doc_id} - {""}:
                    hits[name].append(hit)
        print(f"\npointing at one of four ({kind}), chance 0.25")
        for name in sorted(hits):
            print(f"  {name}: {interval(hits[name])}, {len(hits[name])} compositions")
    if ranked:
        named_words(lake, explainer, reranker)
    judged = [{"query_id": name, "doc_id": own[0]} for name, own in lake.relevant.items() if is_held_out(name)]
    deletion(lake, explainer, reranker, top_pairs(lake, ranked, held_out=True) if ranked else judged)


def named_words(lake: Lake, explainer: Explainer, reranker: Any) -> None:
    """How many of the words that parts of one of two pictograms are named with ask for that one."""
    right: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, query, document, places in composed_queries(lake):
        group = [DocumentGroup(document, (query,))]
        for result in explainer.explain(group, logits_of(reranker, group)):
            for part, word in zip(result.parts.parts, result.words, strict=True):
                own = places.get(quarter(part, ()), "")
                other = next(text for text in places.values() if text != own)
                if own and word and (word in own) != (word in other):
                    right[name].append((float(word in own), len(own) / (len(own) + len(other))))
                    right["all"].append(right[name][-1])
    print("\nwords of the right one of two pictograms")
    for name, values in sorted(right.items()):
        shares, by_chance = zip(*values, strict=True)
        print(f"  {name}: {interval(shares)}, by chance {np.mean(by_chance):.2f}; {len(values)} parts")


def deletion(lake: Lake, explainer: Explainer, reranker: Any, rows: Sequence[Row]) -> None:
    """How far the logit falls without the most weighted shares, and without random ones."""
    groups = groups_of(lake, rows)
    logits, generator = logits_of(reranker, groups), np.random.default_rng(0)
    falls: dict[str, list[list[float]]] = defaultdict(list)
    faithful: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for result in explainer.explain([group], logits):
            count = len(result.parts.parts)
            if count < 2:
                continue
            by_weight, at_random = np.argsort(-result.weights, kind="stable"), generator.permutation(count)
            sizes = [min(count - 1, -(-int(count * share * 10) // 10)) for share in SHARES]
            cuts = [order[:size].tolist() for order in (by_weight, at_random) for size in sizes]
            query = lake.query(result.query_id)
            altered = [DocumentGroup(result.parts.without(cut, str(n)), (query,)) for n, cut in enumerate(cuts)]
            found = logits_of(reranker, altered)
            whole = logits[result.query_id, result.doc_id]
            name = f"{result.method}, {lake.slice(result.query_id)}"
            for key in (name, result.method):
                falls[key].append([whole - found.get((query.query_id, str(n)), whole) for n in range(len(cuts))])
                faithful[key].append(float(result.faithful))
    print("\nfall of the logit without the heaviest part, and without a random one; faithful")
    for name in sorted(falls):
        table = np.array(falls[name])
        print(f"  {name}: {len(table)} pairs, faithful {np.mean(faithful[name]):.2f}")
        for number, share in enumerate(SHARES):
            print(f"    {share:.0%}: {interval(table[:, number])}; random {interval(table[:, number + len(SHARES)])}")


def choose(lake: Lake, explainer: Explainer, reranker: Any, ranked: Path) -> None:
    """Methods beside each other: attention of each layer, gradient × input, leaving out."""
    methods = candidates(explainer)
    for kind in ("image", "text"):
        hits: dict[str, list[bool]] = defaultdict(list)
        for query_id, document, place, ends in islice(compositions(lake, kind, held_out=False, each=1), _FEW):
            group = DocumentGroup(document, (lake.query(query_id),))
            for name, method in methods.items():
                case, weights = method(group)
                hits[name].append(heaviest(case, weights, ends) == place)
        print(f"\npointing at one of four ({kind}), chance 0.25, {len(next(iter(hits.values())))} compositions")
        for name, values in sorted(hits.items(), key=lambda item: -np.mean(item[1])):
            print(f"  {name}: {np.mean(values):.2f}")
    falls: dict[str, dict[str, list[float]]] = {"image": defaultdict(list), "text": defaultdict(list)}
    rows = random.Random(0).sample(top_pairs(lake, ranked, held_out=False), _FEW)
    for row in rows:
        (group,), generator = groups_of(lake, [row]), np.random.default_rng(0)
        (whole,) = logits_of(reranker, [group]).values()
        orders = {
            name: (case, np.argsort(-w, kind="stable"))
            for name, method in methods.items()
            for case, w in [method(group)]
        }
        case = next(iter(orders.values()))[0]
        if len(case.parts.parts) < 2:
            continue
        orders["random"] = case, generator.permutation(len(case.parts.parts))
        altered = [
            DocumentGroup(c.parts.without(c.parts.fifth(o), name), group.queries) for name, (c, o) in orders.items()
        ]
        for (_, name), logit in logits_of(reranker, altered).items():
            falls["image" if group.document.images else "text"][name].append(whole - logit)
    for kind, of_kind in falls.items():
        print(f"\nfall of the logit without the heaviest fifth ({kind})")
        for name, values in sorted(of_kind.items(), key=lambda item: -np.mean(item[1])):
            print(f"  {name}: {np.mean(values):.2f} of {len(values)}")


Weigher = Callable[[DocumentGroup], tuple[Case, Floats]]


def candidates(explainer: Explainer) -> dict[str, Weigher]:
    network = explainer._network
    layers = network.engine._decoder.kinds

    def case_of(group: DocumentGroup) -> Any:
        (prepared,) = network.preprocessor.prefetch([group], 1000)
        (case,) = explainer._cases([prepared])
        return case, prepared

    def attention(group: DocumentGroup, layer: int, rows: str) -> tuple[Case, Floats]:
        case, prepared = case_of(group)
        (taken,) = network.engine.attention([prepared.engine_input], layer)
        return case, (taken[-1] if rows == "score token" else taken.mean(axis=0)) @ case.parts.of_tokens

    def leave_one_out(group: DocumentGroup) -> tuple[Case, Floats]:
        case, _ = case_of(group)
        (query,) = group.queries
        whole = logits_of(network, [group])[query.query_id, group.document.doc_id]
        parts = range(len(case.parts.parts))
        altered = [DocumentGroup(case.parts.without([part], str(part)), (query,)) for part in parts]
        found = logits_of(network, altered)
        return case, np.array([whole - found.get((query.query_id, str(part)), whole) for part in parts])

    gradient = gradients(network)

    def gradient_times_input(group: DocumentGroup) -> tuple[Case, Floats]:
        case, prepared = case_of(group)
        return case, gradient(prepared.document, prepared.queries[0]) @ case.parts.of_tokens

    methods: dict[str, Weigher] = {"leave-one-out": leave_one_out, "gradient × input": gradient_times_input}
    for layer in range(len(layers)):
        for rows in ("score token", "all tokens"):
            methods[f"attention of layer {layer}, {rows}"] = lambda group, layer=layer, rows=rows: attention(
                group, layer, rows
            )
    return methods


def gradients(reranker: Any) -> Callable[[Any, Any], Floats]:
    """|gradient × input| of a document's embeddings, by transformers' own network."""
    folder = Path(CheckpointSpec("embedded").identify(Limits()).identities[0].folder)
    network = load_network(folder, read_settings(folder, "float32"), "cpu")
    decoder, head, engine = network.model.language_model, network.score.float(), reranker.engine

    def weigh(document: Any, query: Any) -> Floats:
        ids = torch.tensor(np.concatenate((document.token_ids, query.token_ids)))
        with torch.no_grad():
            embeds = decoder.embed_tokens(ids)
            for encoded, start in ((document, 0), (query, len(document.token_ids))):
                places = start + np.flatnonzero(encoded.token_ids == network.config.image_token_id)
                if len(places):
                    visual = torch.cat(engine._visual_tokens([encoded], engine._document_images)).clone()
                    embeds[torch.tensor(places)] = visual
        embeds = embeds.detach()[None].requires_grad_(True)
        positions = np.concatenate((document.positions, query.positions + document.end), axis=1)
        hidden = decoder(inputs_embeds=embeds, position_ids=torch.tensor(positions)[:, None], use_cache=False)
        head(hidden.last_hidden_state[0, -1]).sum().backward()
        product = (embeds.grad * embeds).sum(dim=-1)[0, : len(document.token_ids)]
        return np.asarray(product.abs().detach().numpy())

    return weigh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("choose", "report"))
    parser.add_argument("--model", choices=LAKES, default="embedded")
    parser.add_argument("--ranked", type=Path, help="ranked/run_id=… of a run of this model on its bundled lake")
    options = parser.parse_args()
    spec, lake = CheckpointSpec(options.model, dtype="float32"), Lake(LAKES[options.model])
    reranker = spec.load("cpu", Limits(), RuntimeOptions(device_threads=torch.get_num_threads()))
    explainer = Explainer(reranker, spec.identify(Limits()).identities[0])
    (choose if options.what == "choose" else report)(lake, explainer, reranker, options.ranked)


if __name__ == "__main__":
    main()
